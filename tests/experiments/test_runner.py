import dataclasses

import pytest
import torch

import flatnb
from flatnb import checkpoint, models, train
from flatnb.data import Split, plane, stack
from flatnb.experiments import images, runner
from flatnb.experiments import plane as in_plane
from flatnb.experiments.images import Images
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


@pytest.mark.parametrize("ensemble", [False, True])
@pytest.mark.parametrize("name", ["SAM", "NSO"])
def test_an_average_of_a_method_is_that_of_its_path(name, ensemble):
    """SAM-EMA trains as SAM, bit for bit, and ends as EMA of that training."""
    data = plane("spiral", n_test=20, seed=0)
    combined = METHODS[f"{name}-EMA"]
    settings = combined.settings(2 if ensemble else 1, ADAM.rates)
    decays = [{"decay": setting["decay"]} for setting in settings]
    own = [{k: v for k, v in one.items() if k != "decay"} for one in settings]

    def make():
        return models.mlp(2, 6, 2, 2)

    def start():
        torch.manual_seed(0)
        return flatnb.Ensemble(make, 2) if ensemble else make()

    training = Training(epochs=3, every=3, seed=1, optimizer=ADAM, cosine=False)
    model = start()
    _, averaged = training.run(model, data, combined, settings)

    alone = start()
    average = METHODS["EMA"].averaged(alone, decays, 3 * data.steps)
    method, optimizer = METHODS[name].build(own), ADAM.build(alone, own)
    options = dict(epochs=3, seed=1, every=3, average=average)
    flatnb.fit(alone, data, method, optimizer, **options)
    for found, expected in ((model, alone), (averaged, average.module)):
        pairs = zip(
            found.state_dict().items(), expected.state_dict().items(), strict=True
        )
        for (key, value), (_, other) in pairs:
            assert torch.equal(value, other), key
    assert not torch.equal(*[next(net.parameters()) for net in (model, averaged)])


def test_auxiliary_nets_cost_what_is_declared(monkeypatch):
    """n nets, each on the other n - 1 parts: n - 1 trainings, in steps."""
    examples = []
    real = runner.fit

    def fit(model, data, *arguments, **options):
        examples.append(len(data.train) * options["epochs"])
        return real(model, data, *arguments, **options)

    monkeypatch.setattr(runner, "fit", fit)
    held_out({s: plane("gaussian", n_train=25, n_test=20, seed=s) for s in (7, 8)})
    auxiliary = METHODS["AdaFlood"].passes - METHODS["Flooding"].passes
    assert sum(examples) == auxiliary * 25 * 4


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


def counted(monkeypatch):
    """A list that gets an entry for each epoch that is trained."""
    epochs = []
    real = train.train_epoch

    def train_epoch(*arguments, **options):
        epochs.append(1)
        return real(*arguments, **options)

    monkeypatch.setattr(train, "train_epoch", train_epoch)
    return epochs


PLANE = {
    "data": "spiral",
    "noise": 0.1,
    "n_test": 50,
    "width": 6,
    "epochs": 3,
    "every": 1,
    "method": "AdaFlood",
    "settings": METHODS["AdaFlood"].settings(3, ADAM.rates),
    "budget": 2,
    "seeds": [1, 2],
    "fresh": [3],
    "repeats": 1,
}
NETS = {
    "train": "flatnb.experiments.images:train_one",
    "task": dataclasses.asdict(CNN),
    "method": "ERM",
    "settings": [{"lr": 0.1}, {"lr": 0.01}],
    "budget": 2,
    "seeds": [0, 1],
    "fresh": [2],
    "finalists": 1,
}
PERCEPTRONS = NETS | {
    "train": "ensembles",
    "task": dataclasses.asdict(dataclasses.replace(CNN, net="mlp", width=8)),
    "finalists": None,
}


@pytest.mark.parametrize(
    ("job", "given", "stop", "saved", "left"),
    [
        # 5 auxiliary trainings, which have no checkpoint, and one, in each part. The
        # last one is stopped: two of its three epochs are left.
        (in_plane.study, PLANE, 12, 2, 2 * 5 * 3 + 2),
        # One after another: 2 of the selection, 1 finalist, 1 evaluation.
        (images.study, NETS, 4, 4, 1),
        # An ensemble per seed.
        (images.study, PERCEPTRONS, 3, 3, 1),
    ],
)
def test_an_interrupted_job_goes_on_from_its_checkpoints(
    job, given, stop, saved, left, tmp_path, monkeypatch
):
    unbroken, path = job(**given), tmp_path / "key.pt"
    with monkeypatch.context() as patch:
        interrupted(patch, stop)
        with pytest.raises(Interrupted):
            job(**given, checkpoint=path)
    files = [file.name for file in tmp_path.glob("key*.pt")]  # as a sweep removes them
    assert len(files) == saved and path.name not in files
    assert len(list(tmp_path.iterdir())) == saved
    epochs = counted(monkeypatch)
    assert job(**given, checkpoint=path) == unbroken
    assert len(epochs) == left


def test_a_net_trains_in_the_precision_of_a_record():
    """Of its device, wherever it is repeated; an ensemble in float32 on any."""

    def end(job):
        job = {**job, "task": dataclasses.asdict(CNN)}
        return images.train_one(**job)["metrics"]["train_loss"]

    job = dict(method="ERM", setting={"lr": 0.1}, seed=0)
    own = end(job)
    with runner.in_precision_of("NVIDIA H200"):
        rounded = end(job)
        with runner.in_precision_of("cpu"):
            exact = end(job)
    assert rounded != exact
    assert rounded[0][0] == pytest.approx(exact[0][0], rel=0.05)
    if runner.device().type == "cpu":
        assert own == exact
    task = dataclasses.asdict(dataclasses.replace(images.DIGITS, epochs=1))
    nets = dict(task=task, method="ERM", settings=[{"lr": 0.1}], seeds=[0])
    expected = images.train_perceptrons(**nets)["metrics"]
    with runner.in_precision_of("NVIDIA H200"):
        assert images.train_perceptrons(**nets)["metrics"] == expected
