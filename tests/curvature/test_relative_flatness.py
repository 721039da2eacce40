"""Relative flatness against the definition, from the dense Hessian, and its invariance."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, Case, real
from torch import Tensor, nn

from flatnb.curvature import HessianOperator, relative_flatness, relative_flatness_by_layer


def definition(case: Case, weight: str) -> float:
    """sum_{s,s'} <w_s, w_s'> tr H_{s,s'}."""
    op = HessianOperator(case.model, case.loss, case.batches, params=[weight])
    w = op.as_dict(op.objective.vector)[weight].flatten(1)
    blocks = op.dense().reshape(*w.shape, *w.shape)
    return float(torch.einsum("st,ut,saua->", w, w, blocks))


def test_last_layer_under_cross_entropy_has_a_closed_form():
    for name, layer in (("perceptron", "4"), ("convolution and BatchNorm", "6")):
        case = CASES[name]
        found = relative_flatness(case.model, layer, case.loss, case.batches)
        assert found.settings["how"] == "closed form" and found.products == 0
        assert found.value == pytest.approx(definition(case, f"{layer}.weight"), rel=1e-10)


@pytest.mark.parametrize(
    "loss",
    [nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]).double(), reduction="none"), None],
)
def test_last_layer_under_other_losses_is_exact(loss):
    case = CASES["regression"] if loss is None else copy.copy(CASES["perceptron"])
    fn = case.loss if loss is None else lambda z, y: loss(z, y).mean()
    op = HessianOperator(case.model, fn, case.batches, params=["4.weight"])
    w = op.objective.params[0].detach()
    exact = float(torch.einsum("st,ut,saua->", w, w, op.dense().reshape(*w.shape, *w.shape)))
    found = relative_flatness(case.model, case.model[4], fn, case.batches)
    assert found.stderr == 0 and found.products == 3
    assert found.value == pytest.approx(exact, rel=1e-10)


def test_inner_layers_exact_and_estimated():
    for name in ("perceptron", "regression"):
        case = CASES[name]
        for layer in ("0", "2"):
            exact = definition(case, f"{layer}.weight")
            found = relative_flatness(case.model, layer, case.loss, case.batches, relative=1e-6)
            assert found.stderr == 0
            assert found.value == pytest.approx(exact, rel=1e-9)
            many = [
                relative_flatness(case.model, layer, case.loss, case.batches, relative=10, seed=s)
                for s in range(30)
            ]
            assert all(one.products == 2 for one in many)
            values = torch.tensor([one.value for one in many])
            spread = float(values.std())
            assert abs(float(values.mean()) - exact) < 4 * spread / 30**0.5
            stated = torch.tensor([one.stderr for one in many]).square().mean().sqrt()
            assert 0.6 < float(stated) / spread < 1.6


def test_layers_on_several_positions():
    case = CASES["convolution and BatchNorm"]
    found = relative_flatness_by_layer(case.model, case.loss, case.batches, relative=0.05)
    assert set(found) == {"0", "3.conv", "6"}
    for name, one in found.items():
        assert abs(one.value - definition(case, f"{name}.weight")) <= 4 * one.stderr + 1e-10
    case = CASES["attention"]
    one = relative_flatness(case.model, "out", case.loss, case.batches, relative=0.05)
    assert one.value == pytest.approx(definition(case, "out.weight"), abs=4 * one.stderr + 1e-10)
    one = relative_flatness(case.model, "qkv", case.loss, case.batches, relative=0.2)
    assert one.value == pytest.approx(definition(case, "qkv.weight"), abs=4 * one.stderr)


def test_a_tied_weight_is_measured_in_weight_space():
    case = CASES["tied embedding, unused parameter"]
    found = relative_flatness(case.model, "out", case.loss, case.batches, relative=0.1)
    assert found.settings["how"] == "Hessian in the weight"
    assert abs(found.value - definition(case, "embed.weight")) < 4 * found.stderr


def rescaled(model: nn.Module, c: float) -> nn.Module:
    """The same function: W_1, b_1 times c, W_2 over c."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        model[0].weight.mul_(c)
        model[0].bias.mul_(c)
        model[2].weight.div_(c)
    return model


def test_invariant_under_rescaling_which_the_trace_is_not():
    case = Case(lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)), real(5), 3)
    other = rescaled(case.model, 4.0)
    for layer in ("0", "2"):
        value = [
            relative_flatness(m, layer, case.loss, case.batches, relative=1e-9).value
            for m in (case.model, other)
        ]
        assert value[1] == pytest.approx(value[0], rel=1e-10)
    before = HessianOperator(case.model, case.loss, case.batches).dense().trace()
    after = HessianOperator(other, case.loss, case.batches).dense().trace()
    assert float(after) > 2 * float(before)


@pytest.mark.parametrize(
    ("layer", "message"),
    [("1", "is a ReLU"), ("7", "no layer '7'; it has 0, 2, 4"), (nn.Linear(2, 2), "no layer")],
)
def test_bad_layers(layer, message):
    case = CASES["perceptron"]
    with pytest.raises(ValueError, match=message):
        relative_flatness(case.model, layer, case.loss, case.batches)


def test_a_loss_that_mixes_examples_is_refused():
    case = CASES["perceptron"]

    def spread(outputs: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(outputs, y) + outputs.std()

    with pytest.raises(ValueError, match="no plain mean"):
        relative_flatness(case.model, "0", spread, case.batches)
