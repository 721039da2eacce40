"""The examples in docstrings and on the library's pages run, and give what stands under
them."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import flatnb

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "book" / "library").glob("*.md"))


def modules() -> list[str]:
    found = pkgutil.walk_packages(flatnb.__path__, "flatnb.")
    return [module.name for module in found if not module.name.endswith("__main__")]


@pytest.mark.parametrize("name", modules())
def test_examples_in_docstrings(name):
    failed, _ = doctest.testmod(
        importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_on_pages(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From top to bottom, as a reader pastes them, in a clone's folder."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("FLATNB_RECORDS", "book/records")  # a page may set another
    blocks = re.findall(r"^```pycon\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
    assert blocks
    test = doctest.DocTestParser().get_doctest(
        "\n".join(blocks), {}, page.stem, None, 0
    )
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    runner.run(test)
    assert test.examples and runner.summarize().failed == 0
