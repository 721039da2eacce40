r"""Matrix sensing: find a matrix of low rank from linear measurements of it.

    X* = U* U*^T                                     U* (d, rank), entries N(0, 1)
    A_i = (B_i + B_i^T)/2,  y_i = <A_i, X*>          i = 1..m, entries of B_i N(0, 1)
    f(U) = 1/(4m) sum_i (<A_i, U U^T> - y_i)^2       U (d, width), by default (d, d)
    grad f(U) = [ 1/m sum_i (<A_i, U U^T> - y_i) A_i ] U

With width d the matrix is overparametrized: many U have f = 0, and the flat ones are
near X*. A_i and X are symmetric, so both are held as the d(d+1)/2 numbers of `pack`, in
which a measurement is an inner product and a row of the measurement matrix N(0, 1) noise.

Sources: Zhang, Li and Ju, "Noise Stability Optimization for Finding Flat Minima: A
Hessian-based Regularization Approach", with the sizes and the step of their code as
defaults; that gradient descent recovers X* from a small start: Li, Ma and Zhang,
"Algorithmic Regularization in Over-parameterized Matrix Sensing and Neural Networks with
Quadratic Activations", COLT 2018.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Bytes of the measurement matrix per block: cached from the residuals to the gradient.
_BLOCK = 640 * 1024

# Random streams that do not overlap; from _NOISE on one per draw of a step's noise.
_PROBLEM, _START, _NOISE = range(3)


@dataclass(frozen=True)
class Problem:
    """A matrix to recover and its measurements; made by `problem`.

    Attributes:
        target: X*, shape (d, d).
        train, val: `pack(A_i)` for i = 1..m, shape (m, d(d+1)/2).
        train_y, val_y: y_i, shape (m,).
    """

    target: Tensor
    train: Tensor
    train_y: Tensor
    val: Tensor
    val_y: Tensor

    def gradient(self, u: Tensor) -> Tensor:
        """grad f at each matrix in u, shape (..., d, width)."""
        x = pack(u @ u.mT)
        flat = x.reshape(-1, x.shape[-1])
        parts = 1
        rows = len(self.train)
        if u.device.type == "cpu":  # each thread takes a part of its own, by blocks
            threads = range(1, torch.get_num_threads() + 1)
            parts = max(n for n in threads if len(self.train) % n == 0)
            rows = max(1, _BLOCK // (flat.shape[-1] * flat.element_size()))
        matrix = self.train.view(parts, -1, flat.shape[-1]).split(rows, 1)
        values = self.train_y.view(parts, 1, -1).split(rows, 2)
        copies = flat.expand(parts, *flat.shape)
        total = flat.new_zeros(copies.shape)
        for a, y in zip(matrix, values, strict=True):
            residuals = torch.bmm(copies, a.mT).sub_(y)
            total.baddbmm_(residuals, a)
        return unpack(total.sum(0).div_(len(self.train)).view(x.shape)) @ u

    def metrics(self, u: Tensor) -> Tensor:
        """Training error, validation error, distance of u (..., d, width), (3, ...).

        The errors are mean_i (<A_i, U U^T> - y_i)^2 / mean_i y_i^2; the distance is
        ||U U^T - X*||_F^2 / ||X*||_F^2, *squared*, as in the published figures. All
        three are 1 at U = 0.
        """
        x, target = pack(u @ u.mT), pack(self.target)
        metrics = []
        for a, y in ((self.train, self.train_y), (self.val, self.val_y)):
            metrics.append((x @ a.T - y).square().mean(-1) / y.square().mean())
        metrics.append((x - target).square().sum(-1) / target.square().sum())
        return torch.stack(metrics)


@dataclass(frozen=True)
class Rule:
    """U <- U - lr g(U), where g averages the gradient over k random directions V_j.

        sigma=0   g = grad f(U): gradient descent
        sides=1   g = 1/k sum_j grad f(U + V_j): weight noise
        sides=2   g = 1/(2k) sum_j [grad f(U + V_j) + grad f(U - V_j)]: NSO

    The entries of V_j are N(0, sigma^2), fresh at each step; those of the start have the
    standard deviation `init_scale`.

    >>> Rule(sigma=0.08, k=2).passes
    4
    """

    lr: float = 0.0025
    sigma: float = 0.0
    k: int = 1
    sides: int = 2
    init_scale: float = 1.0

    @property
    def offsets(self) -> list[tuple[int, float]]:
        """For each gradient of a step the draw of the noise and its factor."""
        signs = (1, -1)[: self.sides]
        noisy = [(j, sign * self.sigma) for j in range(self.k) for sign in signs]
        return noisy if self.sigma else [(0, 0.0)]

    @property
    def passes(self) -> int:
        """Gradients per step."""
        return len(self.offsets)


def problem(
    d: int = 100,
    rank: int = 5,
    m: int | None = None,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Problem:
    """Draw a random problem, the same on each device and in each default dtype of torch.

    `m` measurements are for training, by default 5 d rank, and as many for validation.

    >>> problem(d=10, rank=2).train.shape
    torch.Size([100, 55])
    """
    rows = 5 * d * rank if m is None else m
    generator = _generator(seed, _PROBLEM)
    factor = _normal(generator, d, rank)
    target = factor @ factor.T
    parts = [target]
    # `pack` gives the entries of A_i off the diagonal, of variance 1/2, variance 1.
    for _ in ("train", "val"):
        a = _normal(generator, rows, d * (d + 1) // 2)
        parts += [a, a @ pack(target)]
    return Problem(*(part.to(device, torch.get_default_dtype()) for part in parts))


@torch.no_grad()
def descend(
    problem: Problem,
    rules: Sequence[Rule],
    *,
    epochs: int = 3000,
    seed: int = 0,
    width: int | None = None,
    every: int = 1,
) -> dict[str, Tensor]:
    """Run rules on a problem from one start with the same noise, so they are paired.

    An epoch is one step, on all measurements. A rule takes the steps it would take
    alone, to rounding; one that diverges has infinite or NaN metrics from then on.

    Args:
        seed: of start and noise.
        width: columns of U; d by default.
        every: epochs between two records of the metrics; the last has one, too.

    Returns:
        "epochs", those recorded, (t,), 0 the start; "train_error", "val_error",
        "distance", see `Problem.metrics`, (rules, t); "u", the last, (rules, d, width).

    >>> run = descend(problem(d=10, rank=1), [Rule(), Rule(sigma=0.1)], epochs=20)
    >>> run["distance"].shape
    torch.Size([2, 21])
    """
    d = len(problem.target)
    shape = (d, d if width is None else width)
    start = _normal(_generator(seed, _START), *shape)
    u = torch.stack([rule.init_scale * start for rule in rules]).to(problem.target)
    step = u.new_tensor([rule.lr / rule.passes for rule in rules])[:, None, None]
    rows = [(i, *offset) for i, rule in enumerate(rules) for offset in rule.offsets]
    owners, draws, factors = zip(*rows, strict=True)
    owner = torch.tensor(owners, device=u.device)
    draw = torch.tensor(draws, device=u.device)
    factor = u.new_tensor(factors)[:, None, None]
    # A stream per draw: what one rule sees does not depend on the k of the others.
    streams = [_generator(seed, _NOISE + j) for j in range(max(draws) + 1)]

    recorded = {0, *range(every, epochs, every), epochs}
    history = [problem.metrics(u)]
    for epoch in range(1, epochs + 1):
        noise = torch.stack([_normal(stream, *shape) for stream in streams])
        points = u[owner] + factor * noise.to(u)[draw]
        total = torch.zeros_like(u).index_add_(0, owner, problem.gradient(points))
        u = u - step * total
        if epoch in recorded:
            history.append(problem.metrics(u))
    train, val, distance = torch.stack(history, dim=-1).double().cpu()
    metrics = {"train_error": train, "val_error": val, "distance": distance}
    return {"epochs": torch.tensor(sorted(recorded)), **metrics, "u": u}


def pack(x: Tensor) -> Tensor:
    """Symmetric (..., d, d) -> (..., d(d+1)/2), keeping inner products.

    The upper triangle, row by row, entries off the diagonal times sqrt(2).

    >>> pack(torch.eye(2)).tolist()
    [1.0, 0.0, 1.0]
    """
    d = x.shape[-1]
    row, column = torch.triu_indices(d, d, device=x.device)
    scale = x.new_full(row.shape, math.sqrt(2))
    scale[row == column] = 1
    return x.flatten(-2)[..., row * d + column] * scale


def unpack(packed: Tensor) -> Tensor:
    """The inverse of `pack`: (..., d(d+1)/2) -> symmetric (..., d, d).

    >>> unpack(torch.tensor([1.0, 0.0, 1.0])).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    entries = packed.shape[-1]
    d = (math.isqrt(8 * entries + 1) - 1) // 2
    row, column = torch.triu_indices(d, d, device=packed.device)
    place = packed.new_empty(d, d, dtype=torch.long)
    place[row, column] = place[column, row] = torch.arange(entries, device=row.device)
    scale = packed.new_full((d, d), math.sqrt(2)).fill_diagonal_(1)
    return packed[..., place] * (1 / scale)


def _generator(seed: int, stream: int) -> torch.Generator:
    state = np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)
