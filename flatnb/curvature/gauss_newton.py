"""Trace of the Gauss-Newton matrix, exact or nearly free, and with it of many Hessians.

With the loss's Hessian in the outputs of example i factored as S_i S_i',

    tr G = (1/N) sum_i |J_i' S_i|_F^2 = (1/N) sum_i E |J_i' S_i r_i|^2,

r_i independent signs. The left form is exact and takes one backward pass over the data for each of
the C outputs; the right one takes one pass for all, is unbiased example by example, and averages
over the examples: its error falls with 1/sqrt(N) at once, where a probe of Hutchinson's estimator
counts for one. Where the outputs are piecewise linear in each single parameter entry (ReLU nets
with convolutions, pooling, residual sums and BatchNorm in eval mode), H and G have the same
diagonal, so that this is the trace of the Hessian as well; see `flatnb.curvature.piecewise`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from flatnb.curvature.objective import Chunk, Objective, is_softmax_cross_entropy
from flatnb.curvature.operator import GaussNewtonOperator, HessianOperator
from flatnb.curvature.per_example import PerExample
from flatnb.curvature.piecewise import check_piecewise_linear
from flatnb.curvature.probes import Trace, met
from flatnb.curvature.result import Progress, ProgressCallback

_Factor = Callable[[Tensor], Tensor]  # coefficients (n, C) -> S_i r_i, shaped like the outputs


def gauss_newton_trace(
    operator: HessianOperator,
    *,
    stderr: float | None = None,
    relative: float | None = None,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> Trace:
    """tr G, which for nets piecewise linear in each parameter entry is tr H. `products` are passes.

    Exact if no error is asked for, at C backward passes over the data; otherwise estimated from
    two or more passes, or exact once that has become no dearer.

    Args:
        operator: A `HessianOperator`, whose net is checked and refused if its trace is another,
            or a `GaussNewtonOperator`. In eval mode.
        stderr: Standard error wanted, in units of the trace.
        relative: The same as a fraction of the trace.
        seed: Of the signs.
        progress: Called with a line of text now and then.

    Raises:
        ValueError: Train mode, a net that is not piecewise linear, a loss that is no mean over
            examples or not convex in the outputs, targets that are not positive.
    """
    objective = operator.objective
    if objective.train:
        raise ValueError("in train mode examples are not independent: build the operator in eval")
    if any(target is not None and not target > 0 for target in (stderr, relative)):
        raise ValueError(f"stderr and relative must be positive, got {stderr} and {relative}")
    objective.check_separable()
    if not isinstance(operator, GaussNewtonOperator):
        _check_piecewise(objective)
    began, pieces = time.perf_counter(), list(_pieces(operator))
    outputs = _output_count(objective)
    found, passes = (0.0, math.inf, 0), 0
    with Progress(progress) as say:
        if stderr is not None or relative is not None:
            generator = torch.Generator().manual_seed(seed)
            found, passes = _sampled(objective, pieces, outputs, generator, (stderr, relative), say)
        exact = not passes or not met(found[0], found[1], stderr, relative)
        if exact:
            found, passes = (_exact(objective, pieces, say), 0.0, 0), passes + outputs
    return Trace(
        value=found[0],
        stderr=found[1],
        degrees=found[2],
        products=passes,
        seconds=time.perf_counter() - began,
        settings={"estimator": "exact" if exact else "signs an example", "seed": seed},
    )


def _exact(objective: Objective, pieces: list[Chunk], say: Progress) -> float:
    total = 0.0
    for number, piece in enumerate(pieces):
        say(f"trace: {number} of {len(pieces)} pieces")
        with torch.enable_grad(), objective.evaluating():
            examples, factor = _prepare(objective, piece)
            for c in range(examples.outputs[0].numel()):
                unit = torch.zeros_like(examples.outputs).flatten(1)
                unit[:, c] = 1
                total += float(examples.norms(factor(unit)).sum())
    return total / objective.examples


def _sampled(
    objective: Objective,
    pieces: list[Chunk],
    outputs: int,
    generator: torch.Generator,
    targets: tuple[float | None, float | None],
    say: Progress,
) -> tuple[tuple[float, float, int], int]:
    """(value, stderr, degrees) and the passes taken: twice as many until it is good enough."""
    count, rows = 2, torch.zeros(objective.examples, 0, dtype=torch.float64)
    while count < max(3, outputs):
        more = count - rows.shape[1]
        new = [_draws(objective, piece, more, generator) for piece in pieces]
        rows = torch.cat([rows, torch.cat(new)], dim=1)
        value = float(rows.mean())
        # Only the signs are random, not the examples: the spread within each example counts.
        error = math.sqrt(float(rows.var(1).sum()) / count) / len(rows)
        say(f"trace: {count} passes, {value:.5g} ± {error:.2g}")
        if met(value, error, *targets):
            return (value, error, len(rows) * (count - 1)), count
        count *= 2
    return (0.0, math.inf, 0), rows.shape[1]


def _draws(objective: Objective, piece: Chunk, count: int, generator: torch.Generator) -> Tensor:
    with torch.enable_grad(), objective.evaluating():
        examples, factor = _prepare(objective, piece)
        like = examples.outputs.flatten(1)
        draws = []
        for _ in range(count):
            signs = torch.randint(0, 2, like.shape, generator=generator) * 2 - 1
            draws.append(examples.norms(factor(signs.to(like.device, like.dtype))).cpu())
    return torch.stack(draws, dim=1)


def _prepare(objective: Objective, piece: Chunk) -> tuple[PerExample, _Factor]:
    examples = PerExample(objective, objective.move(piece.x))
    y = objective.move(piece.y)
    outputs = examples.outputs.detach()
    if is_softmax_cross_entropy(objective.loss_fn, outputs, y):
        return examples, _softmax_factor(outputs)
    return examples, _eigen_factor(objective, outputs, y)


def _softmax_factor(logits: Tensor) -> _Factor:
    """S = diag(sqrt p) - p sqrt(p)', for S S' = diag(p) - p p'."""
    p = logits.softmax(1)
    root = p.sqrt()
    return lambda r: root * r - p * (root * r).sum(1, keepdim=True)


def _eigen_factor(objective: Objective, outputs: Tensor, y: Tensor) -> _Factor:
    """S = U sqrt(D) from the eigenvectors of the loss's Hessian, example by example."""
    hessian = output_hessian(objective, outputs, y)
    values, vectors = torch.linalg.eigh(hessian)
    if values.min() < -1e-4 * values.abs().max():
        raise ValueError("the loss is not convex in the outputs: its Hessian has no square root")
    root = vectors * values.clamp(min=0).sqrt()[:, None, :]
    return lambda r: (root @ r[..., None])[..., 0].reshape(outputs.shape)


def output_hessian(objective: Objective, outputs: Tensor, y: Tensor) -> Tensor:
    """Hessian (n, K, K) of the loss of each example in its K outputs, by K backward passes."""
    with torch.enable_grad():
        leaf = outputs.detach().flatten(1).requires_grad_()
        loss = len(outputs) * objective.loss_fn(leaf.reshape(outputs.shape), y)
        (slope,) = torch.autograd.grad(loss, leaf, create_graph=True)
        if not slope.requires_grad:
            return leaf.new_zeros(*leaf.shape, leaf.shape[1])
        # Examples do not mix, so a column of all the matrices comes from one pass.
        columns = [
            torch.autograd.grad(slope[:, c].sum(), leaf, retain_graph=True)[0]
            for c in range(leaf.shape[1])
        ]
    return torch.stack(columns, dim=2)


def _pieces(operator: HessianOperator) -> Iterator[Chunk]:
    outputs = _output_count(operator.objective)
    each = operator.example_bytes + 2 * outputs**2 * 8
    width = max(1, (operator.memory_bytes - operator.graph_bytes) // (2 * each))
    for x, y, weight in operator.objective.chunks:
        for some, targets in zip(x.split(width), y.split(width), strict=True):
            yield Chunk(some, targets, weight * len(some) / len(x))


def _check_piecewise(objective: Objective) -> None:
    x = objective.move(objective.chunks[0].x[:2])
    with torch.enable_grad(), objective.evaluating():
        check_piecewise_linear(objective.outputs(x, objective.params), objective.params)


def _output_count(objective: Objective) -> int:
    x = objective.move(objective.chunks[0].x[:1])
    with torch.no_grad(), objective.evaluating():
        outputs = objective.outputs(x, objective.params)
    if not isinstance(outputs, Tensor):
        raise ValueError(f"the model must return one tensor, not {type(outputs).__name__}")
    return outputs[0].numel()
