"""Convolution, BatchNorm, ReLU, max-pooling, so that their gradients are cheap to differentiate.

A convolution is linear in its input and in its weight, so each derivative of its gradient is again
a convolution, or one of the two gradients of one, for which there are fast kernels. PyTorch
computes the derivative in the weight as a convolution of transposed tensors, with whole images for
kernels, and that in the input even where nobody needs it, as for a net's first layer.

So is BatchNorm in eval mode linear in its input and in its scale; PyTorch's second derivative is
written for train mode as well, and takes three times as many passes over the activations.

The gradients of ReLU and max-pooling do not change with the input, as long as the same entries are
passed on. Where PyTorch adds zeros for that, nothing is added here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class _Geometry(NamedTuple):
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def arguments(self) -> tuple[Any, ...]:
        unused = (0,) * len(self.stride)  # the output padding of a transposed convolution
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
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, how: _Geometry, curved: bool
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how, ctx.curved = how, curved
        return how.apply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        if not torch.is_grad_enabled():  # the last derivative, perhaps of many vectors at once
            return *ctx.how.gradient(g, x, weight, wanted), None, None
        if not ctx.curved:
            x, weight = x.detach(), weight.detach()
        return *_ConvolutionGradient.apply(g, x, weight, ctx.how, wanted), None, None


class _ConvolutionGradient(torch.autograd.Function):
    """With G the gradient of <g, x * w>: <v, G> is linear in each of g, x and w."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, weight: Tensor, how: _Geometry, wanted: Any) -> Any:
        ctx.save_for_backward(g, x, weight)
        ctx.how = how
        ctx.set_materialize_grads(False)
        return how.gradient(g, x, weight, wanted)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, vx: Tensor | None, vw: Tensor | None, vb: Tensor | None) -> Any:
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


class _Affine(torch.autograd.Function):
    """x * scale + shift, channel by channel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, curved: bool) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.curved = curved
        zeros, ones = torch.zeros_like(scale), torch.ones_like(scale)
        return torch.batch_norm(x, scale, shift, zeros, ones, False, 0.0, 0.0, False)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, scale = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        if not torch.is_grad_enabled():
            return *_affine_gradient(g, x, scale, wanted), None
        if not ctx.curved:
            x, scale = x.detach(), scale.detach()
        return *_AffineGradient.apply(g, x, scale, wanted), None


class _AffineGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, scale: Tensor, wanted: Any) -> Any:
        ctx.save_for_backward(g, x, scale)
        ctx.set_materialize_grads(False)
        return _affine_gradient(g, x, scale, wanted)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, vx: Tensor | None, vs: Tensor | None, vt: Tensor | None) -> Any:
        g, x, scale = ctx.saved_tensors
        for_g, for_x, for_s = ctx.needs_input_grad[:3]
        wide = (-1, *[1] * (x.dim() - 2))
        dg = dx = ds = None
        if for_g:
            dg = torch.zeros_like(g) if vt is None else vt.view(wide).expand_as(g)
            dg = dg if vx is None else torch.addcmul(dg, vx, scale.view(wide))
            dg = dg if vs is None else torch.addcmul(dg, x, vs.view(wide))
        if for_x and vs is not None:
            dx = g * vs.view(wide)
        if for_s and vx is not None:
            ds = _affine_gradient(g, vx, scale, (False, True, False))[1]
        return dg, dx, ds, None


def _affine_gradient(g: Tensor, x: Tensor, scale: Tensor, wanted: Sequence[bool]) -> Any:
    zeros, ones = torch.zeros_like(scale), torch.ones_like(scale)
    return torch.ops.aten.native_batch_norm_backward(
        g, x, scale, zeros, ones, None, None, False, 0.0, list(wanted)
    )


class _ReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.relu(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return _Masked.apply(g, y) if torch.is_grad_enabled() else _masked(g, y)


class _Masked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(y)
        return _masked(g, y)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, v: Tensor) -> Any:
        return _masked(v, *ctx.saved_tensors), None


def _masked(g: Tensor, y: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward(g, y, 0)


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *how: Any) -> Tensor:
        y, at = torch.ops.aten.max_pool2d_with_indices(x, *how)
        ctx.save_for_backward(x, at)
        ctx.how = how
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, at = ctx.saved_tensors
        scattered = _Scattered.apply if torch.is_grad_enabled() else _scattered
        return scattered(g, x, at, *ctx.how), *[None] * len(ctx.how)


class _Scattered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, at: Tensor, *how: Any) -> Tensor:
        ctx.save_for_backward(at)
        ctx.others = 2 + len(how)
        return _scattered(g, x, at, *how)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, v: Tensor) -> Any:
        (at,) = ctx.saved_tensors
        picked = v.flatten(-2).gather(-1, at.flatten(-2)).view(at.shape)
        return picked, *[None] * ctx.others


def _scattered(g: Tensor, x: Tensor, at: Tensor, *how: Any) -> Tensor:
    return torch.ops.aten.max_pool2d_with_indices_backward(g, x, *how, at)


class SecondOrder(TorchFunctionMode):
    """Inside this context the functions of the layers above are replaced; values are as without it.

    They are `F.conv1d` to `conv3d`, `F.batch_norm` in eval mode, `F.relu` and `F.max_pool2d`.

    curved: False if their gradients will be differentiated by what they are multiplied with only,
        as in a product with a Jacobian.
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
        elif func is torch.relu or (func is F.relu and not _in_place(*args, **kwargs)):
            return _ReLU.apply(kwargs.get("input", args[0] if args else None))
        elif func is F.batch_norm:
            affine = _affine(*args, **kwargs)
            if affine is not None:
                return _Affine.apply(*affine, self.curved)
        elif func is torch.max_pool2d:
            return _MaxPool.apply(*_max_pool(*args, **kwargs))
        return func(*args, **kwargs)


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
    wide = [(n,) * dims if isinstance(n, int) else tuple(n) for n in (stride, padding, dilation)]
    return input, weight, bias, _Geometry(wide[0], wide[1], wide[2], groups)


def _affine(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Input, scale and shift; None where the statistics are the batch's."""
    if training or running_mean is None or running_var is None:
        return None
    scale = (running_var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale
    return input, scale, shift if bias is None else shift + bias


def _in_place(input: Tensor, inplace: bool = False) -> bool:
    return inplace


def _max_pool(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> tuple[Any, ...]:
    sizes = kernel_size, stride or kernel_size, padding, dilation
    pairs = [[n, n] if isinstance(n, int) else list(n) for n in sizes]
    return input, *pairs, ceil_mode
