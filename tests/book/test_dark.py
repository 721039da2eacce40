"""Colors of dark mode: order, contrast, hue; pages and plots share one palette."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb

from flatnb import plots
from flatnb.book import dark

ROOT = Path(__file__).resolve().parents[2]
WHITE, PAGE = np.ones(3), np.array(to_rgb(dark.PAGE))


def variables(selector: str) -> dict[str, str]:
    """The colors that custom.css gives its variables in a rule."""
    css = (ROOT / "book" / "_static" / "custom.css").read_text(encoding="utf-8")
    rule = re.search(rf"^{re.escape(selector)} {{(.*?)}}", css, re.M | re.S)
    assert rule is not None
    return dict(re.findall(r"--flatnb-(\w+): (#\w+);", rule[1]))


def test_pages_and_plots_share_one_palette() -> None:
    colors = {**plots.PALETTE, "gray": plots.GRAY, "page": "white"}
    colors["grid"] = plots._STYLE["grid.color"]
    assert variables("html") == {name: to_hex(color) for name, color in colors.items()}
    dark_ones = {name: dark.dark_hex(color) for name, color in colors.items()}
    assert variables('html[data-theme="dark"]') == dark_ones


@pytest.mark.parametrize("name", [*plots.PALETTE, "gray"])
def test_lines_and_text_stand_out_from_the_dark_page(name: str) -> None:
    color = {**plots.PALETTE, "gray": plots.GRAY}[name]
    found = dark.contrast(dark.dark(np.array(to_rgb(color))), PAGE)
    assert found >= 4.5


def test_the_order_of_contrasts_is_kept() -> None:
    colors = np.random.default_rng(0).random((500, 3))
    before = dark.contrast(colors, WHITE)
    after = dark.contrast(dark.dark(colors), PAGE)
    points = np.array(list(dark.CONTRASTS.items())).T
    expected = np.exp(np.interp(np.log(before), *np.log(points)))
    np.testing.assert_allclose(after, expected, rtol=0.02)


def test_white_becomes_the_page() -> None:
    np.testing.assert_allclose(dark.dark(WHITE), PAGE, atol=1 / 255)


@pytest.mark.parametrize("name", ["red", "green", "blue", "violet", "pink", "gold"])
def test_hue_is_kept(name: str) -> None:
    color = np.array(to_rgb(plots.PALETTE[name]))

    def hue(rgb: np.ndarray) -> float:
        _, a, b = np.cbrt(dark._linear(rgb) @ dark._CONES.T) @ dark._LAB.T
        return float(np.degrees(np.arctan2(b, a)))

    turned = (hue(dark.dark(color)) - hue(color) + 180) % 360 - 180
    assert abs(turned) < 4


def test_contrast_of_known_pairs() -> None:
    assert dark.contrast(np.array(to_rgb("#767676")), WHITE) == pytest.approx(
        4.54, abs=0.01
    )
    assert dark.contrast(np.zeros(3), WHITE) == 21
