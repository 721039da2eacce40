"""Docstrings as the pages of the library need them: plain RST with napoleon's sections;
and its table of methods."""

from __future__ import annotations

import importlib
import inspect
import io
import re
from pathlib import Path

import pytest
from docutils.core import publish_doctree
from docutils.parsers.rst import directives, roles
from sphinx.ext.napoleon import Config, GoogleDocstring

import flatnb
from flatnb.book.stage import with_literal_formulas
from flatnb.experiments.tuning import ADAM, METHODS
from flatnb.report import thirds

ROOT = Path(__file__).resolve().parents[2]


def members(module: str, chosen: str) -> list[str]:
    """What `:members:` takes of a module: those named, or all that are public."""
    if chosen.strip():
        return [name.strip() for name in chosen.split(",")]
    entries = vars(importlib.import_module(module))
    public = entries.get("__all__") or [
        name
        for name, entry in entries.items()
        if inspect.isfunction(entry) and entry.__module__ == module and name[0] != "_"
    ]
    return [name for name in public if callable(entries[name])]


def documented() -> list[str]:
    """The names that the pages of the library document, with their modules."""
    pages = sorted((ROOT / "book" / "library").glob("*.md"))
    text = "\n".join(page.read_text() for page in pages)
    names = re.findall(r"auto(?:class|function|module):: ([\w.]+)", text)
    listed = r"automodule:: ([\w.]+)\n   :members:([^.`:]*?)(?=\n\.\.|\n```|\n   :)"
    for module, chosen in re.findall(listed, text):
        names += [f"{module}.{name}" for name in members(module, chosen)]
    return sorted(set(names))


def looked_up(name: str) -> object:
    """The object of a dotted name."""
    module, _, attribute = name.rpartition(".")
    entry = getattr(importlib.import_module(module), attribute, None)
    return entry or importlib.import_module(name)


@pytest.fixture(autouse=True)
def _docutils_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build in another test leaves Sphinx's directives, which need its environment."""
    monkeypatch.setattr(directives, "_directives", {})
    monkeypatch.setattr(roles, "_roles", {})


@pytest.mark.parametrize("name", documented())
def test_docstrings_are_plain_rst(name: str) -> None:
    """Formulas are indented paragraphs; single backquotes mark code."""
    config = Config(napoleon_use_ivar=True)
    entry = looked_up(name)
    texts = {name: inspect.getdoc(entry)}
    if inspect.isclass(entry):
        members = inspect.getmembers(entry, inspect.isfunction)
        ours = [(n, m) for n, m in members if m.__module__.startswith("flatnb")]
        texts |= {n: inspect.getdoc(m) for n, m in ours if not n.startswith("_")}
    for part, text in texts.items():
        warnings = io.StringIO()
        settings = {"warning_stream": warnings, "report_level": 2}
        roles = ".. role:: func(literal)\n.. role:: class(literal)\n\n"
        source = roles + str(GoogleDocstring(with_literal_formulas(text or ""), config))
        publish_doctree(source, settings_overrides=settings)
        found = [
            w for w in warnings.getvalue().splitlines() if "Unknown direc" not in w
        ]
        assert not found, f"{part}: {found}"


@pytest.mark.parametrize("package", ["flatnb", "flatnb.curvature", "flatnb.data"])
def test_every_public_function_and_class_is_on_a_page(package: str) -> None:
    module = importlib.import_module(package)
    on_the_page = [looked_up(name) for name in documented()]
    public = {name: getattr(module, name) for name in module.__all__}
    for name, entry in public.items():
        assert not callable(entry) or any(entry is other for other in on_the_page), name


def test_every_name_on_the_pages_exists() -> None:
    assert flatnb.__all__
    for name in documented():
        looked_up(name)


def test_the_table_of_methods_is_that_of_the_experiments() -> None:
    """Names, passes, ranges and defaults of `METHODS`, one row each."""
    text = (ROOT / "book" / "library.md").read_text()
    in_table = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and cells[0] != "method":
            name = re.split(r"[.~<>`]+", cells[0].strip("`<>"))[-1]
            in_table[name] = (cells[2], cells[3])
    expected = {}
    for name, tuned in METHODS.items():
        ranges = dict(tuned.space)
        if tuned.optimizer and tuned.optimizer.rates != ADAM.rates:
            ranges = {"lr": tuned.optimizer.rates, **ranges}
        numbers = [
            f"`{key}` {span.low:g} to {span.high:g} ({span.default:g})"
            for key, span in ranges.items()
        ]
        shown = name.replace("-EMA", " + EMA")
        expected[shown] = (thirds(tuned.passes), "; ".join(numbers) or "none")
    assert in_table == expected
