"""Bayesian SAM (bSAM): an optimizer that learns a Gaussian over the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from flatnb import _checks
from flatnb._tensors import present
from flatnb.methods.noise import Stream, normal

Closure = Callable[[], Any]
Grads = list[Tensor | None]


class BSAM(torch.optim.Optimizer):
    """bSAM: SAM with an adaptive radius from a posterior N(w, 1 / (N s)).

    One step, elementwise, with N training examples and u ~ N(0, 1):

        g  = grad L(w + u / sqrt(N s))
        g~ = grad L(w + rho g / s)
        m <- beta1 m + (1 - beta1) (g~ + delta w / N)
        w <- w - lr m / s                           (with s from before the step)
        s <- beta2 s + (1 - beta2) (sqrt(s) |g| + damping + delta / N)

    An optimizer, no `Method`: weight decay (the prior) and momentum are part of it, and
    it does not `compose`. It knows no net, so BatchNorm's running statistics see both
    passes, as in the authors' code, and dropout draws new masks in each. GradScaler is
    not supported. Under DistributedDataParallel all processes draw the same u.

    Source: Moellenhoff and Khan, "SAM as an Optimal Relaxation of Bayes", ICLR 2023, in
    the form of the authors' code, whose settings for CIFAR-10 and ResNet-18 are the
    defaults (8 parts of a batch of 200; the prior precision 10 printed in the paper is,
    by its author, a misprint for 40). That code multiplies N where data is augmented.

    >>> net = torch.nn.Linear(2, 1)
    >>> optimizer = BSAM(net.parameters(), lr=0.5, examples=50_000)
    >>> def closure():
    ...     loss = net(torch.ones(4, 2)).square().mean()
    ...     loss.backward()
    ...     return loss
    >>> loss = optimizer.step(closure)
    >>> with optimizer.sampled(torch.Generator().manual_seed(0)), torch.no_grad():
    ...     prediction = net(torch.ones(1, 2))

    Args:
        params: parameters, or groups of them.
        lr: step size > 0. The authors use 0.5 with a cosine schedule.
        examples: N, number of training examples > 0.
        rho: size of the perturbation >= 0. The authors use 0.01 to 0.05.
        betas: decay rates of m and s, each in [0, 1).
        prior_precision: delta >= 0; delta / N is the weight decay.
        damping: added to s at each step >= 0.
        s_init: precision at the start > 0.
        seed: of the noise u; its generator is in `state_dict`.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.5,
        *,
        examples: float,
        rho: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        prior_precision: float = 40.0,
        damping: float = 0.1,
        s_init: float = 1.0,
        seed: int = 0,
    ) -> None:
        positive = {"lr": lr, "examples": examples, "s_init": s_init}
        others = {"rho": rho, "prior_precision": prior_precision, "damping": damping}
        for name, value in positive.items():
            _checks.number(name, value, "a finite number > 0", 0.0)
        for name, value in others.items():
            _checks.number(name, value, "a finite number >= 0", 0.0, closed=True)
        pair = "two numbers in [0, 1)"
        if len(_checks.sequence("betas", betas, (int, float), pair)) != 2:
            raise ValueError(f"betas={betas!r}; allowed: {pair}")
        for beta in betas:
            _checks.number("betas", beta, pair, 0.0, 1.0, closed=True)
        self._stream = Stream(seed, normal)
        self._in_sample = False
        super().__init__(params, {**positive, **others, "betas": betas})

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Closure | Sequence[Closure]
    ) -> Tensor:
        """One step; returns the detached loss at w + rho g / s.

        Gradients that were there before are dropped; g~ is in `p.grad` afterwards.
        Where any gradient is not finite no parameter, m or s changes, and `p.grad`
        shows it.

        Args:
            closure: computes the mean loss of the batch, calls `backward()`, returns
                the loss. Or a list of them, one per part of the batch (m-sharpness):
                each has its own u; `sqrt(s) |g|`, g~ and the losses are averaged.
        """
        self._refuse_in_sample("step")
        closures = [closure] if callable(closure) else list(closure or ())
        if not closures:
            raise ValueError(
                "step needs a closure that calls backward() and returns the loss"
            )
        pairs = self._pairs()
        results = [self._gradients(pairs, part) for part in closures]
        sizes = _mean([result[0] for result in results])
        grads = _mean([result[1] for result in results])
        checks = [torch.isfinite(t).all() for t in present([*sizes, *grads])]
        finite = bool(torch.stack([c.to(checks[0].device) for c in checks]).all())
        for (group, p), size, grad in zip(pairs, sizes, grads, strict=True):
            p.grad = grad
            if grad is not None and finite:
                self._update(group, p, 0.0 if size is None else size, grad)
        return torch.stack([loss for _, _, loss in results]).mean()

    @contextmanager
    def sampled(self, generator: torch.Generator) -> Iterator[None]:
        """Within this context the trainable parameters are a draw from N(w, 1 / (N s)).

        To predict by the average over several draws, in `model.eval()`. Afterwards the
        parameters are w again, bit for bit. The training's own noise is not drawn from.

        Args:
            generator: of the draw, each time another; on any device.

        Raises:
            RuntimeError: within another draw; `step` there raises it too.
        """
        allowed = "a torch.Generator, such as torch.Generator().manual_seed(0)"
        _checks.instance("generator", generator, torch.Generator, allowed)
        self._refuse_in_sample("sampled")
        pairs = self._pairs()
        copies = [p.detach().clone() for _, p in pairs]
        self._in_sample = True
        try:
            with torch.no_grad():
                for group, p in pairs:
                    u = torch.empty(p.shape, dtype=p.dtype, device=generator.device)
                    u.normal_(generator=generator)
                    self._shift(group, p, u.to(p.device))
            # An autocast region caches low-precision weights by tensor, not by value.
            torch.clear_autocast_cache()
            yield
        finally:
            self._in_sample = False
            _restore(pairs, copies)
            torch.clear_autocast_cache()

    def _pairs(self) -> list[tuple[dict[str, Any], Tensor]]:
        """Each trainable parameter, with its group; its state is made."""
        groups = self.param_groups
        pairs = [(g, p) for g in groups for p in g["params"] if p.requires_grad]
        for group, p in pairs:
            if not self.state[p]:
                self.state[p]["m"] = torch.zeros_like(p)
                self.state[p]["s"] = torch.full_like(p, group["s_init"])
        return pairs

    def _shift(self, group: dict[str, Any], p: Tensor, u: Tensor) -> None:
        """p + u / sqrt(N s), in place."""
        p.addcdiv_(u, (group["examples"] * self.state[p]["s"]).sqrt_())

    def _refuse_in_sample(self, call: str) -> None:
        if self._in_sample:
            raise RuntimeError(
                f"{call}() within sampled(): the parameters are a draw, not the mean; "
                "leave the context first"
            )

    def _gradients(
        self, pairs: Sequence[tuple[dict[str, Any], Tensor]], closure: Closure
    ) -> tuple[Grads, Grads, Tensor]:
        """sqrt(s) |g|, g~ and the loss there; the parameters end at w."""
        params = [p for _, p in pairs]
        copies = [p.clone() for p in params]
        sizes: Grads = []
        try:
            for (group, p), u in zip(pairs, self._stream.draw(params), strict=True):
                self._shift(group, p, u)
            grads, _ = _evaluate(params, closure)
            _restore(pairs, copies)
            for (group, p), g in zip(pairs, grads, strict=True):
                s = self.state[p]["s"]
                sizes.append(None if g is None else s.sqrt().mul_(g.abs()))
                if g is not None:
                    p.addcdiv_(g, s, value=group["rho"])
            grads, loss = _evaluate(params, closure)
            _restore(pairs, copies)
        except BaseException:  # an interrupt of the line above, too
            _restore(pairs, copies)
            raise
        return sizes, grads, loss

    def _update(
        self, group: dict[str, Any], p: Tensor, size: Tensor | float, grad: Tensor
    ) -> None:
        m, s = self.state[p]["m"], self.state[p]["s"]
        beta1, beta2 = group["betas"]
        decay = group["prior_precision"] / group["examples"]
        m.mul_(beta1).add_(grad, alpha=1 - beta1).add_(p, alpha=(1 - beta1) * decay)
        p.addcdiv_(m, s, value=-group["lr"])
        s.mul_(beta2).add_(size + (group["damping"] + decay), alpha=1 - beta2)

    def state_dict(self) -> dict[str, Any]:
        """What `torch.optim.Optimizer.state_dict` gives, and the noise generator."""
        return {**super().state_dict(), "noise": self._stream.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        if "noise" not in state_dict:
            raise ValueError(
                f"state has the entries {sorted(state_dict)}; allowed: those of a "
                "BSAM, 'noise' among them"
            )
        self._stream.load_state_dict(state_dict["noise"])
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "noise"})


@torch.no_grad()
def _restore(
    pairs: Sequence[tuple[dict[str, Any], Tensor]], copies: Sequence[Tensor]
) -> None:
    torch._foreach_copy_([p for _, p in pairs], list(copies))


def _evaluate(params: Sequence[Tensor], closure: Closure) -> tuple[Grads, Tensor]:
    for p in params:
        p.grad = None
    with torch.enable_grad():
        loss = closure()
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        kind = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise TypeError(
            f"the closure returned {kind}; it must return the loss, a scalar tensor"
        )
    grads = [p.grad for p in params]
    if not present(grads):
        raise ValueError(
            "the closure left no gradient; it must call backward() on the loss"
        )
    return grads, loss.detach().reshape(())


def _mean(parts: Sequence[Grads]) -> Grads:
    """The mean over parts, tensor by tensor; None counts as zero."""
    terms = [[t / len(parts) for t in present(ts)] for ts in zip(*parts, strict=True)]
    return [sum(ts[1:], start=ts[0]) if ts else None for ts in terms]
