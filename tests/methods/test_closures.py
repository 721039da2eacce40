"""Closures as people write them, around nets of every kind: no habit changes a step.

Random nets (norms, spectral and weight norm, buffers of one's own, tied and frozen
weights) meet random habits (`zero_grad`, several nets and a loss's own weights, two
forwards, losses that are one number). The references are the same method with a closure
that only computes, one plain forward pass for what it leaves in buffers and streams,
and formulas over nets that are built anew for each pass.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import inputs
import pytest
import torch
import torch.nn.functional as F
from properties import assert_close, identical
from table import METHODS
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm

from flatnb.methods import (
    ERM,
    GNP,
    NSO,
    SAM,
    USAM,
    Method,
    WeightNoise,
)
from flatnb.methods.noise import Stream, rademacher

# -- layers that write in their forward
# -----------------------------------------------------------


class Queue(nn.Module):
    """Compares with features of earlier batches, then stores those of this one."""

    def __init__(self, features: int, size: int = 24) -> None:
        super().__init__()
        self.register_buffer("queue", torch.randn(size, features))
        self.register_buffer("at", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        y = x + 0.1 * (x @ self.queue.clone().t()).softmax(-1) @ self.queue.clone()
        rows = (torch.arange(len(x)) + self.at) % len(self.queue)
        self.queue[rows] = x.detach()
        self.at += len(x)
        return y


class Counter(nn.Module):
    """Scales by the number of calls, held in a tensor that is a new one each time."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("unused", torch.randn(features, features))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return x * (1 + 0.3 * self.calls)


class ActNorm(nn.Module):
    """Sets its own parameters from the first batch."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(features))
        self.register_buffer("ready", torch.tensor(False))

    def forward(self, x: Tensor) -> Tensor:
        if not self.ready:
            self.shift.data.copy_(-x.detach().mean(0))
            self.ready.fill_(True)
        return x + self.shift


class Shared(nn.Module):
    """One layer at two places."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.first = self.second = nn.Linear(features, features)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())


def frozen(layer: nn.Module) -> nn.Module:
    return layer.requires_grad_(False)


FEATURES = 6
LAYERS: list[Callable[[], nn.Module]] = [
    lambda: nn.BatchNorm1d(FEATURES),
    lambda: nn.BatchNorm1d(FEATURES, momentum=None),
    lambda: nn.BatchNorm1d(FEATURES).eval(),
    lambda: nn.LayerNorm(FEATURES),
    lambda: nn.GroupNorm(2, FEATURES),
    lambda: nn.Dropout(0.3),
    lambda: spectral_norm(nn.Linear(FEATURES, FEATURES)),
    lambda: parametrizations.spectral_norm(nn.Linear(FEATURES, FEATURES)),
    lambda: parametrizations.weight_norm(nn.Linear(FEATURES, FEATURES)),
    lambda: frozen(nn.Linear(FEATURES, FEATURES)),
    lambda: Queue(FEATURES),
    lambda: Counter(FEATURES),
    lambda: ActNorm(FEATURES),
    lambda: Shared(FEATURES),
]


class Case:
    """A net with a batch, built from a seed: the same at every call of `Case(seed)`."""

    def __init__(self, seed: int) -> None:
        draw = random.Random(seed)
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Linear(4, FEATURES)]
        for make in draw.choices(LAYERS, k=draw.randint(1, 4)):
            layers += [make(), nn.Tanh()]
        net = inputs.Net(nn.Sequential(*layers), FEATURES, 3)
        rest = nn.ParameterList([nn.Parameter(torch.ones(()))])
        self.model = nn.ModuleList([net, nn.Linear(4, 1), rest]).double()
        self.x, self.y = torch.randn(8, 4).double(), torch.arange(8) % 3
        self.draw = draw
        self.noisy = draw.random() < 0.5
        # What FAM's closed form has no room for.
        self.added = draw.random() < 0.5  # another net adds to the loss
        self.scaled = draw.random() < 0.3
        self.twice = draw.random() < 0.2
        self.single = draw.random() < 0.2

    def simple(self) -> Case:
        self.added = self.scaled = self.twice = self.single = False
        return self

    def __call__(self) -> Tensor:
        net, other, (scale,) = self.model
        x = self.x + 0.1 * torch.rand_like(self.x) if self.noisy else self.x
        losses = F.cross_entropy(net(x), self.y, reduction="none")
        if self.twice:
            losses = losses + F.cross_entropy(net(0.5 * x), self.y, reduction="none")
        if self.added:
            losses = losses + other(x).squeeze(1).square()
        if self.scaled:
            losses = losses * (-scale).exp() + scale
        return losses.mean() if self.single else losses

    def state(self) -> list[Tensor]:
        tensors = [
            *self.model.buffers(),
            *self.model.parameters(),
            torch.get_rng_state(),
        ]
        return [t.detach().clone() for t in tensors]

    def grads(self) -> list[Tensor | None]:
        params = self.model.parameters()
        return [None if p.grad is None else p.grad.clone() for p in params]


def habits(case: Case, optimizer: torch.optim.Optimizer) -> list[Callable[[], None]]:
    return [
        lambda: case.model.zero_grad(set_to_none=True),
        lambda: case.model.zero_grad(set_to_none=False),
        lambda: optimizer.zero_grad(set_to_none=True),
        lambda: optimizer.zero_grad(set_to_none=False),
    ]


def step(
    make: Callable[[], Method], seed: int, simple: bool, *, clearing: bool
) -> tuple:
    """Gradients, what is returned, and the state afterwards, of two steps."""
    case = Case(seed).simple() if simple else Case(seed)
    optimizer = torch.optim.SGD(case.model.parameters(), 0.1)
    before, after = case.draw.choices(habits(case, optimizer), k=2)
    weight, scale = case.draw.choice([1.0, 0.25]), case.draw.choice([None, 256.0])
    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
    if case.draw.random() < 0.5:
        for p in case.model.parameters():
            if p.requires_grad:
                p.grad = torch.full_like(p, 0.5)

    def closure() -> Tensor:
        if clearing:
            before()
        losses = case()
        if clearing:
            after()
        return losses

    method, values = make(), []
    for n in range(2):
        torch.manual_seed(n)
        values.append(
            method.backward(case.model, closure, weight=weight, scaler=scaler)
        )
    return case.grads(), values, case.state()


FUZZED: dict[str, Callable[[], Method]] = {
    name: row for name, row in METHODS.items() if len(row.holds) > 1
}


@pytest.mark.parametrize("name", FUZZED)
def test_zero_grad_in_the_closure_changes_nothing(name: str, seeds: range) -> None:
    for seed in seeds:
        make, simple = FUZZED[name], "FAM" in name
        plain = step(make, seed, simple, clearing=False)
        cleared = step(make, seed, simple, clearing=True)
        for a, b in zip(plain, cleared, strict=True):
            assert identical(a, b), f"seed {seed}"


@pytest.mark.parametrize("name", FUZZED)
def test_buffers_and_streams_end_as_after_one_forward_at_w(
    name: str, seeds: range
) -> None:
    for seed in seeds:
        case, twin = Case(seed), Case(seed)
        if "FAM" in name:
            case.simple(), twin.simple()
        method = FUZZED[name]()
        for n in range(2):
            torch.manual_seed(n)
            twin()
            expected = twin.state()
            torch.manual_seed(n)
            method.backward(case.model, case)
            assert identical(case.state(), expected), f"seed {seed}"


@pytest.fixture
def seeds(request: pytest.FixtureRequest) -> range:
    return range(8)


@pytest.mark.slow
@pytest.mark.parametrize("name", FUZZED)
def test_many_nets(name: str) -> None:
    test_zero_grad_in_the_closure_changes_nothing(name, range(8, 250))
    test_buffers_and_streams_end_as_after_one_forward_at_w(name, range(8, 250))


# -- formulas, each pass on a net that was built for it
# -------------------------------------------


def slope(seed: int, shifts: list[Tensor] | None = None) -> list[Tensor]:
    """The gradient of the mean loss at w + shifts."""
    case = Case(seed)
    with torch.no_grad():
        for p, s in zip(trainable(case), shifts or [], strict=bool(shifts)):
            p += s
    torch.manual_seed(1)
    leaves = trainable(case)
    return list(torch.autograd.grad(case().mean(), leaves, materialize_grads=True))


def trainable(case: Case) -> list[Tensor]:
    return [p for p in case.model.parameters() if p.requires_grad]


def uphill(seed: int, rho: float, normalised: bool) -> list[Tensor]:
    g = slope(seed)
    norm = (
        torch.stack([t.square().sum() for t in g]).sum().sqrt() if normalised else 1.0
    )
    return [rho * t / norm for t in g]


def noise(seed: int, count: int) -> Iterator[list[Tensor]]:
    stream, params = Stream(3, rademacher), trainable(Case(seed))
    return ([0.05 * u for u in stream.draw(params)] for _ in range(count))


def average(terms: list[list[Tensor]]) -> list[Tensor]:
    return [torch.stack(t).mean(0) for t in zip(*terms, strict=True)]


def gnp(seed: int) -> list[Tensor]:
    first, second = slope(seed), slope(seed, uphill(seed, 0.1, True))
    return [0.3 * a + 0.7 * b for a, b in zip(first, second, strict=True)]


def both_sides(seed: int) -> list[Tensor]:
    sides = [side for u in noise(seed, 2) for side in (u, [-t for t in u])]
    return average([slope(seed, side) for side in sides])


FORMULAS: dict[str, tuple[Callable[[], Method], Callable[[int], list[Tensor]]]] = {
    "ERM": (ERM, slope),
    "SAM": (lambda: SAM(0.1), lambda seed: slope(seed, uphill(seed, 0.1, True))),
    "USAM": (lambda: USAM(0.1), lambda seed: slope(seed, uphill(seed, 0.1, False))),
    "GNP": (lambda: GNP(0.1, 0.7), gnp),
    "NSO": (lambda: NSO(0.05, 2, noise=rademacher, seed=3), both_sides),
    "WeightNoise": (
        lambda: WeightNoise(0.05, 3, noise=rademacher, seed=3),
        lambda seed: average([slope(seed, u) for u in noise(seed, 3)]),
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_every_pass_starts_from_the_same_state(name: str) -> None:
    make, formula = FORMULAS[name]
    for seed in range(12):
        case = Case(seed)
        torch.manual_seed(1)
        make().backward(case.model, case)
        # The formula's first forward sets these from the batch; each net of its own
        # sets them after it was moved.
        if any(isinstance(layer, ActNorm) for layer in case.model.modules()):
            continue
        found = [
            torch.zeros_like(p) if p.grad is None else p.grad for p in trainable(case)
        ]
        assert_close(found, formula(seed), 1e-9)
