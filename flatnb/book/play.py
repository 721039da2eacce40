"""Pages load what their figures to play with need, and other pages nothing of it.

A figure NAME is a cell with the tag `play-NAME`, or `<div data-play="NAME">`; what it
does is in book/_static/play/NAME.js, and how to make one at the head of play.js.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from flatnb.book import charts

if TYPE_CHECKING:
    from IPython.display import HTML


def data(**values: Any) -> HTML:
    """What a figure needs besides formulas, for its cell to display.

    `values` become `fig.data` in its script: numbers, texts, lists, dictionaries, and
    arrays and tensors as lists. Numbers keep six digits.

    >>> print(data(trace=1.23456789, labels=["flat", "sharp"]).data)
    <script type="application/json" class="play-data">
    {"trace": 1.23457, "labels": ["flat", "sharp"]}</script>
    """
    from IPython.display import HTML

    text = json.dumps(_rounded(values), ensure_ascii=False).replace("</", "<\\/")
    kind = 'type="application/json" class="play-data"'
    return HTML(f"<script {kind}>\n{text}</script>")


def _rounded(value: Any) -> Any:
    if hasattr(value, "tolist"):  # arrays, their scalars, tensors
        value = value.tolist()
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list) else value


def figures(body: str) -> list[str]:
    """The names of the figures in a page's HTML, once each.

    >>> figures('<div class="cell tag_play-wells"></div> <div data-play="valley">')
    ['wells', 'valley']
    """
    names = re.findall(r'\btag_play-([\w-]+)|<div[^>]* data-play="([\w-]+)"', body)
    return list(dict.fromkeys(tag or attribute for tag, attribute in names))


def setup(app: Any) -> None:
    """As an extension of Sphinx: the scripts, deferred and in order, and the style."""
    app.connect("html-page-context", _add)


def _add(app: Any, page: str, template: str, context: dict[str, Any], _: Any) -> None:
    names = figures(context.get("body", ""))
    if names:
        app.add_css_file("play.css")
        vega = [charts.SCRIPT] if "chart" in names else []
        for script in ("play.js", *vega, *(f"play/{name}.js" for name in names)):
            app.add_js_file(script, loading_method="defer")
