import dataclasses
import json

import pytest
import torch
from made import record_of

import flatnb
from flatnb.experiments import images
from flatnb.experiments.ensembles import FLATNESS
from flatnb.experiments.study import run as run_study

DIGITS = images.TASKS[0][0]
SMALL = dataclasses.replace(
    DIGITS, epochs=2, every=1, budget=2, seeds=2, n_train=100, n_val=50
)
CNN = dataclasses.replace(SMALL, net="small_cnn", width=2, augment="crop, flip")


def image_record(task, method):
    return record_of(
        images.experiment(task, method, value=1, gpu_minutes=1, cpu_minutes=1)
    )


@pytest.mark.parametrize("method", ["SAM", "EMA", "AdamW", "AdaFlood"])
def test_perceptrons_give_a_table_of_all_settings_and_seeds(method):
    record = image_record(SMALL, method)
    assert len(record["settings"]) == 3
    for metric in ("test_loss", *FLATNESS):
        assert all(None not in row for row in record["final"][metric])
    assert record["selection"]["per"] == "seed"


@pytest.mark.parametrize("method", ["FAM", "SWA", "AdamW"])
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
    ("method", "own"), [("ERM", {}), ("SWA", {"start": 0.3}), ("EMA", {"decay": 0.9})]
)
def test_the_net_ends_as_the_one_whose_losses_are_told(method, own):
    data = images.load(CNN, 0)
    net = images.make_net(CNN, data)
    setting = {"lr": 0.1, **own}
    how = {"epochs": 2, "every": 2, "seed": 0, "weight_decay": 0.0}
    metrics = images.train_net(net, data, method, setting, **how)["metrics"]
    loss = float(flatnb.metrics.evaluate(net, data.test)["loss"])
    assert loss == pytest.approx(metrics["test_loss"][0][0][-1], rel=1e-5)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"a": 1}', '{"a": {}}', "\xff", "[" * 9999]
)
def test_a_damaged_checkpoint_of_a_study_is_refused(text, tmp_path):
    path = tmp_path / "kept.pt"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"kept\.pt is damaged, or keeps no runs"):
        run_study(lambda **_: {}, [{"lr": 0.1}], [0], path)


def test_a_study_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    settings = [{"lr": 0.1}, {"lr": 0.01}]
    given = {
        "task": dataclasses.asdict(CNN),
        "method": "ERM",
        "settings": settings,
        "seeds": [0],
    }
    whole = images.study(**given)
    count = 0
    real = images.train_one

    def breaks(**arguments):
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return real(**arguments)

    monkeypatch.setattr(images, "train_one", breaks)
    with pytest.raises(KeyboardInterrupt):
        images.study(**given, checkpoint=tmp_path / "kept.pt")
    before = json.loads((tmp_path / "kept.pt").read_text())
    assert len(before) == 2
    again = images.study(**given, checkpoint=tmp_path / "kept.pt")
    assert {**again, "seconds": 0} == {**whole, "seconds": 0}
    assert again["seconds"] > sum(one["seconds"] for one in before.values()) > 0
    assert count == 4


def test_a_run_that_diverges_has_no_numbers():
    value = images.train_one(
        task=dataclasses.asdict(CNN), method="ERM", setting={"lr": 1e30}, seed=0
    )
    assert value["metrics"]["test_loss"] == [[[None] * len(value["epochs"])]]


def test_seeds_split_differently_and_share_the_test_images():
    task = dataclasses.replace(SMALL, n_test=40)
    first, second = images.load(task, 0), images.load(task, 1)
    assert (len(first.train), len(first.val), len(first.test)) == (100, 50, 40)
    assert not torch.equal(first.train.y, second.train.y)
    assert torch.equal(first.test.y, second.test.y)


def test_a_folder_of_images_needs_its_place(monkeypatch):
    monkeypatch.delenv("FLATNB_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="set FLATNB_DATA"):
        images.load(dataclasses.replace(SMALL, data="cifar10-jpeg"), 0)
