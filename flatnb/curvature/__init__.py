"""How flat is this minimum? Curvature of the loss surface, with error and cost.

A measure takes net, loss and batches, or an operator of them such as `HessianOperator`.
The largest eigenvalues: `top_eigenvalues`; all, roughly: `spectral_density`; their sum:
`trace`, or `gauss_newton_trace`, exact and cheaper for nets of ReLUs. How much the loss
rises nearby: `worst_sharpness` and `average_sharpness`; to draw it: `line`. Invariant
under rescaling of layers: `relative_flatness`. Every net of an ensemble:
`ensemble_flatness`.
"""

from flatnb.curvature.eigenvalues import Eigenpairs, top_eigenvalues
from flatnb.curvature.ensemble import FLATNESS, ensemble_flatness
from flatnb.curvature.gauss_newton_trace import gauss_newton_trace
from flatnb.curvature.landscape import line, random_direction
from flatnb.curvature.objective import Objective
from flatnb.curvature.operator import GaussNewtonOperator, HessianOperator
from flatnb.curvature.relative_flatness import (
    relative_flatness,
    relative_flatness_by_layer,
)
from flatnb.curvature.result import Estimate
from flatnb.curvature.sharpness import Sharpness, average_sharpness, worst_sharpness
from flatnb.curvature.spectral_density import SpectralDensity, spectral_density
from flatnb.curvature.trace import trace

# Each is on a page of book/library; a test asks for it.
__all__ = ["GaussNewtonOperator", "HessianOperator", "Objective"]
__all__ += ["gauss_newton_trace", "spectral_density", "top_eigenvalues", "trace"]
__all__ += ["relative_flatness", "relative_flatness_by_layer"]
__all__ += ["average_sharpness", "worst_sharpness"]
__all__ += ["FLATNESS", "ensemble_flatness"]
__all__ += ["line", "random_direction"]
__all__ += ["Eigenpairs", "Estimate", "Sharpness", "SpectralDensity"]
