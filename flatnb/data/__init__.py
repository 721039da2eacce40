"""Data sets that lie on the device as whole tensors, with what draws their batches.

`plane` makes two-dimensional tasks, `images` reads image data sets; both return a
`Data` of three `Split`s. `stack` joins data sets for an ensemble; `flatnb.data.augment`
has the augmentations, `flatnb.data.sensing` matrix sensing.
"""

from flatnb.data import sensing
from flatnb.data.base import Data, Split, stack
from flatnb.data.images import images
from flatnb.data.plane import plane

__all__ = ["Data", "Split", "images", "plane", "sensing", "stack"]
