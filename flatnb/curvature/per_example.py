"""Squared norms of the gradients of single examples, |J_i' u_i|^2.

The gradient of a linear layer's weight for one example is delta a', with a its input
and delta the gradient at its output, so that its squared norm is |a|^2 |delta|^2 and
the gradient itself is never formed (Goodfellow 2015); convolutions are linear layers on
patches. This takes one backward pass for all examples, but holds only where each layer
is used once and its first axis is that of the examples. `torch.func.vmap` serves other
layers, one backward pass an example all nets. So `per_example` tries them in this
order, on a few examples, against the last.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import grad, vmap

from flatnb.curvature.objective import Objective

_BYTES = (
    2**26
)  # patches and per-example gradients are made in pieces of about this much
_TRIED = 4  # examples
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class PerExample:
    """Forward pass over `x`, inside `objective.evaluating()`, and one backward pass an example."""

    def __init__(self, objective: Objective, x: Tensor) -> None:
        self._objective, self._x = objective, x
        self.outputs = objective.outputs(x, objective.params)
        if not isinstance(self.outputs, Tensor):
            kind = type(self.outputs).__name__
            raise ValueError(
                f"the model returned {kind}; allowed here: one tensor of outputs"
            )

    @staticmethod
    def rows(outputs: Tensor) -> Tensor:
        """Outputs (n, ...) as (n, K); a single number as (1, 1)."""
        return outputs.reshape(len(outputs) if outputs.ndim else 1, -1)

    def norms(self, u: Tensor) -> Tensor:
        """|J_i' u_i|^2 (n,) in float64, for u (n, K) like the rows of the outputs."""
        products = (self.rows(self.outputs) * u).sum(1)
        return torch.stack([self._squared_gradient(product) for product in products])

    def _squared_gradient(self, output: Tensor) -> Tensor:
        params = self._objective.params
        grads = torch.autograd.grad(
            output, params, retain_graph=True, allow_unused=True
        )
        norms = [
            torch.linalg.vector_norm(g, dtype=torch.float64)
            for g in grads
            if g is not None
        ]
        return torch.stack(norms).square().sum()


class _Vmapped(PerExample):
    """The same with each example evaluated alone, all of them in one go."""

    def norms(self, u: Tensor) -> Tensor:
        objective = self._objective

        def alone(x: Tensor, direction: Tensor) -> Tensor:
            def pulled(params: tuple[Tensor, ...]) -> Tensor:
                return (
                    self.rows(objective.outputs(x[None], params))[0] * direction
                ).sum()

            grads = grad(pulled)(objective.params)
            return torch.stack(
                [g.square().sum(dtype=torch.float64) for g in grads]
            ).sum()

        width = max(1, _BYTES // (objective.size * objective.params[0].element_size()))
        return vmap(alone, chunk_size=width)(self._x, u).detach()


class _ByLayer(PerExample):
    """The same from the layers' inputs and the gradients at their outputs."""

    def __init__(self, objective: Objective, x: Tensor) -> None:
        # By edges, for an operation in place makes the tensor another's output.
        self._uses: list[tuple[nn.Module, Tensor, GradientEdge, frozenset[str]]] = []
        with self._watching(_owners(objective)):
            super().__init__(objective, x)

    def norms(self, u: Tensor) -> Tensor:
        u = u.reshape(self.outputs.shape)
        edges = [edge for _, _, edge, _ in self._uses]
        deltas = torch.autograd.grad(
            self.outputs, edges, u, retain_graph=True, allow_unused=True
        )
        total = torch.zeros(len(self._x), dtype=torch.float64, device=self._x.device)
        with torch.no_grad():
            for (module, a, _, kinds), delta in zip(self._uses, deltas, strict=True):
                if delta is not None:
                    total += _layer(module, a, delta, kinds)
        return total

    @contextmanager
    def _watching(self, owned: dict[nn.Module, frozenset[str]]) -> Iterator[None]:
        def watch(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            a = args[0].detach()
            if isinstance(module, _NORMS):  # the buffers are swapped in only now
                a = F.batch_norm(
                    a, module.running_mean, module.running_var, eps=module.eps
                )
            self._uses.append((module, a, get_gradient_edge(output), owned[module]))

        handles = [module.register_forward_hook(watch) for module in owned]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def per_example(objective: Objective) -> type[PerExample]:
    """The fastest of the above that is right on some examples; inside `objective.evaluating()`."""
    most = max(objective.chunks, key=lambda chunk: len(chunk.x))
    x = objective.move(most.x[:_TRIED])
    plain = PerExample(objective, x)
    shape = plain.rows(plain.outputs).shape
    u = torch.randn(
        shape, generator=torch.Generator().manual_seed(0), dtype=objective.dtype
    )
    u = u.to(objective.device)
    expected = plain.norms(u)
    eps = torch.finfo(objective.dtype).eps
    close = {"rtol": eps**0.5, "atol": eps * float(expected.max())}
    kinds: tuple[type[PerExample], ...] = (_ByLayer, _Vmapped)
    for kind in kinds:
        try:
            found = kind(objective, x).norms(u)
        except Exception:  # not made for this net: the next one is
            continue
        if found.shape == expected.shape and torch.allclose(found, expected, **close):
            return kind
    return PerExample


def _owners(objective: Objective) -> dict[nn.Module, frozenset[str]]:
    """Layers with chosen parameters, and which."""
    modules = dict(objective.model.named_modules())
    owned: dict[nn.Module, frozenset[str]] = {}
    for name in objective.names:
        path, _, kind = name.rpartition(".")
        if kind not in ("weight", "bias") or not _known(modules[path]):
            raise ValueError(f"{name} is not of a layer known here")
        owned[modules[path]] = owned.get(modules[path], frozenset()) | {kind}
    return owned


def _known(module: nn.Module) -> bool:
    if type(module) is nn.Conv2d:
        zeros = module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return zeros and module.groups == 1
    if type(module) in _NORMS:
        return cast(nn.BatchNorm2d, module).track_running_stats
    return type(module) is nn.Linear


def _layer(
    module: nn.Module, a: Tensor, delta: Tensor, kinds: frozenset[str]
) -> Tensor:
    """Squared norm of the gradient of one layer's chosen parameters, an example each."""
    total = torch.zeros(len(a), dtype=torch.float64, device=a.device)
    if isinstance(module, nn.Linear):
        delta = delta.reshape(
            len(delta), -1, delta.shape[-1]
        ).mT  # (n, outputs, positions)
    else:
        delta = delta.flatten(2) if delta.ndim > 2 else delta[..., None]
    if "bias" in kinds:
        total += delta.sum(2).square().sum(1, dtype=torch.float64)
    if "weight" not in kinds:
        return total
    if isinstance(module, _NORMS):
        product = (delta * a.reshape(delta.shape)).sum(2)
        return total + product.square().sum(1, dtype=torch.float64)
    if isinstance(module, nn.Linear) and delta.shape[2] == 1:
        return total + _squares(a.reshape(len(a), -1)) * _squares(delta.flatten(1))
    return total + _patches(module, a, delta)


def _patches(module: nn.Module, a: Tensor, delta: Tensor) -> Tensor:
    weight = cast(Tensor, module.weight)
    each = weight.numel() + delta.shape[2] * weight[0].numel()
    width = max(1, _BYTES // (each * a.element_size()))
    found = []
    for some, slopes in zip(a.split(width), delta.split(width), strict=True):
        if isinstance(module, nn.Conv2d):
            padding = cast(tuple[int, ...], module.padding)
            columns = F.unfold(
                some, module.kernel_size, module.dilation, padding, module.stride
            )
        else:
            columns = some.reshape(len(some), -1, some.shape[-1]).mT
        found.append(_squares((slopes @ columns.mT).flatten(1)))
    return torch.cat(found)


def _squares(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64) ** 2
