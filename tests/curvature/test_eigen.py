"""Lanczos against dense eigenvalues."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, Case
from torch import nn

from flatnb.curvature import HessianOperator, top_eigenvalues
from flatnb.curvature.krylov import factor, norm


def operator(case: Case, **settings) -> HessianOperator:
    return HessianOperator(case.model, case.loss, case.batches, **settings)


@pytest.mark.parametrize("block", [None, 1, 3])
def test_both_ends_equal_the_dense_eigenvalues(case: Case, block):
    op = operator(case)
    exact = torch.linalg.eigvalsh(case.hessian).flip(0)
    found = top_eigenvalues(op, 5, smallest=3, block=block)
    wanted = torch.cat([exact[:5], exact[-3:]])
    assert found.converged
    assert torch.allclose(found.values, wanted, rtol=1e-8, atol=1e-9 * float(exact[0]))
    residuals = (case.hessian @ found.vectors - found.vectors * found.values).norm(dim=0)
    assert torch.allclose(residuals, found.residuals, rtol=1e-3, atol=1e-12)
    gram = found.vectors.mT @ found.vectors
    assert torch.allclose(gram, torch.eye(8, dtype=gram.dtype), atol=1e-12)
    assert found.products <= op.size


@pytest.mark.parametrize("k", [1, 30, -1])
def test_any_number_of_eigenvalues(k):
    case = CASES["perceptron"]
    op = operator(case)
    k = op.size if k < 0 else k
    exact = torch.linalg.eigvalsh(case.hessian).flip(0)[:k]
    for block in (None, 1):
        found = top_eigenvalues(op, k, block=block)
        assert torch.allclose(found.values, exact, rtol=1e-8, atol=1e-9 * float(exact[0]))


def test_every_start_finds_the_same():
    op = operator(CASES["convolution and BatchNorm"])
    exact = torch.linalg.eigvalsh(CASES["convolution and BatchNorm"].hessian).flip(0)[:4]
    for seed in range(8):
        found = top_eigenvalues(op, 4, block=1, seed=seed)
        assert torch.allclose(found.values, exact, rtol=1e-8)


def test_restarts_in_little_memory_reach_the_same():
    # A regression with evenly spread eigenvalues, where Lanczos needs many steps.
    torch.manual_seed(0)
    x = torch.linalg.qr(torch.randn(300, 150).double())[0] * torch.linspace(1, 2, 150).sqrt()
    data = [(x, torch.randn(300, 1).double())]
    full = HessianOperator(nn.Linear(150, 1).double(), F.mse_loss, data)
    op = HessianOperator(
        full.objective.model, F.mse_loss, data, memory_bytes=full.graph_bytes + 60 * full.size * 8
    )
    exact = torch.linalg.eigvalsh(full.dense()).flip(0)
    found = top_eigenvalues(op, 3, smallest=2, block=1)
    assert found.products > 60  # more than could lie in memory
    assert torch.allclose(found.values, exact[[0, 1, 2, -2, -1]], rtol=1e-8)


def test_more_than_fits_is_refused_before_the_first_product():
    op = operator(CASES["perceptron"])
    op.memory_bytes = op.graph_bytes + 10 * op.size * 8
    with pytest.raises(MemoryError, match=r"a basis for 40 eigenvalues needs .* at least"):
        top_eigenvalues(op, 40)
    assert op.products == 0


def test_the_graph_gives_way_to_the_basis():
    case = CASES["convolution and BatchNorm"]
    full = operator(case)
    op = operator(case, memory_bytes=full.graph_bytes + 20 * full.size * 8)
    assert op._kept is not None
    found = top_eigenvalues(op, 4, block=1)
    assert op._kept is None
    exact = torch.linalg.eigvalsh(case.hessian).flip(0)[:4]
    assert torch.allclose(found.values, exact, rtol=1e-8)


def test_multiple_eigenvalues_of_small_matrices_are_all_seen():
    # A linear regression on three outputs: every eigenvalue three times.
    torch.manual_seed(0)
    net = nn.Linear(6, 3).double()
    x, y = torch.randn(30, 6).double(), torch.randn(30, 3).double()
    op = HessianOperator(net, F.mse_loss, [(x, y)])
    found = top_eigenvalues(op, 5)
    assert torch.allclose(found.values, torch.linalg.eigvalsh(op.dense()).flip(0)[:5])
    assert "copies" not in repr(found)


def test_a_block_sees_multiple_eigenvalues_of_larger_matrices():
    # Units with equal weights: what exchanges them multiplies eigenvalues.
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(400, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        for p in (net[0].weight, net[0].bias, net[2].weight.mT):
            p.copy_(p[:1].expand_as(p))
    data = [(torch.randn(50, 400).double(), torch.randint(0, 2, (50,)))]
    op = HessianOperator(net, F.cross_entropy, data)
    exact = torch.linalg.eigvalsh(op.dense()).flip(0)[:3]
    assert op.size > 1000 and float(exact[1] - exact[2]) < 1e-10
    assert torch.allclose(top_eigenvalues(op, 3, block=2).values, exact, rtol=1e-8)
    assert "copies beyond 1 not looked for" in repr(top_eigenvalues(op, 3))


def test_float32_keeps_six_digits():
    case = CASES["convolution and BatchNorm"]
    exact = torch.linalg.eigvalsh(case.hessian).flip(0)[:5]
    model = case.make()
    model.load_state_dict(case.model.state_dict())
    batches = [(x.float(), y) for x, y in case.batches]
    found = top_eigenvalues(HessianOperator(model, case.loss, batches), 5)
    assert torch.allclose(found.values, exact, rtol=3e-6, atol=1e-6 * float(exact[0]))


def test_giving_up_is_said():
    with pytest.warns(UserWarning, match="allow more products"):
        found = top_eigenvalues(operator(CASES["perceptron"]), 5, block=1, max_products=7)
    assert not found.converged and "NOT CONVERGED" in repr(found)


@pytest.mark.parametrize("settings", [{"k": 0}, {"k": -1}, {"k": 1.5}, {"k": 10**6},
                                      {"k": 1, "smallest": -1}, {"k": 1, "block": 0},
                                      {"k": 1, "tol": 0.0}])  # fmt: skip
def test_bad_numbers_are_refused(settings):
    with pytest.raises(ValueError, match=r"at least|eigenvalues|dimension|positive"):
        top_eigenvalues(operator(CASES["perceptron"]), **settings)


def test_progress_and_repr():
    lines: list[str] = []
    found = top_eigenvalues(operator(CASES["perceptron"]), 2, progress=lines.append)
    assert lines and "products" in lines[-1]
    assert f"{found.products} products" in repr(found) and "k=2" in repr(found)


def test_norms_of_long_float32_vectors_are_exact():
    v = torch.randn(3_000_000, generator=torch.manual_seed(0))
    assert abs(float(norm(v)) / float(v.double().norm()) - 1) < 1e-12


def test_factor_leaves_out_what_is_dependent():
    generator = torch.manual_seed(0)
    rows = torch.randn(3, 50, dtype=torch.float64, generator=generator)
    scales = torch.tensor([1.0, 1e-6, 1e-11], dtype=torch.float64)
    mixed = torch.randn(5, 3, dtype=torch.float64, generator=generator) @ (scales[:, None] * rows)
    coupling, basis = factor(mixed, 1e-13)
    assert basis.shape == (3, 50)
    assert torch.allclose(basis @ basis.mT, torch.eye(3, dtype=torch.float64), atol=1e-10)
    assert torch.allclose(coupling @ basis, mixed, atol=1e-13)
