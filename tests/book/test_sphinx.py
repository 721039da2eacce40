"""Docstrings as the page of the library needs them."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

import flatnb
from flatnb.book.sphinx import marked_up

ROOT = Path(__file__).resolve().parents[2]


def test_an_indented_formula_is_literal_and_the_text_after_it_is_not() -> None:
    text = ["The gradient.", "", "    sign(L - b) * g", "", "With |x| and `code`."]
    assert marked_up(text) == [
        "The gradient.",
        "",
        ".. code-block:: text",
        "",
        "    sign(L - b) * g",
        "",
        "With \\|x\\| and ``code``.",
    ]


def test_sections_lists_and_directives_stay() -> None:
    text = [
        "Args:",
        "    rho: radius.",
        "        A line more.",
        "",
        ".. math:: |x|",
        "- one",
    ]
    assert marked_up(text) == text


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a * b and **bold**", "a \\* b and **bold**"),
        ("clip_grad_norm_ of :func:`f_`", "clip_grad_norm\\_ of :func:`f_`"),
        ("``x_`` and w_i", "``x_`` and w_i"),
        ("a \\ b", "a \\\\ b"),
    ],
)
def test_what_would_be_taken_for_markup_is_escaped(line: str, expected: str) -> None:
    assert marked_up([line]) == [expected]


def documented() -> set[str]:
    """The names that the page of the library documents, with their modules."""
    text = (ROOT / "book" / "library.md").read_text()
    names = set(re.findall(r"auto(?:class|function):: ([\w.]+)", text))
    for module, members in re.findall(
        r"automodule:: ([\w.]+)\n   :members:([^.`]*?)(?=\n\.\.|\n```)", text
    ):
        names |= {
            f"{module}.{one.strip()}" for one in members.split(",") if one.strip()
        }
    return names


@pytest.mark.parametrize("package", ["flatnb", "flatnb.curvature", "flatnb.data"])
def test_every_public_function_and_class_is_on_the_page(package: str) -> None:
    module = importlib.import_module(package)
    found = {
        getattr(importlib.import_module(m), n, None)
        for m, _, n in (name.rpartition(".") for name in documented())
    }
    public = {
        n: getattr(module, n) for n in module.__all__ if callable(getattr(module, n))
    }
    results = {
        "Diagonal",
        "Eigenpairs",
        "Objective",
        "RelativeFlatness",
        "Sharpness",
        "Slice",
        "SpectralDensity",
        "Trace",
    }
    assert not sorted(
        n for n, one in public.items() if one not in found and n not in results
    )


def test_every_name_on_the_page_is_there() -> None:
    assert flatnb.__all__
    for name in documented():
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name
