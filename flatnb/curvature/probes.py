"""Trace and diagonal of an operator by random probes, with standard errors.

    tr H = E[z' H z],    z of independent signs                    (Hutchinson 1990)

is unbiased because E[z z'] = I; signs have the least variance of all such z, 2 sum_{i != j} H_ij^2.
With the exact eigenpairs (theta, U) of `top_eigenvalues` in hand, the part they span is taken out,

    tr H = sum theta + E[(P z)' H (P z)],    P = I - U U',         (Wu, Laeuchli and Gao 2016)

unbiased for every fixed orthonormal U, and with the variance of what is left: it pays where a few
eigenvalues stand far above the rest, as in trained nets.

    diag H = E[z * (H z)]                                (Bekas, Kokiopoulou and Saad 2007)

is unbiased entry by entry, with the variance sum_{j != i} H_ij^2 a probe: small entries of rows
with large ones come out last.
"""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from flatnb.curvature.eigenvalues import Eigenpairs
from flatnb.curvature.operator import HessianOperator
from flatnb.curvature.result import Progress, ProgressCallback, Result
from flatnb.curvature.vectors import project_out, rademacher

_ROUND = 8  # probes held in memory at once


@dataclass(frozen=True, kw_only=True, repr=False)
class Trace(Result):
    """A trace with its standard error.

    Attributes:
        value: The estimate.
        stderr: Its standard error; 0 where it is exact.
        degrees: Degrees of freedom behind the standard error.
        interval: 95 % interval by Student's t.
    """

    value: float
    stderr: float
    degrees: int

    @property
    def interval(self) -> tuple[float, float]:
        if self.stderr == 0:
            return self.value, self.value
        reach = float(stats.t.ppf(0.975, max(1, self.degrees))) * self.stderr
        return self.value - reach, self.value + reach

    def summary(self) -> str:
        if self.stderr == 0:
            return f"{self.value:.6g}, exact"
        low, high = self.interval
        return f"{self.value:.6g} ± {self.stderr:.2g}, 95 %: {low:.6g} to {high:.6g}"


def trace(
    operator: HessianOperator,
    stderr: float | None = None,
    *,
    relative: float | None = None,
    deflate: Eigenpairs | None = None,
    min_probes: int = 30,
    max_probes: int = 1000,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> Trace:
    """tr H by Hutchinson's estimator, to a wanted standard error. One product a probe.

    A stopping rule that looks at the spread of few probes stops too early; `min_probes` keeps the
    95 % interval honest. For nets of ReLUs `gauss_newton_trace` is far cheaper, often exact.

    Args:
        operator: What to take the trace of.
        stderr: Standard error wanted, in units of the trace.
        relative: The same as a fraction of the trace; 0.02 if neither is given.
        deflate: Eigenpairs of the same operator, taken out of the variance.
        min_probes: Probes before the spread is believed, at least 2.
        max_probes: Give up, with a warning, after so many.
        seed: Of the probes.
        progress: Called with a line of text now and then.

    Raises:
        ValueError: Targets that are not positive, too few probes, eigenpairs of another size.
    """
    stderr, relative = check_targets(stderr, relative)
    if not 2 <= min_probes <= max_probes:
        raise ValueError(f"2 <= min_probes <= max_probes, got {min_probes} and {max_probes}")
    if deflate is not None and deflate.vectors.shape[0] != operator.size:
        raise ValueError(
            f"deflate has vectors of size {len(deflate.vectors)}, the operator {operator.size}: "
            "give eigenpairs of the same operator"
        )
    began, products = time.perf_counter(), operator.products
    sampler = _Sampler(operator, deflate, seed)
    with Progress(progress) as say:
        sampler.draw(min_probes)
        while not sampler.within(stderr, relative) and len(sampler.values) < max_probes:
            # A quarter more each time: looking at every probe would stop too early too often.
            more = 1 + len(sampler.values) // 4
            sampler.draw(min(more, max_probes - len(sampler.values)))
            say(f"trace: {len(sampler.values)} probes, {sampler.mean:.5g} ± {sampler.stderr:.2g}")
    if not sampler.within(stderr, relative):
        warnings.warn(
            f"trace stopped at max_probes={max_probes} with a standard error of "
            f"{sampler.stderr:.3g}: allow more probes or a larger error",
            stacklevel=2,
        )
    return Trace(
        value=sampler.mean,
        stderr=sampler.stderr,
        degrees=len(sampler.values) - 1,
        products=operator.products - products,
        seconds=time.perf_counter() - began,
        settings={
            "estimator": "Hutchinson" if deflate is None else "deflated Hutchinson",
            "probes": len(sampler.values),
            "seed": seed,
        },
    )


def check_targets(
    stderr: float | None, relative: float | None
) -> tuple[float | None, float | None]:
    """Refuse errors that are not positive; 2 % where none is given."""
    if stderr is None and relative is None:
        return None, 0.02
    for name, target in (("stderr", stderr), ("relative", relative)):
        if target is not None and not target > 0:
            raise ValueError(f"{name} must be positive, got {target}")
    return stderr, relative


def met(mean: float, found: float, stderr: float | None, relative: float | None) -> bool:
    """Whether the standard error `found` satisfies all targets that are given."""
    return (stderr is None or found <= stderr) and (
        relative is None or found <= relative * abs(mean)
    )


class _Sampler:
    """z' H z for ever more probes z."""

    def __init__(self, operator: HessianOperator, deflate: Eigenpairs | None, seed: int) -> None:
        self.operator = operator
        self.values = torch.zeros(0, dtype=torch.float64)
        self._like = torch.empty(0, dtype=operator.dtype, device=operator.device)
        self._generator = torch.Generator().manual_seed(seed)
        self._known = 0.0 if deflate is None else float(deflate.values.sum())
        self._vectors = None if deflate is None else deflate.vectors.mT.contiguous()

    def draw(self, count: int) -> None:
        # Blocks of probes, so that many of them do not have to lie in memory at once.
        for start in range(0, count, _ROUND):
            probes = self._probes(min(_ROUND, count - start))
            products = self.operator.rows(probes)
            values = (probes.double() * products.double()).sum(1).cpu()
            self.values = torch.cat([self.values, values + self._known])

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def stderr(self) -> float:
        return float(self.values.std()) / math.sqrt(len(self.values))

    def within(self, stderr: float | None, relative: float | None) -> bool:
        return met(self.mean, self.stderr, stderr, relative)

    def _probes(self, count: int) -> Tensor:
        probes = rademacher(count, self.operator.size, self._generator, self._like)
        if self._vectors is not None:
            project_out(probes, self._vectors)
        return probes


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
