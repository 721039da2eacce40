"""Training methods: each turns a batch of per-example losses into a gradient. One file a paper."""

from .base import ERM, Method
from .compose import compose
from .fam import FAM
from .flooding import Flooding, IFlood
from .sam import SAM
from .softad import SoftAD

__all__ = ["ERM", "FAM", "SAM", "Flooding", "IFlood", "Method", "SoftAD", "compose"]
