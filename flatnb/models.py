"""The nets of the papers, with torch's own initialization.

All give logits of shape (n, classes). Nets of the same arguments, made after the same
`torch.manual_seed`, start with the same parameters.
"""

from torch import nn

from flatnb import _checks
from flatnb._torchvision import load as load_torchvision


def mlp(
    inputs: int, width: int, hidden: int, classes: int, *, batchnorm: bool = True
) -> nn.Sequential:
    """A perceptron: `hidden` times Linear, BatchNorm and ReLU, then Linear.

    Flattens each example to `inputs` entries. With BatchNorm the hidden layers have no
    bias, which it would subtract again. The flooding papers (Ishida et al., ICML 2020;
    Holland and Nakatani, NeurIPS 2024) use width 500 and `hidden=4` in the plane.

    >>> mlp(2, 5, 1, 3)[-1]
    Linear(in_features=5, out_features=3, bias=True)
    """
    _checks.integer("hidden", hidden, 0)
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(hidden):
        layers.append(nn.Linear(inputs, width, bias=not batchnorm))
        if batchnorm:
            layers.append(nn.BatchNorm1d(width))
        layers.append(nn.ReLU())
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, classes))


def small_cnn(channels: int, classes: int, *, width: int = 32) -> nn.Sequential:
    """A small convolutional net for images of any size from 8 x 8.

    Three blocks of 3 x 3 convolution, BatchNorm and ReLU, with `width`, 2 and 4 `width`
    channels, the first two max-pooled 2 x 2; then the mean over the image, and Linear.

    >>> small_cnn(1, 10, width=4)[-1]
    Linear(in_features=16, out_features=10, bias=True)
    """
    return nn.Sequential(
        *_convolution(channels, width),
        nn.MaxPool2d(2),
        *_convolution(width, 2 * width),
        nn.MaxPool2d(2),
        *_convolution(2 * width, 4 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, classes),
    )


def resnet18(classes: int, *, channels: int = 3, width: int = 64) -> nn.Sequential:
    """ResNet-18 for images of about 32 x 32: two basic blocks in each of four stages.

    torchvision's blocks behind the stem that is usual for small images, one 3 x 3
    convolution of stride 1 without max-pooling. (The SoftAD paper keeps that for 224 x
    224, which shrinks 32 x 32 fourfold.) The first stage has `width` channels, each
    further one twice as many.

    Source: K. He et al., "Deep residual learning for image recognition", CVPR 2016.

    >>> resnet18(10, width=2)[-1]
    Linear(in_features=16, out_features=10, bias=True)
    """
    return _resnet((2, 2, 2, 2), classes, channels, width)


def resnet34(classes: int, *, channels: int = 3, width: int = 64) -> nn.Sequential:
    """ResNet-34: stages of 3, 4, 6 and 3 basic blocks; otherwise as `resnet18`.

    >>> resnet34(10, width=1)[-1]
    Linear(in_features=8, out_features=10, bias=True)
    """
    return _resnet((3, 4, 6, 3), classes, channels, width)


def _resnet(
    stages: tuple[int, ...], classes: int, channels: int, width: int
) -> nn.Sequential:
    make_block = load_torchvision().models.resnet.BasicBlock
    layers: list[nn.Module] = []
    inputs = width
    for stage, blocks in enumerate(stages):
        outputs = width * 2**stage
        for _ in range(blocks):
            stride = outputs // inputs  # 2 in the first block of a further stage
            block = make_block(inputs, outputs, stride)
            if stride > 1:
                shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
                block.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))
            layers.append(block)
            inputs = outputs
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))
    # The stem draws its weights last, which recorded runs depend on.
    return nn.Sequential(*_convolution(channels, width), *layers, *head)


def _convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU()
