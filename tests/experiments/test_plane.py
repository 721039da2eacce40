import functools
import itertools
from dataclasses import replace

import pytest
import torch
from made import FREE, record_of

import flatnb
from flatnb.curvature import ensemble_flatness
from flatnb.data import Split
from flatnb.experiments import plane, runner
from flatnb.experiments.plane import NARROW
from flatnb.experiments.runner import Member
from flatnb.experiments.tuning import ADAM, METHODS
from flatnb.metrics import cross_entropy
from flatnb.results import records
from flatnb.results.sweep import Job

TINY = replace(
    NARROW,
    data="spiral",
    width=6,
    epochs=4,
    every=2,
    n_test=40,
    budget=3,
    seeds=2,
    fresh=2,
    repeats=1,
    tuned=True,
)
SEEDS = plane.SEEDS[: TINY.seeds]


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
    final, evaluation = record["final"], record["evaluation"]
    setting = record["selection"]["setting"]
    tried, chosen = record["settings"][:3], record["settings"][setting]
    rates = (METHODS[method].optimizer or ADAM).rates
    edges = METHODS[method].at_edge(tried, chosen, rates)
    assert record["selection"]["at_edge"] == edges
    means = [sum(row) / 2 for row in final["val_accuracy"][:3]]
    assert means[setting] == max(means)
    for seed, best in enumerate(record["selection"]["chosen"]):
        accuracies = [row[seed] for row in final["val_accuracy"][:3]]
        assert accuracies[best] == max(accuracies)
    curves = record["curves"]["metrics"]["test_loss"]
    assert [curve[-1] for curve in curves] == final["test_loss"][setting]
    assert evaluation["chosen"]["settings"] == [setting] * 2
    assert evaluation["default"]["settings"] == [3] * 2
    assert evaluation["repeated"]["settings"] == record["selection"]["chosen"]
    for part in evaluation.values():
        assert part["final"].keys() == final.keys()
        assert all(loss > 0 for loss in part["final"]["test_loss"])


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
    assert record["evaluation"]["chosen"]["final"]["top_eigenvalue"] == [None] * 2
    assert all(value > 0 for row in record["final"]["trace"] for value in row)


RUNS = {
    "data": "sinusoid",
    "noise": 0.1,
    "n_test": 50,
    "width": 6,
    "epochs": 3,
    "every": 3,
}


def curves_of(value, i):
    """All numbers of a member."""
    metrics = [x for table in value["metrics"].values() for x in table[i]]
    return metrics + [values[i] for values in value["flatness"].values()]


@pytest.mark.parametrize("method", ["SAM", "NSO", "BSAM", "SWA", "AdaFlood"])
def test_a_run_does_not_depend_on_what_trains_beside_it(method):
    first, second = (METHODS[method].published(lr) for lr in (0.05, 0.02))
    member = Member(second, 2, order=1)
    others = [Member(first, 2, 1), Member(second, 1, 1), Member(second, 2, 0)]
    train = plane._trainer(**RUNS, method=method)
    beside = curves_of(train([others[0], member, *others[1:]], None), 1)
    assert beside == pytest.approx(curves_of(train([member], None), 0), rel=1e-3)


@pytest.mark.parametrize("method", ["ERM", "NSO", "AdaFlood"])
def test_of_two_runs_that_differ_in_their_order_the_data_and_the_start_agree(method):
    setting = METHODS[method].published(0.01)
    orders = [0, 1, 1, 2]
    members = [Member(setting, 5, order) for order in orders]
    value = plane._trainer(**RUNS, method=method)(members, None)
    for name, (first, *others) in value["metrics"].items():
        for order, curve in zip(orders[1:], others, strict=True):
            assert curve[0] == pytest.approx(first[0], rel=1e-4), (name, order)
    ends = [curve[-1] for curve in value["metrics"]["norm"]]
    for (order, end), (other, another) in itertools.combinations(
        zip(orders, ends, strict=True), 2
    ):
        assert (end == pytest.approx(another, rel=1e-4)) == (order == other)


def test_each_member_has_an_order_of_batches_of_its_own():
    data = flatnb.data.plane("spiral", seed=3, n_test=20)
    members = [Member({}, 3, 0), Member({}, 3, 1), Member({}, 4, 0)]
    permuted = [plane._in_order(data, member) for member in members]
    for one in permuted:
        order = [int((data.train.x == x).all(-1).nonzero()) for x in one.train.x]
        assert sorted(order) == list(range(100)) and order != sorted(order)
        assert torch.equal(one.train.y, data.train.y[order])
        assert one.val is data.val and one.test is data.test
    first = [one.train.x[0] for one in permuted]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(first, 2))


def test_no_two_seeds_or_orders_share_an_order_of_batches():
    data = flatnb.data.plane("gaussian", n_train=100, n_test=20, seed=0)
    numbers = Split(
        torch.arange(100.0)[:, None].expand(100, 2), torch.zeros(100, dtype=torch.int64)
    )
    data = replace(data, train=numbers)
    seeds = [*plane.SEEDS, *plane.FRESH]
    orders = {
        tuple(plane._in_order(data, Member({}, seed, order)).train.x[:, 0].tolist())
        for seed in seeds
        for order in range(3)
    }
    assert len(orders) == 3 * len(seeds)


def test_the_selected_runs_are_repeated_with_their_data_and_start(monkeypatch):
    calls = []
    real = plane._trainer

    def kept(**task):
        train = real(**task)

        def run(members, checkpoint):
            value = train(members, checkpoint)
            calls.append((members, value["metrics"]))
            return value

        return run

    monkeypatch.setattr(plane, "_trainer", kept)
    job = plane.experiment(TINY, METHODS["SAM"], FREE).job
    # Rates at which the order of batches is seen.
    settings = [{"lr": lr, "rho": 0.1} for lr in (0.02, 0.05, 0.1, 0.01)]
    value = plane.study(**{**job.settings, "settings": settings})
    (members, selection), (evaluated, evaluation) = calls
    repeated = [(i, m) for i, m in enumerate(evaluated) if m.order > 0]
    assert [m.seed for _, m in repeated] == SEEDS
    for (i, member), setting in zip(repeated, value["choice"]["by_seed"], strict=True):
        selected = members.index(member._replace(order=0))
        assert selected == setting * len(SEEDS) + SEEDS.index(member.seed)
        for name, curves in evaluation.items():
            start = selection[name][selected][0]
            assert curves[i][0] == pytest.approx(start, rel=1e-4), name
        end = selection["norm"][selected][-1]
        assert evaluation["norm"][i][-1] != pytest.approx(end, rel=1e-4)


@pytest.mark.parametrize("method", ["ERM", "NSO", "SWA", "AdaFlood"])
def test_a_run_of_an_evaluation_can_be_repeated_to_its_last_epoch(method):
    one, record = made(method)
    whole = one.whole_run(record)
    job = Job(whole["call"], whole["settings"])
    assert job.settings["seeds"] == [record["evaluation"]["chosen"]["seeds"][0]]
    assert job.settings["epochs"] == TINY.epochs
    checks = records.verify({**record, "sample": whole}, job)
    assert len(checks) == 4 and checks["inside"].all()
    final = record["evaluation"]["chosen"]["final"]
    for name, curves in job.run()["metrics"].items():
        assert curves[0][0][-1] == pytest.approx(final[name][0], rel=1e-3), name


def test_an_experiment_without_an_evaluation_has_no_run_to_repeat():
    one, record = made("ERM")
    with pytest.raises(ValueError, match="ERM/narrow-tuned has no evaluation"):
        one.whole_run({k: v for k, v in record.items() if k != "evaluation"})


def test_verifying_repeats_the_sample():
    one, record = made("Flooding", replace(TINY, tuned=False))
    checks = records.verify(record, one.sample)
    assert len(checks) and checks["inside"].all()


@pytest.mark.parametrize(
    ("method", "epochs"), [("SAM", 5), ("NSO", 4), ("AdaFlood", 2)]
)
def test_at_equal_passes_a_method_of_p_passes_has_a_share_of_the_epochs(method, epochs):
    task = replace(TINY, epochs=10, tuned=False, equal_passes=True)
    one = plane.experiment(task, METHODS[method], FREE)
    assert one.job.settings["epochs"] == epochs
    assert one.name.endswith("-equal-passes")


def test_with_a_cosine_nothing_but_the_schedule_differs():
    task = replace(TINY, tuned=True)
    constant = plane.experiment(task, METHODS["EMA"], FREE)
    falling = plane.experiment(replace(task, cosine=True), METHODS["EMA"], FREE)
    assert falling.name == f"{constant.name}-cosine"
    assert falling.job.settings == {**constant.job.settings, "cosine": True}
    assert falling.task == {**constant.task, "schedule": "cosine"}
    ends = [one.sample.run()["metrics"]["norm"] for one in (constant, falling)]
    assert ends[0] != ends[1]


def test_adaflood_says_what_its_auxiliary_nets_cost():
    one, record = made("AdaFlood", replace(TINY, tuned=False))
    assert record["passes"] == 5
    assert "5 auxiliary nets per seed" in record["task"]["note"]
    assert records.verify(record, one.sample)["inside"].all()
