import numpy as np
import pytest
import torch
from made import record_of

from flatnb import ERM, fit, models
from flatnb.data import mnist1d
from flatnb.experiments import double_descent
from flatnb.experiments.double_descent import humps
from flatnb.results import form, records

SIZES = {"n_train": 60, "n_test": 40, "label_noise": 0.15, "batch_size": 20}
NET = {"width": 20, "hidden": 1}


def test_makes_a_valid_record_at_a_small_size():
    sizes = {**SIZES, **NET, "epochs": 4, "every": 2}
    one = double_descent.experiment(sizes)
    record = record_of(one)
    assert records.verify(record, one.sample)["inside"].all()
    assert np.shape(record["final"]["test_loss"]) == (8, 10)
    assert np.shape(record["curves"]["all"]["test_loss"]) == (8, 10, 3)
    record["curves"]["all"]["test_loss"].pop()
    with pytest.raises(
        form.RecordError, match=r"curves\.all\.test_loss is not 8 × 10 × 3"
    ):
        form.check(record)
    assert record["settings"][0]["level"] == 0


def test_level_0_is_erm_and_others_float_at_their_levels():
    settings = [{"lr": 0.1, "level": level} for level in (0.0, 0.7)]
    runs = {"settings": settings, "seeds": [1, 2], "epochs": 60, "every": 5}
    metrics = double_descent.train(**SIZES, **NET, **runs)["metrics"]

    torch.manual_seed(2)
    net = models.mlp(40, *NET.values(), 10)
    sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    run = fit(net, mnist1d(**SIZES, seed=2), ERM(), sgd, epochs=5, every=5, seed=0)
    assert metrics["test_loss"][0][1][:2] == pytest.approx(
        [entry["test_loss"] for entry in run.history], rel=1e-3
    )
    erm, flooded = np.array(metrics["train_loss"])[:, :, 4:]  # from epoch 20 on
    assert (erm < 0.1).all()
    assert 0.35 < np.median(flooded) < 1.05


def test_a_hump_is_what_falls_again_of_what_rose():
    falls, stays = [3.0, 1.0, *[2.0] * 5, *[1.5] * 5], [3.0, 1.0, *[2.0] * 10]
    partly = [3.0, 1.0, *[1.2] * 5, *[0.6] * 5]  # falls by more than it rose
    assert humps([falls, stays, partly])[0] == pytest.approx([0.25, 0, 0.2 / 1.2])


def test_the_noise_is_the_spread_over_seeds_relative_to_the_mean():
    time = np.linspace(0, 1, 50)
    curves = [(1 + share) * (2 - time) for share in (-0.1, 0.0, 0.1)]
    assert humps(curves)[1] == pytest.approx(0.1)


def test_no_hump_without_a_rise_or_without_a_fall():
    time = np.linspace(0, 1, 50)
    shapes, _ = humps([1 - time, 1 + (time - 0.3) ** 2, np.exp(-time)])
    assert shapes.tolist() == [0, 0, 0]


def test_a_single_evaluation_makes_no_hump_of_its_height():
    curve = np.ones((2, 40))
    curve[0, 20] = 1.2
    shapes, noise = humps(curve)
    assert shapes == pytest.approx([0.04 / 1.04, 0])
    assert noise == 0
