"""Relative flatness of a layer: curvature weighed by the size of the weights.

For the weight W (d, m) of a linear layer, with rows w_s and Hessian blocks H_{s,s'} (m,
m),

    kappa = sum_{s,s'} <w_s, w_s'> tr H_{s,s'}          (Petzka et al. 2021, definition
    3)

It does not change when W is scaled by c and its input by 1/c, as ReLU nets allow; the
Hessian's trace and eigenvalues do. Let phi_i be the rows of the layer's input and A the
Hessian of the mean loss in its output. Where A couples no two rows, as in perceptrons,
the chain rule gives, with the blocks A_i of A and no d m x d m matrix,

    kappa = sum_i |phi_i|^2 tr(W' A_i W).

* The layer makes the logits of a softmax cross-entropy: A_i = (diag(p_i) - p_i p_i') /
  N, a closed form without any Hessian.
* Otherwise: exact from one product of A with each column of a root R of W W', R R' = W
  W', that is min(d, m) products; for the last layer under another loss this is the
  Hessian in logit space.
* Or estimated: E |phi_i|^2 (R r_i)' A_i (R r_i) with signs r_i of its own for each row
  is unbiased, takes one product for all rows, and averages over them.

Elsewhere (convolutions, rows that meet later on, a weight used in several places) kappa
is E <Z, H Z> with Z = (W a) b', a and b signs: one product of the Hessian in W a probe,
unbiased, of large variance; or exact from m min(d, m) products.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flatnb.curvature.gauss_newton_trace import rows_apart
from flatnb.curvature.objective import (
    Batches,
    Chunk,
    LossFunction,
    Objective,
    is_softmax_cross_entropy,
    unwrap,
)
from flatnb.curvature.operator import HessianOperator
from flatnb.curvature.result import Estimate, Progress, ProgressCallback
from flatnb.curvature.trace import (
    LEAST,
    Targets,
    check_targets,
    estimate,
    met,
    warn_unless_met,
)

_MOST = 4096  # probes, at most
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, kw_only=True, repr=False)
class RelativeFlatness(Estimate):
    """kappa of one layer; `stderr` is 0 where it is exact, else that of the mean over
    the probes.

    A product is one with the Hessian in the layer's output, for all examples, which
    costs less than two gradients of what follows the layer, or with that in the weight.
    The closed form takes none.
    """


def relative_flatness(
    model: nn.Module,
    layer: nn.Module | str,
    loss_fn: LossFunction,
    batches: Batches,
    *,
    stderr: float | None = None,
    relative: float | None = None,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> RelativeFlatness:
    """kappa of the weight of `layer`, in eval mode; its bias does not enter.

    Exact for a last layer, and wherever that takes no more products than the wanted
    error does.

    Args:
        model: The whole net.
        layer: An `nn.Linear` or ungrouped `nn.Conv1d` to `nn.Conv3d` of it, or its
            name. A convolution's weight (d, ...) counts as (d, m).
        loss_fn: Mean loss of a batch.
        batches: `(x, y)` pairs.
        stderr: Standard error wanted.
        relative: The same as a fraction of the value; 0.02 if neither is given.
        seed: Of the signs.
        progress: Called with a line of text now and then.

    Raises:
        ValueError: A layer of another kind or not of this model; what `Objective`
            raises.
    """
    targets = check_targets(stderr, relative)
    model = unwrap(model)
    name, module = _find(model, layer)
    began = time.perf_counter()
    objective = Objective(model, loss_fn, batches, [_weight_name(model, module)])
    generator = torch.Generator().manual_seed(seed)
    with Progress(progress) as say:
        outputs = _outputs(objective, module)
        apart = outputs is not None and all(
            output.apart(generator) for output in outputs
        )
        if outputs is not None and all(output.logits for output in outputs):
            how, products = "closed form", 0
            found: dict[str, Any] = {
                "value": sum(output.closed_form() for output in outputs)
            }
        elif outputs is not None and apart:
            how = "Hessian in the output"
            found, products = _in_output_space(outputs, generator, targets, say)
        else:
            how = "Hessian in the weight"
            found, products = _in_weight_space(objective, generator, targets, say)
    return RelativeFlatness(
        **found,
        products=products,
        seconds=time.perf_counter() - began,
        settings={"layer": name, "how": how, "seed": seed},
    )


def relative_flatness_by_layer(
    model: nn.Module, loss_fn: LossFunction, batches: Batches, **settings: Any
) -> dict[str, RelativeFlatness]:
    """`relative_flatness` of every layer it is defined for whose weight is trained, by name."""
    model, data = unwrap(model), list(batches)
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    return {
        name: relative_flatness(model, module, loss_fn, data, **settings)
        for name, module in model.named_modules()
        if _fits(module) and id(module.weight) in trained
    }


class _Output:
    """A layer's output over one batch, cut from what made it; with products by A."""

    def __init__(self, objective: Objective, module: nn.Module, chunk: Chunk) -> None:
        x, y = objective.move(chunk.x), objective.move(chunk.y)
        with _cutting(module) as calls:
            outputs = objective.outputs(x, objective.params)
        loss = chunk.weight * objective.loss_fn(outputs, y)
        # W, the only parameter here, must not have made the layer's input, nor enter
        # further on.
        self.alone = (
            len(calls) == 1
            and not calls[0][0].requires_grad
            and not _reaches(loss, objective.params[0])
        )
        if not self.alone:
            return
        inputs, self._leaf, copy, version = calls[0]
        self.weight = objective.params[0].detach()
        self.inputs = inputs.reshape(-1, inputs.shape[-1])  # (rows, m)
        made = outputs is copy and copy._version == version
        self.logits = made and is_softmax_cross_entropy(objective.loss_fn, outputs, y)
        self._share = chunk.weight / len(self.inputs)
        slope = (
            torch.autograd.grad(loss, self._leaf, create_graph=True, allow_unused=True)[
                0
            ]
            if loss.requires_grad
            else None
        )
        self._slope = slope if slope is not None and slope.requires_grad else None

    def apart(self, generator: torch.Generator) -> bool:
        """Whether A couples no two rows."""
        if self._slope is None or self.logits:
            return True
        return rows_apart(self._slope, self._leaf, generator)

    def quadratic(self, rows: Tensor) -> float:
        """sum_i |phi_i|^2 row_i' A_i row_i, for rows (rows, d)."""
        if self._slope is None:
            return 0.0
        direction = (rows * self.inputs.norm(dim=1, keepdim=True)).reshape(
            self._leaf.shape
        )
        (product,) = torch.autograd.grad(
            self._slope, self._leaf, direction, retain_graph=True
        )
        return float((direction.double() * product.double()).sum())

    def closed_form(self) -> float:
        """mean_i |phi_i|^2 (sum_c G_cc p_ic - p_i' G p_i),  G = W W', times the batch's share."""
        weight = self.weight.double()
        p = self._leaf.detach().double().softmax(1)
        spread = p @ weight.square().sum(1) - (p @ weight).square().sum(1)
        return self._share * float(
            (self.inputs.double().square().sum(1) * spread).sum()
        )


def _outputs(objective: Objective, module: nn.Module) -> list[_Output] | None:
    """The layer's output over each batch; None unless it is a linear one that alone uses W."""
    altered = module._forward_hooks or "forward" in vars(module)
    if type(module) is not nn.Linear or altered:
        return None
    with torch.enable_grad(), objective.evaluating():
        outputs = [_Output(objective, module, chunk) for chunk in objective.chunks]
    return outputs if all(output.alone for output in outputs) else None


def _reaches(loss: Tensor, weight: Tensor) -> bool:
    if not loss.requires_grad:
        return False
    (slope,) = torch.autograd.grad(loss, weight, retain_graph=True, allow_unused=True)
    return slope is not None


def _in_output_space(
    outputs: Sequence[_Output],
    generator: torch.Generator,
    targets: Targets,
    say: Progress,
) -> tuple[dict[str, Any], int]:
    root = _root(outputs[0].weight)
    lengths = [len(output.inputs) for output in outputs]
    products = 0

    def product(rows: Tensor) -> float:
        nonlocal products
        products += 1
        pairs = zip(outputs, rows.split(lengths), strict=True)
        return sum(output.quadratic(some) for output, some in pairs)

    def probe() -> Tensor:
        return _signs((sum(lengths), root.shape[1]), generator, root) @ root.mT

    def draw(count: int) -> Tensor:
        return torch.tensor(
            [product(probe()) for _ in range(count)], dtype=torch.float64
        )

    def exact() -> float:
        return sum(product(column.expand(sum(lengths), -1)) for column in root.mT)

    return _estimated(draw, exact, root.shape[1], targets, say), products


def _in_weight_space(
    objective: Objective, generator: torch.Generator, targets: Targets, say: Progress
) -> tuple[dict[str, Any], int]:
    data = [(x, y) for x, y, _ in objective.chunks]
    operator = HessianOperator(
        objective.model, objective.loss_fn, data, objective.names
    )
    weight = objective.params[0].detach().flatten(1)
    root, columns = _root(weight), weight.shape[1]

    def quadratic(z: Tensor) -> float:
        return float(z.reshape(-1).double() @ (operator @ z.reshape(-1)).double())

    def draw(count: int) -> Tensor:
        a = _signs((count, root.shape[1]), generator, root) @ root.mT
        b = _signs((count, columns), generator, root)
        pairs = zip(a, b, strict=True)
        return torch.tensor(
            [quadratic(torch.outer(*pair)) for pair in pairs], dtype=torch.float64
        )

    def exact() -> float:
        unit = torch.eye(columns).to(root)
        return sum(quadratic(torch.outer(r, e)) for r in root.mT for e in unit)

    found = _estimated(draw, exact, root.shape[1] * columns, targets, say)
    return found, operator.products


def _estimated(
    draw: Callable[[int], Tensor],
    exact: Callable[[], float],
    products: int,
    targets: Targets,
    say: Progress,
) -> dict[str, Any]:
    """From draws, or exact at so many `products` once that takes no more of them."""
    if products > LEAST:
        found = estimate(draw, targets, min(products, _MOST), "relative flatness", say)
        if met(found, targets):
            return found
        if products > _MOST:
            warn_unless_met(found, targets, "relative flatness")
            return found
    return {"value": exact()}


@contextmanager
def _cutting(module: nn.Module) -> Iterator[list[tuple[Tensor, Tensor, Tensor, int]]]:
    """Make the output of `module` a leaf; collects (input, leaf, its copy, version) of
    each call.

    What follows gets a copy, which it may overwrite.
    """
    calls: list[tuple[Tensor, Tensor, Tensor, int]] = []

    def hook(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor:
        leaf = output.detach().requires_grad_()
        copy = leaf.clone()
        (inputs,) = (*args, *kwargs.values())
        calls.append((inputs, leaf, copy, copy._version))
        return copy

    handle = module.register_forward_hook(hook, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def _root(weight: Tensor) -> Tensor:
    """R (d, min(d, m)) with R R' = W W'."""
    if weight.shape[1] <= weight.shape[0]:
        return weight
    u, s, _ = torch.linalg.svd(weight, full_matrices=False)
    return u * s


def _signs(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    return (torch.randint(0, 2, shape, generator=generator) * 2 - 1).to(
        like.device, like.dtype
    )


def _fits(module: nn.Module) -> bool:
    """Whether relative flatness is defined: a linear layer whose weight is a parameter."""
    ungrouped = isinstance(module, _LAYERS) and getattr(module, "groups", 1) == 1
    return ungrouped and "weight" in module._parameters


def _find(model: nn.Module, layer: nn.Module | str) -> tuple[str, nn.Module]:
    for name, module in model.named_modules(remove_duplicate=False):
        if module is layer or name == layer:
            if not _fits(module):
                raise ValueError(
                    f"layer={name!r}, {type(module).__name__}; allowed: nn.Linear and nn.Conv1d to "
                    "nn.Conv3d without groups, whose weight is a parameter and not computed"
                )
            return name, module
    names = ", ".join(name for name, module in model.named_modules() if _fits(module))
    raise ValueError(
        f"the model has no layer {layer!r}; it has {names or 'no linear layer'}"
    )


def _weight_name(model: nn.Module, module: nn.Module) -> str:
    return next(name for name, p in model.named_parameters() if p is module.weight)
