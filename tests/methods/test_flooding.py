"""Flooding and iFlood: formulas, what they share, what they refuse."""

from __future__ import annotations

import inputs
import oracle
import pytest
import torch

from flatnb.ensemble import Ensemble
from flatnb.methods import ERM, Flooding, IFlood
from flatnb.metrics import cross_entropy


def median_loss() -> float:
    problem = inputs.exact()
    return float(oracle.losses(problem, oracle.params(problem)).median())


@pytest.mark.parametrize("level", [0.0, 0.3, 5.0])
def test_flooding_turns_the_gradient_of_the_mean(level: float) -> None:
    problem = inputs.exact()
    w = oracle.params(problem)
    mean = float(oracle.losses(problem, w).mean())
    g = oracle.grad(problem, w)
    expected = {name: (1.0 if mean > level else -1.0) * t for name, t in g.items()}
    oracle.assert_equal(oracle.made_by(Flooding(level)), expected)


def test_iflood_turns_each_example() -> None:
    level = median_loss() + 1e-3
    problem = inputs.exact()
    w = oracle.params(problem)
    signs = torch.where(oracle.losses(problem, w) > level, 1.0, -1.0).double()
    assert 0 < (signs > 0).sum() < len(signs)
    expected = oracle.grad(problem, w, lambda v: (signs * v).sum() / len(v))
    oracle.assert_equal(oracle.made_by(IFlood(level)), expected)
    assert oracle.differ(oracle.made_by(Flooding(level)), expected)


def test_objectives_are_the_formulas() -> None:
    losses = torch.tensor([0.1, 0.2, 0.9], dtype=torch.float64)
    assert float(Flooding(0.5).objective(losses)) == pytest.approx(abs(0.4 - 0.5) + 0.5)
    assert float(IFlood(0.5).objective(losses)) == pytest.approx((0.9 + 0.8 + 0.9) / 3)


def test_batch_of_one_makes_them_equal() -> None:
    for level in (0.2, 3.0):
        problem = inputs.exact()
        problem.x, problem.y = problem.x[:1], problem.y[:1]
        flooding = oracle.made_by(Flooding(level), problem)
        oracle.assert_equal(flooding, oracle.made_by(IFlood(level), problem))


def test_level_zero_is_plain_training() -> None:
    for method in (Flooding(0.0), IFlood(0.0)):
        oracle.assert_equal(oracle.made_by(method), oracle.made_by(ERM()))


@pytest.mark.parametrize("cls", [Flooding, IFlood])
def test_no_gradient_exactly_at_the_level(cls: type) -> None:
    surface = oracle.Surface(torch.tensor([0.5]), lambda w: w.sum())
    assert surface.grad_by(cls(0.5)).tolist() == [0.0]


def test_weight_leaves_the_level_alone() -> None:
    surface = oracle.Surface(torch.tensor([1.0]), lambda w: w.sum())
    Flooding(0.6).backward(surface, surface.closure, weight=0.5)  # 1 > 0.6 > 0.5 * 1
    assert surface.weight.grad is not None
    assert surface.weight.grad.tolist() == [0.5]


@pytest.mark.parametrize("cls", [Flooding, IFlood])
def test_returns_the_plain_loss(cls: type) -> None:
    surface = oracle.Surface(torch.tensor([1.0]), lambda w: w.sum())
    assert cls(3.0).backward(surface, surface.closure).item() == 1.0


@pytest.mark.parametrize("cls", [Flooding, IFlood])
def test_levels_of_another_ensemble_are_refused(cls: type) -> None:
    method = cls(torch.tensor([0.1, 0.2]))
    plain = inputs.plain()
    with pytest.raises(ValueError, match="2 values, one per member"):
        method.backward(plain.model, plain)
    model = Ensemble(lambda: torch.nn.Linear(4, 3), 3)
    with pytest.raises(ValueError, match="2 values, one per member"):
        method.backward(model, lambda: cross_entropy(model(plain.x), plain.y))
