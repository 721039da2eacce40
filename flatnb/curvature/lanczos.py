"""The Lanczos process: a symmetric operator in an orthonormal basis of a Krylov space.

Of m orthonormal rows Q, the first p have been multiplied. To rounding,

    H Q_p' = Q' T,        Q (m, size),  Q_p its first p rows,  T (m, p)

An eigenpair (theta, s) of the first p rows of T gives the Ritz pair theta, v = Q_p' s.
Its residual |H v - theta v| = |(last m - p rows of T) s| takes no product, and an
eigenvalue of H lies within it of theta (Parlett 1998, "The symmetric eigenvalue
problem", 4.5). r start vectors (band Lanczos, Ruhe 1979) see r copies of an eigenvalue.
"""

import torch
from torch import Tensor

from flatnb._tensors import l2_norm
from flatnb.curvature.operator import HessianOperator

_ROWS = 32  # by which the basis grows
_COLUMNS = 2**18  # a float32 sum over more entries than this is continued in float64


class Lanczos:
    """`basis` (capacity, operator.size), of which `size` rows, m above, are filled, and
    the p `columns` of T in float64, each as far as its last entry.
    """

    def __init__(self, operator: HessianOperator) -> None:
        self.operator = operator
        self.basis = torch.empty(
            0, operator.size, dtype=operator.dtype, device=operator.device
        )
        self.size = 0
        self.columns: list[Tensor] = []

    def add(self, vector: Tensor) -> Tensor:
        """Append the direction of `vector` that is new to the basis, overwriting it.

        Returns the coefficients of `vector` along the basis, the new row included.
        Nothing is appended where only rounding is new.
        """
        row, basis = vector[None], self.basis[: self.size]
        coefficients = torch.zeros(self.size, dtype=torch.float64)
        length = _length(row)
        rounding = 10 * torch.finfo(row.dtype).eps * length
        # "Twice is enough" (Parlett 1998, section 6.9), and after one sweep the loss of
        # orthogonality grows from step to step.
        shrinks = self.size > 0
        while shrinks and length > rounding:
            coefficients += _project_out(row, basis)
            previous = length
            length = _length(row)
            shrinks = length < previous / 2
        if length <= rounding or self.size == self.operator.size:
            return coefficients
        if self.size == len(self.basis):
            rows = self.basis.new_empty(_ROWS, self.operator.size)
            self.basis = torch.cat([self.basis, rows])
        self.basis[self.size] = row[0] / length
        self.size += 1
        return torch.cat([coefficients, coefficients.new_tensor([length])])

    def add_random(self, generator: torch.Generator) -> None:
        """Append a random direction, drawn on the CPU: the same on every device."""
        size = self.size
        while self.size == size < self.operator.size:
            draw = torch.randn(self.operator.size, generator=generator)
            self.add(draw.to(self.basis))

    def expand(self, count: int = 1) -> None:
        """Multiply the next vectors, `count` at most."""
        waiting = self.basis[len(self.columns) : self.size]
        for product in self.operator.rows(waiting[:count]):
            self.columns.append(self.add(product))

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values (p,), descending, their coordinates (p, p) in columns, residuals."""
        p = len(self.columns)
        transposed = torch.zeros(p, self.size, dtype=torch.float64)
        for row, column in zip(transposed, self.columns, strict=True):
            row[: len(column)] = column
        # Reads the lower triangle: of two coefficients the one that was measured later.
        values, coordinates = torch.linalg.eigh(transposed[:, :p])
        residuals = (transposed[:, p:].mT @ coordinates).norm(dim=0)
        return values.flip(0), coordinates.flip(1), residuals.flip(0)


def _project_out(row: Tensor, basis: Tensor) -> Tensor:
    """One Gram-Schmidt sweep of `row` (1, size), in place; returns the coefficients."""
    pieces = zip(basis.split(_COLUMNS, dim=1), row.split(_COLUMNS, dim=1), strict=True)
    overlaps = torch.stack([q @ w.mT for q, w in pieces]).sum(0, dtype=torch.float64)
    row.addmm_(overlaps.to(basis.dtype).mT, basis, alpha=-1)
    return overlaps[:, 0].cpu()


def _length(row: Tensor) -> float:
    length = float(l2_norm([row]))
    if not length < float("inf"):
        raise ValueError(
            f"a product has the norm {length}; look for overflow in second derivatives"
        )
    return length
