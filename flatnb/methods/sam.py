"""Sharpness-aware minimization (SAM): the gradient is taken uphill from the parameters."""

from __future__ import annotations

from .base import Method, Real, Step, real


class SAM(Method):
    """SAM: the gradient at the approximately worst point of an l2 ball of radius rho.

        eps = rho g / ||g||,  g = grad L(w)         gradient  grad L(w + eps)

    Two passes on the same batch. ||g|| is the norm over all trainable parameters together, in
    float64; a zero gradient moves nothing. All trainable parameters are perturbed, BatchNorm and
    biases included. Weight decay and momentum are the optimizer's, at w. BatchNorm uses batch
    statistics in both passes, its running statistics see the first one only. Under
    DistributedDataParallel each process perturbs by its own gradient (m-sharpness).

    Source: Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization",
    ICLR 2021, equations (2) and (3). The authors' JAX code puts weight decay inside the loss, so
    that it also tilts eps; add it to the closure's losses for that.

    Args:
        rho: radius of the ball >= 0, in units of the parameters. The paper searches 0.01 to 0.5.
    """

    passes = 2

    def __init__(self, rho: Real = 0.05) -> None:
        self.rho = real("rho", rho)

    def rule(self, step: Step) -> None:
        grads = step.gradient()
        norm = step.norm(grads)
        step.scale_(grads, step.per_member("rho", self.rho) / norm.clamp_min(1e-12))
        step.move(grads)
        del grads  # one parameter-sized tensor fewer while the second pass runs
        step.backward(step.unless_finite(norm))
