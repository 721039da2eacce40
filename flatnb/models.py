"""The nets of the papers, with torch's own initialisation or, for fine-tuning,
ImageNet's weights.

All give logits of shape (n, classes). Nets of the same arguments, made after the same
``torch.manual_seed``, start with the same parameters.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatnb._torchvision import load as load_torchvision

__all__ = ["mlp", "pretrained", "resnet18", "resnet34", "small_cnn"]

PRETRAINED = ("resnet18", "resnet34", "resnet50")


def mlp(
    inputs: int,
    width: int,
    hidden: int,
    classes: int,
    *,
    batchnorm: bool = True,
    dropout: float = 0.0,
) -> nn.Sequential:
    """A multilayer perceptron: `hidden` times Linear, BatchNorm, ReLU (and dropout),
    then Linear.

    With batchnorm the hidden Linear layers have no bias, which BatchNorm would subtract
    again. The flooding papers (Ishida et al., ICML 2020; Holland and Nakatani, NeurIPS
    2024) use width 500 and four hidden layers in the plane (the output layer is the
    fifth they count), the latter also width 1000 and one hidden layer on FashionMNIST.

    Args:
        inputs: entries of an example, of any shape: (n, ...) is flattened.
        width: units of each hidden layer.
        hidden: number of hidden layers; 0 is softmax regression.
        classes: number of logits.
        batchnorm: whether BatchNorm follows each hidden Linear layer.
        dropout: probability that a hidden unit is dropped, in [0, 1); 0 adds no layer.

    Raises:
        ValueError: an argument out of range.
    """
    _check(inputs=inputs, width=width, classes=classes)
    _check(least=0, hidden=hidden)
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout!r}; allowed: a probability in [0, 1)")
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(hidden):
        layers.append(nn.Linear(inputs, width, bias=not batchnorm))
        if batchnorm:
            layers.append(nn.BatchNorm1d(width))
        layers.append(nn.ReLU())
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, classes))


def small_cnn(channels: int, classes: int, *, width: int = 32) -> nn.Sequential:
    """A small convolutional net for images of any size from 8 x 8.

    Three blocks of 3 x 3 convolution, BatchNorm and ReLU, `width`, 2 `width` and 4
    `width` channels wide, the first two followed by 2 x 2 max-pooling; then the mean
    over the image, and Linear.

    Args:
        channels: of the images.
        classes: number of logits.
        width: channels of the first block.

    Raises:
        ValueError: an argument below 1.
    """
    _check(channels=channels, classes=classes, width=width)
    return nn.Sequential(
        *_convolved(channels, width),
        nn.MaxPool2d(2),
        *_convolved(width, 2 * width),
        nn.MaxPool2d(2),
        *_convolved(2 * width, 4 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, classes),
    )


def resnet18(classes: int, *, channels: int = 3, width: int = 64) -> nn.Module:
    """ResNet-18 for images of about 32 x 32: two basic blocks in each of four stages.

    Source: K. He et al., "Deep residual learning for image recognition", CVPR 2016,
        with the stem
    that is usual for small images: one 3 x 3 convolution of stride 1, and no
        max-pooling. (The
    SoftAD paper keeps the stem for 224 x 224, which shrinks 32 x 32 fourfold before any
    block.) Shortcuts that change shape are 1 x 1 convolutions with BatchNorm.

    Args:
        classes: number of logits.
        channels: of the images.
        width: channels of the first stage; each further stage doubles it. 64 is the
            paper's.

    Raises:
        ValueError: an argument below 1.
    """
    return _resnet((2, 2, 2, 2), classes, channels, width)


def resnet34(classes: int, *, channels: int = 3, width: int = 64) -> nn.Module:
    """ResNet-34 for images of about 32 x 32: stages of 3, 4, 6 and 3 basic blocks.

    Otherwise, arguments and errors included, as `resnet18`.
    """
    return _resnet((3, 4, 6, 3), classes, channels, width)


def pretrained(net: str, classes: int, *, size: int = 224) -> nn.Sequential:
    """torchvision's ResNet with its ImageNet weights and a new last layer, for
    fine-tuning.

    Three children: images brought to what the net was trained on (three channels, size
        x size
    pixels, bilinear), its body, Linear. Channels are to be standardised, as
    `flatnb.data.images` does. The weights, torchvision's IMAGENET1K_V1, are read from
    torch's hub folder ($TORCH_HOME, else ~/.cache/torch), and downloaded to it once if
    they are not there.

    Source: K. He et al., "Deep residual learning for image recognition", CVPR 2016.
        Zhang, Li and
    Ju fine-tune "resnet34" at 224 pixels with NSO.

    Args:
        net: "resnet18", "resnet34" or "resnet50".
        classes: number of logits.
        size: pixels a side; the net was trained on 224.

    Raises:
        ValueError: another net, or a number below 1.
        FileNotFoundError: weights that are neither there nor can be downloaded.
    """
    _check(classes=classes, size=size)
    if net not in PRETRAINED:
        raise ValueError(f"net={net!r}; allowed: {', '.join(PRETRAINED)}")
    zoo = load_torchvision().models
    body = zoo.get_model(net)
    try:
        weights = zoo.get_model_weights(net).IMAGENET1K_V1.get_state_dict(
            map_location="cpu", check_hash=True, weights_only=True
        )
    except Exception as error:  # no network, wrong checksum, full disk, half a file
        raise FileNotFoundError(
            f"the ImageNet weights of {net} are not in {torch.hub.get_dir()}/checkpoints, or not "
            f"whole ({' '.join(str(error).split())[:200]}). Connect to the network, having deleted "
            "what is there of them, or pretrain on other classes: flatnb.experiments.finetune"
        ) from None
    body.load_state_dict(weights)
    features = body.fc.in_features
    body.fc = nn.Identity()
    return nn.Sequential(_ImageNetSize(size), body, nn.Linear(features, classes))


class _ImageNetSize(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        x = x.expand(-1, 3, -1, -1)
        size = (self.size, self.size)
        return F.interpolate(
            x, size, mode="bilinear", align_corners=False, antialias=True
        )


def _resnet(
    stages: tuple[int, ...], classes: int, channels: int, width: int
) -> nn.Sequential:
    _check(channels=channels, classes=classes, width=width)
    blocks: list[nn.Module] = []
    wide = width
    for stage, count in enumerate(stages):
        for block in range(count):
            stride = 2 if stage > 0 and block == 0 else 1
            blocks.append(_BasicBlock(wide, width * 2**stage, stride))
            wide = width * 2**stage
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, classes))
    return nn.Sequential(*_convolved(channels, width), *blocks, *head)


class _BasicBlock(nn.Module):
    """ReLU(shortcut(x) + two 3 x 3 convolutions with BatchNorm, a ReLU between them)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolved(inputs, outputs, stride),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.body(x))


def _convolved(inputs: int, outputs: int, stride: int = 1) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def _check(least: int = 1, **counts: int) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}={value!r}; allowed: an integer >= {least}")
