"""Spectral density of an operator by stochastic Lanczos quadrature.

The density phi(t) = (1/size) sum_i delta(t - lambda_i) is read from Gauss quadratures:
m steps of Lanczos from a unit vector q give nodes theta_j and weights w_j = (first
entry of the j-th eigenvector of T)^2 that integrate every polynomial p up to degree 2m
- 1 exactly, q' p(H) q = sum_j w_j p(theta_j); for q = z / sqrt(size), z of independent
  signs, its mean over q
is the moment (1/size) tr p(H), so that all moments up to 2m - 1 are unbiased (Golub and
Meurant 2010; Lin, Saad and Yang 2016; Ghorbani, Krishnan and Xiao 2019). A curve is
drawn by putting a
Gaussian of width sigma on every node: what is narrower than sigma cannot be seen in it.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from flatnb.curvature.lanczos import Lanczos, Operator
from flatnb.curvature.result import Progress, ProgressCallback, Result
from flatnb.curvature.vectors import rademacher


@dataclass(frozen=True, kw_only=True, repr=False)
class SpectralDensity(Result):
    """Quadrature nodes and weights, a row a probe (rows ending early are filled with
    weight 0).

    Attributes:
        nodes: (probes, steps) in float64.
        weights: (probes, steps), each row summing to 1.
        size: Dimension of the operator.
        sigma: Width of the Gaussian put on every node by default, in units of the
            eigenvalues: 1/100 of the range of the nodes.
    """

    nodes: Tensor
    weights: Tensor
    size: int
    sigma: float

    def moment(self, power: int) -> tuple[float, float]:
        """(1/size) tr H^power and its standard error over the probes; no smoothing enters."""
        each = (self.weights * self.nodes**power).sum(1)
        return float(each.mean()), float(each.std() / math.sqrt(len(each)))

    def curve(self, grid: Tensor, sigma: float | None = None) -> Tensor:
        """Density, smoothed by a Gaussian of width sigma, at the points of `grid`."""
        width = self.sigma if sigma is None else sigma
        if not width > 0:
            raise ValueError(f"sigma must be positive, got {width}")
        nodes, weights = self.nodes.reshape(-1, 1), self.weights.reshape(-1, 1)
        bells = torch.exp(-0.5 * ((grid.double() - nodes) / width) ** 2)
        return (weights * bells).sum(0) / (
            len(self.nodes) * width * math.sqrt(2 * math.pi)
        )

    def grid(self, points: int = 500) -> Tensor:
        """Points over the nodes' range and 5 sigma beyond."""
        margin = 5 * self.sigma
        low, high = float(self.nodes.min()) - margin, float(self.nodes.max()) + margin
        return torch.linspace(low, high, points, dtype=torch.float64)

    def summary(self) -> str:
        mean, error = self.moment(1)
        low, high = float(self.nodes.min()), float(self.nodes.max())
        return (
            f"nodes from {low:.4g} to {high:.4g}, mean eigenvalue {mean:.4g} ± {error:.1g}, "
            f"Gaussian smoothing sigma = {self.sigma:.2g}"
        )


def spectral_density(
    operator: Operator,
    *,
    steps: int = 60,
    probes: int = 4,
    sigma: float | None = None,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> SpectralDensity:
    """Spectral density from `probes` Lanczos processes of `steps` products each.

    Full reorthogonalisation: without it Lanczos repeats eigenvalues it has found.
        Memory: `steps`
    vectors.

    Args:
        operator: The matrix.
        steps: Lanczos steps m, at most the dimension: m nodes a probe.
        probes: Start vectors, at least 2 for an error.
        sigma: Smoothing of `curve`; None takes 1/100 of the range of the nodes.
        seed: Of the start vectors.
        progress: Called with a line of text after every product.

    Raises:
        ValueError: steps, probes or sigma out of range.
    """
    if steps < 1 or probes < 2:
        raise ValueError(
            f"steps >= 1 and probes >= 2 are needed, got {steps} and {probes}"
        )
    if sigma is not None and not sigma > 0:
        raise ValueError(f"sigma > 0 is needed, got {sigma}")
    steps = min(steps, operator.size)
    began, products = time.perf_counter(), operator.products
    like = torch.empty(0, dtype=operator.dtype, device=operator.device)
    signs = torch.Generator().manual_seed(seed)
    nodes = torch.zeros(probes, steps, dtype=torch.float64)
    weights = torch.zeros_like(nodes)
    with Progress(progress) as say:
        for row in range(probes):
            start = rademacher(1, operator.size, signs, like)[0]
            label = f"density: probe {row + 1}"
            values, squares = _quadrature(operator, start, steps, say, label)
            nodes[row] = values[-1]
            nodes[row, : len(values)] = values
            weights[row, : len(values)] = squares
    spread = float(nodes.max() - nodes.min())
    return SpectralDensity(
        nodes=nodes,
        weights=weights,
        size=operator.size,
        sigma=max(spread, 1e-12) / 100 if sigma is None else sigma,
        products=operator.products - products,
        seconds=time.perf_counter() - began,
        settings={"steps": steps, "probes": probes, "seed": seed},
    )


def _quadrature(
    operator: Operator, start: Tensor, steps: int, say: Progress, label: str
) -> tuple[Tensor, Tensor]:
    """Nodes and weights of `start` by at most `steps` products."""
    lanczos = Lanczos(operator, min(steps + 1, operator.size))
    lanczos.add(start)
    while lanczos.multiplied < min(
        steps, lanczos.size
    ):  # less where the whole space is seen
        lanczos.expand()
        say(f"{label}, {lanczos.multiplied} of {steps} steps")
    values, vectors, _ = lanczos.ritz()
    return values, vectors[0] ** 2
