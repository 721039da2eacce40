"""Gradient norm penalty: formulas, the methods it contains, warm-up."""

from __future__ import annotations

import inputs
import oracle
import pytest
import torch

from flatnb.ensemble import Ensemble
from flatnb.methods import ERM, GNP, SAM, Flooding, LinearWarmup, ZeroWarmup, compose
from flatnb.train import cross_entropy


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
    expected = {name: 0.3 * g1[name] / oracle.length(g1) + 0.7 * g2[name] for name in g1}
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


def test_linear_warmup_rises_from_zero() -> None:
    ramp = LinearWarmup(0.8, 4)
    assert [ramp(t) for t in range(6)] == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 0.8])
    assert repr(GNP(0.1, ramp)) == "GNP(r=0.1, alpha=LinearWarmup(value=0.8, steps=4))"


def test_zero_warmup_jumps() -> None:
    ramp = ZeroWarmup(0.8, 2)
    assert [ramp(t) for t in range(4)] == [0.0, 0.0, 0.8, 0.8]


@pytest.mark.parametrize("name", ["r", "alpha"])
def test_warmup_counts_backward_calls_and_resumes(name: str) -> None:
    def make(value: object) -> GNP:
        return GNP(**{"r": 0.4, "alpha": 0.7, name: value})

    target = {"r": 0.4, "alpha": 0.7}[name]
    method = make(LinearWarmup(target, 3))
    for t in range(5):
        expected = oracle.made_by(make(target * min(1.0, t / 3)))
        oracle.assert_equal(oracle.made_by(method), expected)
        resumed = make(LinearWarmup(target, 3))
        resumed.load_state_dict(method.state_dict())
        method = resumed
    assert method.state_dict() == {"calls": 5}


def test_a_part_counts_too() -> None:
    part = GNP(0.4, LinearWarmup(0.7, 1))
    joined = compose(Flooding(0.1), part)
    first, second = oracle.made_by(joined), oracle.made_by(joined)
    oracle.assert_equal(first, oracle.made_by(ERM()))
    oracle.assert_equal(second, oracle.made_by(GNP(0.4, 0.7)))
    assert joined.state_dict()["parts"] == [{}, {"calls": 2}]


def test_a_failed_call_does_not_count() -> None:
    problem, method = inputs.plain(), GNP(0.1, 0.5)
    with pytest.raises(ValueError, match="losses"):
        method.backward(problem.model, lambda: problem().mean())
    assert method.state_dict() == {"calls": 0}


def test_warmup_of_one_value_a_member() -> None:
    values = torch.tensor([0.2, 0.8])
    model = Ensemble(lambda: torch.nn.Linear(4, 3), 2)
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    grads = []
    for alpha in (LinearWarmup(values, 2), values / 2):
        method = GNP(0.3, alpha)
        method.calls = 1
        model.zero_grad()
        method.backward(model, lambda: cross_entropy(model(x), y))
        grads.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["r", "alpha"])
@pytest.mark.parametrize(("value", "error"), oracle.BAD_REALS)
def test_bad_hyperparameters_are_refused(name: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"{name}.*allowed: a finite number >= 0"):
        GNP(**{"r": 0.1, "alpha": 0.5, name: value})
    for warmup in (LinearWarmup, ZeroWarmup):
        with pytest.raises(error, match=r"value.*allowed: a finite number >= 0"):
            warmup(value, 3)


def test_other_bad_settings_are_refused() -> None:
    with pytest.raises(TypeError, match="normalize=0; allowed: True or False"):
        GNP(0.1, 0.5, normalize=0)
    for steps, error in oracle.BAD_COUNTS:
        for warmup in (LinearWarmup, ZeroWarmup):
            with pytest.raises(error, match=r"steps=.*allowed: an integer >= 1"):
                warmup(0.1, steps)
    with pytest.raises(ValueError, match="entry 'calls'"):
        GNP(0.1, 0.5).load_state_dict({})
    with pytest.raises(ValueError, match="calls=-1"):
        GNP(0.1, 0.5).load_state_dict({"calls": -1})
