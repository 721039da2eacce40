"""The loop against a hand-written one, its bookkeeping, and ensembles against separate training."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import flatnb
from flatnb import data, models, train


def plane(seed=0, **kw):
    return data.plane("gaussian", n_train=41, n_val=20, n_test=60, noise=0.1, seed=seed, **kw)


def net(seed=0):
    torch.manual_seed(seed)
    return models.mlp(2, 8, 2, 2)


def sgd(model, lr=0.1):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def test_fit_is_the_plain_loop():
    model, reference, d = net(), net(), plane(batch_size=10)
    flatnb.fit(model, d, flatnb.ERM(), sgd(model), epochs=3, seed=7)

    optimizer, order = sgd(reference), torch.Generator().manual_seed(7)
    for _ in range(3):
        for x, y in d.batches(order):
            optimizer.zero_grad()
            F.cross_entropy(reference(x), y).backward()
            optimizer.step()
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-5, atol=1e-6)


def test_same_seed_same_run_and_another_seed_another():
    def history(seed):
        model = nn.Sequential(models.mlp(2, 8, 1, 2, dropout=0.5))
        torch.manual_seed(0)
        for p in model.parameters():
            nn.init.normal_(p)
        run = flatnb.fit(model, plane(), flatnb.SAM(0.1), sgd(model), epochs=2, seed=seed)
        return [{k: v for k, v in e.items() if k != "seconds"} for e in run.history]

    assert history(1) == history(1)
    assert history(1) != history(2)


def test_history_is_what_evaluate_says():
    model, d = net(), plane(batch_size=15)
    before = train.evaluate(model, d.test)
    run = flatnb.fit(model, d, flatnb.SAM(0.1), sgd(model), epochs=5, seed=0, every=2)
    after = train.evaluate(model, d.test)
    assert [e["epoch"] for e in run.history] == [0, 2, 4, 5]
    assert run.history[0]["test_loss"] == before["loss"].item()
    assert run.history[-1]["test_accuracy"] == after["accuracy"].item()
    assert run.history[-1]["passes"] == 5 * 3 * 2  # epochs, steps of at most 15 in 41, SAM's passes
    flat = torch.cat([p.detach().double().flatten() for p in model.parameters()])
    assert run.history[-1]["norm"] == pytest.approx(flat.norm().item())
    assert run.stopped is None and run.method == "SAM(rho=0.1)"


def test_evaluate_weights_chunks_by_size_and_restores_the_mode(monkeypatch):
    model, d = net().train(), plane()
    whole = train.evaluate(model, d.test)
    monkeypatch.setattr(train, "_EVALUATION_ROWS", 7)
    parts = train.evaluate(model, d.test)
    assert parts["loss"] == pytest.approx(whole["loss"].item(), rel=1e-5)
    assert parts["accuracy"] == whole["accuracy"]
    assert model.training


def test_cross_entropy_is_per_example_with_and_without_members():
    logits, y = torch.randn(3, 5, 4), torch.randint(4, (5,))
    expected = torch.stack([F.cross_entropy(z, y, reduction="none") for z in logits])
    assert torch.equal(train.cross_entropy(logits, y), expected)
    assert torch.equal(train.cross_entropy(logits[0], y), expected[0])
    assert torch.equal(train.cross_entropy(logits, y.expand(3, 5)), expected)


def test_a_diverging_run_stops_and_says_so():
    model = net()
    run = flatnb.fit(model, plane(), flatnb.ERM(), sgd(model, lr=1e30), epochs=50, seed=0)
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
        model, plane(), flatnb.ERM(), sgd(model), epochs=2, seed=0,
        callbacks=[lambda run, m: seen.append((run.history[-1]["epoch"], m is model))],
    )  # fmt: skip
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
    together = flatnb.fit(ensemble, stacked, all_, sgd(ensemble), epochs=4, seed=9).frame()
    for i, (seed, value) in enumerate(zip(seeds, values, strict=True)):
        model = net(seed)
        alone = flatnb.fit(model, plane(seed), one(value), sgd(model), epochs=4, seed=9).frame()
        own = together[together.member == i]
        for column in ("train_loss", "test_loss", "norm"):
            assert own[column].to_numpy() == pytest.approx(alone[column].to_numpy(), rel=1e-3)


@pytest.mark.parametrize(
    "bad, message",
    [(dict(epochs=-1), "epochs=-1"), (dict(epochs=1.5), "1.5"), (dict(epochs=1, every=0), "every")],
)
def test_bad_counts_are_refused(bad, message):
    model = net()
    with pytest.raises(ValueError, match=message):
        flatnb.fit(model, plane(), flatnb.ERM(), sgd(model), seed=0, **bad)


def test_members_of_data_and_model_must_agree():
    model = net()
    with pytest.raises(ValueError, match="is no Ensemble"):
        flatnb.fit(
            model, data.stack([plane(0), plane(1)]), flatnb.ERM(), sgd(model), epochs=1, seed=0
        )
