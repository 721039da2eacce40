"""Losses and metrics against their formulas, in parts and as a whole."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import flatnb
from flatnb import data, metrics, models


def plane():
    return data.plane("gaussian", n_train=41, n_val=20, n_test=60, noise=0.1)


def net():
    torch.manual_seed(0)
    return models.mlp(2, 8, 2, 2)


def test_evaluate_weights_chunks_by_size_and_restores_the_mode(monkeypatch):
    model, d = net().train(), plane()
    whole = metrics.evaluate(model, d.test)
    monkeypatch.setitem(metrics._ROWS, "cpu", 7)
    parts = metrics.evaluate(model, d.test)
    assert parts["loss"] == pytest.approx(whole["loss"].item(), rel=1e-5)
    assert parts["accuracy"] == whole["accuracy"]
    assert model.training


def test_cross_entropy_is_per_example_with_and_without_members():
    logits, y = torch.randn(3, 5, 4), torch.randint(4, (5,))
    expected = torch.stack([F.cross_entropy(z, y, reduction="none") for z in logits])
    torch.testing.assert_close(metrics.cross_entropy(logits, y), expected)
    torch.testing.assert_close(metrics.cross_entropy(logits[0], y), expected[0])
    torch.testing.assert_close(metrics.cross_entropy(logits, y.expand(3, 5)), expected)


def binned(logits, y, bins):
    """Equation (3) of Guo et al., bin by bin."""
    p = logits.double().softmax(-1)
    confidence, label = p.max(-1)
    error = 0.0
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if inside.any():
            accuracy = (label == y)[inside].double().mean()
            error += (
                inside.double().mean() * (accuracy - confidence[inside].mean()).abs()
            )
    return float(error)


def calibration_error(logits, y):
    """That of `evaluate`, for a net whose logits are its inputs."""
    net = nn.Linear(logits.shape[-1], logits.shape[-1], bias=False).to(logits)
    nn.init.eye_(net.weight)
    return metrics.evaluate(net, data.Split(logits, y))["ece"]


def test_calibration_error_is_the_formula():
    logits, y = 2 * torch.randn(500, 4, dtype=torch.float64), torch.randint(4, (500,))
    expected = binned(logits, y, 15)
    assert calibration_error(logits, y).item() == pytest.approx(expected, abs=1e-12)


def test_calibration_error_of_known_cases():
    y = torch.tensor([0, 0, 0, 1])
    three_quarters = torch.tensor([0.75, 0.25]).log().expand(4, 2)
    assert calibration_error(three_quarters, y).item() == pytest.approx(0, abs=1e-6)
    sure = torch.tensor([0.0, -200.0]).expand(4, 2)
    assert calibration_error(sure, y).item() == pytest.approx(0.25)
    assert calibration_error(-sure, y).item() == pytest.approx(0.75)
    assert calibration_error(torch.full((4, 2), torch.nan), y).isnan()


def test_evaluate_gives_the_three_metrics_of_the_whole_split(monkeypatch):
    ensemble, d = flatnb.Ensemble(lambda: models.mlp(2, 8, 2, 2), 3), plane()
    monkeypatch.setitem(metrics._ROWS, "cpu", 3 * 7)
    measured = metrics.evaluate(ensemble, d.test)
    ensemble.eval()
    logits = ensemble(d.test.x).detach()
    expected = {
        "loss": metrics.cross_entropy(logits, d.test.y).mean(-1),
        "accuracy": (logits.argmax(-1) == d.test.y).float().mean(-1),
        "ece": torch.tensor([binned(member, d.test.y, 15) for member in logits]),
    }
    assert measured.keys() == expected.keys()
    for name, value in expected.items():
        assert measured[name].tolist() == pytest.approx(
            value.tolist(), rel=1e-5, abs=1e-7
        )


@pytest.mark.parametrize("rows", [1 << 16, 60])
def test_gradient_norm_is_of_the_plain_loss_in_eval_mode(monkeypatch, rows):
    monkeypatch.setitem(metrics._ROWS, "cpu", rows)
    monkeypatch.setattr(metrics, "_GRADIENT_EXAMPLES", 31)
    ensemble, d = (
        flatnb.Ensemble(lambda: models.mlp(2, 8, 2, 2), 3),
        plane(),
    )
    for p in ensemble.parameters():
        p.grad = torch.ones_like(p)
    norms = metrics.gradient_norm(ensemble, d.train)
    assert ensemble.training and all((p.grad == 1).all() for p in ensemble.parameters())
    for m in range(3):
        alone = ensemble.member(m).eval()
        F.cross_entropy(alone(d.train.x[:31]), d.train.y[:31]).backward()
        expected = (
            torch.cat([p.grad.flatten() for p in alone.parameters()]).double().norm()
        )
        assert norms[m].item() == pytest.approx(expected.item(), rel=1e-5)
        own = metrics.gradient_norm(ensemble.member(m), d.train)
        assert norms[m].item() == pytest.approx(own.item(), rel=1e-5)


@pytest.mark.parametrize("measure", [metrics.evaluate, metrics.gradient_norm])
def test_measuring_puts_back_the_mode_of_each_part_whatever_happens(measure):
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    model[1].eval()  # a frozen BatchNorm in a net that trains
    before = [module.training for module in model.modules()]
    split = data.Split(torch.randn(8, 2), torch.zeros(8, dtype=torch.long))
    measure(model, split)
    assert [module.training for module in model.modules()] == before
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        measure(model, data.Split(split.x, split.y + 9))
    assert [module.training for module in model.modules()] == before
