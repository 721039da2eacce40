"""The figure that the book opens with: gains at one learning rate, when all tune it, and
when it falls, too."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas
from matplotlib.figure import Figure

from flatnb import plots
from flatnb.report import NAMES
from flatnb.results import compare
from flatnb.results.statistics import LEVEL

FILE = "headline.svg"


def tests() -> dict[str, pandas.DataFrame]:
    """Gains in test accuracy over plain training, of `compare.overall` and indexed by
    method, of the methods that are recorded on all nine sets of the plane in all three
    ways: with one learning rate, when everyone tunes a constant rate, and when everyone
    tunes one that falls along a cosine. All are fresh runs under the same seeds. A family
    of tests has all methods that are recorded in its way.

    >>> list(tests())
    ['one learning rate for all', 'everyone tunes', 'everyone tunes, and the rate falls']
    """
    designs = {
        "one learning rate for all": "narrow-grid",
        "everyone tunes": "narrow-tuned",
        "everyone tunes, and the rate falls": "narrow-tuned-cosine",
    }
    tables = {
        title: compare.on_all_tasks(compare.select([f"plane/*/*/{design}"]))
        for title, design in designs.items()
    }
    shared = set.intersection(*(set(table["method"]) for table in tables.values()))
    tests = {
        title: compare.overall(table, "ERM", "test_accuracy").set_index("method")
        for title, table in tables.items()
    }
    return {title: table[table.index.isin(shared)] for title, table in tests.items()}


def figure() -> Figure:
    """The tables of `tests`, side by side: filled dots are significantly better,
    squares worse; hollow dots neither, or a choice is at an edge."""
    tables = tests()
    order = _order(tables)
    places = np.arange(len(order))
    fig, axes = plt.subplots(1, 3, figsize=(8, 3), sharex=True, sharey=True)
    for ax, (title, table) in zip(axes, tables.items(), strict=True):
        points = 100 * table.loc[order, ["difference", "interval"]].to_numpy()
        significant = _verdict(table.loc[order]).to_numpy()
        better = points[:, 0] > 0
        looks = (
            (significant & better, "o", plots.BLUE),
            (significant & ~better, "s", plots.RED),
            (~significant, "o", plots.GRAY),
        )
        for shown, marker, color in looks:
            gains, halves = points[shown].T
            look = {"fmt": marker, "color": color, "capsize": 2}
            if color == plots.GRAY:
                look["markerfacecolor"] = "white"
            ax.errorbar(gains, places[shown], xerr=halves, **look)
        ax.axvline(0, color="black", linewidth=0.8)
        ax.set_title(title.replace(", ", ",\n"))
    axes[0].set_yticks(places, [NAMES.get(name, name) for name in order])
    axes[1].set_xlabel("points of accuracy minus plain training")
    return fig


def _verdict(table: pandas.DataFrame) -> "pandas.Series[bool]":
    """Whether a method is significantly better or worse, and not at an edge."""
    return (table["p_holm"] < LEVEL) & ~table["at_edge"]


def _order(tables: dict[str, pandas.DataFrame]) -> pandas.Index:
    """The methods, by their gain when everyone tunes."""
    return tables["everyone tunes"]["difference"].sort_values().index


def description() -> str:
    """The numbers of the figure, which its file states.

    >>> "SAM +0.30" in description()
    True
    """
    lines = []
    for title, table in tests().items():
        gains = (100 * table["difference"]).map("{:+.2f}".format)
        lines.append(f"{title}: {', '.join(gains.index + ' ' + gains)}")
    return "; ".join(lines)


def data() -> str:
    """The same tables as JSON, for the figure to play with: per method its gain and the
    half-width of its interval in points, and its verdict, 1, 0 or -1.

    >>> sorted(json.loads(data()))
    ['falling', 'fixed', 'tuned']
    """
    tables = tests()
    order = _order(tables)
    panels = []
    for table in tables.values():
        rows = table.loc[order].reset_index()
        verdicts = np.sign(rows["difference"]) * _verdict(rows)
        shown = {
            "method": rows["method"].replace(NAMES),
            "gain": (100 * rows["difference"]).round(3),
            "half": (100 * rows["interval"]).round(3),
            "verdict": verdicts.astype(int),
        }
        panels.append(pandas.DataFrame(shown).to_dict("records"))
    return json.dumps(dict(zip(("fixed", "tuned", "falling"), panels, strict=True)))


def save(folder: Path) -> None:
    """Draw it into a folder, as `FILE`."""
    with plt.rc_context({"svg.hashsalt": FILE}):
        plots.use_style()
        fig = figure()
        stated = {"Date": None, "Description": description()}
        fig.savefig(folder / FILE, metadata=stated)
        plt.close(fig)
