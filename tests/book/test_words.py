"""What pages say in words, and no marker or test of their chapter holds."""

import copy

import numpy as np
import pytest
import torch

from flatnb import models
from flatnb.results import compare, records, verdicts


def test_among_pairs_that_both_fit_the_noise_ends_sharper() -> None:
    """Chapter 18: NSO, weight noise and GNP; SAM has no such pair."""
    names = ("ERM", "SAM", "NSO", "WeightNoise", "GNP")
    patterns = [f"plane/*/{name}/narrow-tuned" for name in names]
    table = verdicts.endings(patterns, below=0.01)
    trace = table[table["measure"] == "trace"].set_index("method")
    reverse = trace.loc[["NSO", "WeightNoise", "GNP"]]
    assert (reverse["low"] > 1).all() and (reverse["ratio"] > 5).all()
    assert (reverse["train_loss"] > 3 * reverse["baseline_loss"]).all()
    assert reverse["n"].min() >= compare.LEAST_SEEDS and trace.loc["SAM", "n"] == 0


def test_averages_lower_the_trace_and_not_the_relative_flatness() -> None:
    """Chapter 10: of EMA and SWA as tuned, over plain training's."""
    patterns = [f"plane/*/{name}/narrow-tuned" for name in ("ERM", "EMA", "SWA")]
    ratios = verdicts.endings(patterns).set_index(["measure", "method"])["ratio"]
    assert ratios["trace", "EMA"] < 0.5 and 0.7 < ratios["trace", "SWA"] < 0.8
    assert (ratios["relative_flatness"] > 1).all()


def test_stopping_early_beats_every_level_on_mnist1d() -> None:
    """Chapter 4, in test loss: of means over seeds, plain training's lowest is below
    the last of every level."""
    (record,) = compare.loaded(["double-descent/mnist1d-n4000/Flooding"])
    losses = np.array(record["curves"]["all"]["test_loss"]).mean(axis=1)
    levels = [setting["level"] for setting in record["settings"]]
    assert losses[levels.index(0)].min() < losses[:, -1].min()


def test_the_lowest_test_loss_on_mnist1d_is_the_first_after_the_start() -> None:
    """Chapter 4: of evaluations every ten epochs; the test loss falls before it."""
    (record,) = compare.loaded(["double-descent/mnist1d-n4000/Flooding"])
    levels = [setting["level"] for setting in record["settings"]]
    plain = np.array(record["curves"]["all"]["test_loss"])[levels.index(0)].mean(axis=0)
    assert plain.argmin() == 1 and record["curves"]["epochs"][:2] == [0, 10]


def test_a_bolder_last_layer_lowers_kappa_only_where_the_net_is_certain() -> None:
    """Chapter 2, exercise 3: logits times 3, two classes, by their difference m."""
    m = np.linspace(0.1, 4, 391)
    before, after = (np.exp(-z) / (1 + np.exp(-z)) ** 2 for z in (m, 3 * m))
    falls = m[9 * after < before]
    assert falls.min() == pytest.approx(1.3, abs=0.05)
    assert len(falls) == (m >= falls.min()).sum()


def test_the_biases_take_the_climb_of_asam_in_a_shrunken_layer() -> None:
    """Chapter 6, exercise 3: of a rescaled net of two layers, by the length of T g."""
    torch.manual_seed(0)
    net = models.mlp(6, 8, 1, 3, batchnorm=False).double()
    x, y = torch.randn(20, 6).double(), torch.arange(20) % 3
    lengths = []
    for c in (1.0, 1 / 8):
        scaled = copy.deepcopy(net)
        first, second = (m for m in scaled.modules() if isinstance(m, torch.nn.Linear))
        with torch.no_grad():
            first.weight.mul_(c)
            first.bias.mul_(c)
            second.weight.div_(c)
        torch.nn.functional.cross_entropy(scaled(x), y).backward()
        lengths.append([first.bias.grad.norm().item()])
        lengths[-1] += [
            (layer.weight * layer.weight.grad).norm().item()
            for layer in (first, second)
        ]
    (bias, *weights), (longer, *same) = lengths
    assert longer / bias == pytest.approx(8)
    assert same == pytest.approx(weights)


def test_softad_has_the_lower_test_loss_on_two_spirals() -> None:
    """Chapter 5: than Flooding; Holm's method over the nine sets."""
    runs = compare.select([f"plane/*/{m}/narrow-tuned" for m in ("SoftAD", "Flooding")])
    tests = compare.paired(runs, "Flooding", "test_loss")
    lower = tests[(tests["p_holm"] < 0.05) & (tests["difference"] < 0)]["task"]
    assert {task.split("/")[1].split(",")[0] for task in lower} == {
        "spiral-0.05",
        "spiral-0.1",
    }


def test_the_default_and_the_tuned_decays_of_the_average() -> None:
    """In your own loop: what the default costs, in points, and what tuning chose."""
    runs = compare.on_all_tasks(compare.select(["plane/*/narrow-tuned"], "default"))
    tests = compare.overall(runs, "ERM", "test_accuracy").set_index("method")
    cost = 100 * tests.loc["EMA", ["difference", "interval"]]
    assert cost.tolist() == pytest.approx([-5.5, 0.5], abs=0.05)
    assert tests.loc["EMA", "n"] == 60 and runs["task"].nunique() == 9
    decays, sigmas = (
        [
            record["settings"][record["selection"]["setting"]][name]
            for record in compare.loaded([f"plane/*/{method}/narrow-tuned"])
        ]
        for method, name in (("EMA", "decay"), ("NSO-EMA", "sigma"))
    )
    assert [min(decays), np.median(decays)] == pytest.approx([0.87, 0.97], abs=0.005)
    assert max(decays) == pytest.approx(0.999, abs=0.0005)
    assert min(sigmas) == pytest.approx(0.006, abs=0.0005)
    assert max(sigmas) == pytest.approx(0.22, abs=0.005)


def test_averaging_gains_on_the_spirals_not_on_images_and_ends_flatter() -> None:
    """Chapter 10: of EMA; its nets' learning rates are higher on four of nine tasks."""
    shapes = ("gaussian", "sinusoid", "spiral")
    gains = [
        verdicts.gains(f"plane/{shape}-*/*/narrow-tuned").loc["EMA"] for shape in shapes
    ]
    assert gains[2]["difference"] > 0.85 * sum(row["difference"] for row in gains)
    assert [row["verdict"] == "better" for row in gains] == [False, False, True]
    images = compare.paired(compare.select(["images/*"]), "ERM", "test_accuracy")
    assert (images.loc[images["method"] == "EMA", "p_holm"] > 0.5).all()
    ratios = verdicts.endings(["plane/*/narrow-tuned"]).set_index(["method", "measure"])
    assert ratios.loc[("EMA", "trace"), "high"] < 0.5
    assert ratios.loc[("EMA", "trace"), "ratio"] < ratios.loc[("SAM", "trace"), "ratio"]


def test_at_equal_passes_nothing_is_better_than_an_average() -> None:
    """Chapter 10 and the landing page."""
    patterns = ["plane/*/narrow-tuned-equal-passes"]
    patterns += [f"plane/*/{name}/narrow-tuned" for name in ("ERM", "EMA")]
    tests = verdicts.gains(patterns, baseline="EMA")
    assert len(tests) >= 8 and not (tests["verdict"] == "better").any()
    assert tests["difference"].max() < 0


def test_one_side_is_ahead_at_narrower_noise() -> None:
    """Chapter 19: of the matrix sought, on all five problems."""
    errors = [
        records.frame(records.load(f"sensing/d100-r5/{name}")).set_index(
            ["sigma", "seed"]
        )["distance"]
        for name in ("WeightNoise", "NSO")
    ]
    gaps = np.log10(errors[0]) - np.log10(errors[1])
    assert len(gaps[0.04]) == 5 and (gaps[0.04] < 0).all()
    for table in errors:  # the widest that was tried is the best of both
        means = np.log10(table).groupby("sigma").mean()
        assert means.idxmin() == means.index.max() == 0.08
