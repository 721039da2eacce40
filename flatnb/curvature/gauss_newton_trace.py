"""Trace of the Gauss-Newton matrix, exact, and with it of many Hessians.

With the Hessian of the loss in the outputs of example i factored as sum_c lambda_ic
u_ic u_ic', the mean over the examples is

    tr G = (1/N) sum_i sum_c lambda_ic |J_i' u_ic|^2,

one backward pass over the data for each output c. Where the outputs are piecewise
linear in each single parameter entry (ReLU nets with convolutions, pooling, residual
sums and BatchNorm in eval mode), H and G have the same diagonal, so that this is the
trace of the Hessian as well; see `flatnb.curvature.piecewise`.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from flatnb.curvature.objective import Chunk, Objective, is_softmax_cross_entropy
from flatnb.curvature.operator import GaussNewtonOperator, HessianOperator
from flatnb.curvature.per_example import PerExample, per_example
from flatnb.curvature.piecewise import check_piecewise_linear
from flatnb.curvature.result import Progress, ProgressCallback
from flatnb.curvature.trace import Trace


def gauss_newton_trace(
    operator: HessianOperator, *, progress: ProgressCallback | None = None
) -> Trace:
    """tr G, exact, which for nets piecewise linear in each parameter entry is tr H.

    Costs one backward pass over the data for each output of an example, counted as
    `products`. Linear, Conv2d and BatchNorm layers give the squared norms of single
    examples at no more than that; other nets take more, and least with batches of few
    examples.

    Args:
        operator: A `HessianOperator`, whose net is checked and refused if its trace is
            another, or a `GaussNewtonOperator`, which has no such limit. In eval mode.
        progress: Called with a line of text now and then.

    Raises:
        ValueError: Train mode, a net that is not piecewise linear, a loss that couples
            examples.
    """
    objective = operator.objective
    if objective.train:
        raise ValueError(
            "in train mode examples are not independent: build the operator in eval"
        )
    began, value, passes = time.perf_counter(), 0.0, 0
    with Progress(progress) as say, torch.enable_grad(), objective.evaluating():
        way = per_example(objective)
        for number, chunk in enumerate(objective.chunks):
            examples = way(objective, objective.move(chunk.x))
            if not isinstance(operator, GaussNewtonOperator):
                check_piecewise_linear(examples.outputs, objective.params)
            weights, directions = _factors(objective, examples.outputs.detach(), chunk)
            passes = max(passes, directions.shape[2])
            for c in range(directions.shape[2]):
                norms = examples.norms(directions[:, :, c])
                value += chunk.weight * float((weights[:, c].double() * norms).sum())
                say(
                    f"trace: batch {number + 1} of {len(objective.chunks)}, output {c + 1}"
                )
    return Trace(
        value=value,
        products=passes,
        seconds=time.perf_counter() - began,
        settings={"estimator": "exact"},
    )


def _factors(
    objective: Objective, outputs: Tensor, chunk: Chunk
) -> tuple[Tensor, Tensor]:
    """lambda (n, C) and u (n, K, C) of the loss of a batch, whose outputs are (n, ...)."""
    y = objective.move(chunk.y)
    if is_softmax_cross_entropy(objective.loss_fn, outputs, y):
        # diag(p) - p p' = S S' with S = diag(sqrt p) - p sqrt(p)'
        p = outputs.softmax(1)
        root = p.sqrt()
        directions = torch.diag_embed(root) - p[:, :, None] * root[:, None, :]
        return torch.full_like(p, 1 / len(p)), directions
    return torch.linalg.eigh(_output_hessian(objective, outputs, y))


def _output_hessian(objective: Objective, outputs: Tensor, y: Tensor) -> Tensor:
    """Blocks (n, K, K) of the Hessian of the loss in the rows of the outputs (n, ...)."""
    leaf = PerExample.rows(outputs).detach().requires_grad_()
    loss = objective.loss_fn(leaf.reshape(outputs.shape), y)
    (slope,) = torch.autograd.grad(loss, leaf, create_graph=True)
    if not slope.requires_grad:
        return leaf.new_zeros(*leaf.shape, leaf.shape[1])
    # Rows do not meet in the loss, so a column of all the blocks comes from one pass.
    columns = [
        torch.autograd.grad(slope[:, c].sum(), leaf, retain_graph=True)[0]
        for c in range(leaf.shape[1])
    ]
    _check_apart(slope, leaf)
    return torch.stack(columns, dim=2)


def _check_apart(slope: Tensor, leaf: Tensor) -> None:
    if not rows_apart(slope, leaf, torch.Generator().manual_seed(0)):
        raise ValueError(
            "the loss couples the examples of a batch, so that the trace is no sum over them: use "
            "trace(operator), or a loss that is a mean over examples"
        )


def rows_apart(slope: Tensor, leaf: Tensor, generator: torch.Generator) -> bool:
    """Whether the derivative of `slope` (..., K) in `leaf` (..., K) couples no two
    rows.

    A v of a random v is then scaled row by row as v is.
    """
    v = torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype).to(leaf.device)
    scales = torch.randn(leaf.shape[:-1], generator=generator, dtype=leaf.dtype)
    scales = scales.to(leaf.device)[..., None]
    (product,) = torch.autograd.grad(slope, leaf, v, retain_graph=True)
    (scaled,) = torch.autograd.grad(slope, leaf, scales * v, retain_graph=True)
    change = (scaled - scales * product).norm()
    return bool(
        change <= torch.finfo(leaf.dtype).eps ** 0.5 * (scales * product).norm()
    )
