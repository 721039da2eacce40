"""The picture that a link to a page shows where people share it: title and finding."""

import textwrap
from io import BytesIO
from pathlib import Path

from matplotlib.figure import Figure

from flatnb import plots

SIZE = (1200, 630)  # pixels, as those who show such cards ask for
DPI = 100


def card(title: str, finding: str, book: str, logo: Path) -> Figure:
    """A card of SIZE; `finding` is cut after seven lines, `logo` is an SVG."""
    import vl_convert
    from matplotlib.image import imread

    figure = Figure(figsize=(SIZE[0] / DPI, SIZE[1] / DPI), dpi=DPI, facecolor="white")
    heading = textwrap.wrap(title, 36, max_lines=2, placeholder=" …")
    lines = textwrap.wrap(finding, 58, max_lines=7, placeholder=" …")
    name = "\n".join(heading)
    figure.text(0.06, 0.9, name, va="top", fontsize=34, fontweight="bold")
    below = 0.9 - 0.11 * len(heading)
    text = "\n".join(lines)
    figure.text(0.06, below, text, va="top", fontsize=23, color="0.2", linespacing=1.35)
    figure.text(0.14, 0.085, book, va="center", fontsize=20, color=plots.BLUE)
    png = vl_convert.svg_to_png(logo.read_text(encoding="utf-8"), scale=3)
    axes = figure.add_axes((0.06, 0.05, 0.065, 0.07), anchor="W")
    axes.imshow(imread(BytesIO(png)))
    axes.axis("off")
    return figure
