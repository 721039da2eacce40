"""One style for every figure of the book.

Colors darken the Okabe-Ito set until each has a contrast of 3 to 1 with white. A method
keeps its color, line and marker on every page, so a figure also reads in black and
white: those that the book compares everywhere have a color each; variants share one,
and differ in line and marker. Bands are `flatnb.results.statistics.interval`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.colors import LinearSegmentedColormap

from flatnb.results.compare import sign
from flatnb.results.statistics import LEVEL, interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D
    from numpy.typing import ArrayLike
    from torch import Tensor

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
GRAY = "#6B6B6B"  # of what is no method

# The two classes of the plane: light enough to lie behind points, apart for
# color-blind eyes.
_CLASSES = (GOLD, BLUE)
_CLASS_MARKERS = ("o", "^")
_SURFACE = LinearSegmentedColormap.from_list(
    "classes", ["#F3DFA9", "#FFFFFF", "#B5D3EF"]
)
# Worse than the baseline, the same, better.
_GAIN = LinearSegmentedColormap.from_list("gain", [RED, "#FFFFFF", BLUE])


def use_style() -> None:
    """Set matplotlib's defaults for the book; call it once, before the first figure.

    Figures are narrow (5.2 in) with 11 pt text, readable on a phone's 360 pixels, and
    keep an opaque white ground: black text stays legible on a dark page.

    >>> with plt.rc_context():
    ...     use_style()
    ...     plt.rcParams["figure.figsize"]
    [5.2, 3.4]
    """
    white = {f"{part}.facecolor": "white" for part in ("figure", "axes", "savefig")}
    sns.set_theme(
        context="notebook",
        style="ticks",
        palette=_CYCLE,
        rc={
            **white,
            "savefig.transparent": False,
            "savefig.bbox": "tight",
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
            "axes.axisbelow": True,
            "lines.linewidth": 1.8,
            "lines.markersize": 6,
        },
    )


def look(method: object) -> Look:
    """How a method is drawn, as `flatnb.experiments.tuning` declares it.

    What counts is its class, or the first word of its label; gray if it is no method.

    >>> look("SAM(rho=0.05)") == look("SAM, tuned") == look("SAM")
    True
    """
    from flatnb.experiments.tuning import LOOKS, Look

    label = method if isinstance(method, str) else type(method).__name__
    word = re.match(r"\w*", label)
    return LOOKS.get(word[0] if word else "") or Look("", (0, (2, 1)), ".")


def line(method: object) -> dict[str, Any]:
    """Color and line style of a method or its label, as arguments of `Axes.plot`.

    >>> line("ERM")
    {'color': '#000000', 'linestyle': '-'}
    """
    return {"color": color(method), "linestyle": look(method).dash}


def color(method: object) -> str:
    """The color of a method, or of a label that begins with a method's name.

    >>> color("ERM")
    '#000000'
    """
    return PALETTE.get(look(method).color, GRAY)


def marker(method: object) -> str:
    """The marker of a method, or of a label that begins with a method's name.

    >>> marker("ERM")
    'o'
    """
    return look(method).marker


def band(ax: Axes, x: ArrayLike, values: ArrayLike, **style: Any) -> Line2D:
    """Draw the mean of repeated curves, and its 95 % t-interval as a band.

    Args:
        ax: where to draw.
        x: shape (points,).
        values: shape (n, points), one curve per repetition.
        **style: arguments of `Axes.plot`; the band takes the line's color.

    Returns:
        The line of the mean.

    >>> mean = band(plt.figure().gca(), [0, 1], [[1.0, 2.0], [3.0, 4.0]])
    >>> mean.get_ydata().tolist()
    [2.0, 3.0]
    """
    mean, half = interval(values)
    (drawn,) = ax.plot(x, mean, **style)
    area: dict[str, Any] = {"color": drawn.get_color(), "alpha": 0.18, "linewidth": 0}
    ax.fill_between(np.asarray(x), mean - half, mean + half, **area)
    return drawn


def curves(
    ax: Axes,
    frame: pd.DataFrame,
    y: str,
    *,
    x: str = "epoch",
    by: str = "method",
    **style: Any,
) -> list[Line2D]:
    """Draw one mean curve per method, each with a band of its 95 % t-interval.

    The rows that share a method and an x are its repetitions: seeds, or members.

    Args:
        ax: where to draw; its labels are set where they are empty.
        frame: long table with columns x, y and `by`, such as `Run.frame()`; without the
            column `by` it is one unnamed curve.
        y: the column to draw.
        x: the column to draw it over.
        by: the column whose values name the curves in the legend.
        **style: arguments of `Axes.plot` that override the method's own.

    Returns:
        The lines of the means, in the order in which the methods appear in the table.

    Raises:
        ValueError: a column is missing, or a curve has another number of repetitions at
            some x (the band would change its meaning along the curve).

    >>> frame = pd.DataFrame({"method": "SAM", "epoch": [0, 1] * 2, "loss": [3, 2] * 2})
    >>> [curve.get_label() for curve in curves(plt.figure().gca(), frame, "loss")]
    ['SAM']
    """
    if missing := [column for column in (x, y) if column not in frame]:
        raise ValueError(
            f"no column {missing} in the table; it has {list(frame.columns)}"
        )
    lines = []
    groups = frame.groupby(by, sort=False) if by in frame else [("", frame)]
    for label, rows in groups:
        ordered = rows.sort_values(x, kind="stable")
        points, counts = np.unique(ordered[x], return_counts=True)
        if len(set(counts)) != 1:
            raise ValueError(
                f"{label or 'the curve'} has {counts.min()} to {counts.max()} rows per "
                f"value of {x!r}: draw only the values that all repetitions have"
            )
        values = ordered[y].to_numpy(np.float64).reshape(len(points), -1).T
        named = {"label": str(label)} if label else {}
        lines.append(band(ax, points, values, **{**line(str(label)), **named, **style}))
    ax.set_xlabel(ax.get_xlabel() or x.replace("_", " "))
    ax.set_ylabel(ax.get_ylabel() or y.replace("_", " "))
    return lines


def decision_boundary(
    ax: Axes,
    predict: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    *,
    classes: tuple[str, str] = ("class 0", "class 1"),
) -> None:
    """Draw what a two-class model says over the plane, and points with their classes.

    The ground shows the probability of class 1 (softmax, mean over members), the thick
    line one half, thin lines the boundaries of single members.

    Args:
        ax: where to draw.
        predict: maps points (m, 2), float32, to logits (m, 2) or (members, m, 2), in
            eval mode: in training, a BatchNorm would use the grid's statistics.
        x: points to show, (n, 2).
        y: their classes 0 or 1, (n,).
        classes: names for the legend.

    Raises:
        ValueError: the points are not (n, 2), or the logits not (..., m, 2).

    >>> x = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    >>> ax = plt.figure().gca()
    >>> decision_boundary(ax, lambda points: points, x, torch.tensor([0, 1]))
    >>> ax.get_xlabel()
    '$x_1$'
    """
    if x.ndim != 2 or x.shape[1] != 2:
        raise ValueError(
            f"decision_boundary draws points of shape (n, 2), not {tuple(x.shape)}"
        )
    low, high = x.amin(0).tolist(), x.amax(0).tolist()
    axes = [
        torch.linspace(a - 0.08 * (b - a), b + 0.08 * (b - a), 200, device=x.device)
        for a, b in zip(low, high, strict=True)
    ]
    columns, rows = torch.meshgrid(*axes, indexing="xy")
    grid = torch.stack([columns.ravel(), rows.ravel()], dim=-1)
    with torch.no_grad():
        logits = predict(grid)
    if logits.shape[-2:] != (len(grid), 2):
        raise ValueError(
            f"predict must return logits (..., {len(grid)}, 2), not "
            f"{tuple(logits.shape)}: the picture is for two classes"
        )
    chance = logits.softmax(-1)[..., 1].reshape(-1, *rows.shape).cpu().numpy()
    ground = (columns.cpu().numpy(), rows.cpu().numpy())
    mean = chance.mean(0)
    ax.contourf(*ground, mean, levels=np.linspace(0, 1, 11), cmap=_SURFACE, zorder=0)
    if len(chance) > 1:
        thin: dict[str, Any] = {"colors": "#555555", "linewidths": 0.5, "alpha": 0.6}
        for member in chance:
            ax.contour(*ground, member, levels=[0.5], **thin)
    ax.contour(*ground, mean, levels=[0.5], colors=BLACK, linewidths=2.0)
    points, labels = x.cpu(), y.cpu()
    for label in (0, 1):
        x1, x2 = points[labels == label].T
        ax.scatter(
            x1,
            x2,
            s=16,
            marker=_CLASS_MARKERS[label],
            c=_CLASSES[label],
            edgecolors="white",
            linewidths=0.5,
            label=classes[label],
            zorder=3,
        )
    ax.grid(False)
    ax.set_xlabel("$x_1$")
    ax.set_ylabel("$x_2$")


def differences(
    ax: Axes,
    tests: pd.DataFrame,
    seeds: pd.DataFrame | None = None,
    *,
    level: float = LEVEL,
) -> None:
    """Draw paired differences to a baseline as rows of points with error bars.

    A star above a point marks a significant difference: Holm's adjusted p below the
    level. Of one task each method is a row; of several each task is a row, with its
    methods below one another: call `ax.legend()` for their names.

    Args:
        ax: where to draw.
        tests: of `flatnb.results.compare.paired`.
        seeds: of `flatnb.results.compare.differences`, drawn as gray points.
        level: of the test.

    >>> tests = pd.DataFrame({"task": "plane", "method": ["SAM", "NSO"],
    ...                       "difference": [0.1, 0.2], "interval": [0.1, 0.1],
    ...                       "p_holm": [0.01, 0.3]})
    >>> ax = plt.figure().gca()
    >>> differences(ax, tests)
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['SAM', 'NSO']
    """
    tasks, methods = (
        list(dict.fromkeys(tests[column])) for column in ("task", "method")
    )
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
            label=row.method if first else None,
        )
        if row.p_holm < level:
            ax.annotate(
                "*",
                (row.difference, place),
                (0, 3),
                textcoords="offset points",
                ha="center",
            )
    rows = methods if single else tasks
    ax.set_yticks(range(len(rows)), rows)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.axvline(0, color="0.4", linewidth=1)
    ax.locator_params(axis="x", nbins=5)


def gains(ax: Axes, table: pd.DataFrame, metric: str, *, level: float = LEVEL) -> None:
    """Draw paired differences to a baseline as a map of methods by tasks.

    Blue is better than the baseline, red is worse; the color is full from the 90th
    percentile of the differences' sizes on. An upward triangle marks a significantly
    better method, a downward one a significantly worse one: Holm's adjusted p below
    the level.

    Args:
        ax: where to draw.
        table: of `flatnb.results.compare.paired`.
        metric: that of the table; of an accuracy more is better, of all else less.
        level: of the test.

    >>> tests = pd.DataFrame({"task": ["plane"], "method": ["SAM"],
    ...                       "difference": [-0.1], "p_holm": [0.01]})
    >>> ax = plt.figure().gca()
    >>> gains(ax, tests, "test_loss")
    >>> ax.lines[0].get_marker()  # better
    '^'
    """
    gain = table.assign(gain=table["difference"] * sign(metric))
    order = {key: list(dict.fromkeys(table[key])) for key in ("method", "task")}
    wide = gain.pivot(index="method", columns="task", values="gain")
    wide = wide.loc[order["method"], order["task"]]
    full = float(np.nanquantile(wide.abs(), 0.9)) or 1.0
    ax.imshow(wide, cmap=_GAIN, vmin=-full, vmax=full, aspect="auto")
    for row in gain[gain["p_holm"] < level].itertuples():
        place = order["task"].index(row.task), order["method"].index(row.method)
        ax.plot(
            *place, marker="^" if row.gain > 0 else "v", color="black", markersize=5
        )
    ax.set_xticks(range(len(order["task"])), order["task"], rotation=45, ha="right")
    ax.set_yticks(range(len(order["method"])), order["method"])
    ax.grid(False)


def sensitivities(table: pd.DataFrame, names: Mapping[str, str], label: str) -> Axes:
    """Draw how each method depends on one hyperparameter, three panels per row.

    A thin line per task, their mean thick with its interval over tasks. A gray ground
    covers the middle 80 % of what was chosen. Unevenly spaced values get a log axis.

    Args:
        table: of `flatnb.results.population.grid`; a method has the same settings on
            every task.
        names: the hyperparameter of each method that is to be drawn.
        label: of the vertical axis, which all share.

    Returns:
        The first panel; what is set of its vertical axis holds for all.

    >>> table = pd.DataFrame({"task": "plane", "method": "SAM", "rho": [0.1, 0.2, 0.4],
    ...                       "difference": [0.0, 0.1, 0.0], "chosen": [0.0, 1.0, 0.0]})
    >>> sensitivities(table, {"SAM": "rho"}, "test accuracy").get_title()
    'SAM'
    """
    rows = -(-len(names) // 3)
    figure, axes = plt.subplots(
        rows, 3, figsize=(6, 0.6 + 2.1 * rows), sharey=True, squeeze=False
    )
    for ax, (method, x) in zip(axes.flat, names.items(), strict=False):
        _sensitivity(ax, table[table["method"] == method], x)
        ax.set_title(method)
    for ax in axes.flat[len(names) :]:
        ax.set_visible(False)
    figure.supylabel(label)
    return axes[0, 0]


def _sensitivity(ax: Axes, table: pd.DataFrame, x: str) -> None:
    wide = table.pivot_table(index=x, columns="task", values="difference")
    ax.plot(wide.index, wide, color="0.6", linewidth=0.7)
    band(ax, wide.index, wide.to_numpy().T, **line(table["method"].iloc[0]))
    ax.axhline(0, color="0.4", linewidth=1)
    ordered = table.sort_values(x)
    share = ordered["chosen"].cumsum() / ordered["chosen"].sum()
    middle = ordered[x][(share >= 0.1) & (share.shift(fill_value=0) <= 0.9)]
    if len(middle):
        ax.axvspan(middle.min(), middle.max(), color="#EBEBEB", zorder=0)
    steps = np.diff(np.sort(wide.index))
    if len(steps) and steps.max() > 1.1 * np.median(steps):
        ax.set_xscale("log")
    ax.set_xlabel(x)
