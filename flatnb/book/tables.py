"""An extension of Sphinx: tables of results as the pages show them.

A table that pandas wrote gets one row of headings, its first column fixed while the
rest scrolls, columns of numbers aligned at the right, and gains and losses colored: a
signed number whose interval does not reach zero (in a table with stars: that has one),
and the words of a verdict. More is better, except in a column of losses or errors. A
hyphen before a number is a minus, methods have the names of prose, and a third of a
pass is one. All stands in a box that a style sheet can let scroll; colors are that
style sheet's, too. A link below the box has the table as CSV.
A table that is wider than a phone, or has verdicts, has the class `stacks` and the name
of its column on each cell, so that a style sheet can show a row as a short list there.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform

from flatnb.report import NAMES, thirds

_ROW = re.compile(r"<tr[^>]*>(.*?)</tr>", re.DOTALL)
_CELL = re.compile(r"<(t[hd])([^>]*)>(.*?)</t[hd]>", re.DOTALL)
_TABLE = re.compile(r"<table.*</table>", re.DOTALL)
_TEXT = re.compile(r"(?:^|(?<=>))[^<]+")  # what of HTML is not in a tag
_MINUS = re.compile(r"(?<![\w.)\]])-(?=\.?\d)")
# The name of a method, which is not part of code or of a record's name.
_RECORDED = re.compile(rf"(?<![\w/.-])({'|'.join(map(re.escape, NAMES))})(?![\w/(-])")
# With or without the words of a verdict behind it.
_SIGNED = re.compile(r"([+-])([\d.]+)\s*±\s*([\d.]+)(\*?)(?:, .*)?")
_NUMBER = re.compile(
    r"[+-]?\d[\d.,]*[⅓⅔]?(e[+-]?\d+)?(\s*±\s*\d[\d.e+-]*\*?)?(\s*%)?|nan|"
)
_DECIMAL = re.compile(r"\d+\.\d+$")
_THIRDS = re.compile(r"(?<![\d.])\d\.33(?= pass)")
_LESS = re.compile(r"\b(loss|error|nats)\b")
_PHONE = 350  # px for a table
# px in the style sheet of a phone: of a character, a cell's padding, and a cell of words
# that is short, or long.
_CHARACTER, _PADDING, _SHORT, _LONG = 6.2, 10, 80, 176
# At the beginning of a line of a cell.
_VERDICT = re.compile(r"(^|<br ?/?>)((?:<b>)?)((?:significantly )?(better|worse))\b")


@dataclass
class Cell:
    """One cell: what it spans, as attributes, and its content as HTML."""

    heading: bool
    spans: str
    content: str

    @property
    def text(self) -> str:
        """What is read."""
        return html.unescape(re.sub(r"<[^>]*>", "", self.content)).strip()


def improved(table: str) -> str:
    """A table of pandas, as HTML, with classes and one row of headings.

    >>> head = "<tr><th></th><th>gain</th></tr>"
    >>> row = "<tr><th>SAM</th><td>+0.3 ± 0.1</td></tr>"
    >>> print(improved(f"<table><thead>{head}</thead><tbody>{row}</tbody></table>"))
    <table class="dataframe">
    <thead>
    <tr><td class="fixed"></td><th class="number" scope="col">gain</th></tr>
    </thead>
    <tbody>
    <tr><th class="fixed" scope="row">SAM</th><td class="number"><span class="better">+0.3 ± 0.1</span></td></tr>
    </tbody>
    </table>
    """  # noqa: E501
    parts = [_rows(part) for part in table.split("<tbody>")]
    head, body = _one_row(parts[0]), parts[1]
    names = [cell.text for cell in head[-1]]
    width = len(names)
    # A row that lacks cells stands below one whose first cells span several rows.
    columns = [
        [row[place - width] for row in body if len(row) >= width - place]
        for place in range(width)
    ]
    kinds = [_kind(column) for column in columns]
    signed = [
        found for row in body for c in row if (found := _SIGNED.fullmatch(c.text))
    ]
    stars = any(found[4] for found in signed)
    for name, column in zip(names, columns, strict=True):
        for cell in column:
            if not cell.heading:
                cell.content = _marked(cell, name, stars)
            if name.startswith("passes"):
                cell.content = _DECIMAL.sub(
                    lambda found: thirds(float(found[0])), cell.content
                )
    wide = sum(map(_width, names, columns, kinds)) > _PHONE
    stacks = (wide or "verdict" in names) and len(head) == 1
    lines = [f'<table class="dataframe{" stacks" * stacks}">', "<thead>"]
    lines += [_row(row, kinds, "col") for row in head]
    lines += ["</thead>", "<tbody>"]
    lines += [_row(row, kinds, "row", names if stacks else ()) for row in body]
    return "\n".join([*lines, "</tbody>", "</table>"])


def as_csv(table: str) -> str:
    """A table of pandas, which came as HTML, as CSV: methods by the page's names.

    >>> head = "<tr><th></th><th>gain</th></tr>"
    >>> row = "<tr><th>NSO-EMA</th><td>-0.3 ± 0.1</td></tr>"
    >>> print(as_csv(f"<table><thead>{head}</thead><tbody>{row}</tbody></table>"))
    ,gain
    NSO + EMA,-0.3 ± 0.1
    <BLANKLINE>
    """
    parts = [_rows(part) for part in table.split("<tbody>")]
    head, body = _one_row(parts[0]), parts[1]
    lines = [head[-1], *body]
    rows = [[_plain(cell.text) for cell in row] for row in lines]
    for before, row in itertools.pairwise(rows):  # cells that span rows are repeated
        row[:0] = before[: len(before) - len(row)]
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()


def _plain(text: str) -> str:
    """As the page has it, but for signs and spaces that programs do not read."""
    return " ".join(typeset(text).replace("\N{MINUS SIGN}", "-").split())


def _link(table: str, file: str) -> str:
    """A link that saves the table under a name."""
    data = base64.b64encode(as_csv(table).encode()).decode()
    address = f"data:text/csv;charset=utf-8;base64,{data}"
    words = f'aria-label="this table as CSV" download="{file}"'
    return f'<p class="table-csv"><a href="{address}" {words}>CSV</a></p>'


def typeset(text: str) -> str:
    """A text as pages print it: a hyphen before a number is a minus, methods have the names
    of prose, not those of records, and a third of a pass is one.

    >>> typeset("WeightNoise, NSO-EMA: -0.1 on 2026-11-27, 2.33 passes")
    'weight noise, NSO + EMA: −0.1 on 2026-11-27, 2⅓ passes'
    >>> typeset("FriendlySAM(rho=0.1), plane/spiral-0/BSAM/narrow")
    'FriendlySAM(rho=0.1), plane/spiral-0/BSAM/narrow'
    """
    text = _RECORDED.sub(lambda found: NAMES[found[0]], text)
    text = _THIRDS.sub(lambda found: thirds(float(found[0])), text)
    return _MINUS.sub("\N{MINUS SIGN}", text)


def _rows(part: str) -> list[list[Cell]]:
    return [
        [
            Cell(
                kind == "th", "".join(re.findall(r' \w+span="\d+"', rest)), text.strip()
            )
            for kind, rest, text in _CELL.findall(row)
        ]
        for row in _ROW.findall(part)
    ]


def _one_row(head: list[list[Cell]]) -> list[list[Cell]]:
    """Headings without the row in which pandas names the index: the names fill the gaps
    above them."""
    if len(head) < 2 or any(a.text and b.text for a, b in zip(*head[-2:], strict=True)):
        return head
    filled = [a if a.text else b for a, b in zip(*head[-2:], strict=True)]
    return [*head[:-2], filled]


def _kind(column: Sequence[Cell]) -> str:
    """The class of a column: number, prose (which is not to be squeezed), or none."""
    if all(_NUMBER.fullmatch(cell.text) and not cell.heading for cell in column):
        return "number"
    return "prose" if any(len(cell.text) > 40 for cell in column) else ""


def _width(name: str, column: Sequence[Cell], kind: str) -> float:
    """About how wide a column is on a phone, in px: numbers do not break, words may."""
    texts = [typeset(cell.text) for cell in column]
    pieces = [*name.split(), *(texts if kind == "number" else " ".join(texts).split())]
    longest = _PADDING + _CHARACTER * max(map(len, pieces), default=0)
    return max(longest, {"number": 0, "prose": _LONG}.get(kind, _SHORT))


def _marked(cell: Cell, column: str, stars: bool) -> str:
    """The content of a cell, what is better or worse in it marked."""
    number = _SIGNED.fullmatch(cell.text)
    if not number:
        return _VERDICT.sub(r'\1\2<span class="\4">\3</span>', cell.content)
    sign, mean, half, star = number.groups()
    if not (star if stars else float(mean) > float(half)):
        return cell.content
    good = sign == ("-" if _LESS.search(column) else "+")
    return f'<span class="{"better" if good else "worse"}">{cell.content}</span>'


def _row(
    cells: Sequence[Cell], kinds: Sequence[str], scope: str, names: Sequence[str] = ()
) -> str:
    width, text = len(kinds), ""
    for place, cell in enumerate(cells, width - len(cells)):
        kind = "th" if cell.heading and cell.text else "td"
        mark = "fixed" if place == 0 else kinds[place]
        attributes = cell.spans + f' class="{mark}"' * bool(mark)
        attributes += f' scope="{scope}"' * (kind == "th")
        if names and place:
            attributes += f' data-label="{html.escape(typeset(names[place]))}"'
        content = _TEXT.sub(lambda found: typeset(found[0]), cell.content)
        text += f"<{kind}{attributes}>{content}</{kind}>"
    return f"<tr>{text}</tr>"


class Tables(SphinxPostTransform):
    """Improves the tables in the outputs of cells."""

    default_priority = 10  # after myst-nb has chosen one format of each output
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        """Replace the outputs of one page that are tables."""
        page, count = PurePosixPath(self.env.docname).name, itertools.count(1)
        for raw in list(self.document.findall(nodes.raw)):
            found = _TABLE.search(raw.astext())
            if found and 'class="dataframe"' in found[0]:
                rest = re.sub(r"\s*</div>\s*$", "", raw.astext()[found.end() :])
                box = f'<div class="table-box">\n{improved(found[0])}\n</div>'
                box += _link(found[0], f"{page}-{next(count)}.csv") + rest
                raw.replace_self(nodes.raw("", box, format="html"))


def setup(app: Any) -> dict[str, bool]:
    """As an extension of Sphinx."""
    app.add_post_transform(Tables)
    return {"parallel_read_safe": True}
