"""Docstrings as the page of the library needs them: plain RST with napoleon's sections."""

from __future__ import annotations

import importlib
import inspect
import io
import re
from pathlib import Path

import pytest
from docutils.core import publish_doctree
from sphinx.ext.napoleon import Config, GoogleDocstring

import flatnb
from flatnb.book.stage import with_literal_formulas

ROOT = Path(__file__).resolve().parents[2]


def is_public(entry: object) -> bool:
    return inspect.isfunction(entry) and not entry.__name__.startswith("_")


def documented() -> list[str]:
    """The names that the page of the library documents, with their modules."""
    text = (ROOT / "book" / "library.md").read_text()
    names = re.findall(r"auto(?:class|function|module):: ([\w.]+)", text)
    listed = r"automodule:: ([\w.]+)\n   :members:([^.`]*?)(?=\n\.\.|\n```)"
    for module, members in re.findall(listed, text):
        chosen = [name.strip() for name in members.split(",") if name.strip()]
        functions = inspect.getmembers(importlib.import_module(module), is_public)
        public = [name for name, entry in functions if entry.__module__ == module]
        names += [f"{module}.{name}" for name in chosen or public]
    return sorted(set(names))


def looked_up(name: str) -> object:
    """The object of a dotted name."""
    module, _, attribute = name.rpartition(".")
    entry = getattr(importlib.import_module(module), attribute, None)
    return entry or importlib.import_module(name)


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
def test_every_public_function_and_class_is_on_the_page(package: str) -> None:
    module = importlib.import_module(package)
    on_the_page = [looked_up(name) for name in documented()]
    public = {name: getattr(module, name) for name in module.__all__}
    missing = [
        name
        for name, entry in public.items()
        if callable(entry) and all(entry is not other for other in on_the_page)
    ]
    results = {
        "Eigenpairs",
        "Objective",
        "RelativeFlatness",
        "Sharpness",
        "Slice",
        "SpectralDensity",
        "Trace",
    }
    assert set(missing) <= results


def test_every_name_on_the_page_exists() -> None:
    assert flatnb.__all__
    for name in documented():
        looked_up(name)
