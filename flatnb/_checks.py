"""Checks of what users give: each returns the value, or names it with what is allowed."""

from __future__ import annotations

import math
import numbers
from typing import Any, TypeVar

T = TypeVar("T")


def shown(value: object) -> str:
    """A value as an error shows it: its `repr`, cut where it is long."""
    try:
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError):  # integers of thousands of digits, deep lists
        text = f"a very large {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:40]}…{text[-39:]}"


def integer(name: str, value: Any, low: int = 1, high: int | None = None) -> int:
    """An integer >= low (and < high), of Python or NumPy.

    Raises:
        ValueError: anything else.
    """
    fits = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if fits and low <= value and (high is None or value < high):
        return int(value)
    allowed = f"an integer >= {low}" if high is None else f"an integer in [{low}, {high})"
    raise ValueError(f"{name}={shown(value)}; allowed: {allowed}")


def number(name: str, value: Any, allowed: str, low: float, high: float = math.inf) -> float:
    """A number in (low, high); `allowed` says it in words.

    Raises:
        ValueError: anything else.
    """
    fits = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if fits and low < value < high:
        return float(value)
    raise ValueError(f"{name}={shown(value)}; allowed: {allowed}")


def instance(name: str, value: Any, kind: type[T] | tuple[type[T], ...], allowed: str) -> T:
    """An instance of `kind`; `allowed` says it in words.

    Raises:
        TypeError: anything else.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name}={shown(value)}; allowed: {allowed}")
    return value
