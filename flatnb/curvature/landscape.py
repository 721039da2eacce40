"""Slices through the loss surface: along one direction, or over a plane.

A random direction says nothing across nets whose weights differ in scale. Filter
normalization gives every filter of the direction (a row of a weight, all that feeds one
unit) the norm of the same filter of the net, d_j <- d_j |w_j| / |d_j|, and takes biases
and normalization parameters out (Li et al. 2018). Directions are vectors of an
`Objective`: random ones from here, or those of `top_eigenvalues(operator).vectors` with
`operator.objective`. Losses are in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flatnb.curvature.objective import Objective, gaussian


def random_direction(objective: Objective, *, seed: int = 0) -> Tensor:
    """A Gaussian direction (size,), filter-normalized.

    >>> net, data = torch.nn.Linear(3, 2), [(torch.ones(1, 3), torch.zeros(1, 2))]
    >>> objective = Objective(net, torch.nn.functional.mse_loss, data)
    >>> torch.allclose(random_direction(objective)[:6].norm(), net.weight.norm())
    True
    """
    generator = torch.Generator().manual_seed(seed)
    draw = gaussian([objective.size], generator, objective.params[0])
    return filter_normalized(objective, draw)


def filter_normalized(objective: Objective, direction: Tensor) -> Tensor:
    """`d_j |w_j| / |d_j|` for each filter j; 0 for parameters of one dimension.

    >>> net, data = torch.nn.Linear(2, 1), [(torch.ones(1, 2), torch.zeros(1, 1))]
    >>> objective = Objective(net, torch.nn.functional.mse_loss, data)
    >>> direction = filter_normalized(objective, torch.ones(3))
    >>> torch.allclose(direction.norm(), net.weight.norm())
    True
    """
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
    objective: Objective, direction: Tensor, distances: Tensor | Sequence[float]
) -> Tensor:
    """L(w + t d) at the distances t, (points,).

    From a net to another: `line(start, end.vector - start.vector, distances)` with the
    `Objective` of each. Running statistics of BatchNorm stay those of `start`.

    >>> net, data = torch.nn.Linear(1, 1, bias=False), [(torch.ones(1, 1), torch.ones(1, 1))]
    >>> objective = Objective(net, torch.nn.functional.mse_loss, data)
    >>> line(objective, torch.ones(1), [-1, 0, 1]).shape
    torch.Size([3])
    """
    return _losses(objective, [direction], distances)


def plane(
    objective: Objective,
    first: Tensor,
    second: Tensor,
    distances: Tensor | Sequence[float],
) -> Tensor:
    """L(w + a d_1 + b d_2), a and b each in `distances`, (points, points).

    >>> net, data = torch.nn.Linear(2, 1, bias=False), [(torch.eye(2), torch.ones(2, 1))]
    >>> objective = Objective(net, torch.nn.functional.mse_loss, data)
    >>> plane(objective, *torch.eye(2), [0, 1, 2]).shape
    torch.Size([3, 3])
    """
    return _losses(objective, [first, second], distances)


def _losses(
    objective: Objective, directions: list[Tensor], distances: Tensor | Sequence[float]
) -> Tensor:
    for direction in directions:
        if direction.shape != (objective.size,):
            raise ValueError(
                f"direction is {tuple(direction.shape)}; allowed: a vector "
                f"({objective.size},) in the order of the objective's names"
            )
    axes = [torch.as_tensor(distances, dtype=torch.float64)] * len(directions)
    steps = torch.cartesian_prod(*axes).reshape(-1, len(axes))
    spans = torch.stack([d.to(objective.device, objective.dtype) for d in directions])
    center = objective.vector
    losses = [objective.loss(center + step @ spans) for step in steps.to(spans)]
    return torch.tensor(losses, dtype=torch.float64).reshape([len(a) for a in axes])
