"""Augmentation of whole batches of images: random crop and horizontal flip.

Each is called as ``augment(x, generator)`` with x (n, channels, height, width) and a
generator on the CPU, and gives a new tensor of that shape on the device of x. Every
image has its own draws, which do not depend on the device.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class RandomCrop:
    """Reflect `pad` pixels at each side and crop back to size at a random place.

    As torchvision's with reflected padding, all (2 pad + 1)^2 places equally likely.

    >>> RandomCrop(4)(torch.rand(8, 3, 32, 32), torch.Generator()).shape
    torch.Size([8, 3, 32, 32])
    """

    pad: int

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        n, _, height, width = x.shape
        corners = torch.randint(2 * self.pad + 1, (2, n), generator=generator)
        rows, columns = corners.to(x.device)
        padded = F.pad(x, (self.pad,) * 4, mode="reflect")
        # A view, (n, channels, row, column, height, width), without a copy per place.
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        return windows[torch.arange(n, device=x.device), :, rows, columns]


@dataclass(frozen=True)
class RandomFlip:
    """Mirror each image left to right with probability 1/2.

    >>> x = torch.rand(8, 3, 4, 4)
    >>> y = RandomFlip()(x, torch.Generator())
    >>> bool(((y == x) | (y == x.flip(3))).all())
    True
    """

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        flip = torch.randint(2, (len(x),), generator=generator, dtype=torch.bool)
        return torch.where(flip.to(x.device)[:, None, None, None], x.flip(3), x)
