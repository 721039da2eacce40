"""Parameter-sized tensors that a method holds while a pass runs."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import Tensor, nn

from flatnb.methods import (
    ASAM,
    ERM,
    GNP,
    GSAM,
    NSO,
    RSAM,
    SAM,
    USAM,
    FriendlySAM,
    LookSAM,
    Method,
    WeightNoise,
)

SIZE = 5003  # no other tensor has as many entries


def held(method: Method, *, accumulating: bool) -> int:
    """The most that live at the start of a pass, beside the parameters."""
    model = nn.Module()
    model.weight = nn.Parameter(torch.ones(SIZE))
    if accumulating:
        model.weight.grad = torch.ones(SIZE)
    most = 0

    def closure() -> Tensor:
        nonlocal most
        tensors = [t for t in gc.get_objects() if type(t) in (Tensor, nn.Parameter)]
        tensors += [t.grad for t in tensors if t.is_leaf and t.grad is not None]
        storages = {
            t.untyped_storage().data_ptr() for t in tensors if t.numel() == SIZE
        }
        most = max(most, len(storages) - 1)
        return model.weight.square().mean().reshape(1)

    method.backward(model, closure)
    return most


@pytest.mark.parametrize(
    ("method", "tensors"),
    [
        (ERM(), 0),
        (SAM(0.1), 1),
        (ASAM(0.1), 1),
        (USAM(0.1), 1),
        (RSAM(0.1), 1),
        (GNP(0.1, 0.8), 2),
        (GSAM(0.1), 2),
        (LookSAM(0.1), 2),
        (FriendlySAM(0.1), 2),
        (WeightNoise(0.1), 1),
        (WeightNoise(0.1, 3), 2),
        (NSO(0.1), 2),
        (NSO(0.1, 3), 2),
    ],
    ids=repr,
)
def test_held_while_a_pass_runs(method: Method, tensors: int) -> None:
    # Copies: what a method remembers must not be there when the next one is tried.
    assert held(copy.deepcopy(method), accumulating=False) == tensors
    # What was there before: added to in the end, or added to at once and kept in case
    # of an error.
    assert held(copy.deepcopy(method), accumulating=True) <= tensors + 1
