"""Checks of what users give: each returns the value, or names it with what is allowed."""

from __future__ import annotations

import contextlib
import math
import numbers
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

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
    allowed = (
        f"an integer >= {low}" if high is None else f"an integer in [{low}, {high})"
    )
    raise ValueError(f"{name}={shown(value)}; allowed: {allowed}")


def number(
    name: str,
    value: Any,
    allowed: str,
    low: float,
    high: float = math.inf,
    *,
    closed: bool = False,
) -> float:
    """A number in (low, high), or [low, high) if `closed`; `allowed` says it in words.

    Raises:
        ValueError: anything else.
    """
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # an integer that no float holds
            entry = float(value)
            if low < entry < high or (closed and entry == low):
                return entry
    raise ValueError(f"{name}={shown(value)}; allowed: {allowed}")


def instance(
    name: str, value: Any, kind: type[T] | tuple[type[T], ...], allowed: str
) -> T:
    """An instance of `kind`; `allowed` says it in words.

    Raises:
        TypeError: anything else.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name}={shown(value)}; allowed: {allowed}")
    return value


def flag(name: str, value: Any) -> bool:
    """True or False.

    Raises:
        TypeError: anything else.
    """
    return instance(name, value, bool, "True or False")


def function(name: str, value: Any, allowed: str) -> Any:
    """What can be called; `allowed` says in words as what.

    Raises:
        TypeError: anything else.
    """
    if not callable(value):
        raise TypeError(f"{name}={shown(value)}; allowed: {allowed}")
    return value


def sequence(
    name: str, value: Any, kind: type[T] | tuple[type[T], ...], allowed: str
) -> list[T]:
    """A list, tuple or other iterable of `kind`, as a list; a text is none.

    Raises:
        TypeError: anything else, an entry of another type among them.
    """
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise TypeError(f"{name}={shown(value)}; allowed: {allowed}")
    entries = list(value)
    for entry in entries:
        if not isinstance(entry, kind):
            raise TypeError(f"{name} has {shown(entry)}; allowed: {allowed}")
    return entries


def place(value: Any, name: str = "device") -> torch.device:
    """A device.

    Raises:
        ValueError: none that PyTorch knows.
    """
    import torch

    if isinstance(value, str | torch.device):
        with contextlib.suppress(RuntimeError):
            return torch.device(value)
    raise ValueError(
        f"{name}={shown(value)}; allowed: a device such as 'cpu' or 'cuda:0'"
    )
