"""What a method remembers of each parameter between steps."""

import torch
from torch import Tensor

from flatnb._nets import along_members
from flatnb.methods.method import Step


class Vector:
    """A vector with an entry per weight, 0 at first, that a method writes in place.

    Kept by the names of the parameters in the net, so that it survives saving, wrapping
    the net and freezing a layer for a while; on the parameter's device, in its dtype.
    Each process of a distributed training has its own.
    """

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}

    def of(self, step: Step) -> list[Tensor]:
        """The tensors that belong to the step's parameters."""
        tensors = []
        for name, p in zip(step.names, step.params, strict=True):
            if name not in self._tensors:
                self._tensors[name] = torch.zeros_like(p)
            self._tensors[name] = self._tensors[name].to(p.device, p.dtype)
            tensors.append(self._tensors[name])
        return tensors

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors, by the names of the parameters."""
        return dict(self._tensors)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what `state_dict` gave."""
        self._tensors = {name: tensor.clone() for name, tensor in state.items()}


def overwrite(tensor: Tensor, value: Tensor, finite: Tensor) -> None:
    """Write `value` into `tensor`, for the members whose step is `finite`."""
    tensor.copy_(torch.where(along_members(finite, tensor).bool(), value, tensor))
