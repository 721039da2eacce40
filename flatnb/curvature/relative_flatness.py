"""Relative flatness of a linear layer: curvature weighted by the size of the weights.

For the weight W (d, m), with rows w_s and Hessian blocks H_{s,s'} (m, m),

    kappa = sum_{s,s'} <w_s, w_s'> tr H_{s,s'}       (Petzka et al. 2021, definition 3)

It does not change when W is scaled by c and its input by 1/c, as ReLU nets allow; the
Hessian's trace and eigenvalues do. Let phi_i be the rows of the layer's input and A_i
the blocks of the Hessian of the mean loss in its output. Where these couple no two
rows, as in perceptrons, the chain rule gives

    kappa = sum_i |phi_i|^2 tr(W' A_i W).

* The layer makes the logits of a softmax cross-entropy: A_i = (diag(p_i) - p_i p_i')
  / N, a closed form without any Hessian.
* Otherwise: exact from one product of A with each column of a root R of W W' = R R',
  min(d, m) products.
* Or estimated: E |phi_i|^2 (R r_i)' A_i (R r_i) with signs r_i of its own for each row
  is unbiased, takes one product for all rows, and averages over them.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from flatnb._checks import number
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
from flatnb.curvature.trace import MIN_PROBES, estimate, met, rademacher


def relative_flatness(
    model: nn.Module,
    layer: nn.Module | str,
    loss_fn: LossFunction,
    batches: Batches,
    *,
    relative: float = 0.02,
    seed: int = 0,
) -> Estimate:
    """kappa of the weight of `layer`, in eval mode; its bias does not enter.

    Exact for the logits of a softmax cross-entropy, and wherever that takes no more
    products than the wanted error does. A product is one with the Hessian in the
    layer's output, for all examples, and costs less than two gradients.

    Args:
        layer: an `nn.Linear` of the model, or its name.
        relative: standard error wanted, as a fraction of the value.

    Raises:
        ValueError: A layer of another kind, not of this model, used more than once, or
            whose rows meet further on (attention, say); what `Objective` raises.

    >>> net, data = nn.Linear(3, 2), [(torch.ones(1, 3), torch.tensor([0]))]
    >>> relative_flatness(net, net, nn.functional.cross_entropy, data).value > 0
    True
    """
    number("relative", relative, "a number > 0", 0)
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
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad(), objective.evaluating():
        cuts = [_cut(objective, module, c, generator) for c in objective.chunks]
    weight = objective.params[0].detach()
    fields: dict[str, Any]
    if all(cut.logits for cut in cuts):
        form, weight = "closed form", weight.double()
        kappas = [kappa_of_logits(c.inputs, c.output.detach(), weight) for c in cuts]
        fields = {"value": float(torch.cat(kappas).mean()), "products": 0}
    else:
        form = "Hessian in the output"
        fields = _in_output_space(cuts, weight, generator, relative)
    return Estimate(
        **fields,
        seconds=time.perf_counter() - start,
        settings={"layer": name, "form": form, "seed": seed},
    )


def relative_flatness_by_layer(
    model: nn.Module, loss_fn: LossFunction, batches: Batches, **settings: Any
) -> dict[str, Estimate]:
    """`relative_flatness` of every `nn.Linear` whose weight is trained, by name.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> data = [(torch.ones(4, 2), torch.tensor([0, 1, 1, 0]))]
    >>> list(relative_flatness_by_layer(net, nn.functional.cross_entropy, data))
    ['0', '2']
    """
    data = list(batches)
    return {
        name: relative_flatness(model, name, loss_fn, data, **settings)
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


class _Cut(NamedTuple):
    """A layer over one batch: inputs (rows, m), output, and the loss's gradient there;
    whether the output is that of a softmax cross-entropy.
    """

    inputs: Tensor
    output: Tensor
    slope: Tensor
    logits: bool


def _cut(
    objective: Objective, module: nn.Module, chunk: Chunk, generator: torch.Generator
) -> _Cut:
    """Evaluates the net with the layer's output cut from what made it."""
    calls: list[tuple[Tensor, ...]] = []

    def hook(_: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        leaf = output.detach().requires_grad_()
        copy = leaf.clone()  # what follows may overwrite it
        calls.append((*args, *kwargs.values(), leaf, copy))
        return copy

    (weight,), (name,) = objective.params, objective.names
    if module._forward_hooks or "forward" in vars(module):
        _refuse(name, "its layer has a hook or another forward")
    handle = module.register_forward_hook(hook, with_kwargs=True)
    try:
        outputs = objective.outputs(objective.move(chunk.x), objective.params)
    finally:
        handle.remove()
    if len(calls) != 1 or calls[0][0].requires_grad:
        _refuse(name, "it is used more than once")
    (inputs, leaf, copy), y = calls[0], objective.move(chunk.y)
    untouched = outputs is copy and copy._version == 0
    logits = untouched and is_softmax_cross_entropy(objective.loss_fn, outputs, y)
    loss = chunk.weight * objective.loss_fn(outputs, y)
    direct, slope = torch.autograd.grad(
        loss, [weight, leaf], create_graph=True, allow_unused=True
    )
    if direct is not None:
        _refuse(name, "it is used more than once")
    curved = slope.requires_grad and not logits
    if curved and not rows_apart(slope, leaf, generator):
        _refuse(name, "the rows of its layer's output meet further on")
    return _Cut(inputs.reshape(-1, inputs.shape[-1]), leaf, slope, logits)


def _refuse(weight: str, reason: str) -> NoReturn:
    raise ValueError(
        f"no relative flatness of {weight}: {reason}; allowed: the weight of a layer "
        "used once whose rows do not meet before the loss"
    )


def _in_output_space(
    cuts: list[_Cut], weight: Tensor, generator: torch.Generator, relative: float
) -> dict[str, Any]:
    """From draws, or exact once that takes no more products."""
    root = weight  # R (d, min(d, m)) with R R' = W W'
    if weight.shape[1] > weight.shape[0]:
        u, s, _ = torch.linalg.svd(weight, full_matrices=False)
        root = u * s
    lengths, rank = [len(cut.inputs) for cut in cuts], root.shape[1]
    rows = sum(lengths)

    def product(directions: Tensor) -> float:
        """sum_i |phi_i|^2 v_i' A_i v_i, for directions v (rows, d)."""
        total = 0.0
        for cut, part in zip(cuts, directions.split(lengths), strict=True):
            if not cut.slope.requires_grad:  # of a loss linear in the output
                continue
            v = part * cut.inputs.norm(dim=1, keepdim=True)
            v = v.reshape(cut.output.shape)
            (bent,) = torch.autograd.grad(cut.slope, cut.output, v, retain_graph=True)
            total += float((v.double() * bent.double()).sum())
        return total

    def draw(count: int) -> Tensor:
        signs = (rademacher((rows, rank), generator, root) for _ in range(count))
        return torch.tensor([product(s @ root.mT) for s in signs], dtype=torch.float64)

    drawn = 0
    if rank > MIN_PROBES:
        fields = estimate(draw, relative, rank)
        drawn = fields["degrees"] + 1
        if met(fields, relative):
            return {**fields, "products": drawn}
    exact = sum(product(column.expand(rows, -1)) for column in root.mT)
    return {"value": exact, "products": drawn + rank}
