"""Trace of the Gauss-Newton matrix, exact, and with it of many Hessians.

    tr G = (1/N) sum_i sum_c lambda_ic |J_i' u_ic|^2

where sum_c lambda_ic u_ic u_ic' is the Hessian of the loss in the outputs of example i:
the gradients of single examples in one pass over the data per output c. Where the
outputs are linear, piece by piece, in each parameter tensor, H and G have the same
diagonal: nets of ReLUs with convolutions, pooling, residual sums and BatchNorm in eval
mode. Smooth activations, attention, LayerNorm, tied and recurrent weights break it.
"""

import time
from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.func import grad, vmap

from flatnb.curvature.objective import LossFunction, gaussian, is_softmax_cross_entropy
from flatnb.curvature.operator import HessianOperator, check_operator, check_outputs
from flatnb.curvature.result import Estimate

_BYTES = 2**28  # gradients of single examples that are held at once


def gauss_newton_trace(operator: HessianOperator) -> Estimate:
    """tr G, exact, of a net piecewise linear in each parameter tensor: there it is tr H.

    `products` counts passes over the data, with the gradient of each example.

    Raises:
        ValueError: another net; a net or a loss that couples the examples of a batch.

    >>> from torch import nn
    >>> data = [(2 * torch.eye(4), torch.zeros(4, 1))]
    >>> net = nn.Linear(4, 1, bias=False)
    >>> gauss_newton_trace(HessianOperator(net, nn.functional.mse_loss, data)).summary()
    '8, exact'
    """
    check_operator(operator)
    objective, start = operator.objective, time.perf_counter()
    params = tuple(p.detach() for p in objective.params)

    def pulled(params: tuple[Tensor, ...], x: Tensor, u: Tensor) -> Tensor:
        return (objective.outputs(x[None], params).reshape(-1) * u).sum()

    def square(x: Tensor, u: Tensor) -> Tensor:
        """|J_i' u_i|^2 of one example."""
        gradients = grad(pulled)(params, x, u)
        norms = [torch.linalg.vector_norm(g).double() for g in gradients]
        return torch.stack(norms).square().sum()

    width = max(1, _BYTES // (objective.size * params[0].element_size()))
    squares = vmap(square, chunk_size=width)
    value, passes = 0.0, 0
    with torch.enable_grad(), objective.evaluating():
        outputs = objective.outputs(objective.sample()[0], objective.params)
        named = dict(zip(objective.names, objective.params, strict=True))
        check_piecewise_linear(outputs, named)
        for x, y, weight in objective.chunks:
            with torch.no_grad():
                outputs = objective.outputs(x, params)
                half = objective.outputs(x[: (len(x) + 1) // 2], params)
            tolerance = torch.finfo(outputs.dtype).eps ** 0.5 * outputs.abs().max()
            apart = outputs.ndim > 0 and len(outputs) == len(x)
            if not apart or (outputs[: len(half)] - half).abs().max() > tolerance:
                _refuse("couples the examples of a batch, or has no row for each")
            weights, directions = _factors(objective.loss_fn, outputs, y)
            passes = max(passes, directions.shape[2])
            for w, u in zip(weights.mT, directions.movedim(2, 0), strict=True):
                value += weight * float((w.double() * squares(x, u)).sum())
    seconds = time.perf_counter() - start
    return Estimate(value=value, products=passes, seconds=seconds)


def check_piecewise_linear(outputs: Tensor, params: Mapping[str, Tensor]) -> None:
    """Raise unless the outputs are linear, up to kinks, in each parameter tensor: the
    Hessian of a random combination of them then has a zero block for each.
    """
    check_outputs(outputs)
    generator, tensors = torch.Generator().manual_seed(0), list(params.values())
    mixed = (outputs * gaussian(outputs.shape, generator, outputs)).sum()
    grads = torch.autograd.grad(
        mixed, tensors, create_graph=True, materialize_grads=True
    )
    tolerance = torch.finfo(outputs.dtype).eps ** 0.5
    for name, p, slope in zip(params, tensors, grads, strict=True):
        if not slope.requires_grad:
            continue
        size = p.detach().square().mean().sqrt()
        v = gaussian(p.shape, generator, p) * torch.where(size > 0, size, 1.0)
        (bent,) = torch.autograd.grad(
            slope, p, v, retain_graph=True, materialize_grads=True
        )
        if bent.norm() > tolerance * slope.norm():
            raise ValueError(
                f"the outputs are not piecewise linear in {name}, so that the Hessian "
                "has another trace; use trace"
            )


def softmax_factor(p: Tensor, c: int) -> Tensor:
    """Column c, sqrt(p_c) (e_c - p), of S with S S' = diag(p) - p p'; p is (..., C)."""
    column = -p * p[..., c : c + 1].sqrt()
    column[..., c] += p[..., c].sqrt()
    return column


def rows_apart(slope: Tensor, leaf: Tensor) -> bool:
    """Whether the derivative A of `slope` (..., K) in `leaf` (..., K) couples no rows:
    its product with a random v is then scaled row by row as v is.
    """
    generator = torch.Generator().manual_seed(0)
    v = gaussian(leaf.shape, generator, leaf)
    scales = gaussian(leaf.shape[:-1], generator, leaf)[..., None]
    (product,) = torch.autograd.grad(slope, leaf, v, retain_graph=True)
    (scaled,) = torch.autograd.grad(slope, leaf, scales * v, retain_graph=True)
    change, size = (scaled - scales * product).norm(), (scales * product).norm()
    return bool(change <= torch.finfo(leaf.dtype).eps ** 0.5 * size)


def _refuse(reason: str) -> NoReturn:
    raise ValueError(
        f"the model {reason}, so that the trace is not a sum over them; use trace"
    )


def _factors(loss_fn: LossFunction, outputs: Tensor, y: Any) -> tuple[Tensor, Tensor]:
    """lambda (n, C) and u (n, K, C) of the loss of a batch with outputs (n, ...)."""
    if is_softmax_cross_entropy(loss_fn, outputs, y):
        p = outputs.softmax(1)
        columns = [softmax_factor(p, c) for c in range(p.shape[1])]
        return torch.full_like(p, 1 / len(p)), torch.stack(columns, dim=2)
    leaf = outputs.reshape(len(outputs), -1).detach().requires_grad_()
    loss = loss_fn(leaf.reshape(outputs.shape), y)
    (slope,) = torch.autograd.grad(loss, leaf, create_graph=True)
    if not slope.requires_grad:
        return torch.zeros_like(leaf), leaf.new_zeros(*leaf.shape, leaf.shape[1])
    if not rows_apart(slope, leaf):
        _refuse("has a loss that couples the examples of a batch")
    blocks = [
        torch.autograd.grad(column.sum(), leaf, retain_graph=True)[0]
        for column in slope.mT
    ]
    return torch.linalg.eigh(torch.stack(blocks, dim=2))
