"""Decision regions: what a net makes of the plane, for one set, method and setting at a
time."""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from flatnb import plots
from flatnb.charts.page import about, choice, data, pick, slider

if TYPE_CHECKING:
    import altair as alt
    from numpy.typing import NDArray

SHAPES = {"o": "circle", "^": "triangle-up"}  # Vega's names of markers
CLASSES = {name: (color, SHAPES[mark]) for name, (color, mark) in plots.CLASSES.items()}
SHADES = 8  # of each class


class Region(NamedTuple):
    """A net: the probability of class 1 on a grid (x2, x1), and what to say of it."""

    chance: NDArray
    setting: str
    finding: str


class Points(NamedTuple):
    """The training points (n, 2) of a set, their classes, and the sides of the grids:
    (low x1, low x2), (high x1, high x2)."""

    x: NDArray
    y: NDArray
    corners: tuple[Sequence[float], Sequence[float]]


def regions(
    sets: Mapping[str, Points],
    nets: Mapping[str, Mapping[str, Sequence[Region]]],
    at: int,
) -> alt.TopLevelMixin:
    """The nets of each set and method in order of the setting, as many for each; the
    setting is at first number `at`. The reader chooses all three."""
    import altair as alt

    methods = list(next(iter(nets.values())))
    listed = [nets[name][method] for name in sets for method in methods]
    count = len(listed[0])
    pictures, borders = [], []
    for number, net in enumerate(itertools.chain(*listed)):
        pictures.append({"net": number, "url": picture(net.chance)})
        corners = list(sets.values())[number // (count * len(methods))].corners
        for part, line in enumerate(border(net.chance, corners)):
            table = pd.DataFrame(line, columns=["x1", "x2"])
            borders.append(table.assign(net=number, part=part))
    labels = np.array(list(CLASSES))
    points = [
        pd.DataFrame(np.asarray(group.x), columns=["x1", "x2"]).assign(
            set=number, label=labels[np.asarray(group.y)]
        )
        for number, group in enumerate(sets.values())
    ]
    said = [[[n.finding for n in nets[s][m]] for m in methods] for s in sets]
    titles = [[[n.setting for n in nets[s][m]] for m in methods] for s in sets]
    ends = [[list(corner) for corner in group.corners] for group in sets.values()]
    chosen = f"datum.net == (set * {len(methods)} + method) * {count} + setting"
    x, y = (
        alt.Scale(
            domain=[alt.ExprRef(f"corners[{end}][{axis}]") for end in (0, 1)],
            nice=False,
            zero=False,
        )
        for axis in (0, 1)
    )
    place = {
        "x": alt.X("x1:Q", title="x₁", scale=x, axis=alt.Axis(grid=False)),
        "y": alt.Y("x2:Q", title="x₂", scale=y, axis=alt.Axis(grid=False)),
    }
    colors, shapes = zip(*CLASSES.values(), strict=True)
    label = alt.Scale(domain=list(CLASSES), range=list(colors))
    shape = alt.Scale(domain=list(CLASSES), range=list(shapes))
    middle = {side: alt.ExprRef(f"{side} / 2") for side in ("width", "height")}
    return alt.layer(
        alt.Chart(data(pd.DataFrame(pictures)))
        .transform_filter(chosen)
        .mark_image(
            aspect=False, width=alt.ExprRef("width"), height=alt.ExprRef("height")
        )
        .encode(
            x=alt.value(middle["width"]),
            y=alt.value(middle["height"]),
            url="url:N",
        ),
        alt.Chart(data(pd.concat(borders)))
        .transform_filter(chosen)
        .transform_window(order="row_number()")
        .mark_line(color=plots.BLACK, strokeWidth=2, clip=True)
        .encode(**place, detail="part:N", order="order:Q"),
        alt.Chart()
        .transform_filter("datum.set == set")
        .mark_point(
            filled=True, size=50, opacity=1, stroke="#FFFFFF", strokeWidth=1, clip=True
        )
        .encode(
            **place,
            color=alt.Color("label:N", scale=label),
            shape=alt.Shape("label:N", scale=shape),
        ),
        data=data(pd.concat(points)),
        title=alt.TitleParams(
            alt.ExprRef(f"{pick(titles, 'set')}[method][setting]"), frame="group"
        ),
        width="container",
        height=340,
        description="Decision regions of a net in the plane, with its training points.",
        usermeta=about(
            "Choose set and method, and move the setting.",
            say="finding",
            widest=430,
            setting=[f"{k + 1} of {count}" for k in range(count)],
        ),
    ).add_params(
        choice("set", list(sets)),
        choice("method", methods),
        slider("setting", range(count), "setting", at),
        alt.param(name="corners", expr=f"{ends}[set]"),
        alt.param(name="finding", expr=f"{pick(said, 'set')}[method][setting]"),
    )


def picture(chance: NDArray) -> str:
    """The shades of a grid of probabilities as the address of a PNG: the color of the
    likelier class, the more opaque the surer the net.

    >>> picture(np.array([[0.0, 1.0]])).partition(",")[0]
    'data:image/png;base64'
    """
    shade = np.round(2 * SHADES * np.asarray(chance, float)).astype(np.uint8)
    sure = np.abs(np.arange(2 * SHADES + 1) - SHADES) / SHADES
    image = Image.fromarray(shade[::-1], "P")
    colors = [to_rgb(color) for color, _ in CLASSES.values()]
    pixels = [
        round(255 * part) for i in range(2 * SHADES + 1) for part in colors[i > SHADES]
    ]
    image.putpalette(pixels)
    file = io.BytesIO()
    opacity = bytes(round(160 * part) for part in sure)
    image.save(file, "PNG", optimize=True, transparency=opacity, bits=8)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def border(
    chance: NDArray, corners: tuple[Sequence[float], Sequence[float]]
) -> list[NDArray]:
    """The lines (points, 2) on which both classes are as likely.

    >>> grid = np.array([[0.0, 1.0], [0.0, 1.0]])
    >>> [sorted(line.tolist()) for line in border(grid, ((0, 0), (1, 1)))]
    [[[0.5, 0.0], [0.5, 1.0]]]
    """
    low, high = corners
    rows, columns = chance.shape
    axes = np.linspace(low[0], high[0], columns), np.linspace(low[1], high[1], rows)
    drawn = Figure().subplots().contour(*axes, chance, levels=[0.5])
    return [np.asarray(line) for line in drawn.allsegs[0] if len(line) > 1]
