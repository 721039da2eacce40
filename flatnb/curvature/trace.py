"""Trace of an operator by random probes, with a standard error.

    tr H = E[z' H z],    z of independent signs                    (Hutchinson 1990)

is unbiased because E[z z'] = I; signs have the least variance of all such z,
2 sum_{i != j} H_ij^2.
"""

import time
import warnings

import torch
from torch import Tensor

from flatnb._checks import integer, number
from flatnb.curvature.operator import HessianOperator, check_operator
from flatnb.curvature.result import Estimate, moments

_ROUND = 8  # probes held in memory at once, fewer of a large operator
_ENTRIES = 1 << 25  # of these probes
_LEAST = 30  # probes, before their spread is believed


def trace(
    operator: HessianOperator,
    *,
    relative: float = 0.02,
    max_probes: int = 1000,
    seed: int = 0,
) -> Estimate:
    """tr H by Hutchinson's estimator, to a relative standard error.

    Takes at least 30 probes, or is exact where as many products give the whole matrix.
    Warns if the error is larger than `relative` times the trace after `max_probes`.

    >>> net = torch.nn.Linear(4, 1, bias=False)
    >>> data = [(torch.eye(4), torch.ones(4, 1))]
    >>> trace(HessianOperator(net, torch.nn.functional.mse_loss, data)).summary()
    '2, exact'
    """
    number("relative", relative, "a number > 0", 0)
    integer("max_probes", max_probes, _LEAST)
    check_operator(operator)
    start, used = time.perf_counter(), operator.products
    if operator.size > _LEAST:
        fields = _hutchinson(operator, relative, max_probes, seed)
    else:
        fields = {"value": float(operator.dense().diagonal().double().sum())}
    return Estimate(
        **fields,
        products=operator.products - used,
        seconds=time.perf_counter() - start,
        settings={"relative": relative, "seed": seed},
    )


def rademacher(
    shape: tuple[int, ...], generator: torch.Generator, like: Tensor | HessianOperator
) -> Tensor:
    """Independent signs as `like`, drawn on the CPU: the same for every device."""
    signs = torch.randint(0, 2, shape, generator=generator, dtype=torch.int8)
    return signs.to(like.device, like.dtype).mul_(2).sub_(1)


def _hutchinson(
    operator: HessianOperator, relative: float, max_probes: int, seed: int
) -> dict[str, float]:
    generator = torch.Generator().manual_seed(seed)
    sample, wanted = torch.zeros(0, dtype=torch.float64), _LEAST
    while True:
        while len(sample) < wanted:
            few = max(1, _ENTRIES // operator.size)
            count = min(_ROUND, few, wanted - len(sample))
            probes = rademacher((count, operator.size), generator, operator)
            products = operator.rows(probes).double()
            sample = torch.cat([sample, (probes.double() * products).sum(1).cpu()])
        fields = moments(sample)
        if fields["stderr"] <= relative * abs(fields["value"]):
            return fields
        if wanted >= max_probes:
            warnings.warn(
                f"trace stopped at {wanted} probes with a standard error of "
                f"{fields['stderr']:.3g}; allow more probes or a larger error",
                stacklevel=3,
            )
            return fields
        # A quarter more each time: a look after every probe would stop too early.
        wanted = min(max_probes, 1 + wanted + wanted // 4)
