"""What is done to any net: unwrapping, setting its mode for a while, member factors.

Wrappers are known by their class: a net may have parts called `module` or `_orig_mod`.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel


def compiled(model: nn.Module) -> bool:
    """Whether the model is what `torch.compile` returns."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    return dynamo is not None and isinstance(model, dynamo.OptimizedModule)


def unwrap(model: nn.Module) -> nn.Module:
    """The net inside compiled and data-parallel wrappers."""
    while True:
        if isinstance(model, DataParallel | DistributedDataParallel):
            model = cast(nn.Module, model.module)
        elif compiled(model):
            model = cast(nn.Module, model._orig_mod)
        else:
            return model


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
    net = ensemble(model)
    return None if net is None else net.members


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Train or eval mode; afterwards each module is back in its own."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.train(training)
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def along_members(factor: Any, target: Tensor) -> Any:
    """A number, () or (members,), ready to multiply `target`, (members, ...)."""
    if not isinstance(factor, Tensor):
        return factor
    shape = (-1, *[1] * (target.dim() - 1)) if factor.dim() else ()
    return factor.to(target.device, target.dtype).view(shape)
