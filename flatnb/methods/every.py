"""A method in every k-th step only, and plain training in between."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from flatnb import _checks
from flatnb.methods.method import ERM, Hyperparameter, Method, Step, count


class Every(Method):
    """`method` in every k-th step, the first among them, and plain training in between.

    `Every(compose(SoftAD(0.1), SAM()), 5)` leaves both out in between,
    `compose(SoftAD(0.1), Every(SAM(), 5))` SAM alone. A step is a call of `backward`,
    with accumulation a micro-batch; schedules of `method` count all steps, those in
    between as well. k = 1 is the method.

    >>> from flatnb import SAM
    >>> Every(SAM(rho=0.05), k=5).passes
    1.2

    Args:
        method: a method.
        k: from one step of it to the next >= 1.
    """

    method: Method
    k: Hyperparameter = Hyperparameter(count)

    def __post_init__(self) -> None:
        allowed = "a method such as SAM(rho=0.05)"
        _checks.instance("method", self.method, Method, allowed)

    @property
    def passes(self) -> float:  # type: ignore[override]
        """The average over k steps."""
        return (self.method.passes + self.k - 1) / self.k

    @property
    def _current(self) -> Method:
        return self.method if self.calls % self.k == 0 else ERM()

    def objective(self, losses: Tensor) -> Tensor:
        return self._current.objective(losses)

    def rule(self, step: Step) -> None:
        self._current.rule(step)

    def watch(self, model: nn.Module) -> AbstractContextManager[Any]:
        return self._current.watch(model)

    def penalty(self, model: nn.Module, losses: Tensor) -> Tensor | None:
        return self._current.penalty(model, losses)

    def hooks(self) -> list[str]:
        return self.method.hooks()

    def advance(self) -> None:
        super().advance()
        self.method.advance()

    def counts(self) -> bool:
        return True
