"""What a forward pass changes besides gradients: random streams, and buffers.

Each pass of a step starts from the streams and the buffers that the first one started
from, so all of them evaluate one function of the parameters; and the step ends with
both as the first pass left them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn


class Streams:
    """The random streams of a forward pass, replayed: all passes draw the same."""

    def __init__(self, params: Sequence[Tensor]) -> None:
        self._streams: list[tuple[Callable[[], Tensor], Callable[[Tensor], Any]]]
        self._streams = [(torch.get_rng_state, torch.set_rng_state)]
        for device in {p.device for p in params if not p.is_cpu}:
            module = torch.get_device_module(device)
            # There is one MPS device, named by its module.
            place = {} if device.type == "mps" else {"device": device}
            get, put = module.get_rng_state, module.set_rng_state
            self._streams.append((partial(get, **place), partial(put, **place)))
        self._start: list[Tensor] | None = None
        self._end: list[Tensor] | None = None

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

    def _get(self) -> list[Tensor]:
        return [get() for get, _ in self._streams]

    def _set(self, states: list[Tensor]) -> None:
        for (_, put), state in zip(self._streams, states, strict=True):
            put(state)


# Written in training mode only, and by a kernel that leaves `_version` alone.
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

# Entries. What is larger is copied only if it has been seen to be written.
_SMALL = 1 << 20

Key = tuple[int, str]


class _Slot(NamedTuple):
    """A place for a tensor: a module's dict of buffers or parameters, and a name."""

    store: dict[str, Any]
    name: str

    @property
    def key(self) -> Key:
        return id(self.store), self.name

    @property
    def size(self) -> int:
        """The number of entries that can be compared one by one."""
        tensor = self.store[self.name]
        return tensor.numel() if _plain(tensor) else 0

    def sum(self) -> Any:
        tensor = self.store[self.name].detach()
        real = tensor.is_floating_point() and tensor.device.type != "mps"
        return tensor.sum(dtype=torch.float64 if real else None).item()


class Buffers:
    """The buffers of a model, and the frozen parameters that its forward writes.

    Buffers of up to 2**20 entries are copied at each step. Larger ones, and frozen
    parameters (those of a momentum encoder), are looked at in the first step with a
    model, and in the first after a module has changed its mode: what is written there
    is copied in each step that follows. Of a tensor above 2**20 entries, passes after
    the first find in that one step what the first left.

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
        self._sums: list[tuple[_Slot, Any]] = []
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
            self._start = _Copies([s for s in self._slots if s.size <= _SMALL])
            self._sums = [(s, s.sum()) for s in self._slots if s.size > _SMALL]
        elif self._slots and not self._single:
            self._start = _Copies([s for s in self._slots if self._copied(s)])

    def mark(self) -> None:
        """After each forward: the first one's buffers are the step's."""
        # At once: activation checkpointing runs the forward again in the backward.
        if self._end is not None or not self._slots:
            return
        if self._learning and self._start is not None:
            large = {s.key for s, total in self._sums if total != s.sum()}
            self._written = self._start.changed() | large
            known = _WRITTEN.setdefault(self._net, {})
            known[self._single] = self._mode, self._written
            self._learning = False
        self._end = _Copies([s for s in self._slots if self._copied(s)])

    def finish(self) -> None:
        """To what the first pass left."""
        if self._end is not None:
            self._end.restore(self._written)

    def _copied(self, slot: _Slot) -> bool:
        frozen = isinstance(slot.store[slot.name], nn.Parameter)
        return (not frozen and slot.size <= _SMALL) or slot.key in self._written


# What the forward of a model writes, for methods of one pass and for others: the mode
# its modules had, and the tensors.
_WRITTEN: WeakKeyDictionary[nn.Module, dict[bool, tuple[Any, set[Key]]]] = (
    WeakKeyDictionary()
)


class _Copies:
    """Some tensors of a model as they are at one time."""

    def __init__(self, slots: Sequence[_Slot]) -> None:
        self._entries: list[tuple[_Slot, Tensor, Tensor | None, int | None]] = []
        for slot in slots:
            tensor = slot.store[slot.name]
            copy = tensor.detach().clone() if _plain(tensor) else None
            self._entries.append((slot, tensor, copy, _version(tensor)))

    @torch.no_grad()
    def restore(self, written: set[Key]) -> None:
        """Put back the tensors, and what they held if they may have been written."""
        tensors, copies = [], []
        for slot, tensor, copy, version in self._entries:
            if slot.store.get(slot.name) is not tensor:
                slot.store[slot.name] = tensor
            if copy is not None and tensor.shape != copy.shape:
                tensor.data = copy.clone()
            elif copy is not None:
                # Others are let alone: writing would spoil graphs that hold them.
                known = slot.name in _STATISTICS or slot.key in written
                if known or _version(tensor) != version:
                    tensors.append(tensor)
                    copies.append(copy)
        if tensors:
            torch._foreach_copy_(tensors, copies)

    def changed(self) -> set[Key]:
        """Those that hold something else by now."""
        return {
            slot.key
            for slot, tensor, copy, _ in self._entries
            if slot.store.get(slot.name) is not tensor
            or (copy is not None and not torch.equal(tensor, copy))
        }


def _slots(modules: Sequence[nn.Module], *, frozen: bool) -> list[_Slot]:
    """The buffers, and the frozen parameters, that a forward may write, each once."""
    slots: dict[int, _Slot] = {}
    for module in modules:
        for name, buffer in module._buffers.items():
            if buffer is not None and (module.training or name not in _STATISTICS):
                slots[id(buffer)] = _Slot(module._buffers, name)
        for name, p in module._parameters.items() if frozen else ():
            if p is not None and not p.requires_grad:
                slots[id(p)] = _Slot(module._parameters, name)
    return list(slots.values())


def _plain(tensor: Tensor) -> bool:
    """Whether its entries can be read and written one by one."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout is torch.strided
        and not (tensor.is_quantized or tensor.is_inference())
        and (not tensor.is_floating_point() or tensor.element_size() > 1)
        and (tensor.numel() < 2 or 0 not in tensor.stride())
    )


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version
