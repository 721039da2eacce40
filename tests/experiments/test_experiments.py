"""What the plan promises of all experiments: seeds apart, and equal offers."""

import re
from collections import defaultdict

from flatnb.experiments import EXPERIMENTS
from flatnb.experiments.runner import TUNING_SEED
from flatnb.experiments.tuning import METHODS
from flatnb.results import form

TUNED = [one for one in EXPERIMENTS if one.tuned]


def tasks():
    """The experiments of each task, a list each: they differ in the method alone, or in
    the schedule of a lone baseline."""
    found = defaultdict(list)
    for one in TUNED:
        name, _, rest = one.name.partition(f"/{one.method}")
        found[name, rest].append(one)
    for name, rest in [key for key, of in found.items() if len(of) == 1]:
        found[name, rest.removesuffix("-cosine")] += found.pop((name, rest))
    return list(found.values())


def test_experiments_have_names_of_their_own_and_the_most_valuable_come_first():
    names = [one.name for one in EXPERIMENTS]
    assert len(set(names)) == len(names)
    values = [one.cost.value for one in EXPERIMENTS]
    assert values == sorted(values)
    for one in EXPERIMENTS:
        assert re.fullmatch(form.schema()["properties"]["name"]["pattern"], one.name)
        for job in one.jobs():
            assert job.key


def test_no_seed_of_an_evaluation_had_a_part_in_a_selection():
    assert len(TUNED) > 400
    for one in TUNED:
        seeds, fresh = one.job.settings["seeds"], one.job.settings["fresh"]
        assert not {*seeds, TUNING_SEED}.intersection(fresh), one.name
        assert len(set(seeds)) == len(seeds) and len(set(fresh)) == len(fresh)
        assert len(fresh) >= 5, one.name
        assert seeds == one.seeds


SHARED = ("seeds", "fresh", "repeats", "finalists", "task", "data", "noise", "n_test")
SHARED += ("width", "every", "train")


def test_the_methods_of_a_task_have_the_same_seeds_data_and_finalists():
    for experiments in tasks():
        first, *others = (one.job.settings for one in experiments)
        for other in others:
            for key in SHARED:
                assert other.get(key) == first.get(key), (experiments[0].name, key)


def test_every_task_has_the_baseline_of_its_comparisons():
    for experiments in tasks():
        methods = {one.method for one in experiments}
        if experiments[0].name.startswith("twice-the-epochs/"):
            assert methods == {"ERM"}  # to compare with those of half the epochs
        elif experiments[0].task["budget_unit"] == "epochs":
            assert {"ERM", "SAM"} < methods
        else:  # at equal passes, those of one pass have their record already
            assert "SAM" in methods and "ERM" not in methods


def test_equal_passes_are_the_same_work_to_less_than_one_epoch():
    for one in TUNED:
        if one.name.startswith("plane/"):
            equal = one.task["budget_unit"] == "passes"
            whole = 500 if one.task["scale"] in ("paper", "coarse") else 200
            steps = one.passes if equal else 1
            assert whole - steps < one.task["epochs"] * steps <= whole


def test_the_methods_of_a_task_are_offered_equally_many_settings_and_the_same_rates():
    for experiments in tasks():
        name = experiments[0].name
        rates, budgets = set(), set()
        for one in experiments:
            method = METHODS[one.method]
            stated = one.space.split("; ")[0]
            assert stated.startswith("lr ")
            if method.optimizer is None:  # a baseline of another one has its own rates
                rates.add(stated)
            if stated.startswith("lr [") or method.space:
                budgets.add(one.budget)
            else:  # nothing is searched
                assert one.budget == 1
            searched = one.settings[: one.budget]
            assert len({tuple(setting.items()) for setting in searched}) == one.budget
        assert len(rates) == len(budgets) == 1, name


def test_settings_past_the_budget_are_the_published_default():
    for one in TUNED:
        method = METHODS[one.method]
        for setting in one.settings[one.budget :]:
            assert setting == method.published(setting["lr"])
            assert "default" in one.space
