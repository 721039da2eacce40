import dataclasses

import pytest
import torch

from flatnb import checkpoint, models
from flatnb.data import Split, plane, stack
from flatnb.experiments import runner
from flatnb.experiments.images import Images
from flatnb.experiments.plane import train
from flatnb.experiments.runner import Training
from flatnb.experiments.tuning import ADAM, METHODS

CNN = Images(
    name="digits",
    data="digits",
    net="small_cnn",
    width=2,
    epochs=2,
    every=1,
    batch=64,
    budget=2,
    seeds=2,
    n_train=100,
    n_val=50,
)


def held_out(sets):
    return runner._held_out(
        lambda: models.mlp(2, 5, 1, 2),
        stack([sets[seed] for seed in (7, 8)]),
        5,
        [7, 8],
        Training(epochs=4, every=4, seed=3, optimizer=ADAM, cosine=False),
    )


def test_a_label_does_not_train_the_nets_that_score_it():
    sets = {s: plane("gaussian", n_train=23, n_test=20, seed=s - 6) for s in (7, 8)}
    y = sets[7].train.y.clone()
    y[4] = 1 - y[4]
    other = dataclasses.replace(sets[7], train=Split(sets[7].train.x, y))
    before, after = held_out(sets), held_out({**sets, 7: other})
    assert before.shape == (2, 23)
    # The same net finds the other label as likely as it found this one unlikely.
    torch.testing.assert_close(
        (-before[0, 4]).exp() + (-after[0, 4]).exp(), torch.tensor(1.0)
    )
    # It trained the nets of the other parts, and nothing else of its own, of 4 or 5.
    assert 23 / 2 < (before[0] != after[0]).sum() <= 23 - 3
    torch.testing.assert_close(before[1], after[1])


class Interrupted(Exception):
    pass


def interrupted(monkeypatch, trainings):
    """Interrupt a job in its so many-th training, in the second of its epochs."""
    count = 0
    real = runner.fit

    def stop(run, model):
        if count == trainings and run.history[-1]["epoch"] == 2:
            raise Interrupted

    def fit(*arguments, **options):
        nonlocal count
        count += 1
        return real(*arguments, **options, callbacks=[stop])

    monkeypatch.setattr(runner, "fit", fit)
    monkeypatch.setattr(checkpoint, "_SECONDS", 0.0)


PLANE = {
    "data": "spiral",
    "noise": 0.1,
    "n_test": 50,
    "width": 6,
    "epochs": 3,
    "every": 1,
    "method": "AdaFlood",
    "settings": METHODS["AdaFlood"].settings(2, ADAM.rates),
    "seeds": [1, 2],
}
IMAGES = {
    "train": "flatnb.experiments.images:train_one",
    "task": dataclasses.asdict(CNN),
    "method": "ERM",
    "settings": [{"lr": 0.1}, {"lr": 0.01}],
    "seeds": [0],
}


@pytest.mark.parametrize(
    ("job", "given", "stop", "saved"),
    [(train, PLANE, 6, 1), (runner.tune, IMAGES, 3, 3)],
)
def test_an_interrupted_job_goes_on_from_its_checkpoints(
    job, given, stop, saved, tmp_path, monkeypatch
):
    unbroken, path = job(**given), tmp_path / "key.pt"
    with monkeypatch.context() as patch:
        interrupted(patch, stop)
        with pytest.raises(Interrupted):
            job(**given, checkpoint=path)
    files = {file.name for file in tmp_path.iterdir()}
    assert len(files) == saved and path.name not in files
    assert job(**given, checkpoint=path) == unbroken


def test_a_run_without_a_finite_loss_is_not_chosen():
    assert runner.choose([0.9, 0.8], [None, 0.1]) == 1
    assert runner.choose([None, None], [None, None]) == 0
