"""The page on the architecture holds: imports follow its table, its steps exist."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "book" / "architecture.md").read_text(encoding="utf-8")


def module_of(path: Path) -> str:
    """The dotted name of a file below flatnb, without flatnb itself."""
    parts = path.relative_to(ROOT / "flatnb").with_suffix("").parts
    if len(parts) > 1 and parts[-1] == "__init__":
        parts = parts[:-1]
    return ".".join(parts)


FILES = {module_of(path): path for path in sorted((ROOT / "flatnb").rglob("*.py"))}


def allowed() -> dict[str, set[str]]:
    """Room -> what it may import, from the table of the page."""
    rows = re.findall(r"^\| `([\w.]+)` \|.*\|(.*)\|$", PAGE, re.MULTILINE)
    return {room: set(re.findall(r"`([\w.]+)`", cell)) for room, cell in rows}


def imported(source: str, modules: set[str]) -> Iterator[str]:
    """The modules of flatnb that a source imports, also inside its functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "flatnb":  # the module, or where the name lies
                known = [p for p in (parts[1:], parts[1:-1]) if ".".join(p) in modules]
                yield ".".join(known[0]) if known else "flatnb"


def lies_in(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def may_import(module: str, target: str) -> bool:
    """Whether the table, or a room of both, allows the import."""
    if target.startswith("_") or module.split(".")[0] == target.split(".")[0]:
        return True
    rooms = [room for room in allowed() if lies_in(module, room)]
    return any(lies_in(target, entry) for room in rooms for entry in allowed()[room])


def test_every_module_has_a_room() -> None:
    for module in FILES:
        rooms = [room for room in allowed() if lies_in(module, room)]
        assert rooms or module.startswith("_"), module


def test_every_room_exists() -> None:
    for room, entries in allowed().items():
        for name in {room, *entries} - {"flatnb"}:
            assert any(lies_in(module, name) for module in FILES), name


def test_the_figure_shows_every_room() -> None:
    """By its name in a box, or among the contents of another; and no others."""
    drawn = (ROOT / "book" / "_static" / "architecture.svg").read_text(encoding="utf-8")
    texts = re.findall(r"<text[^>]*>(.*?)</text>", drawn)
    words = set(re.findall(r"\w+", " ".join(texts)))
    rooms = {room for room in allowed() if "." not in room and room[0] != "_"}
    assert rooms <= words
    names = re.findall(r'class="name"[^>]*>(.*?)<', drawn)
    assert {name for text in names for name in text.split(", ")} <= rooms


@pytest.mark.parametrize("module", FILES)
def test_imports_follow_the_table(module: str) -> None:
    source = FILES[module].read_text(encoding="utf-8")
    for target in imported(source, set(FILES)):
        assert may_import(module, target), f"{module} imports {target}"


def test_an_arrow_that_is_not_there_is_noticed() -> None:
    modules = set(FILES)
    source = "def f():\n    from flatnb.methods import sam"
    assert list(imported(source, modules)) == ["methods.sam"]
    assert not may_import("curvature.trace", "methods.sam")
    assert not may_import("curvature.trace", "ensemble")
    assert may_import("curvature.ensemble", "ensemble")
    assert not may_import("plots", "experiments.plane")
    assert not may_import("train", "book.profiles")
    assert not any(
        "book" in entries for room, entries in allowed().items() if room != "__main__"
    )


# --- the walks ----------------------------------------------------------------------

STEPS = re.findall(r"`([\w/]+\.(?:py|ipynb)):([\w.]+)`", PAGE)


def defined(path: Path) -> set[str]:
    """The functions, classes and methods, as Class.method, that a file defines."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
        text = "\n".join(code)
    names = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = [n.name for n in node.body if isinstance(n, ast.FunctionDef)]
            names |= {f"{node.name}.{name}" for name in methods}
    return names


def test_there_are_two_walks_of_at_most_six_steps() -> None:
    walks = re.findall(r"(?:^\d\. .*\n(?:   .*\n)*)+", PAGE, re.MULTILINE)
    assert len(walks) == 2
    for walk in walks:
        assert 1 < len(re.findall(r"^\d\.", walk, re.MULTILINE)) <= 6


@pytest.mark.parametrize(("file", "name"), STEPS)
def test_every_step_exists(file: str, name: str) -> None:
    assert name in defined(ROOT / file), f"{file} does not define {name}"
