"""What an author of a method reads: `Method`, its hooks and hyperparameters."""

import inspect
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import KW_ONLY, dataclass
from typing import Any, dataclass_transform

from torch import Tensor, nn

from flatnb import _checks
from flatnb._tensors import Real, per_member, present, scalar
from flatnb.methods._step import TINY, Closure, Gradient, Step
from flatnb.methods.perturb import Perturb

# For authors, who need not import from elsewhere.
__all__ = ["ERM", "KW_ONLY", "TINY", "Closure", "Gradient", "Hyperparameter", "Method"]
__all__ += ["Perturb", "Real", "Step", "count", "per_member", "present", "real"]


@dataclass_transform(eq_default=False)
class Method:
    """Base of all methods. `backward` replaces `loss.backward()`.

    A method overrides those of `objective`, `rule` and `penalty` that it changes.
    Annotated attributes become its constructor's arguments, as in a dataclass;
    attributes with a `state_dict` (noise, averages, other methods) are part of its own.

    >>> import torch
    >>> class Tilted(Method):
    ...     t: Hyperparameter = Hyperparameter(default=1.0)
    ...     def objective(self, losses):
    ...         return (self.t * losses).logsumexp(-1) / self.t
    >>> net, x = nn.Linear(2, 1), torch.ones(4, 2)
    >>> loss = Tilted(t=2.0).backward(net, lambda: net(x).square().squeeze(1))

    Attributes:
        passes: forward-backward passes per step, the average where steps differ.
        calls: number of calls of `backward` so far, which schedules follow.
    """

    passes: float = 1
    calls: int = 0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclass(eq=False, repr=False)(cls)

    def objective(self, losses: Tensor) -> Tensor:
        """Reduce losses (..., n) over the last axis to what is minimized, (...)."""
        return losses.mean(-1)

    def rule(self, step: Step) -> None:
        """Leave the step's gradient in `p.grad` through calls of `step`."""
        step.backward()

    def watch(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Entered around each call of the closure: a penalty may see into the net."""
        return nullcontext()

    def penalty(self, model: nn.Module, losses: Tensor) -> Tensor | None:
        """A term, () or (members,), added in each pass, or None; `losses` are plain."""
        return None

    def backward(
        self,
        model: nn.Module,
        closure: Closure,
        *,
        weight: float = 1.0,
        scaler: Any = None,
    ) -> Tensor:
        """Add `weight` times the method's gradient to every trainable `p.grad`.

        Args:
            model: the net, plain, compiled, an `Ensemble`, or wrapped in
                DistributedDataParallel; several nets as one `nn.ModuleList`.
            closure: computes the plain per-example losses, (n,), or (members, n) of an
                ensemble, at the model's current parameters, on the same batch at every
                call. A loss that is one number, () or (members,), is a batch of one.
            weight: factor of the gradient, 1/k when accumulating k micro-batches.
            scaler: a `torch.amp.GradScaler`, by which `p.grad` is then scaled.

        Returns:
            The detached mean of the plain losses, () or (members,), at the parameters w
            where the method evaluates there, else the average over its passes.

        Raises:
            TypeError, ValueError: an argument, the model, or what the closure returns
                is not what is allowed; the closure calls `backward()`.
            RuntimeError: a part of the losses' graph is older than the closure's call.
        """
        step = Step(self, model, closure, weight, scaler)
        try:
            self.rule(step)
            step.close()
        except BaseException:  # an interrupt inside `close`, too
            step.undo()
            raise
        self.advance()
        return step.value()

    def hooks(self) -> list[str]:
        """The hooks among objective, rule and penalty that the method changes."""
        names = ("objective", "rule", "penalty")
        return [n for n in names if getattr(type(self), n) is not getattr(Method, n)]

    def advance(self) -> None:
        """Count a call of `backward` that has ended well."""
        self.calls += 1

    def memory(self) -> dict[str, Any]:
        """What is kept between steps, by name: attributes that have a `state_dict`."""
        parts = {n: v for n, v in vars(self).items() if hasattr(v, "load_state_dict")}
        return {name.lstrip("_"): part for name, part in parts.items()}

    def state_dict(self) -> dict[str, Any]:
        """`calls`, and the states of the method's `memory`."""
        parts = {name: part.state_dict() for name, part in self.memory().items()}
        return {"calls": self.calls, **parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned; ValueError if it is another method's."""
        parts = self.memory()
        if set(state) != {"calls", *parts}:
            raise ValueError(
                f"state has the entries {sorted(state)}; allowed: those of {self!r}, "
                f"{sorted({'calls', *parts})}"
            )
        calls = count("calls", state["calls"], low=0)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        self.calls = calls

    def __repr__(self) -> str:
        """The call that makes it: arguments without default, or that differ from it."""
        arguments = []
        for name, parameter in inspect.signature(type(self)).parameters.items():
            value = vars(self)[name]  # what was set, a schedule as such
            default = parameter.default
            if isinstance(value, Tensor):
                arguments.append(f"{name}=<{value.numel()} values>")
            elif default is parameter.empty or value != default or not arguments:
                text = value.__name__ if inspect.isfunction(value) else repr(value)
                arguments.append(f"{name}={text}")
        return f"{type(self).__name__}({', '.join(arguments)})"


class ERM(Method):
    """Empirical risk minimization: the gradient of the mean loss, one pass.

    >>> ERM().passes
    1
    """


def real(
    name: str, value: Any, *, high: float = math.inf, open_low: bool = False
) -> Real:
    """A number in [0, high], or a 1-D tensor of them, one per member of an ensemble.

    >>> real("rho", 1)
    1.0
    """
    sign = ">" if open_low else ">="
    upper = f" and <= {high:g}" if high < math.inf else ""
    allowed = f"a finite number {sign} 0{upper}, or a 1-D tensor, one per member"
    members = isinstance(value, Tensor) and value.dim() == 1 and value.numel() > 0
    top = math.nextafter(high, math.inf)
    for entry in value.tolist() if members else [scalar(value)]:
        number = _checks.number(name, entry, allowed, 0.0, top, closed=not open_low)
    # A copy: what the caller writes into the tensor later would not be checked.
    return value.detach().clone() if members else number


def count(name: str, value: Any, *, low: int = 1) -> int:
    """An integer >= low.

    >>> count("k", 3)
    3
    """
    return _checks.integer(name, scalar(value), low)


_REQUIRED = inspect.Parameter.empty


class Hyperparameter:
    """An attribute of a method that is checked whenever it is set.

    Set to a function, it is a schedule: read, it is what the function returns for the
    number of earlier calls of the method, checked. `check(name, value)` returns the
    value to keep, or raises; without `default` the constructor's argument is required.

    >>> class Ball(Method):
    ...     rho: Hyperparameter = Hyperparameter()  # real: finite and >= 0
    ...     k: Hyperparameter = Hyperparameter(count, default=1)  # an integer >= 1
    >>> Ball(rho=lambda calls: 0.1 * calls).rho
    0.0
    """

    def __init__(
        self, check: Callable[[str, Any], Any] = real, *, default: Any = _REQUIRED
    ) -> None:
        self._check = check
        self._default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, method: Any, owner: type | None = None) -> Any:
        if method is not None:
            value = vars(method)[self._name]
            return self._checked(value, method) if callable(value) else value
        if self._default is _REQUIRED:  # as dataclasses expect
            raise AttributeError(f"{self._name} has no default")
        return self._default

    def __set__(self, method: Any, value: Any) -> None:
        checked = self._checked(value, method)
        vars(method)[self._name] = value if callable(value) else checked

    def _checked(self, value: Any, method: Any) -> Any:
        value = value(method.calls) if callable(value) else value
        return self._check(self._name, value)
