"""Data sets that lie on the device as whole tensors, with the loader that shuffles them.

`plane` makes the two-dimensional tasks, `images` reads image data sets; both return a `Data` of
three `Split`s. `stack` joins data sets for an ensemble; `flatnb.data.augment` has the batched
augmentations, `flatnb.data.sensing` matrix sensing.
"""

from . import sensing
from .base import Data, Split, stack
from .images import images
from .plane import plane

__all__ = ["Data", "Split", "images", "plane", "sensing", "stack"]
