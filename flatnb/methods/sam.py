"""Sharpness-aware minimization and its variants: the gradient is taken uphill of w.

Common to all: two passes; moves and norms are over all trainable parameters, or those
that `perturb` selects (see `flatnb.methods.perturb`); a zero gradient moves nothing.
The radius rho >= 0 is in units of the parameters. Weight decay and momentum are the
optimizer's, at w. The authors' JAX code of SAM has weight decay in the loss, so that it
tilts the perturbation: for that, add 0.5 * l2 * sum(p.square().sum() for p in
parameters) to the losses, and set the optimizer's to 0.
"""

from dataclasses import KW_ONLY

import torch
from torch import Tensor

from flatnb._nets import along_members
from flatnb.methods.method import TINY, Gradient, Hyperparameter, Method, Perturb, Step
from flatnb.methods.noise import Stream, normal


class SAM(Method):
    """SAM: the gradient at the approximately worst point of an l2 ball of radius rho.

        eps = rho g / ||g||,  g = grad L(w)         gradient  grad L(w + eps)

    Source: Foret et al., "Sharpness-Aware Minimization for Efficiently Improving
    Generalization", ICLR 2021, equations (2) and (3). They search rho = 0.01 to 0.5.

    >>> SAM(rho=0.1)
    SAM(rho=0.1)
    """

    passes = 2
    rho: Hyperparameter = Hyperparameter(default=0.05)
    _: KW_ONLY
    perturb: Perturb | None = None

    def rule(self, step: Step) -> None:
        grads = step.gradient()
        finite = self._ascend(step, grads)
        del grads  # one parameter-sized tensor fewer while the second pass runs
        step.backward(finite)

    def _ascend(self, step: Step, grads: Gradient) -> Tensor:
        """Move to w + eps; return the factor of the second pass, as `Step.ascend`."""
        return step.ascend(grads, step.per_member("rho", self.rho), self.perturb)


class ASAM(SAM):
    """ASAM: SAM in an ellipsoid that follows the weights, invariant to rescaling.

        eps = rho T^2 g / ||T g||,  T = |w| + eta elementwise
        gradient  grad L(w + eps)

    rho is relative to the weights; eta >= 0 lets zero weights move. T = 1 for tensors
    without "weight" in their name (biases, not BatchNorm's scale), as in the authors'
    code; others have `T = |w|` for all (`all_tensors=True, eta=0`), and another rho.

    Source: Kwon et al., "ASAM: Adaptive Sharpness-Aware Minimization for
    Scale-Invariant Learning of Deep Neural Networks", ICML 2021; rho = 0.5 to 1.

    >>> ASAM(rho=0.5, eta=0.0)
    ASAM(rho=0.5, eta=0.0)
    """

    rho: Hyperparameter = Hyperparameter(default=0.5)
    eta: Hyperparameter = Hyperparameter(default=0.01)
    _: KW_ONLY
    all_tensors: bool = False

    def _ascend(self, step: Step, grads: Gradient) -> Tensor:
        eta = step.per_member("eta", self.eta)
        sizes: list[Tensor] = []
        scaled: list[Tensor] = []
        for name, p, g in zip(step.names, step.params, grads, strict=True):
            if g is not None and (self.all_tensors or "weight" in name):
                sizes.append(p.detach().abs())
                scaled.append(g.mul_(sizes[-1].add_(along_members(eta, p))))
        norm = step.norm(grads, self.perturb)
        for g, size in zip(scaled, sizes, strict=True):
            g.mul_(size)
        del sizes, scaled
        return step.ascend(grads, step.per_member("rho", self.rho), self.perturb, norm)


class USAM(SAM):
    """Unnormalized SAM: the step uphill is proportional to the gradient.

        eps = rho g,  g = grad L(w)                 gradient  grad L(w + eps)

    The form of SAM that most theory studies. rho is in parameters per gradient, as a
    learning rate, and does as much as SAM's where rho_SAM = rho ||g||.

    >>> USAM(rho=0.01).passes
    2
    """

    def _ascend(self, step: Step, grads: Gradient) -> Tensor:
        norm = step.norm(grads, self.perturb)
        step.move(grads, step.per_member("rho", self.rho), self.perturb)
        return step.unless_finite(norm)


class RSAM(SAM):
    """Random SAM: the ascent direction is taken at a randomly perturbed point.

        delta ~ N(0, sigma^2 I),   g = grad L(w + delta)
        eps = rho g / N,  N^2 = sum over tensors t of (lam ||g_t|| + ||delta_t||)^2
        gradient  grad L(w + eps)

    Neither pass is at w, and the noise is that of `flatnb.methods.nso`: see its head.
    sigma is in units of the parameters; sigma = 0, lam = 1 is SAM. `perturb` also
    scales delta; N is over what it selects.

    Source: the baseline of the NSO paper's code, whose defaults these are, after Liu et
    al., "Random Sharpness-Aware Minimization", NeurIPS 2022. That code perturbs the
    copy it restores from, too, so that its weights drift by eps each step; not here.

    >>> RSAM(rho=0.05, sigma=0.02)
    RSAM(rho=0.05, sigma=0.02)
    """

    sigma: Hyperparameter = Hyperparameter(default=0.01)
    lam: Hyperparameter = Hyperparameter(default=1.0)
    _: KW_ONLY
    seed: int = 0

    def __post_init__(self) -> None:
        self._generators = Stream(self.seed, normal)

    def rule(self, step: Step) -> None:
        step.forward()
        sigma = step.per_member("sigma", self.sigma)
        noise = self._generators.draw(step.params, step.seeds)
        noise_norms = step.norms(noise)
        factors = torch.tensor(step.factors(self.perturb), dtype=torch.float64)
        factors = along_members(factors, noise_norms)
        step.move(noise, sigma, self.perturb)
        del noise
        grads = step.gradient()
        norms = step.per_member("lam", self.lam) * (step.norms(grads) * (factors > 0))
        norms += sigma * factors * noise_norms
        norm = norms.square().sum(0).sqrt()
        rho = step.per_member("rho", self.rho)
        finite = step.ascend(grads, rho, self.perturb, norm)
        del grads
        step.backward(finite)


class GNP(Method):
    """Gradient norm penalty: descends L + alpha r ||grad L||, without Hessians.

        g1 = grad L(w),   g2 = grad L(w + r g1 / ||g1||)
        gradient  (1 - alpha) g1 + alpha g2

    alpha = 0 is plain training, 1 is SAM(rho=r); > 1 is allowed. The authors' later
    warm-ups: `r=Linear(0.0, 0.1, steps=n)`, `r=lambda calls: 0.1 * (calls >= n)`.

    Source: Zhao, Zhang and Hu, "Penalizing Gradient Norm for Efficiently Improving
    Generalization in Deep Learning", ICML 2022, with r = 0.05 to 0.1, alpha = 0.8. The
    JAX code takes (1 - alpha) g1 / ||g1|| + alpha g2, here `normalize=True`.

    >>> GNP(r=0.1, alpha=0.8)
    GNP(r=0.1, alpha=0.8)
    """

    passes = 2
    r: Hyperparameter = Hyperparameter()
    alpha: Hyperparameter = Hyperparameter()
    _: KW_ONLY
    normalize: bool = False
    perturb: Perturb | None = None

    def rule(self, step: Step) -> None:
        alpha = step.per_member("alpha", self.alpha)
        grads = step.gradient()
        finite = step.ascend(grads, step.per_member("r", self.r), self.perturb)
        length = step.norm(grads).clamp_min(TINY) if self.normalize else 1.0
        # Before the last pass, in which DistributedDataParallel averages both terms.
        step.add_gradient(grads, (1 - alpha) / length)
        del grads
        step.backward(alpha * finite)
