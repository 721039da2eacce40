"""The Lanczos process: a symmetric operator in an orthonormal basis of a Krylov space.

Of m orthonormal rows Q, the first p have been multiplied. To rounding,

    H Q_p' = Q' T,        Q (m, size),  Q_p its first p rows,  T (m, p)

so that an eigenpair (theta, s) of the first p rows of T gives the Ritz pair theta,
v = Q_p' s. Its residual |H v - theta v| = |(the last m - p rows of T) s| takes no
product, and an eigenvalue of H lies within it of theta (Parlett 1998, "The symmetric
eigenvalue problem", section 4.5). With r start vectors this is band Lanczos (Ruhe
1979), which sees r copies of a multiple eigenvalue.

Each product is orthogonalized against the whole basis, and again while that shortens
it ("twice is enough", Parlett 1998, section 6.9): after one sweep the loss of
orthogonality grows from step to step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from flatnb.curvature.vectors import combine, norm, project_out


class Operator(Protocol):
    """What the process needs of a symmetric operator: `HessianOperator` has it."""

    size: int
    dtype: torch.dtype
    device: torch.device
    products: int

    def rows(self, vectors: Tensor) -> Tensor:
        """Products with the rows of (k, size), as rows."""


class Ritz(NamedTuple):
    """Ritz pairs: values (r,), coordinates (p, r) in columns, residuals (r,)."""

    values: Tensor
    coordinates: Tensor
    residuals: Tensor

    def select(self, places: Sequence[int]) -> Ritz:
        """The pairs at these places."""
        order = list(places)
        return Ritz(
            self.values[order], self.coordinates[:, order], self.residuals[order]
        )


class Lanczos:
    """Basis, projected matrix, and the vectors that are to be multiplied next.

    Attributes:
        basis: (capacity, operator.size), of which the first `size` rows are filled.
        projected: (capacity, capacity) in float64: T, and its mirror image.
        size: m above.
        multiplied: p above.
    """

    def __init__(self, operator: Operator, capacity: int) -> None:
        self.operator = operator
        self.basis = torch.empty(
            capacity, operator.size, dtype=operator.dtype, device=operator.device
        )
        self.projected = torch.zeros(capacity, capacity, dtype=torch.float64)
        self.size = self.multiplied = 0

    def add(self, vector: Tensor) -> tuple[Tensor, float]:
        """Append the direction of `vector` that is new to the basis, overwriting it.

        Returns its coefficients (size,) along the basis so far, and the length of the
        new part: 0 if that is rounding only, and nothing was appended.
        """
        row, basis = vector[None], self.basis[: self.size]
        coefficients = torch.zeros(self.size, dtype=torch.float64)
        length = _length(row)
        rounding = 10 * torch.finfo(row.dtype).eps * length
        shrinks = self.size > 0
        while shrinks and length > rounding:
            coefficients += project_out(row, basis)[:, 0]
            previous, length = length, _length(row)
            shrinks = length < previous / 2
        if length <= rounding or self.size == self.operator.size:
            return coefficients, 0.0
        self.basis[self.size] = row[0] / length
        self.size += 1
        return coefficients, length

    def add_random(self, generator: torch.Generator) -> None:
        """Append a random direction, drawn on the CPU: the same on every device."""
        size = self.size
        while self.size == size < self.operator.size:
            draw = torch.randn(self.operator.size, generator=generator)
            self.add(draw.to(self.basis.device, self.basis.dtype))

    def expand(self, count: int = 1) -> None:
        """Multiply the next vectors, `count` at most."""
        first, last = self.multiplied, min(self.multiplied + count, self.size)
        products = self.operator.rows(self.basis[first:last])
        for j, product in zip(range(first, last), products, strict=True):
            coefficients, length = self.add(product)
            old = len(coefficients)
            self.projected[:old, j] = self.projected[j, :old] = coefficients
            if length:
                self.projected[old, j] = self.projected[j, old] = length
        self.multiplied = last

    def ritz(self) -> Ritz:
        """All Ritz pairs, in ascending order."""
        p = self.multiplied
        values, coordinates = torch.linalg.eigh(self.projected[:p, :p])
        coupling = self.projected[p : self.size, :p]
        return Ritz(values, coordinates, (coupling @ coordinates).norm(dim=0))

    def vectors(self, coordinates: Tensor) -> Tensor:
        """The Ritz vectors of `coordinates` (p, r), as rows (r, operator.size)."""
        return combine(coordinates, self.basis[: self.multiplied])

    def restart(self, ritz: Ritz) -> None:
        """Shrink the basis to these Ritz vectors and those not yet multiplied.

        The relation at the head of this file goes on to hold: a thick restart (Wu and
        Simon 2000).
        """
        p, m, coordinates = self.multiplied, self.size, ritz.coordinates
        coupling = self.projected[p:m, :p] @ coordinates
        rows = torch.cat([self.vectors(coordinates), self.basis[p:m]])
        self.multiplied = len(ritz.values)
        self.size = self.multiplied + m - p
        self.basis[: self.size] = rows
        self.projected.zero_()
        self.projected.diagonal()[: self.multiplied] = ritz.values
        self.projected[self.multiplied : self.size, : self.multiplied] = coupling
        self.projected[: self.multiplied, self.multiplied : self.size] = coupling.mT


def _length(row: Tensor) -> float:
    length = float(norm(row))
    if not length < float("inf"):
        raise ValueError(
            f"a product with the operator has the norm {length}; look for overflow in "
            "the model's second derivatives, or measure in float64"
        )
    return length
