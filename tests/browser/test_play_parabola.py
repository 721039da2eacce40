"""Flooding and SoftAD on a parabola: step for step the library's, and rest where it is
said."""

from collections.abc import Callable

import pytest
import torch
from figures import cell, drawn, finding, slide
from playwright.sync_api import Page

import flatnb

METHODS = {
    "ERM": lambda level, width: flatnb.ERM(),
    "Flooding": lambda level, width: flatnb.Flooding(level),
    "SoftAD": lambda level, width: flatnb.SoftAD(level, width),
}


def walk(tab: Page, name: str, **settings: float) -> list[float]:
    script = "([name, settings]) => flatnb.parabola.walk(name, settings)"
    return tab.evaluate(script, [name, settings])


def library(name: str, level: float, width: float, rate: float) -> list[float]:
    """The iterates of a net whose only weight is x, trained with x²/2 as its loss."""
    net = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    torch.nn.init.constant_(net.weight, -2.0)
    method = METHODS[name](level, width)
    sgd = torch.optim.SGD(net.parameters(), lr=rate)
    path = [net.weight.item()]
    for _ in range(100):
        net.zero_grad()
        method.backward(net, lambda: net.weight[0].square() / 2)
        sgd.step()
        path.append(net.weight.item())
    return path


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("level", "width", "rate"), [(0.5, 1.0, 0.1), (0.8, 0.03, 0.4), (0.05, 2.5, 0.9)]
)
def test_iterates_are_those_of_the_library(
    toy: Callable[..., Page], name: str, level: float, width: float, rate: float
) -> None:
    path = walk(toy("parabola"), name, level=level, width=width, rate=rate)
    assert path == pytest.approx(library(name, level, width, rate), abs=1e-6)


@pytest.mark.parametrize(("level", "rate"), [(0.5, 0.1), (0.3, 0.5)])
def test_softad_rests_from_the_resting_width_on(
    toy: Callable[..., Page], level: float, rate: float
) -> None:
    tab, now = toy("parabola"), {"level": level, "rate": rate}
    needed = tab.evaluate("(now) => flatnb.parabola.restingWidth(now)", now)
    above = walk(tab, "SoftAD", width=1.1 * needed, steps=400, **now)
    below = walk(tab, "SoftAD", width=0.9 * needed, steps=400, **now)
    assert above[-1] == pytest.approx(above[-2], abs=1e-9)
    assert above[-1] ** 2 / 2 == pytest.approx(level, abs=1e-9)
    assert abs(below[-1] - below[-2]) > 0.01


def test_the_figure_says_where_each_method_is(toy: Callable[..., Page]) -> None:
    tab = toy("parabola", cell("parabola"))
    losses = [x**2 / 2 for x in library("Flooding", 0.5, 1.0, 0.1)[-20:]]
    between = f"between losses {min(losses):.2f} and {max(losses):.2f}"
    assert f"Flooding still hops about its level, {between}" in finding(tab)
    assert "gradient descent is in the minimum" in finding(tab)
    assert "SoftAD rests at its threshold: σ is above ηθ = 0.050" in finding(tab)
    slide(tab, "width", -1.6)
    assert "SoftAD hops, too, between" in finding(tab)
    slide(tab, "learning rate", 0.02)
    assert "gradient descent is on its way to the minimum" in finding(tab)
    assert "SoftAD rests" in finding(tab)


def test_the_steps_can_be_played_from_the_start(toy: Callable[..., Page]) -> None:
    tab = toy("parabola", cell("parabola"))
    # The corners of the last line: 101 for 100 steps.
    lines = "[...document.querySelectorAll('.play-plot g[clip-path] path')]"
    count = f"{lines}.at(-1).getAttribute('d').split('L').length"
    assert tab.evaluate(count) == 101
    tab.get_by_role("button", name="Play the steps").click()
    drawn(tab)
    assert tab.evaluate(count) < 101
    tab.wait_for_function(f"{count} === 101")
