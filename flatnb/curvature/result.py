"""What every measurement returns besides its value: its cost and its settings; and progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

ProgressCallback = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, repr=False)
class Result:
    """A measured quantity with its cost.

    Attributes:
        products: Curvature-vector products used; a result that is not made of products says in
            its own docstring what is counted instead.
        seconds: Wall-clock time.
        settings: What the value depends on besides model and data.
    """

    products: int
    seconds: float
    settings: dict[str, Any] = field(default_factory=dict)

    def summary(self) -> str:
        """The value and its error, in one line."""
        raise AttributeError(f"{type(self).__name__} has no summary")

    def __repr__(self) -> str:
        settings = "".join(f", {name}={value!r}" for name, value in self.settings.items())
        cost = f"{self.products} products, {self.seconds:.3g} s"
        return f"{type(self).__name__}({self.summary()} | {cost}{settings})"


class Progress:
    """Says how long work is getting on: to a callback, else to a terminal, else to nobody.

    On a terminal the line is rewritten in place, first after two seconds.
    """

    def __init__(self, callback: ProgressCallback | None = None) -> None:
        self._callback = callback
        self._terminal = callback is None and sys.stderr.isatty()
        self._next = time.monotonic() + 2.0
        self._written = False

    def __call__(self, text: str) -> None:
        if self._callback is not None:
            self._callback(text)
        elif self._terminal and time.monotonic() >= self._next:
            sys.stderr.write(f"\r\033[K{text}")
            sys.stderr.flush()
            self._written = True
            self._next = time.monotonic() + 0.5

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._written:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
