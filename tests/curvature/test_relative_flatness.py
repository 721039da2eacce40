"""Relative flatness against the definition, from the dense Hessian, and its
invariance.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, Case, real
from torch import Tensor, nn

from flatnb.curvature import (
    HessianOperator,
    relative_flatness,
    relative_flatness_by_layer,
)


def definition(case: Case, weight: str) -> float:
    """sum_{s,s'} <w_s, w_s'> tr H_{s,s'}."""
    op = HessianOperator(case.model, case.loss, case.batches, params=[weight])
    w = op.objective.params[0].detach().flatten(1)
    blocks = op.dense().reshape(*w.shape, *w.shape)
    return float(torch.einsum("st,ut,saua->", w, w, blocks))


def test_last_layer_under_cross_entropy_has_a_closed_form():
    for name, layer in (("perceptron", "4"), ("convolution and BatchNorm", "6")):
        case = CASES[name]
        found = relative_flatness(case.model, layer, case.loss, case.batches)
        assert found.stderr == found.products == 0
        assert found.value == pytest.approx(
            definition(case, f"{layer}.weight"), rel=1e-10
        )


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(
            weight=torch.tensor([1.0, 2.0, 0.5]).double(), reduction="none"
        ),
        None,
    ],
)
def test_last_layer_under_other_losses_is_exact(loss):
    case = CASES["regression"] if loss is None else copy.copy(CASES["perceptron"])
    fn = case.loss if loss is None else lambda z, y: loss(z, y).mean()
    op = HessianOperator(case.model, fn, case.batches, params=["4.weight"])
    w = op.objective.params[0].detach()
    exact = float(
        torch.einsum("st,ut,saua->", w, w, op.dense().reshape(*w.shape, *w.shape))
    )
    found = relative_flatness(case.model, case.model[4], fn, case.batches)
    assert found.stderr == 0 and found.products == 3
    assert found.value == pytest.approx(exact, rel=1e-10)


def test_inner_layers_exact():
    for name in ("perceptron", "regression"):
        case = CASES[name]
        for layer in ("0", "2"):
            exact = definition(case, f"{layer}.weight")
            found = relative_flatness(case.model, layer, case.loss, case.batches)
            assert found.products == min(case.model.get_submodule(layer).weight.shape)
            assert found.value == pytest.approx(exact, rel=1e-9)


def test_layers_of_rows_that_do_not_meet():
    case = CASES["convolution and BatchNorm"]
    found = relative_flatness_by_layer(case.model, case.loss, case.batches)
    assert set(found) == {"6"}


@pytest.mark.parametrize(
    ("name", "layer", "reason"),
    [
        ("attention", "qkv", "output meet further on"),
        ("tied embedding, unused parameter", "out", "used more than once"),
    ],
)
def test_a_layer_without_a_sum_over_rows_is_refused(name, layer, reason):
    case = CASES[name]
    with pytest.raises(ValueError, match=reason):
        relative_flatness(case.model, layer, case.loss, case.batches)


def test_a_layer_with_a_hook_is_refused():
    model = copy.deepcopy(CASES["perceptron"].model)
    model[2].register_forward_hook(lambda layer, args, output: 2 * output)
    with pytest.raises(ValueError, match="a hook or another forward"):
        relative_flatness(model, "2", F.cross_entropy, CASES["perceptron"].batches)


def rescaled(model: nn.Module, c: float) -> nn.Module:
    """The same function: W_1, b_1 times c, W_2 over c."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        model[0].weight.mul_(c)
        model[0].bias.mul_(c)
        model[2].weight.div_(c)
    return model


def test_invariant_under_rescaling_which_the_trace_is_not():
    case = Case(
        lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)), real(5), 3
    )
    other = rescaled(case.model, 4.0)
    for layer in ("0", "2"):
        value = [
            relative_flatness(m, layer, case.loss, case.batches).value
            for m in (case.model, other)
        ]
        assert value[1] == pytest.approx(value[0], rel=1e-10)
    before = HessianOperator(case.model, case.loss, case.batches).dense().trace()
    after = HessianOperator(other, case.loss, case.batches).dense().trace()
    assert float(after) > 2 * float(before)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("1", "layer='1'; allowed: an nn.Linear"),
        ("7", "layer='7'; .*: '0', '2', '4'"),
        (nn.Linear(2, 2), "layer='Linear'; allowed"),
    ],
)
def test_bad_layers(layer, message):
    case = CASES["perceptron"]
    with pytest.raises(ValueError, match=message):
        relative_flatness(case.model, layer, case.loss, case.batches)


def test_a_loss_that_couples_examples_is_refused():
    case = CASES["perceptron"]

    def spread(outputs: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(outputs, y) + outputs.std()

    with pytest.raises(ValueError, match="meet further on"):
        relative_flatness(case.model, "4", spread, case.batches[:1])
