"""Checks of what users give; each returns the value or says `name=value; allowed: ...`.

A wrong type is a TypeError, a wrong value a ValueError; `integer` and `number` raise
ValueError for both.
"""

import contextlib
import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any


def shown(value: object) -> str:
    """A value as an error shows it: its `repr`, cut where it is long."""
    try:
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError):  # integers of thousands of digits, deep lists
        text = f"a very large {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:40]}…{text[-39:]}"


def integer(name: str, value: Any, low: int = 1, high: int | None = None) -> int:
    """An integer >= low (and < high), of Python or NumPy."""
    fits = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if fits and low <= value and (high is None or value < high):
        return int(value)
    limits = f">= {low}" if high is None else f"in [{low}, {high})"
    raise ValueError(f"{name}={shown(value)}; allowed: an integer {limits}")


def number(
    name: str,
    value: Any,
    allowed: str,
    low: float,
    high: float = math.inf,
    *,
    closed: bool = False,
) -> float:
    """A number in (low, high), or [low, high) if `closed`; `allowed` says it in words."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # an integer that no float holds
            entry = float(value)
            if low < entry < high or (closed and entry == low):
                return entry
    raise ValueError(f"{name}={shown(value)}; allowed: {allowed}")


def choice(name: str, value: Any, options: Iterable[str]) -> str:
    """One of some names."""
    names = list(options)
    if isinstance(value, str) and value in names:
        return value
    raise ValueError(f"{name}={shown(value)}; allowed: {', '.join(names)}")


def instance(name: str, value: Any, kind: Any, allowed: str) -> Any:
    """An instance of a class, or of one of several; `allowed` says it in words."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}={shown(value)}; allowed: {allowed}")
    return value


def sequence(name: str, value: Any, kind: Any, allowed: str) -> list[Any]:
    """A list, tuple or other iterable of `kind`, but no text, as a list."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise TypeError(f"{name}={shown(value)}; allowed: {allowed}")
    entries = list(value)
    for entry in entries:
        if not isinstance(entry, kind):
            raise TypeError(f"{name} has {shown(entry)}; allowed: {allowed}")
    return entries
