"""SoftAD: formulas, limits, and the iterates of the paper's figure 2."""

from __future__ import annotations

from collections.abc import Callable

import inputs
import oracle
import pytest
import torch

from flatnb.methods import ERM, Flooding, IFlood, Method, SoftAD

THETA = 1.1


def rho(x: torch.Tensor) -> torch.Tensor:
    return torch.sqrt(x * x + 1) - 1


@pytest.mark.parametrize("sigma", [0.2, 1.0, 4.0])
def test_weights_are_phi(sigma: float) -> None:
    problem = inputs.exact()
    w = oracle.params(problem)
    x = (oracle.losses(problem, w) - THETA) / sigma
    phi = x / torch.sqrt(x * x + 1)
    assert 0 < (phi > 0).sum() < len(phi)
    expected = oracle.grad(problem, w, lambda v: (phi * v).sum() / len(v))
    oracle.assert_equal(oracle.made_by(SoftAD(THETA, sigma)), expected)


@pytest.mark.parametrize("sigma", [0.2, 1.0, 4.0])
def test_objective_is_the_formula(sigma: float) -> None:
    losses = torch.linspace(0, 3, 7, dtype=torch.float64)
    mean = rho((losses - THETA) / sigma).mean()
    assert float(SoftAD(THETA, sigma).objective(losses)) == pytest.approx(
        float(THETA + sigma * mean)
    )
    code = SoftAD(THETA, sigma, code_form=True).objective(losses)
    assert float(code) == pytest.approx(float(THETA + sigma**2 * mean))


def test_code_form_scales_the_gradient_by_sigma() -> None:
    ours = oracle.made_by(SoftAD(THETA, 0.3))
    code = oracle.made_by(SoftAD(THETA, 0.3, code_form=True))
    oracle.assert_equal(code, {name: 0.3 * g for name, g in ours.items()})
    oracle.assert_equal(
        oracle.made_by(SoftAD(THETA)), oracle.made_by(SoftAD(THETA, code_form=True))
    )


def test_small_sigma_is_iflood() -> None:
    iflood = oracle.made_by(IFlood(THETA))
    oracle.assert_equal(oracle.made_by(SoftAD(THETA, 1e-9)), iflood, tol=1e-10)
    assert oracle.differ(oracle.made_by(SoftAD(THETA, 1.0)), iflood)


def test_far_above_the_threshold_is_plain_training() -> None:
    problem = inputs.exact()
    problem.loss = lambda z, y: 1e7 + z.gather(1, y[:, None]).squeeze(1)
    oracle.assert_equal(
        oracle.made_by(SoftAD(0.0), problem), oracle.made_by(ERM(), problem), tol=1e-12
    )


def test_value_keeps_its_digits_near_the_threshold() -> None:
    x = 1e-5  # sqrt(1 + x^2) - 1 is 0 in float32
    objective = SoftAD(0.0).objective(torch.tensor([x], dtype=torch.float32))
    assert float(objective) == pytest.approx(x * x / 2, rel=1e-5)


def iterates(method: Method) -> list[float]:
    """Gradient descent on x^2 / 2 from -2 with step 0.1: x_0, ..., x_100."""
    surface = oracle.Surface(
        torch.tensor([-2.0], dtype=torch.float64), lambda x: (x * x / 2).sum()
    )
    path = [surface.weight.item()]
    for _ in range(100):
        g = surface.grad_by(method)
        with torch.no_grad():
            surface.weight -= 0.1 * g
        path.append(surface.weight.item())
    return path


@pytest.mark.parametrize(
    ("make", "last"),
    [
        (ERM, [-0.000053]),
        (lambda: SoftAD(0.5, 1.0), [-1.000011]),
        (lambda: Flooding(0.5), [-1.000010, -0.900009, -0.990010]),
        (lambda: IFlood(0.5), [-1.000010, -0.900009, -0.990010]),
    ],
    ids=["ERM", "SoftAD", "Flooding", "IFlood"],
)
def test_iterates_of_figure_2(make: Callable[[], Method], last: list[float]) -> None:
    assert iterates(make())[-len(last) :] == pytest.approx(last, abs=1e-6)


def test_zero_sigma_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sigma=0.*> 0"):
        SoftAD(0.1, 0.0)
