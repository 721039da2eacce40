"""LookSAM: the formula in both kinds of step, what it remembers."""

from __future__ import annotations

import copy
import io

import inputs
import oracle
import pytest
import torch
from properties import identical
from torch import nn

from flatnb.ensemble import Ensemble
from flatnb.methods import ERM, SAM, LookSAM, Method, SoftAD, compose
from flatnb.metrics import cross_entropy


def steps(method: Method, count: int, **kw: object) -> list[oracle.Params]:
    """The gradients of some steps of SGD on other batches, and the weights in the
    end.
    """
    problem, found = inputs.exact(), []
    for batch in problem.batches(count):
        problem.model.zero_grad()
        method.backward(problem.model, batch, **kw)
        found.append({n: p.grad.clone() for n, p in problem.model.named_parameters()})
        with torch.no_grad():
            for p in problem.params:
                p -= 0.5 * p.grad
    return [*found, oracle.params(problem)]


def by_hand(rho: float, k: int, alpha: float, count: int) -> list[oracle.Params]:
    problem, found, turn = inputs.exact(), [], {}
    for t, batch in enumerate(problem.batches(count)):
        w = oracle.params(problem)
        g = oracle.grad(batch, w)
        if t % k == 0:
            made = oracle.grad(batch, oracle.add(w, g, rho / oracle.length(g)))
            cosine = sum((g[n] * made[n]).sum() for n in g)
            cosine /= oracle.length(g) * oracle.length(made)
            turn = oracle.add(made, g, -oracle.length(made) * cosine / oracle.length(g))
        else:
            made = oracle.add(g, turn, alpha * oracle.length(g) / oracle.length(turn))
        found.append(made)
        with torch.no_grad():
            for n, p in problem.model.named_parameters():
                p -= 0.5 * made[n]
    return [*found, oracle.params(problem)]


@pytest.mark.parametrize(("k", "alpha"), [(1, 0.7), (2, 0.7), (3, 0.0), (3, 1.5)])
def test_gradients_are_the_formula(k: int, alpha: float) -> None:
    made, wanted = steps(LookSAM(0.4, k, alpha), 7), by_hand(0.4, k, alpha, 7)
    for a, b in zip(made, wanted, strict=True):
        oracle.assert_equal(a, b, 1e-10)


def test_contains_sam_and_plain_training_in_between() -> None:
    for a, b in zip(steps(LookSAM(0.4, 1), 4), steps(SAM(0.4), 4), strict=True):
        oracle.assert_equal(a, b)
    method = LookSAM(0.0, 3)  # nothing turned, nothing reused
    for a, b in zip(steps(method, 4), steps(ERM(), 4), strict=True):
        oracle.assert_equal(a, b)


def test_steps_cost_two_passes_or_one() -> None:
    problem, method, calls = inputs.plain(), LookSAM(0.4, 3), []
    for _ in range(7):
        before = len(calls)
        method.backward(problem.model, lambda: calls.append(1) or problem())
        calls.append(0)
        assert len(calls) - before - 1 == (2 if method.calls % 3 == 1 else 1)
    assert LookSAM(k=4).passes == 1.25


def test_weight_scales_each_kind_of_step() -> None:
    problem = inputs.exact()
    plain, weighted = LookSAM(0.4, 2), LookSAM(0.4, 2)
    for batch in problem.batches(4):
        grads = []
        for method, weight in ((plain, 1.0), (weighted, 0.25)):
            for p in problem.params:
                p.grad = torch.ones_like(p)
            method.backward(problem.model, batch, weight=weight)
            grads.append([(p.grad - 1) / weight for p in problem.params])
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_scaler_scales_each_kind_of_step() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    problem, plain, scaled = inputs.exact(), LookSAM(0.4, 2), LookSAM(0.4, 2)
    for batch in problem.batches(4):
        grads = []
        for method, kw in ((plain, {}), (scaled, {"scaler": scaler})):
            problem.model.zero_grad()
            method.backward(problem.model, batch, **kw)
            grads.append(problem.grads)
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(64 * a, b, rtol=1e-9, atol=1e-12)


# -- what it remembers
# ----------------------------------------------------------------------------


def test_resumes_at_any_step_through_a_file() -> None:
    problem, unbroken, method = inputs.exact(), LookSAM(0.4, 3), LookSAM(0.4, 3)
    for batch in problem.batches(7):
        grads = []
        for each in (unbroken, method):
            problem.model.zero_grad()
            each.backward(problem.model, batch)
            grads.append(problem.grads)
        assert identical(*grads)
        file = io.BytesIO()
        torch.save(method.state_dict(), file)
        file.seek(0)
        method = LookSAM(0.4, 3)
        method.load_state_dict(torch.load(file, weights_only=True))


def test_a_loaded_state_is_a_copy() -> None:
    method, problem = LookSAM(0.4, 1), inputs.exact()
    method.backward(problem.model, problem)
    state = copy.deepcopy(method.state_dict())
    other = LookSAM(0.4, 1)
    other.load_state_dict(state)
    other.backward(problem.model, problem.batches(1)[0])
    assert identical(state["turn"].values(), method.state_dict()["turn"].values())


def test_names_are_those_of_the_net_without_wrappers() -> None:
    plain, wrapped = inputs.exact(), inputs.exact()
    wrapped.model = torch.compile(wrapped.model, backend="eager")
    first, second = LookSAM(0.4, 2), LookSAM(0.4, 2)
    with torch.compiler.set_stance("force_eager"):
        first.backward(plain.model, plain)
        second.backward(wrapped.model, wrapped)
        assert list(first.state_dict()["turn"]) == list(second.state_dict()["turn"])
        second.load_state_dict(first.state_dict())
        second.backward(wrapped.model, wrapped)


def test_follows_dtype_and_frozen_layers() -> None:
    problem, method = inputs.plain(), LookSAM(0.4, 3)
    method.backward(problem.model, problem)
    problem.model.double()
    problem.x = problem.x.double()
    problem.model.body[0].requires_grad_(False)
    method.backward(problem.model, problem)
    problem.model.body[0].requires_grad_(True)
    problem.model.zero_grad()
    method.backward(problem.model, problem)
    assert all(p.grad.dtype == torch.float64 for p in problem.params)
    turn = method.state_dict()["turn"]
    assert all(
        float(t.abs().sum()) > 0 and t.dtype == torch.float64 for t in turn.values()
    )


def test_what_is_not_finite_is_not_remembered() -> None:
    """Neither a gradient at w nor one uphill, and in an ensemble of the member
    alone.
    """
    for call in (1, 2):
        problem, method, twin = inputs.exact(), LookSAM(0.4, 2), LookSAM(0.4, 2)
        first, second, third = problem.batches(3)
        for each in (method, twin):
            each.backward(problem.model, first)
            each.calls = 2  # the next one looks again
        calls = []

        def overflowing(second=second, call=call, calls=calls) -> torch.Tensor:
            calls.append(1)
            return second() * (torch.nan if len(calls) == call else 1.0)

        problem.model.zero_grad()
        method.backward(problem.model, overflowing)
        assert not all(torch.isfinite(p.grad).all() for p in problem.params)
        kept = twin.state_dict()["turn"]
        assert identical(method.state_dict()["turn"].values(), kept.values())
        problem.model.zero_grad()
        method.backward(problem.model, third)
        assert all(torch.isfinite(p.grad).all() for p in problem.params)

    model = Ensemble(lambda: nn.Linear(4, 3), 3)
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    method = LookSAM(0.4, 2)
    broken = torch.tensor([1.0, torch.nan, 1.0])[:, None]
    method.backward(model, lambda: cross_entropy(model(x), y) * broken)
    for t in method.state_dict()["turn"].values():
        assert torch.isfinite(t).all()
        assert [bool(m.abs().sum() > 0) for m in t] == [True, False, True]


def test_other_states_are_refused() -> None:
    for state in ({}, {"calls": 1}, {"calls": 1, "turn": {}, "more": 1}, {"turn": {}}):
        with pytest.raises(ValueError, match=r"state has the entries"):
            LookSAM().load_state_dict(state)


def test_joins_a_loss_transform() -> None:
    joined = compose(SoftAD(0.9), LookSAM(0.4, 1))
    oracle.assert_equal(
        oracle.made_by(joined), oracle.made_by(compose(SoftAD(0.9), SAM(0.4)))
    )
    joined = compose(SoftAD(0.9), LookSAM(0.0, 2))
    for _ in range(2):
        oracle.assert_equal(oracle.made_by(joined), oracle.made_by(SoftAD(0.9)))
