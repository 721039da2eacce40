"""SAM's ball: losses, ascent points and worst points are those of the chapter's net."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from figures import cell, drawn, finding, handle, slide
from IPython import display
from playwright.sync_api import Page

import flatnb

NOTEBOOK = (
    Path(__file__).resolve().parents[2]
    / "notebooks"
    / "06_sharpness_aware_minimization.ipynb"
)


@pytest.fixture(scope="module")
def chapter() -> dict[str, Any]:
    """What the chapter's first picture computes; "text" is what the figure gets."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    sources = {c["id"]: "".join(c["source"]) for c in cells}
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(display, "display", lambda shown: None)
        exec(sources["parameters"].replace('"laptop"', '"smoke"'), names)
        for name in ("setup", "ball"):
            exec(sources[name], names)
    plt.close("all")
    return names


@pytest.fixture
def tab(toy: Callable[..., Page], chapter: dict[str, Any]) -> Page:
    return toy("ball", cell("ball", chapter["text"]))


def call(tab: Page, chapter: dict[str, Any], script: str, *given: Any) -> Any:
    """A script of `net`, the slice, and what is given."""
    inside = (
        f"([data, given]) => {{ const net = flatnb.ball.slice(data); return {script} }}"
    )
    return tab.evaluate(inside, [json.loads(chapter["text"]), given])


def weights(chapter: dict[str, Any], point: list[float]) -> torch.Tensor:
    """The net's weights at a point of the slice."""
    along, across = point
    offset = along * chapter["uphill"] + across * chapter["sideways"]
    return chapter["weights"] + offset


def loss(chapter: dict[str, Any], point: list[float]) -> float:
    return chapter["objective"].loss(weights(chapter, point))


def slope(chapter: dict[str, Any], point: list[float]) -> np.ndarray:
    """The gradient's part in the slice."""
    _, gradient = chapter["objective"].gradient(weights(chapter, point))
    parts = (gradient @ chapter[name] for name in ("uphill", "sideways"))
    return np.array([part.item() for part in parts])


def points(chapter: dict[str, Any]) -> list[list[float]]:
    """Some of the grid, and between its points."""
    ticks = chapter["ticks"].tolist()
    grid = [[ticks[i], ticks[j]] for i, j in ((20, 20), (15, 27), (30, 12), (1, 39))]
    return [*grid, [0.013, -0.207], [0.391, 0.333]]


def test_losses_are_those_of_the_net(tab: Page, chapter: dict[str, Any]) -> None:
    script = "given[0].map((point) => net.loss(point))"
    found = call(tab, chapter, script, points(chapter))
    expected = [loss(chapter, point) for point in points(chapter)]
    assert found[:4] == pytest.approx(expected[:4], abs=1e-4)  # what is written
    assert found == pytest.approx(expected, abs=2e-3)


def test_the_gradient_is_that_of_the_net(tab: Page, chapter: dict[str, Any]) -> None:
    for point in points(chapter)[:3] + points(chapter)[4:]:
        found = np.array(call(tab, chapter, "net.gradient(given[0])", point))
        expected = slope(chapter, point)
        assert found == pytest.approx(expected, abs=0.05 * np.linalg.norm(expected))


def test_the_ascent_point_is_that_of_sam(tab: Page, chapter: dict[str, Any]) -> None:
    """At the net's weights the whole gradient lies in the slice."""
    rho = 0.3
    found = call(tab, chapter, "flatnb.ball.ascent(net, [0, 0], given[0])", rho)
    seen = []

    def losses() -> torch.Tensor:
        model, x, y = (chapter[name] for name in ("model", "x", "y"))
        seen.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        return torch.nn.functional.cross_entropy(model(x), y, reduction="none")

    flatnb.SAM(rho).backward(chapter["model"], losses)
    step = seen[1] - seen[0]
    expected = [float(step @ chapter[name]) for name in ("uphill", "sideways")]
    assert np.hypot(*expected) == pytest.approx(rho, abs=1e-6)
    assert found == pytest.approx(expected, abs=0.02 * rho)


@pytest.mark.parametrize("w", [[0, 0], [0.3, -0.4]])
def test_no_point_on_the_circle_is_worse(
    tab: Page, chapter: dict[str, Any], w: list[float]
) -> None:
    found = call(tab, chapter, "flatnb.ball.worst(net, given[0], 0.5)", w)
    assert np.hypot(*np.subtract(found, w)) == pytest.approx(0.5, abs=1e-9)
    around = 0.5 * np.exp(1j * np.linspace(0, 2 * np.pi, 60))
    losses = [loss(chapter, [w[0] + u.real, w[1] + u.imag]) for u in around]
    assert loss(chapter, found) > max(losses) - 2e-3


def test_the_worst_point_of_the_ball_is_not_missed(
    tab: Page, chapter: dict[str, Any]
) -> None:
    """The slice holds the worst point that ascent in the whole ball has found."""
    found = call(tab, chapter, "net.loss(flatnb.ball.worst(net, [0, 0], 0.5))")
    climbed = chapter["objective"].loss(chapter["weights"] + chapter["worst"])
    assert found >= climbed - 2e-3


def test_the_figure_says_the_rises(tab: Page, chapter: dict[str, Any]) -> None:
    def said() -> list[float]:
        return [float(number) for number in re.findall(r"\d+\.\d+", finding(tab))]

    start, sam = loss(chapter, [0, 0]), loss(chapter, [0.5, 0])
    climbed = chapter["objective"].loss(chapter["weights"] + chapter["worst"])
    rises = [start, sam - start, climbed - start]
    assert said() == pytest.approx(rises, abs=0.01)
    slide(tab, "radius", 0.05)
    assert "nearly all of the worst rise" in finding(tab)
    handle(tab).press("Shift+ArrowLeft")
    drawn(tab)
    moved = loss(chapter, [-0.25 * 0.48 * 1.2, 0])  # a quarter of the way to its bound
    assert said()[0] == pytest.approx(moved, abs=0.01)
    assert abs(moved - start) > 0.02
