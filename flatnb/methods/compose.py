"""Joining a loss transform, a gradient rule and penalties into one method."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from flatnb.methods.base import ERM, Method, Step


class Composed(Method):
    """What `compose` returns: each hook is that of the part which defines it."""

    def __init__(self, *parts: Method) -> None:
        self.parts = parts
        self._transform = _only("objective", "loss transforms", parts)
        self._rule = _only("rule", "gradient rules", parts)
        self._penalties = [part for part in parts if "penalty" in part.hooks()]
        self.passes = max(part.passes for part in parts)

    def objective(self, losses: Tensor) -> Tensor:
        return self._transform.objective(losses)

    def rule(self, step: Step) -> None:
        self._rule.rule(step)

    def watch(self, model: nn.Module) -> AbstractContextManager[Any]:
        with ExitStack() as stack:
            for part in self._penalties:
                stack.enter_context(part.watch(model))
            return stack.pop_all()

    def penalty(self, model: nn.Module, losses: Tensor) -> Tensor | None:
        terms = [part.penalty(model, losses) for part in self._penalties]
        present = [term for term in terms if term is not None]
        return torch.stack(present).sum(0) if present else None

    def hooks(self) -> list[str]:
        return [hook for part in self.parts for hook in part.hooks()]

    def advance(self) -> None:
        super().advance()
        for part in self.parts:
            part.advance()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        states = state.get("parts", ())
        if set(state) != {"parts"} or len(states) != len(self.parts):
            raise ValueError(
                f"{self!r} needs a state of {len(self.parts)} parts; got {state!r}"
            )
        for part, s in zip(self.parts, states, strict=True):
            part.load_state_dict(s)

    def __repr__(self) -> str:
        return f"compose({', '.join(map(repr, self.parts))})"


def _only(hook: str, what: str, parts: tuple[Method, ...]) -> Method:
    found = [part for part in parts if hook in part.hooks()]
    if len(found) > 1:
        raise ValueError(
            f"{' and '.join(map(repr, found))} are {what}, and a step has room for one; join at "
            "most one loss transform, one gradient rule, and any number of penalties"
        )
    return found[0] if found else ERM()


def compose(*methods: Method) -> Method:
    """Join at most one loss transform, one gradient rule, and any number of penalties.

    `compose(SoftAD(theta=0.1), SAM(rho=0.05))` takes SAM's gradient of SoftAD's
    objective: the ascent direction, too, is that of the transformed loss. ERM joins
        anything and adds nothing.

    Raises:
        TypeError: an argument is not a method. ValueError: none given, or two for one
            place.
    """
    parts: list[Method] = []
    for method in methods:
        if not isinstance(method, Method):
            raise TypeError(
                f"compose got {method!r} ({type(method).__name__}); it joins methods such as "
                "SoftAD(theta=0.1) and SAM(rho=0.05); an optimizer stays outside, in the loop"
            )
        parts += method.parts if isinstance(method, Composed) else [method]
    if not parts:
        raise ValueError("compose() needs at least one method")
    return parts[0] if len(parts) == 1 else Composed(*parts)
