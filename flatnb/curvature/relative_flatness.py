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
  min(d, m) products; for the last layer this is the Hessian in logit space.
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
from flatnb.curvature.trace import MIN_PROBES, estimate, met, warn_unless_met
from flatnb.curvature.vectors import rademacher

_MAX_PROBES = 4096


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
        model: the whole net.
        layer: an `nn.Linear` of it, or its name.
        loss_fn: mean loss of a batch.
        batches: `(x, y)` pairs.
        relative: standard error wanted, as a fraction of the value.
        seed: of the signs.

    Raises:
        ValueError: A layer of another kind, not of this model, used more than once, or
            whose rows meet further on (attention, say); what `Objective` raises.

    >>> net = nn.Linear(3, 2, bias=False)
    >>> nn.init.eye_(net.weight).shape
    torch.Size([2, 3])
    >>> data = [(torch.zeros(1, 3), torch.tensor([0]))]
    >>> relative_flatness(net, net, nn.functional.cross_entropy, data).summary()
    '0, exact'
    """
    number("relative", relative, "a number > 0", 0)
    start, model = time.perf_counter(), unwrap(model)
    name, module = _find(model, layer)
    weight = next(n for n, p in model.named_parameters() if p is module.weight)
    objective = Objective(model, loss_fn, batches, [weight])
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad(), objective.evaluating():
        cuts = [_cut(objective, name, module, chunk) for chunk in objective.chunks]
    if all(cut.logits for cut in cuts):
        form, products = "closed form", 0
        fields: dict[str, Any] = {"value": sum(map(_closed_form, cuts))}
    else:
        form = "Hessian in the output"
        for cut in cuts:
            if cut.slope is None or cut.logits:
                continue
            if not rows_apart(cut.slope, cut.leaf, generator):
                _refuse(name, "the rows of its output meet further on")
        fields, products = _in_output_space(cuts, generator, relative)
    return Estimate(
        **fields,
        products=products,
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
    model, data = unwrap(model), list(batches)
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    return {
        name: relative_flatness(model, module, loss_fn, data, **settings)
        for name, module in model.named_modules()
        if _fits(module) and id(module.weight) in trained
    }


class _Cut(NamedTuple):
    """A layer over one batch: weight, inputs (rows, m), output, and the loss's gradient
    there, None where it is constant; whether the output is that of a softmax
    cross-entropy; the batch's share of the mean.
    """

    weight: Tensor
    inputs: Tensor
    leaf: Tensor
    slope: Tensor | None
    logits: bool
    share: float

    def quadratic(self, rows: Tensor) -> float:
        """sum_i |phi_i|^2 row_i' A_i row_i, for rows (rows, d)."""
        if self.slope is None:
            return 0.0
        direction = rows * self.inputs.norm(dim=1, keepdim=True)
        direction = direction.reshape(self.leaf.shape)
        (product,) = torch.autograd.grad(
            self.slope, self.leaf, direction, retain_graph=True
        )
        return float((direction.double() * product.double()).sum())


def _cut(objective: Objective, name: str, module: nn.Module, chunk: Chunk) -> _Cut:
    """Evaluates the net with the layer's output cut from what made it."""
    calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def hook(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor:
        (inputs,) = (*args, *kwargs.values())
        leaf = output.detach().requires_grad_()
        copy = leaf.clone()  # what follows may overwrite it
        calls.append((inputs, leaf, copy))
        return copy

    if module._forward_hooks or "forward" in vars(module):
        _refuse(name, "a hook or another forward may change its output")
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
    loss, slope = chunk.weight * objective.loss_fn(outputs, y), None
    (weight,) = objective.params
    if loss.requires_grad:
        direct, slope = torch.autograd.grad(
            loss, [weight, leaf], create_graph=True, allow_unused=True
        )
        if direct is not None:
            _refuse(name, "its weight is used more than once")
    if slope is not None and not slope.requires_grad:
        slope = None
    inputs = inputs.reshape(-1, inputs.shape[-1])
    share = chunk.weight / len(inputs)
    return _Cut(weight.detach(), inputs, leaf, slope, logits, share)


def _closed_form(cut: _Cut) -> float:
    kappa = kappa_of_logits(cut.inputs, cut.leaf.detach(), cut.weight.double())
    return cut.share * float(kappa.sum())


def _refuse(name: str, reason: str) -> NoReturn:
    raise ValueError(
        f"layer={name!r}: {reason}, so that the sum over rows does not hold; allowed: "
        "a layer used once whose rows do not meet before the loss"
    )


def _in_output_space(
    cuts: list[_Cut], generator: torch.Generator, relative: float
) -> tuple[dict[str, Any], int]:
    """From draws, or exact once that takes no more products; and the products."""
    root, lengths = _root(cuts[0].weight), [len(cut.inputs) for cut in cuts]
    rows, rank = sum(lengths), root.shape[1]
    products = 0

    def product(directions: Tensor) -> float:
        nonlocal products
        products += 1
        pairs = zip(cuts, directions.split(lengths), strict=True)
        return sum(cut.quadratic(part) for cut, part in pairs)

    def draw(count: int) -> Tensor:
        signs = (rademacher((rows, rank), generator, root) for _ in range(count))
        return torch.tensor([product(s @ root.mT) for s in signs], dtype=torch.float64)

    if rank > MIN_PROBES:
        fields = estimate(draw, relative, min(rank, _MAX_PROBES))
        if met(fields, relative) or rank > _MAX_PROBES:
            warn_unless_met(fields, relative, "relative_flatness")
            return fields, products
    exact = sum(product(column.expand(rows, -1)) for column in root.mT)
    return {"value": exact}, products


def _root(weight: Tensor) -> Tensor:
    """R (d, min(d, m)) with R R' = W W'."""
    if weight.shape[1] <= weight.shape[0]:
        return weight
    u, s, _ = torch.linalg.svd(weight, full_matrices=False)
    return u * s


def _fits(module: nn.Module) -> bool:
    return type(module) is nn.Linear and "weight" in module._parameters


def _find(model: nn.Module, layer: nn.Module | str) -> tuple[str, nn.Module]:
    for name, module in model.named_modules(remove_duplicate=False):
        if _fits(module) and (module is layer or name == layer):
            return name, module
    names = ", ".join(repr(name) for name, m in model.named_modules() if _fits(m))
    kind = type(layer).__name__
    raise ValueError(
        f"layer={layer if isinstance(layer, str) else kind!r}; allowed: an nn.Linear "
        f"of the model whose weight is a parameter: {names or 'it has none'}"
    )
