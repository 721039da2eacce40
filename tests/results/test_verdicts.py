"""Verdicts follow the plan's words; ratios at the end of training are those of pairs."""

import math

import numpy as np
import pandas
import pytest
from scipy import stats
from test_compare import runs

from flatnb.results import compare, statistics, verdicts


def of(gain, half, p, *, n=60, at_edge=False):
    """A table of one test, whose checks agree."""
    row = {"method": "SAM", "difference": gain, "interval": half, "n": n, "p": p}
    row["df"] = n - 1
    row |= {"p_holm": p, "trimmed": gain, "p_wilcoxon": p, "at_edge": at_edge}
    return pandas.DataFrame([row])


@pytest.mark.parametrize(
    ("tests", "verdict"),
    [
        (of(0.01, 0.004, 0.001), "better"),
        (of(0.001, 0.0005, 0.001), "better"),  # as small as it is
        (of(-0.01, 0.004, 0.001), "worse"),
        (of(0.001, 0.003, 0.4), "no gain worth having"),
        (of(-0.001, 0.003, 0.4), "no gain worth having"),
        (of(0.004, 0.003, 0.06), "inconclusive"),
        (of(0.004, 0.001, 0.04, n=4), "too few seeds"),
        (of(0.01, 0.004, 0.001, at_edge=True), "at an edge"),
        (of(0.01, 0.004, math.nan, n=3, at_edge=True), "too few seeds"),
    ],
)
def test_verdicts(tests, verdict):
    found = verdicts.verdicts(tests, "test_accuracy", 0.005)
    assert found["verdict"].tolist() == [verdict]
    # Of a loss less is better.
    tests = tests.assign(difference=-tests["difference"])
    found = verdicts.verdicts(tests, "test_loss", 0.005)
    assert found["verdict"].tolist() == [verdict]


def test_without_a_smallest_gain_there_is_no_verdict_on_it():
    found = verdicts.verdicts(of(0.001, 0.003, 0.4), "test_loss")
    assert found["verdict"].tolist() == ["inconclusive"]
    with pytest.raises(ValueError, match="level=2"):
        verdicts.verdicts(of(0, 1, 1), "test_loss", level=2)


def test_the_detectable_gain_is_that_of_the_spread_and_the_family():
    rng = np.random.default_rng(0)
    erm, sam, gnp = rng.normal(size=(3, 12))
    values = {"ERM": erm, "SAM": sam, "GNP": gnp, "NSO": erm[:1]}
    own = runs({("t", name): list(row) for name, row in values.items()})
    tests = compare.paired(own, "ERM", "test_accuracy")
    found = verdicts.verdicts(tests, "test_accuracy").set_index("method")
    sd = np.std(sam - erm, ddof=1)
    expected = statistics.detectable(sd, 12, 0.05 / 2)  # NSO has no test
    assert found.loc["SAM", "detectable"] == pytest.approx(expected)
    assert math.isnan(found.loc["NSO", "detectable"])


def test_the_detectable_gain_over_unshared_tasks_has_their_degrees_of_freedom():
    rng = np.random.default_rng(1)
    gaps = {"a": rng.normal(0, 3, 5), "b": rng.normal(0, 1, 5)}
    values = {}
    for task, row in gaps.items():
        values |= {(task, "ERM"): [0.0] * 5, (task, "SAM"): list(row)}
    tests = compare.overall(runs(values), "ERM", "test_accuracy", shared=False)
    found = verdicts.verdicts(tests, "test_accuracy")
    error = math.sqrt(sum(row.var(ddof=1) / 5 for row in gaps.values())) / 2
    n = tests["df"][0] + 1
    assert 5 < n < 9
    assert found["detectable"][0] == pytest.approx(
        statistics.detectable(error * math.sqrt(n), n)
    )
    assert found["agree"].all()  # there is no signed-rank test to disagree


def test_checks_agree_or_not():
    assert verdicts.verdicts(of(0.01, 0.004, 0.001), "test_accuracy")["agree"].all()
    for column, value in (("p_wilcoxon", 0.2), ("trimmed", -0.01)):
        tests = of(0.01, 0.004, 0.001).assign(**{column: value})
        assert not verdicts.verdicts(tests, "test_accuracy")["agree"].any()
        few = tests.assign(n=14)  # too few for a check
        assert verdicts.verdicts(few, "test_accuracy")["agree"].all()


def test_a_family_is_adjusted_over_all_its_tables():
    tables = {"t": of(0.1, 0.1, 0.01), "u": of(0.1, 0.1, 0.03)}
    found = verdicts.family(tables)
    assert found["family"].tolist() == ["t", "u"]
    assert found["p_holm"].tolist() == [0.02, 0.03]


@pytest.fixture
def ends(monkeypatch):
    """Fresh runs of two tasks and six seeds, as `select` gives them."""
    rng = np.random.default_rng(1)
    keys = [(t, m, s) for t in "tu" for m in ("ERM", "SAM") for s in range(6)]
    table = pandas.DataFrame(keys, columns=["task", "method", "seed"])
    for name in ("trace", "sharpness", "grad_norm"):
        table[name] = rng.uniform(0.5, 2, len(table))
    table["train_loss"] = rng.uniform(0, 0.02, len(table))
    table = table.assign(at_edge=False)
    monkeypatch.setattr(verdicts, "select", lambda patterns: table.copy())
    return table


def logarithms(table, measure):
    """SAM minus ERM, [seed][task]."""
    rows = table.set_index(["method", "seed", "task"])[measure].map(np.log)
    return (rows["SAM"] - rows["ERM"]).unstack()


def test_ratios_are_of_seeds(ends):
    found = verdicts.endings(["*"]).set_index("measure")
    assert list(found.index) == ["trace", "sharpness", "grad_norm", "train_loss"]
    for measure, row in found.iterrows():
        means = logarithms(ends, measure).mean(axis=1)
        test = stats.ttest_1samp(means, 0)
        low, high = test.confidence_interval()
        assert row["ratio"] == pytest.approx(np.exp(means.mean()))
        assert (row["low"], row["high"]) == pytest.approx((np.exp(low), np.exp(high)))
        assert row["p"] == pytest.approx(test.pvalue)
        assert (row["n"], row["pairs"]) == (6, 12)
    tested = found.loc[["trace", "sharpness"]]
    assert tested["p_holm"].tolist() == pytest.approx(statistics.holm(tested["p"]))
    assert found.loc[["grad_norm", "train_loss"], "p_holm"].isna().all()
    spread = logarithms(ends, "trace").mean(axis=1).std()
    smallest = np.exp(-statistics.detectable(spread, 6, 0.05 / 2))
    assert found.loc["trace", "detectable"] == pytest.approx(smallest)
    losses = ends.groupby("method")["train_loss"].mean()
    assert found["train_loss"].tolist() == pytest.approx([losses["SAM"]] * 4)
    assert found["baseline_loss"].tolist() == pytest.approx([losses["ERM"]] * 4)


def test_ratios_of_the_nets_that_fit(ends):
    losses = ends.set_index(["method", "seed", "task"])["train_loss"]
    fit = (losses["SAM"] < 0.01) & (losses["ERM"] < 0.01)
    gaps = logarithms(ends, "trace").where(fit.unstack())
    row = verdicts.endings(["*"], below=0.01).set_index("measure").loc["trace"]
    assert 0 < fit.sum() < 12 and row["pairs"] == fit.sum()
    assert row["n"] == gaps.mean(axis=1).notna().sum()
    assert row["ratio"] == pytest.approx(np.exp(gaps.mean(axis=1).mean()))
    assert row["train_loss"] == pytest.approx(losses["SAM"][fit].mean())


def test_values_that_are_not_positive_have_no_ratio(ends):
    place = (ends["method"] == "SAM") & (ends["seed"] == 2) & (ends["task"] == "t")
    ends.loc[place, "trace"] = 0.0
    found = verdicts.endings(["*"]).set_index("measure")
    assert found["pairs"].tolist() == [11, 12, 12, 12]
    assert found["n"].tolist() == [6] * 4
    assert np.isfinite(found["ratio"]).all()


def test_where_a_choice_lies_at_an_edge_the_ratio_says_so(ends):
    ends["at_edge"] = (ends["method"] == "SAM") & (ends["task"] == "u")
    assert verdicts.endings(["*"])["at_edge"].all()


@pytest.mark.parametrize(
    ("passes", "metric", "expected"),
    [(1, "test_accuracy", "EMA"), (2, "test_accuracy", "SAM"), (2, "test_loss", "EMA")],
)
def test_the_best_of_the_better_methods_that_can_be_afforded_is_recommended(
    monkeypatch: pytest.MonkeyPatch, passes: float, metric: str, expected: str
) -> None:
    judged = pandas.DataFrame(
        {
            "difference": [0.9, 0.1, 0.2, 0.3],
            "verdict": ["at an edge", "better", "better", "better"],
            "passes": [1, 1, 2, 3],
        },
        index=["SWA", "EMA", "SAM", "NSO"],
    )
    monkeypatch.setattr(verdicts, "gains", lambda *given, **runs: judged)
    found = verdicts.recommended(verdicts.Situation("", "", metric), passes)
    assert found is not None and found.name == expected
    judged["verdict"] = "inconclusive"
    assert verdicts.recommended(verdicts.Situation("", "", metric)) is None


def test_plain_training_alone_has_no_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = runs({("t", "ERM"): [0.5, 0.6]}).assign(passes=1.0)
    monkeypatch.setattr(verdicts, "_of_all_tasks", lambda *given: alone)
    assert verdicts.gains("plane/*").empty


def test_of_no_record_there_is_no_gain_and_nothing_is_recommended() -> None:
    assert verdicts.gains("none/*").empty
    assert verdicts.recommended(verdicts.Situation("", "none/*")) is None


def test_the_flatter_of_a_pair_wins_or_not(monkeypatch):
    keys = [("t", m, s) for s in (0, 1) for m in ("ERM", "SAM", "NSO")]
    table = pandas.DataFrame(keys, columns=["task", "method", "seed"])
    table["trace"] = [3.0, 2.0, 1.0, 3.0, 2.0, 2.0]
    table["test_loss"] = [0.3, 0.2, 0.4, 0.1, 0.2, math.nan]
    table["test_accuracy"] = [0.7, 0.8, 0.6, 0.9, 0.8, 0.9]
    monkeypatch.setattr(verdicts, "select", lambda patterns, runs: table.copy())
    monkeypatch.setattr(verdicts, "names", lambda: ["t"])
    # Seed 0: SAM beats ERM, and NSO neither; of seed 1 the flatter SAM loses to ERM,
    # and NSO has no loss.
    columns = ["pairs", "wins", "share"]
    assert verdicts.flatter("*").loc["t", columns].tolist() == [4, 1, 0.25]
    # By accuracy ERM and NSO of seed 1 tie, and SAM and NSO do in the trace.
    found = verdicts.flatter("*", metric="test_accuracy")
    assert found.loc["t", columns].tolist() == [4, 1, 0.25]
    other = table.assign(task="u")[lambda rows: rows["method"] != "NSO"]
    both = pandas.concat([table, other])
    monkeypatch.setattr(verdicts, "select", lambda patterns, runs: both.copy())
    assert verdicts.flatter("*")["pairs"].tolist() == [2, 2]  # ERM and SAM have both
    assert verdicts.flatter("none").empty


def test_only_pairs_of_like_training_losses_are_compared(monkeypatch):
    keys = [("t", m, s) for s in (0, 1) for m in ("ERM", "SAM", "NSO")]
    table = pandas.DataFrame(keys, columns=["task", "method", "seed"])
    table["trace"] = [3.0, 2.0, 1.0] * 2
    table["test_loss"] = [0.3, 0.2, 0.4] * 2
    table["train_loss"] = [0.1, 0.2, 0.4, 0.1, 0.3, math.nan]
    monkeypatch.setattr(verdicts, "select", lambda patterns, runs: table.copy())
    monkeypatch.setattr(verdicts, "names", lambda: ["t"])
    found = [verdicts.flatter("*", alike=alike).loc["t"] for alike in (1.9, 2.0, 3.1)]
    # SAM beats ERM, and loses to NSO; of seed 1 only the first two have losses.
    assert [row["pairs"] for row in found] == [0, 2, 3]
    assert [row["wins"] for row in found] == [0, 1, 2]


def test_pairs_of_far_rates_and_of_methods_left_out_do_not_count(monkeypatch):
    keys = [("t", m, s) for s in (0, 1) for m in ("ERM", "SAM", "NSO")]
    table = pandas.DataFrame(keys, columns=["task", "method", "seed"])
    table["trace"] = [3.0, 2.0, 1.0] * 2
    table["test_loss"] = [0.3, 0.2, 0.4, 0.3, 0.2, 0.1]
    table["lr"] = [0.1, 0.2, 0.4] * 2
    monkeypatch.setattr(verdicts, "select", lambda patterns, runs: table.copy())
    monkeypatch.setattr(verdicts, "names", lambda: ["t"])
    found = [verdicts.flatter("*", rates=rates).loc["t"] for rates in (1.9, 2.0, 4.0)]
    assert [row["pairs"] for row in found] == [0, 4, 6]
    assert [row["wins"] for row in found] == [0, 3, 4]
    assert [math.isnan(row["share"]) for row in found] == [True, False, False]
    assert verdicts.flatter("*", without={"SAM"}).loc["t", "wins"] == 1


def test_the_interval_of_a_share_is_that_of_a_ratio_over_seeds():
    # With as many pairs of each seed it is the t-interval of the seeds' shares.
    gaps = np.array([[1, 1, -1, -1], [1, 1, 1, -1], [1, 1, 1, 1]], float)
    _, half = statistics.interval([0.5, 0.75, 1.0])
    row = verdicts._share(gaps)
    assert row["share"] == 0.75 and row["interval"] == pytest.approx(half)
    assert math.isnan(verdicts._share(gaps[:1])["interval"])
    # A seed without pairs changes nothing but the number of seeds.
    more = verdicts._share(np.vstack([gaps, np.zeros(4)]))
    assert more["share"] == 0.75
    factor = stats.t.ppf(0.975, 3) * (4 / 3) ** 0.5
    factor /= stats.t.ppf(0.975, 2) * (3 / 2) ** 0.5
    assert more["interval"] == pytest.approx(half * factor)
