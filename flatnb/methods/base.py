"""What every method shares: the step and its passes, and the three hooks that make a
method.

A method turns a batch of per-example losses into a gradient. `Method` has three hooks,
each with a default, and a method overrides those it changes:

    objective(losses) -> scalar     the loss transform        (default: the mean)
    rule(step)                      where and how often the gradient is taken (default:
    once, at w)
    penalty(model, losses)          a term added to the objective (default: none)

`Step` is what a rule works with. It owns everything that goes wrong when a closure is
called more
than once: parameters are moved from kept copies and put back bit for bit, every pass
    starts from
the same buffers and random streams, which end as after the first one (`_state.py`),
gradients that were there before stay, whatever the closure does to `p.grad`,
micro-batch weights and a GradScaler apply where they should, and all passes but the
last stay out of DistributedDataParallel's synchronisation.
"""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flatnb._nets import unwrap
from flatnb.methods._model import (
    check_model,
    contents,
    distributed,
    ensemble,
    leaves,
    sharded,
)
from flatnb.methods._state import Buffers, Streams

Closure = Callable[[], Tensor]
Real = float | Tensor
# What a hyperparameter takes: a value, or a function of the number of earlier calls;
# schedules.py.
Value = Real | Callable[[int], Real]
# Of a parameter's name, the parameter, and the layer that holds it; see perturb.py.
Perturb = Callable[[str, Tensor, nn.Module], float]
TINY = 1e-12  # the least norm that a move is divided by: that of a zero gradient stays zero


class Method:
    """Base of all methods. `backward` stands where `loss.backward()` stood.

    Attributes:
        passes: forward-backward passes one step costs, for compute-fair comparisons;
            the average where steps differ.
        calls: number of calls of `backward` so far, which schedules follow.
    """

    passes: float = 1
    calls: int = 0

    def objective(self, losses: Tensor) -> Tensor:
        """Reduce per-example losses (..., n) over the last axis to what is minimised, (...)."""
        return losses.mean(-1)

    def rule(self, step: Step) -> None:
        """Leave the step's gradient in `p.grad` through calls of `step`."""
        step.backward()

    def watch(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Entered around each call of the closure; a penalty sees the net's insides through it."""
        return nullcontext()

    def penalty(self, model: nn.Module, losses: Tensor) -> Tensor | None:
        """A term, shape () or (members,), added to the objective of each pass; None for
        none.

        `losses` are the plain per-example losses, with their graph.
        """
        return None

    def backward(
        self,
        model: nn.Module,
        closure: Closure,
        *,
        weight: float = 1.0,
        scaler: Any = None,
    ) -> Tensor:
        """Add `weight` times the method's gradient to every trainable `p.grad`.

        Args:
            model: the net, plain, compiled, an `Ensemble`, or wrapped in
                DistributedDataParallel; several nets as one `nn.ModuleList`.
            closure: returns the plain per-example losses, shape (n,), or (members, n)
                for an ensemble, at the model's current parameters, on the same batch at
                every call. A loss that is one number, shape (), or (members,), is a
                batch of one example.
            weight: factor of the gradient, 1/k when accumulating k micro-batches.
                Thresholds and radii see the unweighted losses: each micro-batch is a
                    batch of its own.
            scaler: a `torch.amp.GradScaler`; `p.grad` is then scaled as after
                `scaler.scale(loss).backward()`, perturbations use unscaled gradients.

        Returns:
            The detached mean of the plain losses, shape () or (members,), at the
            unperturbed parameters w where the method evaluates there, else the average
            over its passes.

        Raises:
            TypeError, ValueError: an argument is not what is allowed; the closure
                returns no losses with a graph, or calls `backward()`; no parameter is
                trainable, or one is on the meta device. Of methods that move parameters
                or look into the net, also: parameters that are complex, have
                    post-accumulate-grad hooks, or are spread over
                processes (FSDP, tensor parallel); DistributedDataParallel with a static
                graph.
            RuntimeError: a part of the losses' graph was made before the closure was
                called.

        **The closure** only computes: no `backward()`, no `step()`. `zero_grad()` in it
            changes
        nothing. With ERM and `reduction="none"` the gradient is that of
        `loss.backward()` for the mean of what is returned. Where PyTorch's own mean is
        another, return

            losses * len(y) / w[y].sum()    of losses with class weights, weight=w
            losses[y != -100]               of losses with ignored labels
            sum(losses.values())            of a dict of losses, each one number

        (`torch.stack` of such a dict would be the losses of that many examples, and
        their mean the gradient.) A target or a penalty that needs a gradient is
        computed in the closure. Random numbers are the same in every pass if they come
        from torch's global streams.

        **Tensors outside the model** that the losses depend on and that require a
        gradient (a second net, learnable loss weights) are not perturbed. They get the
        same combination of
        gradients as the parameters: for SAM that of the second pass, for NSO the
            average. To have
        them perturbed, too, pass `nn.ModuleList([model, loss])`. (A reentrant
        checkpoint hides
        what it uses: there they would get the sum over passes; take
            `use_reentrant=False`.)

        **State.** Each pass starts from the same buffers, and they end as the first
        pass left them. So do frozen parameters that the forward writes (a momentum
        encoder's). Buffers of more than 2**20 entries, and frozen parameters, must be
        written in the first step with the model, or after a change of mode, to be
        known.

        If the closure raises, parameters and `p.grad` are put back to where the step
        began; buffers and random streams stay as the first pass left them.

        Values are not checked: after a non-finite pass the parameters are restored and
            `p.grad` is
        left non-finite, so that a scaler, or the loop, skips the step.

        Under DistributedDataParallel each process moves by its own gradient, only the
        last pass is synchronised, an outer `no_sync()` is honoured, and the running
        statistics to keep are, as always there, those of rank 0. Under FSDP, where ERM
        and the flooding methods run, a `zero_grad()` in the closure is what it is
        without them.

            >>> import torch, flatnb
            >>> net = torch.nn.Linear(2, 1)
            >>> x = torch.ones(4, 2)
            >>> loss = flatnb.SAM(rho=0.05).backward(net, lambda: net(x).square().squeeze(1))
            >>> net.weight.grad.shape
            torch.Size([1, 2])
        """
        step = Step(self, model, closure, weight, scaler)
        try:
            self.rule(step)
            step.close()
        except BaseException as error:
            # An interrupt inside `close` lands here, too, and it runs once more.
            moved = step.moved
            step.undo()
            step.close()
            if "second time" in str(error) or (
                moved and "inplace operation" in str(error)
            ):
                raise RuntimeError(_OLD_GRAPH) from error
            raise
        self.advance()
        return step.value()

    def hooks(self) -> list[str]:
        """The hooks among objective, rule and penalty that the method changes."""
        return [
            hook
            for hook in ("objective", "rule", "penalty")
            if getattr(type(self), hook) is not getattr(Method, hook)
        ]

    def advance(self) -> None:
        """Count a call of `backward` that has ended well."""
        self.calls += 1

    def counts(self) -> bool:
        """Whether a step depends on the number of earlier calls: through a schedule, by default."""
        return any(
            isinstance(attribute := getattr(type(self), name, None), Hyperparameter)
            and attribute.is_schedule(value)
            for name, value in vars(self).items()
        )

    def state_dict(self) -> dict[str, Any]:
        """What the method remembers between steps: the number of calls, if it counts."""
        return {"calls": self.calls} if self.counts() else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        if rest := self.load_calls(state):
            raise ValueError(f"{self!r} keeps no state; got the entries {sorted(rest)}")

    def load_calls(self, state: dict[str, Any]) -> dict[str, Any]:
        """Take back the number of calls, and return the other entries of a state."""
        if "calls" in state:
            self.calls = count("calls", state["calls"], low=0)
        elif self.counts():
            raise ValueError(
                f"{self!r} needs a state with the entry 'calls'; got {sorted(state)}"
            )
        return {name: value for name, value in state.items() if name != "calls"}

    def __repr__(self) -> str:
        """The constructor call: parameters without default, and those that differ from theirs."""
        shown = []
        for name, parameter in inspect.signature(type(self)).parameters.items():
            # What was set, a schedule as such.
            value = vars(self)[name] if name in vars(self) else getattr(self, name)
            default = parameter.default
            if isinstance(value, Tensor):
                shown.append(f"{name}=<{value.numel()} values>")
            elif default is inspect.Parameter.empty or value != default or not shown:
                shown.append(f"{name}={_shown(value)}")
        return f"{type(self).__name__}({', '.join(shown)})"


def _shown(value: Any) -> str:
    return value.__name__ if inspect.isfunction(value) else repr(value)


_NO_GRADIENT = (
    "no trainable parameter of the model got a gradient: the losses the closure returned do not "
    "depend on this model"
)
_OLD_GRAPH = (
    "a part of the losses' graph is older than this pass: the closure called backward() itself, "
    "or it uses something that was computed before it, with gradients (a target, a feature, a "
    "penalty). Compute that inside the closure, or detach() it"
)


class ERM(Method):
    """Empirical risk minimisation: the gradient of the mean loss, one pass."""


class Gradient(list[Tensor | None]):
    """A gradient, one tensor per parameter.

    Attributes:
        outside: the same pass's gradient in what the losses reach outside the model.
        sparse: the places of those that were sparse tensors.
    """

    def __init__(
        self,
        grads: list[Tensor | None],
        *,
        outside: list[Tensor | None],
        sparse: set[int],
    ) -> None:
        super().__init__(grads)
        self.outside, self.sparse = outside, sparse


class Step:
    """One step of a method on one batch: its passes, and the moves of the parameters
    between them.

    Attributes:
        params: the trainable parameters, each once (tied weights are one parameter).
        members: number of members of an ensemble, or None.
        seeds: the members' seeds, [0] for a plain net; a method adds them to its own
            seed.
    """

    def __init__(
        self,
        method: Method,
        model: nn.Module,
        closure: Closure,
        weight: float,
        scaler: Any,
    ) -> None:
        _check_arguments(model, closure, weight, scaler)
        self._method, self._model, self._closure = method, model, closure
        self._weight, self._scaler = weight, scaler
        members = ensemble(model)
        self.members: int | None = None if members is None else members.members
        self.seeds: list[int] = [0] if members is None else list(members.seeds)
        self.params: list[Tensor]
        self.params, modules = contents(model)
        hooks = method.hooks()
        check_model(
            model, self.params, modules, moves="rule" in hooks or "penalty" in hooks
        )
        self._sharded = any(map(sharded, modules))
        self._wrapper = distributed(model)
        # The parameters, and what the first graph is seen to reach outside the model.
        self._leaves = list(self.params)
        self._before = [p.grad for p in self.params]
        self._versions = [0 if g is None else g._version for g in self._before]
        self._aside: list[Tensor | None] = []
        self._searched = False
        self._copies: list[Tensor] | None = None
        self._grads: list[Tensor | None] | None = None
        self._means: list[Tensor] = []
        self._factors: tuple[Perturb, list[float]] | None = None
        self._seen_w = False
        self._streams = Streams(
            self.params, [] if members is None else members.generators
        )
        self._buffers = Buffers(unwrap(model), modules, once="rule" not in hooks)

    # -- passes
    # ---------------------------------------------------------------------------------

    def backward(self, coefficient: Real = 1.0, *, last: bool = True) -> None:
        """Add weight * coefficient * gradient of the objective at the current
        parameters to p.grad.

        `last` marks the step's last pass, the one DistributedDataParallel synchronises.
        """
        factor = coefficient * self._weight
        if not last:
            self._accumulate(self._pass(factor))
            return
        with self._no_sync(False):
            self._put_aside()
            loss = self._loss(factor)
            self._put_back()
            self._differentiate(loss)
        # A hook may have stepped, and cleared the gradient.
        if not (
            self._written() or any(p._post_accumulate_grad_hooks for p in self.params)
        ):
            raise ValueError(_NO_GRADIENT)

    def gradient(self) -> Gradient:
        """The gradient at the current parameters, unweighted and unscaled; `p.grad`
        stays.

        Never synchronised between processes. Entries are None where a parameter took no
        part.
        """
        found = self._pass(1.0)
        sparse = {i for i, g in enumerate(found) if g is not None and g.is_sparse}
        grads = [dense(g) for g in found]
        if self._wrapper is not None and self._wrapper.find_unused_parameters:
            # DistributedDataParallel remembers who took part in an unsynchronised pass,
            # and fails where such a parameter has no gradient to reduce in the end.
            for p, g in zip(self.params, grads, strict=False):
                if p.grad is None and g is not None:
                    p.grad = torch.zeros_like(p)
        if self._scaler is not None:
            self.scale_(grads, 1.0 / self._scale(present(grads)[0]))
        n = len(self.params)
        return Gradient(grads[:n], outside=grads[n:], sparse=sparse)

    def forward(self) -> None:
        """One pass without gradient at w, only if that writes buffers: BatchNorm's, or others."""
        if self._buffers.may_change:
            with torch.no_grad(), self._no_sync(True):
                self._put_aside()
                self._call(needs_graph=False)
                self._put_back()
            if (
                not self._buffers.may_change
            ):  # as this first pass with the model has shown
                self._means, self._seen_w = [], False

    def add_gradient(self, grads: Sequence[Tensor | None], coefficient: Real) -> None:
        """Add weight * coefficient * `grads` to p.grad; `grads`, from `gradient`, are used up."""
        like = present(grads)[0]
        factor = torch.as_tensor(
            coefficient * self._weight, dtype=_wide(like), device=like.device
        )
        if self._scaler is not None:
            factor = factor * self._scale(factor)
        outside = grads.outside if isinstance(grads, Gradient) else []
        sparse = grads.sparse if isinstance(grads, Gradient) else set()
        if factor.dim() and present(outside):
            raise ValueError(
                "the losses depend on trainable tensors outside the ensemble, which belong to no "
                "member, and a hyperparameter has one value per member; give one for all members"
            )
        grads = [*grads, *outside]
        self.scale_(grads, factor)
        self._accumulate(
            [
                g.to_sparse(1) if g is not None and i in sparse else g
                for i, g in enumerate(grads)
            ]
        )

    def average(self) -> None:
        """Average p.grad over the processes of DistributedDataParallel, as a last pass
        does.

        For a rule that ends with `add_gradient`. Within an outer `no_sync()` nothing is
        sent.
        """
        model = self._wrapper
        if model is None or not model.require_backward_grad_sync:
            return
        for kind in dict.fromkeys((p.device, p.dtype) for p in self.params):
            params = [p for p in self.params if (p.device, p.dtype) == kind]
            grads = [dense(p.grad) for p in params]
            parts = [
                torch.zeros_like(p) if g is None else g
                for p, g in zip(params, grads, strict=True)
            ]
            took_part = torch.tensor([float(g is not None) for g in grads])
            flat = torch.cat([*(g.flatten() for g in parts), took_part.to(parts[0])])
            dist.all_reduce(flat, group=model.process_group)
            flat /= dist.get_world_size(model.process_group)
            *means, took_part = flat.split([*(p.numel() for p in params), len(params)])
            for p, mean, part in zip(params, means, took_part.tolist(), strict=True):
                p.grad = mean.view_as(p).clone() if part else None
        model.require_forward_param_sync = (
            True  # the next pass takes the buffers of rank 0
        )

    def _pass(self, factor: Real) -> list[Tensor | None]:
        """factor * gradient of the objective for all leaves, never synchronised; `p.grad` stays."""
        with self._no_sync(True):
            self._put_aside()
            loss = self._loss(factor)
            self._find_outside(loss)
            self._differentiate(loss)
        grads = [p.grad for p in self._leaves]
        self._put_back()
        if not present(grads[: len(self.params)]):
            raise ValueError(_NO_GRADIENT)
        return grads

    def _loss(self, factor: Real) -> Tensor:
        """Call the closure; factor * the objective, scaled."""
        losses, objective = self._objective()
        with _no_autocast(losses.device.type):
            if isinstance(factor, Tensor):
                objective = objective * factor.to(objective.device, objective.dtype)
            elif factor != 1:  # most steps: two operations less
                objective = objective * factor
            loss = objective.sum() if objective.dim() else objective
            return loss if self._scaler is None else self._scaler.scale(loss)

    def _differentiate(self, loss: Tensor) -> None:
        with _no_autocast(loss.device.type):
            loss.backward()

    def _objective(self) -> tuple[Tensor, Tensor]:
        """Call the closure; the per-example losses, and what is minimised, () or (members,)."""
        losses = self._call()
        # An autocast region around the step is for the closure alone; in the backward
        # it would lower the precision of products that the forward took in full.
        with _no_autocast(losses.device.type):
            objective = self._method.objective(losses)
            penalty = self._method.penalty(self._model, losses)
            return losses, objective if penalty is None else objective + penalty

    def _call(self, needs_graph: bool = True) -> Tensor:
        self._streams.rewind()
        self._buffers.rewind()
        # Inside an autocast region the low-precision weights are cached by tensor, not
        # by value.
        torch.clear_autocast_cache()
        with self._method.watch(self._model):
            returned = self._closure()
        self._buffers.mark()
        if not self._sharded and any(p.grad is not None for p in self.params):
            raise ValueError(
                "the closure left a gradient in p.grad: it called backward(). It must only compute "
                "and return the losses; this method calls backward() itself"
            )
        losses = check_losses(returned, self.members, needs_graph)
        mean = losses.detach().mean(-1)
        if self._copies is None and not self._seen_w:
            self._means, self._seen_w = [mean], True
        elif not self._seen_w:
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
                self._before.append(leaf.grad)
                self._aside.append(leaf.grad)
                leaf.grad = None

    # -- p.grad
    # ---------------------------------------------------------------------------------

    def _put_aside(self) -> None:
        """Leave no gradient in `p.grad`, whatever happens to it next."""
        if (
            self._sharded
        ):  # its gradients have the shape of a shard, which p may not have now
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
        if self._grads is None:  # in case the step fails
            self._grads = [None if g is None else g.clone() for g in self._before]
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
        """Whether any `p.grad` is another, or holds something else, than when the step began."""
        # A tensor that is spread over processes keeps its version when it is written.
        return any(
            p.grad is not g
            or (g is not None and (type(g) is not Tensor or g._version != version))
            for p, g, version in zip(
                self.params, self._before, self._versions, strict=False
            )
        )

    def undo(self) -> None:
        """Put `p.grad` back to where the step began, unless the last pass has completed it."""
        if self._grads is None and not self._aside and self._written():
            return
        copies = self._before if self._grads is None else self._grads
        for p, g, copy in zip(self._leaves, self._before, copies, strict=True):
            p.grad = copy if g is None or g.is_sparse else g
            if g is not copy and g is not None and not g.is_sparse:
                g.copy_(cast(Tensor, copy))

    @property
    def names(self) -> list[str]:
        """The names of `params` in the net, without those of wrappers."""
        named = unwrap(self._model).named_parameters()
        names: dict[Tensor, str] = {p: name for name, p in named}
        return [names[p] for p in self.params]

    def _no_sync(self, wanted: bool) -> Any:
        return self._wrapper.no_sync() if wanted and self._wrapper else nullcontext()

    def _scale(self, like: Tensor) -> Tensor:
        # Public, and without the host synchronisation of `get_scale`.
        return self._scaler.scale(torch.ones((), device=like.device))

    # -- moves
    # ----------------------------------------------------------------------------------

    def factors(self, perturb: Perturb | None) -> list[float]:
        """What the move of each parameter is multiplied by; 1 for all if `perturb` is
        None.

        Raises:
            TypeError, ValueError: `perturb` returns anything but True, False or a
                finite number >= 0, or 0 for all parameters.
        """
        if perturb is None:
            return [1.0] * len(self.params)
        if self._factors is None or self._factors[0] is not perturb:
            self._factors = perturb, self._ask(perturb)
        return self._factors[1]

    def _ask(self, perturb: Perturb) -> list[float]:
        answers: dict[int, float] = {}
        trainable = {id(p) for p in self.params}
        for path, module in unwrap(self._model).named_modules():
            for key, p in module._parameters.items():
                if id(p) in trainable and id(p) not in answers:
                    name = f"{path}.{key}" if path else key
                    answer = perturb(name, cast(Tensor, p), module)
                    if not isinstance(answer, bool):
                        answer = number(f"perturb({name!r}, …)", answer)
                    answers[id(p)] = float(answer)
        if not any(answers.values()):
            raise ValueError(
                f"perturb={_shown(perturb)} selects none of the {len(self.params)} trainable "
                "parameters; allowed: a function that selects at least one. ERM() moves none"
            )
        return [answers[id(p)] for p in self.params]

    def move(
        self,
        offsets: Sequence[Tensor | None],
        factor: Real = 1.0,
        perturb: Perturb | None = None,
    ) -> None:
        """Set the parameters to w + factor * f * offsets, w being where the step began.

        `factor` is a number or of shape () or (members,), f the number that `perturb`
        returns for a parameter; `offsets` are left as they are.
        """
        with torch.no_grad():
            if self._copies is None:
                self._copies = [p.detach().clone() for p in self.params]
            else:
                torch._foreach_copy_(self.params, self._copies)
            factors = self.factors(perturb)
            moved = [
                (p, o, f)
                for p, o, f in zip(self.params, offsets, factors, strict=True)
                if o is not None and f > 0
            ]
            for share in dict.fromkeys(f for _, _, f in moved):
                params = [p for p, _, f in moved if f == share]
                shifts = [o for _, o, f in moved if f == share]
                add_scaled_(params, shifts, factor if share == 1 else factor * share)

    @property
    def moved(self) -> bool:
        """Whether the parameters are, or may be, elsewhere than at w."""
        return self._copies is not None

    def mirror(self) -> None:
        """Set the parameters, now at w + u, to w - u; nobody has to remember u for that."""
        if self._copies is None:
            raise RuntimeError(
                "the parameters have not been moved: there is no side to change"
            )
        with torch.no_grad():
            torch._foreach_lerp_(
                self.params, self._copies, 2.0
            )  # p + 2 (w - p) = w - (p - w)

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
        return (
            self._means[0]
            if len(self._means) == 1
            else torch.stack(self._means).mean(0)
        )

    # -- whole-gradient arithmetic
    # ----------------------------------------------------------------

    def per_member(self, name: str, value: Real) -> Real:
        """A hyperparameter for use with norms of shape () or (members,)."""
        if isinstance(value, Tensor):
            if self.members != len(value):
                raise ValueError(
                    f"{name} has {len(value)} values, one per member, but the model is "
                    f"{'no Ensemble' if self.members is None else f'of {self.members} members'}"
                )
            return value.to(self.params[0].device)
        return value

    def unless_finite(self, norm: Tensor) -> Tensor:
        """1 where `norm` is finite, else NaN, so that the step's gradient is seen to be
        lost.

        Without it a non-finite first gradient might leave parts of `p.grad` finite (a
        ReLU blocks NaN), and a GradScaler take the step.
        """
        return 1 + 0 * norm

    def norm(
        self, tensors: Sequence[Tensor | None], perturb: Perturb | None = None
    ) -> Tensor:
        """The l2 norm over all tensors together, () or (members,), accumulated in
        float64.

        With `perturb`, over those of the parameters for which it returns a number > 0.
        """
        factors = self.factors(perturb)
        some = [
            t for t, f in zip(tensors, factors, strict=True) if t is not None and f > 0
        ]
        if not some:  # none of them took part in the pass
            like = self.params[0]
            shape = () if self.members is None else (self.members,)
            return torch.zeros(shape, dtype=_wide(like), device=like.device)
        return l2_norm(some, self.members)

    def norms(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """The l2 norm of each tensor, 0 for None: (tensors,) or (tensors, members), in float64."""
        squares = squared_norms(present(tensors), self.members)
        norms = squares.new_zeros(len(tensors), *squares.shape[1:])
        norms[[i for i, t in enumerate(tensors) if t is not None]] = squares.sqrt()
        return norms

    def dot(self, a: Sequence[Tensor | None], b: Sequence[Tensor | None]) -> Tensor:
        """The inner product over all tensors together, () or (members,), in float64."""
        like = self.params[0]
        total = torch.zeros(
            () if self.members is None else (self.members,),
            dtype=_wide(like),
            device=like.device,
        )
        for s, t in zip(a, b, strict=True):
            if s is not None and t is not None:
                product = s.to(_wide(s)) * t.to(_wide(t))
                over = range(0 if self.members is None else 1, product.dim())
                total += (product.sum(tuple(over)) if over else product).to(
                    total.device
                )
        return total

    def scale_(self, tensors: Sequence[Tensor | None], factor: Tensor) -> None:
        """Multiply in place by a factor of shape () or (members,)."""
        some = present(tensors)
        if factor.dim() == 0 and len({(t.device, t.dtype) for t in some}) == 1:
            torch._foreach_mul_(some, factor.to(some[0].device, some[0].dtype))
        else:
            for t in some:
                t.mul_(aligned(factor, t))


def _no_autocast(device: str) -> AbstractContextManager[Any]:
    on = torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else nullcontext()


def _check_arguments(model: Any, closure: Any, weight: Any, scaler: Any) -> None:
    if not isinstance(model, nn.Module):
        several = isinstance(model, Sequence)
        raise TypeError(
            f"model is {type(model).__name__}; allowed: an nn.Module"
            + (
                ", for several nets nn.ModuleList(nets)"
                if several
                else ", the net itself"
            )
            + "; an optimizer stays in the loop"
        )
    if not callable(closure):
        raise TypeError(
            f"closure is {type(closure).__name__}; allowed: a function without arguments that "
            "computes the losses, as method.backward(model, lambda: F.cross_entropy(model(x), y, "
            'reduction="none"))'
        )
    if weight != 1:
        number("weight", weight, low=-math.inf)
    if scaler is not None and not callable(getattr(scaler, "scale", None)):
        raise TypeError(f"scaler={scaler!r}; allowed: None or a torch.amp.GradScaler")


def check_losses(
    returned: Any, members: int | None, needs_graph: bool = True
) -> Tensor:
    """What the closure returned, as per-example losses (n,) or (members, n), with a graph."""
    wanted = "(n,), one loss per example" if members is None else f"({members}, n)"
    single = "()" if members is None else f"({members},)"
    expected = f"expected {wanted}, or {single}, a loss that is one number"
    if not isinstance(returned, Tensor):
        raise TypeError(
            f"the closure returned {type(returned).__name__}; it must return a tensor: "
            f"{expected}{_hint(returned)}"
        )
    shape = tuple(returned.shape)
    if returned.numel() == 0:
        raise ValueError(
            f"the closure returned losses of shape {shape}: the batch is empty, or all of it was "
            "masked; skip it"
        )
    losses = returned
    if shape == (() if members is None else (members,)):
        losses = returned.unsqueeze(-1)
    elif len(shape) != 1 if members is None else shape[:-1] != (members,):
        raise ValueError(
            f"the closure returned losses of shape {shape}; {expected}{_hint(returned)}"
        )
    if losses.is_complex():
        raise ValueError(
            f"the losses are {losses.dtype}; allowed: real numbers, as from .abs()"
        )
    if needs_graph and not losses.requires_grad:
        raise ValueError(
            "the closure returned losses without a graph; compute them from the model's output "
            "outside torch.no_grad(), without detach()"
        )
    return losses


def _hint(returned: Any) -> str:
    """How to make losses of what the closure returned instead."""
    if isinstance(returned, Mapping):
        return ". Of a dict of losses return sum(losses.values()); of a model's output, output.loss"
    if isinstance(returned, float | int):
        return ". Return the tensor itself, without .item() or float()"
    if isinstance(returned, Tensor) and returned.dim() == 2 and returned.shape[1] == 1:
        return ". Return losses.squeeze(1)"
    if isinstance(returned, Tensor) and returned.dim() > 1:
        return (
            ". Count every entry (token, pixel) as an example, losses.flatten() or losses[mask], "
            "or average tokens to one loss per example, losses.flatten(1).mean(1)"
        )
    return '. Return the losses unreduced, as from cross_entropy(..., reduction="none")'


def l2_norm(tensors: Sequence[Tensor], members: int | None = None) -> Tensor:
    """The l2 norm of all tensors as one vector, in float64 (float32 on MPS); (members,)
    per member.

    float32 accumulation over a whole net loses up to three digits.
    """
    return squared_norms(tensors, members).sum(0).sqrt()


def squared_norms(tensors: Sequence[Tensor], members: int | None = None) -> Tensor:
    """The squared l2 norm of each tensor, (tensors,) or (tensors, members); see `l2_norm`."""
    norms = [
        torch.linalg.vector_norm(t, dtype=_wide(t))
        if members is None
        else torch.linalg.vector_norm(t.reshape(members, -1), dim=1, dtype=_wide(t))
        for t in tensors
    ]
    return torch.stack([n.to(tensors[0].device) for n in norms]).square()


def add_scaled_(tensors: list[Tensor], offsets: list[Tensor], factor: Real) -> None:
    """Add factor * offsets in place; `factor` is a number or of shape () or (members,)."""
    if isinstance(factor, Tensor) and factor.dim() == 0 and factor.device.type == "cpu":
        factor = factor.item()  # no device to wait for
    if not isinstance(factor, Tensor):
        torch._foreach_add_(tensors, offsets, alpha=factor)
    elif factor.dim() == 0 and len({(o.device, o.dtype) for o in offsets}) == 1:
        scaled = torch._foreach_mul(
            offsets, factor.to(offsets[0].device, offsets[0].dtype)
        )
        torch._foreach_add_(tensors, scaled)
    else:
        for t, o in zip(tensors, offsets, strict=True):
            t.addcmul_(o, aligned(factor, o))


def aligned(factor: Tensor, like: Tensor) -> Tensor:
    """`factor`, () or (members,), so that it multiplies `like` or its members."""
    shape = (-1, *[1] * (like.dim() - 1)) if factor.dim() else ()
    return factor.to(like.device, like.dtype).view(shape)


def _wide(t: Tensor) -> torch.dtype:
    return torch.float32 if t.device.type == "mps" else torch.float64


def present(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    """Those that are not None."""
    return [t for t in tensors if t is not None]


def dense(grad: Tensor | None) -> Tensor | None:
    """A sparse gradient (of an Embedding with sparse=True) as a dense one."""
    return grad.to_dense() if grad is not None and grad.is_sparse else grad


# -- hyperparameters
# ------------------------------------------------------------------------------


class Hyperparameter:
    """An attribute of a method that is checked whenever it is set, not in `__init__`
    alone.

        class SAM(Method):
            rho = Hyperparameter()                          # real(): finite and >= 0
            k = Hyperparameter(count)                       # an integer >= 1
            sigma = Hyperparameter(partial(real, open_low=True))

    Set to a function, it is a schedule: read, it is what the function returns for the
        number of
    earlier calls of the method, checked.

    Args:
        check: `check(name, value)` returns the value to keep, or raises. By default
            `real`.
        schedule: whether a function is a schedule. If not, it is a value as any other.
    """

    def __init__(
        self, check: Callable[[str, Any], Any] | None = None, *, schedule: bool = True
    ) -> None:
        self._check = real if check is None else check
        self._schedule = schedule

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def is_schedule(self, value: Any) -> bool:
        return self._schedule and callable(value)

    def __get__(self, method: Any, owner: type | None = None) -> Any:
        if method is None:
            return self
        try:
            value = method.__dict__[self._name]
        except KeyError:
            raise AttributeError(f"{self._name} has not been set") from None
        if self.is_schedule(value):
            return self._check(self._name, value(method.calls))
        return value

    def __set__(self, method: Any, value: Any) -> None:
        schedule = self.is_schedule(value)
        checked = self._check(self._name, value(method.calls) if schedule else value)
        method.__dict__[self._name] = value if schedule else checked


def number(
    name: str,
    value: Any,
    *,
    low: float = 0.0,
    high: float = math.inf,
    open_low: bool = False,
) -> float:
    """A finite number within [low, high]; of Python, NumPy or a 0-dimensional tensor.

    Raises:
        TypeError: not a real number. ValueError: not finite, or outside the range.
    """
    return _number(name, value, low, high, open_low, _interval(low, high, open_low))


def real(
    name: str,
    value: Any,
    *,
    low: float = 0.0,
    high: float = math.inf,
    open_low: bool = False,
) -> Real:
    """A `number`, or a 1-D tensor of numbers, one per member of an ensemble.

    Raises:
        TypeError: not real numbers. ValueError: not finite, outside the range, or not
            1-D.
    """
    allowed = (
        f"{_interval(low, high, open_low)}, or a 1-D tensor of them, one per member"
    )
    if not isinstance(value, Tensor) or value.dim() == 0 or value.is_complex():
        return _number(name, value, low, high, open_low, allowed)
    if value.dim() > 1 or value.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; allowed: {allowed}")
    for entry in value.tolist():
        _number(name, entry, low, high, open_low, allowed)
    return (
        value.detach().clone()
    )  # what the caller writes into it later would not be checked


def _interval(low: float, high: float, open_low: bool) -> str:
    upper = f" and <= {high:g}" if high < math.inf else ""
    return f"a finite number {'>' if open_low else '>='} {low:g}{upper}"


def _number(
    name: str, value: Any, low: float, high: float, open_low: bool, allowed: str
) -> float:
    entry = value.item() if isinstance(value, Tensor) and value.dim() == 0 else value
    if isinstance(entry, bool) or not isinstance(entry, numbers.Real):
        raise TypeError(
            f"{name}={value!r} is {type(value).__name__}; allowed: {allowed}"
        )
    try:
        entry = float(entry)
    except OverflowError:
        entry = math.inf
    above = entry > low if open_low else entry >= low
    if not (math.isfinite(entry) and above and entry <= high):
        raise ValueError(f"{name}={entry!r}; allowed: {allowed}")
    return entry


def count(name: str, value: Any, *, low: int = 1) -> int:
    """An integer >= low; of Python, NumPy or a 0-dimensional tensor."""
    entry = value.item() if isinstance(value, Tensor) and value.dim() == 0 else value
    if isinstance(entry, bool) or not isinstance(entry, numbers.Integral):
        raise TypeError(
            f"{name}={value!r} is {type(value).__name__}; allowed: an integer >= {low}"
        )
    if entry < low:
        raise ValueError(f"{name}={value!r}; allowed: an integer >= {low}")
    return int(entry)


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}={value!r}; allowed: True or False")
    return value


def selection(name: str, value: Any) -> Perturb | None:
    """A function that selects parameters, or None for all; see perturb.py."""
    if value is None or callable(value):
        return cast("Perturb | None", value)
    raise TypeError(
        f"{name}={value!r} is {type(value).__name__}; allowed: None for all parameters, only_norms "
        "or all_but_norms_and_biases of flatnb.methods.perturb, or a function "
        "(name, parameter, module) -> bool or number >= 0"
    )


def per_member(
    name: str, value: Real, losses: Tensor, *, pointwise: bool = False
) -> Real:
    """`value` on the device of `losses`, shaped to meet them (pointwise) or their
    means.

    Raises:
        ValueError: one value per member was given, and the losses are not those of so
            many members.
    """
    if not isinstance(value, Tensor):
        return value
    if losses.dim() != 2 or len(value) != len(losses):
        raise ValueError(
            f"{name} has {len(value)} values, one per member, but the losses have shape "
            f"{tuple(losses.shape)}; give a number, or an Ensemble of {len(value)} members"
        )
    value = value.to(losses.device, losses.dtype)
    return value[:, None] if pointwise else value
