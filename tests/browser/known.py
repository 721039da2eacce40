"""Findings that are let pass, each with its reason, and a page where it is to be seen:
one that is not found there any more has to go from this list.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Known:
    check: str  # a name of checks.py
    finding: str  # a regular expression
    page: str
    reason: str


# Not ours to change.
THIRD_PARTIES: list[Known] = []

# To be mended.
FAULTS: list[Known] = []

KNOWN = THIRD_PARTIES + FAULTS


def excused(check: str, finding: str) -> bool:
    return any(k.check == check and re.search(k.finding, finding) for k in KNOWN)
