"""Slices through the loss surface: along one direction, over a plane, and between two
minima.

A random direction says nothing across nets whose weights differ in scale. Filter
normalisation gives every filter (a row of a weight, all that feeds one unit) of the
direction the norm of the same filter of the net, d_j <- d_j |w_j| / |d_j|, and takes
biases and normalisation parameters out (Li et al. 2018). Directions are vectors of an
`Objective`: random ones from here, eigenvectors from
    `top_eigenvalues(operator, k).vectors` with `operator.objective`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flatnb.curvature.objective import Batches, LossFunction, Objective, Selection
from flatnb.curvature.result import Progress, ProgressCallback, Result


@dataclass(frozen=True, kw_only=True, repr=False)
class Slice(Result):
    """Losses on a line or a plane. `products` counts evaluations of the loss over all
    data.

    Attributes:
        axes: Distances along each direction, (points,) each.
        losses: (points,) or (points of the first, points of the second axis), float64.
    """

    axes: tuple[Tensor, ...]
    losses: Tensor

    def summary(self) -> str:
        shape = " x ".join(str(len(axis)) for axis in self.axes)
        low, high = float(self.losses.min()), float(self.losses.max())
        return f"{shape} losses from {low:.4g} to {high:.4g}"

    @property
    def barrier(self) -> float:
        """Highest rise of a line above the straight line between the losses at its ends."""
        if len(self.axes) != 1:
            raise ValueError("a barrier is defined on a line, not on a plane")
        (t,) = self.axes
        share = (t - t[0]) / (t[-1] - t[0])
        chord = (1 - share) * self.losses[0] + share * self.losses[-1]
        return float((self.losses - chord).max())


def random_direction(
    objective: Objective, *, seed: int = 0, normalised: bool = True
) -> Tensor:
    """A Gaussian direction (size,), filter-normalised unless asked otherwise."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(objective.size, generator=generator, dtype=objective.dtype)
    draw = draw.to(objective.device)
    return filter_normalised(objective, draw) if normalised else draw


def filter_normalised(objective: Objective, direction: Tensor) -> Tensor:
    """d_j |w_j| / |d_j| for each filter j; 0 for parameters of fewer than two
    dimensions.

    Raises:
        ValueError: A direction of another size.
    """
    _check(objective, direction)
    pieces = []
    for d, w in zip(objective.split(direction), objective.params, strict=True):
        if w.ndim < 2:
            pieces.append(torch.zeros_like(d).reshape(-1))
            continue
        rows, filters = d.flatten(1), w.detach().flatten(1)
        lengths = rows.norm(dim=1, keepdim=True).clamp(min=torch.finfo(d.dtype).tiny)
        pieces.append((rows / lengths * filters.norm(dim=1, keepdim=True)).reshape(-1))
    return torch.cat(pieces)


def line(
    objective: Objective,
    direction: Tensor,
    distances: Tensor | Sequence[float],
    *,
    progress: ProgressCallback | None = None,
) -> Slice:
    """L(w + t d) at the distances t.

    Raises:
        ValueError: A direction of another size.
    """
    return _slice(objective, [direction], [distances], progress)


def plane(
    objective: Objective,
    first: Tensor,
    second: Tensor,
    distances: Tensor | Sequence[float],
    others: Tensor | Sequence[float] | None = None,
    *,
    progress: ProgressCallback | None = None,
) -> Slice:
    """L(w + a d_1 + b d_2) for a in `distances` and b in `others` (None: the same).

    Raises:
        ValueError: A direction of another size.
    """
    axes = [distances, distances if others is None else others]
    return _slice(objective, [first, second], axes, progress)


def between(
    start: nn.Module,
    end: nn.Module,
    loss_fn: LossFunction,
    batches: Batches,
    points: int = 21,
    *,
    params: Selection | None = None,
    progress: ProgressCallback | None = None,
) -> Slice:
    """L((1 - t) w_0 + t w_1) for t from 0 to 1: `.barrier` is zero between connected
    minima.

    Buffers such as running statistics are interpolated too; between minima far apart
    those of a BatchNorm fit no net in the middle, which then shows as a barrier.
    `params` restricts the move to some parameters, the others and the buffers staying
    those of `start`.

    Raises:
        ValueError: Models with different parameters or buffers; fewer than two points.
    """
    if points < 2:
        raise ValueError(f"points must be at least 2, got {points}")
    data, began = list(batches), time.perf_counter()
    one = Objective(start, loss_fn, data, params)
    two = Objective(end, loss_fn, data, params)
    if one.shapes != two.shapes:
        raise ValueError(
            "the two models differ in parameters or buffers: they must be the same net, trained "
            "or not"
        )
    distances, losses = torch.linspace(0, 1, points, dtype=torch.float64), []
    with Progress(progress) as say:
        for t in distances.tolist():
            buffers = one.mixed_buffers(two, t) if params is None else None
            losses.append(one.loss(torch.lerp(one.vector, two.vector, t), buffers))
            say(f"between: {len(losses)} of {points} points")
    return Slice(
        axes=(distances,),
        losses=torch.tensor(losses, dtype=torch.float64),
        products=points,
        seconds=time.perf_counter() - began,
        settings={"points": points},
    )


def _slice(
    objective: Objective,
    directions: list[Tensor],
    distances: list[Tensor | Sequence[float]],
    progress: ProgressCallback | None,
) -> Slice:
    for direction in directions:
        _check(objective, direction)
    began = time.perf_counter()
    axes = tuple(torch.as_tensor(d, dtype=torch.float64).reshape(-1) for d in distances)
    steps = torch.cartesian_prod(*axes).reshape(-1, len(axes))
    spans = torch.stack([d.to(objective.device, objective.dtype) for d in directions])
    center, losses = objective.vector, []
    with Progress(progress) as say:
        for step in steps.to(center.device, center.dtype):
            losses.append(objective.loss(center + step @ spans))
            say(f"landscape: {len(losses)} of {len(steps)} points")
    return Slice(
        axes=axes,
        losses=torch.tensor(losses, dtype=torch.float64).reshape(
            [len(axis) for axis in axes]
        ),
        products=len(steps),
        seconds=time.perf_counter() - began,
    )


def _check(objective: Objective, direction: Tensor) -> None:
    if direction.shape != (objective.size,):
        raise ValueError(
            f"a direction is a vector ({objective.size},) in the order of the objective's names, "
            f"got {tuple(direction.shape)}"
        )
