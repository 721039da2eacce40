"""Two wells: the loss is that of chapter 1, and its blur the mean over random shifts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from figures import cell, finding, slide
from numpy.typing import NDArray
from playwright.sync_api import Page

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "notebooks" / "01_two_valleys.ipynb"
WEIGHTS = np.linspace(-3, 4, 50)


def chapter() -> dict[str, Any]:
    """What the chapter's picture computes, up to where it begins to draw."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    source = next("".join(c["source"]) for c in cells if c["id"] == "wells-figure")
    names: dict[str, Any] = {"np": np}
    exec(source.split("shift = 0.25")[0], names)
    return names


def loss(tab: Page, weights: NDArray, **settings: float) -> NDArray:
    script = "([weights, s]) => weights.map((w) => flatnb.wells.loss(w, s))"
    return np.array(tab.evaluate(script, [weights.tolist(), settings]))


def test_the_wells_are_those_of_the_chapter(toy: Callable[..., Page]) -> None:
    tab, names = toy("wells"), chapter()
    assert loss(tab, WEIGHTS) == pytest.approx(names["well_loss"](WEIGHTS), abs=1e-14)
    shifted = names["well_loss"](WEIGHTS - 0.25)
    assert loss(tab, WEIGHTS, shift=0.25) == pytest.approx(shifted, abs=1e-14)
    wells = tab.evaluate("[flatnb.wells.SHARP, flatnb.wells.FLAT]")
    assert [well["center"] for well in wells] == names["CENTERS"].tolist()
    assert [well["width"] for well in wells] == names["WIDTHS"].tolist()


@pytest.mark.parametrize("blur", [0.05, 0.3, 0.6])
def test_blur_is_the_mean_over_normal_shifts(
    toy: Callable[..., Page], blur: float
) -> None:
    u = np.linspace(-8, 8, 4001) * blur
    density = np.exp(-(u**2) / (2 * blur**2)) / (blur * np.sqrt(2 * np.pi))
    losses = chapter()["well_loss"](WEIGHTS[:, None] - 0.1 + u)
    mean = np.trapezoid(losses * density, u, axis=1)
    found = loss(toy("wells"), WEIGHTS, shift=0.1, blur=blur)
    assert found == pytest.approx(mean, abs=1e-9)


def test_a_small_blur_costs_half_its_square_times_the_curvature(
    toy: Callable[..., Page],
) -> None:
    tab, names = toy("wells"), chapter()
    rise = loss(tab, names["CENTERS"], blur=0.01) - loss(tab, names["CENTERS"])
    assert rise == pytest.approx(0.01**2 / 2 / names["WIDTHS"] ** 2, rel=0.01)


def test_from_the_crossing_on_the_sharp_minimum_loses(
    toy: Callable[..., Page],
) -> None:
    tab = toy("wells")
    find = "(s) => flatnb.wells.crossing(s, 0.6)"
    start = tab.evaluate(find, {"blur": 0, "floor": 0.1})
    # At shift u a well of width s costs 1 - exp(-u²/2s²), were the other far away.
    sharp, flat = (np.exp(-(start**2) / (2 * s**2)) for s in (0.15, 0.6))
    assert 1 - sharp == pytest.approx(1 - 0.9 * flat, abs=1e-5)
    assert tab.evaluate(find, {"blur": 0, "floor": 0}) == 0
    assert tab.evaluate(find, {"blur": 0.3, "floor": 0.1}) == 0
    assert tab.evaluate("flatnb.wells.crossing({blur: 0, floor: 0.9}, 0.2)") is None


def test_the_figure_says_the_losses_of_its_controls(toy: Callable[..., Page]) -> None:
    tab, well_loss = toy("wells", cell("wells")), chapter()["well_loss"]
    assert "0.75" in finding(tab) and "0.08" in finding(tab)
    slide(tab, "shift", 0.1)
    sharp, flat = well_loss(np.array([-1.5, 1.5]) - 0.1)
    assert f"test loss {sharp:.2f}, the flat one {flat:.2f}." in finding(tab)
    slide(tab, "floor", 0.1)
    assert "from a shift of 0.07 on" in finding(tab)
    slide(tab, "blur", 0.3)
    assert "behind at every shift" in finding(tab)


@pytest.mark.parametrize(
    ("shift", "sharp", "flat"),
    [(0.05, 0.05, 0.10), (0.1, 0.20, 0.11), (0.25, 0.75, 0.17)],
)
def test_the_second_exercise_is_solved_by_the_figure(
    toy: Callable[..., Page], shift: float, sharp: float, flat: float
) -> None:
    tab = toy("wells", cell("wells"))
    slide(tab, "shift", shift)
    slide(tab, "floor", 0.1)
    assert f"test loss {sharp:.2f}, the flat one {flat:.2f}." in finding(tab)
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    text = "".join("".join(cell["source"]) for cell in cells)
    solution = text[text.index("**2.**") : text.index("**3.**")]
    assert f"{sharp:.2f}$" in solution and f"{flat:.2f}$" in solution
