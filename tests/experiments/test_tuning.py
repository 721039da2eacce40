import copy
import json
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import is_grad_enabled

import flatnb
from flatnb import models
from flatnb.data import Split, plane, stack
from flatnb.ensemble import Ensemble, member_learning_rates
from flatnb.experiments import EXPERIMENTS, tuning
from flatnb.experiments.tuning import ADAM, ADAMW, BSAM, METHODS, SGD, log
from flatnb.results import records
from flatnb.train import train_epoch


def test_the_settings_of_every_record_are_those_that_the_declaration_gives(monkeypatch):
    monkeypatch.delenv("FLATNB_RECORDS", raising=False)
    experiments = {one.name: one for one in EXPERIMENTS}
    for name in records.names():
        record = records.load(name)
        if record["schema"] == 1 and record["selection"]["split"] is not None:
            continue  # chosen from earlier ranges
        one = experiments[name]
        for key in ("method", "passes", "settings", "seeds"):
            assert record[key] == getattr(one, key), (name, key)
        assert record["selection"]["space"] == one.space, name
        assert record["selection"]["budget"] == one.budget, name
        stated = json.loads(json.dumps(one.task))
        for key, value in record["task"].items():
            # The wording of a note may change: no number depends on it.
            assert key == "note" or stated[key] == value, (name, key)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("budget", [1, 4, 40])
def test_every_method_gets_exactly_the_budget_learning_rate_included(method, budget):
    settings = method.settings(budget, ADAM.rates)
    assert len(settings) == budget
    assert len({tuple(setting.items()) for setting in settings}) == budget
    ranges = {"lr": ADAM.rates, **method.space}
    for setting in settings:
        assert list(setting) == list(ranges)
        for name, value in setting.items():
            assert (
                ranges[name].low * (1 - 1e-5) <= value <= ranges[name].high * (1 + 1e-5)
            )


def test_defaults_lie_in_their_ranges():
    for method in METHODS.values():
        for one in method.space.values():
            assert one.low <= one.default <= one.high, method.name


def test_settings_of_two_dimensions_cover_each_axis_evenly():
    for axis in (0, 1):
        values = sorted(point[axis] for point in tuning._points(2, 40))
        gaps = [b - a for a, b in zip([0.0, *values], [*values, 1.0], strict=True)]
        assert max(gaps) < 4 / 40


def test_more_budget_keeps_the_first_settings():
    method, rates = METHODS["GNP"], ADAM.rates
    assert method.settings(20, rates)[:7] == method.settings(7, rates)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_settings_stretched_to_the_ends_keep_their_order_and_shares(method):
    ranges = {"lr": SGD.rates, **method.space}
    plain, stretched = [method.settings(10, SGD.rates, ends) for ends in (False, True)]
    for name, span in ranges.items():
        before, after = [[one[name] for one in part] for part in (plain, stretched)]
        assert [min(after), max(after)] == pytest.approx([span.low, span.high])
        order = sorted(range(10), key=before.__getitem__)
        assert order == sorted(range(10), key=after.__getitem__), name
    if len(ranges) == 1:
        assert stretched == plain
    points = torch.tensor(tuning._stretched([[0.2, 0.1], [0.4, 0.5], [0.3, 0.2]]))
    expected = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.5, 0.25]])
    torch.testing.assert_close(points, expected)
    assert len(method.settings(1, SGD.rates, to_ends=True)) == 1


def test_the_four_of_the_paper_share_one_grid():
    grids = [
        [list(s.values())[1] for s in METHODS[name].settings(40, 1e-3)]
        for name in ("Flooding", "IFlood", "SoftAD", "SAM")
    ]
    assert all(grid == grids[0] for grid in grids)
    assert grids[0] == pytest.approx(torch.linspace(0.01, 2, 40).tolist(), abs=1e-5)


def test_without_hyperparameters_one_learning_rate_is_one_setting():
    assert METHODS["ERM"].settings(40, 1e-3) == [{"lr": 1e-3}]


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_builds_a_method_of_one_value_a_member_or_of_numbers(method):
    single = method.build([method.published(0.1)], torch.ones(1, 4))
    several = method.build(method.settings(3, ADAM.rates), torch.ones(3, 4))
    assert type(single) is type(several)
    assert type(single) is (flatnb.AdaFlood if method.auxiliary else method.method)
    for name in method.space:
        if hasattr(several, name):
            assert getattr(several, name).shape == (3,)
            assert isinstance(getattr(single, name), float)


def test_adaflood_has_the_levels_of_each_setting_and_pays_for_its_auxiliary_nets():
    adaflood, losses = METHODS["AdaFlood"], torch.tensor([[0.1, 2.0]] * 3)
    settings = adaflood.settings(3, ADAM.rates)
    method = adaflood.build(settings, losses)
    for levels, row, setting in zip(method.levels, losses, settings, strict=True):
        gamma = setting["gamma"]
        torch.testing.assert_close(levels, -((1 - gamma) * (-row).exp() + gamma).log())
    assert adaflood.passes == adaflood.auxiliary == 5
    assert adaflood.work(40) == 40 + 4
    assert (METHODS["SAM"].passes, METHODS["SAM"].work(40)) == (2, 80)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_passes_declared_are_those_made_in_a_net_with_batch_norm(method):
    model = flatnb.Ensemble(lambda: models.mlp(2, 4, 1, 2), 2)
    counts = Counter()
    model.register_forward_pre_hook(lambda *_: counts.update([is_grad_enabled()]))
    next(model.parameters()).register_hook(lambda _: counts.update(["backward"]))
    # Ten steps, because LookSAM looks in every fifth one.
    task = plane("gaussian", n_train=100, n_test=2, batch_size=10)
    settings = [method.published(0.01)] * 2
    optimizer = (method.optimizer or SGD).build(model, settings, 0.0, 100)
    batches = task.index_batches(torch.Generator())
    train_epoch(model, batches, method.build(settings, torch.ones(2, 100)), optimizer)
    with_gradient, without = counts[True] / 10, counts[False] / 10
    assert counts["backward"] == counts[True]
    auxiliary = max(0, method.auxiliary - 1)
    assert method.passes - auxiliary == pytest.approx(with_gradient + without / 3)
    assert method.forwards == without


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_at_edge_are_the_outermost_values_where_better_ones_may_lie(method):
    settings = method.settings(12, SGD.rates)
    ranges = {"lr": SGD.rates, **method.space}
    outermost = {name: set() for name in ranges}
    for chosen in settings:
        for name in method.at_edge(settings, chosen, SGD.rates):
            outermost[name].add(chosen[name])
    for name, span in ranges.items():
        values = [setting[name] for setting in settings]
        ends = {"low": min(values), "high": max(values)}
        assert outermost[name] == {ends[edge] for edge in span.edges}, name


def test_which_ends_of_a_range_are_edges():
    settings = [
        {"lr": lr, "r": 0.1, "alpha": a} for lr, a in ((1, 0), (2, 1), (3, 0.5))
    ]
    gnp, rates = METHODS["GNP"], SGD.rates
    # Both of the learning rate; none of alpha, whose ends are ERM and SAM.
    settings.append({"lr": 2, "r": 0.01, "alpha": 1})
    found = [gnp.at_edge(settings, chosen, rates) for chosen in settings]
    assert found == [["lr", "r"], ["r"], ["lr", "r"], []]
    # A published learning rate that is not searched is no edge.
    assert gnp.at_edge(settings, settings[0], 0.1) == ["r"]


def test_errors_say_what_is_allowed():
    sam = METHODS["SAM"]
    with pytest.raises(ValueError, match="budget=0"):
        sam.settings(0, 0.1)
    with pytest.raises(ValueError, match="SAM allows: lr, rho"):
        sam.build([{"lr": 0.1, "radius": 0.1}])


# --- optimizers and averages --------------------------------------------------------

RATES = [0.1, 0.003, 0.02]
RHOS = [0.1, 0.01, 1.0]


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
@pytest.mark.parametrize("kind", [ADAM, SGD, ADAMW], ids=lambda kind: kind.name)
def test_each_member_trains_as_alone_with_its_own_learning_rate(kind, cosine):
    settings = [{"lr": lr} for lr in RATES]
    if kind is ADAMW:
        for setting, decay in zip(settings, [0.5, 0.0, 2.0], strict=True):
            setting["weight_decay"] = decay
    model = flatnb.Ensemble(net, 3)
    optimizer = kind.build(model, settings)

    def schedule(optimizer):
        if cosine:
            return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
        return None

    x, y = data()
    train(model, optimizer, x, y, schedule=schedule(optimizer))
    for i, setting in enumerate(settings):
        torch.manual_seed(i)
        alone = net()
        optimizer = kind.build(alone, [setting])
        train(alone, optimizer, x, y, schedule=schedule(optimizer))
        for p, q in zip(model.member(i).parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def double(one):
    split = {
        name: Split(getattr(one, name).x.double(), getattr(one, name).y)
        for name in ("train", "val", "test")
    }
    return copy.copy(one).__class__(
        one.name, **split, classes=one.classes, batch_size=50
    )


def test_under_fit_and_a_method_too():
    sets = [plane("gaussian", n_test=50, seed=s) for s in (0, 1)]
    model = flatnb.Ensemble(net, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    member_learning_rates(optimizer, [0.2, 0.05])

    sets = [double(one) for one in sets]
    rho = torch.tensor([0.1, 0.3], dtype=torch.float64)
    run = flatnb.fit(model, stack(sets), flatnb.SAM(rho), optimizer, epochs=5, seed=0)
    for i, lr in enumerate([0.2, 0.05]):
        torch.manual_seed(i)
        alone = net()
        sgd = torch.optim.SGD(alone.parameters(), lr=lr, momentum=0.9)
        sam = flatnb.SAM(float(rho[i]))
        other = flatnb.fit(alone, sets[i], sam, sgd, epochs=5, seed=0)
        assert run.history[-1]["test_loss"][i] == pytest.approx(
            other.history[-1]["test_loss"]
        )


def test_bsam_of_an_ensemble_trains_as_plain_nets_under_fit():
    """A rate and a radius each; the noise is that of one seed, as for plain nets."""
    settings = [{"lr": lr, "rho": rho} for lr, rho in zip(RATES, RHOS, strict=True)]
    one = double(plane("gaussian", n_test=50))
    model = flatnb.Ensemble(net, 3, seeds=[0, 0, 0])
    optimizer = BSAM.build(model, settings, 0.01, len(one.train))
    run = flatnb.fit(model, one, flatnb.ERM(), optimizer, epochs=5, seed=0)
    for i, setting in enumerate(settings):
        torch.manual_seed(0)
        alone = net()
        bsam = BSAM.build(alone, [setting], 0.01, len(one.train))
        other = flatnb.fit(alone, one, flatnb.ERM(), bsam, epochs=5, seed=0)
        for p, q in zip(model.member(i).parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
        losses = [entry["test_loss"] for entry in other.history]
        assert [e["test_loss"][i] for e in run.history] == pytest.approx(losses)
    assert run.history[-1]["passes"] == 5 * one.steps * METHODS["BSAM"].passes
    assert METHODS["BSAM"].passes == 2


def test_the_prior_of_bsam_is_the_weight_decay():
    group = BSAM.build(net(), [{"lr": 0.1, "rho": 0.3}], 0.02, 50).param_groups[0]
    assert (group["examples"], group["prior_precision"]) == (50, 1.0)
    assert (group["lr"], group["rho"]) == (0.1, 0.3)
    with pytest.raises(ValueError, match=r"examples=nan; allowed"):
        BSAM.build(net(), [{"lr": 0.1, "rho": 0.3}])


def test_refuses_rates_that_would_enlarge_rounding():
    model = flatnb.Ensemble(net, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="the largest of them the optimizer's"):
        member_learning_rates(optimizer, [0.1, 0.2])
    with pytest.raises(ValueError, match="rates > 0"):
        member_learning_rates(optimizer, [0.1, 0.0])


def averages(model, settings, steps=8):
    return {
        name: METHODS[name].averaged(model, [{key: v} for v in values], steps)
        for name, (key, values) in settings.items()
    }


def test_averages_are_the_means_they_are_called():
    model = torch.nn.Linear(1, 1, bias=False)
    made = averages(model, {"SWA": ("start", [0.5]), "EMA": ("decay", [0.5])})
    values = [float(value) for value in range(8)]
    for value in values:
        with torch.no_grad():
            model.weight.fill_(value)
        for one in made.values():
            one.update_parameters(model)
    assert made["SWA"].module.weight.item() == pytest.approx(sum(values[4:]) / 4)
    expected = values[0]
    for value in values[1:]:
        expected = 0.5 * expected + 0.5 * value
    assert made["EMA"].module.weight.item() == pytest.approx(expected)


def test_each_member_has_an_average_of_its_own():
    model = flatnb.Ensemble(net, 2)
    averaged = averages(model, {"EMA": ("decay", [0.0, 1.0])})["EMA"]
    averaged.update_parameters(model)
    start = model.net[1].weight.detach().clone()
    with torch.no_grad():
        model.net[1].weight.add_(1)
    averaged.update_parameters(model)
    torch.testing.assert_close(averaged.module.net[1].weight[0], start[0] + 1)
    torch.testing.assert_close(averaged.module.net[1].weight[1], start[1])


def test_a_range_is_stated_in_words():
    assert str(log(0.01, 2.0)) == "[0.01, 2] in the logarithm"


@pytest.mark.parametrize("kind", [ADAM, ADAMW, SGD], ids=lambda kind: kind.name)
def test_the_steps_of_a_large_ensemble_are_those_of_a_small_one(
    kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [{"lr": 1e-3}, {"lr": 1e-2}]
    ends = []
    for bound in (2**24, 0):
        monkeypatch.setattr(tuning, "_NOT_IN_CACHE", bound)
        net = Ensemble(lambda: models.mlp(2, 8, 2, 2), members=2, seeds=[0, 1])
        optimizer = kind.build(net, settings, 0.1)
        assert optimizer.defaults["fused"] is (True if bound == 0 else None)
        for k in range(5):
            for p in net.parameters():
                p.grad = torch.sin(p.detach() + k)
            optimizer.step()
        ends.append(list(net.parameters()))
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
