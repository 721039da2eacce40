"""Random symmetric matrices with the spectra that break eigenvalue code, as
operators.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


class Dense:
    """A symmetric matrix as an operator."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        self.size, self.dtype, self.device = len(matrix), matrix.dtype, matrix.device
        self.products = 0

    def rows(self, vectors: Tensor) -> Tensor:
        self.products += len(vectors)
        return vectors @ self.matrix


class Diagonal:
    """A diagonal matrix, which may be large, as an operator."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.size, self.dtype, self.device = len(values), values.dtype, values.device
        self.products = 0

    def rows(self, vectors: Tensor) -> Tensor:
        self.products += len(vectors)
        return vectors * self.values


def normal(n: int, draw: random.Random) -> Tensor:
    return torch.randn(n, dtype=torch.float64)


def repeated(n: int, draw: random.Random) -> Tensor:
    """Each value several times."""
    copies = draw.randint(2, 6)
    return torch.randn(-(-n // copies), dtype=torch.float64).repeat_interleave(copies)[
        :n
    ]


def clustered(n: int, draw: random.Random) -> Tensor:
    """Groups of values that differ by a width between nothing and much."""
    width = 10.0 ** draw.uniform(-16, -1)
    return repeated(n, draw) + width * torch.randn(n, dtype=torch.float64)


def projection(n: int, draw: random.Random) -> Tensor:
    """Zeros and ones."""
    return (torch.arange(n) < draw.randint(0, n)).double()


def outliers(n: int, draw: random.Random) -> Tensor:
    """A bulk near zero and a few large values, as of a trained net."""
    values = 10.0 ** draw.uniform(-8, -1) * torch.randn(n, dtype=torch.float64)
    count = draw.randint(1, min(n, 12))
    values[:count] = 10 * torch.rand(count, dtype=torch.float64)
    return values


def low_rank(n: int, draw: random.Random) -> Tensor:
    values = torch.zeros(n, dtype=torch.float64)
    rank = draw.randint(0, min(n, 20))
    values[:rank] = torch.randn(rank, dtype=torch.float64)
    return values


def decaying(n: int, draw: random.Random) -> Tensor:
    return torch.linspace(0, -draw.uniform(1, 16), n, dtype=torch.float64).exp()


def even(n: int, draw: random.Random) -> Tensor:
    return torch.linspace(-draw.random(), 1, n, dtype=torch.float64)


def negative(n: int, draw: random.Random) -> Tensor:
    return -torch.rand(n, dtype=torch.float64) - draw.choice([0, 1])


SPECTRA: list[Callable[[int, random.Random], Tensor]] = [
    normal,
    repeated,
    clustered,
    projection,
    outliers,
    low_rank,
    decaying,
    even,
    negative,
]


@dataclass(repr=False)
class Drawn:
    """A matrix, and what is asked of it; everything follows from the seed."""

    seed: int
    most: int  # largest dimension

    def __post_init__(self) -> None:
        draw = random.Random(self.seed)
        torch.manual_seed(self.seed)
        low = draw.choice([1, 2, 20])
        n = int(low * (self.most / low) ** draw.random())
        spectrum = draw.choice(SPECTRA)
        values = 10.0 ** draw.choice([-30, -6, 0, 0, 0, 6, 30]) * spectrum(n, draw)
        dtype = draw.choice([torch.float32, torch.float64])
        if draw.random() < 0.2:  # the coordinates are eigenvectors
            matrix = torch.diag(values[torch.randperm(n)])
        else:
            basis = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))[0]
            matrix = (basis * values) @ basis.mT
        self.matrix = ((matrix + matrix.mT) / 2).to(dtype)
        self.spectrum = spectrum.__name__
        self.exact = torch.linalg.eigvalsh(self.matrix.double()).flip(0)
        self.k = draw.randint(1, min(n, draw.choice([1, 3, 10])))
        self.as_large = draw.choice([False, True])  # without a look for copies
        self.start = draw.randrange(10**6)

    def __repr__(self) -> str:
        return (
            f"{self.spectrum}, size {len(self.matrix)}, {self.matrix.dtype}, k={self.k}, "
            f"as large: {self.as_large}"
        )
