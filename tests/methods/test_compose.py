"""Joining methods: what comes out, and what is refused."""

from __future__ import annotations

from copy import deepcopy

import inputs
import oracle
import pytest
import torch

from flatnb.methods import (
    BSAM,
    ERM,
    FAM,
    GNP,
    NSO,
    SAM,
    Flooding,
    IFlood,
    Method,
    SoftAD,
    WeightNoise,
    compose,
)


def softad(losses: torch.Tensor) -> torch.Tensor:
    return (torch.sqrt((losses - 1.1) ** 2 + 1) - 1).mean()


def test_rule_takes_the_gradients_of_the_transformed_loss() -> None:
    problem = inputs.exact()
    w = oracle.params(problem)
    g = oracle.grad(problem, w, softad)
    expected = oracle.grad(problem, oracle.add(w, g, 0.3 / oracle.length(g)), softad)
    for parts in ((SoftAD(1.1), SAM(0.3)), (SAM(0.3), SoftAD(1.1))):
        oracle.assert_equal(oracle.made_by(compose(*parts)), expected)


@pytest.mark.parametrize(
    "rule", [SAM(0.3), GNP(0.3, 0.7), NSO(0.1), WeightNoise(0.1)], ids=repr
)
def test_every_rule_joins_a_transform(rule: Method) -> None:
    far_below = oracle.made_by(
        compose(IFlood(50.0), deepcopy(rule))
    )  # every loss is: ascent
    plain = oracle.made_by(deepcopy(rule))
    if isinstance(rule, WeightNoise):
        oracle.assert_equal(far_below, {name: -g for name, g in plain.items()})
    else:  # they move the other way, too
        assert oracle.differ(far_below, {name: -g for name, g in plain.items()})
    oracle.assert_equal(oracle.made_by(compose(Flooding(0.0), deepcopy(rule))), plain)


def test_penalties_add_up() -> None:
    one, three = (oracle.made_by(m) for m in (FAM(0.1), FAM(0.3)))
    both = oracle.made_by(compose(FAM(0.1), FAM(0.2)))
    oracle.assert_equal(both, three)
    assert oracle.differ(one, three)


def test_plain_training_adds_nothing() -> None:
    oracle.assert_equal(oracle.made_by(compose(ERM(), ERM())), oracle.made_by(ERM()))
    oracle.assert_equal(
        oracle.made_by(compose(ERM(), SAM(0.3))), oracle.made_by(SAM(0.3))
    )
    method = SAM(0.3)
    assert compose(method) is method


def test_nests_flat() -> None:
    method = compose(compose(SoftAD(0.1), SAM(0.05)), FAM(0.2))
    assert repr(method) == "compose(SoftAD(theta=0.1), SAM(rho=0.05), FAM(lam=0.2))"
    assert method.passes == 2
    assert compose(SoftAD(0.1), NSO(0.1, 3)).passes == 6


def test_returns_the_plain_loss() -> None:
    problem = inputs.exact()
    loss = compose(SoftAD(5.0), SAM(0.3)).backward(problem.model, problem)
    torch.testing.assert_close(loss, problem().mean().detach())


def test_state_of_the_parts() -> None:
    method = compose(SoftAD(0.1), NSO(0.3))
    oracle.made_by(method)
    resumed = compose(SoftAD(0.1), NSO(0.3))
    resumed.load_state_dict(method.state_dict())
    oracle.assert_equal(oracle.made_by(resumed), oracle.made_by(method), tol=0.0)
    for state in ({}, {"0": {}}, {"calls": 1}):
        with pytest.raises(ValueError, match="state has the entries"):
            method.load_state_dict(state)


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        (
            (Flooding(0.1), SoftAD(0.1)),
            "Flooding.* and SoftAD.* are loss transforms.* room for one",
        ),
        (
            (SAM(0.1), GNP(0.1, 0.5)),
            "SAM.* and GNP.* are gradient rules.* room for one",
        ),
        (
            (compose(SoftAD(0.1), SAM(0.1)), NSO(0.1)),
            "SAM.* and NSO.* are gradient rules",
        ),
    ],
)
def test_two_for_one_place_are_refused(parts: tuple[Method, ...], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        compose(*parts)


def test_other_things_are_refused() -> None:
    weights = [torch.nn.Parameter(torch.zeros(1))]
    for thing in (
        BSAM(weights, examples=10),
        torch.optim.SGD(weights, 0.1),
        SAM,
        "SAM",
        None,
    ):
        with pytest.raises(TypeError, match="allowed: a method such as SAM"):
            compose(SoftAD(0.1), thing)
    with pytest.raises(ValueError, match="at least one method"):
        compose()
