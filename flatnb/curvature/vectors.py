"""Arithmetic of whole-model vectors, one per row, in the operator's precision.

Norms and inner products that enter a result are taken in float64: in float32 a dot
    product over
millions of entries loses several digits (a norm over 11 million entries was off by
4e-4).
"""

from __future__ import annotations

import torch
from torch import Tensor

_COLUMNS = 2**18  # a float32 sum over more entries than this is continued in float64
_CACHED = 2**15  # columns that are converted to float64, or rotated, at a time


def norm(vector: Tensor) -> Tensor:
    """2-norm of a vector, accumulated in float64."""
    return torch.linalg.vector_norm(vector, dtype=torch.float64)


def gram(a: Tensor, b: Tensor) -> Tensor:
    """Inner products (len(a), len(b)) of rows, in float64, on the CPU."""
    width = _CACHED if a.device.type == "cpu" else 2**24
    total = torch.zeros(len(a), len(b), dtype=torch.float64, device=a.device)
    for left, right in zip(a.split(width, dim=1), b.split(width, dim=1), strict=True):
        total += left.double() @ right.double().mT
    return total.cpu()


def project_out(vectors: Tensor, basis: Tensor) -> Tensor:
    """Subtract from `vectors` (r, size), in place, their parts along the rows of
    `basis`.

    One sweep of classical Gram-Schmidt. Returns the coefficients (len(basis), r) in
    float64.
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


def rotate(coefficients: Tensor, rows: Tensor) -> None:
    """`combine`, written over the first r rows: no second set of them in memory."""
    turn = coefficients.to(rows.device, rows.dtype).mT
    for part in rows.split(_CACHED, dim=1):
        part[: len(turn)] = turn @ part


def rademacher(
    count: int, size: int, generator: torch.Generator, like: Tensor
) -> Tensor:
    """Independent signs (count, size), drawn on the CPU so that every device sees the same."""
    signs = torch.randint(0, 2, (count, size), generator=generator, dtype=torch.int8)
    return signs.to(like.device).to(like.dtype).mul_(2).sub_(1)
