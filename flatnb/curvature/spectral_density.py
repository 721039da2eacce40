"""Spectral density of an operator by stochastic Lanczos quadrature.

The density phi(t) = (1/size) sum_i delta(t - lambda_i) is read from Gauss quadratures:
m steps of Lanczos from a unit vector q give nodes theta_j and weights w_j = (first
entry of the j-th eigenvector of T)^2 with

    q' p(H) q = sum_j w_j p(theta_j)    for each polynomial p of degree <= 2 m - 1.

With q of random signs its mean is (1/size) tr p(H): all moments up to 2 m - 1 are
unbiased (Lin, Saad and Yang 2016; Ghorbani, Krishnan and Xiao 2019). A curve puts a
Gaussian of width sigma on every node and shows nothing narrower.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from flatnb._checks import integer, number
from flatnb.curvature.lanczos import Lanczos, Operator
from flatnb.curvature.result import Result
from flatnb.curvature.vectors import rademacher


@dataclass(frozen=True, kw_only=True, repr=False)
class SpectralDensity(Result):
    """Quadrature nodes and weights, one row per probe.

    Attributes:
        nodes: (probes, steps) in float64.
        weights: (probes, steps), each row summing to 1; 0 past the end of a probe.
        size: dimension of the operator.
        sigma: default width of the Gaussian on each node, in units of the eigenvalues:
            1/100 of the range of the nodes.
    """

    nodes: Tensor
    weights: Tensor
    size: int
    sigma: float

    def moment(self, power: int) -> tuple[float, float]:
        """(1/size) tr H^power and its standard error over the probes, unsmoothed."""
        sample = (self.weights * self.nodes**power).sum(1)
        return float(sample.mean()), float(sample.std() / math.sqrt(len(sample)))

    def curve(self, grid: Tensor, sigma: float | None = None) -> Tensor:
        """Density at the points of `grid`, smoothed by a Gaussian of width sigma."""
        width = self.sigma if sigma is None else number("sigma", sigma, "> 0", 0)
        nodes, weights = self.nodes.reshape(-1, 1), self.weights.reshape(-1, 1)
        bells = torch.exp(-0.5 * ((grid.double() - nodes) / width) ** 2)
        height = len(self.nodes) * width * math.sqrt(2 * math.pi)
        return (weights * bells).sum(0) / height

    def grid(self, points: int = 500) -> Tensor:
        """Points over the nodes' range and 5 sigma beyond."""
        margin = 5 * self.sigma
        low, high = float(self.nodes.min()) - margin, float(self.nodes.max()) + margin
        return torch.linspace(low, high, points, dtype=torch.float64)

    def summary(self) -> str:
        mean, error = self.moment(1)
        low, high = float(self.nodes.min()), float(self.nodes.max())
        return (
            f"nodes from {low:.4g} to {high:.4g}, mean eigenvalue {mean:.4g} ± "
            f"{error:.1g}, Gaussian smoothing sigma = {self.sigma:.2g}"
        )


def spectral_density(
    operator: Operator, *, steps: int = 60, probes: int = 4, seed: int = 0
) -> SpectralDensity:
    """Spectral density from `probes` Lanczos processes of `steps` products each.

    Memory: `steps` vectors, for full reorthogonalization; without it Lanczos repeats
    eigenvalues.

    Args:
        operator: the matrix, as for `top_eigenvalues`.
        steps: Lanczos steps, at most the dimension: nodes per probe.
        probes: start vectors >= 2.
        seed: of the start vectors.

    Raises:
        ValueError: steps or probes out of range.

    >>> from flatnb.curvature import HessianOperator
    >>> net = torch.nn.Linear(4, 1, bias=False)
    >>> data = [(torch.eye(4), torch.ones(4, 1))]
    >>> hessian = HessianOperator(net, torch.nn.functional.mse_loss, data)
    >>> spectral_density(hessian).moment(1)  # all eigenvalues are 1/2
    (0.5, 0.0)
    """
    integer("steps", steps)
    integer("probes", probes, 2)
    start, used = time.perf_counter(), operator.products
    steps = min(steps, operator.size)
    like = torch.empty(0, dtype=operator.dtype, device=operator.device)
    generator = torch.Generator().manual_seed(seed)
    nodes = torch.zeros(probes, steps, dtype=torch.float64)
    weights = torch.zeros_like(nodes)
    for row in range(probes):
        values, squares = _quadrature(
            operator, rademacher((operator.size,), generator, like), steps
        )
        nodes[row] = values[-1]
        nodes[row, : len(values)] = values
        weights[row, : len(values)] = squares
    return SpectralDensity(
        nodes=nodes,
        weights=weights,
        size=operator.size,
        sigma=max(float(nodes.max() - nodes.min()), 1e-12) / 100,
        products=operator.products - used,
        seconds=time.perf_counter() - start,
        settings={"steps": steps, "probes": probes, "seed": seed},
    )


def _quadrature(operator: Operator, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of `start` by at most `steps` products."""
    lanczos = Lanczos(operator, min(steps + 1, operator.size))
    lanczos.add(start)
    while lanczos.multiplied < min(steps, lanczos.size):  # fewer if the space ends
        lanczos.expand()
    values, vectors, _ = lanczos.ritz()
    return values, vectors[0] ** 2
