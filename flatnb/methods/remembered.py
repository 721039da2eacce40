"""What a method remembers of each parameter between steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flatnb.methods.base import Step


class Vector:
    """A vector with an entry per weight, 0 at first, that a method writes into in
    place.

    Kept by the names of the parameters in the net, so that it survives saving, wrapping
    the net in DistributedDataParallel and freezing a layer for a while. It follows its
    parameter to another device and dtype. Each process of a distributed training has
    its own; where all resume from one file, all begin with what that process
    remembered.

    Args:
        entry: its name in `state_dict`.
    """

    def __init__(self, entry: str) -> None:
        self._entry = entry
        self._tensors: dict[str, Tensor] = {}

    def of(self, step: Step) -> list[Tensor]:
        """The tensors that belong to the step's parameters.

        Raises:
            ValueError: a parameter has another shape than the vector has under its
                name.
        """
        names = step.names
        for name, p in zip(names, step.params, strict=True):
            kept = self._tensors.get(name)
            if kept is None:
                kept = torch.zeros_like(p)
            if kept.shape != p.shape:
                raise ValueError(
                    f"parameter {name!r} has shape {tuple(p.shape)}; what the method remembers of "
                    f"it has {tuple(kept.shape)}. Use one method per model, and its state"
                )
            self._tensors[name] = kept.to(p.device, p.dtype)
        return [self._tensors[name] for name in names]

    def state_dict(self) -> dict[str, Any]:
        """The tensors themselves, by name, under the entry."""
        return {self._entry: dict(self._tensors)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        if set(state) != {self._entry}:
            raise ValueError(
                f"expected a state with the entry {self._entry!r}; got {sorted(state)}"
            )
        self._tensors = {
            name: tensor.clone() for name, tensor in state[self._entry].items()
        }
