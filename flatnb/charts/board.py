"""The scoreboard as a chart: one of its views at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from flatnb import plots
from flatnb.charts.page import about, choice, data, pick
from flatnb.report import NAMES
from flatnb.results.scoreboard import DEFAULTS, ONE_RATE

if TYPE_CHECKING:
    import altair as alt

# What a verdict looks like: color and shape.
VERDICTS = {
    "better": (plots.BLUE, "circle"),
    "worse": (plots.RED, "square"),
    "no gain worth having": (plots.GRAY, "diamond"),
    "inconclusive": (plots.GRAY, "cross"),
    "at an edge": (plots.GOLD, "triangle-up"),
    "too few seeds": (plots.GOLD, "triangle-down"),
}
# A gain in a metric: the metric's name, the gain's, the factor to its unit, its format.
METRICS = {
    "test_accuracy": ("accuracy", "points of test accuracy gained", 100, ".2f"),
    "test_loss": ("loss", "nats of test loss saved", 1, ".4f"),
    "test_ece": ("calibration", "points of calibration error saved", 100, ".2f"),
}
NOT_RECORDED = "not recorded"
_KEYS = ("rule", "metric", "place", "baseline")


def scoreboard(views: pd.DataFrame) -> alt.TopLevelMixin:
    """One of the `flatnb.results.scoreboard.views` at a time, a row for each method.

    The reader chooses rule, metric, place and baseline, and the order of the rows. All
    rules by which all methods are tuned have one axis, on which their gains can be
    compared; the others, whose gains and losses are many times as large, widen it.
    """
    import altair as alt

    views = views.replace({"method": NAMES, "baseline": NAMES})
    words = {key: list(views[key].unique()) for key in _KEYS}
    names, gains, _, formats = zip(*(METRICS[m] for m in words["metric"]), strict=True)
    params = [
        choice("rule", words["rule"], "learning rates"),
        choice("metric", names),
        choice("place", words["place"], "where", menu=True),
        choice("baseline", words["baseline"], "relative to", menu=True),
        choice("order", ["gain", "passes", "name"], "sorted by", menu=True),
        alt.param(name="digits", expr=pick(formats, "metric")),
    ]
    text = "format(datum.gain, '+' + digits) + ' ± ' + format(datum.interval, digits)"
    row = "[-datum.gain, 1000 * datum.passes - datum.gain, datum.number][order]"
    ends = {
        "low": "datum.gain - datum.interval",
        "high": "datum.gain + datum.interval",
    }
    rows = (
        alt.Chart()
        .transform_filter(" && ".join(f"datum.{key} == {key}" for key in _KEYS))
        .transform_calculate(
            **ends, words=text, verdict=pick(list(VERDICTS), "datum.verdict"), row=row
        )
    )
    wide = DEFAULTS, ONE_RATE
    tuned = [i for i, rule in enumerate(words["rule"]) if rule not in wide]
    alike = " && ".join(f"datum.{key} == {key}" for key in _KEYS[1:])
    axis_of_all = (
        alt.Chart()
        .transform_filter(f"{alike} && indexof({tuned}, datum.rule) >= 0")
        .transform_calculate(**ends)
        .transform_aggregate(low="min(low)", high="max(high)")
        .mark_rule(opacity=0, aria=False)
    )
    colors, shapes = (
        alt.Scale(domain=list(VERDICTS), range=list(values))
        for values in zip(*VERDICTS.values(), strict=True)
    )
    color = alt.Color("verdict:N", scale=colors)
    shape = alt.Shape("verdict:N", scale=shapes)
    tooltip = [
        alt.Tooltip("method:N"),
        alt.Tooltip("words:N", title="gain"),
        alt.Tooltip("verdict:N"),
        alt.Tooltip("p:Q", title="Holm's p", format=".1g"),
        alt.Tooltip("n:Q", title="seeds"),
        alt.Tooltip("passes:Q", title="passes per step"),
    ]
    y = alt.Y("method:N", title=None, sort=alt.SortField("row"))
    encoded = rows.encode(y=y, color=color, tooltip=tooltip)
    axis = alt.Axis(tickCount=5)
    zero = alt.Chart(alt.Data(values=[{}])).mark_rule(color=plots.GRAY, aria=False)
    relative_to = f"'relative to ' + {pick(words['baseline'], 'baseline')}"
    title = alt.ExprRef(f"[{pick(gains, 'metric')}, {relative_to}]")  # two lines
    return alt.layer(
        zero.encode(x=alt.datum(0)),
        axis_of_all.encode(
            x=alt.X("low:Q", title=None, scale=alt.Scale(nice=False)), x2="high:Q"
        ),
        encoded.mark_rule(strokeWidth=2).encode(
            x=alt.X("low:Q", title=None, axis=axis), x2="high:Q"
        ),
        encoded.mark_point(filled=True, opacity=1, size=90).encode(
            x="gain:Q", shape=shape
        ),
        data=data(_coded(views, words)),
        title=alt.TitleParams(title),
        width="container",
        height=alt.Step(21),
        description="The gain of each method over a baseline, with its interval.",
        usermeta=about("Choose how, where and with what to compare."),
    ).add_params(*params)


def _coded(views: pd.DataFrame, words: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """The rows of the chart: words as indices, gains in their units; where nothing is
    recorded, a row that says so."""
    factor = views["metric"].map(lambda name: METRICS[name][2])
    numbers = sorted(views["method"].unique(), key=str.lower)
    table = views[["method", "n"]].assign(
        **{key: views[key].map(words[key].index) for key in _KEYS},
        gain=factor * views["gain"],
        interval=factor * views["interval"],
        p=views["p_holm"],
        passes=views["passes"].round(2),
        verdict=views["verdict"].map(list(VERDICTS).index),
        number=views["method"].map(numbers.index),
    )
    wanted = pd.MultiIndex.from_product([range(len(words[key])) for key in _KEYS])
    lacking = wanted.difference(pd.MultiIndex.from_frame(table[list(_KEYS)]))
    empty = lacking.set_names(list(_KEYS)).to_frame(index=False)
    table = pd.concat([table, empty.assign(method=NOT_RECORDED)], ignore_index=True)
    return table.astype(dict.fromkeys((*_KEYS, "n", "verdict", "number"), "Int64"))
