"""What a method remembers of each parameter between steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flatnb.methods.method import Step


class Vector:
    """A vector with an entry per weight, 0 at first, that a method writes in place.

    Kept by the names of the parameters in the net, so that it survives saving, wrapping
    the net and freezing a layer for a while; on the parameter's device, in its dtype.
    Each process of a distributed training has its own.

    >>> Vector().state_dict()
    {}
    """

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}

    def of(self, step: Step) -> list[Tensor]:
        """The tensors that belong to the step's parameters."""
        names = step.names
        for name, p in zip(names, step.params, strict=True):
            tensor = self._tensors.get(name)
            if tensor is None:
                tensor = torch.zeros_like(p)
            if tensor.shape != p.shape:
                raise ValueError(
                    f"parameter {name!r} has shape {tuple(p.shape)}, and remembered is "
                    f"one of {tuple(tensor.shape)}; use one method per model"
                )
            self._tensors[name] = tensor.to(p.device, p.dtype)
        return [self._tensors[name] for name in names]

    def state_dict(self) -> dict[str, Any]:
        """The tensors, by the names of the parameters."""
        return dict(self._tensors)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._tensors = {name: tensor.clone() for name, tensor in state.items()}
