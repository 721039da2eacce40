"""What the pages need of Sphinx's theme that it does not give, as an extension: one search
field, scripts that do not keep the first paint waiting, names and roles that readers of
the screen understand. Its templates are in book/_templates.
"""

import re
from pathlib import Path
from typing import Any

from flatnb.book import downloads

# In the head and the text of a page; all but two are faults that axe-core reports.
FAULTS = (
    (r'<meta name="viewport"[^>]*>', ""),  # the template has one already
    # Pictures far below, and those of the other mode, which are not shown at all.
    (r"<img (?![^>]*\bloading=)", '<img loading="lazy" '),
    # A name other than the text that one sees.
    (r'<summary aria-label="Toggle hidden content">', "<summary>"),
    # A heading of a table without text: pandas' corner.
    (r"<th([^>]*)>\s*(?:<p></p>)?\s*</th>", r"<td\1></td>"),
    # A list whose items say that they are something else, and that with a role of old.
    (r' role="doc-biblioentry"', ' role="listitem"'),
)


def setup(app: Any) -> None:
    """As an extension of Sphinx: options of the theme, then each page before it is written."""
    app.connect("config-inited", _configure)
    app.connect("html-page-context", _page, priority=900)


def _configure(_app: Any, config: Any) -> None:
    # The field of the side bar; on a phone the icon above the text.
    config.html_theme_options["navbar_persistent"] = []
    config.html_theme_options["primary_sidebar_end"] = []


def _page(
    app: Any, name: str, _template: str, context: dict[str, Any], _doctree: Any
) -> None:
    context["header_buttons"] = [
        _downloads(app, name, context["pathto"])
        if button["label"] == "download-buttons"
        else button
        for button in context["header_buttons"]
    ]
    text = context.get("body", "")
    context["script_files"] = [s for s in context["script_files"] if _needed(s, text)]
    for script in context["script_files"]:
        if script.filename:
            script.attributes["defer"] = "defer"
    toctree = context.get("generate_toctree_html", lambda **_: "")
    context["generate_toctree_html"] = lambda **how: str(toctree(**how)).replace(
        "<summary>", '<summary aria-label="Pages of this part">'
    )
    for part in {"metatags", "body"} & set(context):
        for fault, repaired in FAULTS:
            context[part] = re.sub(fault, repaired, context[part])


def _needed(script: Any, page: str) -> bool:
    """Not MathJax on a page without a formula, and not what the theme notes for its
    switch of versions, before its script is there."""
    source = f"{script.filename or ''} {script.attributes.get('body', '')}"
    if "mathjax" in source.lower():
        return re.search(r'class="[^"]*\bmath\b', page) is not None
    return "DOCUMENTATION_OPTIONS." not in source


def _downloads(app: Any, page: str, pathto: Any) -> dict[str, Any]:
    """The button to print, in a menu with the files of a page that has some."""
    printed = {
        "type": "javascript",
        "javascript": "window.print()",
        "icon": "fas fa-print",
        "label": "download-pdf-button",
        "tooltip": "Print, or save as PDF",
    }
    files = {
        words: f"{downloads.FOLDER}/{kind}/{Path(page).name}.ipynb"
        for kind, words in downloads.NOTEBOOKS.items()
    }
    buttons = [
        {
            "type": "link",
            "url": pathto(file, 1),
            "text": words,
            "icon": "fas fa-file",
            "label": "download-notebook-button",
        }
        for words, file in files.items()
        if (Path(app.outdir) / file).exists()
    ]
    if not buttons:
        return printed
    return {
        "type": "group",
        "icon": "fas fa-download",
        "label": "download-buttons",
        "tooltip": "Download this page",
        "buttons": [*buttons, {**printed, "text": "print, or save as PDF"}],
    }
