"""How flat is this minimum? Curvature of the loss surface, with error and cost."""

from flatnb.curvature.eigenvalues import Eigenpairs, top_eigenvalues
from flatnb.curvature.ensemble import (
    FLATNESS,
    EnsembleFlatness,
    ensemble_flatness,
)
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
from flatnb.curvature.trace import trace

__all__ = [
    "FLATNESS",
    "Eigenpairs",
    "EnsembleFlatness",
    "Estimate",
    "GaussNewtonOperator",
    "HessianOperator",
    "Objective",
    "Sharpness",
    "Slice",
    "SpectralDensity",
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
