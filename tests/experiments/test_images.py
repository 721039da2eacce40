from dataclasses import asdict, replace

import pytest
import torch
from made import FREE, record_of
from test_runner import CNN as PLAIN

import flatnb
from flatnb.curvature import FLATNESS
from flatnb.experiments import images
from flatnb.experiments.images import Plan
from flatnb.experiments.runner import Training, train_net
from flatnb.experiments.tuning import METHODS
from flatnb.results import records
from flatnb.results.sweep import Job

CNN = replace(PLAIN, augment="crop, flip")
MLP = replace(PLAIN, net="mlp", width=64)


ENSEMBLES = Plan(FREE, budget=2, seeds=[0, 1], fresh=[5, 6])
ONE_BY_ONE = Plan(FREE, budget=3, seeds=[1000, 1001], fresh=[0, 1], finalists=2)


@pytest.mark.parametrize("method", ["SAM", "EMA", "AdamW", "BSAM", "AdaFlood"])
def test_perceptrons_give_a_table_of_all_settings_and_seeds(method):
    one = images.experiment(MLP, METHODS[method], ENSEMBLES)
    record = record_of(one)
    assert len(record["settings"]) == 3  # and the published default
    for metric in ("test_loss", *FLATNESS):
        assert all(None not in row for row in record["final"][metric])
    evaluation = record["evaluation"]
    assert evaluation.keys() == {"chosen", "default"}
    assert evaluation["default"]["settings"] == [2, 2]
    for runs in evaluation.values():
        assert runs["seeds"] == [5, 6]
        for metric in ("test_loss", *FLATNESS):
            assert None not in runs["final"][metric]
    assert records.verify(record, one.sample)["inside"].all()


@pytest.mark.parametrize("method", ["FAM", "SWA", "AdamW", "BSAM"])
def test_convolutional_nets_have_finalists(method):
    one = images.experiment(CNN, METHODS[method], ONE_BY_ONE)
    record = record_of(one)
    accuracies = [row[0] for row in record["final"]["val_accuracy"]]
    made = [None not in row for row in record["final"]["val_accuracy"]]
    assert sum(made) == 2
    out = made.index(False)
    assert accuracies[out] == min(accuracies)
    assert record["final"]["test_loss"][out][1] is None
    assert record["selection"]["setting"] != out
    assert out not in record["selection"]["chosen"]
    assert record["failures"] == []
    assert record["evaluation"].keys() == {"chosen"}
    assert record["evaluation"]["chosen"]["seeds"] == [0, 1]
    assert len(record["settings"]) == 3


@pytest.mark.parametrize(
    ("task", "method", "plan"),
    [(MLP, "SAM", ENSEMBLES), (CNN, "SWA", ONE_BY_ONE), (MLP, "AdaFlood", ENSEMBLES)],
)
def test_a_run_of_an_evaluation_can_be_repeated_to_its_last_epoch(task, method, plan):
    one = images.experiment(task, METHODS[method], plan)
    record = record_of(one)
    whole = one.whole_run(record)
    job = Job(whole["call"], whole["settings"])
    assert job.settings["task"]["epochs"] == task.epochs
    checks = records.verify({**record, "sample": whole}, job)
    assert len(checks) == 4 and checks["inside"].all()
    final = record["evaluation"]["chosen"]["final"]
    for name, curves in job.run()["metrics"].items():
        assert curves[0][0][-1] == pytest.approx(final[name][0], rel=1e-3), name


def test_each_run_of_a_perceptron_is_in_its_place():
    settings = [{"lr": 0.1}, {"lr": 0.01}]
    given = {"task": asdict(MLP), "method": "ERM"}
    value = images.train_perceptrons(**given, settings=settings, seeds=[3, 1, 2])
    losses = value["metrics"]["test_loss"]
    assert len({curve[-1] for row in losses for curve in row}) == 6
    for i, setting in enumerate(settings):
        for j, seed in enumerate([3, 1, 2]):
            job = {**given, "settings": [setting], "seeds": [seed]}
            alone = images.train_perceptrons(**job)["metrics"]["test_loss"][0][0]
            assert losses[i][j] == pytest.approx(alone, rel=1e-4)


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


LARGER = {  # methods, settings, and the ends of the rates of plain training
    "cifar10-jpeg-n4000-small_cnn": (14, 10, [0.1, 1.6]),
    "MNIST-n5000-mlp": (22, 12, [0.005, 2.0]),
    "digits-mlp": (22, 20, [0.005, 2.0]),
}


@pytest.mark.parametrize("task", LARGER)
def test_with_larger_rates_every_method_reaches_both_ends(task):
    """`images/*` does not name these: they are another family."""
    name = f"images-larger-rates/{task}/"
    larger = [one for one in images.experiments() if one.name.startswith(name)]
    methods, budget, ends = LARGER[task]
    assert len(larger) == methods
    for one in larger:
        rates = [setting["lr"] for setting in one.settings[:budget]]
        assert one.budget == len(rates) == budget
        optimizer = METHODS[one.method].optimizer
        own = optimizer and [optimizer.rates.low, optimizer.rates.high]
        assert [min(rates), max(rates)] == pytest.approx(own or ends)
