"""The layers of an ensemble, which compute all members in one operation each.

Between layers a tensor has the shape (members, n, features) and lies in memory as
(members, features, n): a layer is one batched product, and each mean that a BatchNorm
takes runs over neighbors in memory.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Layers that serve all members as they are.
_UNCHANGED = [nn.Sequential, nn.Flatten, nn.Identity, nn.ReLU, nn.LeakyReLU, nn.ELU]
_UNCHANGED += [nn.GELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Tanh]


class EnsembleLinear(nn.Linear):
    r"""One Linear per member: :math:`y_m = x_m W_m^\top + b_m`.

    `weight` is (members, out_features, in_features), `bias` (members, out_features).
    Input (members, n, in_features).
    """

    def forward(self, x: Tensor) -> Tensor:
        return _linear(self.weight, self.bias, x)


class EnsembleBatchNorm(nn.BatchNorm1d):
    """One BatchNorm1d per member: statistics per member and feature.

    `weight`, `bias`, `running_mean` and `running_var` are (members, features) and
    `num_batches_tracked` is (members,). Input (members, n, features).
    """

    def forward(self, x: Tensor) -> Tensor:
        # As (1, members * features, n) this is one BatchNorm1d of one long example: for
        # 600 members a third of the time of (n, members * features).
        x = x.transpose(1, 2)
        members, features, n = x.shape
        if self.training and n < 2:
            raise ValueError(
                f"BatchNorm in training mode got {n} example(s) per member; allowed: at "
                "least 2"
            )
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


def stacked(nets: Sequence[nn.Module]) -> nn.Module:
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


def _linear(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    members, out, _ = weight.shape
    bias = None if bias is None else bias.unsqueeze(2)
    if x.stride(0) == 0 and members > 1:
        # All members see one batch: one product instead of `members`.
        y = (weight.flatten(0, 1) @ x[0].t()).view(members, out, -1)
        y = y if bias is None else y + bias
    elif bias is None:
        y = torch.bmm(weight, x.transpose(1, 2))
    else:
        y = torch.baddbmm(bias, weight, x.transpose(1, 2))
    return y.transpose(1, 2)


def merged_layers(net: nn.Module) -> list[Callable[[Tensor], Tensor]]:
    """The layers in order, each BatchNorm in eval mode merged into a Linear before."""
    calls: list[Callable[[Tensor], Tensor]] = []
    previous: nn.Module | None = None
    for _, layer in net.named_modules(remove_duplicate=False):
        if isinstance(layer, nn.Sequential):
            continue
        if isinstance(layer, EnsembleBatchNorm) and isinstance(previous, nn.Linear):
            calls[-1] = partial(_linear, *_normalized(previous, layer))
        else:
            calls.append(layer)
        previous = layer
    return calls


def _normalized(linear: nn.Linear, norm: EnsembleBatchNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of one Linear that computes `linear` and then `norm`."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    bias = linear.bias
    center = norm.running_mean if bias is None else norm.running_mean - bias
    shift = -center * scale if norm.bias is None else norm.bias - center * scale
    return linear.weight * scale.unsqueeze(2), shift
