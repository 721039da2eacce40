"""Files of figures: the smaller of two formats, and the colors of dark mode."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from flatnb import plots
from flatnb.book import dark, figures


def drawn(kind: str, points: int = 5, image: bool = False) -> bytes:
    """A figure of 4 by 3 inches as a file: a line, a heat map or not."""
    with plt.rc_context():
        plots.use_style()
        plt.rcParams["savefig.bbox"] = "standard"
        fig, ax = plt.subplots(figsize=(4, 3))
        ax.plot(np.random.default_rng(0).random((2, points)), "o", color=plots.RED)
        ax.set(xlabel="steps", title="words")
        if image:
            ax.imshow([[0.0, 1.0]], cmap=plots._GAIN, vmin=-1, vmax=1)
        file = io.BytesIO()
        fig.savefig(file, format=kind, dpi=192)
        plt.close(fig)
    return file.getvalue()


def bundle(points: int) -> dict[str, str]:
    """The output of a cell that draws."""
    return {
        "image/svg+xml": drawn("svg", points).decode(),
        "image/png": base64.b64encode(drawn("png", points)).decode(),
        "text/plain": "<Figure>",
    }


def test_a_small_figure_stays_vector() -> None:
    assert sorted(figures.smaller(bundle(5))) == ["image/svg+xml", "text/plain"]


def test_a_figure_of_many_points_becomes_pixels() -> None:
    assert sorted(figures.smaller(bundle(3000))) == ["image/png", "text/plain"]


def test_few_colors_are_close_to_the_many() -> None:
    png = drawn("png", 3000)
    fewer = figures.few_colors(png)
    assert len(fewer) < 0.6 * len(png)
    one, other = (
        np.asarray(Image.open(io.BytesIO(p)).convert("RGB"), dtype=int)
        for p in (png, fewer)
    )
    assert abs(one - other).mean() < 0.5
    assert len(np.unique(other.reshape(-1, 3), axis=0)) <= 256


def test_other_outputs_stay_as_they_are() -> None:
    for output in ({"text/html": "<p>"}, {"image/png": "iVBO", "text/plain": "x"}):
        assert figures.smaller(output) == output


def test_a_compact_figure_has_the_same_pixels() -> None:
    """Of its paths, to a hundredth of a point; and no date."""
    svg = drawn("svg").decode()
    compact = figures.compact(svg)
    assert len(compact) < 0.9 * len(svg)
    assert "dc:date" in svg and "dc:date" not in compact
    numbers = [
        [
            float(n)
            for d in re.findall(r' d="([^"]*)"', text)
            for n in re.findall(r"-?\d+\.?\d*", d)
        ]
        for text in (svg, compact)
    ]
    np.testing.assert_allclose(*numbers, atol=0.0051)


def test_dark_figures_are_drawn_in_colors_of_dark_mode_only() -> None:
    svg = drawn("svg").decode()
    paints = r"(?:fill|stroke): (#\w{6})"
    light, darker = (set(re.findall(paints, s)) for s in (svg, figures.dark_svg(svg)))
    assert "#ffffff" in light and plots.RED.lower() in light
    assert darker == {dark.dark_hex(color) for color in light}


def test_what_matplotlib_leaves_black_turns_light() -> None:
    root = re.search(r"<svg [^>]*>", figures.dark_svg(drawn("svg").decode()))
    assert root is not None
    assert f'fill="{dark.dark_hex("black")}"' in root[0]


def test_pixels_in_a_vector_figure_turn_too() -> None:
    svg = figures.dark_svg(drawn("svg", image=True).decode())
    (found,) = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=\s]+)", svg)
    colors = np.asarray(Image.open(io.BytesIO(base64.b64decode(found))).convert("RGB"))
    for color in ("white", plots.BLUE):
        wanted = np.array(to_rgb(dark.dark_hex(color)))
        assert np.abs(colors / 255 - wanted).max(-1).min() < 0.02, color


def test_a_dark_png_keeps_its_size_and_what_is_transparent(tmp_path: Path) -> None:
    path = tmp_path / "light.png"
    path.write_bytes(drawn("png"))
    other = tmp_path / "dark.png"
    other.write_bytes(figures.dark_png(path.read_bytes()))
    assert figures.inches(other) == figures.inches(path) == pytest.approx((4, 3), 1e-3)
    clear = io.BytesIO()
    Image.new("RGBA", (2, 1), (255, 255, 255, 0)).save(clear, "PNG")
    turned = Image.open(io.BytesIO(figures.dark_png(clear.getvalue())))
    assert turned.getpixel((0, 0))[3] == 0


def test_the_size_of_a_vector_figure_is_in_inches(tmp_path: Path) -> None:
    path = tmp_path / "a.svg"
    path.write_bytes(drawn("svg"))
    assert figures.inches(path) == pytest.approx((4, 3))
