"""The words of the book: pages, notebooks with what they print, docstrings; its terms.

Each pattern is a habit that its readers stumbled over; a message says what to write.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_book import text_of

from flatnb.book import run as runner

ROOT = Path(__file__).resolve().parents[2]
BRITISH = (
    r"\w*(?:general|normal|parametr|penal|minim|maxim|optim|regular|initial|standard"
    r"|memor|synchron|summar|visual|organ|recogn)is(?:e|ed|es|er|ers|ing|ation)"
    r"|\w*(?:colour|favour|behaviour|neighbour|honour)\w*|(?:centre|licence"
    r"|artefact|judgement)s?|grey|centred|learnt|unlearnt|labelled|labelling|modelling"
)
COUNTED = (
    r"pass(?:es)?|loss(?:es)?|numbers?|values?|gradients?|seconds|minutes|settings?"
    r"|draws?|epochs?|runs|nets|images"
)
EACH = (
    r"step|example|seed|member|page|task|method|class|hook|batch|pixel|token|paper|run"
)
# What may follow "is no"; "there is no" may be followed by anything.
COMPARED = (
    r"longer|more|less|fewer|other|such|different|\w+er than|better|worse|lower|higher"
    r"|larger|smaller"
)
# A habit, and what to write. Case counts only where a name is meant.
HABITS = {
    r"(?i)\b(?:un)?told\b": "significant, no significant difference, inconclusive",
    r"(?i)\btests? tells?\b|\btells? \w+ apart\b": "a significant difference",
    r"\b[A-Z]\w* less [A-Z]": "minus, or relative to",
    rf"(?i)\b(?:{COUNTED}) an? (?:{EACH})\b": "per",
    rf"(?i)(?<!\bthere )\b(?:is|are|was|were) no (?!(?:{COMPARED})\b)": "is not a",
    r"\bas of `": "as in, or as returned by",
    r"(?i)\b(?:anew|afresh)\b": "again",
    r"(?i)\bmend(?:s|ed|ing)?\b": "fix",
    r"(?i)\bbeside\b": "in addition to, or next to",
    r"\bWho (?:has|wants|trains|trained)\b": "If you …",
    r"(?i)\b(?:save that|in earnest)\b": "except that; in real use",
    rf"(?i)\b(?:{BRITISH})\b": "American spelling",
}
# What a quotation says is not ours.
QUOTED = re.compile(r"“[^”]*”")


def pages() -> list[Path]:
    """Pages of text, and notebooks."""
    texts = [*(ROOT / "book").glob("*.md"), *(ROOT / "book" / "library").glob("*.md")]
    notebooks = (ROOT / "notebooks").glob("*.ipynb")
    return sorted([*texts, *ROOT.glob("*.md"), *notebooks])


def strings(source: str) -> Iterator[str]:
    """What code prints or documents: its strings."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def passages(path: Path) -> Iterator[str]:
    """The texts of a file, in pieces."""
    if path.suffix == ".md":
        yield path.read_text(encoding="utf-8")
    elif path.suffix == ".py":
        yield from strings(path.read_text(encoding="utf-8"))
    else:
        for cell in runner.read(path)["cells"]:
            text = text_of(cell)
            if cell["cell_type"] == "markdown":
                yield text
            else:
                yield from strings(text)
                shown = cell["metadata"].get("mystnb", {})
                yield shown.get("figure", {}).get("caption", "")
                yield shown.get("image", {}).get("alt", "")


def faults(text: str) -> list[str]:
    """Each habit that a text has, in its surroundings, and what to write.

    Words may be parted by a line break.
    """
    text = " ".join(QUOTED.sub("", text).split())
    return [
        f"…{text[max(0, found.start() - 40) : found.end() + 40]}… : {better}"
        for habit, better in HABITS.items()
        for found in re.finditer(habit, text)
    ]


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.stem)
def test_pages_have_no_bad_habits(path: Path) -> None:
    found = [fault for text in passages(path) for fault in faults(text)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem
)
def test_no_printed_line_ends_within_a_sentence(path: Path) -> None:
    """The pages set each line as a paragraph."""
    cells = [c for c in runner.read(path)["cells"] if c["cell_type"] == "code"]
    printed = (
        call
        for cell in cells
        for call in ast.walk(ast.parse("".join(cell["source"])))
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "print"
    )
    texts = (part for call in printed for part in ast.walk(call))
    broken = [
        text.value
        for text in texts
        if isinstance(text, ast.Constant) and re.search(r",\n\S", str(text.value))
    ]
    assert broken == []


def test_docstrings_and_messages_have_no_bad_habits() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {fault}"
        for path in sorted((ROOT / "flatnb").rglob("*.py"))
        for text in passages(path)
        for fault in faults(text)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "Of these, none is told from\nzero.",
        "NSO less ERM, in points.",
        "Two passes a step.",
        "A small gap is no\nmerit.",
        "The gains are no effect of κ.",
        "The averages are no classes of the library.",
        "A row as of `paired`.",
        "The labels are drawn anew.",
        "The loss stands beside it.",
        "The colours are normalised.",
    ],
)
def test_habits_are_found(text: str) -> None:
    assert len(faults(text)) >= 1


@pytest.mark.parametrize(
    "text", ["Where there is no number.", "It is no longer so.", "This is no better."]
)
def test_other_words_with_no_are_none(text: str) -> None:
    assert faults(text) == []


def test_a_quotation_may_say_what_it_says() -> None:
    assert faults("The paper calls it “a generalisation of behaviour”.") == []


def test_every_entry_of_the_glossary_is_linked_from_a_page() -> None:
    glossary = ROOT / "book" / "glossary.md"
    entries = re.findall(r"^(?![#`])(\S.*)$", glossary.read_text("utf-8"), re.M)
    texts = [text for path in pages() if path != glossary for text in passages(path)]
    links = re.findall(r"\{term\}`(?:[^`<]*<)?([^`<>]+)>?`", "\n".join(texts))
    linked = {" ".join(link.split()).lower() for link in links}
    assert {entry.lower() for entry in entries} == linked
