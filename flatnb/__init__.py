"""flatnb: training methods that look for flat minima, and the measures of flatness.

A method turns a batch of per-example losses into a gradient; `method.backward`
replaces `loss.backward()`. The rest measures what that did to the loss surface.
"""

from importlib import import_module
from types import ModuleType

from flatnb import methods
from flatnb.ensemble import Ensemble
from flatnb.grid import fit_grid
from flatnb.methods import *  # noqa: F403
from flatnb.train import Run, fit

__version__ = "0.1.0"
__all__ = ["Ensemble", "Run", "fit", "fit_grid"]
__all__ += methods.__all__


def __getattr__(name: str) -> ModuleType:
    # Loaded when first asked for: training does not need it.
    if name == "curvature":
        return import_module("flatnb.curvature")
    raise AttributeError(f"module 'flatnb' has no attribute {name!r}")
