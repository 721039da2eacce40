"""Parameter-sized tensors that a method holds while a pass runs."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from table import METHODS
from torch import Tensor, nn

from flatnb.methods import Method

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


@pytest.fixture(autouse=True)
def _only_new_objects() -> Iterator[None]:
    """Those are looked through: a million may be left of the tests before."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize(
    "name", [name for name, row in METHODS.items() if row.tensors is not None]
)
def test_held_while_a_pass_runs(name: str) -> None:
    row = METHODS[name]
    assert held(row(), accumulating=False) == row.tensors
    # What was there before: added to in the end, or added to at once and kept in case
    # of an error.
    assert held(row(), accumulating=True) <= row.tensors + 1
