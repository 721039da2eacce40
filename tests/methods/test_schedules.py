"""Hyperparameters that change during training: values, counts, saving."""

from __future__ import annotations

import math
from typing import Any

import inputs
import oracle
import pytest
import torch
from properties import identical
from table import METHODS, REALS
from torch import nn

import flatnb
from flatnb.ensemble import Ensemble
from flatnb.methods import (
    ERM,
    GNP,
    NSO,
    SAM,
    Cosine,
    Flooding,
    FollowLR,
    Linear,
    Method,
    compose,
)
from flatnb.metrics import cross_entropy

SCHEDULED = [
    pytest.param(METHODS[name].kind, METHODS[name].settings, real, id=f"{name} {real}")
    for name, real in REALS
]


# -- values
# --------------------------------------------------------------------------------------


def test_linear() -> None:
    ramp = Linear(0.2, 0.8, 4)
    assert [ramp(t) for t in range(6)] == pytest.approx(
        [0.2, 0.35, 0.5, 0.65, 0.8, 0.8]
    )
    assert (ramp(0), ramp(4), ramp(10**9)) == (0.2, 0.8, 0.8)  # exactly
    down = Linear(start=0.3, end=0.0, steps=3)
    assert [down(t) for t in range(4)] == pytest.approx([0.3, 0.2, 0.1, 0.0])


def test_cosine() -> None:
    ramp = Cosine(1.0, 0.0, 10)
    wanted = [(1 + math.cos(math.pi * t / 10)) / 2 for t in range(11)] + [0.0]
    assert [ramp(t) for t in range(12)] == pytest.approx(wanted)


@pytest.mark.parametrize("kind", [Linear, Cosine])
def test_values_stay_between_their_ends(kind: type[Linear]) -> None:
    for start, end in ((0.1, 0.3), (0.7, 1.0), (1e-8, 0.05), (0.3, 0.1)):
        ramp = kind(start, end, 97)
        values = [ramp(t) for t in range(100)]
        assert values == sorted(values, reverse=start > end)
        assert {values[0], values[-1]} == {start, end}


def test_follows_the_learning_rate() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.4)
    method = SAM(FollowLR(optimizer, high=0.6, lr_high=0.4, low=0.2, lr_low=0.1))
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    for lr in (0.4, 0.2, 0.1):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(lr)
        assert method.rho == pytest.approx(0.2 + 0.4 * (lr - 0.1) / 0.3)
        optimizer.step()
        scheduler.step()
    assert SAM(FollowLR(optimizer, 0.8, 0.1)).rho == pytest.approx(
        8 * 0.05
    )  # in proportion
    assert (
        repr(method) == "SAM(rho=FollowLR(high=0.6, lr_high=0.4, low=0.2, lr_low=0.1))"
    )


def test_a_learning_rate_below_the_lowest_is_refused_where_it_makes_no_radius() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.4)
    method = SAM(FollowLR(optimizer, high=0.6, lr_high=0.4, low=0.0, lr_low=0.1))
    optimizer.param_groups[0]["lr"] = 0.01
    problem = inputs.plain()
    with pytest.raises(ValueError, match=r"rho=-0\.18.*allowed: a finite number >= 0"):
        method.backward(problem.model, problem)


def test_schedules_are_exported() -> None:
    assert (flatnb.Linear, flatnb.Cosine, flatnb.FollowLR) == (Linear, Cosine, FollowLR)


# -- in a method
# ----------------------------------------------------------------------------------


def trained(
    method: Method, steps: int, value: Any = None, name: str = ""
) -> list[torch.Tensor]:
    """The gradients of some calls on batches of a net; `value(t)` is set by hand
    before each.
    """
    problem, grads = inputs.exact(), []
    for t, batch in enumerate(problem.batches(steps)):
        if value is not None:
            setattr(method, name, value(t))
        problem.model.zero_grad()
        method.backward(problem.model, batch)
        grads += [p.grad.clone() for p in problem.params]
    return grads


@pytest.mark.parametrize(("cls", "kw", "name"), SCHEDULED)
def test_a_schedule_is_the_value_set_by_hand(
    cls: type, kw: dict[str, Any], name: str
) -> None:
    ramp = Linear(kw[name], 3 * kw[name], 3)
    method = cls(**{**kw, name: ramp})
    made, wanted = trained(method, 5), trained(cls(**kw), 5, ramp, name)
    assert identical(made, wanted)
    assert method.calls == 5
    assert getattr(method, name) == 3 * kw[name]
    assert repr(ramp) in repr(method)
    constant = trained(cls(**kw), 5)
    assert not identical(made, constant)


@pytest.mark.parametrize(("cls", "kw", "name"), SCHEDULED)
def test_a_schedule_resumes(cls: type, kw: dict[str, Any], name: str) -> None:
    """Saved and loaded after each call, also into a method that made no call yet."""

    def make() -> Method:
        return cls(**{**kw, name: lambda calls: (1 + calls) * kw[name]})

    problem, method, twin = inputs.exact(), make(), make()
    for batch in problem.batches(4):
        grads = []
        for each in (method, twin):
            problem.model.zero_grad()
            each.backward(problem.model, batch)
            grads.append(problem.grads)
        assert identical(*grads)
        resumed = make()
        resumed.load_state_dict(method.state_dict())
        assert resumed.calls == method.calls == twin.calls
        method = resumed


def test_members_have_schedules_of_their_own() -> None:
    values = torch.tensor([0.2, 0.8])
    model = Ensemble(lambda: nn.Linear(4, 3), 2)
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    grads = []
    for alpha in (Linear(torch.zeros(2), values, 2), values / 2):
        method = GNP(0.3, alpha)
        method.calls = 1
        model.zero_grad()
        method.backward(model, lambda: cross_entropy(model(x), y))
        grads.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_parts_count_too() -> None:
    part = GNP(0.4, Linear(0.0, 0.7, 1))
    joined = compose(Flooding(0.1), part)
    first, second = oracle.made_by(joined), oracle.made_by(joined)
    oracle.assert_equal(first, oracle.made_by(ERM()))
    oracle.assert_equal(second, oracle.made_by(GNP(0.4, 0.7)))
    assert joined.state_dict() == {
        "calls": 2,
        "0": {"calls": 2},
        "1": {"calls": 2},
    }
    again = compose(Flooding(0.1), GNP(0.4, Linear(0.0, 0.7, 1)))
    again.load_state_dict(joined.state_dict())
    assert [part.calls for part in again.parts] == [2, 2]


def test_only_calls_that_end_well_count() -> None:
    problem, method = inputs.plain(), SAM(Linear(0.0, 1.0, 4))

    def interrupted() -> torch.Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        method.backward(problem.model, interrupted)
    assert method.state_dict() == {"calls": 0}
    problem.x = problem.x * torch.nan
    method.backward(problem.model, problem)
    assert method.state_dict() == {"calls": 1}


def test_a_schedule_set_later_starts_where_the_count_is() -> None:
    problem, method = inputs.plain(), SAM(0.1)
    for _ in range(3):
        method.backward(problem.model, problem)
    method.rho = Linear(0.0, 1.0, 10)
    assert method.rho == pytest.approx(0.3)


def test_states_of_another_kind() -> None:
    with pytest.raises(ValueError, match=r"state has the entries"):
        SAM(Linear(0.0, 1.0, 4)).load_state_dict({})
    with pytest.raises(ValueError, match="calls=-1"):
        SAM(Linear(0.0, 1.0, 4)).load_state_dict({"calls": -1})
    with pytest.raises(ValueError, match="state has the entries"):
        SAM(Linear(0.0, 1.0, 4)).load_state_dict({"calls": 1, "more": 2})
    with pytest.raises(ValueError, match="state has the entries"):
        NSO(Linear(0.0, 1.0, 4)).load_state_dict({"calls": 1})


# -- bad input
# ------------------------------------------------------------------------------------


def test_bad_schedules_are_refused() -> None:
    for steps, error in oracle.BAD_COUNTS:
        with pytest.raises(error, match=r"steps=.*allowed: an integer >= 1"):
            Linear(0.1, 0.2, steps)


@pytest.mark.parametrize(("cls", "kw", "name"), SCHEDULED)
def test_bad_values_are_refused_when_set_and_when_reached(
    cls: type, kw: dict[str, Any], name: str
) -> None:
    for value, error in oracle.BAD_REALS:
        with pytest.raises(error, match=rf"{name}.*allowed: "):
            cls(**{**kw, name: lambda calls, v=value: v})
    method = cls(**{**kw, name: lambda calls: kw[name] - 5 * calls})
    problem = inputs.exact()
    method.backward(problem.model, problem)
    before = oracle.params(problem)
    with pytest.raises(ValueError, match=rf"{name}=-.*allowed: "):
        for _ in range(2):  # LookSAM needs rho in every other call
            method.backward(problem.model, problem)
    assert identical(oracle.params(problem).values(), before.values())
