"""Arithmetic of whole-model vectors, one per row, in the operator's precision.

Norms and inner products that enter a result are taken in float64: in float32 a norm
over 11 million entries was off by 4e-4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_COLUMNS = 2**18  # a float32 sum over more entries than this is continued in float64


def norm(vector: Tensor) -> Tensor:
    """2-norm of a vector, accumulated in float64."""
    return torch.linalg.vector_norm(vector, dtype=torch.float64)


def member_norm(tensors: Sequence[Tensor]) -> Tensor:
    """2-norm of each member's vector, members on the leading axis, in float64."""
    parts = [
        torch.linalg.vector_norm(t.flatten(1), dim=1, dtype=torch.float64)
        for t in tensors
    ]
    return torch.stack(parts).norm(dim=0)


def project_out(vectors: Tensor, basis: Tensor) -> Tensor:
    """One sweep of classical Gram-Schmidt: `vectors` (r, size) minus their parts along
    the rows of `basis`, in place. Returns the coefficients (len(basis), r) in float64.
    """
    pieces = zip(
        basis.split(_COLUMNS, dim=1), vectors.split(_COLUMNS, dim=1), strict=True
    )
    overlaps = torch.stack([q @ w.mT for q, w in pieces]).sum(0, dtype=torch.float64)
    vectors.addmm_(overlaps.to(basis.dtype).mT, basis, alpha=-1)
    return overlaps.cpu()


def combine(coefficients: Tensor, rows: Tensor) -> Tensor:
    """coefficients (m, r) of rows (m, size) -> (r, size)."""
    return coefficients.to(rows.device, rows.dtype).mT @ rows


def rademacher(
    shape: tuple[int, ...], generator: torch.Generator, like: Tensor
) -> Tensor:
    """Independent signs, drawn on the CPU so that every device sees the same."""
    signs = torch.randint(0, 2, shape, generator=generator, dtype=torch.int8)
    return signs.to(like.device).to(like.dtype).mul_(2).sub_(1)


def gaussian(size: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """Normal entries (size,) in the dtype of `like`, drawn on the CPU as above."""
    draw = torch.randn(size, generator=generator, dtype=like.dtype)
    return draw.to(like.device)
