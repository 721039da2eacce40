"""One style for every figure of the book.

Colors darken the Okabe-Ito set until each has a contrast of 3 to 1 with white. A method
keeps its color, line and marker on every page, so figures also read in black and white;
variants share a color. Bands are `flatnb.results.statistics.interval`.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import LinearSegmentedColormap

from flatnb.report import NAMES
from flatnb.results.compare import sign
from flatnb.results.statistics import LEVEL, interval

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from flatnb.experiments.tuning import Look


PALETTE = {
    "black": "#000000",
    "red": "#B94700",
    "maroon": "#621B04",
    "green": "#00805F",
    "blue": "#005AA8",
    "violet": "#9006FE",
    "pink": "#C8689F",
    "gold": "#B98D00",
    "plum": "#522C50",
    "sky": "#459BD9",
    "indigo": "#260092",
}
_CYCLE = [PALETTE[c] for c in ("black", "red", "green", "blue", "pink", "gold", "sky")]
BLACK, RED, GREEN, BLUE, PINK, GOLD, SKY = _CYCLE
GRAY = "#6B6B6B"  # of whatever is not a method
# The two classes of points in the plane, and what is measured of a minimum: of each its
# color and marker, of a measure its dashes, too.
CLASSES = {"class 0": (GOLD, "o"), "class 1": (BLUE, "^")}
MEASURES = {
    "trace": (BLACK, "-", "o"),
    "top eigenvalue": (RED, "--", "s"),
    "sharpness": (GOLD, "-.", "^"),
    "adaptive sharpness": (BLUE, "-", "D"),
    "relative flatness": (GREEN, ":", "P"),
}
# From little to much, and no shade pale: on a dark page pale ones would vanish.
SHADES = LinearSegmentedColormap.from_list(
    "shades", plt.get_cmap("plasma")(np.linspace(0, 0.68, 256))
)
# Worse than the baseline, the same, better.
_GAIN = LinearSegmentedColormap.from_list("gain", [RED, "#FFFFFF", BLUE])
# 11 pt text is readable in figures of up to 6 inches on a phone's 360 pixels; wider ones
# scroll. On an opaque white ground black text stays legible on any page: those of the
# book have a second picture for dark mode (flatnb.book.dark).
_STYLE = {
    "savefig.facecolor": "white",
    "savefig.bbox": "tight",
    "svg.hashsalt": "flatnb",  # the same drawing is the same file
    "figure.figsize": (5.2, 3.4),
    "figure.dpi": 144,
    "figure.constrained_layout.use": True,
    "font.size": 11,
    "axes.labelsize": 11,
    "axes.titlesize": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
}


def use_style() -> None:
    """Set matplotlib's defaults for the book; call it once, before the first figure.

    >>> with plt.rc_context():
    ...     use_style()
    ...     plt.rcParams["figure.figsize"]
    [5.2, 3.4]
    """
    sns.set_theme(context="notebook", style="ticks", palette=_CYCLE, rc=_STYLE)


def _begins(label: str) -> str:
    """The method's name with which a label begins, of prose or of records; or ""."""
    from flatnb.experiments.tuning import LOOKS

    known = sorted({*LOOKS, *NAMES, *NAMES.values()}, key=len, reverse=True)
    match = re.match(rf"({'|'.join(map(re.escape, known))})(?!\w)", label)
    return match[0] if match else ""


def _look(label: str) -> Look:
    """As `flatnb.experiments.tuning` declares it; gray and dashed if no method's."""
    from flatnb.experiments.tuning import LOOKS, Look

    name = _begins(label)
    recorded = {prose: key for key, prose in NAMES.items()}.get(name, name)
    if recorded == "GD":  # plain training on all examples at once
        recorded = "ERM"
    return LOOKS.get(recorded) or Look("", (0, (2, 1)), "X")


def named(label: str) -> str:
    """A label that begins with a method's name in records, with its name of prose.

    >>> named("WeightNoise, k = 2")
    'weight noise, k = 2'
    """
    name = _begins(label)
    return NAMES.get(name, name) + label[len(name) :]


def line(label: str) -> dict[str, Any]:
    """Color and line style of a label that begins with a method's name, as arguments of
    `Axes.plot`.

    >>> line("ERM, tuned")
    {'color': '#000000', 'linestyle': '-'}
    """
    return {"color": color(label), "linestyle": _look(label).dash}


def color(label: str) -> str:
    """The color of a label, likewise.

    >>> color("ERM")
    '#000000'
    """
    return PALETTE.get(_look(label).color, GRAY)


def marker(label: str) -> str:
    """The marker of a label, likewise.

    >>> marker("ERM")
    'o'
    """
    return _look(label).marker


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two positive ones, for the ticks of a logarithmic axis: powers
    of ten, or also 3, also 2 and 5, or all digits, where there are fewer than three.

    >>> log_ticks(0.02, 40), log_ticks(0.2, 4), log_ticks(0.28, 0.65)
    ([0.1, 1.0, 10.0], [0.3, 1.0, 3.0], [0.3, 0.4, 0.5, 0.6])
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for digits in ((1,), (1, 3), (1, 2, 5), range(1, 10)):
        rounded = [float(f"{digit}e{power}") for power in powers for digit in digits]
        ticks = [tick for tick in rounded if low <= tick <= high]
        if len(ticks) > 2:
            break
    return ticks


def band(ax: plt.Axes, x: ArrayLike, values: ArrayLike, **style: Any) -> None:
    """Draw the mean of curves (n, points), one per repetition, and its 95 % t-interval
    as a band of the same color.

    >>> ax = plt.figure().gca()
    >>> band(ax, [0, 1], [[1.0, 2.0], [3.0, 4.0]])
    >>> ax.lines[0].get_ydata().tolist()
    [2.0, 3.0]
    """
    mean, half = interval(values)
    (drawn,) = ax.plot(x, mean, **style)
    area: dict[str, Any] = {"color": drawn.get_color(), "alpha": 0.18, "linewidth": 0}
    ax.fill_between(np.asarray(x), mean - half, mean + half, **area)


def curves(
    ax: plt.Axes, frame: pd.DataFrame, y: str, *, x: str = "epoch", **style: Any
) -> None:
    """Draw the column y over x, one `band` per method.

    The rows of `frame` that share a method and an x are its repetitions: seeds, or
    members. Without a column "method" it is one unnamed curve. Axes without labels get
    the names of the columns; `style` overrides the methods' own. ValueError: a curve
    has another number of repetitions at some x, and so a band of changing meaning.

    >>> frame = pd.DataFrame({"method": "SAM", "epoch": [0, 1] * 2, "loss": [3, 2] * 2})
    >>> ax = plt.figure().gca()
    >>> curves(ax, frame, "loss")
    >>> ax.lines[0].get_label()
    'SAM'
    """
    groups = frame.groupby("method", sort=False) if "method" in frame else [("", frame)]
    for label, rows in groups:
        ordered = rows.sort_values(x, kind="stable")
        points, counts = np.unique(ordered[x], return_counts=True)
        if len(set(counts)) != 1:
            raise ValueError(
                f"{label or 'the curve'} has {counts.min()} to {counts.max()} rows per "
                f"value of {x!r}: draw only the values that all repetitions have"
            )
        values = ordered[y].to_numpy(np.float64).reshape(len(points), -1).T
        look = {**line(label), "label": named(label) or None}
        band(ax, points, values, **{**look, **style})
    ax.set_xlabel(ax.get_xlabel() or x.replace("_", " "))
    ax.set_ylabel(ax.get_ylabel() or y.replace("_", " "))


def differences(
    ax: plt.Axes, tests: pd.DataFrame, seeds: pd.DataFrame | None = None
) -> None:
    """Draw paired differences to a baseline as rows of points with error bars.

    A star above a point marks a significant difference. Of one task each method is a
    row; of several each task is a row, with its methods below one another: call
    `ax.legend()` for their names. `tests` is of `flatnb.results.compare.paired`;
    `seeds`, of its `differences`, become gray points.

    >>> tests = pd.DataFrame({"task": "plane", "method": ["SAM", "NSO"],
    ...                       "difference": [0.1, 0.2], "interval": [0.1, 0.1],
    ...                       "p_holm": [0.01, 0.3]})
    >>> ax = plt.figure().gca()
    >>> differences(ax, tests)
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['SAM', 'NSO']
    """
    tasks, methods = list(tests["task"].unique()), list(tests["method"].unique())
    single = len(tasks) == 1
    shifts = np.zeros(1) if single else np.linspace(-0.25, 0.25, len(methods))
    for row in tests.itertuples():
        place = methods.index(row.method)
        if not single:
            place = tasks.index(row.task) + shifts[place]
        if seeds is not None:
            points = seeds.loc[row.task, row.method]
            ax.plot(points, [place] * len(points), ".", color="0.75", zorder=1)
        first = row.task == tasks[0] and not single
        ax.errorbar(
            row.difference,
            place,
            xerr=row.interval,
            capsize=3,
            color=color(row.method),
            marker=marker(row.method),
            linestyle="",
            label=named(row.method) if first else None,
        )
        if row.p_holm < LEVEL:
            offset: dict[str, Any] = {"xytext": (0, 3), "textcoords": "offset points"}
            ax.annotate("*", (row.difference, place), ha="center", **offset)
    rows = list(map(named, methods)) if single else tasks
    ax.set_yticks(range(len(rows)), rows)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.axvline(0, color="0.4", linewidth=1)
    ax.locator_params(axis="x", nbins=5)


def gains(
    ax: plt.Axes, table: pd.DataFrame, metric: str, *, level: float = LEVEL
) -> None:
    """Draw paired differences to a baseline as a map of methods by tasks.

    Blue is better than the baseline, red worse; colors are full from the 90th
    percentile of the sizes on. A hatched cell has no record. An upward triangle marks a
    significantly better method, a downward one a worse one. `table` is of
    `flatnb.results.compare.paired`; more is better if `metric` is an accuracy, else less.

    >>> tests = pd.DataFrame({"task": ["plane"], "method": ["SAM"],
    ...                       "difference": [-0.1], "p_holm": [0.01]})
    >>> ax = plt.figure().gca()
    >>> gains(ax, tests, "test_loss")
    >>> ax.lines[0].get_marker()  # better
    '^'
    """
    gain = table.assign(gain=table["difference"] * sign(metric))
    methods, tasks = list(table["method"].unique()), list(table["task"].unique())
    wide = gain.pivot(index="method", columns="task", values="gain")
    wide = wide.loc[methods, tasks]
    full = float(np.nanquantile(wide.abs(), 0.9)) or 1.0
    ax.patch.set(hatch="///", edgecolor="0.8")  # seen where there is no value
    ax.imshow(wide, cmap=_GAIN, vmin=-full, vmax=full, aspect="auto")
    for row in gain[gain["p_holm"] < level].itertuples():
        place = tasks.index(row.task), methods.index(row.method)
        triangle = "^" if row.gain > 0 else "v"
        ax.plot(*place, marker=triangle, color="black", markersize=5)
    ax.set_xticks(range(len(tasks)), tasks, rotation=45, ha="right")
    ax.set_yticks(range(len(methods)), list(map(named, methods)))
    ax.grid(False)
