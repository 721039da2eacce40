"""Normalization layers that can be differentiated more than twice.

PyTorch's fused batch, instance and layer norm save mean and deviation of their input as
constants: first and second derivatives are right, third ones silently wrong, or, in
PyTorch 2.15 for batch and instance norm, refused (github.com/pytorch/pytorch/issues/
186256 and 175754). Group norm and RMS norm are right.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


class Elementary(TorchFunctionMode):
    """Inside this context, norms are sums and products: the same up to rounding.

    >>> x = torch.randn(5, 3)
    >>> with Elementary():
    ...     y = F.layer_norm(x, (3,))
    >>> torch.allclose(y, F.layer_norm(x, (3,)), atol=1e-5)
    True
    """

    def __torch_function__(
        self, func: Callable, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in (F.batch_norm, F.instance_norm, F.layer_norm):
            return func(*args, **kwargs)
        bound = inspect.signature(func).bind(*args, **kwargs)
        bound.apply_defaults()
        values = bound.arguments
        if not values.get("training", values.get("use_input_stats", True)):
            return func(*args, **kwargs)  # an affine map: all derivatives are right
        with torch.no_grad():  # for the running statistics, the checks, and the dtype
            fused = func(*args, **kwargs)
        x = values["input"].to(torch.promote_types(fused.dtype, torch.float32))
        if func is F.layer_norm:
            shape = tuple(values["normalized_shape"])
            axes = list(range(-len(shape), 0))
        else:  # channels (dimension 1) apart, for instance norm examples, too
            shape = (-1, *[1] * (x.dim() - 2))
            axes = list(range(2, x.dim()))
            axes += [0] if func is F.batch_norm else []
        centered = x - x.mean(axes, keepdim=True)
        variance = centered.square().mean(axes, keepdim=True)
        y = centered * (variance + values["eps"]).rsqrt()
        if values["weight"] is not None:
            y = y * values["weight"].view(shape)
        if values["bias"] is not None:
            y = y + values["bias"].view(shape)
        return y.to(fused.dtype)
