"""Squared norms of the gradients of single examples, |J_i' u_i|^2, all from one backward pass.

The gradient of a linear layer's weight for one example is delta a', with a its input and delta the
gradient at its output, so that its squared norm is |a|^2 |delta|^2 and the gradient itself is
never formed (Goodfellow 2015); convolutions are linear layers on patches. Nets with parameters in
other kinds of layers, or with a layer used twice, go through `torch.func.vmap`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, vmap

from flatnb.curvature.objective import Objective

_BYTES = 2**26  # patches and per-example gradients are made in pieces of about this much
_Norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class PerExample:
    """Forward pass over `x`; `norms(u)` is a backward pass. Inside `objective.evaluating()`."""

    def __init__(self, objective: Objective, x: Tensor) -> None:
        self._objective, self._x = objective, x
        self._uses: list[tuple[nn.Module, Tensor, Tensor, frozenset[str]]] = []
        owned = _owners(objective)
        if owned is not None:
            with self._watching(owned):
                self.outputs = objective.outputs(x, objective.params)
        self._fast = owned is not None and len(self._uses) == len(owned) == len(
            {id(module) for module, *_ in self._uses}
        )
        if owned is None:
            self.outputs = objective.outputs(x, objective.params)

    def norms(self, u: Tensor) -> Tensor:
        """|J_i' u_i|^2 (n,) in float64, for u shaped like the outputs."""
        if not self._fast:
            return self._one_by_one(u)
        layers = [output for _, _, output, _ in self._uses]
        deltas = torch.autograd.grad(self.outputs, layers, u, retain_graph=True, allow_unused=True)
        total = torch.zeros(len(self._x), dtype=torch.float64, device=self._x.device)
        with torch.no_grad():
            for (module, a, _, kinds), delta in zip(self._uses, deltas, strict=True):
                if delta is not None:
                    total += _layer(module, a, delta, kinds)
        return total

    def _one_by_one(self, u: Tensor) -> Tensor:
        objective = self._objective

        def one(x: Tensor, direction: Tensor) -> Tensor:
            def pulled(params: tuple[Tensor, ...]) -> Tensor:
                return (objective.outputs(x[None], params)[0] * direction).sum()

            grads = grad(pulled)(objective.params)
            return torch.stack([g.square().sum(dtype=torch.float64) for g in grads]).sum()

        width = max(1, _BYTES // (objective.size * objective.params[0].element_size()))
        return vmap(one, chunk_size=width)(self._x, u).detach()

    @contextmanager
    def _watching(self, owned: dict[nn.Module, frozenset[str]]) -> Iterator[None]:
        def watch(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            a = args[0].detach()
            if isinstance(module, _Norm):  # the buffers are swapped in only now
                a = F.batch_norm(a, module.running_mean, module.running_var, eps=module.eps)
            self._uses.append((module, a, output, owned[module]))

        handles = [module.register_forward_hook(watch) for module in owned]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _owners(objective: Objective) -> dict[nn.Module, frozenset[str]] | None:
    """Layers with chosen parameters, and which; None if one is of a kind not known here."""
    modules = dict(objective.model.named_modules())
    owned: dict[nn.Module, frozenset[str]] = {}
    for name in objective.names:
        path, _, kind = name.rpartition(".")
        module = modules[path]
        if not _known(module):
            return None
        owned[module] = owned.get(module, frozenset()) | {kind}
    return owned


def _known(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        zeros = module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return zeros and module.groups == 1
    if isinstance(module, _Norm):
        return module.track_running_stats and not module.training
    return type(module) is nn.Linear


def _layer(module: nn.Module, a: Tensor, delta: Tensor, kinds: frozenset[str]) -> Tensor:
    """Squared norm of the gradient of one layer's chosen parameters, an example each."""
    total = torch.zeros(len(a), dtype=torch.float64, device=a.device)
    if isinstance(module, nn.Linear):
        delta = delta.reshape(len(delta), -1, delta.shape[-1]).mT  # (n, outputs, positions)
    else:
        delta = delta.flatten(2) if delta.ndim > 2 else delta[..., None]
    if "bias" in kinds:
        total += delta.sum(2).square().sum(1, dtype=torch.float64)
    if "weight" not in kinds:
        return total
    if isinstance(module, _Norm):
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
            columns = F.unfold(some, module.kernel_size, module.dilation, padding, module.stride)
        else:
            columns = some.reshape(len(some), -1, some.shape[-1]).mT
        found.append(_squares((slopes @ columns.mT).flatten(1)))
    return torch.cat(found)


def _squares(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64) ** 2
