"""Convolution and weight norm, for second derivatives that are fast and right.

A convolution is linear in its input and in its weight, so each derivative of its
gradient is again a convolution, or one of the two gradients of one, for which there are
fast kernels. PyTorch computes the derivative in the weight as a convolution of
transposed tensors, with whole images for kernels, and that in the input even where
nobody needs it, as for a net's first layer.

Weight norm, w = g v / |v|, is composed here of plain operations: the second derivative
of PyTorch's fused kernel (seen in 2.13) makes a Hessian that is not symmetric.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class _Geometry(NamedTuple):
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def arguments(self) -> tuple[Any, ...]:
        unused = (0,) * len(
            self.stride
        )  # the output padding of a transposed convolution
        return self.stride, self.padding, self.dilation, False, unused, self.groups

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return torch.ops.aten.convolution(x, weight, bias, *self.arguments())

    def gradient(
        self, g: Tensor, x: Tensor, weight: Tensor, wanted: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of <g, convolution> in input, weight and bias, where wanted."""
        bias = [len(weight)]
        return torch.ops.aten.convolution_backward(
            g, x, weight, bias, *self.arguments(), list(wanted)
        )


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        how: _Geometry,
        curved: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how, ctx.curved = how, curved
        return how.apply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        if (
            not torch.is_grad_enabled()
        ):  # the last derivative, perhaps of many vectors at once
            return *ctx.how.gradient(g, x, weight, wanted), None, None
        if not ctx.curved:
            x, weight = x.detach(), weight.detach()
        return *_ConvolutionGradient.apply(g, x, weight, ctx.how, wanted), None, None


class _ConvolutionGradient(torch.autograd.Function):
    """With G the gradient of <g, x * w>: <v, G> is linear in each of g, x and w."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor, how: _Geometry, wanted: Any
    ) -> Any:
        ctx.save_for_backward(g, x, weight)
        ctx.how = how
        ctx.set_materialize_grads(False)
        return how.gradient(g, x, weight, wanted)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, vx: Tensor | None, vw: Tensor | None, vb: Tensor | None
    ) -> Any:
        g, x, weight = ctx.saved_tensors
        for_g, for_x, for_w = ctx.needs_input_grad[:3]
        dg = dx = dw = None
        if for_g:
            parts = []
            if vx is not None:
                parts.append(ctx.how.apply(vx, weight, vb))
            if vw is not None:
                parts.append(ctx.how.apply(x, vw, None if parts else vb))
            if parts:
                dg = parts[0] if len(parts) == 1 else parts[0] + parts[1]
            elif vb is not None:
                dg = vb.view(-1, *[1] * (g.dim() - 2)).expand_as(g)
        if for_x and vw is not None:
            dx = ctx.how.gradient(g, x, vw, (True, False, False))[0]
        if for_w and vx is not None:
            dw = ctx.how.gradient(g, vx, weight, (False, True, False))[1]
        return dg, dx, dw, None, None


class SecondOrder(TorchFunctionMode):
    """Inside this context `F.conv1d` to `conv3d` and weight norm are the functions
    above.

    Values are as without it, up to rounding.

    curved: False if their gradients will be differentiated by what they are multiplied
        with only, as in a product with a Jacobian.
    """

    def __init__(self, curved: bool = True) -> None:
        super().__init__()
        self.curved = curved

    def __torch_function__(
        self, func: Callable, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.conv1d, torch.conv2d, torch.conv3d):
            convolution = _convolution(*args, **kwargs)
            if convolution is not None:
                return _Convolution.apply(*convolution, self.curved)
        elif func is torch._weight_norm:
            return _weight_norm(*args, **kwargs)
        return func(*args, **kwargs)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor | None, _Geometry] | None:
    dims = weight.dim() - 2
    if isinstance(padding, str) or input.dim() != weight.dim():  # "same", or no batch
        return None
    sizes = [
        (n,) if isinstance(n, int) else tuple(n) for n in (stride, padding, dilation)
    ]
    wide = [n * dims if len(n) == 1 else n for n in sizes]
    return input, weight, bias, _Geometry(wide[0], wide[1], wide[2], groups)
