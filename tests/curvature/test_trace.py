"""Traces: unbiased, honest intervals, and the exact value where there is one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, Case, real
from torch import nn

from flatnb.curvature import (
    GaussNewtonOperator,
    HessianOperator,
    gauss_newton_trace,
    trace,
)

PIECEWISE = {name: case for name, case in CASES.items() if case.piecewise_linear}
OTHERS = {name: case for name, case in CASES.items() if not case.piecewise_linear}


def operator(case: Case, **settings) -> HessianOperator:
    return HessianOperator(case.model, case.loss, case.batches, **settings)


class Dense(HessianOperator):
    """The operator's products by its dense matrix: the same numbers, faster."""

    def __init__(self, case: Case) -> None:
        super().__init__(case.model, case.loss, case.batches)
        self._matrix = case.hessian

    def rows(self, vectors):
        self.products += len(vectors)
        return vectors @ self._matrix


def test_the_interval_covers_as_often_as_it_says(case: Case):
    op, exact = Dense(case), float(case.hessian.trace())
    spread = (case.hessian - case.hessian.diag().diag()).norm() * 2**0.5  # of one probe
    stderr = float(spread) / 9
    for settings in ({}, {"relative": stderr / exact, "stderr": None}):
        settings = {"stderr": stderr} | settings
        results = [trace(op, seed=seed, **settings) for seed in range(100)]
        covered = [t.interval[0] <= exact <= t.interval[1] for t in results]
        assert sum(covered) >= 90, (settings, sum(covered))


def test_the_estimate_is_the_mean_of_its_probes():
    case = CASES["convolution and BatchNorm"]
    op, exact = operator(case), float(case.hessian.trace())
    t = trace(op, relative=0.1)
    assert t.stderr <= 0.1 * t.value and t.products >= 30
    assert abs(t.value - exact) < 4 * t.stderr
    assert t.interval[0] < t.value < t.interval[1]
    assert t.value == trace(op, relative=0.1).value != trace(op, relative=0.1, seed=1).value


@pytest.mark.parametrize("name", PIECEWISE)
def test_gauss_newton_trace_is_the_hessian_trace_of_piecewise_linear_nets(name):
    case = PIECEWISE[name]
    exact = float(case.hessian.trace())
    found = gauss_newton_trace(operator(case))
    assert found.value == pytest.approx(exact, rel=1e-10)
    assert found.stderr == 0 and found.products == 3
    assert found.interval == (found.value, found.value)


@pytest.mark.parametrize("name", OTHERS)
def test_gauss_newton_trace_is_refused_elsewhere(name):
    case = OTHERS[name]
    with pytest.raises(ValueError, match="not piecewise linear"):
        gauss_newton_trace(operator(case))
    op = GaussNewtonOperator(case.model, case.loss, case.batches)
    assert gauss_newton_trace(op).value == pytest.approx(float(op.dense().trace()), rel=1e-10)


def test_a_parameter_on_both_sides_of_a_product_is_refused():
    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 4))

        def forward(self, x):
            return F.relu(x @ self.w) @ self.w

    class Sides(Square):
        def forward(self, x):
            return F.relu(x @ self.w) + F.relu(-x @ self.w.mT)

    refused, allowed = Case(Square, real(4), 4), Case(Sides, real(4), 4)
    with pytest.raises(ValueError, match="tied weights"):
        gauss_newton_trace(operator(refused))
    exact = float(allowed.hessian.trace())
    assert gauss_newton_trace(operator(allowed)).value == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Unflatten(1, (2, 4)), nn.Linear(4, 3), nn.ReLU(), nn.Flatten(),
                              nn.Linear(6, 3)),
        lambda: nn.Sequential(nn.Linear(8, 4), nn.PReLU(), nn.Linear(4, 3, bias=False)),
        lambda: nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Hardtanh(), nn.Linear(4, 3)),
    ],
)  # fmt: skip
def test_every_kind_of_layer_gives_the_norms(make):
    case = Case(make, real(8), 3)
    exact = float(case.hessian.trace())
    assert gauss_newton_trace(operator(case)).value == pytest.approx(exact, rel=1e-10)
    weights = operator(case, params=lambda name, p: name.endswith("weight"))
    part = float(weights.dense().trace())
    assert gauss_newton_trace(weights).value == pytest.approx(part, rel=1e-10)


def test_many_classes_in_one_dimension_less():
    case = Case(lambda: nn.Linear(3, 1), real(3), 1, regression=True)
    exact = float(case.hessian.trace())
    assert gauss_newton_trace(operator(case)).value == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("call", [
    lambda op: trace(op, 0.0), lambda op: trace(op, relative=-1.0),
    lambda op: trace(op, max_probes=29),
])  # fmt: skip
def test_bad_targets_are_refused(call):
    with pytest.raises(ValueError, match=r"allowed: a number > 0|max_probes=29; allowed"):
        call(operator(CASES["perceptron"]))


def test_train_mode_has_no_trace_by_example():
    with pytest.raises(ValueError, match="not independent"):
        gauss_newton_trace(operator(CASES["perceptron"], train=True))
