"""What every measurement returns besides its value: error, cost and settings."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True, kw_only=True, repr=False)
class Result(ABC):
    """A measured quantity; its `repr` prints value, error, cost and settings.

    Attributes:
        products: with the curvature matrix, or what the result's own docstring says.
        seconds: wall-clock time.
        settings: what the value depends on besides model and data.
    """

    products: int
    seconds: float
    settings: dict[str, Any] = field(default_factory=dict)

    @abstractmethod
    def summary(self) -> str:
        """The value and its error, in one line."""

    def __repr__(self) -> str:
        settings = "".join(f", {key}={v!r}" for key, v in self.settings.items())
        cost = f"{self.products} products, {self.seconds:.3g} s"
        return f"{type(self).__name__}({self.summary()} | {cost}{settings})"


@dataclass(frozen=True, kw_only=True, repr=False)
class Estimate(Result):
    """A number, exact or the mean of a sample, with its standard error, 0 if exact.

    >>> Estimate(value=2.0, stderr=0.1, products=30, seconds=0.5)
    Estimate(2 ± 0.1 (standard error) | 30 products, 0.5 s)
    """

    value: float
    stderr: float = 0.0

    def summary(self) -> str:
        error = f" ± {self.stderr:.2g} (standard error)" if self.stderr else ", exact"
        return f"{self.value:.6g}{error}"


def moments(sample: Tensor) -> dict[str, float]:
    """The fields of `Estimate` from a sample (n,), n >= 2."""
    stderr = float(sample.std()) / math.sqrt(len(sample))
    return {"value": float(sample.mean()), "stderr": stderr}
