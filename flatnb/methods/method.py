"""What an author or a user of a method reads: `Method`, its hooks and hyperparameters.

A method turns a batch of per-example losses into a gradient. It overrides those of
three hooks that it changes, and everything else is done for it:

    objective(losses) -> scalar     the loss transform            (default: the mean)
    rule(step)                      where, and how often, the gradient is taken
                                    (default: once, at w)
    penalty(model, losses)          a term added to the objective (default: none)

>>> import torch
>>> class Worst(Method):
...     def objective(self, losses):
...         return losses.max(-1).values
>>> net = nn.Linear(2, 1)
>>> loss = Worst().backward(net, lambda: net(torch.ones(4, 2)).square().squeeze(1))
>>> net.weight.grad.shape
torch.Size([1, 2])
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn

from flatnb import _checks
from flatnb.methods._refusals import OLD_GRAPH
from flatnb.methods._step import Closure, Gradient, Step
from flatnb.methods._tensors import Real, per_member, present, scalar
from flatnb.methods.perturb import Perturb

__all__ = [
    "ERM",
    "Closure",
    "Gradient",
    "Hyperparameter",
    "Method",
    "Perturb",
    "Real",
    "Step",
    "Value",
    "count",
    "per_member",
    "present",
    "real",
    "selection",
]

# What a hyperparameter takes: a value, or a function of the number of earlier calls;
# see schedules.py.
Value = Real | Callable[[int], Real]


class Method:
    """Base of all methods. `backward` stands where `loss.backward()` stood.

    Attributes that have a `state_dict` of their own (noise streams, moving averages,
    other methods) are part of the method's.

    Attributes:
        passes: forward-backward passes one step costs, for compute-fair comparisons;
            the average where steps differ.
        calls: number of calls of `backward` so far, which schedules follow.
    """

    passes: float = 1
    calls: int = 0

    def objective(self, losses: Tensor) -> Tensor:
        """Reduce losses (..., n) over the last axis to what is minimized, (...)."""
        return losses.mean(-1)

    def rule(self, step: Step) -> None:
        """Leave the step's gradient in `p.grad` through calls of `step`."""
        step.backward()

    def watch(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Entered around each call of the closure, for a penalty to see into the net."""
        return nullcontext()

    def penalty(self, model: nn.Module, losses: Tensor) -> Tensor | None:
        """A term, () or (members,), added to the objective of each pass; None for none.

        `losses` are the plain per-example losses, with their graph.
        """
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
                Thresholds and radii see the unweighted losses of each micro-batch.
            scaler: a `torch.amp.GradScaler`; `p.grad` is then scaled as after
                `scaler.scale(loss).backward()`, perturbations use unscaled gradients.

        Returns:
            The detached mean of the plain losses, () or (members,), at the parameters w
            where the method evaluates there, else the average over its passes.

        Raises:
            TypeError, ValueError: an argument is not what is allowed; the closure
                returns no losses with a graph, or calls `backward()`; no parameter is
                trainable, or one is on the meta device. Of methods that move parameters
                or look into the net, also: parameters that are complex, have
                post-accumulate-grad hooks, or are spread over processes (FSDP, tensor
                parallel); DistributedDataParallel with a static graph.
            RuntimeError: a part of the losses' graph was made before the closure was
                called.

        >>> import torch, flatnb
        >>> net = torch.nn.Linear(2, 1)
        >>> x = torch.ones(4, 2)
        >>> loss = flatnb.SAM(rho=0.05).backward(net, lambda: net(x).square().squeeze(1))
        >>> net.weight.grad.shape
        torch.Size([1, 2])
        """
        step = Step(self, model, closure, weight, scaler)
        try:
            self.rule(step)
            step.close()
        except BaseException as error:
            # An interrupt inside `close` lands here, too, and it runs once more.
            moved = step.moved
            step.undo()
            step.close()
            old = moved and "inplace operation" in str(error)
            if old or "second time" in str(error):
                raise RuntimeError(OLD_GRAPH) from error
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

    def counts(self) -> bool:
        """Whether a step depends on the number of earlier calls, as by a schedule."""
        return any(
            isinstance(attribute := getattr(type(self), name, None), Hyperparameter)
            and attribute.is_schedule(value)
            for name, value in vars(self).items()
        )

    def memory(self) -> dict[str, Any]:
        """What is kept between steps, by name: attributes that have a `state_dict`."""
        parts = {n: v for n, v in vars(self).items() if hasattr(v, "load_state_dict")}
        return {name.lstrip("_"): part for name, part in parts.items()}

    def state_dict(self) -> dict[str, Any]:
        """What the method remembers: its `memory`, and `calls` if it counts."""
        state = {name: part.state_dict() for name, part in self.memory().items()}
        return {**state, "calls": self.calls} if self.counts() else state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave.

        Raises:
            ValueError: the state is that of another kind of method.
        """
        parts = self.memory()
        expected = {*parts, "calls"} if self.counts() else {*parts}
        if set(state) - {"calls"} != expected - {"calls"} or expected - set(state):
            raise ValueError(
                f"state has the entries {sorted(state)}; allowed: those of {self!r}, "
                f"{sorted(expected)}"
            )
        self.calls = count("calls", state.get("calls", self.calls), low=0)
        for name, part in parts.items():
            part.load_state_dict(state[name])

    def __repr__(self) -> str:
        """The call that makes it: arguments without default, or that differ from it."""
        shown = []
        for name, parameter in inspect.signature(type(self)).parameters.items():
            # What was set, a schedule as such.
            value = vars(self)[name] if name in vars(self) else getattr(self, name)
            default = parameter.default
            if isinstance(value, Tensor):
                shown.append(f"{name}=<{value.numel()} values>")
            elif default is inspect.Parameter.empty or value != default or not shown:
                text = value.__name__ if inspect.isfunction(value) else repr(value)
                shown.append(f"{name}={text}")
        return f"{type(self).__name__}({', '.join(shown)})"


class ERM(Method):
    """Empirical risk minimization: the gradient of the mean loss, one pass.

    >>> import torch
    >>> net = nn.Linear(2, 1)
    >>> losses = lambda: net(torch.ones(4, 2)).square().squeeze(1)
    >>> torch.equal(ERM().backward(net, losses), losses().mean())
    True
    """


class Hyperparameter:
    """An attribute of a method that is checked whenever it is set.

    Set to a function, it is a schedule: read, it is what the function returns for the
    number of earlier calls of the method, checked.

    >>> class Ball(Method):
    ...     rho = Hyperparameter()  # real: finite and >= 0
    ...     k = Hyperparameter(count)  # an integer >= 1
    >>> ball = Ball()
    >>> ball.rho = lambda calls: 0.1 * calls
    >>> ball.rho
    0.0

    Args:
        check: `check(name, value)` returns the value to keep, or raises; `real` unless
            given.
        schedule: whether a function is a schedule. If not, it is a value as any other.
    """

    def __init__(
        self, check: Callable[[str, Any], Any] | None = None, *, schedule: bool = True
    ) -> None:
        self._check = real if check is None else check
        self._schedule = schedule

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def is_schedule(self, value: Any) -> bool:
        """Whether this value is a function of the number of calls."""
        return self._schedule and callable(value)

    def __get__(self, method: Any, owner: type | None = None) -> Any:
        if method is None:
            return self
        try:
            value = method.__dict__[self._name]
        except KeyError:
            raise AttributeError(f"{self._name} has not been set") from None
        if self.is_schedule(value):
            return self._check(self._name, value(method.calls))
        return value

    def __set__(self, method: Any, value: Any) -> None:
        schedule = self.is_schedule(value)
        checked = self._check(self._name, value(method.calls) if schedule else value)
        method.__dict__[self._name] = value if schedule else checked


def real(
    name: str,
    value: Any,
    *,
    low: float = 0.0,
    high: float = math.inf,
    open_low: bool = False,
) -> Real:
    """A number in [low, high], or a 1-D tensor of them, one per member of an ensemble.

    Raises:
        ValueError: anything else, infinity and NaN among it.

    >>> real("rho", 1)
    1.0
    """
    upper = "" if high == math.inf else f" and <= {high:g}"
    allowed = (
        f"a finite number {'>' if open_low else '>='} {low:g}{upper}, or a 1-D tensor "
        "of them, one per member"
    )
    entries = [scalar(value)]
    if isinstance(value, Tensor) and value.dim() == 1 and value.numel():
        entries = value.tolist()
    closed = not open_low
    top = math.nextafter(high, math.inf)
    checked = [
        _checks.number(name, e, allowed, low, top, closed=closed) for e in entries
    ]
    # A copy: what the caller writes into the tensor later would not be checked.
    one = not isinstance(value, Tensor) or value.dim() == 0
    return checked[0] if one else value.detach().clone()


def count(name: str, value: Any, *, low: int = 1) -> int:
    """An integer >= low.

    Raises:
        ValueError: anything else.

    >>> count("k", 3)
    3
    """
    return _checks.integer(name, scalar(value), low)


def selection(name: str, value: Any) -> Perturb | None:
    """A function that selects parameters, or None for all; see perturb.py.

    Raises:
        TypeError: anything else.
    """
    if value is None or callable(value):
        return value
    raise TypeError(
        f"{name}={value!r}; allowed: None for all parameters, only_norms or "
        "all_but_norms_and_biases of flatnb.methods.perturb, or a function "
        "(name, parameter, module) -> bool or number >= 0"
    )
