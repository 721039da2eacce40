"""What a model is made of, and which models a step refuses.

Wrappers are known by their class, never by an attribute: a net may call its own parts
`module`, `members`, `generators` or `no_sync`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from flatnb._nets import compiled, unwrap


def distributed(model: nn.Module) -> DistributedDataParallel | None:
    """The model as DistributedDataParallel, where it is one, compiled or not."""
    while compiled(model):
        model = cast(nn.Module, model._orig_mod)
    return model if isinstance(model, DistributedDataParallel) else None


def ensemble(model: nn.Module) -> Any:
    """The `flatnb.Ensemble` inside the wrappers, or None."""
    # A model can be one only if that module was loaded; this one does not depend on it.
    home, core = sys.modules.get("flatnb.ensemble"), unwrap(model)
    return core if home is not None and isinstance(core, home.Ensemble) else None


def members(model: nn.Module) -> int | None:
    """The number of members of an ensemble, None for other nets."""
    found = ensemble(model)
    return None if found is None else found.members


def contents(model: nn.Module) -> tuple[list[Tensor], list[nn.Module]]:
    """The trainable parameters, each once (tied weights are one), and all modules."""
    params: dict[int, Tensor] = {}  # by id: a tensor's own hash is a slow call
    modules = list(model.modules())
    for module in modules:
        for p in module._parameters.values():
            if p is not None and p.requires_grad:
                params[id(p)] = p
    return list(params.values()), modules


def check_model(
    model: nn.Module,
    params: Sequence[Tensor],
    modules: Sequence[nn.Module],
    *,
    moves: bool,
) -> None:
    """Raise where a step on this model would be wrong.

    Args:
        moves: whether the method takes more than one plain backward pass: it moves the
            parameters, takes norms of them, or looks into the net.
    """
    if not params:
        raise ValueError(
            "the model has no parameter with requires_grad=True; nothing to train"
        )
    for p in params:
        if p.is_meta:
            raise ValueError(
                f"parameter {_name(model, p)!r} is on the meta device and holds no numbers; "
                "make the model on a real device, or call model.to_empty(device=...) and load "
                "its weights"
            )
    if not moves:
        return
    wrapper = distributed(model)
    if wrapper is not None and wrapper.static_graph:
        raise ValueError(
            "DistributedDataParallel(static_graph=True) counts on one backward an iteration, "
            "synchronised each time; this method takes several. Use static_graph=False, with "
            "find_unused_parameters=True if some take no part"
        )
    for module in modules:
        if sharded(module):
            _refuse_sharded(model, module)
    for p in params:
        _check_parameter(model, p)


def sharded(module: nn.Module) -> bool:
    """Whether the module is wrapped by FSDP, old or new."""
    # It can be only if this module was loaded, which takes a second.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(
        module, fsdp.FullyShardedDataParallel | fsdp.FSDPModule
    )


def _refuse_sharded(model: nn.Module, module: nn.Module) -> None:
    fsdp = sys.modules["torch.distributed.fsdp"]
    kind = (
        "fully_shard" if isinstance(module, fsdp.FSDPModule) else type(module).__name__
    )
    name = next(name for name, m in model.named_modules() if m is module)
    raise ValueError(
        f"{f'submodule {name!r}' if name else 'the model'} is sharded by {kind}: its parameters "
        "are spread over processes, and a step's moves and norms need them whole. Use "
        "DistributedDataParallel, or a method of one plain pass (ERM, Flooding, IFlood, SoftAD, "
        "AdaFlood)"
    )


def _check_parameter(model: nn.Module, p: Tensor) -> None:
    if p._post_accumulate_grad_hooks:
        raise ValueError(
            f"parameter {_name(model, p)!r} has a post-accumulate-grad hook, as an optimizer that "
            "steps during the backward has; it would run in each pass of the step, at moved "
            "parameters. Remove the hook, and call optimizer.step() after method.backward"
        )
    if p.is_complex():
        raise ValueError(
            f"parameter {_name(model, p)!r} is {p.dtype}; norms and moves are defined for real "
            "ones. Hold it as a real parameter of shape (..., 2), and use "
            "torch.view_as_complex in the forward"
        )
    tensor_parallel = sys.modules.get("torch.distributed.tensor")
    if tensor_parallel is not None and isinstance(p, tensor_parallel.DTensor):
        raise ValueError(
            f"parameter {_name(model, p)!r} is a DTensor, spread over processes (tensor "
            "parallel), and a step's moves and norms need it whole. Use "
            "DistributedDataParallel, or a method of one plain pass (ERM, Flooding, IFlood, "
            "SoftAD, AdaFlood)"
        )


def _name(model: nn.Module, parameter: Tensor) -> str:
    return next(name for name, p in model.named_parameters() if p is parameter)


def leaves(loss: Tensor) -> list[Tensor]:
    """The leaf tensors that `loss`, no leaf itself, is differentiated to, each once."""
    found: list[Tensor] = []
    seen, waiting = {loss.grad_fn}, [loss.grad_fn]
    while waiting:
        for node, _ in waiting.pop().next_functions:  # type: ignore[union-attr]
            if node is not None and node not in seen:
                seen.add(node)
                if type(node) is _ACCUMULATE:
                    found.append(cast(Any, node).variable)
                else:
                    waiting.append(node)
    return found


_NODE: Any = torch.ones(1, requires_grad=True).sum().grad_fn
_ACCUMULATE = type(_NODE.next_functions[0][0])
