import functools
import re
from dataclasses import replace

import pytest
import torch
from made import FREE, record_of

import flatnb
from flatnb.curvature import ensemble_flatness
from flatnb.experiments import EXPERIMENTS, plane, runner
from flatnb.experiments.plane import NARROW
from flatnb.experiments.tuning import ADAM, METHODS
from flatnb.metrics import cross_entropy
from flatnb.results import form, records

TINY = replace(
    NARROW,
    data="spiral",
    width=6,
    epochs=4,
    every=2,
    n_test=40,
    budget=3,
    seeds=2,
    tuned=True,
)


def made(method, task=TINY):
    one = plane.experiment(task, METHODS[method], FREE)
    return one, record_of(one)


@pytest.mark.parametrize(
    "method",
    ["ERM", "SAM", "GNP", "SWA", "EMA", "AdamW", "SGD", "BSAM", "FAM", "AdaFlood"],
)
def test_makes_a_valid_record(method, tmp_path, monkeypatch):
    monkeypatch.setenv("FLATNB_RECORDS", str(tmp_path))
    one, record = made(method)
    records.save(record)
    record = records.load(one.name)
    assert record["selection"]["budget"] == 3
    assert len(record["settings"]) == 4  # and the published default
    assert record["curves"]["epochs"] == [0, 2, 4]
    for seed, setting in enumerate(record["selection"]["chosen"]):
        best = max(row[seed] for row in record["final"]["val_accuracy"][:3])
        assert record["final"]["val_accuracy"][setting][seed] == best
        assert (
            record["curves"]["metrics"]["test_loss"][seed][-1]
            == (record["final"]["test_loss"][setting][seed])
        )


@pytest.mark.parametrize("method", ["ERM", "SWA", "EMA"])
def test_flatness_and_norms_are_those_of_the_net_whose_losses_are_recorded(
    method, monkeypatch
):
    measured = []

    def keep(model, x, y):
        flatness = ensemble_flatness(model, x, y)
        with torch.no_grad():
            loss = cross_entropy(model.eval()(x), y).mean(-1)
        measured.append((model, loss, flatness))
        return flatness

    monkeypatch.setattr(runner, "ensemble_flatness", keep)
    _, record = made(method)
    model, loss, flatness = measured[0]  # before that of the sample
    final = record["final"]
    for name, values in (
        ("train_loss", loss),
        *flatness.items(),
        (
            "norm",
            flatnb._tensors.l2_norm(list(model.parameters()), model.members),
        ),
    ):
        flat = [value for row in final[name] for value in row]
        assert flat == pytest.approx(values.tolist(), rel=1e-4, abs=1e-7)


def test_an_eigenvalue_that_did_not_converge_is_no_number(monkeypatch):
    short = functools.partial(ensemble_flatness, max_products=1)
    monkeypatch.setattr(runner, "ensemble_flatness", short)
    _, record = made("ERM")
    assert record["final"]["top_eigenvalue"] == [[None] * 2] * len(record["settings"])
    assert all(value > 0 for row in record["final"]["trace"] for value in row)


@pytest.mark.parametrize("method", ["SAM", "AdaFlood"])
def test_a_setting_does_not_depend_on_what_trains_beside_it(method):
    given = {
        "data": "sinusoid",
        "noise": 0.1,
        "n_test": 50,
        "width": 6,
        "epochs": 3,
        "every": 3,
        "method": method,
    }
    settings = METHODS[method].settings(2, ADAM.rates)
    both = plane.train(**given, settings=settings, seeds=[1, 2])["metrics"]["test_loss"]
    one = plane.train(**given, settings=settings[1:], seeds=[2])["metrics"]["test_loss"]
    assert both[1][1] == pytest.approx(one[0][0], rel=1e-4)


def test_verifying_repeats_the_sample():
    one, record = made("Flooding", replace(TINY, tuned=False))
    checks = records.verify(record, one.sample)
    assert len(checks) and checks["inside"].all()


@pytest.mark.parametrize(("method", "epochs"), [("SAM", 5), ("AdaFlood", 2)])
def test_at_equal_passes_a_method_of_p_passes_has_a_share_of_the_epochs(method, epochs):
    task = replace(TINY, epochs=10, tuned=False, equal_passes=True)
    one = plane.experiment(task, METHODS[method], FREE)
    assert one.job.settings["epochs"] == epochs
    assert one.name.endswith("-equal-passes")


def test_adaflood_says_what_its_auxiliary_nets_cost():
    one, record = made("AdaFlood", replace(TINY, tuned=False))
    assert record["passes"] == 5
    assert "5 auxiliary nets per seed" in record["task"]["note"]
    assert records.verify(record, one.sample)["inside"].all()


def test_experiments_have_names_of_their_own_and_the_most_valuable_come_first():
    names = [one.name for one in EXPERIMENTS]
    assert len(set(names)) == len(names)
    assert [one.cost.value for one in EXPERIMENTS] == sorted(
        one.cost.value for one in EXPERIMENTS
    )
    for one in EXPERIMENTS:
        assert re.fullmatch(form.schema()["properties"]["name"]["pattern"], one.name)
        for job in one.jobs():
            assert job.key
