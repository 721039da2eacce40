"""What a forward pass changes besides gradients: random streams, and buffers.

Each pass of a step starts from the streams and the buffers that the first one started
from, so all of them evaluate one function of the parameters; and the step ends with
both as the first pass left them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn


class Streams:
    """The random streams of a forward pass, replayed so that all passes draw the same."""

    def __init__(
        self, params: Sequence[Tensor], generators: Sequence[torch.Generator]
    ) -> None:
        self._devices = list({p.device for p in params if not p.is_cpu})
        self._generators = generators
        self._start: list[Any] | None = None
        self._end: list[Any] | None = None

    def rewind(self) -> None:
        """Before each pass: to where the first one began."""
        if self._start is None:
            self._start = self._get()
            return
        if self._end is None:  # after the first pass: where the step leaves them
            self._end = self._get()
        self._set(self._start)

    def finish(self) -> None:
        """To where the first pass ended."""
        if self._end is not None:
            self._set(self._end)

    def _get(self) -> list[Any]:
        devices = [
            torch.get_device_module(d).get_rng_state(*_args(d)) for d in self._devices
        ]
        return [
            torch.get_rng_state(),
            *devices,
            *(g.get_state() for g in self._generators),
        ]

    def _set(self, states: list[Any]) -> None:
        states = list(states)
        torch.set_rng_state(states.pop(0))
        for d in self._devices:
            torch.get_device_module(d).set_rng_state(states.pop(0), *_args(d))
        for g, s in zip(self._generators, states, strict=True):
            g.set_state(s)


def _args(device: torch.device) -> tuple[torch.device, ...]:
    # There is one MPS device, named by its module.
    return () if device.type == "mps" else (device,)


# Written in training mode only, and by a kernel that leaves `_version` alone.
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

# Entries. What is larger is copied only if it has been seen to be written.
_SMALL = 1 << 20

# A tensor of a model: the dict of buffers or parameters that holds it, its name there,
# and whether a forward may read it before it writes it.
Slot = tuple[dict[str, Any], str, bool]
Key = tuple[int, str]


class Buffers:
    """The buffers of a model, and the frozen parameters that its forward writes.

    Buffers of up to 2**20 entries are copied at each step. Larger ones, and frozen
    parameters (those of a momentum encoder), are looked at in the first step with a
    model, and in the first after a module has changed its mode: what is written there
    is copied in each step that follows. Of a tensor above 2**20 entries, passes after
    the first find in that one step what the first left. State that is no buffer (a
    Python number, say) is not seen.

    Args:
        net: the model without wrappers.
        modules: all its modules.
        single: the method takes one pass, so that only checkpointing writes twice.
    """

    def __init__(
        self, net: nn.Module, modules: Sequence[nn.Module], *, single: bool
    ) -> None:
        self._net, self._single = net, single
        self._slots = _slots(modules, frozen=not single)
        self._start: _Copies | None = None
        self._end: _Copies | None = None
        self._sums: list[tuple[Slot, Any]] = []
        self._written: set[Key] = set()
        self._learning = False
        if self._slots:
            modes = (m.training for m in modules if m._buffers)
            self._mode: tuple[Any, ...] = (len(self._slots), *modes)
            mode, self._written = _WRITTEN.get(net, {}).get(single, (None, set()))
            self._learning = mode != self._mode

    @property
    def may_change(self) -> bool:
        """Whether a forward writes anything, as far as is known."""
        return self._learning or bool(self._written)

    def rewind(self) -> None:
        """Before each pass: to what the first one started from."""
        if self._start is not None:
            self._start.restore(self._written)
        elif self._learning:
            self._start = _Copies([s for s in self._slots if _size(s) <= _SMALL])
            self._sums = [(s, _sum(s)) for s in self._slots if _size(s) > _SMALL]
        elif self._slots and not self._single:
            self._start = _Copies([s for s in self._slots if s[2] and self._copied(s)])

    def mark(self) -> None:
        """After each forward: the first one's buffers are the step's."""
        # At once: activation checkpointing runs the forward again in the backward.
        if self._end is not None or not self._slots:
            return
        if self._learning and self._start is not None:
            large = {_key(s) for s, total in self._sums if total != _sum(s)}
            self._written = self._start.changed() | large
            known = _WRITTEN.setdefault(self._net, {})
            known[self._single] = self._mode, self._written
            self._learning = False
        self._end = _Copies([s for s in self._slots if self._copied(s)])

    def finish(self) -> None:
        """To what the first pass left."""
        if self._end is not None:
            self._end.restore(self._written)

    def _copied(self, slot: Slot) -> bool:
        frozen = isinstance(slot[0][slot[1]], nn.Parameter)
        return (not frozen and _size(slot) <= _SMALL) or _key(slot) in self._written


# What the forward of a model writes, for methods of one pass and for others: the mode
# its modules had, and the tensors.
_WRITTEN: WeakKeyDictionary[nn.Module, dict[bool, tuple[Any, set[Key]]]] = (
    WeakKeyDictionary()
)


class _Copies:
    """Some tensors of a model as they are at one time."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self._entries: list[tuple[Slot, Tensor, Tensor | None, int | None]] = []
        for slot in slots:
            tensor = slot[0][slot[1]]
            copy = tensor.detach().clone() if not slot[2] or _plain(tensor) else None
            self._entries.append((slot, tensor, copy, _version(tensor)))

    @torch.no_grad()
    def restore(self, written: set[Key]) -> None:
        """Put back the tensors, and what they held if they may have been written."""
        tensors, copies = [], []
        for slot, tensor, copy, version in self._entries:
            if slot[0].get(slot[1]) is not tensor:
                slot[0][slot[1]] = tensor
            if copy is None:
                continue
            if tensor.shape != copy.shape:
                tensor.data = copy.clone()
                continue
            # Others are let alone: writing to them would spoil graphs that hold them.
            known = slot[1] in _STATISTICS or _key(slot) in written
            if known or _version(tensor) != version:
                tensors.append(tensor)
                copies.append(copy)
        if tensors:
            torch._foreach_copy_(tensors, copies)

    def changed(self) -> set[Key]:
        """Those that hold something else by now."""
        return {
            _key(slot)
            for slot, tensor, copy, _ in self._entries
            if slot[0].get(slot[1]) is not tensor
            or (copy is not None and not torch.equal(tensor, copy))
        }


def _slots(modules: Sequence[nn.Module], *, frozen: bool) -> list[Slot]:
    """The buffers, and the frozen parameters, that a forward may write, each once."""
    slots: dict[int, Slot] = {}
    for module in modules:
        buffers, params = module._buffers, module._parameters
        known = type(module).__module__.partition(".")[0] in ("torch", "flatnb")
        for name, buffer in buffers.items():
            statistic = name in _STATISTICS
            if buffer is not None and (module.training or not statistic):
                slots[id(buffer)] = buffers, name, not (known and statistic)
        for name, p in params.items() if frozen else ():
            if p is not None and not p.requires_grad:
                slots[id(p)] = params, name, True
    return list(slots.values())


def _key(slot: Slot) -> Key:
    return id(slot[0]), slot[1]


def _plain(tensor: Tensor) -> bool:
    """Whether its entries can be read and written one by one."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout is torch.strided
        and not (tensor.is_quantized or tensor.is_inference())
        and (not tensor.is_floating_point() or tensor.element_size() > 1)
        and (tensor.numel() < 2 or 0 not in tensor.stride())
    )


def _size(slot: Slot) -> int:
    tensor = slot[0][slot[1]]
    return tensor.numel() if slot[2] and _plain(tensor) else 0


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _sum(slot: Slot) -> Any:
    tensor = slot[0][slot[1]].detach()
    real = tensor.is_floating_point() and tensor.device.type != "mps"
    return tensor.sum(dtype=torch.float64 if real else None).item()
