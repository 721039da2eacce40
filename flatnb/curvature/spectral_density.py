"""Spectral density of an operator by stochastic Lanczos quadrature.

The density phi(t) = (1/size) sum_i delta(t - lambda_i) is read from Gauss quadratures:
m steps of Lanczos from a unit vector q give nodes theta_j and weights w_j = (first
entry of the j-th eigenvector of T)^2 with

    q' p(H) q = sum_j w_j p(theta_j)    for each polynomial p of degree <= 2 m - 1.

With q of random signs its mean is (1/size) tr p(H): all moments up to 2 m - 1 are
unbiased (Lin, Saad and Yang 2016; Ghorbani, Krishnan and Xiao 2019).
"""

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from flatnb._checks import integer, number
from flatnb.curvature.lanczos import Lanczos
from flatnb.curvature.operator import HessianOperator, check_operator
from flatnb.curvature.result import Result
from flatnb.curvature.trace import rademacher


@dataclass(frozen=True, kw_only=True, repr=False)
class SpectralDensity(Result):
    """Quadrature nodes and weights, one row per probe.

    Attributes:
        nodes: (probes, steps) in float64, in descending order.
        weights: (probes, steps), each row summing to 1; 0 past the end of a probe.
    """

    nodes: Tensor
    weights: Tensor
    size: int

    def moment(self, power: int) -> tuple[float, float]:
        """(1/size) tr H^power and its standard error over the probes, unsmoothed."""
        sample = (self.weights * self.nodes**power).sum(1)
        return float(sample.mean()), float(sample.std() / math.sqrt(len(sample)))

    def curve(self, grid: Tensor, sigma: float) -> Tensor:
        """Density at the points of `grid`, with a Gaussian of width sigma per node."""
        number("sigma", sigma, "a number > 0", 0)
        nodes, weights = self.nodes.reshape(-1, 1), self.weights.reshape(-1, 1)
        bells = torch.exp(-0.5 * ((grid.double() - nodes) / sigma) ** 2)
        height = len(self.nodes) * sigma * math.sqrt(2 * math.pi)
        return (weights * bells).sum(0) / height

    def summary(self) -> str:
        mean, error = self.moment(1)
        nodes = f"nodes from {self.nodes.min():.4g} to {self.nodes.max():.4g}"
        return f"{nodes}, mean eigenvalue {mean:.4g} ± {error:.1g}"


def spectral_density(
    operator: HessianOperator, *, steps: int = 60, probes: int = 4, seed: int = 0
) -> SpectralDensity:
    """Spectral density from `probes` Lanczos processes of `steps` products each.

    Takes an operator as `top_eigenvalues` does, and at least two probes. Holds `steps`
    vectors, for full reorthogonalization; without it Lanczos repeats eigenvalues.

    >>> net = torch.nn.Linear(4, 1, bias=False)
    >>> data = [(torch.eye(4), torch.ones(4, 1))]
    >>> hessian = HessianOperator(net, torch.nn.functional.mse_loss, data)
    >>> spectral_density(hessian).moment(1)  # all eigenvalues are 1/2
    (0.5, 0.0)
    """
    check_operator(operator)
    start, used = time.perf_counter(), operator.products
    steps = min(integer("steps", steps), operator.size)
    integer("probes", probes, 2)
    generator = torch.Generator().manual_seed(seed)
    nodes = torch.zeros(probes, steps, dtype=torch.float64)
    weights = torch.zeros_like(nodes)
    for row in range(probes):
        lanczos = Lanczos(operator)
        lanczos.add(rademacher((operator.size,), generator, operator))
        while len(lanczos.columns) < min(steps, lanczos.size):  # fewer: the space ends
            lanczos.expand()
        values, coordinates, _ = lanczos.ritz()
        nodes[row] = values[-1]
        nodes[row, : len(values)] = values
        weights[row, : len(values)] = coordinates[0] ** 2
    return SpectralDensity(
        nodes=nodes,
        weights=weights,
        size=operator.size,
        products=operator.products - used,
        seconds=time.perf_counter() - start,
        settings={"steps": steps, "probes": probes, "seed": seed},
    )
