"""Orthonormal bases of whole-model vectors: the arithmetic under every Lanczos process here.

Basis vectors are rows, stored in the operator's precision. Inner products and norms that enter a
result are taken in float64: in float32 a dot product over millions of entries loses several
digits (4e-4 was seen for a norm over 11 million), and Lanczos passes them on to its eigenvalues.
Sweeps that only restore orthogonality may run in float32: it is enough to keep the basis
orthogonal to half the digits (Simon 1984, "semiorthogonality").
"""

from __future__ import annotations

import torch
from torch import Tensor

_COLUMNS = 2**18  # a float32 sum over more entries than this is continued in float64
_CACHED = 2**15  # columns converted to float64, or rotated, at a time


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


def sweep(vectors: Tensor, basis: Tensor, known: Tensor | None = None) -> None:
    """Remove from `vectors` (r, size), in place, what lies in the span of the rows of `basis`.

    `known` (m, r) are the coefficients of the last m rows, where the caller has them exactly.
    """
    parts = zip(basis.split(_COLUMNS, dim=1), vectors.split(_COLUMNS, dim=1), strict=True)
    overlap = torch.stack([q @ w.mT for q, w in parts]).sum(0, dtype=torch.float64)
    if known is not None:
        overlap[len(overlap) - len(known) :] = known
    vectors.addmm_(overlap.to(basis.dtype).mT, basis, alpha=-1)


def factor(vectors: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Rows W = C Q with orthonormal rows Q; directions shorter than `floor` are left out.

    Returns C (len(W), r) in float64 on the CPU, and Q (r, size). A single row is overwritten.
    """
    if len(vectors) == 1:
        length = norm(vectors[0])
        if not length > floor:
            return torch.zeros(1, 0, dtype=torch.float64), vectors[:0]
        return length.reshape(1, 1).cpu(), vectors.div_(length.to(vectors.dtype))
    found, rest = vectors[:0], vectors
    while True:
        squares, rotation = torch.linalg.eigh(gram(rest, rest))
        # The Gram matrix tells lengths apart over half the digits only: the longest ones first.
        kept = squares > max(floor**2, 1e-10 * float(squares[-1]))
        basis = combine(rotation[:, kept] / squares[kept].sqrt(), rest)
        if len(basis):
            if len(found):
                sweep(basis, found)
            found = torch.cat([found, combine(polish(basis), basis)])
        if kept.all() or not kept.any():
            return gram(vectors, found), found
        rest = rest - combine(gram(found, rest), found)


def polish(rows: Tensor) -> Tensor:
    """Coefficients that make nearly orthonormal rows orthonormal, to go into `combine`."""
    return torch.linalg.inv(torch.linalg.cholesky(gram(rows, rows))).mT


def combine(coefficients: Tensor, rows: Tensor) -> Tensor:
    """coefficients (m, r) of rows (m, size) -> (r, size)."""
    return coefficients.to(rows.device, rows.dtype).mT @ rows


def rotate(coefficients: Tensor, rows: Tensor) -> None:
    """`combine`, written over the first r rows: no second set of them in memory."""
    turn = coefficients.to(rows.device, rows.dtype).mT
    for part in rows.split(_CACHED, dim=1):
        part[: len(turn)] = turn @ part


def rademacher(count: int, size: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """Independent signs (count, size), drawn on the CPU so that every device sees the same."""
    signs = torch.randint(0, 2, (count, size), generator=generator, dtype=torch.int8)
    return signs.to(like.device).to(like.dtype).mul_(2).sub_(1)
