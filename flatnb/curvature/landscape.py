"""Slices through the loss surface along a direction, a vector of an `Objective`.

Random directions compare nets of different scale only with filter normalization: every
filter (a row of a weight, all that feeds one unit) gets the norm of the net's, and
biases and normalization parameters stay (Li et al. 2018). Other directions are the
vectors of `top_eigenvalues`. Over a plane, loop over
`objective.loss(w + a * d_1 + b * d_2)`, w = `objective.vector`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from flatnb.curvature.objective import Objective, gaussian


def random_direction(objective: Objective, *, seed: int = 0) -> Tensor:
    """`d_j |w_j| / |d_j|` for each filter j of a Gaussian d, 0 elsewhere, (size,).

    >>> net, data = torch.nn.Linear(3, 2), [(torch.ones(1, 3), torch.zeros(1, 2))]
    >>> objective = Objective(net, torch.nn.functional.mse_loss, data)
    >>> torch.allclose(random_direction(objective)[:6].norm(), net.weight.norm())
    True
    """
    generator = torch.Generator().manual_seed(seed)
    draw = gaussian([objective.size], generator, objective.params[0])
    pieces = []
    for d, w in zip(objective.split(draw), objective.params, strict=True):
        if w.ndim < 2:
            pieces.append(torch.zeros_like(d).reshape(-1))
            continue
        rows, filters = d.flatten(1), w.detach().flatten(1)
        lengths = rows.norm(dim=1, keepdim=True)
        pieces.append((rows / lengths * filters.norm(dim=1, keepdim=True)).reshape(-1))
    return torch.cat(pieces)


def line(
    objective: Objective, direction: Tensor, distances: Tensor | Sequence[float]
) -> Tensor:
    """L(w + t d) at the distances t, (points,), in float64.

    From a net to another: `line(start, end.vector - start.vector, distances)` with the
    `Objective` of each. Running statistics of BatchNorm stay those of `start`.

    >>> net, data = torch.nn.Linear(2, 1), [(torch.ones(1, 2), torch.ones(1, 1))]
    >>> objective = Objective(net, torch.nn.functional.mse_loss, data)
    >>> line(objective, torch.ones(3), [-1, 0, 1]).shape
    torch.Size([3])
    """
    if direction.shape != (objective.size,):
        raise ValueError(
            f"direction is {tuple(direction.shape)}; allowed: a vector "
            f"({objective.size},) in the order of the objective's names"
        )
    center = objective.vector
    direction = direction.to(center)
    steps = torch.as_tensor(distances, dtype=torch.float64).to(center)
    losses = [objective.loss(center + t * direction) for t in steps]
    return torch.tensor(losses, dtype=torch.float64)
