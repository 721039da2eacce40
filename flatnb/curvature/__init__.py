"""How flat is this minimum? Curvature of the loss surface, with error and cost of every number."""

from flatnb.curvature.density import SpectralDensity, spectral_density
from flatnb.curvature.diagonal import Diagonal, diagonal
from flatnb.curvature.eigen import Eigenpairs, top_eigenvalues
from flatnb.curvature.gauss_newton import gauss_newton_trace
from flatnb.curvature.operator import GaussNewtonOperator, HessianOperator
from flatnb.curvature.trace import Trace, trace

__all__ = [
    "Diagonal",
    "Eigenpairs",
    "GaussNewtonOperator",
    "HessianOperator",
    "SpectralDensity",
    "Trace",
    "diagonal",
    "gauss_newton_trace",
    "spectral_density",
    "top_eigenvalues",
    "trace",
]
