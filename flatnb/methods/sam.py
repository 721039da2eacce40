"""Sharpness-aware minimization and its variants: the gradient is taken uphill of w.

Common to all of them: two passes on the same batch; all trainable parameters are moved
together, BatchNorm and biases included, unless `perturb` selects some; norms are over
all perturbed parameters together, in float64. Weight decay and momentum are the
optimizer's, at w. BatchNorm uses batch statistics in both passes, and its running
statistics see one pass at w only. Under DistributedDataParallel each process moves by
its own gradient (m-sharpness), and the gradients taken there are averaged. The authors'
JAX code of SAM has weight decay inside the loss, so that it also tilts the perturbation:
for that, add 0.5 * l2 * sum(p.square().sum() for p in parameters) to the closure's
losses, and set the optimizer's weight decay to 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flatnb._checks import flag
from flatnb._nets import along_members
from flatnb.methods._step import TINY
from flatnb.methods.method import (
    Gradient,
    Hyperparameter,
    Method,
    Perturb,
    Step,
    Value,
    selection,
)
from flatnb.methods.noise import Stream, normal


class SAM(Method):
    """SAM: the gradient at the approximately worst point of an l2 ball of radius rho.

        eps = rho g / ||g||,  g = grad L(w)         gradient  grad L(w + eps)

    Two passes; a zero gradient moves nothing. What all variants share is said at the
    head of `flatnb.methods.sam`.

    Source: Foret et al., "Sharpness-Aware Minimization for Efficiently Improving
    Generalization", ICLR 2021, equations (2) and (3). The authors' JAX code puts weight
    decay inside the loss, has no guard against a zero norm, clips the gradient to a norm
    of 5, and reports the loss of the second pass.

    >>> SAM(rho=0.1)
    SAM(rho=0.1)

    Args:
        rho: radius of the ball >= 0, in units of the parameters. The paper searches
            0.01 to 0.5.
        perturb: which parameters are moved, and how far; all by default. See
            `flatnb.methods.perturb`, here and in the other methods.
    """

    passes = 2
    rho = Hyperparameter()
    perturb = Hyperparameter(selection, schedule=False)

    def __init__(self, rho: Value = 0.05, *, perturb: Perturb | None = None) -> None:
        self.rho, self.perturb = rho, perturb

    def rule(self, step: Step) -> None:
        grads = step.gradient()
        finite = step.ascend(grads, step.per_member("rho", self.rho), self.perturb)
        del grads  # one parameter-sized tensor fewer while the second pass runs
        step.backward(finite)


class ASAM(SAM):
    """ASAM: SAM in an ellipsoid that follows the weights, invariant to rescaling.

        eps = rho T^2 g / ||T g||,  T = |w| + eta elementwise
        gradient  grad L(w + eps)

    Two passes. T applies to the parameters whose name contains "weight" (so also to
    BatchNorm's scale); for the others T = 1, as in the authors' code.

    Source: Kwon et al., "ASAM: Adaptive Sharpness-Aware Minimization for
    Scale-Invariant Learning of Deep Neural Networks", ICML 2021. The authors' class has
    eta = 0.01 by default, their training script eta = 0, and it updates BatchNorm's
    running statistics in both passes. Widely used re-implementations take T = |w| for
    every tensor, biases too (`all_tensors=True, eta=0`); rho does not carry over.

    >>> ASAM(rho=0.5, eta=0.0)
    ASAM(rho=0.5, eta=0.0)

    Args:
        rho: radius >= 0, relative to the weights. The authors use 0.5 to 1 (CIFAR).
        eta: added to |w| >= 0, in units of the parameters, so that zero weights can
            move.
        all_tensors: apply T to every parameter, whatever its name.
        perturb: which parameters are moved, all by default; ||T g|| is over these.
    """

    eta = Hyperparameter()
    all_tensors = Hyperparameter(flag)

    def __init__(
        self,
        rho: Value = 0.5,
        eta: Value = 0.01,
        *,
        all_tensors: bool = False,
        perturb: Perturb | None = None,
    ) -> None:
        super().__init__(rho, perturb=perturb)
        self.eta, self.all_tensors = eta, all_tensors

    def rule(self, step: Step) -> None:
        grads = step.gradient()
        scaled, sizes = self._sizes(step, grads)
        if scaled:
            torch._foreach_mul_(scaled, sizes)
        norm = step.norm(grads, self.perturb)
        if scaled:
            torch._foreach_mul_(scaled, sizes)
        del scaled, sizes
        rho = step.per_member("rho", self.rho)
        step.move(grads, rho / norm.clamp_min(TINY), self.perturb)
        del grads
        step.backward(step.unless_finite(norm))

    def _sizes(self, step: Step, grads: Gradient) -> tuple[list[Tensor], list[Tensor]]:
        """The gradients that are scaled, and T for each."""
        pairs = [
            (p.detach(), g)
            for name, p, g in zip(step.names, step.params, grads, strict=True)
            if g is not None and (self.all_tensors or "weight" in name)
        ]
        if not pairs:
            return [], []
        sizes = list(torch._foreach_abs([p for p, _ in pairs]))
        eta = step.per_member("eta", self.eta)
        if isinstance(eta, Tensor):
            for size in sizes:
                size.add_(along_members(eta, size))
        else:
            torch._foreach_add_(sizes, eta)
        return [g for _, g in pairs], sizes


class USAM(SAM):
    """Unnormalized SAM: the step uphill is proportional to the gradient.

        eps = rho g,  g = grad L(w)                 gradient  grad L(w + eps)

    Two passes.

    Source: the form of SAM that most theory studies; the `unnormalize` option of the
    SAM in the code of Zhang, Li and Ju, "Noise Stability Optimization for Finding Flat
    Minima", is this.

    >>> USAM(rho=0.01)
    USAM(rho=0.01)

    Args:
        rho: step uphill >= 0, in units of parameters per gradient, a learning rate. Not
            comparable with SAM's rho: the two agree where rho_SAM = rho ||g||.
        perturb: which parameters are moved, all by default.
    """

    def rule(self, step: Step) -> None:
        grads = step.gradient()
        norm = step.norm(grads, self.perturb)
        step.move(grads, step.per_member("rho", self.rho), self.perturb)
        del grads
        step.backward(step.unless_finite(norm))


class RSAM(SAM):
    """Random SAM: the ascent direction is taken at a randomly perturbed point.

        delta ~ N(0, sigma^2 I),   g = grad L(w + delta)
        eps = rho g / N,  N^2 = sum over tensors t of (lam ||g_t|| + ||delta_t||)^2
        gradient  grad L(w + eps)

    Two passes, neither at w: a net with BatchNorm costs one more forward pass without
    gradient, for its running statistics. The returned loss is that of this pass, else
    the average over the two perturbed ones. With sigma = 0 and lam = 1 this is SAM. In
    an ensemble the member of seed s draws as a plain net under `seed + s`; all processes
    of a distributed training draw the same.

    Source: the `RSAM` baseline in the code of Zhang, Li and Ju, "Noise Stability
    Optimization for Finding Flat Minima", after Liu et al., "Random Sharpness-Aware
    Minimization", NeurIPS 2022. That code scales noise by filter for convolutions and
    then overwrites it by the noise above; it also perturbs the copy it restores from, so
    its weights drift by eps each step. Not repeated.

    >>> RSAM(rho=0.05, sigma=0.02)
    RSAM(rho=0.05, sigma=0.02)

    Args:
        rho: radius >= 0, in units of the parameters. That code's default: 0.05.
        sigma: standard deviation of the noise >= 0, in units of the parameters; there
            0.01.
        lam: weight of the gradient's norm in N >= 0; there 1.
        seed: of the noise.
        perturb: which parameters are moved, both by delta and by eps, all by default; N
            is a sum over these, and delta the noise times what `perturb` returns.
    """

    sigma = Hyperparameter()
    lam = Hyperparameter()

    def __init__(
        self,
        rho: Value = 0.05,
        sigma: Value = 0.01,
        lam: Value = 1.0,
        *,
        seed: int = 0,
        perturb: Perturb | None = None,
    ) -> None:
        super().__init__(rho, perturb=perturb)
        self.sigma, self.lam = sigma, lam
        self._stream = Stream(seed, normal)
        self.seed = self._stream.seed

    def rule(self, step: Step) -> None:
        step.forward()
        sigma = step.per_member("sigma", self.sigma)
        noise = self._stream.draw(step.params, step.seeds)
        noise_norms = step.norms(noise)
        factors = torch.tensor(step.factors(self.perturb), dtype=torch.float64)
        factors = along_members(factors, noise_norms)
        noise_norms = sigma * factors * noise_norms
        step.move(noise, sigma, self.perturb)
        del noise
        grads = step.gradient()
        lam = step.per_member("lam", self.lam)
        norms = lam * (step.norms(grads) * (factors > 0)) + noise_norms
        norm = norms.square().sum(0).sqrt()
        rho = step.per_member("rho", self.rho)
        step.move(grads, rho / norm.clamp_min(TINY), self.perturb)
        del grads
        step.backward(step.unless_finite(norm))
