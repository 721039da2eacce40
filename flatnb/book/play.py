"""Pages load what their figures to play with need, and other pages nothing of it.

A figure NAME is a cell with the tag `play-NAME`, or `<div data-play="NAME">`; what it
does is in book/_static/play/NAME.js, and how to make one at the head of play.js.
"""

import re
from typing import Any

from flatnb.book import charts


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
