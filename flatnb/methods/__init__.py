"""Training methods: each turns per-example losses into a gradient."""

from flatnb.methods.bsam import BSAM
from flatnb.methods.compose import Every, compose
from flatnb.methods.decomposition import GSAM, FriendlySAM, LookSAM
from flatnb.methods.fam import FAM
from flatnb.methods.flooding import (
    AdaFlood,
    Flooding,
    IFlood,
    adaflood_levels,
    held_out_losses,
)
from flatnb.methods.method import ERM, Method
from flatnb.methods.nso import NSO, WeightNoise
from flatnb.methods.sam import ASAM, GNP, RSAM, SAM, USAM
from flatnb.methods.schedules import Cosine, FollowLR, Linear
from flatnb.methods.softad import SoftAD

# Each is on a page of book/library; a test asks for it.
__all__ = ["ERM", "Every", "Method", "compose"]
__all__ += ["AdaFlood", "Flooding", "IFlood", "adaflood_levels", "held_out_losses"]
__all__ += ["SoftAD"]
__all__ += ["ASAM", "GSAM", "RSAM", "SAM", "USAM", "FriendlySAM", "LookSAM"]
__all__ += ["BSAM", "NSO", "WeightNoise"]
__all__ += ["FAM", "GNP"]
__all__ += ["Cosine", "FollowLR", "Linear"]
