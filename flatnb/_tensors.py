"""Arithmetic on gradients: lists with one tensor per parameter, None where it has none.

Norms and products are accumulated in float64 (float32 on MPS): float32 loses up to
three digits over a whole net. With `members`, each is one number per member.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from flatnb._nets import along_members

Real = float | Tensor


def scalar(value: Any) -> Any:
    """The number that a tensor of no dimension holds; any other value as it is."""
    return value.item() if isinstance(value, Tensor) and value.dim() == 0 else value


def wide(tensor: Tensor) -> torch.dtype:
    """The dtype to accumulate in."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def present(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    """Those that are not None."""
    return [t for t in tensors if t is not None]


def l2_norm(tensors: Sequence[Tensor], members: int | None = None) -> Tensor:
    """The l2 norm of all tensors as one vector, () or (members,).

    >>> l2_norm([torch.tensor([3.0]), torch.tensor([4.0])]).item()
    5.0
    """
    return norms(tensors, members).square().sum(0).sqrt()


def norms(tensors: Sequence[Tensor], members: int | None = None) -> Tensor:
    """The l2 norm of each tensor, (tensors,) or (tensors, members)."""
    each = [
        torch.linalg.vector_norm(t, dtype=wide(t))
        if members is None
        else torch.linalg.vector_norm(t.reshape(members, -1), dim=1, dtype=wide(t))
        for t in tensors
    ]
    return torch.stack([n.to(tensors[0].device) for n in each])


def dot(
    a: Sequence[Tensor | None], b: Sequence[Tensor | None], members: int | None = None
) -> Tensor:
    """The inner product of two lists as vectors, () or (members,); None is zero."""
    first = present(a)[0]
    shape = () if members is None else (members,)
    total = torch.zeros(shape, dtype=wide(first), device=first.device)
    for s, t in zip(a, b, strict=True):
        if s is not None and t is not None:
            product = (s.to(wide(s)) * t.to(wide(t))).reshape(*shape, -1)
            total += product.sum(-1).to(total.device)
    return total


def add_(totals: list[Tensor | None], terms: Sequence[Tensor | None]) -> None:
    """Add to each total, in place; where it is None the term takes its place."""
    pairs = [
        (total, term)
        for total, term in zip(totals, terms, strict=True)
        if total is not None and term is not None
    ]
    if pairs:
        torch._foreach_add_([total for total, _ in pairs], [term for _, term in pairs])
    for i, term in enumerate(terms):
        totals[i] = term if totals[i] is None else totals[i]


def scale_(tensors: Sequence[Tensor | None], factor: Tensor) -> None:
    """Multiply in place by a factor of shape () or (members,)."""
    for t in present(tensors):
        t.mul_(along_members(factor, t))


def add_scaled_(tensors: list[Tensor], offsets: list[Tensor], factor: Real) -> None:
    """Add factor * offsets in place; `factor` is a number, () or (members,)."""
    if isinstance(factor, Tensor) and factor.dim() == 0 and factor.device.type == "cpu":
        factor = factor.item()  # no device to wait for
    if not isinstance(factor, Tensor):
        torch._foreach_add_(tensors, offsets, alpha=factor)
    elif factor.dim() == 0 and len({(o.device, o.dtype) for o in offsets}) == 1:
        scaled = torch._foreach_mul(offsets, factor.to(offsets[0]))
        torch._foreach_add_(tensors, scaled)
    else:
        for t, offset in zip(tensors, offsets, strict=True):
            t.addcmul_(offset, along_members(factor, offset))


def per_member(
    name: str, value: Real, losses: Tensor, *, pointwise: bool = False
) -> Real:
    """A hyperparameter on the device of `losses`, to meet their means over examples.

    `losses` are (n,), or (members, n) of an ensemble; `pointwise` if it is to meet the
    losses themselves. ValueError where it has one value per member, but another number of them.

    >>> losses = torch.zeros(3, 8)
    >>> per_member("rho", torch.ones(3), losses, pointwise=True).shape
    torch.Size([3, 1])
    """
    if not isinstance(value, Tensor):
        return value
    members = len(losses) if losses.dim() == 2 else None
    if len(value) != members:
        raise ValueError(
            f"{name} has {len(value)} values, one per member, but the model is "
            f"{'no Ensemble' if members is None else f'of {members} members'}; "
            f"allowed: a number, or an Ensemble of {len(value)} members"
        )
    value = value.to(losses.device)
    return value[:, None].to(losses.dtype) if pointwise else value


def no_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """A context without autocast on the tensor's device."""
    device = tensor.device.type
    enabled = torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if enabled else nullcontext()
