"""Traces: unbiased, honest intervals, and the exact value where there is one."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, Case, real
from torch import nn

from flatnb import models
from flatnb._torchvision import load
from flatnb.curvature import (
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


def test_two_standard_errors_cover_as_often_as_they_should(case: Case):
    op, exact = Dense(case), float(case.hessian.trace())
    spread = (case.hessian - case.hessian.diag().diag()).norm() * 2**0.5  # of one probe
    stderr = float(spread) / 9
    results = [trace(op, relative=stderr / exact, seed=seed) for seed in range(100)]
    covered = [abs(t.value - exact) <= 2 * t.stderr for t in results]
    assert sum(covered) >= 90


def test_the_estimate_is_the_mean_of_its_probes():
    case = CASES["convolution and BatchNorm"]
    op, exact = operator(case), float(case.hessian.trace())
    t = trace(op, relative=0.1)
    assert t.stderr <= 0.1 * t.value and t.products >= 30
    assert abs(t.value - exact) < 4 * t.stderr
    assert (
        t.value
        == trace(op, relative=0.1).value
        != trace(op, relative=0.1, seed=1).value
    )


def test_a_large_operator_has_the_same_probes_in_smaller_rounds(monkeypatch):
    case = CASES["convolution and BatchNorm"]
    op, rounds = operator(case), []
    rows = op.rows
    monkeypatch.setattr(op, "rows", lambda z: rounds.append(len(z)) or rows(z))
    expected = trace(op, relative=0.5).value
    assert max(rounds) == 8
    rounds.clear()
    monkeypatch.setattr(sys.modules[trace.__module__], "_ENTRIES", 2 * op.size)
    assert trace(op, relative=0.5).value == pytest.approx(expected, rel=1e-12)
    assert max(rounds) == 2


@pytest.mark.parametrize("name", PIECEWISE)
def test_gauss_newton_trace_is_the_hessian_trace_of_piecewise_linear_nets(name):
    case = PIECEWISE[name]
    exact = float(case.hessian.trace())
    found = gauss_newton_trace(operator(case))
    assert found.value == pytest.approx(exact, rel=1e-10)
    assert found.stderr == 0 and found.products == 3


@pytest.mark.parametrize("name", OTHERS)
def test_gauss_newton_trace_is_refused_elsewhere(name):
    case = OTHERS[name]
    with pytest.raises(ValueError, match="not piecewise linear"):
        gauss_newton_trace(operator(case))


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
    with pytest.raises(ValueError, match="not piecewise linear in w"):
        gauss_newton_trace(operator(refused))
    exact = float(allowed.hessian.trace())
    assert gauss_newton_trace(operator(allowed)).value == pytest.approx(
        exact, rel=1e-10
    )


def test_a_smooth_operation_in_place_on_a_view_is_refused():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            h = self.first(x)
            F.silu(h[:, :2], inplace=True)
            return self.last(h)

    with pytest.raises(ValueError, match="not piecewise linear in first"):
        gauss_newton_trace(operator(Case(Net, real(4), 3)))


class Sine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * x.cos()


def test_a_smooth_function_written_in_python_is_refused():
    class Net(nn.Sequential):
        def forward(self, x):
            return self[1](Sine.apply(self[0](x)))

    with pytest.raises(ValueError, match=r"not piecewise linear in 0\.weight"):
        gauss_newton_trace(
            operator(Case(lambda: Net(nn.Linear(4, 4), nn.Linear(4, 3)), real(4), 3))
        )


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(
            nn.Unflatten(1, (2, 4)),
            nn.Linear(4, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(6, 3),
        ),
        lambda: nn.Sequential(nn.Linear(8, 4), nn.PReLU(), nn.Linear(4, 3, bias=False)),
        lambda: nn.Sequential(
            nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Hardtanh(), nn.Linear(4, 3)
        ),
    ],
)
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


@pytest.mark.parametrize(
    "call",
    [
        lambda op: trace(op, relative=0.0),
        lambda op: trace(op, relative=-1.0),
        lambda op: trace(op, max_probes=29),
    ],
)
def test_bad_targets_are_refused(call):
    with pytest.raises(
        ValueError, match=r"allowed: a number > 0|max_probes=29; allowed"
    ):
        call(operator(CASES["perceptron"]))


def test_a_small_matrix_has_an_exact_trace():
    case = Case(lambda: nn.Linear(3, 2), real(3), 2)
    found = trace(operator(case))
    assert found.stderr == 0 and found.products == 8
    assert found.value == pytest.approx(float(case.hessian.trace()), rel=1e-12)


def test_a_trace_that_was_not_found_warns():
    op = Dense(CASES["convolution and BatchNorm"])
    with pytest.warns(UserWarning, match="trace stopped at 40 probes"):
        assert trace(op, relative=1e-9, max_probes=40).products == 40


def resnet() -> nn.Module:
    return load().models.resnet18(num_classes=3)


def test_in_place_activations_of_torchvisions_resnets():
    """Every ReLU is in place, and so is each residual sum's; the fast way must see
    through it.
    """
    torch.manual_seed(0)
    model = resnet()
    for p in model.parameters():
        p.requires_grad_(False)
    for p in (*model.layer4.parameters(), *model.fc.parameters()):
        p.requires_grad_(True)
    model = model.double().eval()
    x, y = torch.randn(2, 3, 32, 32).double(), torch.tensor([0, 2])
    found = gauss_newton_trace(HessianOperator(model, F.cross_entropy, [(x, y)]))
    params, exact = [p for p in model.parameters() if p.requires_grad], 0.0
    for image in x:
        z = model(image[None])[0]
        p = z.detach().softmax(0)
        root = torch.diag(p.sqrt()) - torch.outer(p, p.sqrt())
        for u in root.mT:
            grads = torch.autograd.grad(z @ u, params, retain_graph=True)
            exact += sum(float(g.square().sum()) for g in grads) / 2
    assert found.value == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Flatten(), models.mlp(64, 4, 3, 3)),
        lambda: models.small_cnn(1, 3, width=1),
    ],
)
def test_nets_of_the_book_have_equal_traces(make):
    case = Case(make, real(1, 8, 8), 3)
    case.model.eval()
    case.batches = case.batches[2:]
    exact = float(case.hessian.trace())
    assert gauss_newton_trace(operator(case)).value == pytest.approx(exact, rel=1e-10)


def test_a_net_that_couples_its_examples_is_refused():
    class Mixing(nn.Linear):
        def forward(self, x):
            return super().forward(x - x.mean(0))

    with pytest.raises(ValueError, match="couples the examples"):
        gauss_newton_trace(operator(Case(lambda: Mixing(4, 3), real(4), 3)))
