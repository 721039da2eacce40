"""Bayesian SAM (bSAM): an optimizer that learns a Gaussian over the weights."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from flatnb import _checks
from flatnb._nets import along_members
from flatnb._tensors import Real, l2_norm, present
from flatnb.methods.method import Closure, real
from flatnb.methods.noise import Stream, normal

Params = dict[Tensor, dict[str, Any]]


class BSAM(torch.optim.Optimizer):
    """bSAM: SAM with an adaptive radius from a posterior N(w, 1 / (N s)).

    One step, elementwise, with u ~ N(0, 1) and N training `examples`:

        g  = grad L(w + u / sqrt(N s))
        g~ = grad L(w + rho g / s)
        m <- beta1 m + (1 - beta1) (g~ + delta w / N)
        w <- w - lr m / s                           (with s from before the step)
        s <- beta2 s + (1 - beta2) (sqrt(s) |g| + damping + delta / N)

    delta is `prior_precision`, `s_init` the first s. Not a `Method`, because weight decay
    (the prior) and momentum are part of it. BatchNorm's running statistics see both
    passes, as in the authors' code, and dropout draws new masks in each. GradScaler is
    not supported. Processes of DistributedDataParallel draw the same u. Outside of a
    step the net is at the mean w; the paper predicts by an average over draws, for
    which there is `sampled`. With `member_seeds`, the `seeds` of an `Ensemble`, each
    member trains as it would alone under `seed` plus its own, and `rho` may be a 1-D
    tensor, one per member (so may the rate: `flatnb.ensemble.member_learning_rates`).

    Source: Moellenhoff and Khan, "SAM as an Optimal Relaxation of Bayes", ICLR 2023, as
    in the authors' code, whose settings for CIFAR-10 and ResNet-18 are the defaults
    (the paper's prior precision 10 is, by its author, a misprint for 40), with a cosine
    for lr and rho = 0.01 to 0.05. There a batch of 200 has 8 parts, each with its own
    u, and N is multiplied for augmented data.

    >>> net = torch.nn.Linear(2, 1)
    >>> optimizer = BSAM(net.parameters(), lr=0.5, examples=50_000)
    >>> def closure():
    ...     loss = net(torch.ones(4, 2)).square().mean()
    ...     loss.backward()
    ...     return loss
    >>> loss = optimizer.step(closure)
    >>> with optimizer.sampled(torch.Generator().manual_seed(0)), torch.no_grad():
    ...     prediction = net(torch.ones(1, 2))

    Attributes:
        passes: forward-backward passes per step, each a call of the closure.
    """

    passes = 2

    def __init__(
        self,
        params: Any,
        lr: float = 0.5,
        *,
        examples: float,
        rho: Real = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        prior_precision: float = 40.0,
        damping: float = 0.1,
        s_init: float = 1.0,
        seed: int = 0,
        member_seeds: Sequence[int] | None = None,
    ) -> None:
        positive = {"lr": lr, "examples": examples, "s_init": s_init}
        weights = {"prior_precision": prior_precision, "damping": damping}
        for name, value in positive.items():
            _checks.number(name, value, "a finite number > 0", 0.0)
        for name, value in weights.items():
            _checks.number(name, value, "a finite number >= 0", 0.0, closed=True)
        for beta in betas:
            _checks.number("betas", beta, "two in [0, 1)", 0.0, 1.0, closed=True)
        rho = real("rho", rho)
        self._seeds = [0] if member_seeds is None else list(member_seeds)
        self._members = None if member_seeds is None else len(self._seeds)
        if isinstance(rho, Tensor) and len(rho) != self._members:
            raise ValueError(
                f"rho has {len(rho)} values, one per member, and {member_seeds=}; "
                "allowed: a number, or as many seeds"
            )
        self._stream = Stream(seed, normal)
        self._moved = False
        super().__init__(params, {**positive, **weights, "rho": rho, "betas": betas})
        for p in (p for group in self.param_groups for p in group["params"]):
            if self._members not in (None, *p.shape[:1]):
                raise ValueError(
                    f"a parameter of shape {tuple(p.shape)} with {member_seeds=}; "
                    "allowed: the parameters of an Ensemble, one seed per member"
                )

    @torch.no_grad()
    def step(self, closure: Closure) -> Tensor:  # type: ignore[override]
        """One step; returns the detached loss at w + rho g / s, () or (members,).

        `closure` calls `backward()` on the batch's mean loss, and returns it; of an
        ensemble, `backward()` on the sum of its members' mean losses, (members,). g~ is
        in `p.grad` afterwards. If a gradient is not finite, no parameter, m or s
        changes; of an ensemble only the member concerned is lost: its parameters become NaN.
        """
        params = self._params()
        noise = self._stream.draw(list(params), self._seeds)
        with self._shift(params, self._scale(params, noise)):
            grads, _ = self._evaluate(params, closure)
        sizes: list[Tensor | float] = []
        for p, g in zip(params, grads, strict=True):
            s = self.state[p]["s"]
            sizes.append(0.0 if g is None else s.sqrt().mul_(g.abs()))
            if g is not None:
                g.mul_(along_members(params[p]["rho"], g)).div_(s)
        with self._shift(params, grads):
            grads, loss = self._evaluate(params, closure)
        tensors = [t for t in (*sizes, *grads) if isinstance(t, Tensor)]
        finite = l2_norm(tensors, self._members).isfinite()
        if self._members is None and not finite:
            return loss
        lost = torch.where(finite, 0.0, torch.nan)
        for p, size, grad in zip(params, sizes, grads, strict=True):
            if grad is None:
                continue
            if self._members is not None:
                grad.add_(along_members(lost, grad))
            group = params[p]
            m = self.state[p]["m"]
            s = self.state[p]["s"]
            beta1, beta2 = group["betas"]
            decay = group["prior_precision"] / group["examples"]
            m.mul_(beta1).add_(grad, alpha=1 - beta1).add_(p, alpha=(1 - beta1) * decay)
            p.addcdiv_(m, s, value=-group["lr"])
            s.mul_(beta2).add_(size + (group["damping"] + decay), alpha=1 - beta2)
        return loss

    @contextmanager
    def sampled(self, generator: torch.Generator) -> Iterator[None]:
        """Within this context the trainable parameters are a draw from N(w, 1 / (N s)).

        To predict by the average over several draws, in `model.eval()`. `generator` may
        be on any device. `step` and a second draw are refused within.
        """
        params = self._params()
        place = generator.device
        noise = [
            torch.randn(p.shape, generator=generator, dtype=p.dtype, device=place)
            for p in params
        ]
        with self._shift(params, self._scale(params, noise)):
            yield

    def _params(self) -> Params:
        """Each trainable parameter, with its group's settings; its state is made."""
        if self._moved:
            raise RuntimeError("the parameters are a draw; leave `sampled` first")
        groups = self.param_groups
        params = {p: g for g in groups for p in g["params"] if p.requires_grad}
        for p, group in params.items():
            if not self.state[p]:
                self.state[p]["m"] = torch.zeros_like(p)
                self.state[p]["s"] = torch.full_like(p, group["s_init"])
        return params

    def _evaluate(
        self, params: Params, closure: Closure
    ) -> tuple[list[Tensor | None], Tensor]:
        for p in params:
            p.grad = None
        with torch.enable_grad():
            loss = closure()
        grads = [p.grad for p in params]
        if not isinstance(loss, Tensor) or not present(grads):
            raise ValueError(
                "the closure must call backward() on the loss, and return it"
            )
        if loss.numel() != len(self._seeds):
            raise ValueError(
                f"the closure returned a loss of shape {tuple(loss.shape)}; allowed: a "
                "number, or one per member with `member_seeds`, the seeds of an Ensemble"
            )
        shape = () if self._members is None else (self._members,)
        return grads, loss.detach().reshape(shape)

    @contextmanager
    def _shift(self, params: Params, shifts: Sequence[Tensor | None]) -> Iterator[None]:
        """Within this context the parameters are at w + shift; None is zero."""
        tensors = [p.detach() for p in params]
        copies = [t.clone() for t in tensors]

        def restore() -> None:
            torch._foreach_copy_(tensors, copies)
            torch.clear_autocast_cache()
            self._moved = False

        self._moved = True
        try:
            for tensor, shift in zip(tensors, shifts, strict=True):
                if shift is not None:
                    tensor.add_(shift)
            del shifts  # no pass keeps them in memory
            # An autocast region caches low-precision weights by tensor, not value.
            torch.clear_autocast_cache()
            yield
            restore()
        except BaseException:  # an interrupt inside `restore`, too
            restore()
            raise

    def _scale(self, params: Params, noise: Sequence[Tensor]) -> list[Tensor]:
        """u / sqrt(N s), in place."""
        return [
            u.to(p.device).div_((group["examples"] * self.state[p]["s"]).sqrt_())
            for (p, group), u in zip(params.items(), noise, strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        """What `torch.optim.Optimizer.state_dict` gives, and the noise generator."""
        return {**super().state_dict(), "noise": self._stream.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""
        self._stream.load_state_dict(state_dict["noise"])
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "noise"})
