"""Notebooks and settings that were changed at random: a command ends in one clear
line.
"""

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hostile import MARK, places
from small_book import book, code, read, write

from flatnb.book import cli, stage
from flatnb.book import run as runner

# Put into the JSON text as they stand.
RAW = (
    "null",
    "true",
    "-1",
    "1.5",
    "[]",
    "{}",
    '""',
    '"x"',
    "[null]",
    "[1]",
    '["a", 1]',
    '{"a": 1}',
    '{"records": 3}',
    '{"records": [1]}',
    '[{"records": []}]',
    "4",
    "5",
    "99",
    "1" + "0" * 400,
    "NaN",
    r'"\ud800"',
    r'["\ud800"]',
    r'{"\ud800": 1}',
    r'"a\u0000b"',
    '"\x9b"',
    '"\udcff"',
    "[" * 90 + "]" * 90,
    "[" * 500 + "]" * 500,
    '{"a":' * 500 + "1" + "}" * 500,
    "[" * 10**5 + "]" * 10**5,
    f'"{"x" * 10**5}"',
    "",
    "1,",
    "[",
    "'x'",
)


def mutated(content: dict[str, Any], draw: random.Random) -> str:
    """The text of a notebook with something changed, removed or added somewhere."""
    content = copy.deepcopy(content)
    container, key = draw.choice(places(content))
    step = draw.choice(["change", "change", "remove", "add"])
    if step == "change":
        container[key] = MARK
    elif step == "remove":
        del container[key]
    elif isinstance(container, list):
        container.append(MARK)
    else:
        container[draw.choice(["tags", "flatnb", "source", "metadata", "added"])] = MARK
    return json.dumps(content).replace(f'"{MARK}"', draw.choice(RAW))


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The notebook of a small book; what runs it and what builds pages do nothing."""
    root = book(tmp_path)
    monkeypatch.chdir(root)
    monkeypatch.setattr(runner, "_execute", lambda run, **_: run)
    monkeypatch.setattr(stage, "build", lambda *_: True)
    path = root / "notebooks" / "01_a.ipynb"
    content = read(path)
    content["metadata"]["flatnb"] = {"records": []}
    stream = {"output_type": "stream", "name": "stdout", "text": ["1\n"]}
    content["cells"].append(
        {**code("1", "hide-input"), "id": "one", "outputs": [stream]}
    )
    write(path, content)
    return path


def refused(
    capsys: pytest.CaptureFixture[str], path: Path, content: bytes, *commands: str
) -> bool:
    """Whether all commands refuse the file; those that do say its name in one line."""
    answers = []
    for command in commands:
        path.write_bytes(content)
        status = cli.main(command.split())
        said = capsys.readouterr().err
        assert status in (0, 1, 2)
        if status == 2:
            assert said.startswith("flatnb: ") and len(said) < 2000
            assert len(said.splitlines()) == 1 and path.name in said, said
        answers.append(status == 2)
    return all(answers)


COMMANDS = ("run notebooks/01_a.ipynb", "book")


def fuzz(capsys: pytest.CaptureFixture[str], page: Path, seeds: range) -> int:
    good = json.loads(page.read_text())
    texts = (mutated(good, random.Random(seed)) for seed in seeds)
    return sum(
        refused(capsys, page, text.encode("utf-8", "surrogateescape"), *COMMANDS)
        for text in texts
    )


@pytest.fixture
def no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is staged: what a command reads before is what counts."""
    monkeypatch.setattr(stage, "stage", lambda *_: Path())


@pytest.mark.usefixtures("no_pages")
def test_changed_notebooks_end_in_one_clear_line(
    page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not refused(capsys, page, page.read_bytes(), *COMMANDS)
    assert 40 < fuzz(capsys, page, range(100)) < 100


@pytest.mark.slow
@pytest.mark.usefixtures("no_pages")
def test_many_changed_notebooks(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fuzz(capsys, page, range(1000, 2000))


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda n: n.pop("metadata"), "$: 'metadata' is a required property"),
        (lambda n: n["cells"][1].pop("metadata"), "$.cells[1]: 'metadata' is a"),
        (
            lambda n: n["cells"][1]["metadata"].update(tags=[1]),
            "$.cells[1].metadata.tags[0]: 1 is",
        ),
        (lambda n: n["cells"].append("x"), "$.cells[5]: 'x' is not of type 'object'"),
        (lambda n: n.update(nbformat=3), "is"),
        (lambda n: n.update(nbformat=5), "is"),
        (lambda n: n.update(nbformat_minor="5"), "is"),
    ],
)
def test_file_and_place_are_said(
    change: Any, place: str, page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(page.read_text())
    change(content)
    page.write_text(json.dumps(content))
    for command in COMMANDS:
        assert cli.main(command.split()) == 2
        said = capsys.readouterr().err
        assert "01_a.ipynb is not a notebook: " in said and place in said


# --- parameters ---------------------------------------------------------------------

VALUES = (
    "[" * 150 + "]" * 150,
    "[" * 5000 + "]" * 5000,
    "(" * 99 + "1" + ")" * 99,
    "-" * 5000 + "1",
    "not " * 3000 + "1",
    "1" + "+1" * 5000,
    "a" + ".b" * 5000,
    "{[]: 1}",
    "{**1}",
    "{1: {}}",
    "1e999",
    "9" * 5000,
    "0x" + "f" * 5000,
    "'\\ud800'",
    "'a\\0'",
    "f''",
    "b''",
    "...",
    "None",
    "lambda: 1",
    "'x' * 10",
    "1j",
    "[1, 'a']",
    "[[1]]",
    "['\\ud800']",
    "[1e999]",
    "{1}",
    "()",
    "",
    "'",
    '"""',
    "yield",
    "1 # " + "x" * 10**5,
    "\\",
    "\x00",
    "\x0c1",
    "print()",
    "x := 1",
    "*a",
)


@pytest.mark.parametrize(
    "kind", ["int", "list", "list[int]", "float", "[" * 300, "a.b", "str"]
)
def test_odd_parameters_end_in_one_clear_line(
    kind: str, page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(page.read_text())
    cell = content["cells"][1]
    for value in VALUES:
        cell["source"] = f'profile: str = "laptop"\nodd: {kind} = {value}'
        refused(capsys, page, json.dumps(content).encode(), "run notebooks/01_a.ipynb")


@pytest.mark.parametrize("name", ["count", "rate", "quiet", "names", "profile"])
def test_odd_values_of_parameters_are_refused_with_what_is_known(
    name: str, page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in (*VALUES, "\udcff", "[\udcff]"):
        if value.startswith("-"):  # for argparse, an option
            continue
        status = cli.main(["run", str(page), "-p", name, value])
        said = capsys.readouterr().err
        assert status in (0, 2) and "Traceback" not in said
        if status == 2:
            assert said.startswith("flatnb: ")


# --- _toc.yml and _config.yml -------------------------------------------------------

SETTINGS = (
    b"",
    b"[",
    b"a: [",
    b"- a",
    b"3",
    b"null",
    b"\xff",
    b"\x00",
    b"a: *x",
    b"&a [*a]",
    b"!!python/x 1",
    b"root: 3",
    b"root: [a]",
    b"root: {a: 1}",
    b"root: null",
    b"chapters: 3\nroot: x",
    b"root: book/intro\nchapters:\n- file: 3",
    b"root: '\\0'",
    b'root: "a\\0"',
    b"[" * 400,
    b"repository: 3",
    b"repository: [a]",
    b"repository: {url: 3}",
    b"repository: {url: [a]}",
    b"repository: {branch: {a: 1}}",
    b"repository: {url: 'x y'}",
    b"execute: 3",
    b"execute: [a]",
    b"html: a",
    b"html: [a]",
    b"launch_buttons: 3",
    b"html: {3: a}",
    b"root: " + b"x" * 10**4,
)


@pytest.mark.usefixtures("no_pages")
@pytest.mark.parametrize("name", ["_toc.yml", "_config.yml"])
@pytest.mark.parametrize("text", SETTINGS)
def test_odd_settings_end_in_one_clear_line(
    text: bytes, name: str, page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = page.parents[1] / name
    path.write_bytes(text)
    status = cli.main(["book"])
    said = capsys.readouterr().err
    assert status in (0, 2) and "Traceback" not in said
    assert status == 0 or len(said.splitlines()) == 1
