"""Sharpness: how much the loss rises near w, at worst or on average.

    at worst      max_{|eps / T| <= rho} L(w + eps) - L(w)
    on average    E L(w + sigma T xi) - L(w),    xi ~ N(0, I)

with T = 1, or T = |w| entry by entry in the adaptive versions (Kwon et al. 2021). What
each is
invariant to: none but the adaptive ones survives a rescaling of weights that leaves the
    net's
function unchanged, such as W_1 -> c W_1, W_2 -> W_2 / c between ReLUs (Dinh et al.
2017). The
adaptive ones do, for every rescaling of single entries: eps / T is unchanged by it. All
    are
invariant to a change of signs and to a permutation of units.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flatnb.curvature.objective import Batches, LossFunction, Objective, Selection
from flatnb.curvature.result import Estimate, Progress, ProgressCallback, moments
from flatnb.curvature.vectors import norm


@dataclass(frozen=True, kw_only=True, repr=False)
class Sharpness(Estimate):
    """A rise of the loss. `products` counts evaluations over all data: losses and
    gradients.

    Attributes:
        value: L(perturbed) - L(w); for an average, its mean.
        stderr: Standard error of an average over its pairs; 0 for a maximum, which is a
            lower bound.
        loss: L(w).
    """

    loss: float

    def summary(self) -> str:
        error = f" ± {self.stderr:.2g}" if self.stderr else ""
        return f"{self.value:.6g}{error} above a loss of {self.loss:.6g}"


def sam_sharpness(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Batches,
    rho: float = 0.05,
    *,
    adaptive: bool = False,
    params: Selection | None = None,
) -> Sharpness:
    """L(w + eps) - L(w) after the single step of SAM, eps = rho T^2 g / |T g| (Foret et
    al. 2021).

    T = 1, or |w| if `adaptive`. To first order rho |T g|, and it vanishes where the
    gradient does:
    then `worst_sharpness` looks further. Cost: a gradient and a loss.

    Raises:
        ValueError: rho not positive, a loss at this distance that is not finite; what
            `Objective` raises.
    """
    return worst_sharpness(
        model, loss_fn, batches, rho, steps=1, adaptive=adaptive, params=params
    )


def worst_sharpness(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Batches,
    rho: float = 0.05,
    *,
    steps: int = 20,
    adaptive: bool = False,
    params: Selection | None = None,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> Sharpness:
    """max L(w + eps) - L(w) over |eps / T| <= rho, by projected gradient ascent from
    SAM's step.

    Steps go along the normalised gradient in the coordinates eps / T, with lengths
    falling from
    rho, and back into the ball. The highest loss seen is returned: a lower bound of the
    maximum, never below `sam_sharpness` nor, if steps > 1, below 0. Where the gradient
    is zero the first step is random (if steps > 1). Cost: steps gradients, two losses.

    Raises:
        ValueError: rho or steps not positive, a loss at this distance that is not
            finite; what `Objective` raises.
    """
    _positive("rho", rho)
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    began = time.perf_counter()
    objective = Objective(model, loss_fn, batches, params)
    center = objective.vector
    scale = center.abs() if adaptive else torch.ones_like(center)
    at, best, start = torch.zeros_like(center), -math.inf, 0.0
    with Progress(progress) as say:
        for step in range(steps):
            loss, gradient = objective.gradient(center + scale * at)
            start, best = (loss, best) if step == 0 else (start, _higher(best, loss))
            say(f"sharpness: step {step + 1} of {steps}, rise {best - start:.4g}")
            upward = _unit(scale * gradient)
            if upward is None:
                upward = _unit(_noise(center, seed)) if step == 0 < steps - 1 else None
            if upward is not None:
                at = _into_ball(at + rho * (1 - step / steps) * upward, rho)
        best = _higher(best, objective.loss(center + scale * at))
    if steps > 1:
        best = _higher(best, start)
    _finite("rho", rho, best)
    return Sharpness(
        value=best - start,
        loss=start,
        products=steps + 1,
        seconds=time.perf_counter() - began,
        settings={"rho": rho, "steps": steps, "adaptive": adaptive},
    )


def average_sharpness(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Batches,
    sigma: float = 0.01,
    *,
    pairs: int = 50,
    adaptive: bool = False,
    params: Selection | None = None,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> Sharpness:
    """E L(w + sigma T xi) - L(w): noise stability, (sigma^2 / 2) tr(T H T) +
    O(sigma^4).

    Noise comes in pairs of opposite sign: unbiased, and the slope at w cancels, which
        would
    otherwise drown the curvature (Zhang, Li and Ju 2024). Cost: 2 pairs + 1 losses.

    Raises:
        ValueError: sigma not positive, fewer than two pairs, a loss at this distance
            that is not finite; what `Objective` raises.
    """
    _positive("sigma", sigma)
    if pairs < 2:
        raise ValueError(f"pairs must be at least 2, got {pairs}")
    began = time.perf_counter()
    objective = Objective(model, loss_fn, batches, params)
    center = objective.vector
    scale = sigma * (center.abs() if adaptive else torch.ones_like(center))
    generator = torch.Generator().manual_seed(seed)
    start, rises = objective.loss(), []
    with Progress(progress) as say:
        for pair in range(pairs):
            noise = torch.randn(center.shape, generator=generator, dtype=center.dtype)
            step = scale * noise.to(center.device)
            both = objective.loss(center + step) + objective.loss(center - step)
            rises.append(both / 2 - start)
            say(f"sharpness: {pair + 1} of {pairs} pairs")
    sample = torch.tensor(rises, dtype=torch.float64)
    _finite("sigma", sigma, float(sample.sum()))
    return Sharpness(
        **moments(sample),
        loss=start,
        products=2 * pairs + 1,
        seconds=time.perf_counter() - began,
        settings={"sigma": sigma, "pairs": pairs, "adaptive": adaptive, "seed": seed},
    )


def _positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be positive and finite, got {value}")


def _higher(a: float, b: float) -> float:
    """The larger one; NaN if one is, which `max` may pass over."""
    return math.nan if math.isnan(a + b) else max(a, b)


def _finite(name: str, value: float, loss: float) -> None:
    if not math.isfinite(loss):
        raise ValueError(
            f"{name}={value}: the loss at this distance is {loss}; take a shorter one"
        )


def _unit(vector: Tensor) -> Tensor | None:
    """vector / |vector|; None for zero."""
    length = float(norm(vector))
    return vector / length if length > 0 else None


def _into_ball(vector: Tensor, radius: float) -> Tensor:
    length = float(norm(vector))
    return vector if length <= radius else vector * (radius / length)


def _noise(like: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(
        like.device
    )
