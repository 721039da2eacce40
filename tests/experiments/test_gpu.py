"""What the experiments compute on a GPU is what they compute on a CPU, but for
rounding.

Skipped where there is no GPU.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import asdict, replace

import pytest
import torch

import flatnb
from flatnb import checkpoint, models
from flatnb.experiments import finetune, images, plane, sensing
from flatnb.experiments.experiment import Cost
from flatnb.experiments.finetune import FineTuning
from flatnb.experiments.images import Images
from flatnb.experiments.runner import Training, train_net
from flatnb.experiments.tuning import ADAM, METHODS, Design

# Their noise is drawn on the device: another stream than a CPU's.
DRAW = {"NSO", "NSO-EMA", "WeightNoise", "RSAM", "BSAM"}
CNN = Images(
    name="digits",
    data="digits",
    net="small_cnn",
    width=8,
    epochs=2,
    every=1,
    batch=64,
)
TINY = replace(
    plane.NARROW, width=8, epochs=4, n_test=100, budget=3, seeds=2, fresh=2, tuned=True
)


@pytest.fixture(autouse=True)
def _gpu():
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")


@contextmanager
def on_cpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield


def flat(table):
    if isinstance(table, list):
        return torch.cat([flat(row) for row in table])
    return torch.tensor([float("nan") if table is None else table], dtype=torch.float64)


def assert_near(found, expected, name, rel):
    found, expected = flat(found), flat(expected)
    torch.testing.assert_close(
        found,
        expected,
        rtol=rel,
        atol=rel,
        equal_nan=True,
        msg=lambda m: f"{name}: {m}",
    )


@pytest.mark.parametrize(
    "method", [name for name, one in METHODS.items() if one.design >= Design.TUNED]
)
def test_an_ensemble_trains_as_on_a_cpu(method):
    rates = (METHODS[method].optimizer or ADAM).rates
    given = dict(
        data="gaussian",
        noise=0.05,
        n_test=100,
        width=8,
        epochs=2,
        every=1,
        method=method,
        settings=METHODS[method].settings(3, rates),
        seeds=[1, 2],
    )
    found = plane.train(**given)
    assert found["machine"]["device"] != "cpu"
    with on_cpu():
        expected = plane.train(**given)
    for kind in ("metrics", "flatness"):
        assert found[kind].keys() == expected[kind].keys()
        for name, table in expected[kind].items():
            if method in DRAW:
                assert flat(found[kind][name]).isfinite().equal(flat(table).isfinite())
            elif (
                name != "top_eigenvalue"
            ):  # where it has converged may be on another side
                # An accuracy moves by a hundredth when one example changes sides.
                assert_near(found[kind][name], table, name, 0.03)


def test_a_net_trains_in_bfloat16_near_what_float32_gives():
    given = dict(
        task=asdict(replace(CNN, augment="crop, flip")),
        method="SAM",
        setting={"lr": 0.1, "rho": 0.05},
        seed=0,
    )
    found = images.train_one(**given)
    images.load.cache_clear()
    with on_cpu():
        expected = images.train_one(**given)
    assert found["epochs"] == expected["epochs"]
    for name in ("train_loss", "test_loss"):
        assert_near(found["metrics"][name], expected["metrics"][name], name, 0.1)


def test_fine_tuning_starts_from_a_net_trained_on_the_gpu():
    task = FineTuning(name="digits", source=CNN, shots=10, epochs=2)
    start, data, accuracy = finetune.start(task, 0)
    assert next(start.parameters()).is_cpu and accuracy > 0.2
    net = finetune.renewed(start, len(data.classes), 0)
    found = train_net(net, data, METHODS["ERM"], {"lr": 0.05}, Training(2, 2, 0))
    assert flat(found["metrics"]["test_loss"]).isfinite().all()


def test_a_study_selects_and_evaluates():
    one = plane.experiment(TINY, METHODS["SAM"], Cost(9, 0.0, 0.0))
    value = one.job.run()
    assert value["failures"] == []
    for runs in value["evaluation"].values():
        assert flat(runs["final"]["test_loss"]).isfinite().all()
    # Order 0 of an evaluation is that of a run alone.
    chosen = value["evaluation"]["chosen"]
    alone = one.run(one.settings[chosen["settings"][0]], chosen["seeds"][0]).run()
    for name in ("train_loss", "test_loss", "norm"):
        found = chosen["final"][name][0]
        assert_near(alone["metrics"][name][0][0][-1], found, name, 1e-3)


def test_matrix_sensing_descends_as_on_a_cpu():
    rules = sensing.RULES["GD"]
    given = dict(rules=rules, seeds=[0], epochs=20, every=10, d=20, rank=2, m=200)
    found = sensing.train(**given)
    with on_cpu():
        expected = sensing.train(**given)
    for name, table in expected["metrics"].items():
        assert_near(found["metrics"][name], table, name, 1e-3)


def test_a_run_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    data = flatnb.data.plane("gaussian", seed=0)

    def train(**others):
        torch.manual_seed(0)
        net = models.mlp(2, 8, 2, 2).to("cuda")
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        return flatnb.fit(
            net, data, flatnb.NSO(0.01), optimizer, epochs=4, seed=0, **others
        )

    def stop(run, model):
        if run.history[-1]["epoch"] == 2:
            raise KeyboardInterrupt

    whole = train()
    monkeypatch.setattr(checkpoint, "_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        train(callbacks=[stop], checkpoint=tmp_path / "run.pt")
    resumed = train(checkpoint=tmp_path / "run.pt")
    assert [entry["epoch"] for entry in resumed.history] == [0, 1, 2, 3, 4]
    for name in ("train_loss", "test_loss", "norm"):
        found, expected = ([e[name] for e in run.history] for run in (resumed, whole))
        assert_near(found, expected, name, 1e-5)
