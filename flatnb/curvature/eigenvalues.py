"""Largest eigenvalues of an operator by the Lanczos process of `lanczos.py`."""

import time
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from flatnb._checks import integer, number
from flatnb.curvature.lanczos import Lanczos
from flatnb.curvature.operator import HessianOperator, check_operator
from flatnb.curvature.result import Result

_SMALL = 10_000  # up to this size products are cheap: multiplicities are looked for


@dataclass(frozen=True, kw_only=True, repr=False)
class Eigenpairs(Result):
    """Eigenvalues in descending order, with their vectors.

    Attributes:
        values: (k,) in float64.
        vectors: (size, k), orthonormal columns in the operator's precision.
        residuals: (k,) norms `|H v - theta v|`: an eigenvalue lies this near, and if
            the next is at a distance gap, about residual^2 / gap (Parlett 1998, 11.7).
        converged: residuals within the tolerance and vectors orthonormal, both checked.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    converged: bool

    def summary(self) -> str:
        values = ", ".join(f"{value:.6g}" for value in self.values.tolist())
        text = f"[{values}], largest residual {self.residuals.max():.1e}"
        if len(self.values) > 1 and len(self.vectors) > _SMALL:
            text += ", copies not looked for"
        return text if self.converged else f"{text}, NOT CONVERGED"


def top_eigenvalues(
    operator: HessianOperator,
    k: int = 1,
    *,
    tol: float | None = None,
    max_products: int = 2000,
    seed: int = 0,
) -> Eigenpairs:
    """The k largest eigenvalues, algebraically, with their vectors.

    Stops when each residual is at most `tol |theta|`, or `50 eps |H|`, the rounding of
    the products: after 15 to 20 for the top five of a trained net at tol 1e-3, each
    with a vector of `size` to hold; further ones check the residuals. Copies of a
    multiple eigenvalue are all seen up to 10,000 dimensions; beyond, rounding decides.

    Args:
        operator: or any symmetric one with `size`, `dtype`, `device`, `products` and
            `rows(vectors)`. Minus the products have minus the lowest eigenvalues.
        tol: largest relative residual; None takes 1e-4 in float32, 1e-8 in float64.
        max_products: give up after this many, with a warning and `converged=False`.

    Raises:
        ValueError: a number out of range; products that overflow.

    >>> data = [(torch.diag(torch.tensor([2.0, 1.0])), torch.zeros(2, 1))]
    >>> net = torch.nn.Linear(2, 1, bias=False)
    >>> hessian = HessianOperator(net, torch.nn.functional.mse_loss, data)
    >>> top_eigenvalues(hessian, 2).values.round(decimals=3).tolist()
    [4.0, 1.0]
    """
    check_operator(operator)
    start, size, used = time.perf_counter(), operator.size, operator.products
    k = integer("k", k, 1, size + 1)
    max_products = integer("max_products", max_products)
    if tol is None:
        tol = 1e-8 if operator.dtype == torch.float64 else 1e-4
    tol = number("tol", tol, "a number > 0, or None", 0)
    generator = torch.Generator().manual_seed(seed)
    lanczos = Lanczos(operator)
    # One for each copy that is asked for, and one in reserve.
    starts = min(size, k + 1) if size <= _SMALL else 1
    for _ in range(starts):
        lanczos.add_random(generator)
    while True:
        lanczos.expand(starts)
        if lanczos.size == len(lanczos.columns):
            # The space is invariant: go on with a direction that is new to it.
            lanczos.add_random(generator)
        if len(lanczos.columns) < k:
            continue
        values, coordinates, residuals = lanczos.ritz()
        rounding = 50 * torch.finfo(operator.dtype).eps * values.abs().max()
        limit = (tol * values[:k].abs()).clamp(min=rounding)
        exhausted = operator.products - used >= max_products
        if exhausted or bool((residuals[:k] <= limit).all()):
            break
    values, basis = values[:k], lanczos.basis[: len(coordinates)]
    vectors = coordinates[:, :k].mT.to(basis) @ basis
    residuals = _checked(operator, values, vectors, residuals[:k], generator)
    rows = vectors.double()
    defect = (rows @ rows.mT - torch.eye(k).to(rows)).abs().max()
    orthonormal = bool(defect <= 1e4 * torch.finfo(vectors.dtype).eps)
    converged = orthonormal and bool((residuals <= limit).all())
    products = operator.products - used
    if not converged:
        warnings.warn(
            f"top_eigenvalues: not converged after {products} products; allow more "
            "products or a larger tol, or use float64",
            stacklevel=2,
        )
    return Eigenpairs(
        values=values,
        vectors=vectors.mT,
        residuals=residuals,
        converged=converged,
        products=products,
        seconds=time.perf_counter() - start,
        settings={"k": k, "tol": tol, "seed": seed},
    )


def _checked(
    operator: HessianOperator,
    values: Tensor,
    vectors: Tensor,
    residuals: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """The residuals, or what products show where that is larger: in one with the sum of
    all vectors with random signs, the squares of the residuals add up, on average.
    """
    if operator.size <= _SMALL:
        mix = torch.eye(len(values), dtype=torch.float64)
    else:
        signs = torch.randint(0, 2, (1, len(values)), generator=generator)
        mix = signs.double() * 2 - 1
    products = operator.rows(mix.to(vectors) @ vectors)
    misses = products - (mix * values).to(vectors) @ vectors
    measured = torch.linalg.vector_norm(misses, dim=1, dtype=torch.float64).cpu()
    expected = (mix**2 @ residuals**2).sqrt()
    surprising = torch.where(measured > 2 * expected, measured, 0.0)
    return torch.maximum(residuals, (mix.abs() * surprising[:, None]).amax(0))
