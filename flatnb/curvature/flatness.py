"""Relative flatness of a layer: curvature weighed by the size of the weights.

For the weight W (d, m) of a linear layer, with rows w_s and Hessian blocks H_{s,s'} (m, m),

    kappa = sum_{s,s'} <w_s, w_s'> tr H_{s,s'}          (Petzka et al. 2021, definition 3)

It does not change when W is scaled by c and its input by 1/c, as ReLU nets allow; the Hessian's
trace and eigenvalues do. With phi_i the input of the layer and A_i the Hessian of the loss of
example i in the layer's output, the chain rule gives, with no d m x d m matrix,

    kappa = (1/N) sum_i |phi_i|^2 tr(W' A_i W).

* The layer makes the logits of a softmax cross-entropy: A_i = diag(p_i) - p_i p_i', a closed form
  without any Hessian.
* Otherwise: exact from one product of all A_i at once with each column of a root of W W', that is
  min(d, m) products; for the last layer under another loss this is the Hessian in logit space.
* Or estimated: E |phi_i|^2 (R r_i)' A_i (R r_i) with R R' = W W' and signs r_i of its own for each
  example is unbiased, takes one product for all examples, and averages over them.
* Where an example has several positions t (sequences, convolutions as linear layers on patches),
  E_{r,s} of the same with the direction (R r_i)(phi_it . s_i) at each t, s_i signs: estimated only.
* A weight used in several places: E <Z, H Z> with Z = (W a) b', a and b signs: one product of the
  Hessian in W a probe, unbiased, of large variance.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatnb.curvature.objective import (
    Batches,
    Chunk,
    LossFunction,
    Objective,
    is_softmax_cross_entropy,
    unwrap,
)
from flatnb.curvature.operator import HessianOperator
from flatnb.curvature.probes import check_targets, met
from flatnb.curvature.result import Progress, ProgressCallback, Result

_EXAMPLES = 256  # evaluated at once
_MOST = 4096  # probes, at most


@dataclass(frozen=True, kw_only=True, repr=False)
class RelativeFlatness(Result):
    """kappa of one layer; `stderr` is 0 where it is exact.

    A product is one with the Hessian in the layer's output, for all examples; it costs less than
    two gradients of what follows the layer. The closed form takes none.
    """

    value: float
    stderr: float

    def summary(self) -> str:
        return f"{self.value:.6g}" + (f" ± {self.stderr:.2g}" if self.stderr else ", exact")


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

    Exact for a last layer. For others estimated until the wanted error is met, or exact (where an
    example is one position) once that takes no more products.

    Args:
        model: The whole net.
        layer: An `nn.Linear` or ungrouped `nn.Conv2d` of it, or its name.
        loss_fn: Mean loss of a batch, a plain mean over its examples.
        batches: `(x, y)` pairs.
        stderr: Standard error wanted.
        relative: The same as a fraction of the value; 0.02 if neither is given.
        seed: Of the signs.
        progress: Called with a line of text now and then.

    Raises:
        ValueError: A layer of another kind or not of this model; what `Objective` raises.
    """
    targets = check_targets(stderr, relative)
    model = unwrap(model)
    name, module = _find(model, layer)
    weight = _weight_name(model, module)
    began = time.perf_counter()
    objective = Objective(model, loss_fn, batches, [weight])
    objective.check_separable()
    generator = torch.Generator().manual_seed(seed)
    with Progress(progress) as say:
        if not _used_once(objective, module):
            how, found = "Hessian in the weight", _in_weight_space(objective, generator, targets)
        else:
            how, found = _in_output_space(objective, module, generator, targets, say)
    return RelativeFlatness(
        value=found.value,
        stderr=found.stderr,
        products=found.products,
        seconds=time.perf_counter() - began,
        settings={"layer": name, "how": how, "seed": seed},
    )


def relative_flatness_by_layer(
    model: nn.Module, loss_fn: LossFunction, batches: Batches, **settings: Any
) -> dict[str, RelativeFlatness]:
    """`relative_flatness` of every `nn.Linear` and ungrouped `nn.Conv2d`, by name."""
    model, data = unwrap(model), list(batches)
    return {
        name: relative_flatness(model, module, loss_fn, data, **settings)
        for name, module in model.named_modules()
        if _fits(module)
    }


class _Found(NamedTuple):
    value: float
    stderr: float
    products: int


class _Layer:
    """The net from one layer's output on, over one piece of data; with `multiply` as A_i."""

    def __init__(self, objective: Objective, module: nn.Module, piece: Chunk) -> None:
        x, y = objective.move(piece.x), objective.move(piece.y)
        with _cut(module) as seen:
            outputs = objective.outputs(x, objective.params)
        self.used = len(seen)
        if self.used != 1:
            return
        self.inputs, self.cut = seen[0]
        self.last = outputs is self.cut
        self.softmax = self.last and is_softmax_cross_entropy(objective.loss_fn, outputs, y)
        loss = len(x) * objective.loss_fn(outputs, y)
        (self.slope,) = (
            torch.autograd.grad(loss, self.cut, create_graph=True)
            if loss.requires_grad
            else (torch.zeros_like(self.cut),)
        )
        self.rows = _as_rows(module, self.inputs)  # (n, positions, m)

    def quadratic(self, direction: Tensor) -> Tensor:
        """delta_i' A_i delta_i (n,) in float64, for delta shaped like the layer's output."""
        if not self.slope.requires_grad:
            return torch.zeros(len(direction), dtype=torch.float64)
        (product,) = torch.autograd.grad(self.slope, self.cut, direction, retain_graph=True)
        return (direction.double() * product.double()).flatten(1).sum(1).cpu()

    def spread(self, rows: Tensor, along: Tensor) -> Tensor:
        """Direction with vector rows[i] (n, d) at every position, times along[i, t]."""
        direction = rows[:, None] * along[..., None]
        if self.cut.ndim == 4:  # (n, d, height, width)
            return direction.mT.reshape(self.cut.shape)
        return direction.reshape(self.cut.shape)


def _in_output_space(
    objective: Objective,
    module: nn.Module,
    generator: torch.Generator,
    targets: tuple[float | None, float | None],
    say: Progress,
) -> tuple[str, _Found]:
    weight = objective.params[0].detach().flatten(1)
    first = _layer(objective, module, next(_pieces(objective)))
    if first.softmax:
        return "closed form", _closed_form(objective, module, weight)
    root = _root(weight)
    single = first.rows.shape[1] == 1  # position an example: an exact value is in reach
    columns = root.shape[1] if single else _MOST
    samples = torch.zeros(objective.examples, 0, dtype=torch.float64)
    count = 2
    while count < columns and not (single and first.last):
        new = [
            _probe(_layer(objective, module, piece), root, count - samples.shape[1], generator)
            for piece in _pieces(objective)
        ]
        samples = torch.cat([samples, torch.cat(new)], dim=1)
        value = float(samples.mean())
        error = math.sqrt(float(samples.var(1).sum()) / count) / len(samples)
        say(f"relative flatness: {count} probes, {value:.5g} ± {error:.2g}")
        if met(value, error, *targets) or (2 * count >= columns and not single):
            return "signs an example", _Found(value, error, count)
        count *= 2
    total = 0.0
    for piece in _pieces(objective):
        state = _layer(objective, module, piece)
        lengths = state.rows.square().sum(2).sqrt()
        for column in root.mT:
            rows = column.expand(len(lengths), -1)
            total += float(state.quadratic(state.spread(rows, lengths)).sum())
    products = root.shape[1] + samples.shape[1]
    return "Hessian in the output", _Found(total / objective.examples, 0.0, products)


def _probe(state: _Layer, root: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(n, count) unbiased values of |phi_i|^2 tr(W' A_i W), or of its sum over positions."""
    n, positions, m = state.rows.shape
    found = []
    for _ in range(count):
        rows = _signs((n, root.shape[1]), generator, root) @ root.mT
        if positions == 1:
            along = state.rows.square().sum(2).sqrt()
        else:
            along = (state.rows @ _signs((n, m), generator, root)[..., None])[..., 0]
        found.append(state.quadratic(state.spread(rows, along)))
    return torch.stack(found, dim=1)


def _closed_form(objective: Objective, module: nn.Module, weight: Tensor) -> _Found:
    """mean_i |phi_i|^2 (sum_c G_cc p_ic - p_i' G p_i),  G = W W'."""
    gram, total = weight.double() @ weight.double().mT, 0.0
    for piece in _pieces(objective):
        state = _layer(objective, module, piece)
        p = state.cut.detach().double().softmax(1)
        spread = p @ gram.diagonal() - ((p @ gram) * p).sum(1)
        total += float((state.rows.double().square().sum((1, 2)) * spread).sum())
    return _Found(total / objective.examples, 0.0, 0)


def _in_weight_space(
    objective: Objective, generator: torch.Generator, targets: tuple[float | None, float | None]
) -> _Found:
    data = [(x, y) for x, y, _ in objective.chunks]
    operator = HessianOperator(objective.model, objective.loss_fn, data, objective.names)
    weight = objective.params[0].detach().flatten(1)
    values: list[float] = []
    while True:
        a = _signs((weight.shape[1],), generator, weight)
        b = _signs((weight.shape[1],), generator, weight)
        z = torch.outer(weight @ a, b).reshape(-1)
        values.append(float(z.double() @ (operator @ z).double()))
        if len(values) >= 20:
            sample = torch.tensor(values, dtype=torch.float64)
            mean, error = float(sample.mean()), float(sample.std()) / math.sqrt(len(values))
            if met(mean, error, *targets) or len(values) >= _MOST:
                return _Found(mean, error, len(values))


def _layer(objective: Objective, module: nn.Module, piece: Chunk) -> _Layer:
    with torch.enable_grad(), objective.evaluating():
        return _Layer(objective, module, piece)


def _used_once(objective: Objective, module: nn.Module) -> bool:
    """Whether the layer is called once and its weight enters nowhere else: compare gradients."""
    x, y = objective.sample()
    piece = Chunk(x, y, 1.0)
    state = _layer(objective, module, piece)
    if state.used != 1:
        return False
    with torch.enable_grad(), objective.evaluating():
        loss = len(x) * objective.chunk_loss(piece, objective.params)
        (true,) = torch.autograd.grad(loss, objective.params)
    slope = state.slope.detach()
    slope = slope.flatten(2).mT if slope.ndim == 4 else slope.reshape(len(x), -1, slope.shape[-1])
    local = torch.einsum("ntd,ntm->dm", slope, state.rows)
    return torch.allclose(local, true.flatten(1), rtol=1e-3, atol=1e-4 * float(true.abs().max()))


@contextmanager
def _cut(module: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Make the output of `module` a leaf; collects (input, leaf) of each call."""
    seen: list[tuple[Tensor, Tensor]] = []

    def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        leaf = output.detach().requires_grad_()
        seen.append((args[0].detach(), leaf))
        return leaf

    handle = module.register_forward_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


def _as_rows(module: nn.Module, inputs: Tensor) -> Tensor:
    """Inputs (n, positions, m) of the layer as a linear one: patches for a convolution."""
    if not isinstance(module, nn.Conv2d):
        return inputs.reshape(len(inputs), -1, inputs.shape[-1])
    padding = cast(tuple[int, ...], module.padding)
    return F.unfold(inputs, module.kernel_size, module.dilation, padding, module.stride).mT


def _pieces(objective: Objective) -> Iterator[Chunk]:
    for x, y, _ in objective.chunks:
        for some, targets in zip(x.split(_EXAMPLES), y.split(_EXAMPLES), strict=True):
            yield Chunk(some, targets, len(some) / objective.examples)


def _root(weight: Tensor) -> Tensor:
    """R (d, min(d, m)) with R R' = W W'."""
    if weight.shape[1] <= weight.shape[0]:
        return weight
    u, s, _ = torch.linalg.svd(weight, full_matrices=False)
    return u * s


def _signs(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    return (torch.randint(0, 2, shape, generator=generator) * 2 - 1).to(like.device, like.dtype)


def _fits(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        zeros = module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return zeros and module.groups == 1
    return isinstance(module, nn.Linear)


def _find(model: nn.Module, layer: nn.Module | str) -> tuple[str, nn.Module]:
    for name, module in model.named_modules(remove_duplicate=False):
        if module is layer or name == layer:
            if not _fits(module):
                raise ValueError(
                    f"layer {name!r} is a {type(module).__name__}: relative flatness is defined "
                    "here for nn.Linear and for nn.Conv2d without groups, padded with zeros"
                )
            return name, module
    names = ", ".join(name for name, module in model.named_modules() if _fits(module))
    raise ValueError(f"the model has no layer {layer!r}; it has {names or 'no linear layer'}")


def _weight_name(model: nn.Module, module: nn.Module) -> str:
    for name, p in model.named_parameters():
        if p is module.weight:
            return name
    raise ValueError("the layer's weight is computed (parametrized): it is no parameter itself")
