"""Noise stability optimization (NSO) and one-sided weight noise: gradients at random neighbours."""

from __future__ import annotations

from typing import Any

from flatnb.methods.base import (
    Hyperparameter,
    Method,
    Perturb,
    Step,
    Value,
    count,
    selection,
)
from flatnb.methods.noise import Distribution, Stream, normal


class WeightNoise(Method):
    """One-sided weight noise (WP-SGD): the gradient at randomly moved parameters.

        gradient  (1/k) sum_{j=1..k} grad L(w + sigma U_j),     U_j independent, mean 0,
        variance 1

    k passes on the same batch, fresh noise each step. An unbiased gradient of E L(w +
    sigma U), as NSO's is, but with noise of first order in sigma, sigma H U, which
    NSO's two sides cancel.

    No pass is at w: a net with BatchNorm costs one more forward pass without gradient,
        for its
    running statistics, and the returned loss is that pass's; without BatchNorm it is
    the average over the k passes. By default every tensor is moved by the same sigma,
    BatchNorm and biases included. Weight decay and momentum are the optimizer's, at w.

    The noise has a generator of its own, in `state_dict`. In an ensemble the member of
    seed s (its place, unless given) draws as a plain net under `seed + s`; members of
    equal seed share their noise, as they share their start. All processes of a
    distributed training draw the same.

    Source: the one-sided control of Zhang, Li and Ju, "Noise Stability Optimization for
        Finding
    Flat Minima: A Hessian-based Regularization Approach". Their code is NSO's with
        `use_neg` off,
    which is its command line's default.

    Args:
        sigma: standard deviation of the noise >= 0, in units of the parameters. The
            authors use 0.005 to 0.05 in fine-tuning, 0.08 in matrix sensing.
        k: number of draws a step >= 1.
        noise: distribution of U: normal, laplace, uniform or rademacher of
            `flatnb.methods.noise`, or a function like them.
        seed: of the noise.
        perturb: which parameters are moved, all by default; see
            `flatnb.methods.perturb`.
    """

    sigma = Hyperparameter()
    k = Hyperparameter(count)
    perturb = Hyperparameter(selection, schedule=False)

    def __init__(
        self,
        sigma: Value,
        k: int = 1,
        *,
        noise: Distribution = normal,
        seed: int = 0,
        perturb: Perturb | None = None,
    ) -> None:
        self.sigma, self.k, self.perturb = sigma, k, perturb
        self._stream = Stream(seed, noise)
        self.noise, self.seed = self._stream.fill, self._stream.seed

    @property
    def passes(self) -> int:  # type: ignore[override]
        return self.k

    def rule(self, step: Step) -> None:
        step.forward()
        sigma = step.per_member("sigma", self.sigma)
        for j in range(self.k):
            step.move(self._stream.draw(step.params, step.seeds), sigma, self.perturb)
            step.backward(1 / self.k, last=j == self.k - 1)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **self._stream.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._stream.load_state_dict(self.load_calls(state))


class NSO(WeightNoise):
    """Noise stability optimization: the gradient averaged over both sides of random
    directions.

        gradient  1/(2k) sum_{j=1..k} [ grad L(w + sigma U_j) + grad L(w - sigma U_j) ]
        U_j independent, mean 0, variance 1

    An unbiased gradient of E L(w + sigma U) = L + (sigma^2 / 2) Tr H + O(sigma^4): it
    penalises the trace of the Hessian H. On a quadratic loss it is the plain gradient,
    for any U.

    2k passes on the same batch, fresh noise each step. The far side is found from the
    near one, so no pass keeps U in memory.

    No pass is at w: a net with BatchNorm costs one more forward pass without gradient,
        for its
    running statistics, and the returned loss is that pass's; without BatchNorm it is
    the average over the 2k passes. By default every tensor is moved by the same sigma,
    BatchNorm and biases included. Weight decay and momentum are the optimizer's, at w.

    The noise has a generator of its own, in `state_dict`. In an ensemble the member of
    seed s (its place, unless given) draws as a plain net under `seed + s`; members of
    equal seed share their noise, as they share their start. All processes of a
    distributed training draw the same.

    Source: Zhang, Li and Ju, "Noise Stability Optimization for Finding Flat Minima: A
        Hessian-based
    Regularization Approach". Their code mixes in a share `lam` of the gradient at w, 0
    in all its NSO scripts, and spends that pass even then (2k + 1); freezes running
    statistics of `BatchNorm2d` only; has `use_neg` (the second side) off by default on
    the command line; and its binomial noise has mean 2, where noise here has mean 0.

    Args:
        sigma: standard deviation of the noise >= 0, in units of the parameters. The
            authors use 0.005 to 0.05 in fine-tuning, 0.08 in matrix sensing.
        k: number of directions a step >= 1. The authors use 1 to 4.
        noise: distribution of U: normal, laplace, uniform or rademacher of
            `flatnb.methods.noise`, or a function like them.
        seed: of the noise.
        perturb: which parameters are moved, all by default; see
            `flatnb.methods.perturb`.
    """

    @property
    def passes(self) -> int:  # type: ignore[override]
        return 2 * self.k

    def rule(self, step: Step) -> None:
        step.forward()
        sigma = step.per_member("sigma", self.sigma)
        for j in range(self.k):
            step.move(self._stream.draw(step.params, step.seeds), sigma, self.perturb)
            step.backward(0.5 / self.k, last=False)
            step.mirror()
            step.backward(0.5 / self.k, last=j == self.k - 1)
