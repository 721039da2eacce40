"""Methods made of methods: `compose` joins them, `Every` takes one in some steps."""

from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from flatnb import _checks
from flatnb.methods.method import ERM, Hyperparameter, Method, Step, count, present

_ALLOWED = "a method such as SAM(rho=0.05); an optimizer stays in the loop"


class Joined(Method):
    """A method made of `parts`: each hook is that of the part which defines it."""

    parts = tuple[Method, ...]()  # not annotated: no argument of the constructor

    def active(self) -> tuple[Method, ...]:
        """The parts that this step is made of."""
        return self.parts

    def _owner(self, hook: str) -> Method:
        return next((part for part in self.active() if hook in part.hooks()), ERM())

    def objective(self, losses: Tensor) -> Tensor:
        return self._owner("objective").objective(losses)

    def rule(self, step: Step) -> None:
        self._owner("rule").rule(step)

    def watch(self, model: nn.Module) -> AbstractContextManager[Any]:
        with ExitStack() as stack:
            for part in self.active():
                stack.enter_context(part.watch(model))
            return stack.pop_all()

    def penalty(self, model: nn.Module, losses: Tensor) -> Tensor | None:
        terms = present([part.penalty(model, losses) for part in self.active()])
        return torch.stack(terms).sum(0) if terms else None

    def hooks(self) -> list[str]:
        return [hook for part in self.parts for hook in part.hooks()]

    def advance(self) -> None:
        super().advance()
        for part in self.parts:
            part.advance()

    def memory(self) -> dict[str, Any]:
        return {str(i): part for i, part in enumerate(self.parts)}


class Composed(Joined):
    """What `compose` returns."""

    def __init__(self, *parts: Method) -> None:
        self.parts = parts
        self.passes = max(part.passes for part in parts)
        kinds = {"objective": "loss transforms", "rule": "gradient rules"}
        for hook, kind in kinds.items():
            owners = [repr(part) for part in parts if hook in part.hooks()]
            if len(owners) > 1:
                raise ValueError(
                    f"{' and '.join(owners)} are {kind}, and a step has room for one; "
                    "join one loss transform, one gradient rule and any penalties"
                )

    def __repr__(self) -> str:
        return f"compose({', '.join(map(repr, self.parts))})"


def compose(*methods: Method) -> Method:
    """Join at most one loss transform, one gradient rule, and any number of penalties.

    SAM joined with SoftAD takes its gradients, the ascent's too, of SoftAD's objective.
    ERM adds nothing. What cannot be joined raises ValueError.

    >>> from flatnb import SAM, SoftAD
    >>> compose(SoftAD(theta=0.1), SAM(rho=0.05)).passes
    2
    """
    parts: list[Method] = []
    for method in methods:
        _checks.instance("method", method, Method, _ALLOWED)
        parts += method.parts if isinstance(method, Composed) else [method]
    if not parts:
        raise ValueError("compose() needs at least one method")
    return parts[0] if len(parts) == 1 else Composed(*parts)


class Every(Joined):
    """`method` in every k-th step, the first among them, and plain training in between.

    `Every(compose(SoftAD(0.1), SAM()), 5)` leaves both out in between,
    `compose(SoftAD(0.1), Every(SAM(), 5))` SAM alone. A step is a call of `backward`,
    with accumulation a micro-batch; schedules of `method` count them all.

    >>> from flatnb import SAM
    >>> Every(SAM(rho=0.05), k=5).passes
    1.2
    """

    method: Method
    k: Hyperparameter = Hyperparameter(count)

    def __post_init__(self) -> None:
        self.parts = (_checks.instance("method", self.method, Method, _ALLOWED),)

    @property
    def passes(self) -> float:  # type: ignore[override]
        """The average over k steps."""
        return (self.method.passes + self.k - 1) / self.k

    def active(self) -> tuple[Method, ...]:
        return self.parts if self.calls % self.k == 0 else ()
