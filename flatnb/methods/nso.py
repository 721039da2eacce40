"""Noise stability optimization (NSO) and one-sided weight noise.

No pass is at w. A net with buffers, such as BatchNorm's statistics, costs one more
forward pass without gradient, which writes them and gives the returned loss; without
buffers that is the average over all passes. Noise has its own generator: an ensemble's
member of seed s draws as a plain net under `seed + s`; all processes draw alike.
"""

from flatnb.methods.method import KW_ONLY, Hyperparameter, Method, Perturb, Step, count
from flatnb.methods.noise import Distribution, Stream, normal


class WeightNoise(Method):
    """One-sided weight noise (WP-SGD): the gradient at randomly moved parameters.

        gradient  (1/k) sum_{j=1..k} grad L(w + sigma U_j)
        U_j independent, mean 0, variance 1

    k passes. An unbiased gradient of E L(w + sigma U), as NSO's is, but with noise of
    first order in sigma, sigma H U, which NSO's two sides cancel. sigma is in units of
    the parameters; the distribution of U, `noise`, is one of `flatnb.methods.noise`.

    Source: the one-sided control of the NSO paper; in its code, `use_neg` off. There
    sigma is 0.005 to 0.05 in fine-tuning, 0.08 in matrix sensing.

    >>> WeightNoise(sigma=0.01, k=2).passes
    2
    """

    sigma: Hyperparameter = Hyperparameter()
    k: Hyperparameter = Hyperparameter(count, default=1)
    _: KW_ONLY
    noise: Distribution = normal
    seed: int = 0
    perturb: Perturb | None = None
    _sides = 1

    def __post_init__(self) -> None:
        self._generators = Stream(self.seed, self.noise)

    @property
    def passes(self) -> int:  # type: ignore[override]
        """One per draw and side."""
        return self._sides * self.k

    def rule(self, step: Step) -> None:
        step.forward()
        sigma = step.per_member("sigma", self.sigma)
        for i in range(self.passes):
            if i % self._sides == 0:
                noise = self._generators.draw(step.params, step.seeds)
                step.move(noise, sigma, self.perturb)
                del noise  # no pass keeps U in memory
            else:
                step.mirror()
            step.backward(1 / self.passes, last=i == self.passes - 1)


class NSO(WeightNoise):
    """NSO: the gradient averaged over both sides of random directions.

        gradient  1/(2k) sum_{j=1..k} [ grad L(w + sigma U_j) + grad L(w - sigma U_j) ]

    An unbiased gradient of E L(w + sigma U) = L + (sigma^2 / 2) Tr H + O(sigma^4): it
    penalizes the trace of the Hessian H. On a quadratic loss it is the plain gradient.
    2k passes; the authors use k = 1 to 4. U_j and arguments are as in `WeightNoise`.

    Source: Zhang, Li and Ju, "Noise Stability Optimization for Finding Flat Minima: A
    Hessian-based Regularization Approach". Their code has the second side off by
    default, and freezes statistics of `BatchNorm2d` only.

    >>> NSO(sigma=0.01, k=2).passes
    4
    """

    _sides = 2
