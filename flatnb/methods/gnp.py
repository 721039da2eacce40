"""Penalising the gradient norm (GNP)."""

from __future__ import annotations

from flatnb.methods.base import (
    TINY,
    Hyperparameter,
    Method,
    Perturb,
    Step,
    Value,
    flag,
    selection,
)


class GNP(Method):
    """Gradient norm penalty: descends L + lambda ||grad L||, lambda = alpha r, without
    Hessians.

        g1 = grad L(w),   g2 = grad L(w + r g1 / ||g1||)
        gradient  (1 - alpha) g1 + alpha g2

    Two passes on the same batch. alpha = 0 is plain training, alpha = 1 is SAM(rho=r);
    alpha > 1 is allowed. ||g1|| is the norm over all perturbed parameters together, in
    float64; a zero gradient moves nothing. By default all parameters are moved,
    BatchNorm and biases included. Weight decay and momentum are the optimizer's, at w.
    BatchNorm uses batch statistics in both passes, its running statistics see the first
    one only. Under DistributedDataParallel each process moves by its own g1
    (m-sharpness), and the whole gradient is averaged.

    Source: Zhao, Zhang and Hu, "Penalizing Gradient Norm for Efficiently Improving
        Generalization
    in Deep Learning", ICML 2022; warm-up: the authors' follow-up "When Will Gradient
    Regularization Be Harmful?", 2024. The public JAX code normalises the first term by
    default, (1 - alpha) g1 / ||g1|| + alpha g2 (its configuration's
    `norm_perturbations`, which no recipe turns off): `normalize=True` here. It also has
    weight decay inside the loss, so that it tilts g1 (add 0.5 * l2 * ||w||^2 to the
    closure's losses for that), and clips the gradient to a norm of 5.

    Args:
        r: radius >= 0, in units of the parameters. The recipes use 0.05 to 0.1.
        alpha: weight of the second gradient >= 0, no unit. The recipes use 0.8.
        normalize: divide g1 in the first term by its norm, as the public code does.
        perturb: which parameters are moved, all by default; see
            `flatnb.methods.perturb`.

    The warm-ups of the follow-up over n calls are schedules:
    `r=Linear(0.0, 0.1, steps=n)`, and `r=lambda calls: 0.1 if calls >= n else 0.0`. A
    step costs two passes then, too.
    """

    passes = 2
    r = Hyperparameter()
    alpha = Hyperparameter()
    normalize = Hyperparameter(flag)
    perturb = Hyperparameter(selection, schedule=False)

    def __init__(
        self,
        r: Value,
        alpha: Value,
        *,
        normalize: bool = False,
        perturb: Perturb | None = None,
    ) -> None:
        self.r, self.alpha = r, alpha
        self.normalize, self.perturb = normalize, perturb

    def rule(self, step: Step) -> None:
        r = step.per_member("r", self.r)
        alpha = step.per_member("alpha", self.alpha)
        grads = step.gradient()
        norm = step.norm(grads, self.perturb)
        step.move(grads, r / norm.clamp_min(TINY), self.perturb)
        length = step.norm(grads).clamp_min(TINY) if self.normalize else 1.0
        # Before the last pass, so that DistributedDataParallel averages both terms
        # there.
        step.add_gradient(grads, (1 - alpha) / length)
        del grads
        step.backward(alpha * step.unless_finite(norm))
