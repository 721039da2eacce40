"""Diagonal of an operator by random probes.

    diag H = E[z * (H z)],    z of independent signs           (Bekas, Kokiopoulou and Saad 2007)

is unbiased because E[z_i z_j] is 1 for i = j and 0 otherwise; entry i has the variance
sum_{j != i} H_ij^2 a probe, so that small entries of rows with large ones come out last.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from flatnb.curvature.krylov import rademacher
from flatnb.curvature.operator import HessianOperator
from flatnb.curvature.result import Progress, ProgressCallback, Result


@dataclass(frozen=True, kw_only=True, repr=False)
class Diagonal(Result):
    """The diagonal (size,) and the standard error of each of its entries, in float64."""

    value: Tensor
    stderr: Tensor

    def summary(self) -> str:
        return (
            f"{len(self.value)} entries, sum {float(self.value.sum()):.6g}, "
            f"median standard error {float(self.stderr.median()):.2g}"
        )


def diagonal(
    operator: HessianOperator,
    probes: int = 100,
    *,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> Diagonal:
    """diag H from `probes` products (at least 2); `operator.as_dict(d.value)` is by parameter.

    Raises:
        ValueError: Fewer than two probes, from which no error can be told.
    """
    if probes < 2:
        raise ValueError(f"probes must be at least 2, got {probes}")
    began, products = time.perf_counter(), operator.products
    generator = torch.Generator().manual_seed(seed)
    mean = torch.zeros(operator.size, dtype=torch.float64, device=operator.device)
    squares = torch.zeros_like(mean)
    like = torch.empty(0, dtype=operator.dtype, device=operator.device)
    with Progress(progress) as say:
        for count in range(1, probes + 1):  # Welford's running mean and sum of squares
            probe = rademacher(1, operator.size, generator, like)[0]
            sample = (probe * (operator @ probe)).double()
            change = sample - mean
            mean += change / count
            squares += change * (sample - mean)
            say(f"diagonal: {count} of {probes} probes")
    return Diagonal(
        value=mean,
        stderr=(squares / (probes - 1) / probes).sqrt(),
        products=operator.products - products,
        seconds=time.perf_counter() - began,
        settings={"probes": probes, "seed": seed},
    )
