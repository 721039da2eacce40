"""Every page of the built book in a browser: see checks.py for what holds, and known.py
for what is let pass.
"""

import re

import pytest
from checks import CHECKS
from known import KNOWN, Known, excused
from visits import Visits

pytestmark = pytest.mark.pages


@pytest.mark.parametrize("check", CHECKS)
def test_page(check: str, page: str, visit: Visits) -> None:
    found = [f for f in CHECKS[check](page, visit(page)) if not excused(check, f)]
    assert not found, f"{CHECKS[check].__doc__} Not so:\n" + "\n".join(found)


@pytest.mark.parametrize(
    "known",
    [
        pytest.param(
            k, marks=pytest.mark.xdist_group(k.page), id=f"{k.check}-{k.finding}"
        )
        for k in KNOWN
    ],
)
def test_known_findings_are_still_there(known: Known, visit: Visits) -> None:
    found = CHECKS[known.check](known.page, visit(known.page))
    assert any(re.search(known.finding, finding) for finding in found), (
        f"{known.page} is free of {known.finding!r}: take it from known.py"
    )
