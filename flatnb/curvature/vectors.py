"""Whole-model vectors: their norm, and random ones that every device sees alike."""

from __future__ import annotations

import torch
from torch import Tensor


def norm(vector: Tensor) -> Tensor:
    """2-norm in float64: in float32 one over 11 million entries was off by 4e-4."""
    return torch.linalg.vector_norm(vector, dtype=torch.float64)


def rademacher(
    shape: tuple[int, ...], generator: torch.Generator, like: Tensor
) -> Tensor:
    """Independent signs in the dtype of `like`, drawn on the CPU."""
    signs = torch.randint(0, 2, shape, generator=generator, dtype=torch.int8)
    return signs.to(like).mul_(2).sub_(1)


def gaussian(size: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """Normal entries (size,) in the dtype of `like`, drawn on the CPU."""
    draw = torch.randn(size, generator=generator, dtype=like.dtype)
    return draw.to(like.device)
