"""Sphinx extension of the book, named in _config.yml.

Jupyter Book 1 always loads sphinx-thebe (live cells, which this book has none of), and
that writes
its settings into each page twice, as constants: an error in the browser's console on
    every page.

The library's docstrings are written to be read as they are. For the page made of them,
an indented formula becomes a literal block, single backquotes mark code, and what
reStructuredText would take for markup is escaped.
"""

import re
from typing import Any


def setup(app: Any) -> dict[str, bool]:
    """Keep sphinx-thebe's scripts out of the pages; make pages of docstrings."""
    listeners = app.events.listeners.get("env-before-read-docs", [])
    listeners[:] = [
        one for one in listeners if one.handler.__name__ != "init_thebe_core"
    ]
    app.setup_extension("sphinx.ext.napoleon")
    # Before napoleon, which hears of a docstring at priority 500.
    app.connect("autodoc-process-docstring", _docstring, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _docstring(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    lines[:] = marked_up(lines)


def marked_up(lines: list[str]) -> list[str]:
    """A docstring's lines as reStructuredText for napoleon."""
    out: list[str] = []
    literal: int | None = None  # the indentation of the formula we are in
    above = 0  # the indentation of the text it interrupts
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if literal is not None and line.strip() and indent < literal:
            literal = None
        starts = (
            line.strip() and number and not lines[number - 1].strip() and indent > above
        )
        if (
            literal is None
            and starts
            and not line.lstrip().startswith(("- ", "* ", ".."))
        ):
            literal = indent
            out += [" " * above + ".. code-block:: text", ""]
        out.append(
            line
            if literal is not None or line.lstrip().startswith("..")
            else _text(line)
        )
        if literal is None and line.strip():
            above = indent
    return out


def _text(line: str) -> str:
    parts = re.split(r"(``[^`]+``|:\w+:`[^`]+`|`[^`]+`)", line)
    return "".join(
        _code(part) if i % 2 else _escaped(part) for i, part in enumerate(parts)
    )


def _code(part: str) -> str:
    return f"`{part}`" if re.match(r"`[^`]", part) else part


def _escaped(text: str) -> str:
    text = text.replace("\\", "\\\\").replace("|", "\\|")
    text = re.sub(r"(?<=\w)_(?!\w)", r"\\_", text)
    return re.sub(r"(?<!\*)\*(?!\*)", r"\\*", text)
