from dataclasses import asdict, replace

import pytest
import torch
from made import FREE, record_of
from test_runner import CNN as PLAIN

import flatnb
from flatnb.curvature import FLATNESS
from flatnb.experiments import images
from flatnb.experiments.runner import Training, train_net
from flatnb.experiments.tuning import METHODS

CNN = replace(PLAIN, augment="crop, flip")
MLP = replace(PLAIN, net="mlp", width=64)


def image_record(task, method):
    return record_of(images.experiment(task, METHODS[method], FREE))


@pytest.mark.parametrize("method", ["SAM", "EMA", "AdamW", "BSAM", "AdaFlood"])
def test_perceptrons_give_a_table_of_all_settings_and_seeds(method):
    record = image_record(MLP, method)
    assert len(record["settings"]) == 3
    for metric in ("test_loss", *FLATNESS):
        assert all(None not in row for row in record["final"][metric])
    assert record["selection"]["per"] == "seed"


@pytest.mark.parametrize("method", ["FAM", "SWA", "AdamW", "BSAM"])
def test_convolutional_nets_are_tuned_under_a_seed_of_its_own(method):
    record = image_record(CNN, method)
    chosen = record["selection"]["chosen"][0]
    other = 1 - chosen
    assert record["task"]["tuning_seed"] not in record["seeds"]
    assert record["final"]["test_loss"][other] == [None, None]
    assert None not in record["final"]["test_loss"][chosen]
    tuned = [row[0] for row in record["final"]["tuning_val_accuracy"]]
    assert tuned[chosen] == max(tuned)
    assert record["failures"] == []


@pytest.mark.parametrize(
    ("method", "values"),
    [("ERM", {}), ("SWA", {"start": 0.3}), ("EMA", {"decay": 0.9})],
)
def test_the_net_ends_as_the_one_whose_losses_are_recorded(method, values):
    data = images.load(CNN, 0)
    net = images.make_net(CNN, data)
    setting = {"lr": 0.1, **values}
    value = train_net(net, data, METHODS[method], setting, Training(2, 2, 0))
    loss = float(flatnb.metrics.evaluate(net, data.test)["loss"])
    assert loss == pytest.approx(value["metrics"]["test_loss"][0][0][-1], rel=1e-5)


def test_a_run_that_diverges_has_no_numbers():
    value = images.train_one(
        task=asdict(CNN), method="ERM", setting={"lr": 1e30}, seed=0
    )
    assert value["metrics"]["test_loss"] == [[[None] * len(value["epochs"])]]


def test_seeds_split_differently_and_share_the_test_images():
    task = replace(MLP, n_test=40)
    first, second = images.load(task, 0), images.load(task, 1)
    assert (len(first.train), len(first.val), len(first.test)) == (100, 50, 40)
    assert not torch.equal(first.train.y, second.train.y)
    assert torch.equal(first.test.y, second.test.y)


def test_a_folder_of_images_needs_its_place(monkeypatch):
    monkeypatch.delenv("FLATNB_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"\$FLATNB_DATA/cifar10-jpeg"):
        images.load(replace(MLP, data="cifar10-jpeg"), 0)
