"""The loop against a hand-written one, its bookkeeping, and ensembles against separate
training.
"""

import copy
import io
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import flatnb
from flatnb import checkpoint, data, metrics, models, train
from flatnb.ensemble import member_learning_rates


def plane(seed=0, **kw):
    return data.plane(
        "gaussian", n_train=41, n_val=20, n_test=60, noise=0.1, seed=seed, **kw
    )


def net(seed=0):
    torch.manual_seed(seed)
    return models.mlp(2, 8, 2, 2)


def with_dropout() -> nn.Sequential:
    body = models.mlp(2, 8, 2, 2)[:-1]
    return nn.Sequential(*body, nn.Dropout(0.3), nn.Linear(8, 2))


def sgd(model, lr=0.1):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def bsam(model):
    seeds = model.seeds if isinstance(model, flatnb.Ensemble) else None
    return flatnb.BSAM(model.parameters(), lr=0.1, examples=41, member_seeds=seeds)


OPTIMIZERS = [sgd, bsam]


def step(model, optimizer, x, y):
    """A step of any optimizer: they all take a closure."""

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)


@pytest.mark.parametrize("optimizer_of", OPTIMIZERS)
def test_fit_is_the_plain_loop(optimizer_of):
    model, reference, d = net(), net(), plane(batch_size=10)
    flatnb.fit(model, d, flatnb.ERM(), optimizer_of(model), epochs=3, seed=7)

    optimizer, order = optimizer_of(reference), torch.Generator().manual_seed(7)
    for _ in range(3):
        for x, y in d.batches(order):
            step(reference, optimizer, x, y)
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-5, atol=1e-6)


def test_same_seed_same_run_and_another_seed_another():
    def history(seed):
        model = nn.Sequential(with_dropout())
        torch.manual_seed(0)
        for p in model.parameters():
            nn.init.normal_(p)
        run = flatnb.fit(
            model, plane(), flatnb.SAM(0.1), sgd(model), epochs=2, seed=seed
        )
        return [{k: v for k, v in e.items() if k != "seconds"} for e in run.history]

    assert history(1) == history(1)
    assert history(1) != history(2)


def test_history_is_what_evaluate_says():
    model, d = net(), plane(batch_size=15)
    before = metrics.evaluate(model, d.test)
    run = flatnb.fit(model, d, flatnb.SAM(0.1), sgd(model), epochs=5, seed=0, every=2)
    after = metrics.evaluate(model, d.test)
    assert [e["epoch"] for e in run.history] == [0, 2, 4, 5]
    assert run.history[0]["test_loss"] == before["loss"].item()
    assert run.history[-1]["test_accuracy"] == after["accuracy"].item()
    assert (
        run.history[-1]["passes"] == 5 * 3 * 2
    )  # epochs, steps of at most 15 in 41, SAM's passes
    flat = torch.cat([p.detach().double().flatten() for p in model.parameters()])
    assert run.history[-1]["norm"] == pytest.approx(flat.norm().item())
    assert run.stopped is None and run.method == "SAM(rho=0.1)"


def test_a_diverging_run_stops_and_says_so():
    model = net()
    run = flatnb.fit(
        model, plane(), flatnb.ERM(), sgd(model, lr=1e30), epochs=50, seed=0
    )
    assert "epoch" in run.stopped
    assert run.history[-1]["epoch"] < 50


def test_the_scheduler_steps_once_an_epoch():
    model = net()
    optimizer = sgd(model)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    d = plane(batch_size=10)
    flatnb.fit(model, d, flatnb.ERM(), optimizer, epochs=3, seed=0, scheduler=scheduler)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**3)


def test_callbacks_see_every_evaluation():
    seen = []
    model = net()
    flatnb.fit(
        model,
        plane(),
        flatnb.ERM(),
        sgd(model),
        epochs=2,
        seed=0,
        callbacks=[lambda run, m: seen.append((run.history[-1]["epoch"], m is model))],
    )
    assert seen == [(0, True), (1, True), (2, True)]


@pytest.mark.parametrize(
    "one, all_",
    [
        (lambda v: flatnb.ERM(), flatnb.ERM()),
        (lambda v: flatnb.SoftAD(v), flatnb.SoftAD(torch.tensor([0.1, 0.4, 0.8]))),
        (lambda v: flatnb.SAM(v), flatnb.SAM(torch.tensor([0.1, 0.4, 0.8]))),
    ],
    ids=["ERM", "SoftAD", "SAM"],
)
def test_an_ensemble_trains_its_members_as_if_alone(one, all_):
    seeds, values = [3, 4, 5], [0.1, 0.4, 0.8]
    ensemble = flatnb.Ensemble(lambda: models.mlp(2, 8, 2, 2), 3, seeds=seeds)
    stacked = data.stack([plane(seed) for seed in seeds])
    together = flatnb.fit(
        ensemble, stacked, all_, sgd(ensemble), epochs=4, seed=9
    ).frame()
    for i, (seed, value) in enumerate(zip(seeds, values, strict=True)):
        model = net(seed)
        alone = flatnb.fit(
            model, plane(seed), one(value), sgd(model), epochs=4, seed=9
        ).frame()
        own = together[together.member == i]
        for column in ("train_loss", "test_loss", "norm"):
            assert own[column].to_numpy() == pytest.approx(
                alone[column].to_numpy(), rel=1e-3
            )


@pytest.mark.parametrize(
    "bad, message",
    [
        (dict(epochs=-1), "epochs=-1"),
        (dict(epochs=1.5), "1.5"),
        (dict(epochs=1, every=0), "every"),
    ],
)
def test_bad_counts_are_refused(bad, message):
    model = net()
    with pytest.raises(ValueError, match=message):
        flatnb.fit(model, plane(), flatnb.ERM(), sgd(model), seed=0, **bad)


def test_several_processes_are_refused():
    model = DistributedDataParallel.__new__(DistributedDataParallel)
    nn.Module.__init__(model)
    model.module = net()
    with pytest.raises(ValueError, match="For several, write the loop"):
        flatnb.fit(model, plane(), flatnb.ERM(), sgd(model), epochs=1, seed=0)


def test_an_epoch_without_a_batch_is_refused():
    with pytest.raises(ValueError, match="at least one batch"):
        flatnb.train.train_epoch(net(), [], flatnb.ERM(), sgd(net()))


def test_members_of_data_and_model_must_agree():
    model = net()
    with pytest.raises(ValueError, match="is not an Ensemble"):
        flatnb.fit(
            model,
            data.stack([plane(0), plane(1)]),
            flatnb.ERM(),
            sgd(model),
            epochs=1,
            seed=0,
        )


def without_seconds(run):
    return [{k: v for k, v in e.items() if k != "seconds"} for e in run.history]


def identical(a, b):
    """State dicts, lists and tensors that are equal bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(identical(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(identical, a, b))
    return a == b


# -- precision, compiling


def test_training_is_under_autocast_and_evaluation_is_not():
    dtype = torch.bfloat16
    model, d = net(), plane(batch_size=10)
    seen = set()
    model[-1].register_forward_hook(lambda m, _, out: seen.add((m.training, out.dtype)))
    run = flatnb.fit(
        model, d, flatnb.SAM(0.05), sgd(model), epochs=20, seed=0, dtype=dtype
    )
    assert seen == {(True, dtype), (False, torch.float32)}
    assert run.stopped is None
    assert run.history[-1]["train_loss"] < 0.8 * run.history[0]["train_loss"]


def test_a_compiled_model_is_compiled_for_training_only():
    d = plane(batch_size=20)
    d = replace(d, train=d.train[:40])
    graphs = []

    def backend(graph, inputs):
        graphs.append(
            [tuple(i.shape) for i in inputs if i.dim() == 2 and i.shape[-1] == 2]
        )
        return graph

    torch._dynamo.reset()  # it remembers the shapes that other tests gave the same net
    model, plain = net(), net()
    compiled = torch.compile(model, backend=backend)
    run = flatnb.fit(compiled, d, flatnb.SAM(0.05), sgd(compiled), epochs=3, seed=0)
    expected = flatnb.fit(plain, d, flatnb.SAM(0.05), sgd(plain), epochs=3, seed=0)
    torch._dynamo.reset()
    assert len(graphs) == 1 and (20, 2) in graphs[0]
    assert run.history[-1]["test_loss"] == pytest.approx(
        expected.history[-1]["test_loss"]
    )


# -- methods that must know the examples


@pytest.mark.parametrize("joined", [False, True])
def test_adaflood_knows_the_examples_of_each_batch(joined):
    model, reference, d = net(), net(), plane(batch_size=10)
    levels = torch.rand(len(d.train))
    method = flatnb.AdaFlood(levels)
    method = flatnb.compose(method, flatnb.SAM(0.0)) if joined else method
    flatnb.fit(model, d, method, sgd(model), epochs=2, seed=7)

    optimizer, order = sgd(reference), torch.Generator().manual_seed(7)
    for _ in range(2):
        for index, x, y in d.index_batches(order):
            optimizer.zero_grad()
            losses = F.cross_entropy(reference(x), y, reduction="none")
            ((losses - levels[index]).abs() + levels[index]).mean().backward()
            optimizer.step()
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-5, atol=1e-6)


# -- what is not finite


def spoilt(example=17, value=torch.inf):
    """The plane with one training example that makes any gradient NaN."""
    d = plane(batch_size=10)
    x = d.train.x.clone()
    x[example] = value
    return replace(d, train=data.Split(x, d.train.y))


@pytest.mark.parametrize("optimizer_of", OPTIMIZERS)
def test_a_plain_model_stops_before_the_step_that_would_lose_it(optimizer_of):
    model, reference, d = net(), net(), spoilt()
    run = flatnb.fit(model, d, flatnb.ERM(), optimizer_of(model), epochs=5, seed=7)

    optimizer, steps = optimizer_of(reference), 0
    for index, x, y in d.index_batches(torch.Generator().manual_seed(7)):
        if 17 in index:
            break
        step(reference, optimizer, x, y)
        steps += 1
    assert steps > 0
    assert (
        f"epoch 1: the gradient's norm was nan in step {steps + 1}, where the training "
        "loss was nan" in run.stopped
    )
    assert [e["epoch"] for e in run.history] == [0, 1]
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.isfinite(p).all() and torch.allclose(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer_of", OPTIMIZERS)
def test_where_gradients_are_checked_after_the_epoch_the_model_returns_to_its_start(
    optimizer_of, monkeypatch
):
    """What a GPU does, on a CPU."""
    monkeypatch.setattr(train, "_is_asynchronous", lambda device: True)
    model, d = net(), spoilt()
    before = copy.deepcopy(model.state_dict())
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    run = flatnb.fit(
        model, d, flatnb.ERM(), optimizer_of(model), epochs=5, seed=7, average=average
    )
    assert "norm was nan in step" in run.stopped
    assert identical(model.state_dict(), before)
    assert average.n_averaged == 0 and "average_test_loss" not in run.history[-1]


@pytest.mark.parametrize("pass_", [1, 2])
def test_a_gradient_of_either_pass_that_is_not_finite_stops_bsam(pass_, monkeypatch):
    """In the third of five steps; no weight moves in it."""
    model, d = net(), plane(batch_size=10)
    optimizer, seen = bsam(model), []
    backward = flatnb.ERM.backward

    def spoiling(*arguments):
        loss = backward(flatnb.ERM(), *arguments)
        seen.append(copy.deepcopy(model.state_dict()))
        if len(seen) == 4 + pass_:
            next(model.parameters()).grad[0] = torch.inf
        return loss

    method = flatnb.ERM()
    monkeypatch.setattr(method, "backward", spoiling)
    run = flatnb.fit(model, d, method, optimizer, epochs=5, seed=7)
    assert "epoch 1: the gradient's norm was inf in step 3" in run.stopped
    assert len(seen) == 6
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("optimizer_of", OPTIMIZERS)
def test_one_lost_member_leaves_the_others_exact(optimizer_of):
    def trained(third):
        ensemble = flatnb.Ensemble(lambda: models.mlp(2, 8, 2, 2), 3)
        stacked = data.stack([plane(0, batch_size=10), plane(1, batch_size=10), third])
        optimizer = optimizer_of(ensemble)
        run = flatnb.fit(
            ensemble, stacked, flatnb.SAM(0.05), optimizer, epochs=3, seed=0
        )
        return ensemble, run

    good, _ = trained(plane(2, batch_size=10))
    bad, run = trained(spoilt())
    assert run.stopped is None
    for p, q in zip(good.parameters(), bad.parameters(), strict=True):
        assert torch.equal(p[:2], q[:2]) and q[2].isnan().any()


def test_an_ensemble_without_a_finite_member_stops():
    ensemble = flatnb.Ensemble(lambda: models.mlp(2, 8, 2, 2), 2)
    d = spoilt(slice(None))
    run = flatnb.fit(ensemble, d, flatnb.ERM(), sgd(ensemble), epochs=5, seed=0)
    assert run.stopped == "epoch 1: no member had a finite loss"


# -- averages


def test_an_average_is_evaluated_next_to_a_training_it_does_not_change():
    """EMA by hand, BatchNorm statistics recomputed."""
    d = plane(batch_size=10)

    def trained(make_average=lambda model: None):
        torch.manual_seed(0)
        model = with_dropout()
        average = make_average(model)
        run = flatnb.fit(
            model, d, flatnb.ERM(), sgd(model), epochs=4, seed=1, average=average
        )
        return run, average, model

    plain, _, _ = trained()
    run, average, _ = trained(
        lambda m: AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    )
    _, last, model = trained(  # a decay of 0: the weights themselves
        lambda m: AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(0.0))
    )
    assert identical(list(last.module.parameters()), list(model.parameters()))
    entries = zip(without_seconds(run), without_seconds(plain), strict=True)
    for entry, expected in entries:
        assert {k: entry[k] for k in expected} == expected
    with_average = ["average_test_loss" in e for e in run.history]
    assert with_average == [False, True, True, True, True]
    assert average.n_averaged == 4 * d.steps

    again = copy.deepcopy(average.module)
    torch.manual_seed(3)
    update_bn([(d.train.x, d.train.y)], again)
    for name, value in average.module.named_buffers():
        if name.startswith("1.running"):  # of the first layer, before any dropout
            rough = 0.2 if name.endswith("var") else 1e-2  # of batches, of the whole
            whole = again.get_buffer(name)
            assert torch.allclose(value, whole, rtol=rough, atol=1e-2)
    measured = metrics.evaluate(average.module, d.test)["loss"].item()
    assert run.history[-1]["average_test_loss"] == measured


def test_an_ensemble_is_averaged_per_member():
    ensemble = flatnb.Ensemble(lambda: models.mlp(2, 8, 2, 2), 3)
    average = AveragedModel(ensemble)
    frame = flatnb.fit(
        ensemble,
        plane(),
        flatnb.ERM(),
        sgd(ensemble),
        epochs=3,
        seed=0,
        average=average,
    ).frame()
    last = frame[frame.epoch == 3]
    assert len(last) == 3 and last.average_test_loss.notna().all()
    assert frame[frame.epoch == 0].average_test_loss.isna().all()


# -- checkpoints


def dropped_out(seed=0):
    torch.manual_seed(seed)
    return with_dropout()


def ensemble(seed=0):
    return flatnb.Ensemble(lambda: models.mlp(2, 8, 2, 2), 3)


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.01)


def bsam_per_member(model):
    optimizer, rho = bsam(model), torch.tensor([0.01, 0.1, 0.0])
    optimizer.param_groups[0]["rho"] = rho
    member_learning_rates(optimizer, [0.1, 0.03, 0.01])
    return optimizer


def start(
    make_model=dropped_out,
    make_method=lambda: flatnb.SAM(0.05),
    make_optimizer=adam,
    ema=False,
    **kw,
):
    """Fresh objects, as another process would make them."""
    model = make_model()
    optimizer = make_optimizer(model)
    average = (
        AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9)) if ema else None
    )
    return dict(
        model=model,
        data=jittered(),
        method=make_method(),
        optimizer=optimizer,
        average=average,
        epochs=6,
        seed=3,
        scheduler=torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4]),
        **kw,
    )


def jitter(x, generator):
    return x + 0.01 * torch.randn(x.shape, generator=generator)


def jittered(seed=0):
    return replace(plane(seed, batch_size=10), augment=[jitter])


@pytest.fixture(autouse=True)
def written_each_epoch(monkeypatch):
    monkeypatch.setattr(checkpoint, "_SECONDS", 0.0)


class Killed(Exception):
    pass


def killed_after(epochs):
    def callback(run, model):
        if run.history[-1]["epoch"] == epochs:
            raise Killed

    return callback


def state_of(arguments):
    names = ("model", "optimizer", "scheduler", "method", "average")
    return {n: arguments[n].state_dict() for n in names if arguments[n] is not None}


RESUMED = {
    "dropout": dict(),
    "NSO": dict(make_method=lambda: flatnb.NSO(0.05, seed=4)),
    "ensemble": dict(make_model=ensemble),
    "bSAM": dict(make_optimizer=bsam),
    "bSAM of an ensemble": dict(make_model=ensemble, make_optimizer=bsam_per_member),
    "EMA": dict(ema=True),
    "EMA of an ensemble": dict(make_model=ensemble, ema=True),
    "bfloat16": dict(dtype=torch.bfloat16),
    "every other": dict(every=2),
}


@pytest.mark.parametrize("case", RESUMED.values(), ids=RESUMED)
def test_a_resumed_run_equals_the_unbroken_one(case, tmp_path):
    unbroken = start(**case)
    expected = flatnb.fit(**unbroken)

    path = tmp_path / "run.pt"
    with pytest.raises(Killed):
        flatnb.fit(**start(**case), checkpoint=path, callbacks=[killed_after(4)])
    torch.manual_seed(12345)  # nothing of this process may matter
    torch.rand(7)
    resumed, epochs = start(**case), []
    run = flatnb.fit(
        **resumed,
        checkpoint=path,
        callbacks=[lambda r, m: epochs.append(r.history[-1]["epoch"])],
    )
    assert epochs[0] == 4 and epochs[-1] == 6  # 3 was the last epoch that was saved
    assert without_seconds(run) == without_seconds(expected)
    assert identical(state_of(resumed), state_of(unbroken))

    finished = start(**case)
    again = flatnb.fit(**finished, checkpoint=path)
    assert again.history == run.history and identical(
        state_of(finished), state_of(unbroken)
    )
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]


def test_a_stopped_run_stays_stopped(tmp_path):
    runs = []
    for _ in range(2):
        model = net()
        runs.append(
            flatnb.fit(
                model,
                spoilt(),
                flatnb.ERM(),
                sgd(model),
                epochs=5,
                seed=7,
                checkpoint=tmp_path / "run.pt",
            )
        )
    assert runs[0].stopped is not None and repr(runs[0]) == repr(
        runs[1]
    )  # NaN among them


def test_a_checkpoint_is_written_only_so_often(tmp_path, monkeypatch):
    written, path = [], tmp_path / "run.pt"
    monkeypatch.setattr(checkpoint, "_SECONDS", 1000.0)
    flatnb.fit(
        **start(),
        checkpoint=path,
        callbacks=[lambda r, m: written.append(path.exists())],
    )
    assert not any(written) and path.exists()


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    flatnb.fit(**start(make_model=ensemble), checkpoint=path)
    others = {
        "seed": dict(seed=4),
        "epochs": dict(epochs=7),
        "method": dict(method=flatnb.SAM(0.1)),
        "dtype": dict(dtype=torch.bfloat16),
        "data": dict(data=jittered(1)),
        "model": (
            lambda m: dict(model=m, optimizer=torch.optim.Adam(m.parameters(), lr=0.01))
        )(flatnb.Ensemble(lambda: models.mlp(2, 9, 2, 2), 3)),
        "optimizer": (lambda m: dict(model=m, optimizer=sgd(m)))(ensemble()),
    }
    for name, change in others.items():
        with pytest.raises(ValueError, match=f"of another run, with another {name}"):
            flatnb.fit(**{**start(make_model=ensemble), **change}, checkpoint=path)


def test_tensor_hyperparameters_are_compared_by_value(tmp_path):
    path = tmp_path / "run.pt"

    def fit(*rho):
        arguments = start(ensemble, lambda: flatnb.SAM(torch.tensor(rho)))
        return flatnb.fit(**arguments, checkpoint=path)

    assert fit(0.1, 0.2, 0.3).history == fit(0.1, 0.2, 0.3).history
    with pytest.raises(ValueError, match="another method"):
        fit(0.1, 0.2, 0.4)


class Code:
    ran = False

    def __reduce__(self):
        return setattr, (Code, "ran", True)


def test_a_damaged_file_is_refused_and_no_code_of_it_runs(tmp_path):
    path = tmp_path / "run.pt"
    flatnb.fit(**start(), checkpoint=path)
    whole = path.read_bytes()

    def flipped(at):
        return whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]

    code, other = io.BytesIO(), io.BytesIO()
    torch.save({"run": Code()}, code)
    torch.save({"weights": torch.ones(3)}, other)
    damaged = (
        b"",
        b"text",
        whole[:-100],
        whole[: len(whole) // 2],
        flipped(whole.index(b"model")),
        other.getvalue(),
        code.getvalue(),
    )
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"run\.pt is damaged, or no checkpoint"):
            flatnb.fit(**start(), checkpoint=path)
    assert not Code.ran


def test_a_full_disk_is_an_error_that_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    with pytest.raises(Killed):
        flatnb.fit(**start(), checkpoint=path, callbacks=[killed_after(2)])
    kept, save = path.read_bytes(), torch.save

    def full(state, file):
        save(state, file)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        flatnb.fit(**start(), checkpoint=path)
    assert path.read_bytes() == kept and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "bad, message",
    [
        (dict(dtype=torch.float64), "dtype=torch.float64"),
        (dict(dtype=torch.float16), "dtype=torch.float16; allowed: None, torch.b"),
    ],
)
def test_bad_settings_are_refused(bad, message):
    model = net()
    with pytest.raises(ValueError, match=message):
        flatnb.fit(model, plane(), flatnb.ERM(), sgd(model), epochs=1, seed=0, **bad)


def grid_net():
    return models.mlp(2, 8, 1, 2)


def test_a_grid_is_every_value_on_every_seed_as_written_by_hand():
    table, nets = flatnb.fit_grid(
        grid_net,
        plane,
        flatnb.GNP,
        {"r": [0.1, 0.2], "alpha": [0.5, 0.8]},
        seeds=[3, 5],
        epochs=4,
        every=2,
        lr=0.1,
        optimizer=torch.optim.SGD,
        seed=1,
    )
    rows = [(r, a, s) for r in (0.1, 0.2) for a in (0.5, 0.8) for s in (3, 5)]
    radii, weights, seeds = (list(column) for column in zip(*rows, strict=True))
    by_hand = flatnb.Ensemble(grid_net, 8, seeds)
    run = flatnb.fit(
        by_hand,
        data.stack([plane(s) for s in seeds]),
        flatnb.GNP(torch.tensor(radii), torch.tensor(weights)),
        torch.optim.SGD(by_hand.parameters(), lr=0.1),
        epochs=4,
        every=2,
        seed=1,
    )
    assert sorted(set(table.epoch)) == [0, 2, 4]
    last = table[table.epoch == 4].sort_values("member")
    assert [*zip(last.r, last.alpha, last.seed, strict=True)] == rows
    assert last.test_loss.tolist() == run.history[-1]["test_loss"]
    for p, q in zip(nets.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(p, q)


def test_learning_rates_of_a_grid_are_those_of_separate_trainings():
    table, _ = flatnb.fit_grid(
        grid_net, plane, flatnb.ERM, {"lr": [0.2, 0.05]}, seeds=[0, 1], epochs=3
    )
    for rate in (0.2, 0.05):
        alone, _ = flatnb.fit_grid(
            grid_net, plane, flatnb.ERM(), seeds=[0, 1], epochs=3, lr=rate
        )
        expected = alone[alone.epoch == 3].train_loss.tolist()
        mine = table[(table.epoch == 3) & (table.lr == rate)].train_loss.tolist()
        assert mine == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": {"level": []}}, r"'level': \[\], .*allowed: no empty list"),
        ({"grid": {"level": 0.1}}, "'float' object is not iterable"),
        ({"grid": {"seed": [1]}}, r"grid={'seed': \[1\]}; allowed: names other"),
        ({"grid": [0.1]}, "'list' object is not a mapping"),
        ({"seeds": []}, r"'seed': \[\]}; allowed: no empty list"),
        ({"seeds": 3}, "seeds=3; allowed: integers"),
        ({"seeds": [0.5]}, "seeds has 0.5; allowed: integers"),
    ],
)
def test_a_grid_says_what_is_wrong_with_it(change, message):
    usual = dict(
        make_model=grid_net,
        make_data=plane,
        method=flatnb.Flooding,
        grid={"level": [0.1]},
        seeds=[0],
        epochs=1,
    )
    with pytest.raises((TypeError, ValueError), match=message):
        flatnb.fit_grid(**usual | change)
