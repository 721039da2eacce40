"""Training methods: each turns a batch of per-example losses into a gradient. One file a paper."""

from .base import ERM, Method
from .bsam import BSAM
from .compose import compose
from .every import Every
from .fam import FAM
from .flooding import AdaFlood, Flooding, IFlood, adaflood_levels, held_out_losses
from .friendly import FriendlySAM
from .gnp import GNP
from .gsam import GSAM
from .looksam import LookSAM
from .nso import NSO, WeightNoise
from .sam import ASAM, RSAM, SAM, USAM
from .schedules import Cosine, FollowLR, Linear
from .softad import SoftAD

__all__ = [
    "ASAM",
    "BSAM",
    "ERM",
    "FAM",
    "GNP",
    "GSAM",
    "NSO",
    "RSAM",
    "SAM",
    "USAM",
    "AdaFlood",
    "Cosine",
    "Every",
    "Flooding",
    "FollowLR",
    "FriendlySAM",
    "IFlood",
    "Linear",
    "LookSAM",
    "Method",
    "SoftAD",
    "WeightNoise",
    "adaflood_levels",
    "compose",
    "held_out_losses",
]
