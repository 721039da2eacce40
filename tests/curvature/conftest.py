from __future__ import annotations

import copy

import pytest
import torch
from cases import CASES, Case


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(autouse=True)
def models_come_back_as_they_were():
    """Every test of this folder also checks that no measurement leaves a trace on a
    model.
    """
    before = {name: _state(case) for name, case in CASES.items()}
    yield
    for name, case in CASES.items():
        after = _state(case)
        assert after[1:] == before[name][1:], name
        for key, value in before[name][0].items():
            assert torch.equal(value, after[0][key]), (name, key)


def _state(case: Case):
    model = case.model
    return (
        copy.deepcopy(model.state_dict()),
        [module.training for module in model.modules()],
        [(p.requires_grad, p.grad) for p in model.parameters()],
        [len(module._forward_hooks) for module in model.modules()],
    )
