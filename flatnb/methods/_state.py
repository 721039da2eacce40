"""What a forward pass changes besides gradients: random streams, and buffers."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

# Written by a kernel that leaves `_version` alone.
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

_WRITTEN = (
    "the forward wrote a frozen parameter, as of a momentum encoder; each pass of this "
    "method would write it again. Update it outside the closure"
)
# A module's dict of buffers, a name, the buffer, a copy of it, its version, -1 of one
# that is known to be written.
_Entry = tuple[dict[str, Tensor | None], str, Tensor, Tensor, int]


class Replay:
    """Streams and buffers, the same in all passes of a step.

    Each pass starts where the first one did, so all evaluate one function of the
    parameters; the step ends with what the first one left. A buffer is seen to be
    written by its version, or known by a batch norm's names. Without `several` only
    activation checkpointing writes twice, in the backward. `params`: frozen ones, too.
    """

    def __init__(
        self, modules: Sequence[nn.Module], params: Sequence[Tensor], *, several: bool
    ) -> None:
        self._several = several
        self._modules = [
            m for m in modules if any(b is not None for b in m._buffers.values())
        ]
        self._frozen = [(p, p._version) for p in params if not p.requires_grad]
        self._streams = _streams(params) if several else []
        self._start: tuple[list[Tensor], list[_Entry]] | None = None
        self._left_states: list[Tensor] = []
        self._left_buffers: list[_Entry] | None = None

    @property
    def may_write(self) -> bool:
        """Whether a forward may write buffers: some are in a module that trains."""
        return any(m.training for m in self._modules)

    def rewind(self) -> None:
        """Before each pass: to where the first one started."""
        if self._start is None:
            buffers = self._buffers() if self._several else []
            self._start = self._states(), buffers
            return
        self._left_states = self._left_states or self._states()
        self._set(self._start[0])
        _restore(self._start[1])

    def mark(self) -> None:
        """After each forward, at once: what the first one left is the step's."""
        if self._left_buffers is None:
            self._left_buffers = self._buffers()
            if self._several and any(p._version != v for p, v in self._frozen):
                raise ValueError(_WRITTEN)

    def finish(self) -> None:
        """To what the first pass left."""
        if self._left_states:
            self._set(self._left_states)
        _restore(self._left_buffers or [])

    def _states(self) -> list[Tensor]:
        return [get() for get, _ in self._streams]

    def _set(self, states: Sequence[Tensor]) -> None:
        for (_, put), state in zip(self._streams, states, strict=True):
            put(state)

    def _buffers(self) -> list[_Entry]:
        entries: list[_Entry] = []
        for module in self._modules:
            for name, buffer in module._buffers.items():
                if buffer is not None and not buffer.is_inference():
                    written = module.training and name in _STATISTICS
                    version = -1 if written else buffer._version
                    copy = buffer.detach().clone()
                    entries.append((module._buffers, name, buffer, copy, version))
        return entries


@torch.no_grad()
def _restore(entries: Sequence[_Entry]) -> None:
    """Put back the tensors, and what they held where it may have been written."""
    written = []
    for buffers, name, tensor, copy, version in entries:
        buffers[name] = tensor
        # Others are let alone: writing would spoil graphs that hold them.
        if tensor._version != version:
            written.append((tensor, copy))
    if written:
        torch._foreach_copy_([t for t, _ in written], [copy for _, copy in written])


def _streams(params: Sequence[Tensor]) -> list[tuple[Any, Any]]:
    """Functions to get and to set the state of each device's random stream."""
    streams: list[tuple[Any, Any]] = [(torch.get_rng_state, torch.set_rng_state)]
    for device in {p.device for p in params if not p.is_cpu}:
        module = torch.get_device_module(device)
        # There is one MPS device, named by its module.
        place = {} if device.type == "mps" else {"device": device}
        get, put = module.get_rng_state, module.set_rng_state
        streams.append((partial(get, **place), partial(put, **place)))
    return streams
