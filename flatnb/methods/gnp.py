"""Penalising the gradient norm (GNP), and the warm-up of its hyperparameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .base import TINY, Hyperparameter, Method, Perturb, Real, Step, count, flag, real, selection


@dataclass(frozen=True)
class LinearWarmup:
    """A hyperparameter that grows from 0 to `value` over the first `steps` calls of `backward`.

    At the t-th call, t = 0, 1, ...: value * min(1, t / steps).

    Args:
        value: reached from call `steps` on, >= 0.
        steps: number of calls of `backward` (with accumulation: of micro-batches), >= 1.
    """

    value: Real
    steps: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", real("value", self.value))
        count("steps", self.steps)

    def __call__(self, calls: int) -> Real:
        return self.value * min(1.0, calls / self.steps)


@dataclass(frozen=True)
class ZeroWarmup:
    """A hyperparameter that is 0 in the first `steps` calls of `backward`, then `value`.

    Args:
        value: from call `steps` on, >= 0.
        steps: number of calls of `backward` (with accumulation: of micro-batches), >= 1.
    """

    value: Real
    steps: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", real("value", self.value))
        count("steps", self.steps)

    def __call__(self, calls: int) -> Real:
        return self.value * float(calls >= self.steps)


Warmup = LinearWarmup | ZeroWarmup


def _real_or_warmup(name: str, value: Any) -> Real | Warmup:
    return value if isinstance(value, Warmup) else real(name, value)


class GNP(Method):
    """Gradient norm penalty: descends L + lambda ||grad L||, lambda = alpha r, without Hessians.

        g1 = grad L(w),   g2 = grad L(w + r g1 / ||g1||)
        gradient  (1 - alpha) g1 + alpha g2

    Two passes on the same batch. alpha = 0 is plain training, alpha = 1 is SAM(rho=r); alpha > 1 is
    allowed. ||g1|| is the norm over all perturbed parameters together, in float64; a zero gradient
    moves nothing. By default all parameters are moved, BatchNorm and biases included. Weight decay
    and momentum are the optimizer's, at w. BatchNorm uses batch statistics in both passes, its
    running statistics see the first one only. Under DistributedDataParallel each process moves by
    its own g1 (m-sharpness), and the whole gradient is averaged.

    Source: Zhao, Zhang and Hu, "Penalizing Gradient Norm for Efficiently Improving Generalization
    in Deep Learning", ICML 2022; warm-up: the authors' follow-up "When Will Gradient Regularization
    Be Harmful?", 2024. The public JAX code normalises the first term by default,
    (1 - alpha) g1 / ||g1|| + alpha g2 (its configuration's `norm_perturbations`, which no recipe
    turns off): `normalize=True` here. It also has weight decay inside the loss, so that it tilts
    g1 (add 0.5 * l2 * ||w||^2 to the closure's losses for that), and clips the gradient to a
    norm of 5.

    Args:
        r: radius >= 0, in units of the parameters. The recipes use 0.05 to 0.1.
        alpha: weight of the second gradient >= 0, no unit. The recipes use 0.8.
        normalize: divide g1 in the first term by its norm, as the public code does.
        perturb: which parameters are moved, all by default; see `flatnb.methods.perturb`.

    `r` and `alpha` may each be a `LinearWarmup` or `ZeroWarmup`. The count of backward calls is
    kept by the method and is in its `state_dict`. The cost is two passes during warm-up too.
    """

    passes = 2
    r = Hyperparameter(_real_or_warmup)
    alpha = Hyperparameter(_real_or_warmup)
    normalize = Hyperparameter(flag)
    perturb = Hyperparameter(selection)

    def __init__(
        self,
        r: Real | Warmup,
        alpha: Real | Warmup,
        *,
        normalize: bool = False,
        perturb: Perturb | None = None,
    ) -> None:
        self.r, self.alpha = r, alpha
        self.normalize, self.perturb = normalize, perturb
        self.calls = 0

    def rule(self, step: Step) -> None:
        r = step.per_member("r", self._now(self.r))
        alpha = step.per_member("alpha", self._now(self.alpha))
        grads = step.gradient()
        norm = step.norm(grads, self.perturb)
        step.move(grads, r / norm.clamp_min(TINY), self.perturb)
        length = step.norm(grads).clamp_min(TINY) if self.normalize else 1.0
        # Before the last pass, so that DistributedDataParallel averages both terms there.
        step.add_gradient(grads, (1 - alpha) / length)
        del grads
        step.backward(alpha * step.unless_finite(norm))
        self.calls += 1

    def _now(self, value: Real | Warmup) -> Real:
        return value(self.calls) if isinstance(value, Warmup) else value

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if set(state) != {"calls"}:
            raise ValueError(f"{self!r} needs a state with the entry 'calls'; got {sorted(state)}")
        self.calls = count("calls", state["calls"], low=0)
