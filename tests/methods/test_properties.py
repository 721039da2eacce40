"""Each method with the properties that hold for it; the methods are those of `table`."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
from properties import Maker, assert_ensemble_is_separate
from table import METHODS, REALS, ROWS

from flatnb import methods
from flatnb.methods import Method


def test_every_method_has_a_row() -> None:
    exported = [getattr(methods, name) for name in methods.__all__]
    kinds = {k for k in exported if isinstance(k, type) and issubclass(k, Method)}
    rows = {base for row in ROWS.values() for base in type(row()).__mro__}
    direct = {type(row()) for row in ROWS.values()}
    assert kinds - {Method} - direct == {methods.AdaFlood}  # its row is a subclass
    assert kinds <= rows


@pytest.mark.parametrize(
    ("make", "holds"),
    [
        pytest.param(row, prop, id=f"{name}-{prop.__name__.removeprefix('assert_')}")
        for name, row in METHODS.items()
        for prop in row.holds
    ],
)
def test_property(make: Maker, holds: Callable[[Maker], None]) -> None:
    holds(make)


@pytest.mark.parametrize(("name", "real"), REALS)
def test_ensemble_is_separate_training(name: str, real: str) -> None:
    row = METHODS[name]
    if row.settings.get("layer"):
        pytest.skip("layer names differ inside an ensemble: test_fam.py")

    def make(value: object) -> Method:
        return row.kind(**{**copy.deepcopy(row.settings), real: value})

    assert_ensemble_is_separate(make, row.settings[real])
