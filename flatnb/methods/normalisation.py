"""Normalisation layers that can be differentiated more than twice.

PyTorch's fused batch, instance and layer norm save mean and deviation of their input as
constants: first and second derivatives are right, third ones silently wrong, or, in
    PyTorch 2.15 for batch and
instance norm, refused (github.com/pytorch/pytorch/issues/186256 and 175754). Group norm
and RMS norm are right.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Elementary(TorchFunctionMode):
    """Inside this context, norms that take their input's statistics are sums and
    products.

    Values and running statistics are as without it, up to rounding.
    """

    def __torch_function__(
        self, func: Callable, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func not in _COMPOSED:
            return func(*args, **(kwargs or {}))
        bound = inspect.signature(func).bind(*args, **(kwargs or {}))
        bound.apply_defaults()
        a = bound.arguments
        if not a.get("training", a.get("use_input_stats", True)):
            return func(
                *args, **(kwargs or {})
            )  # an affine map: all derivatives are right
        with (
            torch.no_grad()
        ):  # for the running statistics, checks of the input, and the dtype
            fused = func(*args, **(kwargs or {}))
        return _COMPOSED[func](a).to(fused.dtype)


def _by_channel(a: dict[str, Any], first: int) -> Tensor:
    """Statistics over the dimensions from `first` on, channels (dimension 1) apart."""
    x = a["input"]
    over = [d for d in range(x.dim()) if d == 0 or d > 1][first:]
    shape = (1, -1, *[1] * (x.dim() - 2))
    scale, shift = (
        None if t is None else t.view(shape) for t in (a["weight"], a["bias"])
    )
    return _normalised(x, over, scale, shift, a["eps"])


def _by_example(a: dict[str, Any]) -> Tensor:
    over = list(range(-len(a["normalized_shape"]), 0))
    return _normalised(a["input"], over, a["weight"], a["bias"], a["eps"])


def _normalised(
    x: Tensor, over: list[int], scale: Tensor | None, shift: Tensor | None, eps: float
) -> Tensor:
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = x - x.mean(over, keepdim=True)
    out = centred * (centred.square().mean(over, keepdim=True) + eps).rsqrt()
    out = out if scale is None else out * scale
    return out if shift is None else out + shift


_COMPOSED: dict[Callable, Callable[[dict[str, Any]], Tensor]] = {
    F.batch_norm: lambda a: _by_channel(a, 0),
    F.instance_norm: lambda a: _by_channel(a, 1),
    F.layer_norm: _by_example,
}
