"""Extreme eigenvalues of an operator by block Lanczos with full reorthogonalisation.

Lanczos builds an orthonormal basis Q of the Krylov space of a start vector, in which the operator
is the small matrix T = Q' H Q. The eigenpairs (theta, s) of T give Ritz pairs (theta, v = Q s)
with the residual |H v - theta v| = |C' s_last|, where C couples the newest basis vectors to the
next ones, so that it costs nothing. An eigenvalue lies within the residual of theta (Parlett 1998,
"The symmetric eigenvalue problem", section 4.5). Ritz vectors are not coupled to each other but
only to what lies outside the basis, so that to first order the error is residual^2 / gap, with gap
the distance to the spectrum outside (Mathias 1998, "Quadratic residual bounds for the Hermitian
eigenvalue problem"), for which the nearest Ritz value that is not wanted stands in. When the memory
for Q is used up, the process is restarted with the wanted Ritz vectors and some more (thick
restart, Wu and Simon 2000).
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from flatnb.curvature.krylov import combine, factor, gram, polish, rotate, sweep
from flatnb.curvature.operator import HessianOperator
from flatnb.curvature.result import Progress, ProgressCallback, Result

_SMALL = 1000  # up to this dimension products are so cheap that multiplicities are looked for


@dataclass(frozen=True, kw_only=True, repr=False)
class Eigenpairs(Result):
    """Eigenvalues in descending order, with their vectors.

    Attributes:
        values: (n,) in float64.
        vectors: (size, n), orthonormal columns in the operator's precision.
        residuals: (n,) norms |H v - theta v| from the Lanczos recurrence, up to the rounding of a
            product.
        errors: (n,) estimates min(residual, residual^2 / gap) of the eigenvalues' errors, gap
            being the distance to the nearest Ritz value that was not asked for.
        converged: Whether all errors are within the tolerance.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    errors: Tensor
    converged: bool

    def summary(self) -> str:
        shown = ", ".join(f"{value:.6g}" for value in self.values[:6].tolist())
        more = ", …" if len(self.values) > 6 else ""
        state = "" if self.converged else ", NOT CONVERGED"
        block, most = self.settings["block"], len(self.values)
        note = f", copies beyond {block} not looked for" if block < most else ""
        return f"[{shown}{more}], largest residual {self.residuals.max():.1e}{note}{state}"


def top_eigenvalues(
    operator: HessianOperator,
    k: int = 1,
    *,
    smallest: int = 0,
    tol: float | None = None,
    block: int | None = None,
    max_products: int = 2000,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> Eigenpairs:
    """The k largest eigenvalues (algebraically), and the `smallest` lowest ones.

    Stops when the error estimate of each wanted eigenvalue is below `tol` times its size. Cost: a
    few products an eigenvalue (20 to 30 for the top five of a trained net), plus the basis: memory
    for up to 4 (k + smallest) + 100 vectors where `operator.memory_bytes` has room, and at least
    for 2 (k + smallest) + 22.

    Multiple eigenvalues: one start vector shows one copy of each, until rounding brings in others;
    a `block` of r shows r copies. Symmetries of the net make copies: the outputs of a linear
    regression, three or more units with equal weights.

    Args:
        operator: Anything with `size`, `dtype`, `device`, `rows(vectors)`, `products`,
            `require(nbytes, purpose)`, `memory_bytes` and `graph_bytes`: a `HessianOperator`.
        k: How many of the largest.
        smallest: How many of the lowest, listed after them.
        tol: Relative error wanted; None takes 1e-6 in float32 and 1e-10 in float64.
        block: Vectors multiplied at once, and copies of an eigenvalue seen (above). None takes
            k + smallest where `size` is at most 1,000, so that nothing is missed, and 1 beyond,
            the fewest products.
        max_products: Give up, with a warning and `converged=False`, after so many.
        seed: Of the random part of the start vector.
        progress: Called with a line of text after every block; None writes to a terminal only.

    Raises:
        ValueError: k, smallest, block or tol out of range.
        MemoryError: The basis does not fit into `operator.memory_bytes`; before any product.
    """
    wanted = _check(operator.size, k, smallest, block)
    if block is None:
        block = wanted if operator.size <= _SMALL else 1
    if tol is None:
        tol = 1e-10 if operator.dtype == torch.float64 else 1e-6
    if not tol > 0:
        raise ValueError(f"tol must be positive, got {tol}: None takes what the precision allows")
    began, products = time.perf_counter(), operator.products
    capacity = _capacity(operator, wanted, block)
    lanczos = _Lanczos(operator, capacity, block, seed)
    estimate = None
    with Progress(progress) as say:
        while estimate is None or not estimate.done(tol):
            if estimate is not None and operator.products - products >= max_products:
                break
            lanczos.step(keep=(k, smallest))
            if lanczos.size >= wanted and lanczos.due():
                estimate = lanczos.estimate(k, smallest)
                say(_line(operator.products - products, estimate))
    estimate = lanczos.estimate(k, smallest)
    converged = estimate.done(tol)
    if not converged:
        warnings.warn(
            f"top_eigenvalues stopped after {operator.products - products} products with a "
            f"relative error of about {estimate.relative():.1e}, {tol:.1e} was asked for: allow "
            "more products or memory, or a larger tol",
            stacklevel=2,
        )
    return Eigenpairs(
        values=estimate.values,
        vectors=lanczos.vectors(estimate),
        residuals=estimate.residuals,
        errors=estimate.errors,
        converged=converged,
        products=operator.products - products,
        seconds=time.perf_counter() - began,
        settings={"k": k, "smallest": smallest, "tol": tol, "block": block, "seed": seed},
    )


@dataclass(frozen=True)
class _Estimate:
    """The wanted Ritz pairs at one moment; `coordinates` (m, n) in the basis."""

    values: Tensor
    residuals: Tensor
    errors: Tensor
    coordinates: Tensor
    rounding: float  # below which no eigenvalue can be told

    def done(self, tol: float) -> bool:
        return bool((self.errors <= (tol * self.values.abs()).clamp(min=self.rounding)).all())

    def relative(self) -> float:
        return float((self.errors / self.values.abs().clamp(min=self.rounding)).max())


class _Lanczos:
    """Basis, projected matrix and the block that comes next."""

    def __init__(self, operator: HessianOperator, capacity: int, block: int, seed: int) -> None:
        self.operator = operator
        self.basis = torch.empty(
            capacity, operator.size, dtype=operator.dtype, device=operator.device
        )
        self.projected = torch.zeros(capacity, capacity, dtype=torch.float64)
        self.coupling = torch.zeros(0, 0, dtype=torch.float64)
        self.eps = torch.finfo(operator.dtype).eps
        self._generator = torch.Generator().manual_seed(seed)
        self._coupled = self._block = self.size = 0  # rows: coupled to the block, block, all
        self._steps = 0
        self._next = self._random(block)

    def step(self, keep: tuple[int, int]) -> None:
        """Take in the next block, multiply it, and prepare the one after."""
        if self.size + len(self._next) > len(self.basis):
            self._restart(*keep)
        self._append()
        rows = slice(self._block, self.size)
        new = self.operator.rows(self.basis[rows])
        own = gram(self.basis[rows], new)
        self.projected[rows, rows] = (own + own.mT) / 2
        sweep(new, self.basis[: self.size], self.projected[self._coupled : self.size, rows])
        self.coupling, self._next = factor(new, self._floor())
        if len(self._next) and self._shortest() < 1e-2:
            # Little is left of the product, much of it rounding: orthogonalise once more.
            sweep(self._next, self.basis[: self.size])
            self._next = combine(polish(self._next), self._next)
        if self.size == self.operator.size:  # the whole space: nothing can be left
            self.coupling, self._next = self.coupling[:, :0], self._next[:0]
        elif not len(self._next):
            # The space is invariant: go on with a direction it has not seen.
            self._next = self._random(1)
            self.coupling = torch.zeros(len(new), 1, dtype=torch.float64)
        self._steps += 1

    def due(self) -> bool:
        """Whether the small eigenproblem is cheap beside the products done since the last one."""
        every = max(1, self.size // 40)
        return self._steps % every == 0 or self.size == self.operator.size

    def estimate(self, k: int, smallest: int) -> _Estimate:
        values, coordinates = torch.linalg.eigh(self.projected[: self.size, : self.size])
        # Ascending from eigh; wanted in descending order.
        order = [*range(self.size - 1, self.size - 1 - k, -1), *range(smallest - 1, -1, -1)]
        found, coordinates, rest = values[order], coordinates[:, order], values[smallest:][:-k]
        residuals = (self.coupling.mT @ coordinates[self._block :]).square().sum(0).sqrt()
        errors = residuals
        if len(rest):
            gaps = (found[:, None] - rest).abs().min(1).values.clamp(min=1e-300)
            errors = torch.minimum(residuals, residuals**2 / gaps)
        rounding = 4 * self.eps * float(values.abs().max())
        return _Estimate(found, residuals, errors, coordinates, rounding)

    def vectors(self, estimate: _Estimate) -> Tensor:
        return combine(estimate.coordinates, self.basis[: self.size]).mT

    def _append(self) -> None:
        end = self.size + len(self._next)
        self.basis[self.size : end] = self._next
        if self.size:
            rows = slice(self._block, self.size)
            self.projected[rows, self.size : end] = self.coupling
            self.projected[self.size : end, rows] = self.coupling.mT
        self._coupled, self._block, self.size = self._block, self.size, end

    def _restart(self, k: int, smallest: int) -> None:
        """Keep the wanted Ritz vectors and about half of the room beside them."""
        values, coordinates = torch.linalg.eigh(self.projected[: self.size, : self.size])
        spare = (len(self.basis) - k - smallest) // 3
        low = smallest + (spare if smallest else 0)
        kept = [*range(low), *range(self.size - k - spare, self.size)]
        kept = sorted({i for i in kept if 0 <= i < self.size})
        coordinates = coordinates[:, kept]
        self.coupling = coordinates[self._block : self.size].mT @ self.coupling
        rotate(coordinates, self.basis[: self.size])
        self.projected.zero_()
        self.projected[: len(kept), : len(kept)] = torch.diag(values[kept])
        self._coupled = self._block = 0
        self.size = len(kept)

    def _shortest(self) -> float:
        """Length of the weakest new direction beside the operator's size."""
        lengths = torch.linalg.svdvals(self.coupling)
        return float(lengths.min() / self.projected.diagonal().abs().max())

    def _floor(self) -> float:
        """Length below which a new direction is rounding of the products."""
        return 100 * self.eps * max(float(self.projected.diagonal().abs().max()), 1e-30)

    def _random(self, count: int) -> Tensor:
        draw = torch.randn(count, self.operator.size, generator=self._generator)
        rows = draw.to(self.basis.device, self.basis.dtype)
        for _ in range(2):
            if self.size:
                sweep(rows, self.basis[: self.size])
            rows = factor(rows, 0.0)[1]
        return rows


def _check(size: int, k: int, smallest: int, block: int | None) -> int:
    numbers = [("k", k, 1), ("smallest", smallest, 0)]
    numbers += [] if block is None else [("block", block, 1)]
    for name, value, least in numbers:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    if k + smallest > size:
        asked = f"k={k}" + (f" and smallest={smallest}" if smallest else "")
        raise ValueError(f"{asked}: the matrix has only {size} eigenvalues")
    if block is not None and block > size:
        raise ValueError(f"block={block} is larger than the dimension {size}")
    return k + smallest


def _capacity(operator: HessianOperator, wanted: int, block: int) -> int:
    """Basis vectors to hold, at least enough to restart with; asks the operator for room."""
    each = operator.size * operator.dtype.itemsize
    least = min(operator.size, wanted + 16 + 2 * block)
    beside = 4 * block + wanted  # blocks and their products; the Ritz vectors returned
    operator.require((least + beside) * each, f"a basis for {wanted} eigenvalues")
    room = (operator.memory_bytes - operator.graph_bytes) // each - beside
    return max(least, min(operator.size, 4 * wanted + 100 + 2 * block, room))


def _line(products: int, estimate: _Estimate) -> str:
    first = float(estimate.values[0])
    return f"Lanczos: {products} products, {first:.5g}, error {estimate.relative():.1e}"
