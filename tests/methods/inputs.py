"""Families of inputs: nets with batches that every method must handle.

Each function builds the same problem anew at every call. The nets end in a linear layer
named `head` whose output is the logits, so that FAM works on them too.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Net(nn.Module):
    """A body, then the linear layer `head`."""

    def __init__(self, body: nn.Module, features: int, classes: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@dataclass
class Problem:
    """A net and one batch; calling it gives the per-example losses, as a closure
    must.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    loss: Callable[[Tensor, Tensor], Tensor] = lambda z, y: F.cross_entropy(
        z, y, reduction="none"
    )

    def __call__(self) -> Tensor:
        return self.loss(self.model(self.x), self.y)

    @property
    def params(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    @property
    def grads(self) -> list[Tensor | None]:
        return [None if p.grad is None else p.grad.clone() for p in self.params]

    @property
    def statistics(self) -> list[Tensor]:
        return [b.clone() for b in self.model.buffers()]

    def batches(self, steps: int) -> list[Problem]:
        """The same net with `steps` other batches."""
        draw = torch.Generator().manual_seed(3)
        return [
            replace(self, x=torch.randn(self.x.shape, generator=draw).to(self.x))
            for _ in range(steps)
        ]


Make = Callable[[], Problem]


def classification(
    model: Callable[[], nn.Module], shape: tuple[int, ...], n: int = 12
) -> Make:
    def make() -> Problem:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            net = model()
            return Problem(net, torch.randn(n, *shape), torch.arange(n) % 3)

    return make


def _mlp(*extra: nn.Module) -> Net:
    return Net(
        nn.Sequential(nn.Linear(4, 8), *extra, nn.ReLU(), nn.Linear(8, 8), nn.Tanh()),
        8,
        3,
    )


def _conv(conv: type, norm: nn.Module, axes: int) -> Net:
    body = nn.Sequential(conv(2, 4, 3), norm, nn.ReLU(), nn.Flatten())
    return Net(body, 4 * 2**axes, 3)


plain = classification(_mlp, (4,))
noisy = classification(lambda: _mlp(nn.BatchNorm1d(8), nn.Dropout(0.3)), (4,))
double = classification(lambda: _mlp().double(), (4,))


def exact() -> Problem:
    """Float64, tanh and softplus: smooth."""
    problem = double()
    problem.model.body[1] = nn.Softplus()
    problem.x = problem.x.double()
    return problem


typical = {"plain": plain, "batchnorm and dropout": noisy, "float64": exact}

batchnorms = {
    "1d": classification(lambda: _mlp(nn.BatchNorm1d(8)), (4,)),
    "1d, cumulative": classification(
        lambda: _mlp(nn.BatchNorm1d(8, momentum=None)), (4,)
    ),
    "1d, frozen": classification(lambda: _mlp(nn.BatchNorm1d(8).eval()), (4,)),
    "2d": classification(lambda: _conv(nn.Conv2d, nn.BatchNorm2d(4), 2), (2, 4, 4)),
    "3d": classification(lambda: _conv(nn.Conv3d, nn.BatchNorm3d(4), 3), (2, 4, 4, 4)),
    "sync": classification(lambda: _mlp(nn.SyncBatchNorm(8)), (4,)),
    "instance": classification(
        lambda: _conv(nn.Conv2d, nn.InstanceNorm2d(4, track_running_stats=True), 2),
        (2, 4, 4),
    ),
}


# -- degenerate
# -----------------------------------------------------------------------------------


def zero_gradient() -> Problem:
    """Two classes, all parameters and inputs zero, balanced labels: the gradient is
    zero.
    """
    model = Net(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), 4, 2)
    for p in model.parameters():
        nn.init.zeros_(p)
    return Problem(model, torch.zeros(4, 3), torch.tensor([0, 1, 0, 1]))


LEVEL = 0.5


def at_level() -> Problem:
    """Every loss is LEVEL, exactly: the loss is the logit itself."""
    problem = zero_gradient()
    nn.init.constant_(problem.model.head.bias, LEVEL)
    problem.loss = lambda z, y: z.gather(1, y[:, None]).squeeze(1)
    return problem


def confident() -> Problem:
    """Losses underflow to zero, and gradients with them."""
    problem = plain()
    with torch.no_grad():
        problem.model.head.weight.mul_(1e4)
    problem.y = problem.model(problem.x).argmax(1)
    return problem


degenerate = {
    "zero gradient": zero_gradient,
    "one example": classification(_mlp, (4,), n=1),
    "one example, BatchNorm2d": classification(
        lambda: _conv(nn.Conv2d, nn.BatchNorm2d(4), 2), (2, 4, 4), n=1
    ),
    "confident": confident,
}


# -- structures
# -----------------------------------------------------------------------------------


class Tied(nn.Module):
    """One matrix in two places: as two layers that share a parameter, or as one used
    twice.
    """

    def __init__(self, two_layers: bool) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.two_layers = two_layers
        if two_layers:
            self.head.weight = self.first.weight
        else:
            self.head = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x).tanh())


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.core, self.head = (
            kind(3, 5, 2, batch_first=True, dropout=0.2),
            nn.Linear(5, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.core(x)[0][:, -1])


class StochasticDepth(nn.Module):
    """A residual block that runs in every second call, the choice being made on the
    host.
    """

    def __init__(self, starts_with: bool) -> None:
        super().__init__()
        self.first, self.block, self.head = (
            nn.Linear(4, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 3),
        )
        self.used = not starts_with

    def forward(self, x: Tensor) -> Tensor:
        self.used = not self.used
        h = self.first(x).tanh()
        return self.head(h + self.block(h) if self.used else h)


class Checkpointed(nn.Module):
    """BatchNorm and dropout inside a segment that runs again during the backward."""

    def __init__(self, use_reentrant: bool | None) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.segment = nn.Sequential(
            nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 8)
        )
        self.use_reentrant = use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.use_reentrant is None:
            return self.head(self.segment(h))
        with warnings.catch_warnings():
            # NSO's forward without gradient is none of the checkpoint's business.
            warnings.filterwarnings(
                "ignore", message="None of the inputs have requires_grad"
            )
            return self.head(
                checkpoint(self.segment, h, use_reentrant=self.use_reentrant)
            )


class Words(nn.Module):
    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(9, 4, sparse=sparse), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embedding(x).mean(1).tanh())


def words(sparse: bool) -> Problem:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Words(sparse)
        return Problem(model, torch.randint(0, 5, (12, 6)), torch.arange(12) % 3)


def tied(two_layers: bool) -> Problem:
    return classification(lambda: Tied(two_layers), (4,))()


def checkpointed(use_reentrant: bool | None) -> Problem:
    return classification(lambda: Checkpointed(use_reentrant), (4,))()


recurrent = {
    kind.__name__: classification(lambda kind=kind: Recurrent(kind), (6, 3))
    for kind in (nn.LSTM, nn.GRU)
}
