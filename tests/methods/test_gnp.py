"""Gradient norm penalty: formulas, the methods it contains."""

from __future__ import annotations

import inputs
import oracle
import pytest
import torch

from flatnb.methods import ERM, GNP, SAM


def two_gradients(r: float) -> tuple[oracle.Params, oracle.Params]:
    problem = inputs.exact()
    w = oracle.params(problem)
    g1 = oracle.grad(problem, w)
    return g1, oracle.grad(problem, oracle.add(w, g1, r / oracle.length(g1)))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, 1.7])
def test_gradient_is_the_formula(alpha: float) -> None:
    g1, g2 = two_gradients(0.4)
    expected = {name: (1 - alpha) * g1[name] + alpha * g2[name] for name in g1}
    oracle.assert_equal(oracle.made_by(GNP(0.4, alpha)), expected)


def test_normalised_form_divides_the_first_gradient() -> None:
    g1, g2 = two_gradients(0.4)
    expected = {
        name: 0.3 * g1[name] / oracle.length(g1) + 0.7 * g2[name] for name in g1
    }
    oracle.assert_equal(oracle.made_by(GNP(0.4, 0.7, normalize=True)), expected)


def test_contains_sam_and_plain_training() -> None:
    oracle.assert_equal(oracle.made_by(GNP(0.4, 1.0)), oracle.made_by(SAM(0.4)))
    oracle.assert_equal(oracle.made_by(GNP(0.4, 0.0)), oracle.made_by(ERM()))
    oracle.assert_equal(oracle.made_by(GNP(0.0, 0.7)), oracle.made_by(ERM()))


def test_descends_the_penalised_loss() -> None:
    """(g - g1) / (alpha r) is the gradient of ||grad L|| up to O(r)."""
    problem = inputs.exact()
    params = list(problem.model.parameters())
    first = torch.autograd.grad(problem().mean(), params, create_graph=True)
    norm = torch.cat([t.flatten() for t in first]).norm()
    expected = torch.autograd.grad(norm, params)
    g1, _ = two_gradients(0.0)
    for r, tol in ((1e-2, 1e-2), (1e-4, 1e-4)):
        made = oracle.made_by(GNP(r, 0.8))
        for name, want in zip(made, expected, strict=True):
            penalty = (made[name] - g1[name]) / (0.8 * r)
            torch.testing.assert_close(penalty, want, rtol=tol, atol=tol)


def test_accumulates_on_what_was_there() -> None:
    problem = inputs.exact()
    alone = oracle.made_by(GNP(0.4, 0.7))
    for p in problem.params:
        p.grad = torch.ones_like(p)
    GNP(0.4, 0.7).backward(problem.model, problem, weight=0.5)
    for name, p in problem.model.named_parameters():
        torch.testing.assert_close(p.grad, 1 + 0.5 * alone[name])
