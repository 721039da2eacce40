"""Trace of an operator by random probes, with a standard error.

    tr H = E[z' H z],    z of independent signs                    (Hutchinson 1990)

is unbiased because E[z z'] = I; signs have the least variance of all such z, 2 sum_{i
!= j} H_ij^2.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flatnb.curvature.operator import HessianOperator
from flatnb.curvature.result import Estimate, Progress, ProgressCallback, moments
from flatnb.curvature.vectors import rademacher

_ROUND = 8  # probes held in memory at once
LEAST = 30  # draws before their spread is believed


@dataclass(frozen=True, kw_only=True, repr=False)
class Trace(Estimate):
    """A trace with its standard error; exact if that is 0."""


def trace(
    operator: HessianOperator,
    stderr: float | None = None,
    *,
    relative: float | None = None,
    max_probes: int = 1000,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> Trace:
    """tr H by Hutchinson's estimator, to a wanted standard error. One product a probe.

    Takes 30 probes at least, and is exact where so many products are the whole matrix.
    The sample behind `stderr` is that of the probes. For nets of ReLUs
    `gauss_newton_trace` is cheaper, and exact.

    Args:
        operator: What to take the trace of.
        stderr: Standard error wanted, in units of the trace.
        relative: The same as a fraction of the trace; 0.02 if neither is given.
        max_probes: Give up, with a warning, after so many; at least 30.
        seed: Of the probes.
        progress: Called with a line of text now and then.

    Raises:
        ValueError: Targets that are not positive, too few probes.
    """
    targets = check_targets(stderr, relative)
    if max_probes < LEAST:
        raise ValueError(f"max_probes={max_probes}; allowed: an integer >= {LEAST}")
    began, products = time.perf_counter(), operator.products
    generator = torch.Generator().manual_seed(seed)
    like = torch.empty(0, dtype=operator.dtype, device=operator.device)

    def draw(count: int) -> Tensor:
        probes = rademacher(count, operator.size, generator, like)
        return (probes.double() * operator.rows(probes).double()).sum(1).cpu()

    found: dict[str, Any]
    if operator.size <= LEAST:
        how, found = (
            "exact",
            {"value": float(operator.dense().diagonal().double().sum())},
        )
    else:
        with Progress(progress) as say:
            how, found = "Hutchinson", estimate(draw, targets, max_probes, "trace", say)
        warn_unless_met(found, targets, "trace")
    return Trace(
        **found,
        products=operator.products - products,
        seconds=time.perf_counter() - began,
        settings={"estimator": how, "seed": seed},
    )


Targets = tuple[float | None, float | None]  # absolute and relative standard error


def estimate(
    draw: Callable[[int], Tensor], targets: Targets, most: int, name: str, say: Progress
) -> dict[str, Any]:
    """`moments` of `draw(count)`, independent values (count,), drawn until the targets
    are met.

    Ends at `most` values at the latest.
    """
    values, wanted = torch.zeros(0, dtype=torch.float64), LEAST
    while True:
        # Blocks of probes, so that many of them do not have to lie in memory at once.
        while len(values) < wanted:
            values = torch.cat([values, draw(min(_ROUND, wanted - len(values)))])
        found = moments(values)
        say(
            f"{name}: {len(values)} probes, {found['value']:.5g} ± {found['stderr']:.2g}"
        )
        if met(found, targets) or len(values) >= most:
            return found
        # A quarter more each time: looking at every probe would stop too early too
        # often.
        wanted = min(most, 1 + len(values) + len(values) // 4)


def met(found: dict[str, Any], targets: Targets) -> bool:
    """Whether the standard error satisfies all targets that are given."""
    (stderr, relative), error = targets, found["stderr"]
    return (stderr is None or error <= stderr) and (
        relative is None or error <= relative * abs(found["value"])
    )


def warn_unless_met(found: dict[str, Any], targets: Targets, name: str) -> None:
    if not met(found, targets):
        warnings.warn(
            f"{name} stopped at {found['degrees'] + 1} probes with a standard error of "
            f"{found['stderr']:.3g}: allow more probes or a larger error",
            stacklevel=3,
        )


def check_targets(stderr: float | None, relative: float | None) -> Targets:
    """Refuse errors that are not positive; 2 % where none is given."""
    if stderr is None and relative is None:
        return None, 0.02
    for name, target in (("stderr", stderr), ("relative", relative)):
        if target is not None and not target > 0:
            raise ValueError(f"{name}={target}; allowed: a number > 0, or None")
    return stderr, relative
