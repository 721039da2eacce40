"""Slices: right losses at the right places."""

from __future__ import annotations

import copy

import pytest
import torch
from cases import CASES, Case

from flatnb.curvature import (
    HessianOperator,
    Objective,
    line,
    random_direction,
    top_eigenvalues,
)


def objective(case: Case) -> Objective:
    return Objective(case.model, case.loss, case.batches)


def test_filters_have_the_norms_of_the_net(case: Case):
    space = objective(case)
    direction = dict(
        zip(space.names, space.split(random_direction(space)), strict=True)
    )
    for name, p in case.model.named_parameters():
        if p.ndim < 2:
            assert not direction[name].any()
        else:
            wanted = p.detach().flatten(1).norm(dim=1)
            assert torch.allclose(direction[name].flatten(1).norm(dim=1), wanted)


def test_filter_normalized_directions_follow_a_rescaling_of_the_net():
    case = CASES["perceptron"]
    other = copy.deepcopy(case.model)
    with torch.no_grad():
        other[0].weight.mul_(4.0)
        other[0].bias.mul_(4.0)
        other[2].weight.div_(4.0)
    slices = []
    for model in (case.model, other):
        space = Objective(model, case.loss, case.batches)
        slices.append(line(space, random_direction(space), [-0.5, 0.0, 0.5]))
    assert torch.allclose(*slices, rtol=1e-9)


def test_curvature_of_a_slice_along_an_eigenvector_is_the_eigenvalue():
    case = CASES["attention"]
    op = HessianOperator(case.model, case.loss, case.batches)
    pairs = top_eigenvalues(op, 1)
    h = 1e-4
    low, mid, high = line(op.objective, pairs.vectors[:, 0], [-h, 0.0, h]).tolist()
    assert (low - 2 * mid + high) / h**2 == pytest.approx(
        float(pairs.values[0]), rel=1e-5
    )


def test_from_one_net_to_another():
    case = CASES["perceptron"]
    torch.manual_seed(3)
    start, end = (
        objective(case),
        Objective(case.make().double(), case.loss, case.batches),
    )
    path = line(start, end.vector - start.vector, [0.0, 1.0])
    assert path.tolist() == pytest.approx([start.loss(), end.loss()])


def test_bad_input():
    case = CASES["perceptron"]
    space = objective(case)
    with pytest.raises(ValueError, match="allowed: a vector"):
        line(space, torch.zeros(3), [0.0])
