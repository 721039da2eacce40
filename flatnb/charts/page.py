"""How a chart gets into a notebook or a page of the book, and what all charts share."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import pandas as pd

from flatnb import plots

if TYPE_CHECKING:
    import altair as alt

PAGE = "FLATNB_PAGE"  # set in the kernels whose output becomes a page
DIGITS = 4  # significant, of the numbers of a chart
GRID = "#E4E4E4"
# As book/_static/custom.css names them, where a dark page has others.
COLORS = {**plots.PALETTE, "gray": plots.GRAY, "grid": GRID, "page": "#FFFFFF"}
_TEXT = {"labelColor": plots.GRAY, "labelFontSize": 13}
_TITLE = {"titleColor": plots.BLACK, "titleFontSize": 14, "titleFontWeight": "normal"}
_LINES = {"gridColor": GRID, "domainColor": GRID, "tickColor": GRID}
# Of every chart, as Altair's `configure` takes it.
STYLE: dict[str, Any] = {
    "autosize": {"type": "fit-x", "contains": "padding"},
    "axis": {**_TEXT, **_TITLE, **_LINES},
    "background": "#FFFFFF",
    "legend": {
        **_TEXT,
        "columns": {"expr": "containerSize()[0] < 400 ? 1 : 3"},
        "labelColor": plots.BLACK,
        "orient": "bottom",
        "title": None,
    },
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
        **described["usermeta"],
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


def slider(
    name: str, words: Sequence[Any], label: str = "", at: int = 0
) -> alt.Parameter:
    """The same as a slider, at first at one of the words; `about` tells the page what
    they are.

    >>> slider("level", ["0", "0.1", "0.5"]).param.bind.max
    2
    """
    import altair as alt

    bound = alt.binding_range(min=0, max=len(words) - 1, step=1, name=label or name)
    return alt.param(name=name, value=at, bind=bound)


def switch(name: str, label: str) -> alt.Parameter:
    """A parameter of a chart that is true, at first, or false.

    >>> switch("on", "batch size 50").param.value
    True
    """
    import altair as alt

    return alt.param(name=name, value=True, bind=alt.binding_checkbox(name=label))


def about(
    how: str, *, say: str = "", widest: float = 1e4, **words: Sequence[str]
) -> dict[str, Any]:
    """What a page says with a chart, as its `usermeta`: how to use it, the parameter
    whose value is a sentence on what is seen, its largest width in pixels, and the words
    of the sliders.

    >>> about("Move the level.", level=["0", "0.1"])["words"]
    {'level': ['0', '0.1']}
    """
    listed = {name: list(texts) for name, texts in words.items()}
    return {"how": how, "say": say, "widest": widest, "words": listed}


def pick(texts: Sequence[Any], name: str) -> str:
    """The expression for one of some texts, or lists of them, by a parameter or a field
    of a row.

    >>> pick(["accuracy", "loss"], "metric")
    '["accuracy", "loss"][metric]'
    """
    return f"{json.dumps(list(texts), ensure_ascii=False)}[{name}]"
