"""Numbers of chapters, typed anywhere: each is that of the chapter meant."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from small_book import ROOT, read, text_of

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))["parts"]
NUMBERS = {int(path.stem[:2]): path.stem[3:] for path in NOTEBOOKS}
TITLES = {
    int(path.stem[:2]): text_of(read(path)["cells"][0]).partition("\n")[0].lstrip("# ")
    for path in NOTEBOOKS
}
# Addresses that were: they stand as keys of `redirects`, and lead to those that are.
OLD_NAME = re.compile(r"^ +notebooks/\w+:", re.M)

_LIST = r"\d+(?:(?:, and |, | and | to |–)\d+)*"
_TYPED = re.compile(rf"\bchapters? (?P<list>{_LIST})(?!\d)", re.I)
_LINK = re.compile(
    r"\[(?P<words>[^]\n]*)\]\((?P<path>[^)]*)\)|\{doc\}`(?P<text>[^`<]*)<(?P<name>[^`>]*)>`"
)
_FILE = re.compile(r"(?<![\w.])(?P<number>\d\d)_(?P<name>[a-z][a-z_]*)")


def listed(text: str) -> list[int]:
    """The numbers of a list, such as 4, 5 and 7; of 4 to 7 the ends.

    >>> listed("4, 5 and 7")
    [4, 5, 7]
    """
    return [int(number) for number in re.findall(r"\d+", text)]


def faults(text: str) -> list[str]:
    """What is wrong with the numbers of chapters that stand in a text."""
    wrong = [
        f"{found[0]}: no such file"
        for found in _FILE.finditer(text)
        if found["name"] in NUMBERS.values()
        and NUMBERS.get(int(found["number"])) != found["name"]
    ]
    written, text = text, re.sub(r"\s+", " ", text)
    for link in _LINK.finditer(text):
        typed = _TYPED.search(link["words"] or link["text"] or "")
        file = _FILE.search(link["path"] or link["name"] or "")
        if typed and (file is None or int(file["number"]) not in listed(typed["list"])):
            wrong.append(f"{link[0]}: leads elsewhere")
    for found in _TYPED.finditer(text):
        numbers = listed(found["list"])
        wrong += [f"{found[0]}: no chapter {n}" for n in numbers if n not in NUMBERS]
        behind = re.match(r"[\s,:(·*_“\"—–-]*", text[found.end() :])
        assert behind is not None
        rest = text[found.end() + behind.end() :].casefold()
        meant = [n for n, title in TITLES.items() if rest.startswith(title.casefold())]
        longest = max(meant, key=lambda n: len(TITLES[n]), default=numbers[0])
        if behind[0].strip() and longest not in numbers:
            wrong.append(f"{found[0]}: {TITLES[longest]} is chapter {longest}")
    return wrong + _beside_a_title(written)


def _beside_a_title(text: str) -> list[str]:
    """Faults of numbers before a title: 7 · Title, or 7. Title where a line begins."""
    wrong = []
    for number, title in TITLES.items():
        before = rf"(?:\b(\d+) ·|^\W*(\d+)[.:]) +{re.escape(title)}(?!\w)"
        for pair in re.findall(before, text, re.M):
            typed = "".join(pair)
            if int(typed) != number:
                wrong.append(f"{typed}: {title} is chapter {number}")
    return wrong


def sources() -> list[Path]:
    """All files of text in the repository but records and what other people wrote."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        run = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True
        )
        paths = [ROOT / line for line in run.stdout.splitlines()]
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository
        folders = ("notebooks", "book", "flatnb", "tests", "benchmarks")
        paths = [path for name in folders for path in (ROOT / name).rglob("*")]
        paths += ROOT.glob("*.*")
    kinds = {".ipynb", ".md", ".py", ".yml", ".toml", ".js", ".css", ".html", ".cff"}
    skipped = (ROOT / "book" / "records", Path(__file__))
    return [
        path
        for path in paths
        if path.suffix in kinds
        and path.is_file()
        and not any(path.is_relative_to(each) for each in skipped)
    ]


def texts(path: Path) -> list[str]:
    """A file's text; of a notebook that of each cell, its captions included."""
    if path.suffix != ".ipynb":
        return [OLD_NAME.sub("", path.read_text(encoding="utf-8"))]
    cells = read(path)["cells"]
    captions = (
        [part.get("caption", ""), part.get("alt", "")]
        for cell in cells
        for part in cell["metadata"].get("mystnb", {}).values()
        if isinstance(part, dict)
    )
    return [*map(text_of, cells), *(text for pair in captions for text in pair)]


def test_chapters_are_numbered_in_the_order_of_the_book() -> None:
    files = [
        c["file"] for part in TOC if part.get("numbered") for c in part["chapters"]
    ]
    assert [Path(file).name for file in files] == [path.stem for path in NOTEBOOKS]
    assert list(NUMBERS) == list(range(1, len(files) + 1))


def test_every_number_of_a_chapter_is_right() -> None:
    wrong = {
        str(path.relative_to(ROOT)): found
        for path in sources()
        if (found := [fault for text in texts(path) for fault in faults(text)])
    }
    assert wrong == {}


def test_parts_in_the_page_of_notation_have_the_chapters_of_the_book() -> None:
    page = (ROOT / "book" / "notation.md").read_text(encoding="utf-8")
    typed = re.findall(r"^## (.+) \(chapters (\d+) to (\d+)\)$", page, re.M)
    spans, last = {}, 0
    for part in TOC:
        if part.get("numbered"):
            first, last = last + 1, last + len(part["chapters"])
            spans[part["caption"]] = (str(first), str(last))
    assert typed and all(spans[name] == tuple(ends) for name, *ends in typed)


WRONG = (
    "see chapter 99",
    "chapters 4, 5 and 99",
    "as in Chapter\n0",
    "[chapter 3](notebooks/04_flooding.ipynb)",
    "[chapter 4](book/plan.md)",
    "{doc}`chapter 3 <04_flooding>`",
    "notebooks/05_flooding.ipynb",
    "{doc}`99_flooding`",
    f"chapter 4, *{TITLES[3]}*",
    f"chapter 4 ({TITLES[5]})",
    f"3 · {TITLES[4]}",
    f"{len(NUMBERS)}: {TITLES[2]}",
)
RIGHT = (
    "see chapter 3, and chapters 4, 5 and 7",
    "chapters 4 to 9",
    "[chapter 4](notebooks/04_flooding.ipynb)",
    "{doc}`chapter 4 <../notebooks/04_flooding>`",
    f"chapter 4, *{TITLES[4]}*, and chapter 5 ({TITLES[5]})",
    f"3 · {TITLES[3]}",
    "chapter 4 is about flooding",
    "tests use 01_a and 02_b",
)


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_number_is_found(text: str) -> None:
    assert len(faults(text)) == 1


@pytest.mark.parametrize("text", RIGHT)
def test_a_right_number_is_no_fault(text: str) -> None:
    assert faults(text) == []
