r"""Many small nets trained as one.

An `Ensemble` holds every parameter once, with a leading member axis, and computes all
members in batched operations: a grid of settings times all seeds is one training. With
per-example losses :math:`\ell_{mi}`, the gradient of

.. math:: \sum_{m=1}^{M} \frac1n \sum_{i=1}^{n} \ell_{mi}(w_m)

is, member by member, the gradient of each net trained alone, and an optimizer that
treats entries separately (SGD with momentum, Adam, AdamW) steps each member as if alone.
"""

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flatnb._checks import instance, integer
from flatnb._nets import along_members

# Entries of the widest tensor between two layers in an evaluation. A CPU wants them in
# its cache; a GPU reads all weights once per group, and wants few groups.
_EVALUATED_AT_ONCE = {"cpu": 1 << 22, "cuda": 1 << 27}


class Ensemble(nn.Module):
    r"""Members of one architecture, trained side by side as one module.

    Member i starts with the parameters and buffers that `make_model()` gives right
    after `torch.manual_seed(seeds[i])`. The global random stream stays as it was.

    **Input** is (n, features) or (n, channels, height, width), shared by all members,
    or one of each member, (members, n, ...). **Output** is (members, n, classes). In
    eval mode and without gradients, examples are taken in groups of bounded memory, and
    forward hooks see one group at a time.

    Args:
        make_model: makes the plain net on the CPU: an `nn.Sequential`, possibly nested,
            of Linear, BatchNorm1d, Flatten and elementwise activations; no Dropout.
        members: how many. Small nets gain tenfold on a CPU; for wide ones see `groups`.
        seeds: one per member, repeats allowed; 0, 1, ..., members - 1 if not given.

    Attributes:
        net: the batched layers, under the names they have in the plain net.

    >>> make_model = lambda: nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
    >>> Ensemble(make_model, members=5)(torch.zeros(10, 2)).shape
    torch.Size([5, 10, 3])
    """

    def __init__(
        self,
        make_model: Callable[[], nn.Module],
        members: int,
        seeds: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        instance("make_model", make_model, Callable, "a function that makes a net")
        self.members = integer("members", members)
        self.seeds = list(range(members)) if seeds is None else [int(s) for s in seeds]
        if len(self.seeds) != members:
            raise ValueError(f"{len(self.seeds)} seeds for {members} members")
        # A grid of settings repeats its seeds: each is initialized once.
        plain = {seed: _make(make_model, seed) for seed in dict.fromkeys(self.seeds)}
        nets = [plain[seed] for seed in self.seeds]
        self.net = _stacked(nets)
        # In a tuple, so that it is not a submodule: it gives `member` the right classes.
        self._plain = (nets[0],)
        if len(list(self.net.parameters())) != len(list(nets[0].parameters())):
            raise ValueError(
                "make_model ties parameters of different layers; allowed: to use a layer "
                "twice"
            )

    def forward(self, x: Tensor) -> Tensor:
        """The outputs of all members, (members, n, classes)."""
        x = self._with_members(x)
        norms = [m for m in self.net.modules() if isinstance(m, EnsembleBatchNorm)]
        uses_batch = any(m.training or m.running_mean is None for m in norms)
        if torch.is_grad_enabled() or uses_batch:
            return self.net(x)
        widest = max(p.shape[1] for p in self.net.parameters())
        entries = _EVALUATED_AT_ONCE.get(x.device.type, _EVALUATED_AT_ONCE["cpu"])
        rows = max(1, entries // (self.members * widest))
        return torch.cat([self.net(group) for group in x.split(rows, dim=1)], dim=1)

    def member(self, i: int) -> nn.Module:
        """A plain copy of member i: its parameters, buffers, modes, `requires_grad`."""
        net = copy.deepcopy(self._plain[0]).to(next(self.parameters()))
        net.load_state_dict({k: v[i] for k, v in self.net.state_dict().items()})
        for p, q in zip(net.parameters(), self.net.parameters(), strict=True):
            p.requires_grad_(q.requires_grad)
        for layer, batched in zip(net.modules(), self.net.modules(), strict=True):
            layer.training = batched.training
        return net

    def extra_repr(self) -> str:
        return f"members={self.members}"

    def _with_members(self, x: Tensor) -> Tensor:
        """`x` as (members, n, ...); a shared input is expanded, not copied."""
        if x.dim() in (2, 4):
            return x.expand(self.members, *x.shape)
        if x.dim() in (3, 5) and len(x) == self.members:
            return x
        raise ValueError(
            f"input of shape {tuple(x.shape)}; allowed: (n, features) or (n, channels, "
            f"height, width), or one of each member, ({self.members}, n, ...)"
        )


def groups(model: nn.Module, members: int, at_once: int = 1 << 24) -> list[range]:
    """Cut 0, ..., members - 1 into the ensembles to train one after another.

    As few groups as possible, each of at most `at_once` parameters, of sizes that differ by at most
    one; a net with more is a group alone. The default, 2**24 (64 MB in float32), is for
    a CPU: beyond that, wide nets are slower than one after another, because every step
    streams the gradients through main memory. On a GPU memory is the limit.

    >>> groups(nn.Linear(10, 9), members=5, at_once=200)
    [range(0, 1), range(1, 3), range(3, 5)]
    """
    size = sum(p.numel() for p in model.parameters())
    count = -(-members // max(1, at_once // size))
    cuts = [members * k // count for k in range(count + 1)]
    return [range(low, high) for low, high in itertools.pairwise(cuts)]


def member_learning_rates(
    optimizer: torch.optim.Optimizer,
    rates: Sequence[float],
    decays: Sequence[float] | None = None,
) -> None:
    """Give each member of an ensemble its own learning rate and decoupled weight decay.

        w <- w_old + rate_m / lr * (w_new - w_old) - rate_m decay_m w_old

    after each step, w_new being the optimizer's, whose rate lr is the largest of
    `rates`; a scheduler scales those of all. This is exactly training with rate_m if
    the optimizer's update is proportional to its learning rate and it remembers no
    weights: SGD with momentum, Adam (with decays, AdamW), `BSAM`.

    Raises:
        ValueError: rates that are not positive, or another rate of the optimizer.

    >>> model = Ensemble(lambda: nn.Linear(1, 1), members=2, seeds=[0, 0])
    >>> sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    >>> member_learning_rates(sgd, [1.0, 0.25])
    >>> model(torch.ones(3, 1)).mean(1).sum().backward()
    >>> sgd.step()
    >>> round((model.net.bias[1] - model.net.bias[0]).item(), 4)
    0.75
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


def _make(make_model: Callable[[], nn.Module], seed: int) -> nn.Module:
    """The net made under `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        net = instance("make_model()", make_model(), nn.Module, "a torch.nn.Module")
    for tensor in (*net.parameters(), *net.buffers()):
        if not tensor.is_cpu:  # the seed sets the CPU's random stream only
            raise ValueError(
                f"make_model made its net on {tensor.device}; allowed: on the CPU, and "
                "the ensemble is moved"
            )
    return net


# Between layers a tensor has the shape (members, n, features) and lies in memory as
# (members, features, n): a layer is one batched product, and each mean that a BatchNorm
# takes runs over neighbors in memory.

# Layers that serve all members as they are.
_UNCHANGED = [nn.Sequential, nn.Flatten, nn.Identity, nn.ReLU, nn.LeakyReLU, nn.ELU]
_UNCHANGED += [nn.GELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Tanh]


class EnsembleLinear(nn.Linear):
    r"""One Linear per member: :math:`y_m = x_m W_m^\top + b_m`, x (members, n, in)."""

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


class EnsembleBatchNorm(nn.BatchNorm1d):
    """One BatchNorm1d per member: statistics per feature, x (members, n, features)."""

    def forward(self, x: Tensor) -> Tensor:
        # As (1, members * features, n) this is one BatchNorm1d of one long example: for
        # 600 members a third of the time of (n, members * features).
        x = x.transpose(1, 2)
        members, features, n = x.shape
        share = self.momentum or 0.0
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # the plain average; members count the same
                share = 1.0 / float(self.num_batches_tracked[0])
        tensors = (self.running_mean, self.running_var, self.weight, self.bias)
        mean, var, weight, bias = (None if t is None else t.view(-1) for t in tensors)
        batch_statistics = self.training or mean is None
        x = x.reshape(1, members * features, n)
        y = F.batch_norm(x, mean, var, weight, bias, batch_statistics, share, self.eps)
        return y.view(members, features, n).transpose(1, 2)


# The class that a layer of the plain net changes to; exact classes, because a subclass
# or a parametrized layer may compute another thing.
_BATCHED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: EnsembleLinear,
    nn.BatchNorm1d: EnsembleBatchNorm,
} | {kind: kind for kind in _UNCHANGED}


def _stacked(nets: Sequence[nn.Module]) -> nn.Module:
    """One net whose tensors have a member axis and whose layers expect it."""
    for plain in set(nets):
        if str(plain) != str(nets[0]):
            raise ValueError(f"make_model gave nets that differ: {nets[0]}, {plain}")
    net = copy.deepcopy(nets[0])
    for path, layer in net.named_modules():
        kind = _BATCHED.get(type(layer))
        flat = not isinstance(layer, nn.Flatten) or (layer.start_dim, layer.end_dim)
        if kind is None or flat not in (True, (1, -1)):
            supported = ", ".join(supported.__name__ for supported in _BATCHED)
            raise TypeError(
                f"layer {path or 'make_model()'} is {layer}; Ensemble supports "
                f"{supported} (no subclasses; Flatten() without arguments)"
            )
        layer.__class__ = kind
        if isinstance(layer, nn.Flatten):
            layer.start_dim = 2
        for name, tensor in [*layer._parameters.items(), *layer._buffers.items()]:
            if tensor is not None:
                members = [getattr(plain.get_submodule(path), name) for plain in nets]
                together = torch.stack([member.detach() for member in members])
                if name in layer._parameters:
                    together = nn.Parameter(together, tensor.requires_grad)
                setattr(layer, name, together)
    return net
