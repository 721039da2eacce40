"""The engine: one step of a method, its passes, and the moves in between.

Parameters are moved from copies and put back bit for bit; every pass starts from the
same buffers and random streams, which end as after the first one (`_state.py`);
gradients that were there before stay, whatever the closure does to `p.grad`; weights
and a GradScaler apply where they should; and all passes but the last stay out of
DistributedDataParallel's synchronization.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from flatnb import _tensors
from flatnb._nets import distributed, ensemble, unwrap
from flatnb._tensors import Real, no_autocast, per_member, present, wide
from flatnb.methods._model import (
    average_gradients,
    contents,
    leaves,
    sharded,
)
from flatnb.methods._refusals import (
    CALLED_BACKWARD,
    NO_GRADIENT,
    check_arguments,
    check_losses,
    check_model,
)
from flatnb.methods._state import Buffers, Streams
from flatnb.methods.perturb import Perturb, factors

if TYPE_CHECKING:
    from flatnb.methods.method import Method

Closure = Callable[[], Tensor]
TINY = 1e-12  # the least norm to divide by: a zero gradient moves nothing


class Gradient(list[Tensor | None]):
    """A gradient, one tensor per parameter.

    Attributes:
        outside: the same pass's gradient in what the losses reach outside the model.
        sparse: the places of those that were sparse tensors.
    """

    def __init__(self, grads: Sequence[Tensor | None], params: int) -> None:
        everything = [
            g.to_dense() if g is not None and g.is_sparse else g for g in grads
        ]
        super().__init__(everything[:params])
        self.outside = everything[params:]
        self.sparse = {i for i, g in enumerate(grads) if g is not None and g.is_sparse}


class Step:
    """One step of a method on one batch, which a `Method.rule` works with.

    A gradient is a list with one tensor per parameter, None where it took no part.
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
        check_arguments(model, closure, weight, scaler)
        self._method, self._model, self._closure = method, model, closure
        self._weight, self._scaler = weight, scaler
        net = ensemble(model)
        self.members: int | None = None if net is None else net.members
        self.seeds: list[int] = [0] if net is None else list(net.seeds)
        self.params: list[Tensor]
        self.params, modules = contents(model)
        hooks = method.hooks()
        plain = "rule" not in hooks and "penalty" not in hooks
        check_model(model, self.params, modules, plain)
        self._sharded = any(map(sharded, modules))
        self._wrapper = distributed(model)
        # The parameters, and what the first graph is seen to reach outside the model.
        self._leaves = list(self.params)
        self._searched = False
        # p.grad: when the step began, while a pass runs, and copies in case of failure.
        self._initial = [p.grad for p in self.params]
        self._versions = [0 if g is None else g._version for g in self._initial]
        self._aside: list[Tensor | None] = []
        self._backup: list[Tensor | None] | None = None
        self._copies: list[Tensor] | None = None  # w, once the parameters have moved
        self._means: list[Tensor] = []
        self._at_w = False
        self._factors: tuple[Perturb, list[float]] | None = None
        self._streams = Streams(self.params)
        self._buffers = Buffers(unwrap(model), modules, single="rule" not in hooks)

    # -- passes

    def backward(self, coefficient: Real = 1.0, *, last: bool = True) -> None:
        """Add coefficient * gradient of the objective at the current point to `p.grad`.

        `last` marks the step's last pass, the one DistributedDataParallel synchronizes.
        """
        factor = coefficient * self._weight
        if not last:
            self._accumulate(self._pass(factor))
            return
        self._put_aside()
        loss = self._loss(factor)
        self._put_back()
        self._differentiate(loss)
        # A hook may have stepped, and cleared the gradient.
        if not (
            self._written() or any(p._post_accumulate_grad_hooks for p in self.params)
        ):
            raise ValueError(NO_GRADIENT)

    def gradient(self) -> Gradient:
        """The gradient at the current parameters, unweighted, unscaled; `p.grad` stays.

        Never synchronized between processes.
        """
        grads = Gradient(self._pass(1.0), len(self.params))
        if self._wrapper is not None and self._wrapper.find_unused_parameters:
            # DistributedDataParallel remembers who took part in an unsynchronized pass,
            # and fails where such a parameter has no gradient to reduce in the end.
            for p, g in zip(self.params, grads, strict=True):
                if p.grad is None and g is not None:
                    p.grad = torch.zeros_like(p)
        if self._scaler is not None:
            _tensors.scale_(
                [*grads, *grads.outside], 1.0 / self._scale(present(grads)[0])
            )
        return grads

    def forward(self) -> None:
        """One pass without gradient at w, if a forward writes buffers (BatchNorm's)."""
        if self._buffers.may_change:
            with torch.no_grad(), self._no_sync():
                self._put_aside()
                self._call(needs_graph=False)
                self._put_back()
            # This first pass with the model may have shown that it writes none.
            if not self._buffers.may_change:
                self._means, self._at_w = [], False

    def add_gradient(self, grads: Sequence[Tensor | None], coefficient: Real) -> None:
        """Add coefficient * `grads`, from `gradient`, to p.grad; they are used up."""
        first = present(grads)[0]
        factor = torch.as_tensor(
            coefficient * self._weight, dtype=wide(first), device=first.device
        )
        if self._scaler is not None:
            factor = factor * self._scale(factor)
        if not isinstance(grads, Gradient):
            grads = Gradient(grads, len(self.params))
        if factor.dim() and present(grads.outside):
            raise ValueError(
                "the losses depend on trainable tensors outside the ensemble, which "
                "belong to no member, and a hyperparameter has one value per member; "
                "give one for all members"
            )
        everything = [*grads, *grads.outside]
        _tensors.scale_(everything, factor)
        for i in grads.sparse:
            everything[i] = cast(Tensor, everything[i]).to_sparse(1)
        self._accumulate(everything)

    def average(self) -> None:
        """Average p.grad over the processes of DistributedDataParallel.

        For a rule that ends with `add_gradient`, not with a last pass. Nothing is sent
        within an outer `no_sync()`.
        """
        if self._wrapper is not None and self._wrapper.require_backward_grad_sync:
            average_gradients(self._wrapper, self.params)

    def _pass(self, factor: Real) -> list[Tensor | None]:
        """factor * gradient for all leaves, never synchronized; `p.grad` stays."""
        with self._no_sync():
            self._put_aside()
            loss = self._loss(factor)
            self._find_outside(loss)
            self._differentiate(loss)
        grads = [p.grad for p in self._leaves]
        self._put_back()
        if not present(grads[: len(self.params)]):
            raise ValueError(NO_GRADIENT)
        return grads

    def _loss(self, factor: Real) -> Tensor:
        """Call the closure; factor * (objective + penalty), scaled, as one number."""
        losses = self._call()
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
        # Autocast would lower the precision of products that the forward took in full.
        with no_autocast(loss):
            loss.backward()

    def _call(self, needs_graph: bool = True) -> Tensor:
        self._streams.rewind()
        self._buffers.rewind()
        # An autocast region caches low-precision weights by tensor, not by value.
        torch.clear_autocast_cache()
        with self._method.watch(self._model):
            returned = self._closure()
        self._buffers.mark()
        if not self._sharded and any(p.grad is not None for p in self.params):
            raise ValueError(CALLED_BACKWARD)
        losses = check_losses(returned, self.members, needs_graph)
        mean = losses.detach().mean(-1)
        if self._copies is None and not self._at_w:
            self._means, self._at_w = [mean], True
        elif not self._at_w:
            self._means.append(mean)
        return losses

    def _find_outside(self, loss: Tensor) -> None:
        """Add to the leaves what the first graph reaches outside the model."""
        if self._searched:
            return
        self._searched = True
        params = {id(p) for p in self.params}
        for leaf in leaves(loss):
            if id(leaf) not in params:
                self._leaves.append(leaf)
                self._initial.append(leaf.grad)
                self._aside.append(leaf.grad)
                leaf.grad = None

    # -- p.grad

    def _put_aside(self) -> None:
        """Leave no gradient in `p.grad`, whatever happens to it next."""
        # A sharded gradient has the shape of a shard, which p may not have now.
        if self._sharded:
            return
        self._aside = [p.grad for p in self._leaves]
        for p, g in zip(self._leaves, self._aside, strict=True):
            if g is not None:
                p.grad = None

    def _put_back(self) -> None:
        for p, g in zip(self._leaves, self._aside, strict=False):
            p.grad = g
        self._aside = []

    def _accumulate(self, grads: Sequence[Tensor | None]) -> None:
        """Add to `p.grad` of all leaves, in place where there is a gradient."""
        if self._backup is None:
            self._backup = [None if g is None else g.clone() for g in self._initial]
        sums, terms = [], []
        for p, g in zip(self._leaves, grads, strict=False):
            if p.grad is None:
                p.grad = g
            elif g is not None and (g.is_sparse or p.grad.is_sparse):
                p.grad = g + p.grad if p.grad.is_sparse else p.grad + g
            elif g is not None:
                sums.append(p.grad)
                terms.append(g)
        if sums:
            torch._foreach_add_(sums, terms)

    def _written(self) -> bool:
        """Whether any `p.grad` is another one, or changed, since the start."""
        # A tensor that is spread over processes keeps its version when it is written.
        return any(
            p.grad is not g
            or (g is not None and (type(g) is not Tensor or g._version != version))
            for p, g, version in zip(
                self.params, self._initial, self._versions, strict=False
            )
        )

    def undo(self) -> None:
        """Put `p.grad` back to the start, unless the last pass has completed it."""
        if self._backup is None and not self._aside and self._written():
            return
        copies = self._initial if self._backup is None else self._backup
        for p, g, copy in zip(self._leaves, self._initial, copies, strict=True):
            p.grad = copy if g is None or g.is_sparse else g
            if g is not copy and g is not None and not g.is_sparse:
                g.copy_(cast(Tensor, copy))

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
        names: dict[Tensor, str] = {p: name for name, p in named}
        return [names[p] for p in self.params]

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

        A zero gradient moves nothing. Returns 1, or NaN where the norm is not finite: a
        coefficient for the last pass. Without it a ReLU might block the NaN, and a
        GradScaler take the step.
        """
        norm = self.norm(grads, perturb) if norm is None else norm
        self.move(grads, rho / norm.clamp_min(TINY), perturb)
        return self.unless_finite(norm)

    def mirror(self) -> None:
        """Set the parameters, now at w + u, to w - u; nobody has to remember u."""
        if self._copies is None:
            raise RuntimeError("the parameters have not been moved; call move first")
        with torch.no_grad():  # p + 2 (w - p) = w - (p - w)
            torch._foreach_lerp_(self.params, self._copies, 2.0)

    @property
    def moved(self) -> bool:
        """Whether the parameters are, or may be, elsewhere than at w."""
        return self._copies is not None

    def close(self) -> None:
        """Leave parameters, buffers and streams as after one plain forward pass."""
        if self._copies is not None:
            with torch.no_grad():
                torch._foreach_copy_(self.params, self._copies)
            self._copies = None
        self._buffers.finish()
        torch.clear_autocast_cache()
        self._streams.finish()

    def value(self) -> Tensor:
        """The mean loss at w if it was evaluated, else the average over the passes."""
        return torch.stack(self._means).mean(0)

    # -- arithmetic

    def per_member(self, name: str, value: Real) -> Real:
        """A hyperparameter, to be used with norms of shape () or (members,)."""
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
        squares = _tensors.squared_norms(present(tensors), self.members)
        norms = squares.new_zeros(len(tensors), *squares.shape[1:])
        norms[[i for i, t in enumerate(tensors) if t is not None]] = squares.sqrt()
        return norms

    def dot(self, a: Sequence[Tensor | None], b: Sequence[Tensor | None]) -> Tensor:
        """The inner product over all tensors together."""
        return _tensors.dot(a, b, self.members)
