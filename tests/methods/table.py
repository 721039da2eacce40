"""One row per method: which values its hyperparameters are tried at, and what it holds.

The shared tests (properties, memory, schedules, checks of values, fuzzed closures) read
this table. A new method gets a row here, and a test of its own formula.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import properties as p
import torch
from inputs import LEVEL

from flatnb.methods import (
    ASAM,
    ERM,
    FAM,
    GNP,
    GSAM,
    NSO,
    RSAM,
    SAM,
    USAM,
    AdaFlood,
    Every,
    Flooding,
    FriendlySAM,
    IFlood,
    Linear,
    LookSAM,
    Method,
    SoftAD,
    WeightNoise,
    compose,
)
from flatnb.methods.method import Hyperparameter

CONTRACT = (
    p.assert_parameters_restored,
    p.assert_gradients_accumulate,
    p.assert_one_pass_a_closure_call,
    p.assert_returns_plain_loss,
    p.assert_batchnorm_updated_once,
    p.assert_same_masks,
    p.assert_noise_leaves_global_stream,
    p.assert_finite_on_degenerate_input,
    p.assert_overflow_is_skipped,
    p.assert_stochastic_depth_restored,
    p.assert_errors_undone,
    p.assert_resumes,
    p.assert_lr_zero_changes_nothing,
    p.assert_autocast_agrees,
    p.assert_scaler_scales,
    p.assert_frozen_left_alone,
    p.assert_tied_count_once,
    p.assert_sparse_is_dense,
    p.assert_checkpointing_changes_nothing,
)
ALL = (*CONTRACT, p.assert_compiled_is_eager, p.assert_members_fail_alone)
LEVELED = (*ALL, p.assert_finite_at_level)


@dataclass(frozen=True)
class Row:
    """A method, and what is tried with it.

    Attributes:
        kind: its class.
        settings: the values of its hyperparameters. Each real one is also tried as a
            schedule, and as one value per member, from this one to three times it.
        tensors: parameter-sized tensors that it may hold while a pass runs.
        holds: the properties that hold.
    """

    kind: Callable[..., Method]
    settings: dict[str, Any] = field(default_factory=dict)
    tensors: int | None = None
    holds: tuple[Callable, ...] = LEVELED

    def __call__(self) -> Method:
        return self.kind(**copy.deepcopy(self.settings))

    def reals(self) -> list[str]:
        """The names of its real hyperparameters."""
        return [
            name
            for name, value in vars(self()).items()
            if isinstance(inspect.getattr_static(self.kind, name, None), Hyperparameter)
            and isinstance(value, float)
        ]


class Selecting(AdaFlood):
    """AdaFlood that selects the batches it gets."""

    def __init__(self) -> None:
        super().__init__(torch.full((99,), LEVEL))

    def objective(self, losses: torch.Tensor) -> torch.Tensor:
        self.select(torch.arange(losses.shape[-1]))
        return super().objective(losses)


_AT_LEVEL = (p.assert_finite_at_level,)

ROWS: dict[str, Row] = {
    "ERM": Row(ERM, tensors=0),
    "Flooding": Row(Flooding, {"level": 0.9}),
    "IFlood": Row(IFlood, {"level": 1.0}),
    "AdaFlood": Row(Selecting),
    "SoftAD": Row(SoftAD, {"theta": 0.9, "sigma": 0.3}),
    "SAM": Row(SAM, {"rho": 0.1}, tensors=1),
    "ASAM": Row(ASAM, {"rho": 0.5, "eta": 0.05}, tensors=1),
    "USAM": Row(USAM, {"rho": 0.1}, tensors=1),
    "RSAM": Row(RSAM, {"rho": 0.1, "sigma": 0.05, "lam": 0.5}, tensors=1),
    "LookSAM": Row(LookSAM, {"rho": 0.1, "k": 2, "alpha": 0.3}, tensors=2),
    "GSAM": Row(GSAM, {"rho": 0.1, "alpha": 0.3}, tensors=2),
    "FriendlySAM": Row(FriendlySAM, {"rho": 0.1, "lam": 0.2, "sigma": 0.6}, tensors=2),
    "GNP": Row(GNP, {"r": 0.1, "alpha": 0.3}, tensors=2),
    "NSO": Row(NSO, {"sigma": 0.02, "k": 2}, tensors=2),
    "WeightNoise": Row(WeightNoise, {"sigma": 0.02, "k": 1}, tensors=1),
    # FAM of cross-entropy is refused on other losses, as those exactly at a level are.
    "FAM": Row(FAM, {"lam": 0.05}, holds=ALL),
    "Every": Row(Every, {"method": SAM(0.1), "k": 2}),
}


def two_radii(name: str, *_: object) -> float:
    return 2.0 if "weight" in name else 0.5


# Other settings of the same methods, and methods that are joined.
VARIANTS: dict[str, Row] = {
    "Flooding at the level": Row(lambda: Flooding(LEVEL), holds=_AT_LEVEL),
    "IFlood at the level": Row(lambda: IFlood(LEVEL), holds=_AT_LEVEL),
    "SoftAD at the level": Row(lambda: SoftAD(LEVEL, 0.3), holds=_AT_LEVEL),
    "SAM, rising": Row(lambda: SAM(Linear(0.05, 0.2, 12))),
    "SAM, two radii": Row(lambda: SAM(0.1, perturb=two_radii)),
    "RSAM, two radii": Row(lambda: RSAM(0.1, perturb=two_radii)),
    "NSO, two radii": Row(lambda: NSO(0.02, 2, perturb=two_radii)),
    "GNP, normalized": Row(lambda: GNP(0.1, 0.8, normalize=True)),
    "WeightNoise, 3": Row(lambda: WeightNoise(0.02, 3), tensors=2),
    "NSO, 3": Row(lambda: NSO(0.02, 3), tensors=2, holds=()),
    "SoftAD, SAM": Row(lambda: compose(SoftAD(LEVEL), SAM(0.1))),
    "Flooding, NSO": Row(lambda: compose(Flooding(LEVEL), NSO(0.02))),
    "FAM, SAM": Row(lambda: compose(FAM(0.05), SAM(0.1)), holds=CONTRACT),
}
METHODS = {**ROWS, **VARIANTS}
# (row, name of a real hyperparameter)
REALS = [(name, real) for name, row in METHODS.items() for real in row.reals()]
