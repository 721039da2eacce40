"""Each method with the properties that hold for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from inputs import LEVEL
from properties import (
    Maker,
    assert_autocast_agrees,
    assert_batchnorm_updated_once,
    assert_checkpointing_changes_nothing,
    assert_compiled_is_eager,
    assert_ensemble_is_separate,
    assert_errors_undone,
    assert_finite_at_level,
    assert_finite_on_degenerate_input,
    assert_frozen_left_alone,
    assert_gradients_accumulate,
    assert_lr_zero_changes_nothing,
    assert_members_fail_alone,
    assert_noise_leaves_global_stream,
    assert_one_pass_a_closure_call,
    assert_overflow_is_skipped,
    assert_parameters_restored,
    assert_resumes,
    assert_returns_plain_loss,
    assert_same_masks,
    assert_scaler_scales,
    assert_sparse_is_dense,
    assert_stochastic_depth_restored,
    assert_tied_count_once,
)

from flatnb import methods
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

CONTRACT = (
    assert_parameters_restored,
    assert_gradients_accumulate,
    assert_one_pass_a_closure_call,
    assert_returns_plain_loss,
    assert_batchnorm_updated_once,
    assert_same_masks,
    assert_noise_leaves_global_stream,
    assert_finite_on_degenerate_input,
    assert_overflow_is_skipped,
    assert_stochastic_depth_restored,
    assert_errors_undone,
    assert_resumes,
    assert_lr_zero_changes_nothing,
    assert_autocast_agrees,
    assert_scaler_scales,
    assert_frozen_left_alone,
    assert_tied_count_once,
    assert_sparse_is_dense,
    assert_checkpointing_changes_nothing,
)
ALL = (*CONTRACT, assert_compiled_is_eager, assert_members_fail_alone)
LEVELLED = (*ALL, assert_finite_at_level)


class Told(AdaFlood):
    """AdaFlood that is told of the batches it gets."""

    def __init__(self) -> None:
        super().__init__(torch.full((99,), LEVEL))

    def objective(self, losses: torch.Tensor) -> torch.Tensor:
        self.select(torch.arange(losses.shape[-1]))
        return super().objective(losses)


def two_radii(name: str, *_: object) -> float:
    return 2.0 if "weight" in name else 0.5


METHODS: dict[str, tuple[Maker, tuple[Callable[[Maker], None], ...]]] = {
    "ERM": (ERM, LEVELLED),
    "Flooding": (lambda: Flooding(LEVEL), LEVELLED),
    "IFlood": (lambda: IFlood(LEVEL), LEVELLED),
    "AdaFlood": (Told, LEVELLED),
    "SoftAD": (lambda: SoftAD(LEVEL, 0.3), LEVELLED),
    "SAM": (lambda: SAM(0.1), LEVELLED),
    "ASAM": (lambda: ASAM(0.5), LEVELLED),
    "USAM": (lambda: USAM(0.1), LEVELLED),
    "RSAM": (lambda: RSAM(0.1), LEVELLED),
    "LookSAM": (lambda: LookSAM(0.1, 3), LEVELLED),
    "GSAM": (lambda: GSAM(0.1, 0.3), LEVELLED),
    "FriendlySAM": (lambda: FriendlySAM(0.1), LEVELLED),
    "SAM, every other": (lambda: Every(SAM(0.1), 2), LEVELLED),
    "SAM, rising": (lambda: SAM(Linear(0.05, 0.2, 12)), LEVELLED),
    "SAM, two radii": (lambda: SAM(0.1, perturb=two_radii), LEVELLED),
    "RSAM, two radii": (lambda: RSAM(0.1, perturb=two_radii), LEVELLED),
    "NSO, two radii": (lambda: NSO(0.02, 2, perturb=two_radii), LEVELLED),
    "GNP": (lambda: GNP(0.1, 0.8), LEVELLED),
    "GNP, normalised": (lambda: GNP(0.1, 0.8, normalize=True), LEVELLED),
    "NSO": (lambda: NSO(0.02, 2), LEVELLED),
    "WeightNoise": (lambda: WeightNoise(0.02), LEVELLED),
    "WeightNoise, 3": (lambda: WeightNoise(0.02, 3), LEVELLED),
    "SoftAD, SAM": (lambda: compose(SoftAD(LEVEL), SAM(0.1)), LEVELLED),
    "Flooding, NSO": (lambda: compose(Flooding(LEVEL), NSO(0.02)), LEVELLED),
    # FAM of cross-entropy is refused on other losses, as those exactly at a level are.
    "FAM": (lambda: FAM(0.05), ALL),
    "FAM, any loss": (lambda: FAM(0.05, loss="auto"), LEVELLED),
    # Layer names differ inside an Ensemble, a compiled graph refuses the double
    # backward, and a checkpoint with BatchNorm in it the third
    # (tests/methods/test_fam.py).
    "FAM, estimate": (
        lambda: FAM(0.05, layer="head"),
        (
            *(p for p in CONTRACT if p is not assert_checkpointing_changes_nothing),
            assert_finite_at_level,
        ),
    ),
    "FAM, SAM": (lambda: compose(FAM(0.05), SAM(0.1)), CONTRACT),
}

# A hyperparameter given as one value a member, and the smallest of these.
PER_MEMBER: dict[str, tuple[Callable[[torch.Tensor | float], object], float]] = {
    "Flooding": (Flooding, 0.4),
    "IFlood": (IFlood, 0.4),
    "SoftAD theta": (SoftAD, 0.4),
    "SoftAD sigma": (lambda v: SoftAD(0.5, v), 0.1),
    "SAM": (SAM, 0.1),
    "ASAM rho": (ASAM, 0.1),
    "ASAM eta": (lambda v: ASAM(0.2, v), 0.01),
    "USAM": (USAM, 0.1),
    "RSAM rho": (lambda v: RSAM(rho=v), 0.1),
    "RSAM sigma": (lambda v: RSAM(sigma=v), 0.01),
    "RSAM lam": (lambda v: RSAM(lam=v), 0.5),
    "LookSAM rho": (lambda v: LookSAM(v, 2), 0.1),
    "LookSAM alpha": (lambda v: LookSAM(0.1, 3, v), 0.3),
    "GSAM rho": (GSAM, 0.1),
    "GSAM alpha": (lambda v: GSAM(0.2, v), 0.2),
    "FriendlySAM rho": (FriendlySAM, 0.1),
    "FriendlySAM lam": (lambda v: FriendlySAM(0.2, v), 0.3),
    "FriendlySAM sigma": (lambda v: FriendlySAM(0.2, 0.9, v), 0.3),
    "SAM, every other": (lambda v: Every(SAM(v), 2), 0.1),
    "GNP r": (lambda v: GNP(v, 0.8), 0.05),
    "GNP alpha": (lambda v: GNP(0.1, v), 0.3),
    "NSO": (NSO, 0.01),
    "WeightNoise": (WeightNoise, 0.01),
    "SoftAD, SAM": (lambda v: compose(SoftAD(v), SAM(v)), 0.1),
    "FAM": (FAM, 0.05),
    "FAM, any loss": (lambda v: FAM(v, loss="auto"), 0.05),
    "FAM, SAM": (lambda v: compose(FAM(v), SAM(v)), 0.05),
}


def test_every_method_is_tried() -> None:
    tried = {type(make()) for make, _ in METHODS.values()}
    for name in methods.__all__:
        kind = getattr(methods, name)
        if isinstance(kind, type) and issubclass(kind, Method) and kind is not Method:
            assert any(issubclass(each, kind) for each in tried), name


@pytest.mark.parametrize(
    ("make", "holds"),
    [
        pytest.param(make, prop, id=f"{name}-{prop.__name__.removeprefix('assert_')}")
        for name, (make, properties) in METHODS.items()
        for prop in properties
    ],
)
def test_property(make: Maker, holds: Callable[[Maker], None]) -> None:
    holds(make)


@pytest.mark.parametrize(("make", "low"), PER_MEMBER.values(), ids=PER_MEMBER)
def test_ensemble_is_separate_training(make: Callable, low: float) -> None:
    assert_ensemble_is_separate(make, low)
