"""Selection and evaluation, with trainings whose results are looked up."""

import random

from flatnb.experiments.runner import Member
from flatnb.experiments.study import NOT_FINITE, choice, flat, joined, study, tables

SETTINGS = [{"lr": lr} for lr in (0.1, 0.2, 0.3, 0.4)]
SEEDS = [7, 8, 9]


def random_tables(draw, settings, seeds):
    """Ends of runs, with ties and missing numbers: accuracies and losses in eighths,
    whose means over seeds tie exactly."""

    def table(low, high):
        missing = draw.choice([0.0, 0.2])
        return [
            [
                None if draw.random() < missing else draw.randint(low, high) / 8
                for _ in range(seeds)
            ]
            for _ in range(settings)
        ]

    return table(5, 8), table(0, 3)


def curves(table):
    """With another epoch before the last, by which nothing is chosen."""
    return [[[1 - (end or 0), end] for end in row] for row in table]


def best(accuracies, losses):
    ranks = {}
    for i, (a, b) in enumerate(zip(accuracies, losses, strict=True)):
        if None not in (*a, *b):
            ranks[i] = (-sum(a) / len(a), sum(b) / len(b))
    return min(ranks, key=ranks.get, default=0)


def test_the_choice_has_the_best_mean_accuracy_then_loss_and_all_its_runs():
    draw = random.Random(0)
    for _ in range(300):
        settings = draw.randint(1, 6)
        accuracies, losses = random_tables(draw, settings, 3)
        budget = draw.randint(1, settings)
        metrics = {"val_accuracy": curves(accuracies), "val_loss": curves(losses)}
        found = choice(metrics, budget)
        pair = accuracies[:budget], losses[:budget]
        assert found["setting"] == best(*pair)
        for j, setting in enumerate(found["by_seed"]):
            assert setting == best(*[[[row[j]] for row in table] for table in pair])


class Looked:
    """Trains nothing: a run has the numbers of its setting and seed in a table, or
    none; `calls` are the checkpoint and the members of each training."""

    def __init__(self, accuracy):
        self.accuracy = accuracy
        self.calls = []

    def __call__(self, members, checkpoint):
        self.calls.append((checkpoint and checkpoint.name, list(members)))
        ends = [self.accuracy(SETTINGS.index(m.setting), m.seed) for m in members]
        curve = [[0.0, end] for end in ends]
        losses = [[1.0, None if end is None else 1 - end] for end in ends]
        metrics = {"val_accuracy": curve, "val_loss": losses, "train_loss": losses}
        # Each run has a number that no other one has.
        trace = [number_of(m) for m in members]
        return {"epochs": [0, 5], "metrics": metrics, "flatness": {"trace": trace}}


def number_of(member):
    return 1000 * SETTINGS.index(member.setting) + 10 * member.seed + member.order


def test_selection_and_evaluation_are_trained_as_stated(tmp_path):
    best_of = {7: 2, 8: 0, 9: 2, 1: 1, 2: 1}  # by seed
    # 3, past the budget, is better than all.
    train = Looked(lambda i, seed: 0.9 if i == 3 else 0.5 + 0.1 * (i == best_of[seed]))
    value = study(
        train,
        SETTINGS,
        budget=3,
        seeds=SEEDS,
        fresh=[1, 2],
        repeats=2,
        checkpoint=tmp_path / "key.pt",
    )
    assert value["choice"] == {"setting": 2, "by_seed": [2, 0, 2]}
    assert value["epochs"] == [0, 5]
    assert value["failures"] == []
    (first, selection), (second, evaluation) = train.calls
    assert (first, second) == ("key.selection.pt", "key.evaluation.pt")
    assert selection == [Member(s, seed) for s in SETTINGS for seed in SEEDS]
    found = value["evaluation"]
    assert found["chosen"]["settings"] == [2, 2]
    assert found["chosen"]["seeds"] == found["default"]["seeds"] == [1, 2]
    assert found["default"]["settings"] == [3, 3]
    assert found["repeated"]["settings"] == [2, 0, 2, 2, 0, 2]
    assert found["repeated"]["seeds"] == [*SEEDS, *SEEDS]
    assert found["repeated"]["orders"] == [1, 1, 1, 2, 2, 2]
    stated = []
    for part in found.values():
        rows = [part[name] for name in ("settings", "seeds", "orders")]
        runs = [Member(SETTINGS[i], *rest) for i, *rest in zip(*rows, strict=True)]
        assert part["final"]["trace"] == [number_of(run) for run in runs]
        assert part["final"].keys() == {
            "val_accuracy",
            "val_loss",
            "train_loss",
            "trace",
        }
        stated += runs
    assert evaluation == stated
    trace = value["flatness"]["trace"]
    assert trace == [[1000 * i + 10 * seed for seed in SEEDS] for i in range(4)]


def test_without_repeats_or_a_default_the_choice_alone_is_evaluated():
    train = Looked(lambda i, seed: 0.5)
    value = study(train, SETTINGS, budget=4, seeds=[0], fresh=[1])
    assert value["evaluation"].keys() == {"chosen"}


def test_finalists_alone_train_under_the_other_seeds():
    # Under the first seed 3 and 1 are best, over all seeds 1: 3 is a lucky one, and 0,
    # which would be best under the others, is no finalist.
    first, others = [0.5, 0.8, 0.6, 0.9], [1.0, 0.8, 0.6, 0.4]
    train = Looked(lambda i, seed: (first if seed == 7 else others)[i])
    value = study(train, SETTINGS, budget=4, seeds=SEEDS, fresh=[1], finalists=2)
    assert value["choice"]["setting"] == 1
    assert value["choice"]["by_seed"] == [3, 1, 1]
    for i, row in enumerate(value["metrics"]["val_accuracy"]):
        run = i in (1, 3)
        ends = [[0.0, others[i]] if run else [None, None]] * 2
        assert row == [[0.0, first[i]], *ends]
    for i, row in enumerate(value["flatness"]["trace"]):
        numbers = [1000 * i + 10 * seed for seed in SEEDS]
        assert row == (numbers if i in (1, 3) else [numbers[0], None, None])
    assert value["failures"] == []  # none of runs that were not made
    assert [len(members) for _, members in train.calls] == [4, 2 * 2, 1]


def test_a_default_past_the_budget_is_no_finalist():
    train = Looked(lambda i, seed: [0.5, 0.8, 0.6, 0.9][i])
    value = study(train, SETTINGS, budget=3, seeds=SEEDS, fresh=[1], finalists=2)
    _, (_, added), _ = train.calls
    assert {SETTINGS.index(member.setting) for member in added} == {1, 2}
    assert value["choice"] == {"setting": 1, "by_seed": [1, 1, 1]}


def test_failures_are_the_runs_without_a_loss_of_selection_and_evaluation():
    lost = {(0, 7), (1, 8), (2, 1)}  # (setting, seed)
    ends = [0.9, 0.8, 0.7, 0.6]
    train = Looked(lambda i, seed: None if (i, seed) in lost else ends[i])
    value = study(train, SETTINGS, budget=3, seeds=SEEDS, fresh=[1, 2], finalists=2)
    assert value["choice"]["setting"] == 2  # 0 and 1 have a run without a number
    assert value["evaluation"]["chosen"]["final"]["train_loss"][0] is None
    assert value["failures"] == [
        {"setting": 0, "seed": 7, "error": NOT_FINITE},
        {"setting": 1, "seed": 8, "error": NOT_FINITE},
        {"setting": 2, "seed": 1, "error": f"chosen: {NOT_FINITE}"},
    ]


def test_tables_by_setting_and_seed_and_back():
    value = {"epochs": [0], "metrics": {"a": [1, 2, 3, 4, 5, 6]}}
    found = tables(value, 3)
    assert found["metrics"]["a"] == [[1, 2, 3], [4, 5, 6]]
    assert flat(found) == value


def test_members_trained_by_seed_come_back_in_their_order():
    draw = random.Random(0)
    for _ in range(50):
        seeds = [draw.randint(0, 3) for _ in range(8)]
        parts = [[i for i in range(8) if seeds[i] == s] for s in dict.fromkeys(seeds)]
        values = [{"metrics": {"a": part}, "flatness": {"b": part}} for part in parts]
        found = joined(values, [i for part in parts for i in part])
        assert found["metrics"]["a"] == found["flatness"]["b"] == list(range(8))
