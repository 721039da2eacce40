"""Sharpness: exact on quadratics, ordered, and invariant to what it says."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, Case
from torch import nn

from flatnb.curvature import (
    HessianOperator,
    Objective,
    average_sharpness,
    worst_sharpness,
)

MEASURES = (partial(worst_sharpness, steps=1), worst_sharpness, average_sharpness)


def quadratic(offset: float) -> tuple[nn.Module, list, torch.Tensor]:
    """A linear regression at its minimum, or off it; with its Hessian."""
    torch.manual_seed(0)
    x, y = torch.randn(40, 4).double(), torch.randn(40, 1).double()
    model = nn.Linear(4, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x, y).solution.mT + offset)
    return model, [(x[:30], y[:30]), (x[30:], y[30:])], 2 * x.mT @ x / 40


def test_worst_case_of_a_quadratic_is_its_top_eigenvalue():
    model, data, hessian = quadratic(0.0)
    found = worst_sharpness(model, F.mse_loss, data, rho=0.3, steps=200)
    assert found.value == pytest.approx(
        float(torch.linalg.eigvalsh(hessian)[-1]) * 0.045, rel=1e-4
    )


def test_average_case_of_a_quadratic_is_its_trace():
    model, data, hessian = quadratic(0.5)
    found = average_sharpness(model, F.mse_loss, data, sigma=0.2, pairs=400)
    assert abs(found.value - 0.02 * float(hessian.trace())) < 3 * found.stderr
    assert found.stderr < 0.1 * found.value  # the slope cancels within a pair
    assert found.products == 801


def test_sam_step_is_the_formula(case: Case):
    objective = Objective(case.model, case.loss, case.batches)
    loss, g = objective.gradient()
    w = objective.vector
    for adaptive, t in ((False, torch.ones_like(w)), (True, w.abs())):
        moved = w + 0.05 * t**2 * g / (t * g).norm()
        found = worst_sharpness(
            case.model, case.loss, case.batches, 0.05, steps=1, adaptive=adaptive
        )
        assert found.value == pytest.approx(objective.loss(moved) - loss, rel=1e-9)
        assert found.loss == pytest.approx(loss) and found.products == 2


def test_ascent_is_at_least_as_high_as_sam(case: Case):
    one = worst_sharpness(case.model, case.loss, case.batches, 0.2, steps=1)
    more = worst_sharpness(case.model, case.loss, case.batches, 0.2, steps=10)
    assert more.value >= one.value > 0


def test_ascent_leaves_a_critical_point():
    model, data, _ = quadratic(0.0)
    with torch.no_grad():
        model.weight.zero_()
    flat = [(x, torch.zeros_like(y)) for x, y in data]
    assert worst_sharpness(model, F.mse_loss, flat, 0.1, steps=1).value == 0
    assert worst_sharpness(model, F.mse_loss, flat, 0.1).value > 0


def scaled(model: nn.Module, c: float) -> nn.Module:
    model = copy.deepcopy(model)
    with torch.no_grad():
        model[0].weight.mul_(c)
        model[0].bias.mul_(c)
        model[2].weight.div_(c)
    return model


@pytest.mark.parametrize("measure", MEASURES)
def test_adaptive_versions_alone_are_invariant_under_rescaling(measure):
    case = CASES["perceptron"]
    other = scaled(case.model, 4.0)
    x, _ = case.data
    assert torch.allclose(other(x), case.model(x))
    for adaptive in (True, False):
        before = measure(
            case.model, case.loss, case.batches, 0.05, adaptive=adaptive
        ).value
        after = measure(other, case.loss, case.batches, 0.05, adaptive=adaptive).value
        assert (after == pytest.approx(before, rel=1e-9)) is adaptive


@pytest.mark.parametrize("measure", MEASURES)
def test_only_what_is_trained_moves(measure):
    case = CASES["perceptron"]
    frozen = copy.deepcopy(case.model)
    for name, p in frozen.named_parameters():
        p.requires_grad_(name == "4.bias")
    values = [
        measure(model, case.loss, case.batches, 0.05).value
        for model in (case.model, frozen)
    ]
    assert values[1] != pytest.approx(values[0], rel=1e-3)


def test_small_noise_measures_the_trace():
    case = CASES["attention"]
    trace = float(case.hessian.trace())
    found = average_sharpness(case.model, case.loss, case.batches, 1e-3, pairs=300)
    assert abs(found.value - 5e-7 * trace) < 4 * found.stderr
    assert HessianOperator(case.model, case.loss, case.batches).size == len(
        case.hessian
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda *a: worst_sharpness(*a, 0.0),
        lambda *a: worst_sharpness(*a, steps=0),
        lambda *a: average_sharpness(*a, -1.0),
        lambda *a: average_sharpness(*a, pairs=1),
        lambda *a: worst_sharpness(*a, float("inf")),
    ],
)
def test_bad_numbers(call):
    case = CASES["perceptron"]
    with pytest.raises(ValueError, match="allowed: "):
        call(case.model, case.loss, case.batches)


@pytest.mark.parametrize("measure", [worst_sharpness, average_sharpness])
def test_a_loss_that_overflows_is_no_sharpness(measure):
    model, data, _ = quadratic(0.5)
    data = [(x.float(), y.float()) for x, y in data]
    with pytest.raises(
        ValueError, match=r"(rho|sigma)=1e\+25: the loss at this distance"
    ):
        measure(model.float(), F.mse_loss, data, 1e25)


def test_the_average_covers_as_often_as_it_says():
    model, data, hessian = quadratic(0.5)
    exact = 0.02 * float(hessian.trace())  # of a quadratic, at every width
    found = [
        average_sharpness(model, F.mse_loss, data, 0.2, pairs=20, seed=seed)
        for seed in range(100)
    ]
    covered = sum(abs(one.value - exact) <= 2 * one.stderr for one in found)
    assert covered >= 86  # 94 expected, with a deviation of 2.4


def test_the_worst_case_is_never_below_the_loss_itself():
    """A step of SAM may overshoot and end lower; no step at all is in the ball."""
    model, data, _ = quadratic(0.5)

    def bent(z, y):
        return (z - y).square().mean().clamp(max=1).mul(20).sin()

    for rho in (0.5, 1.0, 3.0):
        assert worst_sharpness(model, bent, data, rho, steps=2).value >= 0
