"""The examples in docstrings run, and give what stands under them."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import flatnb


def modules() -> list[str]:
    found = pkgutil.walk_packages(flatnb.__path__, "flatnb.")
    return [module.name for module in found if not module.name.endswith("__main__")]


@pytest.mark.parametrize("name", modules())
def test_examples_in_docstrings(name):
    failed, _ = doctest.testmod(
        importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert failed == 0
