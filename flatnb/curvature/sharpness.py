"""Sharpness: how much the loss rises near w, at worst or on average.

    at worst      max_{|eps / T| <= rho} L(w + eps) - L(w)
    on average    E L(w + sigma T xi) - L(w),    xi ~ N(0, I)

with T = 1, or T = |w| entry by entry in the adaptive versions (Kwon et al. 2021). Only
these are invariant under rescalings of weights that leave the net's function unchanged,
such as W_1 -> c W_1, W_2 -> W_2 / c between ReLUs (Dinh et al. 2017), because eps / T
is. All are invariant under changes of sign and permutations of units.

Measured over the parameters that require a gradient. A number out of range, and a loss
at that distance that is not finite, raise a ValueError.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flatnb._checks import integer, number
from flatnb._nets import along_members
from flatnb._tensors import l2_norm
from flatnb.curvature.objective import Batches, LossFunction, Objective, gaussian
from flatnb.curvature.result import Estimate, moments


@dataclass(frozen=True, kw_only=True, repr=False)
class Sharpness(Estimate):
    """The rise `value` from L(w), `loss`; `products` counts losses and gradients."""

    loss: float

    def summary(self) -> str:
        error = f" ± {self.stderr:.2g}" if self.stderr else ""
        return f"{self.value:.6g}{error} above a loss of {self.loss:.6g}"


def sam_step(
    slopes: Sequence[Tensor], scales: Sequence[Tensor], rho: float
) -> list[Tensor]:
    """rho T^2 g / |T g| per member (leading axes), or 0 where there is no slope."""
    scaled = [t * g for t, g in zip(scales, slopes, strict=True)]
    length = l2_norm(scaled, len(scaled[0]))
    factor = torch.where(length > 0, rho / length, 0.0)
    return [
        t * s * along_members(factor, s) for t, s in zip(scales, scaled, strict=True)
    ]


def worst_sharpness(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Batches,
    rho: float = 0.05,
    *,
    steps: int = 20,
    adaptive: bool = False,
) -> Sharpness:
    """max L(w + eps) - L(w) over `|eps / T| <= rho`, by ascent from SAM's step.

    With 1 step it is the rise that SAM sees: `eps = rho T^2 g / |T g|` (Foret et al.
    2021), and 0 where the gradient is. Further steps are SAM's with lengths falling
    from rho, and back into the ball; where the gradient is zero the first is random.
    The highest loss on the way, w included, is then a lower bound of the maximum.
    Costs `steps` gradients and a loss.

    >>> net = nn.Linear(1, 1, bias=False)
    >>> data = [(torch.ones(1, 1), net(torch.ones(1, 1)).detach())]
    >>> round(worst_sharpness(net, nn.functional.mse_loss, data, rho=0.5).value, 4)
    0.25
    """
    number("rho", rho, "a number > 0", 0)
    integer("steps", steps)
    begin, objective = time.perf_counter(), Objective(model, loss_fn, batches)
    center = objective.vector
    scale = center.abs() if adaptive else torch.ones_like(center)
    lengths = torch.where(scale > 0, scale, 1.0)
    step, losses = torch.zeros_like(center), []
    for i in range(steps):
        loss, slope = objective.gradient(center + step)
        losses.append(loss)
        if i == 0 < steps - 1 and not (scale * slope).any():
            slope = gaussian(center.shape, torch.Generator().manual_seed(0), center)
        (move,) = sam_step([slope[None]], [scale[None]], rho * (1 - i / steps))
        step = step + move[0]
        step = step * (rho / max(rho, float(l2_norm([step / lengths]))))
    losses.append(objective.loss(center + step))
    reached = torch.tensor(losses if steps > 1 else losses[1:], dtype=torch.float64)
    highest = float(reached.max())  # NaN if one is
    _check_finite("rho", rho, highest)
    return Sharpness(
        value=highest - losses[0],
        loss=losses[0],
        products=steps + 1,
        seconds=time.perf_counter() - begin,
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
    seed: int = 0,
) -> Sharpness:
    """E L(w + sigma T xi) - L(w), which is (sigma^2 / 2) tr(T H T) + O(sigma^4).

    The mean over at least 2 pairs of noise of opposite sign, with its `stderr`:
    unbiased, and the slope at w cancels, which would otherwise hide the curvature
    (Zhang, Li and Ju 2024). Costs 2 pairs + 1 losses.

    >>> net = nn.Linear(2, 1)
    >>> data = [(torch.ones(1, 2), net(torch.ones(1, 2)).detach())]
    >>> rise = average_sharpness(net, nn.functional.mse_loss, data, pairs=4)
    >>> rise.value > 0, rise.products
    (True, 9)
    """
    number("sigma", sigma, "a number > 0", 0)
    integer("pairs", pairs, 2)
    begin, objective = time.perf_counter(), Objective(model, loss_fn, batches)
    center = objective.vector
    scale = sigma * (center.abs() if adaptive else torch.ones_like(center))
    generator = torch.Generator().manual_seed(seed)
    start, rises = objective.loss(), []
    for _ in range(pairs):
        step = scale * gaussian(center.shape, generator, center)
        risen = objective.loss(center + step) + objective.loss(center - step)
        rises.append(risen / 2 - start)
    sample = torch.tensor(rises, dtype=torch.float64)
    _check_finite("sigma", sigma, float(sample.sum()))
    return Sharpness(
        **moments(sample),
        loss=start,
        products=2 * pairs + 1,
        seconds=time.perf_counter() - begin,
        settings={"sigma": sigma, "pairs": pairs, "adaptive": adaptive, "seed": seed},
    )


def _check_finite(name: str, value: float, loss: float) -> None:
    if not math.isfinite(loss):
        raise ValueError(
            f"{name}={value}: the loss at this distance is {loss}; take a shorter one"
        )
