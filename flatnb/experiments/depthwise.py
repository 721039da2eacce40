"""Depthwise convolutions whose second derivative is fast.

PyTorch differentiates a grouped convolution twice one group after another, which takes
a product with the Hessian of EfficientNet-Lite0 9,138 convolutions. Here the gradient
is made of what it differentiates as a whole, once more:

    y = conv(x, w),   dL/dx = conv_transpose(g, w),   dL/dw_ij = sum g * shift_ij(x)
"""

import copy
import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def twice_differentiable(net: nn.Module) -> nn.Module:
    """A copy of the net, of the same outputs and derivatives. Its depthwise convolutions
    are to be square, with one output per channel and no bias or dilation.

    >>> net = nn.Conv2d(2, 2, 3, padding=1, groups=2, bias=False)
    >>> x = torch.randn(1, 2, 4, 4)
    >>> torch.equal(twice_differentiable(net)(x), net(x))
    True
    """
    net = copy.deepcopy(net)
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            module.__class__ = _Depthwise
    return net


class _Depthwise(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        padding = self.padding[0]
        return _Convolution.apply(x, self.weight, self.stride[0], padding)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Any:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, None, stride, padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, slope: Any) -> Any:
        (x, weight), stride, padding = ctx.saved_tensors, ctx.stride, ctx.padding
        kernel = weight.shape[-1]
        # Rows and columns at the end that no window reaches.
        rest = [(side + 2 * padding - kernel) % stride for side in x.shape[2:]]
        to_x = F.conv_transpose2d(
            slope, weight, None, stride, padding, rest, groups=len(weight)
        )
        x = F.pad(x, [padding] * 4)
        height, width = [(side - 1) * stride + 1 for side in slope.shape[2:]]
        to_weight = [
            (slope * x[:, :, i : i + height : stride, j : j + width : stride]).sum(
                (0, 2, 3)
            )
            for i, j in itertools.product(range(kernel), repeat=2)
        ]
        return to_x, torch.stack(to_weight, 1).view_as(weight), None, None
