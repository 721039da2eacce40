"""Random vectors, drawn on the CPU, so that every device sees the same."""

from __future__ import annotations

import torch
from torch import Tensor


def rademacher(
    shape: tuple[int, ...], generator: torch.Generator, like: Tensor
) -> Tensor:
    """Independent signs in the dtype of `like`."""
    signs = torch.randint(0, 2, shape, generator=generator, dtype=torch.int8)
    return signs.to(like).mul_(2).sub_(1)


def gaussian(size: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """Normal entries (size,) in the dtype of `like`."""
    draw = torch.randn(size, generator=generator, dtype=like.dtype)
    return draw.to(like.device)
