"""Friendly-SAM: the formula over several steps, the methods it contains, what it
remembers.
"""

from __future__ import annotations

import inputs
import oracle
import pytest
import torch
from properties import identical
from torch import nn

from flatnb.ensemble import Ensemble
from flatnb.methods import ERM, SAM, FriendlySAM, Method, SoftAD, compose
from flatnb.metrics import cross_entropy


def made(method: Method, count: int) -> list[oracle.Params]:
    """The gradients of some calls on other batches of one net."""
    problem, found = inputs.exact(), []
    for batch in problem.batches(count):
        problem.model.zero_grad()
        method.backward(problem.model, batch)
        found.append({n: p.grad.clone() for n, p in problem.model.named_parameters()})
    return found


def by_hand(rho: float, lam: float, sigma: float, count: int) -> list[oracle.Params]:
    problem, found = inputs.exact(), []
    w = oracle.params(problem)
    mean = {n: torch.zeros_like(t) for n, t in w.items()}
    for batch in problem.batches(count):
        g = oracle.grad(batch, w)
        mean = {n: lam * mean[n] + (1 - lam) * g[n] for n in w}
        d = oracle.add(g, mean, -sigma)
        found.append(oracle.grad(batch, oracle.add(w, d, rho / oracle.length(d))))
    return found


@pytest.mark.parametrize(
    ("lam", "sigma"), [(0.9, 1.0), (0.6, 1.0), (0.5, 0.3), (1.0, 1.0)]
)
def test_gradients_are_the_formula(lam: float, sigma: float) -> None:
    for a, b in zip(
        made(FriendlySAM(0.4, lam, sigma), 5), by_hand(0.4, lam, sigma, 5), strict=True
    ):
        oracle.assert_equal(a, b, 1e-10)


def test_contains_sam_and_plain_training() -> None:
    sam, friendly_ = made(SAM(0.4), 3), made(FriendlySAM(0.4, sigma=0.0), 3)
    for a, b in zip(sam, friendly_, strict=True):
        oracle.assert_equal(a, b)
    with_mean = made(FriendlySAM(0.4), 3)
    oracle.assert_equal(with_mean[0], sam[0])
    assert oracle.differ(with_mean[1], sam[1])
    for lam in (
        0.9,
        0.0,
    ):  # at 0 the average is the gradient itself: nothing is left of it
        method = FriendlySAM(0.0 if lam else 0.4, lam)
        for a, b in zip(made(method, 3), made(ERM(), 3), strict=True):
            oracle.assert_equal(a, b)


def test_a_small_share_keeps_its_digits() -> None:
    """With lam near 0, d is a small difference; its direction is that of g - m all the
    same.
    """
    problem = inputs.exact()
    first, second = problem.batches(2)
    w = oracle.params(problem)
    g1, g2 = (oracle.grad(batch, w) for batch in (first, second))
    d = oracle.add(g2, g1, -1.0)
    expected = oracle.grad(second, oracle.add(w, d, 0.4 / oracle.length(d)))
    oracle.assert_equal(made(FriendlySAM(0.4, 1e-9), 2)[1], expected, 1e-7)


def test_resumes_at_any_step() -> None:
    problem, unbroken, method = inputs.exact(), FriendlySAM(0.4), FriendlySAM(0.4)
    for batch in problem.batches(4):
        grads = []
        for each in (unbroken, method):
            problem.model.zero_grad()
            each.backward(problem.model, batch)
            grads.append(problem.grads)
        assert identical(*grads)
        state = method.state_dict()
        assert list(state) == ["calls", "mean"]
        method = FriendlySAM(0.4)
        method.load_state_dict(state)


def test_what_is_not_finite_is_not_remembered() -> None:
    problem, method, twin = inputs.exact(), FriendlySAM(0.4), FriendlySAM(0.4)
    first, second, third = problem.batches(3)
    for each in (method, twin):
        each.backward(problem.model, first)
    problem.model.zero_grad()
    method.backward(problem.model, lambda: second() * torch.nan)
    assert not any(torch.isfinite(p.grad).all() for p in problem.params)
    grads = []
    for each in (method, twin):
        problem.model.zero_grad()
        each.backward(problem.model, third)
        grads.append(problem.grads)
    assert identical(*grads)

    model = Ensemble(lambda: nn.Linear(4, 3), 3)
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    method = FriendlySAM(0.4)
    broken = torch.tensor([1.0, torch.nan, 1.0])[:, None]
    method.backward(model, lambda: cross_entropy(model(x), y) * broken)
    for t in method.state_dict()["mean"].values():
        assert torch.isfinite(t).all()
        assert [bool(m.abs().sum() > 0) for m in t] == [True, False, True]


def test_a_parameter_that_takes_no_part_has_a_gradient_of_zero() -> None:
    problem = inputs.classification(
        lambda: inputs.StochasticDepth(True).double(), (4,)
    )()
    problem.x = problem.x.double()
    method = FriendlySAM(0.4, 0.5)
    sizes = []
    for used in (
        False,
        True,
    ):  # of both passes: a call changes it before the forward pass

        def closure(used: bool = used) -> torch.Tensor:
            problem.model.used = used
            return problem()

        method.backward(problem.model, closure)
        mean = method.state_dict()["mean"].get("block.weight")
        sizes.append(float(mean.norm()))
    assert sizes[1] == pytest.approx(0.5 * sizes[0])


def test_joins_a_loss_transform() -> None:
    joined = compose(SoftAD(0.9), FriendlySAM(0.4, sigma=0.0))
    oracle.assert_equal(
        oracle.made_by(joined), oracle.made_by(compose(SoftAD(0.9), SAM(0.4)))
    )


def test_a_decay_above_one_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"lam=1.1; allowed: a finite number >= 0 and <= 1"
    ):
        FriendlySAM(lam=1.1)
