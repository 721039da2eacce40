"""How flat is this minimum? Curvature of the loss surface, with error and cost of every number."""

from flatnb.curvature.eigenvalues import Eigenpairs, top_eigenvalues
from flatnb.curvature.ensemble import EnsembleFlatness, ensemble_flatness
from flatnb.curvature.gauss_newton_trace import gauss_newton_trace
from flatnb.curvature.landscape import (
    Slice,
    between,
    filter_normalised,
    line,
    plane,
    random_direction,
)
from flatnb.curvature.objective import Objective
from flatnb.curvature.operator import GaussNewtonOperator, HessianOperator
from flatnb.curvature.relative_flatness import (
    RelativeFlatness,
    relative_flatness,
    relative_flatness_by_layer,
)
from flatnb.curvature.result import Estimate
from flatnb.curvature.sharpness import (
    Sharpness,
    average_sharpness,
    sam_sharpness,
    worst_sharpness,
)
from flatnb.curvature.spectral_density import SpectralDensity, spectral_density
from flatnb.curvature.trace import Trace, trace

__all__ = [
    "Eigenpairs",
    "EnsembleFlatness",
    "Estimate",
    "GaussNewtonOperator",
    "HessianOperator",
    "Objective",
    "RelativeFlatness",
    "Sharpness",
    "Slice",
    "SpectralDensity",
    "Trace",
    "average_sharpness",
    "between",
    "ensemble_flatness",
    "filter_normalised",
    "gauss_newton_trace",
    "line",
    "plane",
    "random_direction",
    "relative_flatness",
    "relative_flatness_by_layer",
    "sam_sharpness",
    "spectral_density",
    "top_eigenvalues",
    "trace",
    "worst_sharpness",
]
