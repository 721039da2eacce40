"""What both sides of the test of DistributedDataParallel run: the processes, and the
reference.
"""

from __future__ import annotations

from collections.abc import Callable

import inputs
import torch
from inputs import Problem
from torch import nn

from flatnb.ensemble import Ensemble
from flatnb.methods import (
    ERM,
    FAM,
    GNP,
    GSAM,
    NSO,
    RSAM,
    SAM,
    Flooding,
    FriendlySAM,
    IFlood,
    LookSAM,
    Method,
    SoftAD,
    WeightNoise,
    compose,
)
from flatnb.metrics import cross_entropy

STEPS, RANKS = 3, 2

# Means over examples: as one process with the whole batch.
MEANS: dict[str, Callable[[], Method]] = {
    "ERM": ERM,
    "IFlood": lambda: IFlood(0.9),
    "SoftAD": lambda: SoftAD(0.5),
    "NSO": lambda: NSO(0.05, 2),
    "WeightNoise": lambda: WeightNoise(0.05),
    "FAM": lambda: FAM(0.1),
}
# Each process has its own flood level side and its own perturbation.
OWN: dict[str, Callable[[], Method]] = {
    "Flooding": lambda: Flooding(1.0),
    "SAM": lambda: SAM(0.1),
    "GNP": lambda: GNP(0.1, 0.8),
    "RSAM": lambda: RSAM(0.1),
    "SoftAD, SAM": lambda: compose(SoftAD(0.5), SAM(0.1)),
    "FriendlySAM": lambda: FriendlySAM(0.1),
}
# Averaged at the end, not in the last pass.
COMBINED: dict[str, Callable[[], Method]] = {
    "GSAM": lambda: GSAM(0.1, 0.3),
    "LookSAM": lambda: LookSAM(0.1, 2),
}
METHODS = {**MEANS, **OWN, **COMBINED}


def batchnorm() -> Problem:
    problem = inputs.classification(
        lambda: inputs._mlp(nn.BatchNorm1d(8)).double(), (4,)
    )()
    problem.x = problem.x.double()
    return problem


def ensemble() -> Problem:
    model = Ensemble(lambda: inputs._mlp().body, 3).double()
    return Problem(model, inputs.exact().x, torch.arange(12) % 3, cross_entropy)


def stochastic_depth() -> Problem:
    problem = inputs.classification(
        lambda: inputs.StochasticDepth(True).double(), (4,)
    )()
    problem.x = problem.x.double()
    return problem


def share(batch: Problem, rank: int, ranks: int = RANKS) -> Problem:
    return Problem(batch.model, batch.x[rank::ranks], batch.y[rank::ranks], batch.loss)


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
