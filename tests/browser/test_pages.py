"""Each page of the built book: see checks.py for what holds, measure.js for how."""

import pytest
from checks import CHECKS
from visits import Visits

pytestmark = pytest.mark.pages


def test_page(page: str, visit: Visits) -> None:
    seen = visit(page)
    faults = [
        f"{name}: {found}"
        for name, check in CHECKS.items()
        for found in check(page, seen)
    ]
    assert not faults, "\n".join([page, *faults])
