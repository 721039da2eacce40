"""The page of notation against the chapters that it names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from small_book import text_of

from flatnb.book import run as runner

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "book" / "notation.md").read_text(encoding="utf-8")
# Rows of letters with several meanings, each with its chapters in parentheses.
ROWS = re.findall(r"^\| (.+?) \| (.+) \|$", PAGE.split("## One letter")[1], re.M)[1:]


def symbols(text: str) -> set[str]:
    """Letters and names of letters in the formulas of a text, not in its code."""
    text = re.sub(r"^```console.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    formulas = re.findall(r"\$\$.+?\$\$|\$[^$]+\$", text, re.DOTALL)
    bare = re.sub(r"\\(?:text|operatorname|mathrm)\{[^}]*\}", " ", " ".join(formulas))
    return set(re.findall(r"\\[a-zA-Z]+|[A-Za-z]", bare))


def chapter(number: str) -> str:
    """The Markdown of the chapter of a number, such as 7 or A1."""
    (path,) = (ROOT / "notebooks").glob(f"{number.zfill(2)}_*.ipynb")
    cells = runner.read(path)["cells"]
    return "\n".join(text_of(cell) for cell in cells if cell["cell_type"] == "markdown")


@pytest.mark.parametrize(("letters", "meanings"), ROWS, ids=lambda text: text[:12])
def test_letters_are_in_the_chapters_named(letters: str, meanings: str) -> None:
    named = re.findall(r"\(((?:A?\d+(?:, )?)+)\)", meanings)
    for number in {n for group in named for n in group.split(", ")}:
        assert symbols(letters) & symbols(chapter(number)), number
