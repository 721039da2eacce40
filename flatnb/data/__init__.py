"""Data sets that lie on the device as whole tensors: a `Data` is three `Split`s."""

from flatnb.data import sensing
from flatnb.data.base import Data, Split, stack
from flatnb.data.images import images
from flatnb.data.mnist1d import mnist1d
from flatnb.data.plane import plane

__all__ = ["Data", "Split", "images", "mnist1d", "plane", "sensing", "stack"]
