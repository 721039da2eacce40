import math

import numpy as np
import pandas
import pytest
from scipy import stats

from flatnb.results import compare, records, statistics
from flatnb.results.provenance import provenance
from flatnb.results.statistics import holm


def runs(values, metric="test_accuracy"):
    """{(task, method): [of each seed]} as `select` gives it."""
    rows = [
        {
            "task": task,
            "method": method,
            "seed": seed,
            metric: value,
            "train_loss": 0.1,
            "test_loss": 0.5 + seed,
        }
        for (task, method), row in values.items()
        for seed, value in enumerate(row)
    ]
    return pandas.DataFrame(rows)


def saved(name, final, *, settings, chosen, budget, **task):
    seeds = list(range(len(chosen)))
    method = name.rpartition("/")[2]
    record = {
        "schema": 1,
        "name": name,
        "task": {"name": "t", "classes": 2, **task},
        "method": method,
        "passes": 2,
        "settings": settings,
        "seeds": seeds,
        "final": final,
        "curves": {"epochs": [], "setting": chosen, "metrics": {}},
        "selection": {
            "space": "-",
            "budget": budget,
            "split": "val",
            "metric": "accuracy",
            "ties": "loss",
            "per": "seed",
            "chosen": chosen,
        },
        "failures": [],
        "sample": {
            "call": "flatnb.m:f",
            "settings": {},
            "metrics": {},
            "tolerance": {},
        },
        "provenance": {**provenance(), "seconds": 1.0},
    }
    records.save(record)
    return record


def evaluated(name, by_seed, setting, at_edge=(), split="val", **kinds):
    """A record of schema 2: {kind: {(seed, order): (setting, test loss)}}."""
    count = len(by_seed)
    record = saved(
        name,
        {"test_loss": [[1.0] * count] * 3, "train_loss": [[1.0] * count] * 3},
        settings=[{"rho": 0.1}, {"rho": 0.2}, {"rho": 0.05}],
        chosen=by_seed,
        budget=2,
    )
    evaluation = {}
    for kind, runs in kinds.items():
        losses = [loss for _, loss in runs.values()]
        evaluation[kind] = {
            "settings": [index for index, _ in runs.values()],
            "seeds": [seed for seed, _ in runs],
            "orders": [order for _, order in runs],
            "final": {"test_loss": losses, "train_loss": losses},
        }
    record["selection"] |= {"setting": setting, "at_edge": list(at_edge)}
    record["selection"] |= {"per": "task", "split": split}
    record |= {"schema": 2} | ({"evaluation": evaluation} if evaluation else {})
    records.save(record, replace=True)


@pytest.fixture
def record(tmp_path, monkeypatch):
    monkeypatch.setenv("FLATNB_RECORDS", str(tmp_path))
    final = {
        "train_loss": [[0.1, 0.2], [0.3, 0.4], [0.5, None]],
        "test_loss": [[1.0, 2.0], [3.0, 4.0], [5.0, None]],
    }
    settings = [{"rho": 0.1}, {"rho": 0.2}, {"rho": 0.05}]
    saved("a/SAM", final, settings=settings, chosen=[1, 0], budget=2)


def test_select_takes_the_chosen_setting_of_each_seed(record):
    found = compare.select(["a/*"], "selected")
    assert found["test_loss"].tolist() == [3.0, 2.0]
    assert found["loss_gap"].tolist() == pytest.approx([2.7, 1.8])
    default = compare.select(["a/*"], "default")
    assert default["test_loss"].tolist() == [5.0, pytest.approx(math.log(2))]
    assert default["loss_gap"][1] == 0
    assert compare.select(["a/*"]).empty and compare.select(["a/*"], "repeated").empty
    with pytest.raises(ValueError, match="runs='chosen'"):
        compare.select(["a/*"], "chosen")
    one = {"test_loss": [[1.0, 2.0]]}
    saved("a/ERM", one, settings=[{"lr": 0.1}], chosen=[0, 0], budget=1)
    saved(
        "a/GNP",
        {"test_loss": [[1.0], [2.0]]},
        settings=[{"r": 1}, {"r": 2}],
        chosen=[0],
        budget=2,
    )
    default = compare.select(["a/*"], "default")
    assert set(default["method"]) == {
        "SAM",
        "ERM",
    }  # with nothing to set, as it is; no default


def test_a_tuned_learning_rate_makes_another_task(record):
    final = {"test_loss": [[1.0, 2.0]]}
    saved(
        "b/SAM", final, settings=[{"lr": 0.1}], chosen=[0, 0], budget=1, design="tuned"
    )
    saved(
        "c/SAM", final, settings=[{"lr": 0.1}], chosen=[0, 0], budget=1, design="grid"
    )
    found = compare.select(["*"], "selected")
    assert dict(zip(found["record"], found["task"], strict=True)) == {
        "a/SAM": "t",
        "b/SAM": "t, tuned lr",
        "c/SAM": "t",
    }


def test_a_record_that_changed_is_read_again(record):
    (before,) = compare.loaded(["a/*"])
    assert compare.loaded(["a/SAM"]) == [before] == [records.load("a/SAM")]
    records.save(before | {"passes": 1}, replace=True)
    assert compare.loaded(["a/*"])[0]["passes"] == 1


def test_fresh_runs_are_those_of_the_evaluation(tmp_path, monkeypatch):
    monkeypatch.setenv("FLATNB_RECORDS", str(tmp_path))
    evaluated(
        "a/SAM",
        [0, 1],
        1,
        ["rho"],
        chosen={(50, 0): (1, 0.5), (51, 0): (1, None)},
        default={(50, 0): (2, 0.7)},
        repeated={(0, 1): (0, 3.0), (1, 1): (1, 4.0), (0, 2): (0, 5.0)},
    )
    fresh = compare.select(["a/*"])
    assert fresh["seed"].tolist() == [50, 51] and fresh["rho"].tolist() == [0.2] * 2
    # A run that did not end counts as chance, of two classes.
    assert fresh["test_loss"].tolist() == [0.5, pytest.approx(math.log(2))]
    assert fresh["at_edge"].tolist() == [True, True]
    default = compare.select(["a/*"], "default")
    assert default["rho"].tolist() == [0.05] and default["test_loss"].tolist() == [0.7]
    assert not default["at_edge"].any()
    repeated = compare.select(["a/*"], "repeated")
    assert repeated["order"].tolist() == [1, 1, 2]
    assert repeated["rho"].tolist() == [0.1, 0.2, 0.1]
    selected = compare.select(["a/*"], "selected")
    assert selected["rho"].tolist() == [0.1, 0.2]
    assert selected["seed"].tolist() == [0, 1]
    assert set(selected) == set(fresh) == set(repeated)


@pytest.mark.parametrize(
    ("per", "split", "fresh"),
    [("seed", "val", 0), ("task", "val", 2), ("task", None, 2)],
)
def test_of_schema_1_what_another_seed_chose_is_fresh(record, per, split, fresh):
    (old,) = compare.loaded(["a/*"])
    selection = old["selection"] | {"per": per, "split": split}
    records.save(old | {"selection": selection}, replace=True)
    assert len(compare.select(["a/*"])) == fresh


def test_where_nothing_was_chosen_all_runs_are_fresh(tmp_path, monkeypatch):
    monkeypatch.setenv("FLATNB_RECORDS", str(tmp_path))
    evaluated("a/GD", [0, 0, 0], 0, split=None)
    assert len(compare.select(["a/*"])) == 3
    assert compare.select(["a/*"], "default").empty


def test_chance_needs_the_number_of_classes(record):
    (old,) = compare.loaded(["a/*"])
    records.save(old | {"task": {"name": "t"}}, replace=True)
    with pytest.raises(ValueError, match="a/SAM has a run without a number"):
        compare.select(["a/*"], "default")


def test_orders_are_averaged_within_the_seed():
    one = runs({("t", "ERM"): [1.0, 2.0], ("t", "SAM"): [3.0, 6.0]})
    both = pandas.concat([one.assign(order=1), one.assign(order=2)])
    both.loc[(both["order"] == 2) & (both["method"] == "SAM"), "test_accuracy"] += 1
    gaps = compare.differences(both, "ERM", "test_accuracy")
    assert gaps["SAM"].tolist() == [2.5, 4.5]
    assert compare.paired(both, "ERM", "test_accuracy")["n"].tolist() == [2]
    # One order that did not end leaves no mean.
    both.loc[(both["order"] == 2) & (both["seed"] == 1), "test_accuracy"] = None
    gaps = compare.differences(both, "ERM", "test_accuracy")
    assert gaps["SAM"].isna().tolist() == [False, True]
    with pytest.raises(ValueError, match="with seed 0 is there twice"):
        compare.differences(both.drop(columns="order"), "ERM", "test_accuracy")


def test_paired_differences_are_scipys_and_holms():
    erm, sam, gnp = [1, 2, 3, 4, 5.0], [2, 2.5, 4, 5, 6.5], [1.1, 2, 3, 4.2, 5]
    own = runs({("t", "ERM"): erm, ("t", "SAM"): sam, ("t", "GNP"): gnp})
    found = compare.paired(own, "ERM", "test_accuracy").set_index("method")
    p = [stats.ttest_rel(values, erm).pvalue for values in (sam, gnp)]
    assert found["p"].tolist() == pytest.approx(p)
    assert found["p_holm"].tolist() == pytest.approx([2 * p[0], max(p[1], 2 * p[0])])
    assert found["difference"].tolist() == pytest.approx([1.0, 0.06])
    with pytest.raises(ValueError, match="no run of the baseline 'SGD'; there are"):
        compare.paired(own, "SGD", "test_accuracy")


def test_checks_of_the_t_test_are_scipys():
    rng = np.random.default_rng(3)
    erm, sam = rng.normal(size=(2, 20))
    own = runs({("t", "ERM"): list(erm), ("t", "SAM"): list(sam)})
    row = compare.paired(own, "ERM", "test_accuracy").loc[0]
    assert row["p_wilcoxon"] == pytest.approx(stats.wilcoxon(sam, erm).pvalue)
    assert row["trimmed"] == pytest.approx(np.sort(sam - erm)[2:-2].mean())


def test_a_row_does_not_depend_on_the_ties_of_another():
    erm, sam = np.zeros(15), np.random.default_rng(4).normal(size=15)
    tied = [1.0, -1.0] + [2.0] * 13
    own = runs({("t", "ERM"): [*erm], ("t", "SAM"): [*sam], ("t", "NSO"): tied})
    alone = compare.paired(own[own["method"] != "NSO"], "ERM", "test_accuracy")
    both = compare.paired(own, "ERM", "test_accuracy").set_index("method")
    assert both.loc["SAM", "p_wilcoxon"] == alone.loc[0, "p_wilcoxon"]


def test_a_row_of_a_choice_at_an_edge_says_so():
    """Of the method, or of the baseline; over all tasks, of any of them."""
    pairs = [(task, method) for task in "tu" for method in ("ERM", "SAM", "NSO")]
    own = runs({pair: [1.0, 2.0] for pair in pairs})

    def at_edge(task, method, compared):
        edge = (own["task"] == task) & (own["method"] == method)
        table = compared(own.assign(at_edge=edge), "ERM", "test_accuracy")
        keys = ["task", "method"] if "task" in table else ["method"]
        rows = table.loc[table["at_edge"], keys].to_numpy()
        return [" ".join(row) for row in rows]

    assert at_edge("t", "SAM", compare.paired) == ["t SAM"]
    assert at_edge("u", "ERM", compare.paired) == ["u SAM", "u NSO"]
    assert at_edge("u", "SAM", compare.overall) == ["SAM"]
    assert sorted(at_edge("t", "ERM", compare.overall)) == ["NSO", "SAM"]
    assert not compare.paired(own, "ERM", "test_accuracy")["at_edge"].any()


def test_over_all_tasks_a_seed_counts_once():
    rng = np.random.default_rng(1)
    base, gain = rng.normal(0.8, 0.05, (3, 8)), rng.normal(0.01, 0.005, (2, 3, 8))
    own = runs(
        {
            (f"t{task}", method): list(base[task] + change[task])
            for task in range(3)
            for method, change in (
                ("ERM", 0 * base),
                ("SAM", gain[0]),
                ("NSO", -gain[1]),
            )
        }
    )
    found = compare.overall(own, "ERM", "test_accuracy").set_index("method")
    for method, each in (("SAM", gain[0]), ("NSO", -gain[1])):
        row, means = found.loc[method], each.mean(axis=0)
        assert row["difference"] == pytest.approx(means.mean())
        assert row["p"] == pytest.approx(stats.ttest_1samp(means, 0).pvalue)
        assert (row["n"], row["tasks"]) == (8, 3)
    assert found["p_holm"].tolist() == pytest.approx(holm(found["p"].tolist()))
    # A seed that one task lacks is left out of all.
    fewer = own[
        ~((own["task"] == "t1") & (own["method"] == "SAM") & (own["seed"] == 0))
    ]
    found = compare.overall(fewer, "ERM", "test_accuracy").set_index("method")
    assert found["n"].to_dict() == {"SAM": 7, "NSO": 8}
    assert found.loc["SAM", "difference"] == pytest.approx(gain[0, :, 1:].mean())
    # Of one task it is the paired test.
    one = own[own["task"] == "t0"]
    paired = compare.paired(one, "ERM", "test_accuracy").drop(columns="task")
    pandas.testing.assert_frame_equal(
        compare.overall(one, "ERM", "test_accuracy").drop(columns="tasks"), paired
    )


def on_tasks(gaps):
    """Runs of ERM, at 0, and SAM, whose differences on each task are given."""
    values = {}
    for task, row in gaps.items():
        values |= {(task, "ERM"): [0.0] * len(row), (task, "SAM"): list(row)}
    return runs(values)


def test_tasks_that_share_no_seeds_add_their_variances():
    # By hand: v of the tasks is 1/3, 12/3 and 10/5, of 2, 2 and 4 degrees of freedom.
    gaps = {"a": [1.0, 2, 3], "b": [0.0, 6, 6], "c": [0.0, 2, 4, 6, 8]}
    (row,) = compare.overall(
        on_tasks(gaps), "ERM", "test_accuracy", shared=False
    ).itertuples()
    variance = (1 / 3 + 4 + 2) / 9
    df = (19 / 3) ** 2 / (1 / 18 + 8 + 1)
    assert row.difference == pytest.approx((2 + 4 + 4) / 3)
    assert row.df == pytest.approx(df) == pytest.approx(4.43, abs=0.005)
    half = stats.t.ppf(0.975, df) * math.sqrt(variance)
    assert row.interval == pytest.approx(half) == pytest.approx(2.24, abs=0.005)
    assert (row.n, row.tasks) == (3, 3)
    assert math.isnan(row.p)  # of a task with three pairs there is no test


def test_of_two_tasks_it_is_the_test_of_welch():
    rng = np.random.default_rng(2)
    first, second = rng.normal(1, 1, 6), rng.normal(0.5, 4, 9)
    own = on_tasks({"a": first, "b": second})
    (row,) = compare.overall(own, "ERM", "test_accuracy", shared=False).itertuples()
    welch = stats.ttest_ind(first, -second, equal_var=False)
    low, high = welch.confidence_interval()
    assert row.p == row.p_holm == pytest.approx(welch.pvalue)
    assert row.df == pytest.approx(welch.df)
    assert row.interval == pytest.approx((high - low) / 4)  # of the mean, not the sum
    assert row.n == 6


def test_of_one_task_it_does_not_matter_what_tasks_share():
    own = on_tasks({"a": np.random.default_rng(3).normal(size=7)})
    shared, apart = (
        compare.overall(own, "ERM", "test_accuracy", shared=shared)
        for shared in (True, False)
    )
    assert apart["p_wilcoxon"].isna().all()
    checks = shared.assign(p_wilcoxon=math.nan)
    pandas.testing.assert_frame_equal(apart, checks, check_dtype=False)


def test_of_unshared_seeds_the_numbers_do_not_matter():
    gaps = {"a": [1.0, 2, 4, 8, 9], "b": [1.0, 2, 3, 5, 7]}
    other = {**gaps, "b": gaps["b"][::-1]}
    tables = [
        compare.overall(on_tasks(each), "ERM", "test_accuracy", shared=shared)
        for shared in (False, True)
        for each in (gaps, other)
    ]
    halves = [table["interval"][0] for table in tables]
    assert halves[0] == pytest.approx(halves[1])
    assert halves[2] > 3 * halves[3]


def test_intervals_over_unshared_tasks_cover_the_mean_and_vary_less():
    spreads, studies, seeds = (4.5, 0.5, 3.9, 1.1), 2000, 5
    rng = np.random.default_rng(5)
    gaps = rng.normal(0, 1, (len(spreads), studies, seeds)) * np.reshape(
        spreads, (-1, 1, 1)
    )
    values = {}
    for task, table in enumerate(gaps):
        values |= {(f"t{task}", f"method {i}"): row for i, row in enumerate(table)}
        values[f"t{task}", "ERM"] = np.zeros(seeds)
    own = runs(values)
    apart, within = (
        compare.overall(own, "ERM", "test_accuracy", shared=shared)
        for shared in (False, True)
    )
    for table in (apart, within):
        covered = (table["difference"].abs() <= table["interval"]).mean()
        assert 0.935 < covered < 0.965
    for measure in ("mean", "std"):
        one, other = (getattr(t["interval"], measure)() for t in (apart, within))
        assert one < other
    assert (apart["df"] > 4).all()


def test_unshared_tasks_need_pairs_each():
    own = on_tasks({"a": [1.0, 2], "b": [1.0, None]})
    (row,) = compare.overall(own, "ERM", "test_accuracy", shared=False).itertuples()
    assert row.n == 1 and math.isnan(row.interval) and math.isnan(row.df)
    assert row.difference == 1.25
    own = on_tasks({"a": [1.0, 2], "b": [None, None]})
    with pytest.raises(ValueError, match="that has test_accuracy on each of a, b"):
        compare.overall(own, "ERM", "test_accuracy", shared=False)
    same = on_tasks({"a": [0.0] * 5, "b": [0.0] * 5})
    (row,) = compare.overall(same, "ERM", "test_accuracy", shared=False).itertuples()
    assert (row.p, row.interval) == (1, 0)


def test_over_all_tasks_methods_and_seeds_must_be_shared():
    own = runs({("t", "ERM"): [0.8, 0.9], ("t", "SAM"): [0.7, 0.9]})
    other = own.assign(task="u", seed=own["seed"] + 2)
    with pytest.raises(
        ValueError, match="SAM and ERM share no seed that has test_accuracy"
    ):
        compare.overall(pandas.concat([own, other]), "ERM", "test_accuracy")
    alone = own[own["method"] == "SAM"].assign(task="u")
    with pytest.raises(
        ValueError, match="u has no run of the baseline 'ERM'; there are: SAM"
    ):
        compare.overall(pandas.concat([own, alone]), "ERM", "test_accuracy")


def test_too_few_seeds_are_not_tested_and_failed_runs_are_not_paired():
    few = compare.paired(
        runs({("t", "ERM"): [1, 2, 3, 4.0], ("t", "SAM"): [2, 3, 4, 6.0]}),
        "ERM",
        "test_accuracy",
    )
    assert math.isnan(few["p"][0]) and math.isnan(few["p_holm"][0])
    own = runs({("t", "ERM"): [1, 2, None], ("t", "SAM"): [2, None, 4.0]})
    found = compare.paired(own, "ERM", "test_accuracy")
    assert found["n"][0] == 1 and found["difference"][0] == 1


def test_equal_results_differ_by_nothing():
    own = runs({("t", "ERM"): [1.0] * 5, ("t", "SAM"): [1.0] * 5})
    assert compare.paired(own, "ERM", "test_accuracy")["p"].tolist() == [1.0]


def test_flatness_orders_all_nets_of_a_seed(tmp_path, monkeypatch):
    monkeypatch.setenv("FLATNB_RECORDS", str(tmp_path))
    random = np.random.default_rng(0)
    names = ("trace", "train_loss", "test_loss", "test_accuracy")
    tables, settings = {}, [{"rho": i} for i in range(15)]
    for method in ("SAM", "GNP"):
        tables[method] = {name: random.random((15, 3)).tolist() for name in names}
        saved(
            f"a/{method}",
            tables[method],
            settings=settings,
            chosen=[0, 0, 0],
            budget=15,
        )

    def of(seed, methods=("SAM", "GNP")):
        parts = [tables[method] for method in methods]
        own = {
            k: np.concatenate([np.array(t[k], float)[:, seed] for t in parts])
            for k in names
        }
        return pandas.DataFrame(own).assign(
            gap=lambda t: t["test_loss"] - t["train_loss"]
        )

    nets = compare.nets(["a/*"])
    found = statistics.flatness(nets, ["trace"]).set_index("target")
    for target, column, sign in (
        ("loss_gap", "gap", 1),
        ("test_loss", "test_loss", 1),
        ("test_error", "test_accuracy", -1),
    ):
        each = [
            sign * stats.spearmanr(of(s)["trace"], of(s)[column])[0] for s in range(3)
        ]
        assert found.loc[target, "correlation"] == pytest.approx(np.mean(each))
        half = stats.sem(each) * stats.t.ppf(0.975, 2)
        assert found.loc[target, "interval"] == pytest.approx(half)
    assert found["nets"].tolist() == [30] * 3 and found["n"].tolist() == [3] * 3

    # Within a method, given the training loss: the correlation of what regressions of
    # ranks leave.
    one = statistics.flatness(
        nets, ["trace"], ["test_loss"], within=("task", "method"), given=["train_loss"]
    ).set_index("method")
    each = []
    for seed in range(3):
        own = of(seed, ["GNP"])[["trace", "test_loss", "train_loss"]].rank()
        left = [
            own[name]
            - np.poly1d(np.polyfit(own["train_loss"], own[name], 1))(own["train_loss"])
            for name in ("trace", "test_loss")
        ]
        each.append(np.corrcoef(*left)[0, 1])
    assert one.loc["GNP", "correlation"] == pytest.approx(np.mean(each))

    some = statistics.flatness(nets.query("train_loss < 0.6"), ["trace"], ["test_loss"])
    each = [of(s).query("train_loss < 0.6") for s in range(3)]
    assert min(map(len, each)) >= statistics.LEAST_NETS
    expected = np.mean(
        [stats.spearmanr(own["trace"], own["test_loss"])[0] for own in each]
    )
    assert some["correlation"][0] == pytest.approx(expected)
    assert some["nets"][0] == pytest.approx(np.mean([len(own) for own in each]))

    with pytest.raises(KeyError, match="sharpness"):
        statistics.flatness(nets, ["sharpness"])
    with pytest.raises(ValueError, match="given='trace' is a measure or a target"):
        statistics.flatness(nets, ["trace"], given=["trace"])


def test_flatness_leaves_out_nets_without_a_number_and_seeds_of_few_nets(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("FLATNB_RECORDS", str(tmp_path))
    n = 12
    tables = {
        "trace": [[float(i)] * 2 for i in range(n)],
        "train_loss": [[0.0] * 2] * n,
        "test_loss": [[float(i)] * 2 for i in range(n)],
    }
    tables["trace"][3] = [None, None]
    for i in (4, 5):  # nine nets are left of the second seed
        tables["trace"][i] = [99.0 if i == 4 else 4.5, None]
    settings = [{"rho": i} for i in range(n)]
    saved("a/SAM", tables, settings=settings, chosen=[0, 0], budget=n)
    nets = compare.nets(["a/*"])
    found = statistics.flatness(nets, ["trace"], ["test_loss"])
    left = [i for i in range(n) if i != 3]
    expected = stats.spearmanr([tables["trace"][i][0] for i in left], left)[0]
    assert found["correlation"].tolist() == [pytest.approx(expected)] and expected < 1
    assert found["n"].tolist() == [1] and found["nets"].tolist() == [11]
    # Of what the held metric determines nothing is left to correlate.
    held = statistics.flatness(nets, ["trace"], ["test_loss"], given=["rho"])
    assert math.isnan(held["correlation"][0])


def test_flatness_within_strata_is_the_mean_of_theirs():
    """Inside each rate the measure orders as the loss does, in one of three rates with
    the reverse; between rates it is reversed. A rate of few nets does not count."""
    rows = [
        {
            "task": "t",
            "seed": seed,
            "rate": rate,
            "trace": x - 100 * rate,
            "test_loss": (x if rate else -x) + 100 * rate,
        }
        for seed in (0, 1)
        for rate, count in enumerate((10, 10, 10, 9))
        for x in range(count)
    ]
    nets = pandas.DataFrame(rows)
    (plain,) = statistics.flatness(nets, ["trace"], ["test_loss"])["correlation"]
    assert plain < -0.8
    found = statistics.flatness(nets, ["trace"], ["test_loss"], strata=["rate"])
    assert found["correlation"].tolist() == [pytest.approx(1 / 3)]
    assert found["nets"].tolist() == [30] and found["n"].tolist() == [2]


def test_the_best_run_is_that_of_the_highest_accuracy_then_the_lowest_loss():
    rows = [
        ("A", 0, 0.5, 1.0),
        ("A", 0, 0.6, 3.0),
        ("A", 0, 0.6, 2.0),
        ("A", 1, None, 0),
    ]
    rows += [("B", 0, 0.6, 2.0), ("A", 1, 0.1, 9.0)]
    columns = ["method", "seed", "val_accuracy", "val_loss"]
    tries = pandas.DataFrame(rows, columns=columns).assign(rho=range(6))
    assert compare.best(tries, by=["method", "seed"])["rho"].tolist() == [2, 5, 4]
    assert compare.best(tries, by=["seed"])["rho"].tolist() == [2, 5]
    with pytest.raises(KeyError, match="task"):
        compare.best(tries, by=["task"])


def test_differences_pair_runs_by_seed():
    own = runs({("t", "ERM"): [1, 2, 3.0], ("t", "SAM"): [2, 2.5], ("u", "ERM"): [1.0]})
    gaps = compare.differences(own, "ERM", "test_accuracy")
    assert gaps.loc["t", "SAM"].tolist()[:2] == [1.0, 0.5]
    assert gaps["SAM"].isna().sum() == 2 and list(gaps) == ["SAM"]


def test_two_scales_of_one_task_do_not_mix():
    own = runs({("t", "SAM"): [0.9, 0.8]})
    with pytest.raises(ValueError, match="SAM on t with seed 0 is there twice"):
        compare.paired(pandas.concat([own, own]), "SAM", "test_loss")
