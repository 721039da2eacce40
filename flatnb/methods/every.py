"""A method in every k-th step only, and plain training in between."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from flatnb.methods.base import Hyperparameter, Method, Step, count


class Every(Method):
    """`method` in every k-th step, the first among them, and plain training in between.

    It takes the place of `method` alone and in `compose`:
        `Every(compose(SoftAD(0.1), SAM()), 5)`
    leaves both out in between, `compose(SoftAD(0.1), Every(SAM(), 5))` SAM alone. A
    step is a call of `backward`, with accumulation a micro-batch; schedules of `method`
    count all steps, those in between as well. k = 1 is the method.

        >>> from flatnb import SAM, Every
        >>> Every(SAM(rho=0.05), k=5).passes
        1.2

    Args:
        method: a method.
        k: from one step of it to the next >= 1.

    Raises:
        TypeError, ValueError: an argument is not what is allowed.
    """

    k = Hyperparameter(count)

    def __init__(self, method: Method, k: int) -> None:
        if not isinstance(method, Method):
            raise TypeError(
                f"method={method!r}; allowed: a method such as SAM(rho=0.05)"
            )
        self.method, self.k = method, k

    @property
    def passes(self) -> float:  # type: ignore[override]
        """The average over k steps."""
        return (self.method.passes + self.k - 1) / self.k

    @property
    def _now(self) -> Method:
        return self.method if self.calls % self.k == 0 else Method()

    def objective(self, losses: Tensor) -> Tensor:
        return self._now.objective(losses)

    def rule(self, step: Step) -> None:
        self._now.rule(step)

    def watch(self, model: nn.Module) -> AbstractContextManager[Any]:
        return self._now.watch(model)

    def penalty(self, model: nn.Module, losses: Tensor) -> Tensor | None:
        return self._now.penalty(model, losses)

    def hooks(self) -> list[str]:
        return self.method.hooks()

    def advance(self) -> None:
        super().advance()
        self.method.advance()

    def counts(self) -> bool:
        return True

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "method": self.method.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        rest = self.load_calls(state)
        if set(rest) != {"method"}:
            raise ValueError(
                f"{self!r} needs a state with 'method'; got {sorted(state)}"
            )
        self.method.load_state_dict(rest["method"])
