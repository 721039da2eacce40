r"""Matrix sensing: find a matrix of low rank from linear measurements of it.

    X* = U* U*^T                                     U* (d, rank), entries N(0, 1)
    A_i = (B_i + B_i^T)/2,  y_i = <A_i, X*>          i = 1..m, entries of B_i N(0, 1)
    f(U) = 1/(4m) sum_i (<A_i, U U^T> - y_i)^2       U (d, width), width d unless said
    grad f(U) = [ 1/m sum_i (<A_i, U U^T> - y_i) A_i ] U

With width d the matrix is overparametrized: many U have f = 0, and the flat ones are
    near X*. The
public functions:

    problem(d=100, rank=5, m=None, *, seed=0, dtype=torch.float32, device="cpu") ->
    Problem Rule(lr=0.0025, sigma=0.0, k=1, sides=2, init_scale=1.0)
        Rule() is gradient descent, Rule(sigma=0.08, sides=1) one-sided weight noise,
        Rule(sigma=0.08) noise stability optimization (NSO)
    descend(problem, rules, *, epochs=3000, seeds=(0,), width=None, every=1) -> Descent
        .epochs (t,), .train_error, .val_error, .distance (rules, seeds, t), .u the last
        iterates

Source: the experiment is that of Zhang, Li and Ju, "Noise Stability Optimization for
    Finding Flat
Minima: A Hessian-based Regularization Approach", with the sizes and the step of their
    code as
defaults. From a small start gradient descent recovers X* without noise: Li, Ma and
    Zhang,
"Algorithmic Regularization in Over-parameterized Matrix Sensing and Neural Networks
with Quadratic Activations", COLT 2018.

What makes a step fast: A_i and X are symmetric, so both are held as the d(d+1)/2
    numbers of `pack`,
in which a measurement is an inner product and a row of the measurement matrix is plain
N(0, 1) noise; all rules, seeds, draws and sides are columns of one product; each thread
has its own part of the measurements and takes it block by block, each read once for the
residuals and the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, bmm

from flatnb._checks import instance, integer, number, place, sequence, shown

_LARGEST = 1 << 20  # of any size: what is larger has no place in any memory

# Bytes of the measurement matrix that a thread takes at once: few enough to stay in its
# core's own cache (1 MB and more on servers) between the residuals and the gradient.
# From the cache that cores share, a step of NSO takes half as long again.
_BLOCK = 640 * 1024

# Random streams: what is drawn for a start or for noise must not repeat what the
# problem drew. Noise may have several streams: the last.
_PROBLEM, _START, _NOISE = range(3)


@dataclass(frozen=True)
class Problem:
    """A matrix to recover and its measurements; made by `problem`.

    Attributes:
        target: X*, shape (d, d).
        train: shape (m, d(d+1)/2): row i is `pack(A_i)`.
        train_y: y_i, shape (m,).
        val: m measurements of X* that are independent of `train`, packed likewise.
        val_y: shape (m,).
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
        parts, rows = self._cut()
        # The same x for each part of the measurements: each thread sums over a part of
        # its own.
        here = flat.expand(parts, *flat.shape)
        columns = flat.T.contiguous().expand(parts, -1, -1)
        total = flat.new_zeros(here.shape)
        matrix = self.train.view(parts, -1, flat.shape[-1]).split(rows, 1)
        for a, y in zip(
            matrix, self.train_y.view(parts, 1, -1).split(rows, 2), strict=True
        ):
            # Same numbers; MKL is faster the one way for few rows of x, the other for
            # more.
            predicted = bmm(here, a.mT) if len(flat) < 16 else bmm(a, columns).mT
            total.baddbmm_(predicted.sub_(y), a)
        return unpack(total.sum(0).div_(len(self.train)).view(x.shape)) @ u

    def _cut(self) -> tuple[int, int]:
        """Into how many parts the measurements are cut, and how many of each are taken at once."""
        m = len(self.train)
        if self.train.device.type != "cpu":
            return 1, m
        parts = max(i for i in range(1, torch.get_num_threads() + 1) if m % i == 0)
        return parts, max(
            1, _BLOCK // (self.train.shape[1] * self.train.element_size())
        )

    def loss(self, u: Tensor) -> Tensor:
        """f of each matrix in u, shape (..., d, width) -> (...)."""
        return (pack(u @ u.mT) @ self.train.T - self.train_y).square().mean(-1) / 4

    def metrics(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Training error, validation error, normalized distance of each u (..., d,
        width).

        The errors are mean_i (<A_i, U U^T> - y_i)^2 / mean_i y_i^2; the distance is
        ||U U^T - X*||_F^2 / ||X*||_F^2, *squared*, as in the published figures. 1 is
        what U = 0 has in all three.
        """
        x = pack(u @ u.mT)
        train, val = (
            (x @ a.T - y).square().mean(-1) / y.square().mean()
            for a, y in ((self.train, self.train_y), (self.val, self.val_y))
        )
        target = pack(self.target)
        return train, val, (x - target).square().sum(-1) / target.square().sum()


@dataclass(frozen=True)
class Rule:
    """U <- U - lr g(U), where g averages the gradient over k random directions V_j.

        sides=1   g = 1/k sum_j grad f(U + V_j)                          one-sided
        weight noise
        sides=2   g = 1/(2k) sum_j [grad f(U + V_j) + grad f(U - V_j)]   NSO
        V_j entries N(0, sigma^2), fresh each step; with sigma=0, g = grad f(U)

    Attributes:
        lr: step size > 0, in the scale of f above (its factor 1/4).
        sigma: standard deviation of the noise >= 0.
        k: directions a step >= 1.
        sides: 1 or 2.
        init_scale: standard deviation > 0 of the entries of the start.

    Raises:
        ValueError: a value outside these ranges.
    """

    lr: float = 0.0025
    sigma: float = 0.0
    k: int = 1
    sides: int = 2
    init_scale: float = 1.0

    def __post_init__(self) -> None:
        number("lr", self.lr, "a number > 0", 0)
        number("init_scale", self.init_scale, "a number > 0", 0)
        number("sigma", self.sigma, "a number >= 0", 0, closed=True)
        integer("k", self.k)
        if integer("sides", self.sides) > 2:
            raise ValueError(
                f"sides={shown(self.sides)}; allowed: 1 (one-sided noise) or 2 (NSO)"
            )

    @property
    def passes(self) -> int:
        """Gradients a step."""
        return self.k * self.sides if self.sigma else 1


@dataclass(frozen=True)
class Descent:
    """What `descend` saw.

    Attributes:
        epochs: the epochs recorded, shape (t,); 0 is the start.
        train_error: see `Problem.metrics`; shape (rules, seeds, t).
        val_error: likewise.
        distance: likewise.
        u: the last iterates, shape (rules, seeds, d, width).
    """

    epochs: Tensor
    train_error: Tensor
    val_error: Tensor
    distance: Tensor
    u: Tensor


def problem(
    d: int = 100,
    rank: int = 5,
    m: int | None = None,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Problem:
    """Draw a matrix and two independent sets of m measurements, by default of the
    authors' sizes.

    The draws are made in float64 on the CPU, so one seed is one problem in any
    precision and on
    any device. Memory: m d(d+1) numbers, 101 MB at the default size.

    Args:
        d: the matrix is d x d.
        rank: its rank, at most d.
        m: measurements in each set; 5 d rank unless given.
        seed: of the matrix and the measurements.
        dtype: torch.float32 or torch.float64. The final distances of the two agree to a
            percent.
        device: where the problem lies, and `descend` computes.

    Raises:
        ValueError: a size that is no integer >= 1, rank > d, or another dtype.
    """
    for name, value in (("d", d), ("rank", rank), ("m", 1 if m is None else m)):
        integer(name, value, 1, _LARGEST)
    device = place(device)
    if rank > d:
        raise ValueError(
            f"rank={rank} > d={d}; a {d} x {d} matrix has a rank of at most {d}"
        )
    if not isinstance(dtype, torch.dtype) or dtype not in (
        torch.float32,
        torch.float64,
    ):
        raise ValueError(
            f"dtype={shown(dtype)}; allowed: torch.float32 or torch.float64"
        )
    generator = _generator(seed, _PROBLEM)

    rows = 5 * d * rank if m is None else m
    factor = _normal(generator, d, rank)
    target = factor @ factor.T
    # Off the diagonal A_i has variance 1/2, and `pack` multiplies it by sqrt(2): all
    # entries N(0,1)
    parts = [target]
    for _ in ("train", "val"):
        a = _normal(generator, rows, d * (d + 1) // 2)
        parts += [a, a @ pack(target)]
    return Problem(*(part.to(dtype=dtype, device=device) for part in parts))


@torch.no_grad()
def descend(
    problem: Problem,
    rules: Sequence[Rule],
    *,
    epochs: int = 3000,
    seeds: Sequence[int] = (0,),
    width: int | None = None,
    every: int = 1,
) -> Descent:
    """Run each rule from each seed on the problem; all of them share each product.

    An epoch is one step, on all measurements. Rules of one seed start at the same U (to
    their init_scale) and draw the same noise, so they are paired; each member takes the
    steps it would take alone, to rounding. A rule that diverges shows infinite or NaN
    metrics from then on and leaves the others as they are.

    Args:
        problem: see `problem`.
        rules: at least one.
        epochs: steps >= 1.
        seeds: of start and noise; distinct.
        width: columns of U >= 1; d unless given.
        every: record the metrics every so many epochs, and at the last. Recording an
            epoch costs about as much as its step.

    Raises:
        ValueError: no rule, no or repeated seeds, or a count that is no integer in
            range.
    """
    instance("problem", problem, Problem, "a Problem")
    rules = sequence("rules", rules, Rule, "a list of Rule")
    seeds = [
        integer("seeds", seed, 0)
        for seed in sequence("seeds", seeds, object, "integers")
    ]
    if not rules or not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(
            f"{len(rules)} rules and seeds={list(seeds)}; allowed: at least one of each, no seed "
            "twice"
        )
    d = len(problem.target)
    width = d if width is None else width
    epochs, every = integer("epochs", epochs, 1, 1 << 31), integer("every", every)
    width = integer("width", width, 1, _LARGEST)
    members = [(rule, place) for rule in rules for place in range(len(seeds))]
    starts = [_normal(_generator(seed, _START), d, width) for seed in seeds]
    u = torch.stack([rule.init_scale * starts[place] for rule, place in members])
    lr = torch.tensor([rule.lr for rule, _ in members], dtype=u.dtype)[:, None, None]
    owner, draw, weight, share = _points(members, len(seeds))
    u, lr, weight, share = (x.to(problem.target) for x in (u, lr, weight, share))
    owner, draw = owner.to(u.device), draw.to(u.device)
    # A stream for each draw of a step: what one rule sees does not depend on the k of
    # the others.
    draws = max((rule.k for rule in rules if rule.sigma), default=0)
    streams = [_generator(seed, _NOISE + j) for j in range(draws) for seed in seeds]

    recorded = sorted({*range(0, epochs, every), epochs})
    history = []
    for epoch in range(epochs + 1):
        if epoch % every == 0 or epoch == epochs:
            history.append(torch.stack(problem.metrics(u)))
        if epoch == epochs:
            break
        points = u[owner]
        if streams:
            noise = torch.stack([_normal(stream, d, width) for stream in streams]).to(u)
            points += weight * noise[draw]
        u = u - lr * torch.zeros_like(u).index_add_(
            0, owner, share * problem.gradient(points)
        )
    shape = (len(rules), len(seeds))
    train, val, distance = (
        torch.stack(history, dim=-1).double().cpu().view(3, *shape, -1)
    )
    return Descent(
        torch.tensor(recorded), train, val, distance, u.view(*shape, d, width)
    )


def _points(
    members: Sequence[tuple[Rule, int]], seeds: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The points a step takes gradients at, one a pass.

    Returns the member each belongs to, which of the step's draws (a draw of all seeds
    after the other) it is moved by, times what factor, and its share in the member's
    mean gradient.
    """
    owner, draw, weight, share = zip(
        *(
            (i, j * seeds + place, side * rule.sigma, 1 / rule.passes)
            for i, (rule, place) in enumerate(members)
            for j in range(rule.k if rule.sigma else 1)
            for side in ((1, -1)[: rule.sides] if rule.sigma else (0,))
        ),
        strict=True,
    )
    factors = torch.tensor([weight, share], dtype=torch.float64)[:, :, None, None]
    return torch.tensor(owner), torch.tensor(draw), *factors


def pack(x: Tensor) -> Tensor:
    """Symmetric (..., d, d) -> (..., d(d+1)/2), keeping inner products: <x, y> =
    pack(x).pack(y).

    The upper triangle, row by row, entries off the diagonal times sqrt(2).
    """
    if instance("x", x, Tensor, "a tensor").dim() < 2 or x.shape[-1] != x.shape[-2]:
        raise ValueError(f"x has shape {tuple(x.shape)}; allowed: (..., d, d)")
    upper, _, scale, _ = _layout(x.shape[-1], x.dtype, x.device)
    return x.flatten(-2)[..., upper] * scale


def unpack(packed: Tensor) -> Tensor:
    """The inverse of `pack`: (..., d(d+1)/2) -> symmetric (..., d, d)."""
    entries = instance("packed", packed, Tensor, "a tensor (..., d(d+1)/2)").shape[-1]
    d = (math.isqrt(8 * entries + 1) - 1) // 2
    if 2 * entries != d * (d + 1):
        raise ValueError(f"packed has {entries} entries; allowed: d(d+1)/2 of them")
    _, place, _, scale = _layout(d, packed.dtype, packed.device)
    return packed[..., place] * scale


@lru_cache(maxsize=8)
def _layout(
    d: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For pack and unpack: the places of the entries, and their factors."""
    row, col = torch.triu_indices(d, d, device=device)
    place = torch.empty(d, d, dtype=torch.long, device=device)
    place[row, col] = place[col, row] = torch.arange(len(row), device=device)
    root = math.sqrt(2)
    scale = torch.full((len(row),), root, dtype=dtype, device=device)
    scale[row == col] = 1
    return row * d + col, place, scale, (1 / scale)[place]


def _generator(seed: int, stream: int) -> torch.Generator:
    seed = integer("seed", seed, 0)
    state = np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)
