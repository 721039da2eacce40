"""flatnb: training methods that look for flat minima, and the measures of flatness.

A method turns a batch of per-example losses into a gradient; `method.backward` stands
where `loss.backward()` stood. The rest measures what that did to the loss surface.
"""

from importlib import import_module
from types import ModuleType

from flatnb.ensemble import Ensemble
from flatnb.methods import (
    ASAM,
    BSAM,
    ERM,
    FAM,
    GNP,
    GSAM,
    NSO,
    RSAM,
    SAM,
    USAM,
    AdaFlood,
    Cosine,
    Every,
    Flooding,
    FollowLR,
    FriendlySAM,
    IFlood,
    Linear,
    LookSAM,
    Method,
    SoftAD,
    WeightNoise,
    compose,
)
from flatnb.train import Run, fit, fit_grid

__version__ = "0.1.0"
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
    "Ensemble",
    "Every",
    "Flooding",
    "FollowLR",
    "FriendlySAM",
    "IFlood",
    "Linear",
    "LookSAM",
    "Method",
    "Run",
    "SoftAD",
    "WeightNoise",
    "compose",
    "fit",
    "fit_grid",
]


def __getattr__(name: str) -> ModuleType:
    # Loaded when first asked for: it needs scipy, which training does not.
    if name == "curvature":
        return import_module("flatnb.curvature")
    raise AttributeError(f"module 'flatnb' has no attribute {name!r}")
