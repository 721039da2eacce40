"""Wrappers around a net, known by their class: a net may call a part of its own `_orig_mod`."""

from __future__ import annotations

import sys
from typing import cast

from torch import nn
from torch.nn.parallel import DistributedDataParallel


def compiled(model: nn.Module) -> bool:
    """Whether the model is what `torch.compile` returns."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    return dynamo is not None and isinstance(model, dynamo.OptimizedModule)


def unwrap(
    model: nn.Module, kinds: tuple[type, ...] = (DistributedDataParallel,)
) -> nn.Module:
    """The net inside `torch.compile` and wrappers of these kinds, which have it as `module`."""
    while True:
        if isinstance(model, kinds):
            model = cast(nn.Module, model.module)
        elif compiled(model):
            model = cast(nn.Module, model._orig_mod)
        else:
            return model
