"""Augmentation of whole batches of images: random crop, horizontal flip, cutout.

Each is called as ``augment(x, generator)`` with x (n, channels, height, width) and a
generator on the CPU, and gives a new tensor of that shape on the device of x. All
images of a batch are treated at once, each by draws of its own; the draws do not depend
on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from flatnb._checks import function, instance, integer, shown

__all__ = ["Compose", "Cutout", "RandomCrop", "RandomFlip"]

_IMAGES = "a tensor of images (n, channels, height, width)"


@dataclass(frozen=True)
class RandomCrop:
    """Pad each side by `pad` pixels and crop back to the size before, at a random
    place.

    All (2 pad + 1)^2 places are equally likely. The distribution is that of
    ``torchvision.transforms.RandomCrop(size, padding=pad, padding_mode=mode)``.

    Args:
        pad: pixels, >= 1, and for "reflect" less than height and width.
        mode: "reflect" (without repeating the border) or "constant" (zeros: the mean,
            where images are normalised).

    Raises:
        ValueError: an option outside these, or images too small for it.
    """

    pad: int
    mode: Literal["reflect", "constant"] = "reflect"

    def __post_init__(self) -> None:
        integer("pad", self.pad)
        if not isinstance(self.mode, str) or self.mode not in ("reflect", "constant"):
            raise ValueError(f"mode={shown(self.mode)}; allowed: 'reflect', 'constant'")

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        n, _, height, width = _shape(x)
        if self.mode == "reflect" and self.pad >= min(height, width):
            raise ValueError(
                f"pad={self.pad} with images of {height} x {width}; allowed with mode='reflect': "
                "less than both sides"
            )
        top, left = torch.randint(2 * self.pad + 1, (2, n), generator=generator).to(
            x.device
        )
        padded = F.pad(x, (self.pad,) * 4, mode=self.mode)
        windows = padded.unfold(2, height, 1).unfold(
            3, width, 1
        )  # a view: (n, c, top, left, h, w)
        return windows[torch.arange(n, device=x.device), :, top, left]


@dataclass(frozen=True)
class RandomFlip:
    """Mirror each image left to right with probability 1/2."""

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        flip = torch.randint(2, (_shape(x)[0],), generator=generator, dtype=torch.bool)
        which = (
            flip.nonzero().flatten().to(x.device)
        )  # found on the CPU: no GPU has to wait
        return x.index_copy(0, which, x.index_select(0, which).flip(3))


@dataclass(frozen=True)
class Cutout:
    """Set a square of each image to zero (the mean, where images are normalised).

    The square's centre is equally likely on every pixel; what lies outside the image is
    cut off.
    Source: T. DeVries and G. W. Taylor, "Improved regularization of convolutional
        neural networks
    with Cutout", 2017.

    Args:
        size: the square's side in pixels, >= 1. A square of even side reaches one pixel
            further up and left of its centre than down and right.

    Raises:
        ValueError: a size below 1.
    """

    size: int

    def __post_init__(self) -> None:
        integer("size", self.size)

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        n, _, height, width = _shape(x)
        rows, columns = (
            self._covered(torch.randint(side, (n, 1), generator=generator), side).to(
                x.device
            )
            for side in (height, width)
        )
        return torch.where((rows[:, :, None] & columns[:, None, :])[:, None], 0.0, x)

    def _covered(self, centre: Tensor, side: int) -> Tensor:
        """Which of `side` rows or columns the square covers, (n, side)."""
        first = centre - self.size // 2
        at = torch.arange(side)
        return (at >= first) & (at < first + self.size)


class Compose:
    """Several augmentations, one after the other: ``Compose(RandomCrop(4), RandomFlip())``."""

    def __init__(self, *steps: Callable[[Tensor, torch.Generator], Tensor]) -> None:
        for step in steps:
            function("steps", step, "functions (x, generator) -> x")
        self.steps = steps

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        for step in self.steps:
            x = step(x, generator)
        return x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Compose) and self.steps == other.steps

    def __hash__(self) -> int:
        return hash(self.steps)

    def __repr__(self) -> str:
        return f"Compose({', '.join(map(repr, self.steps))})"


def _shape(x: Tensor) -> tuple[int, int, int, int]:
    if instance("x", x, Tensor, _IMAGES).dim() != 4:
        raise ValueError(f"x has images of shape {tuple(x.shape)}; allowed: {_IMAGES}")
    n, channels, height, width = x.shape
    return n, channels, height, width
