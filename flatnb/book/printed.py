"""An extension of Sphinx: sentences that a cell prints are set as text.

A cell prints in a notebook what a page says in words, a sentence to a line. In a font of
fixed width such lines are hard to read and break in the wrong places on a phone; what is
aligned in columns needs that font, and keeps it. In all sentences of a page, numbers stay
with their units, and code in the cell of a table breaks between names, not within them.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform

from flatnb.book.tables import typeset

_UNIT = re.compile(
    r"(?<=\d) %| ± |\bn = (?=\d)|(?<=SAM|NSO) \+ (?=EMA)"
    r"|(?<=\d) (?=(?:s|min)\b)|(?<=\d) · (?=10)|\(exercise (?=\d)"
)
_SEAM = re.compile(r"(?<=[.(,=_])(?=\w)")  # where code may break
_EXACT = nodes.literal, nodes.literal_block, nodes.raw, nodes.math, nodes.math_block
_ALIGNED = re.compile(r"\S {2,}\S|\t|^ {5,}")


def paragraphs(printed: str) -> list[tuple[bool, str]] | None:
    """Of what a cell printed, each line and whether it is indented, to stand below the
    one before, typeset; None if lines are aligned in columns.

    >>> paragraphs("SAM gains -0.1 points:\\n  on the spiral -0.2")
    [(False, 'SAM gains −0.1 points:'), (True, 'on the spiral −0.2')]
    >>> paragraphs("SAM  0.1\\nERM  0.2") is None
    True
    """
    lines = [line.rstrip() for line in printed.splitlines()]
    if any(map(_ALIGNED.search, lines)):
        return None
    return [(line.startswith(" "), typeset(line.strip())) for line in lines if line]


def unbroken(text: str) -> str:
    """A text whose numbers stay with their units: no line ends before %, s or min, around
    ±, or in n = 5, 3 · 10⁻⁵, (exercise 1) or SAM + EMA.

    >>> unbroken("50 % ± 3 %, n = 5, SAM + EMA").count("\N{NO-BREAK SPACE}")
    8
    """
    return _UNIT.sub(lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), text)


def inline(text: str) -> list[nodes.Node]:
    """A printed sentence, what stands in backticks as code.

    >>> [node.astext() for node in inline("the option `flag` is read")]
    ['the option ', 'flag', ' is read']
    """
    kinds = nodes.Text, lambda code: nodes.literal("", code)
    return [kinds[i % 2](part) for i, part in enumerate(text.split("`")) if part]


class Printed(SphinxPostTransform):
    """Sets the sentences among the outputs of cells."""

    default_priority = 10  # after myst-nb has chosen one format of each output
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        """Replace what the cells of one page printed, where it is sentences."""
        for block in list(self.document.findall(nodes.literal_block)):
            if not {"output", "stream"} <= set(block["classes"]):
                continue
            if found := paragraphs(block.astext()):
                block.replace_self(
                    nodes.container(
                        "",
                        *(
                            nodes.paragraph(
                                "", "", *inline(text), classes=["under"] * below
                            )
                            for below, text in found
                        ),
                        classes=["output", "printed"],
                    )
                )


class Units(SphinxPostTransform):
    """Keeps numbers and units of one page together, in sentences."""

    default_priority = 20  # after Printed
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        """Replace the texts that have some."""
        for text in list(self.document.findall(nodes.Text)):
            if _UNIT.search(text) and not isinstance(text.parent, _EXACT):
                text.parent.replace(text, nodes.Text(unbroken(text)))


class Seams(SphinxPostTransform):
    """Lets the code in tables break where a line of code would."""

    default_priority = 20
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        """Put a place to break behind each dot, bracket, comma, sign and underscore."""
        for entry in self.document.findall(nodes.entry):
            for literal in list(entry.findall(nodes.literal)):
                first, *rest = map(nodes.Text, _SEAM.split(literal.astext()))
                literal.children = []
                literal += first
                for text in rest:
                    literal += [nodes.raw("", "<wbr>", format="html"), text]


def setup(app: Any) -> dict[str, bool]:
    """As an extension of Sphinx."""
    app.add_post_transform(Printed)
    app.add_post_transform(Units)
    app.add_post_transform(Seams)
    return {"parallel_read_safe": True}
