"""A method in every k-th step: when, what joins it, passes, counts."""

from __future__ import annotations

import inputs
import oracle
import pytest
import torch
from properties import Calls, identical

from flatnb.methods import (
    ERM,
    FAM,
    NSO,
    SAM,
    Every,
    Flooding,
    Linear,
    Method,
    SoftAD,
    compose,
)


def made(method: Method, count: int) -> list[oracle.Params]:
    return [oracle.made_by(method) for _ in range(count)]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_every_kth_step_is_the_methods_and_the_others_are_plain(k: int) -> None:
    """A twin that is called in these steps alone has the same noise."""
    for make in (
        lambda: SAM(0.4),
        lambda: NSO(0.1),
        lambda: Flooding(9.0),
        lambda: FAM(0.2),
    ):
        twin = make()
        for t, gradient in enumerate(made(Every(make(), k), 7)):
            wanted = oracle.made_by(twin if t % k == 0 else ERM())
            oracle.assert_equal(gradient, wanted)


def test_what_is_left_out_in_between() -> None:
    whole = Every(compose(SoftAD(0.9), SAM(0.4)), 2)
    rule = compose(SoftAD(0.9), Every(SAM(0.4), 2))
    penalty = compose(Every(FAM(0.2), 2), SAM(0.4))
    both, soft, sam = compose(SoftAD(0.9), SAM(0.4)), SoftAD(0.9), SAM(0.4)
    for method, first, second in (
        (whole, both, ERM()),
        (rule, both, soft),
        (penalty, compose(FAM(0.2), SAM(0.4)), sam),
    ):
        for gradient, wanted in zip(
            made(method, 3), (first, second, first), strict=True
        ):
            oracle.assert_equal(gradient, oracle.made_by(wanted))
    with pytest.raises(ValueError, match=r"Every\(method=SAM.*are gradient rules"):
        compose(Every(SAM(), 2), NSO(0.1))


def test_passes_are_those_of_the_closure_on_average() -> None:
    for method, k in ((SAM(0.4), 4), (NSO(0.1, 3), 3), (ERM(), 2)):
        periodic, problem = Every(method, k), inputs.plain()
        calls = Calls(problem)
        for _ in range(2 * k):
            periodic.backward(problem.model, calls)
        assert calls.count == pytest.approx(2 * k * periodic.passes)
    assert Every(SAM(), 5).passes == 1.2
    assert compose(Flooding(0.1), Every(SAM(), 5)).passes == 1.2


def test_schedules_count_all_steps() -> None:
    gradients = made(Every(SAM(Linear(0.0, 0.4, 4)), 2), 5)
    for t, rho in ((0, 0.0), (2, 0.2), (4, 0.4)):
        oracle.assert_equal(gradients[t], oracle.made_by(SAM(rho)))


def test_resumes_at_any_step() -> None:
    def make() -> Method:
        return compose(Flooding(0.1), Every(NSO(Linear(0.1, 0.2, 5)), 2))

    unbroken, method = make(), make()
    for _ in range(5):
        first, second = oracle.made_by(unbroken), oracle.made_by(method)
        assert identical(first.values(), second.values())
        resumed = make()
        resumed.load_state_dict(method.state_dict())
        method = resumed
    for state in ({}, {"calls": 1}, {"calls": 1, "method": {}, "more": 1}):
        with pytest.raises(ValueError, match=r"state has the entries"):
            Every(SAM(), 2).load_state_dict(state)


def test_a_failed_step_is_tried_again() -> None:
    problem, method = inputs.exact(), Every(SAM(0.4), 2)
    with pytest.raises(ValueError, match="closure"):
        method.backward(problem.model, lambda: problem().detach())
    oracle.assert_equal(oracle.made_by(method), oracle.made_by(SAM(0.4)))


def test_bad_arguments_are_refused() -> None:
    for bad in (SAM, 0.1, None, torch.optim.SGD):
        with pytest.raises(TypeError, match=r"method=.*allowed: a method such as SAM"):
            Every(bad, 2)
    assert repr(Every(SAM(0.1), 5)) == "Every(method=SAM(rho=0.1), k=5)"
