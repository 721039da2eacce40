"""Normalization layers that can be differentiated more than twice.

PyTorch's fused batch, instance and layer norm save mean and deviation of their input as
constants: first and second derivatives are right, third ones silently wrong, or, in
PyTorch 2.15 for batch and instance norm, refused
(github.com/pytorch/pytorch/issues/186256 and 175754). Group norm and RMS norm are
right.
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
    """Inside this context, norms are composed of sums and products.

    Values and running statistics are as without it, up to rounding.

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
        return _composed(func, **values).to(fused.dtype)


def _composed(
    func: Callable,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    normalized_shape: Sequence[int] = (),
    **_: Any,
) -> Tensor:
    if func is F.layer_norm:
        axes = list(range(-len(normalized_shape), 0))
    else:  # channels (dimension 1) apart, for instance norm examples, too
        spatial = list(range(2, input.dim()))
        axes = [0, *spatial] if func is F.batch_norm else spatial
        shape = (1, -1, *[1] * len(spatial))
        weight = None if weight is None else weight.view(shape)
        bias = None if bias is None else bias.view(shape)
    x = input.to(torch.promote_types(input.dtype, torch.float32))
    centered = x - x.mean(axes, keepdim=True)
    y = centered * (centered.square().mean(axes, keepdim=True) + eps).rsqrt()
    y = y if weight is None else y * weight
    return y if bias is None else y + bias
