"""GSAM: the formula, the methods it contains, what it promises."""

from __future__ import annotations

import inputs
import oracle
import pytest
import torch

from flatnb.methods import GSAM, SAM, SoftAD, compose


def inner(a: oracle.Params, b: oracle.Params) -> torch.Tensor:
    return sum((a[name] * b[name]).sum() for name in a)


def parts(rho: float) -> tuple[oracle.Params, oracle.Params]:
    """SAM's gradient, and the part of the plain one across it."""
    problem = inputs.exact()
    w = oracle.params(problem)
    g = oracle.grad(problem, w)
    uphill = oracle.grad(problem, oracle.add(w, g, rho / oracle.length(g)))
    return uphill, oracle.add(g, uphill, -inner(g, uphill) / inner(uphill, uphill))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, 2.5])
def test_gradient_is_the_formula(alpha: float) -> None:
    uphill, across = parts(0.4)
    assert oracle.length(across) > 1e-2
    assert inner(uphill, across).abs() < 1e-12
    oracle.assert_equal(
        oracle.made_by(GSAM(0.4, alpha)), oracle.add(uphill, across, -alpha)
    )


def test_contains_sam() -> None:
    oracle.assert_equal(oracle.made_by(GSAM(0.4, 0.0)), oracle.made_by(SAM(0.4)))


def test_a_step_lowers_the_surrogate_gap_more_than_sam_does() -> None:
    """To first order, by lr alpha ||g_across||^2, at the same perturbed loss."""
    rho, alpha, lr = 0.4, 0.5, 1e-5
    _, across = parts(rho)
    problem = inputs.exact()
    w = oracle.params(problem)
    g = oracle.grad(problem, w)
    eps = {name: rho * t / oracle.length(g) for name, t in g.items()}

    def after(method: object) -> tuple[float, float]:
        at = oracle.add(w, oracle.made_by(method), -lr)
        plain, perturbed = (
            oracle.losses(problem, p).mean() for p in (at, oracle.add(at, eps))
        )
        return float(plain), float(perturbed)

    (plain, perturbed), (sam_plain, sam_perturbed) = (
        after(GSAM(rho, alpha)),
        after(SAM(rho)),
    )
    gain = lr * alpha * float(inner(across, across))
    assert plain - sam_plain == pytest.approx(gain, rel=1e-2)
    assert abs(perturbed - sam_perturbed) < 1e-2 * gain


def test_weight_scaler_and_what_was_there() -> None:
    wanted = oracle.made_by(GSAM(0.4, 0.7))
    for scaler, scale in (
        (None, 1.0),
        (torch.amp.GradScaler("cpu", init_scale=64.0), 64.0),
    ):
        problem = inputs.exact()
        for p in problem.params:
            p.grad = torch.ones_like(p)
        GSAM(0.4, 0.7).backward(problem.model, problem, weight=0.5, scaler=scaler)
        for name, p in problem.model.named_parameters():
            torch.testing.assert_close(p.grad, 1 + 0.5 * scale * wanted[name])


def test_joins_a_loss_transform() -> None:
    """Both gradients are then those of the transformed loss."""
    theta = 0.9
    problem = inputs.exact()
    w = oracle.params(problem)

    def grad(at: oracle.Params) -> oracle.Params:
        return oracle.grad(problem, at, lambda v: ((v - theta) ** 2 + 1).sqrt().mean())

    g = grad(w)
    uphill = grad(oracle.add(w, g, 0.4 / oracle.length(g)))
    across = oracle.add(g, uphill, -inner(g, uphill) / inner(uphill, uphill))
    made = oracle.made_by(compose(SoftAD(theta), GSAM(0.4, 0.3)))
    oracle.assert_equal(made, oracle.add(uphill, across, -0.3))
