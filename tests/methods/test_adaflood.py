"""AdaFlood: per-example levels, how they are made, and how a batch gets its own."""

from __future__ import annotations

import math

import inputs
import oracle
import pytest
import torch
from torch import Tensor

from flatnb.ensemble import Ensemble
from flatnb.methods import (
    SAM,
    AdaFlood,
    IFlood,
    adaflood_levels,
    compose,
    held_out_losses,
)
from flatnb.metrics import cross_entropy

LEVELS = torch.linspace(0.0, 3.0, 40, dtype=torch.float64)


def test_each_example_turns_at_its_own_level() -> None:
    problem = inputs.exact()
    w = oracle.params(problem)
    index = torch.arange(39, -1, -1)[::3][: len(problem.x)]
    index = torch.cat([index, index])[: len(problem.x)]
    signs = torch.sign(oracle.losses(problem, w) - LEVELS[index])
    assert 0 < (signs > 0).sum() < len(signs)
    expected = oracle.grad(problem, w, lambda v: (signs * v).sum() / len(v))
    method = AdaFlood(LEVELS)
    method.select(index)
    oracle.assert_equal(oracle.made_by(method), expected)


def test_objective_is_the_formula() -> None:
    method = AdaFlood(torch.tensor([0.1, 0.4, 0.7]))
    method.select(torch.tensor([2, 0]))
    value = method.objective(torch.tensor([0.5, 0.3]))
    assert float(value) == pytest.approx(((0.2 + 0.7) + (0.2 + 0.1)) / 2)


def test_equal_levels_are_iflood() -> None:
    method = AdaFlood(torch.full((12,), 1.1, dtype=torch.float64))
    method.select(torch.arange(12))
    oracle.assert_equal(oracle.made_by(method), oracle.made_by(IFlood(1.1)))


def test_works_as_a_part() -> None:
    part = AdaFlood(torch.full((12,), 1.1, dtype=torch.float64))
    joined = compose(part, SAM(0.05))
    part.select(torch.arange(12))
    oracle.assert_equal(
        oracle.made_by(joined), oracle.made_by(compose(IFlood(1.1), SAM(0.05)))
    )


@pytest.mark.parametrize("shared", [True, False])
def test_members_have_levels_of_their_own_or_share_them(shared: bool) -> None:
    model = Ensemble(lambda: torch.nn.Linear(4, 3), 2).double()
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3
    levels = torch.rand(6, dtype=torch.float64) + 0.5
    levels = levels if shared else torch.stack([levels, levels + 0.4])
    method = AdaFlood(levels)
    method.select(torch.arange(6))
    method.backward(model, lambda: cross_entropy(model(x), y))
    for i in range(2):
        net = model.member(i)
        losses = torch.nn.functional.cross_entropy(net(x), y, reduction="none")
        own = levels if shared else levels[i]
        (losses - own).abs().mean().backward()
        for p, q in zip(net.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(q.grad[i], p.grad)


@pytest.mark.parametrize("gamma", [1e-9, 0.3, 0.5, 0.999])
def test_levels_are_the_formula(gamma: float) -> None:
    losses = torch.tensor([0.0, 1e-3, 0.7, 5.0, 30.0], dtype=torch.float64)
    expected = [-math.log((1 - gamma) * math.exp(-v) + gamma) for v in losses.tolist()]
    made = adaflood_levels(losses, gamma=gamma)
    assert made.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_levels_stay_finite_nonnegative_and_below_log_gamma() -> None:
    losses = torch.tensor([0.0, 1e-8, 50.0, 1e4])
    made = adaflood_levels(losses, gamma=0.5)
    assert made.dtype == losses.dtype
    assert made.min() >= 0
    assert made.max() <= math.log(2) + 1e-6
    AdaFlood(made)


def test_no_auxiliary_model_sees_the_example_it_judges() -> None:
    seen: list[set[int]] = []

    def train(indices: Tensor):
        mine = set(indices.tolist())
        seen.append(mine)

        def score(wanted: Tensor) -> Tensor:
            assert not mine & set(wanted.tolist())
            assert mine | set(wanted.tolist()) == set(range(11))
            return wanted + 0.5

        return score

    losses = held_out_losses(torch.randperm(11), 4, train)
    assert losses.tolist() == [i + 0.5 for i in range(11)]
    assert len(seen) == 4


def test_wrong_selections_are_refused() -> None:
    problem = inputs.exact()
    method = AdaFlood(LEVELS)
    with pytest.raises(ValueError, match=r"selected: \(0,\).*call select\(indices\)"):
        oracle.made_by(method, problem)
    method.select(torch.arange(5))
    with pytest.raises(ValueError, match=r"selected: \(5,\), losses: \(12,\)"):
        oracle.made_by(method, problem)
    with pytest.raises(IndexError):
        method.select(torch.tensor([40]))
    two = AdaFlood(torch.zeros(2, 12))
    two.select(torch.arange(12))
    with pytest.raises(ValueError, match=r"selected: \(2, 12\), losses: \(12,\)"):
        oracle.made_by(two, problem)


@pytest.mark.parametrize(
    ("levels", "error"),
    [
        ([0.1], TypeError),
        (torch.tensor([1]), ValueError),
        (torch.tensor([0.1, -0.1]), ValueError),
        (torch.tensor([0.1, oracle.NAN]), ValueError),
        (torch.tensor([0.1, oracle.INF]), ValueError),
    ],
)
def test_bad_levels_are_refused(levels: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"levels=.*allowed: a floating-point tensor"):
        AdaFlood(levels)


@pytest.mark.parametrize("value", [-0.1, oracle.NAN, "1", None])
def test_bad_settings_of_the_levels_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"gamma=.*allowed"):
        adaflood_levels(torch.ones(3), gamma=value)


def test_bad_losses_and_folds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"gamma=1\.0; allowed: a number in \(0, 1\)"):
        adaflood_levels(torch.ones(3), gamma=1.0)
    with pytest.raises(ValueError, match=r"losses=.*allowed: .* finite and >= 0"):
        adaflood_levels(torch.tensor([1.0, -1.0]))
    with pytest.raises(TypeError, match=r"losses=\[1.0\]; allowed"):
        adaflood_levels([1.0])
    for folds in (0, 1, 6):
        with pytest.raises(ValueError, match=f"folds={folds}"):
            held_out_losses(torch.arange(5), folds, lambda _: lambda i: i.float())
