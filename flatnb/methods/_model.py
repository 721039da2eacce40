"""What a model is made of: its parameters and modules, and what a loss reaches."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def sharded(module: nn.Module) -> bool:
    """Whether the module is wrapped by FSDP, old or new."""
    # It can be only if this module was loaded, which takes a second.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    kinds = () if fsdp is None else (fsdp.FullyShardedDataParallel, fsdp.FSDPModule)
    return isinstance(module, kinds)


def contents(model: nn.Module) -> tuple[list[Tensor], list[nn.Module]]:
    """The trainable parameters, each once (tied weights are one), and all modules."""
    params: dict[int, Tensor] = {}  # by id: a tensor's own hash is a slow call
    modules = list(model.modules())
    for module in modules:
        for p in module._parameters.values():
            if p is not None and p.requires_grad:
                params[id(p)] = p
    return list(params.values()), modules


def leaves(loss: Tensor) -> list[Tensor]:
    """The leaf tensors that `loss`, no leaf itself, is differentiated to, each once."""
    tensors: list[Tensor] = []
    visited, waiting = {loss.grad_fn}, [loss.grad_fn]
    while waiting:
        for node, _ in waiting.pop().next_functions:  # type: ignore[union-attr]
            if node is not None and node not in visited:
                visited.add(node)
                if type(node) is _ACCUMULATE:
                    tensors.append(cast(Any, node).variable)
                else:
                    waiting.append(node)
    return tensors


def average_gradients(
    wrapper: DistributedDataParallel, params: Sequence[Tensor]
) -> None:
    """Average `p.grad` over the processes, where any of them has one."""
    group = wrapper.process_group
    used = torch.tensor([float(p.grad is not None) for p in params])
    used = used.to(params[0].device)
    dist.all_reduce(used, group=group)
    for p, processes in zip(params, used.tolist(), strict=True):
        if processes:
            grad = torch.zeros_like(p) if p.grad is None else p.grad
            p.grad = grad.to_dense() if grad.is_sparse else grad
            dist.all_reduce(p.grad, group=group)
            p.grad /= dist.get_world_size(group)
    wrapper.require_forward_param_sync = True  # the next pass takes rank 0's buffers


_NODE: Any = torch.ones(1, requires_grad=True).sum().grad_fn
_ACCUMULATE = type(_NODE.next_functions[0][0])
