"""Relative flatness of a linear layer: curvature weighted by the size of the weights.

For the weight W (d, m), with rows w_s and Hessian blocks H_{s,s'} (m, m),

    kappa = sum_{s,s'} <w_s, w_s'> tr H_{s,s'}       (Petzka et al. 2021, definition 3)

Scaling W by c and its input by 1/c, as ReLU nets allow, changes the Hessian's trace and
eigenvalues, but not kappa. Let phi_i be the rows of the input, A_i the blocks of the
mean loss's Hessian in the output. Where these couple no two rows, as in perceptrons,

    kappa = sum_i |phi_i|^2 tr(W' A_i W).

For logits of a softmax cross-entropy it is closed: A_i = (diag(p_i) - p_i p_i') / N;
otherwise it takes a product of A with each column of a root R of W W' = R R'.
"""

import time
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from flatnb._kappa import kappa_of_logits
from flatnb._nets import unwrap
from flatnb.curvature.gauss_newton_trace import rows_apart
from flatnb.curvature.objective import (
    Batches,
    Chunk,
    LossFunction,
    Objective,
    is_softmax_cross_entropy,
)
from flatnb.curvature.result import Estimate


def relative_flatness(
    model: nn.Module, layer: nn.Module | str, loss_fn: LossFunction, batches: Batches
) -> Estimate:
    """kappa of the weight of `layer`, exact, in eval mode; its bias does not enter.

    `products` counts those with the Hessian in the layer's output, each less than two
    gradients: min(d, m), or none for logits of a softmax cross-entropy.

    Args:
        layer: an `nn.Linear` of the model, or its name.

    Raises:
        ValueError: A layer of another kind, not of this model, used more than once, or
            whose rows meet further on (attention, say); what `Objective` raises.

    >>> net, data = nn.Linear(3, 2), [(torch.ones(1, 3), torch.tensor([0]))]
    >>> relative_flatness(net, net, nn.functional.cross_entropy, data).value > 0
    True
    """
    start, model = time.perf_counter(), unwrap(model)
    layers = _layers(model)
    name = next((name for name in layers if layer in (name, layers[name])), None)
    if name is None:
        text = layer if isinstance(layer, str) else type(layer).__name__
        raise ValueError(
            f"layer={text!r}; allowed: an nn.Linear of the model whose weight is "
            f"trained: {', '.join(map(repr, layers)) or 'it has none'}"
        )
    module = layers[name]
    objective = Objective(model, loss_fn, batches, lambda _, p: p is module.weight)
    with torch.enable_grad(), objective.evaluating():
        parts = [_of_batch(objective, module, chunk) for chunk in objective.chunks]
    return Estimate(
        value=sum(value for value, _ in parts),
        products=max(products for _, products in parts),
        seconds=time.perf_counter() - start,
        settings={"layer": name},
    )


def relative_flatness_by_layer(
    model: nn.Module, loss_fn: LossFunction, batches: Batches
) -> dict[str, Estimate]:
    """`relative_flatness` of every `nn.Linear` whose weight is trained, by name.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> data = [(torch.ones(4, 2), torch.tensor([0, 1, 1, 0]))]
    >>> list(relative_flatness_by_layer(net, nn.functional.cross_entropy, data))
    ['0', '2']
    """
    data = list(batches)
    return {
        name: relative_flatness(model, name, loss_fn, data)
        for name in _layers(unwrap(model))
    }


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear
        and "weight" in module._parameters
        and module.weight.requires_grad
    }


def _of_batch(
    objective: Objective, layer: nn.Module, chunk: Chunk
) -> tuple[float, int]:
    """kappa of a batch, times its share of the examples, and the products taken."""
    calls: list[tuple[Tensor, ...]] = []

    def cut(_: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        """Cuts the output from what made it."""
        leaf = output.detach().requires_grad_()
        copy = leaf.clone()  # what follows may overwrite it
        calls.append((*args, *kwargs.values(), leaf, copy))
        return copy

    (weight,), (name,) = objective.params, objective.names
    if layer._forward_hooks or "forward" in vars(layer):
        _refuse(name, "its layer has a hook or another forward")
    handle = layer.register_forward_hook(cut, with_kwargs=True)
    try:
        outputs = objective.outputs(chunk.x, objective.params)
    finally:
        handle.remove()
    if len(calls) != 1 or calls[0][0].requires_grad:
        _refuse(name, "it is used more than once")
    (inputs, leaf, copy), y = calls[0], chunk.y
    untouched = outputs is copy and copy._version == 0
    if untouched and is_softmax_cross_entropy(objective.loss_fn, outputs, y):
        kappas = kappa_of_logits(inputs, outputs.detach(), weight.detach().double())
        return chunk.weight * float(kappas.mean()), 0
    loss = chunk.weight * objective.loss_fn(outputs, y)
    direct, slope = torch.autograd.grad(
        loss, [weight, leaf], create_graph=True, allow_unused=True
    )
    if direct is not None:
        _refuse(name, "it is used more than once")
    if not slope.requires_grad:  # the loss is linear in the output
        return 0.0, 0
    if not rows_apart(slope, leaf):
        _refuse(name, "the rows of its layer's output meet further on")
    lengths = inputs.norm(dim=-1, keepdim=True)
    root = torch.linalg.qr(weight.detach().mT, mode="r").R.mT  # (d, min(d, m))
    kappa = 0.0
    for column in root.mT:
        v = lengths * column
        (product,) = torch.autograd.grad(slope, leaf, v, retain_graph=True)
        kappa += float((v.double() * product.double()).sum())
    return kappa, root.shape[1]


def _refuse(weight: str, reason: str) -> NoReturn:
    raise ValueError(
        f"no relative flatness of {weight}: {reason}; allowed: the weight of a layer "
        "used once whose rows do not meet before the loss"
    )
