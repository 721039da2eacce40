"""Charts that a reader can change, each in the place of a picture.

Altair describes a chart. Colab and Jupyter show it by Altair's own means; on a page of
the book book/_static/play/chart.js does, from the description in the page. All numbers
are computed before, in Python: a control only selects among them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import pandas as pd

from flatnb import plots

if TYPE_CHECKING:
    import altair as alt

PAGE = "FLATNB_PAGE"  # set in the kernels whose output becomes a page
DIGITS = 4  # significant, of the numbers of a chart
_GRID = "#E4E4E4"
# As book/_static/custom.css names them, where a dark page has others.
COLORS = {**plots.PALETTE, "gray": plots.GRAY, "grid": _GRID, "page": "#FFFFFF"}
_TEXT = {"labelColor": plots.GRAY, "labelFontSize": 13}
_TITLE = {"titleColor": plots.BLACK, "titleFontSize": 14, "titleFontWeight": "normal"}
_LINES = {"gridColor": _GRID, "domainColor": _GRID, "tickColor": _GRID}
# Of every chart, as Altair's `configure` takes it.
STYLE: dict[str, Any] = {
    "autosize": {"type": "fit-x", "contains": "padding"},
    "axis": {**_TEXT, **_TITLE, **_LINES},
    "background": "transparent",
    "legend": {**_TEXT, "labelColor": plots.BLACK, "title": None, "orient": "bottom"},
    "padding": 0,
    "title": {"anchor": "start", "fontSize": 14, "fontWeight": "normal", "offset": 12},
    "view": {"stroke": None},
}
STYLE["title"] |= {"color": plots.BLACK, "subtitleColor": plots.GRAY}


def show(draw: Callable[[], alt.TopLevelMixin]) -> None:
    """Show the chart that `draw` returns in the place of matplotlib's current figure.

    On a page of the book the figure stays for print, and for readers without
    JavaScript. Outside a notebook, or without Altair, there is only the figure.

    >>> figure = plt.figure()
    >>> show(lambda: None)  # not in a notebook
    """
    screen = _screen()
    if screen is None or find_spec("altair") is None:
        plt.show()
        return
    chart = draw().configure(**STYLE)
    if PAGE in os.environ:
        screen.display(screen.HTML(script(chart)))
        plt.show()
    else:
        plt.close()
        screen.display(chart)


def _screen() -> Any:
    """What shows something in a notebook; None, if this is none."""
    shell = sys.modules.get("IPython")
    return shell.display if shell and shell.get_ipython() else None


def script(chart: alt.TopLevelMixin) -> str:
    """The chart as a page holds it: for Vega, its colors by name, its data by column;
    and what the reader may change."""
    described = chart.to_dict()
    drawn = chart.to_dict(format="vega")
    for part in drawn["data"]:
        if rows := part.get("values"):
            part["values"] = {name: [row[name] for row in rows] for name in rows[0]}
    page = {
        "label": described["description"],
        "how": described["usermeta"]["how"],
        "params": [param for param in described["params"] if "bind" in param],
        "vega": drawn,
    }
    text = json.dumps(page, separators=(",", ":"), ensure_ascii=False)
    for name, color in COLORS.items():
        text = text.replace(f'"{color}"', f'"var(--flatnb-{name})"')
    text = text.replace("</", "<\\/")
    return f'<script type="application/json" class="play-data">{text}</script>'


def data(table: pd.DataFrame) -> alt.Data:
    """The rows of a table for a chart, with numbers of `DIGITS` significant digits.

    >>> data(pd.DataFrame({"loss": [0.123456, float("nan")]})).values
    [{'loss': 0.1235}, {'loss': None}]
    """
    import altair as alt

    rows = table.to_dict("records")
    return alt.Data(values=[{k: _short(v) for k, v in row.items()} for row in rows])


def _short(value: Any) -> Any:
    if pd.isna(value):
        return None
    if not isinstance(value, float):
        return value
    short = float(f"{value:.{DIGITS}g}")
    return int(short) if short.is_integer() else short


def choice(
    name: str, words: Sequence[str], label: str = "", *, menu: bool = False
) -> alt.Parameter:
    """A parameter of a chart: the index of one of the words, at first 0. The reader has
    a button for each, or a menu.

    >>> choice("metric", ["accuracy", "loss"]).param.bind.labels
    ['accuracy', 'loss']
    """
    import altair as alt

    bind: Any = alt.binding_select if menu else alt.binding_radio
    options = list(range(len(words)))
    bound = bind(options=options, labels=list(words), name=label or name)
    return alt.param(name=name, value=0, bind=bound)


def pick(texts: Sequence[str], name: str) -> str:
    """The expression for one of some texts, by a parameter or a field of a row.

    >>> pick(["accuracy", "loss"], "metric")
    '["accuracy", "loss"][metric]'
    """
    return f"{json.dumps(list(texts), ensure_ascii=False)}[{name}]"


# --- the scoreboard -----------------------------------------------------------------

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

    The reader chooses rule, metric, place and baseline, and the order of the rows.
    """
    import altair as alt

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
    rows = (
        alt.Chart()
        .transform_filter(" && ".join(f"datum.{key} == {key}" for key in _KEYS))
        .transform_calculate(
            low="datum.gain - datum.interval",
            high="datum.gain + datum.interval",
            words=text,
            verdict=pick(list(VERDICTS), "datum.verdict"),
            row=row,
        )
    )
    colors, shapes = (
        alt.Scale(domain=list(VERDICTS), range=list(values))
        for values in zip(*VERDICTS.values(), strict=True)
    )
    legend = alt.Legend(columns=alt.ExprRef("width < 500 ? 1 : 3"))
    color = alt.Color("verdict:N", scale=colors, legend=legend)
    shape = alt.Shape("verdict:N", scale=shapes, legend=legend)
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
    zero = alt.Chart(alt.Data(values=[{}])).mark_rule(color=plots.GRAY)
    relative_to = f"'relative to ' + {pick(words['baseline'], 'baseline')}"
    title = alt.ExprRef(f"[{pick(gains, 'metric')}, {relative_to}]")  # two lines
    return alt.layer(
        zero.encode(x=alt.datum(0)),
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
        usermeta={"how": "Choose how, where and with what to compare."},
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
