"""Flooding and its per-example relatives: the loss is held at a level instead of driven to zero."""

from __future__ import annotations

from torch import Tensor

from .base import Method, Real, per_member, real


class Flooding(Method):
    """Flooding: the mean loss L of the batch is reflected at the flood level b.

        objective  |L - b| + b              gradient  sign(L - b) grad L,  sign(0) = 0

    One pass. L is the mean over the batch, not over examples: with another batch size Flooding is
    another method. BatchNorm, weight decay and momentum are untouched by it.

    Source: Ishida et al., "Do We Need Zero Training Loss After Achieving Zero Training Error?",
    ICML 2020, equation for J~. Their code takes b = 0 for "off"; so does this, by the formula.

    Args:
        level: flood level b >= 0, in units of the loss. Papers search 0.01 to 0.5.
    """

    def __init__(self, level: Real) -> None:
        self.level = real("level", level)

    def objective(self, losses: Tensor) -> Tensor:
        level = per_member("level", self.level, losses)
        return (losses.mean(-1) - level).abs() + level


class IFlood(Method):
    """iFlood: each example's loss l_i is reflected at the flood level b.

        objective  mean_i (|l_i - b| + b)   gradient  mean_i sign(l_i - b) grad l_i,  sign(0) = 0

    One pass. The limit sigma -> 0 of SoftAD, and Flooding when the batch is a single example.

    Source: Xie et al., "iFlood: A Stable and Effective Regularizer", ICLR 2022.

    Args:
        level: flood level b >= 0, in units of the loss.
    """

    def __init__(self, level: Real) -> None:
        self.level = real("level", level)

    def objective(self, losses: Tensor) -> Tensor:
        level = per_member("level", self.level, losses, pointwise=True)
        return ((losses - level).abs() + level).mean(-1)
