"""Extreme eigenvalues of an operator by the Lanczos process of `flatnb.curvature.lanczos`."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from flatnb.curvature.lanczos import Lanczos, Operator, Ritz
from flatnb.curvature.result import Progress, ProgressCallback, Result
from flatnb.curvature.vectors import combine, gram, norm

_SMALL = (
    10_000  # up to this dimension products are cheap: multiplicities are looked for
)


@dataclass(frozen=True, kw_only=True, repr=False)
class Eigenpairs(Result):
    """Eigenvalues in descending order, with their vectors.

    Attributes:
        values: (n,) in float64.
        vectors: (size, n), orthonormal columns in the operator's precision.
        residuals: (n,) norms |H v - theta v|: an eigenvalue lies at least this near to
            each value. A well separated eigenvalue is much nearer, by about residual^2
            / gap, with gap the distance to the next one (Parlett 1998, section 11.7).
        converged: Whether all residuals are within the tolerance and the vectors
            orthonormal, both checked at the end by products of their own.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    converged: bool

    def summary(self) -> str:
        shown = ", ".join(f"{value:.6g}" for value in self.values[:6].tolist())
        more = ", …" if len(self.values) > 6 else ""
        state = "" if self.converged else ", NOT CONVERGED"
        block = self.settings["block"]
        note = (
            f", copies beyond {block} not looked for"
            if block < len(self.values)
            else ""
        )
        return (
            f"[{shown}{more}], largest residual {self.residuals.max():.1e}{note}{state}"
        )


def top_eigenvalues(
    operator: Operator,
    k: int = 1,
    *,
    smallest: int = 0,
    tol: float | None = None,
    block: int | None = None,
    max_basis: int | None = None,
    max_products: int = 2000,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> Eigenpairs:
    """The k largest eigenvalues (algebraically), and the `smallest` lowest ones.

    Stops when the residual |H v - theta v| of each wanted pair is at most `tol`
    |theta|, or at the rounding of the products, 50 eps |H|. At the end one more
    product, with a random combination of all vectors (below 10,000 dimensions one with
    each), checks the residuals, and inner products check that the vectors are
    orthonormal.

    Cost: a few products per eigenvalue (15 to 20 for the top five of a trained net at
        tol 1e-3)
    and `max_basis` vectors of memory.

    Multiple eigenvalues: one start vector shows one copy of each, a `block` of r shows
        r copies.
    Eigenvalues that lie closer together than the residuals count as copies. Symmetries
    of the net
    make copies: the outputs of a linear regression, three or more units with equal
        weights. A
    single start vector also misses an eigenvalue that it happens to be orthogonal to,
    as far as
    the residuals tell: the chance is about tol times the value over its distance to the
        next.

        >>> import torch
        >>> from flatnb.curvature import HessianOperator, top_eigenvalues
        >>> x, y = torch.eye(4).double() * torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.zeros(4, 1)
        >>> net = torch.nn.Linear(4, 1, bias=False).double()
        >>> hessian = HessianOperator(net, torch.nn.functional.mse_loss, [(x, y.double())])
        >>> top_eigenvalues(hessian, 2).values  # 2 x^2 / 4 for the two largest x
        tensor([8.0000, 4.5000], dtype=torch.float64)

    Args:
        operator: A symmetric operator with `size`, `dtype`, `device`, `products` and
            `rows(vectors)`: a `HessianOperator`.
        k: How many of the largest.
        smallest: How many of the lowest, listed after them.
        tol: Largest relative residual; None takes 1e-4 in float32 and 1e-8 in float64,
            which leaves well separated eigenvalues with errors of rounding.
        block: Start vectors, multiplied together, and copies of an eigenvalue seen.
            None takes k + smallest where `size` is at most 10,000, so that nothing is
            missed, and 1 beyond, the fewest products (2 take about a third more). Up to
            10,000 dimensions there is one start vector more, against what a single one
            misses.
        max_basis: Vectors of `size` held in memory, restarting when they are used up;
            None takes 4 (k + smallest) + 8 for each start vector + 60.
        max_products: Give up, with a warning and `converged=False`, after so many.
        seed: Of the start vectors.
        progress: Called with a line of text after every block; None writes to a
            terminal only.

    Raises:
        ValueError: k, smallest, block, max_basis or tol out of range; products that
            overflow.
    """
    wanted, small = k + smallest, operator.size <= _SMALL
    _check(operator.size, k, smallest, block)
    if block is None:
        block = wanted if small else 1
    starts = min(operator.size, block + 1) if small else block
    max_basis = _basis(operator.size, wanted, starts, max_basis)
    if tol is None:
        tol = 1e-8 if operator.dtype == torch.float64 else 1e-4
    if not tol > 0:
        raise ValueError(f"tol={tol}; allowed: a number > 0, or None")
    began, before = time.perf_counter(), operator.products
    generator = torch.Generator().manual_seed(seed)
    lanczos = Lanczos(operator, max_basis)
    for _ in range(starts):
        lanczos.add_random(generator)
    with Progress(progress) as say:
        while True:
            _advance(lanczos, starts, k, smallest, generator)
            exhausted = operator.products - before >= max_products
            if lanczos.multiplied >= wanted and (exhausted or _due(lanczos, starts)):
                pairs = _wanted(lanczos.ritz(), k, smallest)
                limit = pairs.limit(tol, operator.dtype)
                say(
                    f"Lanczos: {operator.products - before} products, {_worst(pairs, limit)}"
                )
                if exhausted or bool((pairs.residuals <= limit).all()):
                    break
    vectors = lanczos.vectors(pairs.coordinates)
    residuals = _checked(operator, pairs, vectors, generator)
    converged = bool((residuals <= limit).all()) and _orthonormal(vectors)
    used = operator.products - before
    if not converged:
        advice = (
            "allow more products, a larger max_basis, or a larger tol"
            if exhausted
            else "the products are no more exact than that: allow a larger tol, or use float64"
        )
        warnings.warn(
            f"top_eigenvalues: after {used} products {_worst(pairs, limit, residuals)}: {advice}",
            stacklevel=2,
        )
    return Eigenpairs(
        values=pairs.values,
        vectors=vectors.mT,
        residuals=residuals,
        converged=converged,
        products=used,
        seconds=time.perf_counter() - began,
        settings={
            "k": k,
            "smallest": smallest,
            "tol": tol,
            "block": block,
            "seed": seed,
        },
    )


class _Pairs(NamedTuple):
    """The wanted Ritz pairs: values, columns of coordinates, residuals; the norm of T."""

    values: Tensor
    coordinates: Tensor
    residuals: Tensor
    scale: float

    def limit(self, tol: float, dtype: torch.dtype) -> Tensor:
        """The residuals asked for: `tol` relative, but not below the rounding of a product."""
        rounding = 50 * torch.finfo(dtype).eps * self.scale
        return (tol * self.values.abs()).clamp(min=rounding)


def _wanted(ritz: Ritz, k: int, smallest: int) -> _Pairs:
    last = len(ritz.values) - 1
    order = [*range(last, last - k, -1), *range(smallest - 1, -1, -1)]
    scale = float(ritz.values.abs().max())
    return _Pairs(
        ritz.values[order], ritz.coordinates[:, order], ritz.residuals[order], scale
    )


def _advance(
    lanczos: Lanczos, block: int, k: int, smallest: int, generator: torch.Generator
) -> None:
    """One more block of products, after a restart where the basis is full."""
    capacity, size = lanczos.basis.shape
    if capacity < size and lanczos.size + block > capacity:
        spare = (capacity - k - smallest) // 3
        low = smallest + (spare if smallest else 0)
        high = max(low, lanczos.multiplied - k - spare)
        lanczos.restart(lanczos.ritz(), [*range(low), *range(high, lanczos.multiplied)])
    lanczos.expand(block)
    if lanczos.size == lanczos.multiplied:
        # The space is invariant: go on with a direction that it has not seen.
        lanczos.add_random(generator)


def _due(lanczos: Lanczos, block: int) -> bool:
    """Whether the small eigenproblem is cheap next to the products since the last one."""
    every = max(1, lanczos.multiplied // 40)
    return (
        lanczos.multiplied // block % every == 0
        or lanczos.multiplied == lanczos.operator.size
    )


def _checked(
    operator: Operator, pairs: _Pairs, vectors: Tensor, generator: torch.Generator
) -> Tensor:
    """The residuals, replaced by those that products show where these are larger.

    A product with a sum of all vectors with random signs shows all residuals in one:
        their
    squares add up, on average over the signs.
    """
    count = len(pairs.values)
    if operator.size <= _SMALL:
        mix = torch.eye(count, dtype=torch.float64)
    else:
        mix = torch.randint(0, 2, (1, count), generator=generator).double() * 2 - 1
    products = operator.rows(combine(mix.mT, vectors))
    misses = products - combine((mix * pairs.values).mT, vectors)
    shown = torch.stack([norm(miss) for miss in misses]).cpu()
    expected = (mix**2 @ pairs.residuals**2).sqrt()
    surprising = torch.where(shown > 2 * expected, shown, 0.0)
    return torch.maximum(pairs.residuals, (mix.abs() * surprising[:, None]).amax(0))


def _orthonormal(vectors: Tensor) -> bool:
    defect = gram(vectors, vectors) - torch.eye(len(vectors), dtype=torch.float64)
    return float(defect.abs().max()) <= 1e4 * torch.finfo(vectors.dtype).eps


def _worst(pairs: _Pairs, limit: Tensor, residuals: Tensor | None = None) -> str:
    residuals = pairs.residuals if residuals is None else residuals
    i = int((residuals / limit).nan_to_num(0).argmax())
    return (
        f"the residual of {float(pairs.values[i]):.5g} is {float(residuals[i]):.1e}, "
        f"{float(limit[i]):.1e} was asked for"
    )


def _check(size: int, k: int, smallest: int, block: int | None) -> None:
    numbers = [("k", k, 1), ("smallest", smallest, 0)]
    numbers += [] if block is None else [("block", block, 1)]
    for name, value, least in numbers:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(
                f"{name}={value!r}; allowed: an integer of at least {least}"
            )
    if k + smallest > size:
        asked = f"k={k}" + (f" and smallest={smallest}" if smallest else "")
        raise ValueError(f"{asked}: the matrix has only {size} eigenvalues")
    if block is not None and block > size:
        raise ValueError(f"block={block} is larger than the dimension {size}")


def _basis(size: int, wanted: int, starts: int, most: int | None) -> int:
    """Vectors to hold: what is wanted, and what a restart needs besides."""
    least = wanted + 8 * starts + 16
    if most is None:
        return min(size, least + 3 * wanted + 44)
    if isinstance(most, bool) or not isinstance(most, int) or most < min(size, least):
        raise ValueError(
            f"max_basis={most!r}; allowed: an integer of at least {min(size, least)}, or None"
        )
    return min(size, most)
