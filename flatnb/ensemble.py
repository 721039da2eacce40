r"""Many small nets trained as one.

An :class:`Ensemble` of M members holds every parameter once, with a leading member
axis, and
computes all members in batched operations: a grid of settings times all seeds is one
    training.
Members share nothing. With per-example losses :math:`\ell_{mi}`, the gradient of

.. math:: \sum_{m=1}^{M} \frac1n \sum_{i=1}^{n} \ell_{mi}(w_m)

is, member by member, the gradient of each net trained alone, and an optimizer that
treats the entries of a tensor apart (SGD with momentum, Adam, AdamW, ...) steps each
member as if alone.

Between layers a tensor has the shape (members, n, features) and lies in memory features
first, as (members, features, n): a layer is one batched product, and each mean that a
    BatchNorm takes runs
over neighbours in memory.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Without parameters, statistics or noise, and entry by entry: these serve all members
# unchanged.
ELEMENTWISE = (
    nn.ELU,
    nn.GELU,
    nn.Identity,
    nn.LeakyReLU,
    nn.ReLU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Tanh,
)

# Entries of the widest tensor between two layers while evaluating; rows beyond it wait
# their turn. A CPU wants them in its cache. A GPU reads all weights once a group of
# rows, and wants few groups.
_EVALUATED_AT_ONCE = {"cpu": 1 << 22, "cuda": 1 << 27}

# Parameters of an ensemble on a CPU, see `groups`.
_TRAINED_AT_ONCE = 1 << 24


class Ensemble(nn.Module):
    r"""Members of one architecture, trained side by side as one module.

    Member i starts with the parameters and buffers that ``make_model()`` gives right
    after ``torch.manual_seed(seeds[i])``. The global random stream is left as it was
    found.

    **Input.** (n, ...), shared by all members, or (members, n, ...). A net that starts
    with Linear (or BatchNorm1d) expects two dimensions a member, so (n, features) is
    shared and (members, n, features) is not. A net that starts with Flatten takes
    examples of any shape; there
    the number of features decides: (n, ...) if each x[i] has as many entries as the
        first Linear
    has inputs, else (members, n, ...). Where both fit, as
    in (members, 1, 28, 28), an example is taken to be (features,) or (channels, height,
    width).

    **Output.** (members, n, classes).

    **Dropout.** Member i draws its masks from a `torch.Generator` of its own, in the
    order and the shapes in which the plain net would draw them, from where
    ``make_model()`` left the random stream under its seed. Two ways therefore train a
    member alone with the same masks: ``Ensemble(make_model, 1, seeds=[seeds[i]])``;
        and, on a CPU, ``torch.manual_seed(seeds[i])``,
    ``net = make_model()`` and a training of the plain net in which nothing but its
    forward passes in training mode draws from the global stream. The generators live on
    the CPU, so the masks are the same on every device.

    **Evaluation.** In evaluation mode and without gradients, the examples pass in
    groups, so that memory is bounded whatever n is, and each BatchNorm is merged into
    the Linear before it. With a forward hook on a layer nothing is merged, and the hook
    sees one group at a time.

    **Memory and speed.** Parameters, gradients and optimizer state are `members` times
    those of one net. On a CPU small nets gain tenfold; wide ones gain little, and lose
    when there are so many
    that every step streams through main memory: train a large grid as several
        ensembles, cut by
    `groups`. `benchmarks/ensemble.py` measures both.

    Args:
        make_model: makes the plain net on the CPU: an `nn.Sequential`, possibly nested,
            of Linear, BatchNorm1d, Dropout, Flatten, and elementwise activations.
        members: how many.
        seeds: one a member, repeats allowed; 0, 1, ..., members - 1 if not given.

    Attributes:
        members: how many.
        seeds: one a member.
        net: the batched layers, under the names they have in the plain net.
        generators: one a member, from which dropout masks are drawn; empty without
            dropout. Their states are part of `state_dict()`.

    Raises:
        TypeError: a layer that is not supported.
        ValueError: members < 1, a wrong number of seeds, nets that differ in shape
            between calls, tied parameters, or a net without Linear.
    """

    def __init__(
        self,
        make_model: Callable[[], nn.Module],
        members: int,
        seeds: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(members, bool) or not isinstance(members, int) or members < 1:
            raise ValueError(f"members={members!r}; allowed: an integer >= 1")
        self.members = members
        self.seeds = list(range(members)) if seeds is None else [int(s) for s in seeds]
        if len(self.seeds) != members:
            raise ValueError(
                f"{len(self.seeds)} seeds for {members} members; give one a member"
            )
        # A grid of settings repeats its seeds: each is initialised once.
        made = {seed: _make(make_model, seed) for seed in dict.fromkeys(self.seeds)}
        _check_alike([net for net, _ in made.values()])
        self.generators: list[torch.Generator] = []
        nets = [made[seed][0] for seed in self.seeds]
        self.net = _batched(nets, "", self.generators, {})
        # In a tuple, so that it is no submodule: it only gives `member` the right
        # classes.
        self._plain = (nets[0],)
        self._features, self._flattens = _input(self.net)
        if len(list(self.net.parameters())) != len(list(nets[0].parameters())):
            raise ValueError(
                "make_model ties parameters of different layers; Ensemble stacks each layer apart. "
                "Use the layer itself twice, or train the net without Ensemble"
            )
        if any(isinstance(layer, Dropout) for layer in self.net.modules()):
            # In place: the Dropout layers hold this list.
            self.generators += [_generator(made[seed][1]) for seed in self.seeds]

    def forward(self, x: Tensor) -> Tensor:
        """The outputs of all members, (members, n, classes)."""
        x = self._with_members(x)
        if torch.is_grad_enabled() or _uses_batch(self.net):
            return self.net(x)
        widest = max([p.shape[1] for p in self.net.parameters()] + [self._features])
        entries = _EVALUATED_AT_ONCE.get(x.device.type, _EVALUATED_AT_ONCE["cpu"])
        rows = max(1, entries // (self.members * widest))
        # Who hooks a layer expects it to run; else merged layers save a pass over the
        # activations.
        hooked = any(
            m._forward_hooks or m._forward_pre_hooks for m in self.net.modules()
        )
        net = self.net if hooked else nn.Sequential(*_merged(self.net))
        return torch.cat([net(group) for group in x.split(rows, dim=1)], dim=1)

    def member(self, i: int) -> nn.Module:
        """A plain copy of member i: its parameters, buffers, modes and `requires_grad`.

        Its dropout draws from the global stream, as every plain net's does.
        """
        if not -self.members <= i < self.members:
            raise IndexError(f"member {i} of an ensemble of {self.members}")
        net = copy.deepcopy(self._plain[0]).to(
            next(self.net.parameters())
        )  # device and dtype
        net.load_state_dict({k: v[i] for k, v in self.net.state_dict().items()})
        for p, q in zip(net.parameters(), self.net.parameters(), strict=True):
            p.requires_grad_(q.requires_grad)
        for plain, batched in zip(net.modules(), self.net.modules(), strict=True):
            plain.training = batched.training
        return net

    def clip_grad_norm_(self, max_norm: float | Tensor) -> Tensor:
        """Clip each member's gradient to a norm of `max_norm`, as
        `nn.utils.clip_grad_norm_` does.

        Each member's gradient is multiplied by min(1, max_norm / (norm + 1e-6)), in
        place. A non-finite norm makes that member's gradient NaN, and no other's.

        Args:
            max_norm: one for all, or one a member, (members,).

        Returns:
            The norms before clipping, (members,), in float64.
        """
        grads = [p.grad for p in self.parameters() if p.grad is not None]
        if not grads:
            return torch.zeros(self.members, dtype=torch.float64)
        norms = torch.stack(
            [
                torch.linalg.vector_norm(g.flatten(1), dim=1, dtype=torch.float64)
                for g in grads
            ]
        ).norm(dim=0)
        limit = torch.as_tensor(max_norm, dtype=norms.dtype, device=norms.device)
        factor = (limit / (norms + 1e-6)).clamp(max=1.0)
        for g in grads:
            g.mul_(factor.to(g.dtype).view(-1, *[1] * (g.dim() - 1)))
        return norms

    def get_extra_state(self) -> Tensor:
        """The states of the generators, (members, bytes); for `state_dict`."""
        states = [g.get_state() for g in self.generators]
        return torch.stack(states) if states else torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Take back what `get_extra_state` gave; for `load_state_dict`."""
        if len(state) != len(self.generators):
            raise ValueError(
                f"the state holds {len(state)} dropout generators; this ensemble has "
                f"{len(self.generators)} (one a member if the net has dropout, else none)"
            )
        for generator, one in zip(self.generators, state, strict=True):
            generator.set_state(
                one.cpu().clone()
            )  # of a view, torch reads out of bounds

    def extra_repr(self) -> str:
        return f"members={self.members}"

    def _with_members(self, x: Tensor) -> Tensor:
        """`x` as (members, n, ...); a shared input is expanded, not copied."""
        size, free = self._features, self._flattens

        def fits(example: torch.Size) -> bool:
            return example.numel() == size and (
                len(example) == 1 or (free and len(example) > 1)
            )

        own = len(x) == self.members and fits(x.shape[2:])
        if fits(x.shape[1:]) and not (own and x.dim() in (3, 5)):
            return x.expand(self.members, *x.shape)
        if own:
            return x
        example = f"... with {size} entries" if free else f"{size}"
        raise ValueError(
            f"input of shape {tuple(x.shape)}; allowed: (n, {example}), shared by all members, or "
            f"({self.members}, n, {example}), one batch a member"
        )


def groups(
    model: nn.Module, members: int, at_once: int = _TRAINED_AT_ONCE
) -> list[range]:
    """Cut 0, ..., members - 1 into the ensembles to train one after another.

    As few groups as keep each at `at_once` parameters, of sizes that differ by at most
    one. The default, 2**24 parameters (64 MB in float32), is for a CPU: beyond that
    wide nets are slower than one after another, for fresh gradients pass through main
    memory at each step; `benchmarks/ensemble.py` measures it. On a GPU memory is the
    limit.

    Args:
        model: the plain net of one member.
        members: how many in all.
        at_once: parameters of an ensemble, at most; a net that has more is a group
            alone.
    """
    each = sum(p.numel() for p in model.parameters())
    count = -(-members // max(1, at_once // each))
    return [
        range(members * k // count, members * (k + 1) // count) for k in range(count)
    ]


def member_learning_rates(
    optimizer: torch.optim.Optimizer,
    rates: Sequence[float],
    decays: Sequence[float] | None = None,
) -> None:
    """Give each member of an ensemble its own learning rate and decoupled weight decay.

        w <- w_old + rate_m / lr * (w_new - w_old) - rate_m decay_m w_old

    after each step, w_new being the optimizer's. This is exactly training with rate_m
    if the optimizer's update is proportional to its learning rate and it remembers no
    weights: SGD with momentum, Adam (with decays, AdamW). The optimizer's own rate must
    be the largest, so that no rounding is enlarged; a scheduler may change it, and all
    members' rates with it.

    Args:
        optimizer: on the parameters of an `Ensemble`, with one learning rate.
        rates: one per member.
        decays: one per member.

    Raises:
        ValueError: rates that are not positive, or whose largest is not the
            optimizer's.

    >>> net = nn.Sequential(nn.Linear(1, 1))
    >>> model = Ensemble(lambda: net, members=2)
    >>> before = net[0].weight.item()
    >>> sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    >>> member_learning_rates(sgd, [1.0, 0.25])
    >>> model(torch.ones(3, 1)).mean(1).sum().backward()
    >>> sgd.step()
    >>> [round(before - w, 4) for w in model.net[0].weight.flatten().tolist()]
    [1.0, 0.25]
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    learning_rates = {group["lr"] for group in optimizer.param_groups}
    if min(rates) <= 0 or learning_rates != {max(rates)}:
        raise ValueError(
            f"rates from {min(rates)} to {max(rates)} with the optimizer's "
            f"{learning_rates}; allowed: rates > 0, the largest of them the optimizer's"
        )
    if min(rates) == max(rates) and decays is None:
        return
    device = params[0].device
    shares = torch.tensor([rate / max(rates) for rate in rates], device=device)
    shrink = None if decays is None else shares * torch.tensor(decays, device=device)
    previous: list[Tensor] = []

    def keep(*_: Any) -> None:
        previous[:] = [p.detach().clone() for p in params]

    @torch.no_grad()
    def scale(*_: Any) -> None:
        lr = optimizer.param_groups[0]["lr"]
        for p, old in zip(params, previous, strict=True):
            p.copy_(torch.lerp(old, p, along_members(shares, p)))
            if shrink is not None:
                p.sub_(old.mul_(along_members(lr * shrink, p)))

    optimizer.register_step_pre_hook(keep)
    optimizer.register_step_post_hook(scale)


def along_members(values: Tensor, p: Tensor) -> Tensor:
    """Values (members,), shaped to multiply a parameter (members, ...).

    >>> along_members(torch.ones(3), torch.zeros(3, 5, 2)).shape
    torch.Size([3, 1, 1])
    """
    return values.to(p).view(-1, *[1] * (p.dim() - 1))


class Linear(nn.Linear):
    r"""A Linear a member: :math:`y_m = x_m W_m^\top + b_m`.

    It is an `nn.Linear` to whoever looks for one; `weight` is (members, out_features,
    in_features) and `bias` (members, out_features). Input (members, n, in_features).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        nn.Module.__init__(self)
        _, self.out_features, self.in_features = weight.shape
        self.weight = _parameter(weight)
        self.register_parameter("bias", None if bias is None else _parameter(bias))

    def forward(self, x: Tensor) -> Tensor:
        members, out, _ = self.weight.shape
        bias = None if self.bias is None else self.bias.unsqueeze(2)
        if x.stride(0) == 0 and members > 1:
            # All members see one batch: one product instead of `members`.
            y = (self.weight.flatten(0, 1) @ x[0].t()).view(members, out, -1)
            y = y if bias is None else y + bias
        elif bias is None:
            y = torch.bmm(self.weight, x.transpose(1, 2))
        else:
            y = torch.baddbmm(bias, self.weight, x.transpose(1, 2))
        return y.transpose(1, 2)

    def then(self, norm: BatchNorm) -> Linear:
        """One Linear that computes this one and after it `norm` in evaluation mode."""
        assert norm.running_mean is not None and norm.running_var is not None
        scale = torch.rsqrt(norm.running_var + norm.eps)
        scale = scale if norm.weight is None else scale * norm.weight
        centre = (
            norm.running_mean if self.bias is None else norm.running_mean - self.bias
        )
        shift = -centre * scale if norm.bias is None else norm.bias - centre * scale
        return Linear(self.weight * scale.unsqueeze(2), shift)


class BatchNorm(nn.BatchNorm1d):
    """A BatchNorm1d a member: statistics per member and feature.

    It is an `nn.BatchNorm1d` to whoever looks for one; `weight`, `bias`, `running_mean`
    and `running_var` are (members, features) and `num_batches_tracked` is (members,).
    Input (members, n, features).
    """

    def __init__(self, layers: Sequence[nn.BatchNorm1d]) -> None:
        nn.Module.__init__(self)
        first = layers[0]
        self.num_features, self.eps, self.momentum = (
            first.num_features,
            first.eps,
            first.momentum,
        )
        self.affine, self.track_running_stats = first.affine, first.track_running_stats
        for name in ("weight", "bias"):
            value = _stack([getattr(layer, name) for layer in layers])
            self.register_parameter(name, None if value is None else _parameter(value))
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(
                name, _stack([getattr(layer, name) for layer in layers])
            )

    def forward(self, x: Tensor) -> Tensor:
        # As (1, members * features, n) this is one BatchNorm1d of one long example.
        # Measured with 600 members of 50 features and batches of 50, forward and
        # backward took a third of the time that the same kernel takes on (n, members *
        # features), and of the composite of elementwise operations; F.layer_norm over n
        # and a Function of our own lie between.
        x = x.transpose(1, 2)
        members, features, n = x.shape
        if self.training and n < 2:
            raise ValueError(
                f"BatchNorm in training mode got {n} example(s) a member; it needs at least 2: "
                "leave out the last short batch, or call eval()"
            )
        share = self.momentum or 0.0
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if (
                self.momentum is None
            ):  # the plain average; all members have seen as many batches
                share = 1.0 / float(self.num_batches_tracked[0])
        y = F.batch_norm(
            x.reshape(1, members * features, n),
            _flat(self.running_mean),
            _flat(self.running_var),
            _flat(self.weight),
            _flat(self.bias),
            training=self.training or self.running_mean is None,
            momentum=share,
            eps=self.eps,
        )
        return y.view(members, features, n).transpose(1, 2)


def _flat(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.view(-1)


class Dropout(nn.Module):
    """Dropout with one generator a member. Input (members, n, features)."""

    def __init__(self, p: float, generators: list[torch.Generator]) -> None:
        super().__init__()
        self.p, self.generators = p, generators

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if self.p == 1:
            return torch.zeros_like(x)
        keep = 1 - self.p
        mask = torch.empty(x.shape, dtype=x.dtype)
        for rows, generator in zip(mask, self.generators, strict=True):
            rows.bernoulli_(keep, generator=generator)
        return x * mask.mul_(1 / keep).to(x.device)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def _make(make_model: Callable[[], nn.Module], seed: int) -> tuple[nn.Module, Tensor]:
    """The net made under `seed`, and the state in which it left the random stream."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        net = make_model()
        state = torch.get_rng_state()
    if not isinstance(net, nn.Module):
        raise TypeError(
            f"make_model returned {type(net).__name__}; it must return an nn.Module"
        )
    devices = {
        str(t.device) for t in net.state_dict().values() if isinstance(t, Tensor)
    }
    if devices - {"cpu"}:
        raise ValueError(
            f"make_model made its net on {', '.join(sorted(devices))}; make it on the CPU, whose "
            "random stream the seed sets, and move the ensemble with .to(device)"
        )
    return net, state


def _check_alike(nets: Sequence[nn.Module]) -> None:
    def shapes(net: nn.Module) -> Mapping[str, Any]:
        return {k: getattr(v, "shape", None) for k, v in net.state_dict().items()}

    for net in nets[1:]:
        if shapes(net) != shapes(nets[0]):
            raise ValueError(
                "make_model gave nets of different shapes; members must share one architecture.\n"
                f"first: {shapes(nets[0])}\nlater: {shapes(net)}"
            )


def _generator(state: Tensor) -> torch.Generator:
    generator = torch.Generator()
    generator.set_state(state)
    return generator


def _batched(
    layers: Sequence[Any],
    name: str,
    generators: list[torch.Generator],
    done: dict[int, nn.Module],
) -> nn.Module:
    """The batched form of one layer of all members; a layer used twice stays one."""
    first = layers[0]
    if id(first) not in done:
        done[id(first)] = _convert(layers, name, generators, done)
    return done[id(first)]


def _convert(
    layers: Sequence[Any],
    name: str,
    generators: list[torch.Generator],
    done: dict[int, nn.Module],
) -> nn.Module:
    # Exact classes: a subclass, or a parametrized layer, may compute something else.
    first, kind = layers[0], type(layers[0])
    if kind is nn.Sequential:
        batched = nn.Sequential()
        for key in first._modules:
            inner = f"{name}.{key}".lstrip(".")
            each = [layer._modules[key] for layer in layers]
            batched.add_module(key, _batched(each, inner, generators, done))
        return batched
    if kind is nn.Linear:
        weight = _stack([layer.weight for layer in layers])
        assert weight is not None
        return Linear(weight, _stack([layer.bias for layer in layers]))
    if kind is nn.BatchNorm1d:
        return BatchNorm(layers)
    if kind is nn.Dropout:
        return Dropout(first.p, generators)
    if kind is nn.Flatten and (first.start_dim, first.end_dim) == (1, -1):
        return nn.Flatten(2)
    if kind in ELEMENTWISE:
        return copy.deepcopy(first)
    supported = ["Sequential", "Linear", "BatchNorm1d", "Dropout", "Flatten()"]
    supported += [activation.__name__ for activation in ELEMENTWISE]
    raise TypeError(
        f"layer {name or 'make_model()'} is {first}; Ensemble supports {', '.join(supported)} "
        "(these classes themselves, not subclasses). Train other nets one after another"
    )


def _stack(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """With a leading member axis; trainable if the first is. None if there are none."""
    given = [t for t in tensors if t is not None]
    if not given:
        return None
    return torch.stack([t.detach() for t in given]).requires_grad_(
        given[0].requires_grad
    )


def _parameter(t: Tensor) -> nn.Parameter:
    return nn.Parameter(t.detach(), requires_grad=t.requires_grad)


def _merged(net: nn.Module) -> list[nn.Module]:
    """The layers in order, each BatchNorm in evaluation mode merged into the Linear before it."""
    if not isinstance(net, nn.Sequential):
        return [net]
    merged: list[nn.Module] = []
    for layer in (inner for child in net for inner in _merged(child)):
        before = merged[-1] if merged else None
        if isinstance(layer, BatchNorm) and isinstance(before, Linear):
            merged[-1] = before.then(layer)
        else:
            merged.append(layer)
    return merged


def _input(net: nn.Module) -> tuple[int, bool]:
    """The number of features the net takes, and whether a Flatten comes before."""
    flattens, features = False, None
    for layer in net.modules():
        flattens |= isinstance(layer, nn.Flatten) and features is None
        if features is None and isinstance(layer, BatchNorm | Linear):
            features = (
                layer.num_features
                if isinstance(layer, BatchNorm)
                else layer.in_features
            )
    if features is None or not any(
        isinstance(layer, Linear) for layer in net.modules()
    ):
        raise ValueError(
            "make_model gave a net without Linear; Ensemble needs at least one"
        )
    return features, flattens


def _uses_batch(net: nn.Module) -> bool:
    """Whether an example's output, or the random stream, depends on the rest of its batch."""
    return any(
        layer.training or getattr(layer, "running_mean", layer) is None
        for layer in net.modules()
        if isinstance(layer, BatchNorm | Dropout)
    )
