import copy

import pytest
import torch
import torch.nn.functional as F

import flatnb
from flatnb import models
from flatnb.data import plane, stack
from flatnb.ensemble import member_learning_rates
from flatnb.experiments.ensembles import make_optimizer
from flatnb.experiments.steps import average, ema, swa

RATES = [0.1, 0.003, 0.02]


def net():
    return models.mlp(2, 5, 1, 2).double()


def train(model, optimizer, x, y, steps=25, schedule=None):
    for _ in range(steps):
        optimizer.zero_grad()
        logits = model(x)
        y_all = y.expand(logits.shape[:-1])
        loss = F.cross_entropy(logits.flatten(0, -2), y_all.flatten(), reduction="none")
        loss.view(y_all.shape).mean(-1).sum().backward()
        optimizer.step()
        if schedule:
            schedule.step()


def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 2, generator=generator, dtype=torch.float64)
    return x, (x[:, 0] > 0.2).long()


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("name", ["adam", "sgd", "AdamW"])
def test_each_member_trains_as_alone_with_its_own_learning_rate(name, cosine):
    decays = [0.5, 0.0, 2.0] if name == "AdamW" else [0.0] * 3
    settings = [
        {"lr": lr, "weight_decay": d} for lr, d in zip(RATES, decays, strict=True)
    ]
    model = flatnb.Ensemble(net, 3)
    optimizer = make_optimizer(name, model, settings)

    def schedule(own):
        return torch.optim.lr_scheduler.CosineAnnealingLR(own, 30) if cosine else None

    x, y = data()
    train(model, optimizer, x, y, schedule=schedule(optimizer))
    for i, lr in enumerate(RATES):
        torch.manual_seed(i)
        alone = net()
        own = {
            "adam": lambda p, lr=lr: torch.optim.Adam(p, lr),
            "sgd": lambda p, lr=lr: torch.optim.SGD(p, lr, momentum=0.9),
            "AdamW": lambda p, lr=lr, i=i: torch.optim.AdamW(
                p, lr, weight_decay=decays[i]
            ),
        }[name](alone.parameters())
        train(alone, own, x, y, schedule=schedule(own))
        for p, q in zip(model.member(i).parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_under_fit_and_a_method_too():
    sets = [plane("gaussian", n_test=50, seed=s) for s in (0, 1)]
    model = flatnb.Ensemble(net, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    member_learning_rates(optimizer, [0.2, 0.05])

    def double(one):
        split = {
            name: type(one.train)(getattr(one, name).x.double(), getattr(one, name).y)
            for name in ("train", "val", "test")
        }
        return copy.copy(one).__class__(
            one.name, **split, classes=one.classes, batch_size=50
        )

    sets = [double(one) for one in sets]
    rho = torch.tensor([0.1, 0.3], dtype=torch.float64)
    run = flatnb.fit(model, stack(sets), flatnb.SAM(rho), optimizer, epochs=5, seed=0)
    for i, lr in enumerate([0.2, 0.05]):
        torch.manual_seed(i)
        alone = net()
        own = torch.optim.SGD(alone.parameters(), lr=lr, momentum=0.9)
        other = flatnb.fit(
            alone, sets[i], flatnb.SAM(float(rho[i])), own, epochs=5, seed=0
        )
        assert run.history[-1]["test_loss"][i] == pytest.approx(
            other.history[-1]["test_loss"]
        )


def test_refuses_rates_that_would_enlarge_rounding():
    model = flatnb.Ensemble(net, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="the largest of them the optimizer's"):
        member_learning_rates(optimizer, [0.1, 0.2])
    with pytest.raises(ValueError, match="rates > 0"):
        member_learning_rates(optimizer, [0.1, 0.0])


def test_averages_are_the_means_they_are_called():
    model = torch.nn.Linear(1, 1, bias=False)
    late, slow = average(model, swa(8, 0.5)), average(model, ema(0.5))
    values = [float(value) for value in range(8)]
    for value in values:
        with torch.no_grad():
            model.weight.fill_(value)
        late.update_parameters(model)
        slow.update_parameters(model)
    assert float(late.module.weight) == pytest.approx(sum(values[4:]) / 4)
    expected = values[0]
    for value in values[1:]:
        expected = 0.5 * expected + 0.5 * value
    assert float(slow.module.weight) == pytest.approx(expected)


def test_each_member_has_an_average_of_its_own():
    model = flatnb.Ensemble(net, 2)
    averaged = average(model, ema(torch.tensor([0.0, 1.0])))
    averaged.update_parameters(model)
    start = model.net[1].weight.detach().clone()
    with torch.no_grad():
        model.net[1].weight.add_(1)
    averaged.update_parameters(model)
    torch.testing.assert_close(averaged.module.net[1].weight[0], start[0] + 1)
    torch.testing.assert_close(averaged.module.net[1].weight[1], start[1])
