"""Lanczos against dense eigenvalues."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, Case
from matrices import Dense, Diagonal, Drawn
from torch import Tensor, nn

from flatnb.curvature import HessianOperator, eigenvalues, top_eigenvalues


def operator(case: Case, **settings) -> HessianOperator:
    return HessianOperator(case.model, case.loss, case.batches, **settings)


@pytest.fixture
def as_large(monkeypatch):
    """Small matrices are treated as those beyond 10,000 dimensions: one start vector."""
    monkeypatch.setattr(eigenvalues, "_SMALL", 0)


def test_values_equal_the_dense_eigenvalues(case: Case):
    op = operator(case)
    exact = torch.linalg.eigvalsh(case.hessian).flip(0)[:8]
    found = top_eigenvalues(op, 8)
    assert found.converged
    assert torch.allclose(found.values, exact, rtol=1e-8, atol=1e-9 * float(exact[0]))
    residuals = (case.hessian @ found.vectors - found.vectors * found.values).norm(
        dim=0
    )
    assert (residuals <= 2 * found.residuals + 1e-12).all()
    gram = found.vectors.mT @ found.vectors
    assert torch.allclose(gram, torch.eye(8, dtype=gram.dtype), atol=1e-12)
    assert found.products <= op.size + 8


@pytest.mark.parametrize("k", [1, 30, -1])
def test_any_number_of_eigenvalues(k):
    case = CASES["perceptron"]
    op = operator(case)
    k = op.size if k < 0 else k
    exact = torch.linalg.eigvalsh(case.hessian).flip(0)[:k]
    found = top_eigenvalues(op, k)
    assert torch.allclose(found.values, exact, rtol=1e-8, atol=1e-9 * float(exact[0]))


def test_every_start_finds_the_same(as_large):
    op = operator(CASES["convolution and BatchNorm"])
    exact = torch.linalg.eigvalsh(CASES["convolution and BatchNorm"].hessian).flip(0)[
        :4
    ]
    for seed in range(8):
        found = top_eigenvalues(op, 4, seed=seed)
        assert torch.allclose(found.values, exact, rtol=1e-8)


def test_the_basis_grows_as_it_must(as_large):
    matrix = Dense(torch.diag(torch.linspace(1, 2, 300, dtype=torch.float64)))
    found = top_eigenvalues(matrix, 3)
    assert found.converged and found.products > 64
    wanted = torch.tensor([2, 2 - 1 / 299, 2 - 2 / 299], dtype=torch.float64)
    assert torch.allclose(found.values, wanted, rtol=1e-8)


def test_multiple_eigenvalues_of_small_matrices_are_all_seen():
    # A linear regression on three outputs: every eigenvalue three times.
    torch.manual_seed(0)
    net = nn.Linear(6, 3).double()
    x, y = torch.randn(30, 6).double(), torch.randn(30, 3).double()
    op = HessianOperator(net, F.mse_loss, [(x, y)])
    found = top_eigenvalues(op, 5)
    assert torch.allclose(found.values, torch.linalg.eigvalsh(op.dense()).flip(0)[:5])
    assert "copies" not in repr(found)


def test_larger_matrices_say_that_copies_are_not_looked_for():
    matrix = Diagonal(torch.linspace(0, 1, 10_002, dtype=torch.float64) ** 4)
    matrix.values[:3] = 2.0
    found = top_eigenvalues(matrix, 2)
    assert float(found.values[0]) == pytest.approx(2, rel=1e-8)
    assert "copies not looked for" in repr(found)


def test_float32_keeps_six_digits():
    case = CASES["convolution and BatchNorm"]
    exact = torch.linalg.eigvalsh(case.hessian).flip(0)[:5]
    model = case.make()
    model.load_state_dict(case.model.state_dict())
    batches = [(x.float(), y) for x, y in case.batches]
    found = top_eigenvalues(HessianOperator(model, case.loss, batches), 5)
    assert torch.allclose(found.values, exact, rtol=3e-6, atol=1e-6 * float(exact[0]))


def test_giving_up_is_said():
    with pytest.warns(UserWarning, match="allow more products or a larger tol"):
        found = top_eigenvalues(operator(CASES["perceptron"]), 5, max_products=7)
    assert not found.converged and "NOT CONVERGED" in repr(found)


@pytest.mark.parametrize(
    "settings",
    [
        {"k": 0},
        {"k": -1},
        {"k": 1.5},
        {"k": True},
        {"k": 10**6},
        {"tol": 0.0},
        {"tol": float("nan")},
        {"max_products": 0},
    ],
)
def test_bad_numbers_are_refused(settings):
    name = next(iter(settings))
    with pytest.raises(ValueError, match=name):
        top_eigenvalues(operator(CASES["perceptron"]), **settings)


def test_repr():
    found = top_eigenvalues(operator(CASES["perceptron"]), 2)
    assert f"{found.products} products" in repr(found) and "k=2" in repr(found)


# -- random matrices
# ---------------------------------------------------------------------------


def complaint(found: Tensor, exact: Tensor, limit: Tensor, copies: int) -> str | None:
    """What is wrong with `found`, the top of the spectrum `exact`.

    Every value lies within its limit of an eigenvalue, none is left out, and of those
    closer together than ten limits, which count as copies, at least `copies` are seen.
    """
    gaps = (exact[:-1] - exact[1:]).abs() > 10 * torch.maximum(limit[:-1], limit[1:])
    cluster = torch.cat([torch.zeros(1, dtype=torch.long), gaps.long().cumsum(0)])
    seen: list[int] = []
    for value in found:
        distance, nearest = (exact - value).abs().min(0)
        if distance > 1.5 * limit[nearest]:
            return f"{float(value):.6g} is not an eigenvalue"
        seen.append(int(cluster[nearest]))
    if seen != sorted(seen):
        return "out of order"
    for index in range(seen[-1] + 1):
        count, size = seen.count(index), int((cluster == index).sum())
        if count > size:
            return f"{count} copies of {size} eigenvalues"
        if index < seen[-1] and count < min(copies, size):
            return f"{count} of {size} copies"
    return None


def check(drawn: Drawn) -> None:
    """The eigenpairs of a random matrix against those of LAPACK in float64."""
    k = drawn.k
    with pytest.MonkeyPatch.context() as patch:
        if drawn.as_large:
            patch.setattr(eigenvalues, "_SMALL", 0)
        found = top_eigenvalues(Dense(drawn.matrix), k, seed=drawn.start)
    assert found.converged
    eps, scale = torch.finfo(drawn.matrix.dtype).eps, float(drawn.exact.abs().max())

    def limit(values: Tensor) -> Tensor:
        relative = found.settings["tol"] * values.abs()
        return relative.clamp(min=max(50 * eps * scale, 1e-300))

    vectors = found.vectors.double()
    residuals = drawn.matrix.double() @ vectors - vectors * found.values
    assert (residuals.norm(dim=0) <= 1.5 * limit(found.values)).all()
    assert torch.allclose(vectors.mT @ vectors, torch.eye(k).double(), atol=1e4 * eps)
    exact = drawn.exact
    copies = 1 if drawn.as_large else k
    assert complaint(found.values, exact, limit(exact), copies) is None


@pytest.mark.parametrize("batch", range(10))
def test_random_matrices(batch):
    for seed in range(30 * batch, 30 * batch + 30):
        drawn = Drawn(seed, most=60 if seed % 10 else 500)
        try:
            check(drawn)
        except AssertionError as error:
            raise AssertionError(f"matrix {seed}: {drawn}") from error


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(100))
def test_many_random_matrices(batch):
    for seed in range(1000 + 24 * batch, 1024 + 24 * batch):
        drawn = Drawn(seed, most=60 if seed % 6 else 1500)
        try:
            check(drawn)
        except AssertionError as error:
            raise AssertionError(f"matrix {seed}: {drawn}") from error


# -- what is checked at the end
# ----------------------------------------------------------------


class Drifting(Diagonal):
    """After some products the matrix is another one."""

    def __init__(self, values: Tensor, after: int) -> None:
        super().__init__(values)
        self.after = after

    def rows(self, vectors: Tensor) -> Tensor:
        factor = 1.0 if self.products < self.after else 1.01
        return super().rows(vectors) * factor


@pytest.mark.parametrize("size", [200, 20_000])
def test_wrong_residuals_are_noticed_at_the_end(size):
    values = torch.linspace(0, 1, size, dtype=torch.float64) ** 8
    values[:5] = torch.arange(2, 7)
    honest = Diagonal(values)
    exact = top_eigenvalues(honest, 3, tol=1e-4)
    checks = 3 if size == 200 else 1
    drifting = Drifting(values, honest.products - checks)
    with pytest.warns(UserWarning, match="not converged after"):
        found = top_eigenvalues(drifting, 3, tol=1e-4)
    assert torch.equal(found.values, exact.values) and exact.converged
    assert not found.converged and "NOT CONVERGED" in repr(found)
    assert float(found.residuals.max()) > 1e-2


def test_products_that_overflow_are_refused():
    with pytest.raises(ValueError, match="look for overflow"):
        top_eigenvalues(Diagonal(torch.tensor([1.0, float("inf"), 2.0])), 1)


def test_a_matrix_of_zeros_has_the_eigenvalue_zero():
    found = top_eigenvalues(Diagonal(torch.zeros(50)), 3)
    assert found.converged and (found.values == 0).all()
