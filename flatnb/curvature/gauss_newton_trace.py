"""Trace of the Gauss-Newton matrix, exact, and with it of many Hessians.

With the Hessian of the loss in the outputs of example i factored as
sum_c lambda_ic u_ic u_ic', the mean over the examples is

    tr G = (1/N) sum_i sum_c lambda_ic |J_i' u_ic|^2,

the gradients of single examples in one pass over the data per output c. Where the
outputs are linear, piece by piece, in each parameter tensor, H and G have the same
diagonal, so that this is the trace of the Hessian too: nets of ReLUs with convolutions,
pooling, residual sums and BatchNorm in eval mode. Smooth activations, attention,
LayerNorm, tied and recurrent weights break it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.func import grad, vmap

from flatnb.curvature.objective import Chunk, Objective, is_softmax_cross_entropy
from flatnb.curvature.operator import (
    GaussNewtonOperator,
    HessianOperator,
    check_outputs,
)
from flatnb.curvature.result import Estimate
from flatnb.curvature.vectors import gaussian

_BYTES = 2**28  # gradients of single examples that are held at once


def gauss_newton_trace(operator: HessianOperator) -> Estimate:
    """tr G, exact, which for nets piecewise linear in each parameter tensor is tr H.

    Costs one pass over the data per output of an example, counted as `products`, with
    the gradient of each example.

    Args:
        operator: A `HessianOperator`, whose net is tried on a few examples and refused
            if its trace is another, or a `GaussNewtonOperator`, without such a limit.

    Raises:
        ValueError: A net that is not piecewise linear; a net or a loss that couples the
            examples of a batch.

    >>> from torch import nn
    >>> data = [(2 * torch.eye(4), torch.zeros(4, 1))]
    >>> net = nn.Linear(4, 1, bias=False)
    >>> gauss_newton_trace(HessianOperator(net, nn.functional.mse_loss, data)).summary()
    '8, exact'
    """
    objective, start = operator.objective, time.perf_counter()
    value, passes = 0.0, 0
    with torch.enable_grad(), objective.evaluating():
        if not isinstance(operator, GaussNewtonOperator):
            x, _ = objective.sample()
            named = dict(zip(objective.names, objective.params, strict=True))
            check_piecewise_linear(objective.outputs(x, objective.params), named)
        for chunk in objective.chunks:
            x = objective.move(chunk.x)
            with torch.no_grad():
                outputs = objective.outputs(x, objective.params)
            _check_rows(objective, x, outputs)
            weights, directions = _factors(objective, outputs, chunk)
            passes = max(passes, directions.shape[2])
            for c in range(directions.shape[2]):
                squares = _squared_gradients(objective, x, directions[:, :, c])
                value += chunk.weight * float((weights[:, c].double() * squares).sum())
    return Estimate(
        value=value,
        products=passes,
        seconds=time.perf_counter() - start,
        settings={"estimator": "exact"},
    )


def check_piecewise_linear(outputs: Tensor, params: Mapping[str, Tensor]) -> None:
    """Raise unless the outputs are linear, up to kinks, in each parameter tensor.

    The Hessian M of a random combination of the outputs then has a zero block M_pp for
    each tensor p, which shows in one product with a random vector.
    """
    check_outputs(outputs)
    generator, tensors = torch.Generator().manual_seed(0), list(params.values())
    mix = gaussian(outputs.numel(), generator, outputs).reshape(outputs.shape)
    grads = torch.autograd.grad(
        (outputs * mix).sum(), tensors, create_graph=True, allow_unused=True
    )
    tolerance = torch.finfo(outputs.dtype).eps ** 0.5
    for name, p, slope in zip(params, tensors, grads, strict=True):
        if slope is None or not slope.requires_grad:
            continue
        size = p.detach().square().mean().sqrt()
        v = gaussian(p.numel(), generator, p).reshape(p.shape)
        v = v * torch.where(size > 0, size, 1.0)
        (bent,) = torch.autograd.grad(slope, p, v, retain_graph=True, allow_unused=True)
        if bent is not None and bent.norm() > tolerance * slope.norm():
            raise ValueError(
                f"the outputs are not piecewise linear in {name}, so that the trace of "
                "the Hessian is not that of the Gauss-Newton matrix; use trace, or "
                "a GaussNewtonOperator if its trace is what you want"
            )


def softmax_factor(p: Tensor, c: int) -> Tensor:
    """Column c, sqrt(p_c) (e_c - p), of S with S S' = diag(p) - p p'; p is (..., C)."""
    column = -p * p[..., c : c + 1].sqrt()
    column[..., c] += p[..., c].sqrt()
    return column


def rows_apart(slope: Tensor, leaf: Tensor, generator: torch.Generator) -> bool:
    """Whether the derivative A of `slope` (..., K) in `leaf` (..., K) couples no rows.

    The product of A with a random v is then scaled row by row as v is.
    """
    v = torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype).to(leaf.device)
    scales = torch.randn(leaf.shape[:-1], generator=generator, dtype=leaf.dtype)
    scales = scales.to(leaf.device)[..., None]
    (product,) = torch.autograd.grad(slope, leaf, v, retain_graph=True)
    (scaled,) = torch.autograd.grad(slope, leaf, scales * v, retain_graph=True)
    change, size = (scaled - scales * product).norm(), (scales * product).norm()
    return bool(change <= torch.finfo(leaf.dtype).eps ** 0.5 * size)


def _squared_gradients(objective: Objective, x: Tensor, u: Tensor) -> Tensor:
    """|J_i' u_i|^2 (n,) in float64, for u (n, K) like the rows of the outputs."""
    params = tuple(p.detach() for p in objective.params)

    def pulled(params: tuple[Tensor, ...], x: Tensor, u: Tensor) -> Tensor:
        return (objective.outputs(x[None], params).reshape(-1) * u).sum()

    gradients = grad(pulled)
    width = max(1, _BYTES // (objective.size * params[0].element_size()))
    total = []
    for part, directions in zip(x.split(width), u.split(width), strict=True):
        try:
            grads = vmap(gradients, in_dims=(None, 0, 0))(params, part, directions)
        except RuntimeError:  # recurrent layers, say, which vmap does not know
            rows = zip(part, directions, strict=True)
            each = [gradients(params, *row) for row in rows]
            grads = [torch.stack(pieces) for pieces in zip(*each, strict=True)]
        norms = [g.reshape(len(g), -1).norm(dim=1).double().square() for g in grads]
        total.append(torch.stack(norms).sum(0))
    return torch.cat(total)


def _check_rows(objective: Objective, x: Tensor, outputs: Tensor) -> None:
    """Each example has outputs of its own, whatever the others in its batch."""
    check_outputs(outputs)
    half, rows = (len(x) + 1) // 2, outputs.ndim > 0 and len(outputs) == len(x)
    with torch.no_grad():
        part = objective.outputs(x[:half], objective.params)
    tolerance = torch.finfo(outputs.dtype).eps ** 0.5 * float(outputs.abs().max())
    if not rows or (outputs[:half] - part).abs().max() > tolerance:
        raise ValueError(
            "the model couples the examples of a batch, or its outputs are not one row "
            "per example, so that the trace is not a sum over examples; use "
            "trace(operator)"
        )


def _factors(
    objective: Objective, outputs: Tensor, chunk: Chunk
) -> tuple[Tensor, Tensor]:
    """lambda (n, C) and u (n, K, C) of the loss of a batch with outputs (n, ...)."""
    y = objective.move(chunk.y)
    if is_softmax_cross_entropy(objective.loss_fn, outputs, y):
        p = outputs.softmax(1)
        columns = [softmax_factor(p, c) for c in range(p.shape[1])]
        return torch.full_like(p, 1 / len(p)), torch.stack(columns, dim=2)
    leaf = outputs.reshape(len(outputs), -1).detach().requires_grad_()
    loss = objective.loss_fn(leaf.reshape(outputs.shape), y)
    (slope,) = torch.autograd.grad(loss, leaf, create_graph=True)
    if not slope.requires_grad:
        return torch.zeros_like(leaf), leaf.new_zeros(*leaf.shape, leaf.shape[1])
    if not rows_apart(slope, leaf, torch.Generator().manual_seed(0)):
        raise ValueError(
            "the loss couples the examples of a batch, so that the trace is not a sum "
            "over them; use trace(operator), or a loss that is a mean over examples"
        )
    blocks = [
        torch.autograd.grad(slope[:, c].sum(), leaf, retain_graph=True)[0]
        for c in range(leaf.shape[1])
    ]
    return torch.linalg.eigh(torch.stack(blocks, dim=2))
