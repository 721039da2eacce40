"""What a step refuses, by name: arguments, models, and what a closure returns."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from flatnb import _checks
from flatnb._nets import distributed
from flatnb._tensors import scalar
from flatnb.methods._model import sharded

NO_GRADIENT = (
    "no trainable parameter of the model got a gradient: the losses that the closure "
    "returned do not depend on this model"
)
OLD_GRAPH = (
    "a part of the losses' graph is older than this pass: the closure called "
    "backward() itself, or it uses something that was computed before it, with "
    "gradients (a target, a penalty). Compute that inside the closure, or detach() it"
)
CALLED_BACKWARD = (
    "the closure left a gradient in p.grad: it called backward(). It must only return "
    "the losses; this method calls backward() itself"
)
_SPREAD = (
    "its numbers are spread over processes, and a step's moves and norms need them "
    "whole. Use DistributedDataParallel, or a method of one plain pass, such as ERM"
)


def check_arguments(model: Any, closure: Any, weight: Any, scaler: Any) -> None:
    """Raise where an argument of `Method.backward` is not what is allowed."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model is {type(model).__name__}; allowed: an nn.Module, for several nets "
            "nn.ModuleList(nets); an optimizer stays in the loop"
        )
    if not callable(closure):
        raise TypeError(
            f"closure is {type(closure).__name__}; allowed: a function without "
            "arguments that computes the losses, as method.backward(model, lambda: "
            'F.cross_entropy(model(x), y, reduction="none"))'
        )
    if weight != 1:
        _checks.number("weight", scalar(weight), "a finite number", -math.inf)
    if scaler is not None and not callable(getattr(scaler, "scale", None)):
        raise TypeError(f"scaler={scaler!r}; allowed: None or a torch.amp.GradScaler")


def check_model(
    model: nn.Module,
    params: Sequence[Tensor],
    modules: Sequence[nn.Module],
    plain: bool,
) -> None:
    """Raise where a step on this model would be wrong.

    `plain`: the method is one backward pass. It moves no parameters, takes no norms of
    them, and does not look into the net.
    """
    if not params:
        raise ValueError(
            "the model has no parameter with requires_grad=True; nothing to train"
        )
    for p in params:
        if p.is_meta:
            raise ValueError(
                f"{_named(model, p)} is on the meta device and holds no numbers; call "
                "model.to_empty(device=...) and load its weights"
            )
    if plain:
        return
    wrapper = distributed(model)
    if wrapper is not None and wrapper.static_graph:
        raise ValueError(
            "DistributedDataParallel(static_graph=True) counts on one backward per "
            "iteration; this method takes several. Use static_graph=False, with "
            "find_unused_parameters=True if some take no part"
        )
    for name, module in model.named_modules() if any(map(sharded, modules)) else ():
        if sharded(module):
            new = isinstance(module, sys.modules["torch.distributed.fsdp"].FSDPModule)
            raise ValueError(
                f"{f'submodule {name!r}' if name else 'the model'} is sharded by "
                f"{'fully_shard' if new else type(module).__name__}: {_SPREAD}"
            )
    for p in params:
        _check_parameter(model, p)


def _check_parameter(model: nn.Module, p: Tensor) -> None:
    if p._post_accumulate_grad_hooks:
        raise ValueError(
            f"{_named(model, p)} has a post-accumulate-grad hook, as an optimizer that "
            "steps during the backward has; it would run in each pass, at moved "
            "parameters. Remove it, and call optimizer.step() after method.backward"
        )
    if p.is_complex():
        raise ValueError(
            f"{_named(model, p)} is {p.dtype}; norms and moves are defined for real "
            "numbers. Hold it as a real parameter of shape (..., 2), and use "
            "torch.view_as_complex in the forward"
        )
    tensor_parallel = sys.modules.get("torch.distributed.tensor")
    if tensor_parallel is not None and isinstance(p, tensor_parallel.DTensor):
        raise ValueError(f"{_named(model, p)} is a DTensor: {_SPREAD}")


def _named(model: nn.Module, parameter: Tensor) -> str:
    name = next(name for name, p in model.named_parameters() if p is parameter)
    return f"parameter {name!r}"


def check_losses(
    returned: Any, members: int | None, needs_graph: bool = True
) -> Tensor:
    """What the closure returned, as losses (n,) or (members, n), with a graph."""
    shapes = "(n,), one loss per example, or ()"
    shapes = shapes if members is None else f"({members}, n), or ({members},)"
    expected = f"expected {shapes}, a loss that is one number{_hint(returned)}"
    if not isinstance(returned, Tensor):
        raise TypeError(
            f"the closure returned {type(returned).__name__}; it must return a tensor: "
            f"{expected}"
        )
    shape = tuple(returned.shape)
    lead = () if members is None else (members,)
    losses = returned.unsqueeze(-1) if shape == lead else returned
    if losses.numel() == 0:
        raise ValueError(
            f"the closure returned losses of shape {shape}: the batch is empty, or all "
            "of it was masked; skip it"
        )
    if losses.dim() != len(lead) + 1 or losses.shape[:-1] != lead:
        raise ValueError(f"the closure returned losses of shape {shape}; {expected}")
    if losses.is_complex():
        raise ValueError(
            f"the losses are {losses.dtype}; allowed: real numbers, as from .abs()"
        )
    if needs_graph and not losses.requires_grad:
        raise ValueError(
            "the closure returned losses without a graph; compute them from the "
            "model's output outside torch.no_grad(), without detach()"
        )
    return losses


def _hint(returned: Any) -> str:
    """How to make losses of what the closure returned instead."""
    if isinstance(returned, Mapping):
        return (
            ". Of a dict return sum(losses.values()); of a model's output, output.loss"
        )
    if isinstance(returned, float | int):
        return ". Return the tensor itself, without .item() or float()"
    if isinstance(returned, Tensor) and returned.dim() == 2 and returned.shape[1] == 1:
        return ". Return losses.squeeze(1)"
    if isinstance(returned, Tensor) and returned.dim() > 1:
        return (
            ". Count every token or pixel as an example, losses.flatten() or "
            "losses[mask], or average tokens to one loss per example, "
            "losses.flatten(1).mean(1)"
        )
    return '. Return the losses unreduced, as from cross_entropy(..., reduction="none")'
