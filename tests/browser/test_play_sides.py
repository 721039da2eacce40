"""Noise on one side and on both: gradients of the library under the same draw, and the
slope of the trace."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from figures import cell, drawn, finding, slide
from playwright.sync_api import Page
from torch import Tensor

import flatnb

START = [1.2, 1.4]
TURN = torch.tensor([[0.88, 0.48], [-0.48, 0.88]], dtype=torch.float64)


def loss(w: Tensor) -> Tensor:
    """That of the chapter's picture."""
    a, b = TURN @ w
    return 0.3 * a**2 + 2.5 * b**2 + b**4 / 2


def call(tab: Page, function: str, *arguments: Any) -> list[float]:
    return tab.evaluate(f"(given) => flatnb.sides.{function}(...given)", arguments)


def library(method: flatnb.WeightNoise, w: list[float]) -> list[float]:
    """The gradient of a net whose two weights are w."""
    net = torch.nn.Linear(2, 1, bias=False, dtype=torch.float64)
    net.weight.data = torch.tensor([w], dtype=torch.float64)
    method.backward(net, lambda: loss(net.weight[0])[None])
    return net.weight.grad[0].tolist()


@pytest.mark.parametrize("w", [START, [-0.4, 1.7], [2.2, -0.2]])
@pytest.mark.parametrize("u", [[0.3, -0.1], [-0.2, 0.7]])
def test_gradients_are_those_of_the_library_under_the_same_noise(
    toy: Callable[..., Page], w: list[float], u: list[float]
) -> None:
    def same_noise(values: Tensor, generator: torch.Generator) -> None:
        values.copy_(torch.tensor(u) / 0.4)

    tab = toy("sides")
    assert call(tab, "loss", w) == pytest.approx(loss(torch.tensor(w).double()).item())
    for function, method in (
        ("bothSides", flatnb.NSO(0.4, noise=same_noise)),
        ("oneSide", flatnb.WeightNoise(0.4, noise=same_noise)),
    ):
        found = call(tab, function, w, u)
        assert found == pytest.approx(library(method, w), abs=1e-6)
    assert call(tab, "gradient", w) == pytest.approx(
        library(flatnb.ERM(), w), abs=1e-12
    )


def test_the_trace_term_is_the_slope_of_the_trace(toy: Callable[..., Page]) -> None:
    def trace(w: Tensor) -> Tensor:
        return torch.func.hessian(loss)(w).trace()

    slope = torch.func.grad(trace)(torch.tensor(START, dtype=torch.float64))
    found = call(toy("sides"), "traceTerm", START, 0.3)
    assert found == pytest.approx((0.3**2 / 2 * slope).tolist(), abs=1e-12)


def test_the_mean_over_draws_is_the_gradient_plus_the_trace_term(
    toy: Callable[..., Page],
) -> None:
    tab = toy("sides")
    mean = tab.evaluate(
        """(w) => {
            const random = flatnb.normals(7);
            const draws = Array.from({ length: 20000 }, () => [0.3 * random(), 0.3 * random()]);
            return flatnb.sides.mean(draws.map((u) => flatnb.sides.bothSides(w, u)));
        }""",
        START,
    )
    gradient, term = (call(tab, "gradient", START), call(tab, "traceTerm", START, 0.3))
    expected = [g + t for g, t in zip(gradient, term, strict=True)]
    # The scatter of one draw is about 0.5, its standard error here 0.004.
    assert mean == pytest.approx(expected, abs=0.015)
    assert mean != pytest.approx(gradient, abs=0.1)


def test_the_figure_says_how_far_off_the_gradients_are(
    toy: Callable[..., Page],
) -> None:
    tab = toy("sides", cell("sides"))
    assert "off by 2.05 and 1.61, their mean only by 0.22" in finding(tab)
    tab.get_by_role("button", name="New draw").click()
    drawn(tab)
    assert "off by 2.05" not in finding(tab)
    slide(tab, "draws", 6)
    assert "Over 1000 draws" in finding(tab) and "of length 0.36" in finding(tab)
    far = [float(part.split()[0]) for part in finding(tab).split(" is ")[1:]]
    assert far[0] < 0.05 and far[1] < 0.3
    slide(tab, "noise", 0.05)
    assert "of length 0.01" in finding(tab)
