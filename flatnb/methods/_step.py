"""The engine: one step of a method, its passes, and the moves in between.

Parameters are moved from copies and put back bit for bit; `Replay` keeps buffers and
random streams; gradients that were there before stay, whatever the closure does to
`p.grad`; only the last pass is synchronized by DistributedDataParallel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flatnb import _checks, _tensors
from flatnb._nets import distributed, ensemble, unwrap
from flatnb._tensors import Real, no_autocast, per_member, present, scalar, wide
from flatnb.methods import _refusals
from flatnb.methods._state import Replay
from flatnb.methods.perturb import Perturb, factors

if TYPE_CHECKING:
    from flatnb.methods.method import Method

Closure = Callable[[], Tensor]
Gradient = list[Tensor | None]  # one tensor per parameter, None where it took no part
TINY = 1e-12  # the least norm to divide by: a zero gradient moves nothing


class Step:
    """One step of a method on one batch, which a `Method.rule` works with.

    Norms and inner products, in float64, are () or (members,), as are factors.

    >>> from flatnb.methods.method import Method
    >>> class MySAM(Method):
    ...     def rule(self, step):
    ...         grads = step.gradient()
    ...         step.move(grads, 0.05 / step.norm(grads))
    ...         step.backward()
    >>> net = nn.Linear(2, 1)
    >>> loss = MySAM().backward(net, lambda: net(torch.ones(4, 2)).exp().squeeze(1))

    Attributes:
        params: the trainable parameters, each once (tied weights are one parameter).
        members: number of members of an ensemble, or None.
        seeds: the members' seeds, [0] for a plain net; a method adds them to its own.
    """

    def __init__(
        self,
        method: Method,
        model: nn.Module,
        closure: Closure,
        weight: float,
        scaler: Any,
    ) -> None:
        nets = "an nn.Module, for several nets nn.ModuleList(nets)"
        _checks.instance("model", model, nn.Module, nets)
        _checks.instance("closure", closure, Callable, _refusals.CLOSURE)
        _checks.number("weight", scalar(weight), "a finite number", -math.inf)
        if scaler is not None and not callable(getattr(scaler, "scale", None)):
            raise TypeError(
                f"scaler={_checks.shown(scaler)}; allowed: a torch.amp.GradScaler, None"
            )
        self._method = method
        self._model = model
        self._closure = closure
        self._weight = weight
        self._scaler = scaler
        net = ensemble(model)
        self.members: int | None = None if net is None else net.members
        self.seeds: list[int] = [0] if net is None else list(net.seeds)
        modules = list(model.modules())
        params = list(model.parameters())
        self.params: list[Tensor] = [p for p in params if p.requires_grad]
        _refusals.check_model(modules, self.params)
        self._wrapper = distributed(model)
        self._replay = Replay(modules, params, several="rule" in method.hooks())
        self._initial = [p.grad for p in self.params]  # when the step began
        self._versions = [0 if g is None else g._version for g in self._initial]
        self._sums: Gradient = [None] * len(self.params)  # of passes before the last
        self._searched = False
        self._copies: list[Tensor] | None = None  # w, once the parameters have moved
        self._means: list[Tensor] = []
        self._at_w = False
        self._factors: tuple[Perturb, list[float]] | None = None

    # -- passes

    def backward(self, coefficient: Real = 1.0, *, last: bool = True) -> None:
        """Add coefficient * gradient of the objective at the current point to `p.grad`.

        `last` marks the step's last pass, the one DistributedDataParallel synchronizes.
        """
        factor = coefficient * self._weight
        if not last:
            _tensors.add_(self._sums, self._pass(factor))
            return
        with self._without_gradients():
            loss = self._loss(factor)
        if self._wrapper is not None:  # what it averages lies in p.grad before
            self._write()
        self._differentiate(loss)
        initial = zip(self.params, self._initial, self._versions, strict=True)
        if all(p.grad is g and (g is None or g._version == v) for p, g, v in initial):
            raise ValueError(_refusals.NO_GRADIENT)

    def gradient(self) -> Gradient:
        """The local gradient at this point, unweighted, unscaled; `p.grad` stays."""
        grads = self._pass(1.0)
        if any(g.is_sparse for g in present(grads)):
            raise ValueError(_refusals.SPARSE)
        if self._wrapper is not None and self._wrapper.find_unused_parameters:
            # DistributedDataParallel remembers who took part in an unsynchronized pass,
            # and fails where such a parameter has no gradient to reduce in the end.
            zeros = [None if g is None else torch.zeros_like(g) for g in grads]
            _tensors.add_(self._sums, zeros)
        if self._scaler is not None:
            _tensors.scale_(grads, 1.0 / self._scale(present(grads)[0]))
        return grads

    def forward(self) -> None:
        """One pass without gradient at w, if a forward may write buffers."""
        if self._replay.may_write:
            with torch.no_grad(), self._no_sync(), self._without_gradients():
                self._call()

    def add_gradient(self, grads: Gradient, coefficient: Real) -> None:
        """Add coefficient * `grads`, from `gradient`, to p.grad; they are used up."""
        first = present(grads)[0]
        factor = torch.as_tensor(
            coefficient * self._weight, dtype=wide(first), device=first.device
        )
        if self._scaler is not None:
            factor = factor * self._scale(factor)
        _tensors.scale_(grads, factor)
        _tensors.add_(self._sums, grads)

    def average(self) -> None:
        """Average p.grad over the processes of DistributedDataParallel.

        For a rule that ends with `add_gradient`. An outer `no_sync()` turns it off.
        """
        wrapper = self._wrapper
        if wrapper is None or not wrapper.require_backward_grad_sync:
            return
        self._write()
        group, device = wrapper.process_group, self.params[0].device
        used = torch.tensor([float(p.grad is not None) for p in self.params]).to(device)
        dist.all_reduce(used, group=group)
        for p, processes in zip(self.params, used.tolist(), strict=True):
            if processes:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                dist.all_reduce(p.grad, group=group)
                p.grad /= dist.get_world_size(group)
        # The next pass takes rank 0's buffers.
        wrapper.require_forward_param_sync = True

    def _pass(self, factor: Real) -> Gradient:
        """factor * gradient, never synchronized; `p.grad` stays."""
        with self._no_sync(), self._without_gradients():
            loss = self._loss(factor)
            if not self._searched:
                _refusals.check_inside(loss, self.params)
                self._searched = True
            self._differentiate(loss)
            grads = [p.grad for p in self.params]
        if not present(grads):
            raise ValueError(_refusals.NO_GRADIENT)
        return grads

    def _loss(self, factor: Real) -> Tensor:
        """Call the closure; factor * (objective + penalty), scaled, as one number."""
        losses = self._call()
        if not losses.requires_grad:
            raise ValueError(_refusals.NO_GRAPH)
        # An autocast region around the step is for the closure alone.
        with no_autocast(losses):
            objective = self._method.objective(losses)
            penalty = self._method.penalty(self._model, losses)
            if penalty is not None:
                objective = objective + penalty
            if isinstance(factor, Tensor):
                objective = objective * factor.to(objective.device, objective.dtype)
            elif factor != 1:  # most steps: two operations less
                objective = objective * factor
            loss = objective.sum() if objective.dim() else objective
            return loss if self._scaler is None else self._scaler.scale(loss)

    def _differentiate(self, loss: Tensor) -> None:
        try:
            with no_autocast(loss):  # it would round products that were taken in full
                loss.backward()
        except RuntimeError as error:
            moved = self._copies is not None and "inplace operation" in str(error)
            if moved or "second time" in str(error):
                raise RuntimeError(_refusals.OLD_GRAPH) from error
            raise

    def _call(self) -> Tensor:
        self._replay.rewind()
        # An autocast region caches low-precision weights by tensor, not by value.
        torch.clear_autocast_cache()
        with self._method.watch(self._model):
            returned = self._closure()
        self._replay.mark()
        if any(p.grad is not None for p in self.params):
            raise ValueError(_refusals.CALLED_BACKWARD)
        losses = _refusals.check_losses(returned, self.members)
        mean = losses.detach().mean(-1)
        if self._copies is None and not self._at_w:
            self._means = [mean]
            self._at_w = True
        elif not self._at_w:
            self._means.append(mean)
        return losses

    # -- p.grad

    @contextmanager
    def _without_gradients(self) -> Iterator[None]:
        """Within, `p.grad` is None at first; afterwards it is what it was."""
        grads = [p.grad for p in self.params]
        try:
            for p in self.params:
                p.grad = None
            yield
        finally:
            for p, g in zip(self.params, grads, strict=True):
                p.grad = g

    def _write(self) -> None:
        """Add the sums of the passes so far to `p.grad`, in place where there is one."""
        grads = [p.grad for p in self.params]
        _tensors.add_(grads, self._sums)
        self._sums = [None] * len(self.params)
        for p, g in zip(self.params, grads, strict=True):
            p.grad = g

    def _no_sync(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._wrapper is None else self._wrapper.no_sync()

    def _scale(self, target: Tensor) -> Tensor:
        # Public, and without the host synchronization of `get_scale`.
        return self._scaler.scale(torch.ones((), device=target.device))

    # -- moves

    @property
    def names(self) -> list[str]:
        """The names of `params` in the net, without those of wrappers."""
        named = unwrap(self._model).named_parameters()
        names = {id(p): name for name, p in named}
        return [names[id(p)] for p in self.params]

    def factors(self, perturb: Perturb | None) -> list[float]:
        """What `perturb` returns for each parameter; 1 for all if it is None."""
        if perturb is None:
            return [1.0] * len(self.params)
        if self._factors is None or self._factors[0] is not perturb:
            net = unwrap(self._model)
            self._factors = perturb, factors(perturb, net, self.params)
        return self._factors[1]

    def move(
        self,
        offsets: Sequence[Tensor | None],
        factor: Real = 1.0,
        perturb: Perturb | None = None,
    ) -> None:
        """Set the parameters to w + factor * f * offsets, w being where the step began.

        f is what `perturb` returns for a parameter; `offsets` are left as they are.
        """
        with torch.no_grad():
            if self._copies is None:
                self._copies = [p.detach().clone() for p in self.params]
            else:
                torch._foreach_copy_(self.params, self._copies)
            factors = self.factors(perturb)
            moved = [
                (p, offset, f)
                for p, offset, f in zip(self.params, offsets, factors, strict=True)
                if offset is not None and f > 0
            ]
            for share in dict.fromkeys(f for _, _, f in moved):
                params = [p for p, _, f in moved if f == share]
                shifts = [offset for _, offset, f in moved if f == share]
                total = factor if share == 1 else factor * share
                _tensors.add_scaled_(params, shifts, total)

    def ascend(
        self,
        grads: Sequence[Tensor | None],
        rho: Real,
        perturb: Perturb | None = None,
        norm: Tensor | None = None,
    ) -> Tensor:
        """Move to w + rho * grads / norm, the norm being ||grads|| unless given.

        A zero gradient moves nothing. Returns the last pass's coefficient: 1, or NaN if
        the norm is not finite, which a ReLU might hide from a GradScaler.
        """
        norm = self.norm(grads, perturb) if norm is None else norm
        self.move(grads, rho / norm.clamp_min(TINY), perturb)
        return self.unless_finite(norm)

    def mirror(self) -> None:
        """Set the parameters, now at w + u, to w - u; without storing u."""
        assert self._copies is not None, "call move first"
        with torch.no_grad():  # p + 2 (w - p) = w - (p - w)
            torch._foreach_lerp_(self.params, self._copies, 2.0)

    def close(self) -> None:
        """Leave parameters, buffers and streams as after one plain forward pass."""
        if self._copies is not None:
            with torch.no_grad():
                torch._foreach_copy_(self.params, self._copies)
            self._copies = None
        self._replay.finish()
        torch.clear_autocast_cache()
        self._write()

    def undo(self) -> None:
        """Close, with the tensors in `p.grad` that were there before."""
        self._sums = [None] * len(self.params)
        for p, g in zip(self.params, self._initial, strict=True):
            p.grad = g
        self.close()

    def value(self) -> Tensor:
        """The mean loss at w if it was evaluated, else the average over the passes."""
        return torch.stack(self._means).mean(0)

    # -- arithmetic

    def per_member(self, name: str, value: Real) -> Real:
        """A hyperparameter, to be used with norms."""
        shape = (1,) if self.members is None else (self.members, 1)
        return per_member(name, value, self.params[0].new_empty(shape))

    def unless_finite(self, norm: Tensor) -> Tensor:
        """1 where `norm` is finite, else NaN."""
        return 1 + 0 * norm

    def norm(
        self, tensors: Sequence[Tensor | None], perturb: Perturb | None = None
    ) -> Tensor:
        """The l2 norm of all tensors together, or of those that `perturb` selects."""
        factors = self.factors(perturb)
        selected = [
            t for t, f in zip(tensors, factors, strict=True) if t is not None and f > 0
        ]
        if not selected:  # none of them took part in the pass
            selected = [torch.zeros_like(self.params[0])]
        return _tensors.l2_norm(selected, self.members)

    def norms(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """The l2 norm of each tensor, 0 for None: (tensors,) or (tensors, members)."""
        filled = [
            torch.zeros_like(p) if t is None else t
            for p, t in zip(self.params, tensors, strict=True)
        ]
        return _tensors.norms(filled, self.members)

    def dot(self, a: Sequence[Tensor | None], b: Sequence[Tensor | None]) -> Tensor:
        """The inner product over all tensors together."""
        return _tensors.dot(a, b, self.members)
