"""What the scoreboard opens with, and no marker holds, is what the records say."""

from pathlib import Path

import pandas as pd
import pytest

from flatnb.book import headline
from flatnb.results import compare, records, scoreboard, statistics, verdicts

TUNED = ["plane/*/narrow-tuned"]
ONE_RATE = ["plane/*/narrow-grid"]


def whole(runs: str) -> pd.DataFrame:
    """The runs of the methods that are recorded on all nine tasks."""
    table = compare.on_all_tasks(compare.select(TUNED, runs))
    assert table["task"].nunique() == 9
    return table


@pytest.fixture(scope="module")
def fresh() -> pd.DataFrame:
    return whole("fresh")


def judged(runs: pd.DataFrame, baseline: str) -> pd.DataFrame:
    tests = compare.overall(runs, baseline, "test_accuracy")
    table = verdicts.verdicts(tests, "test_accuracy", 0.005)
    return table.set_index("method")


def test_the_verdicts_of_the_opening(fresh: pd.DataFrame) -> None:
    table = judged(fresh, "ERM")
    better = ["NSO-EMA", "NSO", "EMA", "SAM", "GNP", "WeightNoise", "ASAM"]
    assert (table.loc[better, "verdict"] == "better").all()
    assert table.loc[better, "interval"].max() <= 0.0011
    assert (table["difference"] - table["interval"]).max() < 0.005
    reach = table["difference"] + table["interval"] > 0.005
    assert set(table.index[reach]) == {"NSO-EMA", "SAM-EMA", "NSO"}
    none = ["Flooding", "IFlood", "FAM"]
    assert (table.loc[none, "verdict"] == "no gain worth having").all()
    assert table.loc["SoftAD", "verdict"] == "worse"


def test_the_average_gains_mostly_on_the_spirals(fresh: pd.DataFrame) -> None:
    spiral = fresh["task"].str.contains("spiral")
    gains = [
        judged(fresh[part], "ERM").loc["EMA", "difference"]
        for part in (spiral, ~spiral)
    ]
    assert gains[0] / 3 > 0.8 * (gains[0] + 2 * gains[1]) / 3


def test_of_one_pass_only_the_average_is_better() -> None:
    """Chapter 3 and the landing page recommend it as the cheapest."""
    table = verdicts.gains()
    better = table["verdict"] == "better"
    assert list(table.index[better & (table["passes"] == 1)]) == ["EMA"]


def test_only_combinations_with_the_average_are_better_than_the_average(
    fresh: pd.DataFrame,
) -> None:
    table = judged(fresh, "EMA")
    assert set(table.index[table["verdict"] == "better"]) == {
        "SAM-EMA",
        "NSO-EMA",
    }
    none = ["NSO", "SAM"]
    assert (table.loc[none, "verdict"] == "no gain worth having").all()
    falling = verdicts.gains(verdicts.FALLING, baseline="EMA")["verdict"]
    better = set(falling.index[falling == "better"])
    assert "ERM" in better and len(better - {"ERM"}) == 8


def test_no_kind_of_flooding_shows_a_gain() -> None:
    kinds = ["Flooding", "IFlood", "AdaFlood"]
    for pattern, expected in (
        (verdicts.PLANE, ["no gain worth having"] * 2 + ["worse"]),
        (verdicts.FALLING, ["worse", "at an edge", "worse"]),
    ):
        assert verdicts.gains(pattern).loc[kinds, "verdict"].tolist() == expected


def test_at_equal_passes_nothing_does_better_than_the_average() -> None:
    none = ["SAM", "ASAM", "USAM", "GSAM", "GNP", "NSO", "SAM-EMA"]
    worse, open_ = ["AdaFlood", "BSAM"], ["LookSAM", "FriendlySAM", "RSAM"]
    names = (*none, *worse, *open_, "WeightNoise", "NSO-EMA")
    shorter = [f"plane/*/{name}/narrow-tuned-equal-passes" for name in names]
    runs = compare.select([*shorter, "plane/*/ERM/narrow-tuned"])
    table = judged(runs, "ERM")
    assert (table.loc[none, "verdict"] == "no gain worth having").all()
    gains = {"NSO-EMA": 0.34, "WeightNoise": 0.25}
    for name, gain in gains.items():
        assert table.loc[name, "verdict"] == "better"
        assert 100 * table.loc[name, "difference"] == pytest.approx(gain, abs=0.005)
    ema = compare.select(["plane/*/EMA/narrow-tuned"])
    against = judged(pd.concat([runs, ema]), "EMA")
    assert (against.loc[[*none, *worse], "verdict"] == "worse").all()
    assert (table.loc[worse, "verdict"] == "worse").all()
    assert (table.loc[open_, "verdict"] == "at an edge").all()
    assert (against.loc[list(gains), "verdict"] == "no gain worth having").all()
    recorded = compare.select(["plane/*/narrow-tuned-equal-passes"])
    assert set(recorded["method"]) == set(names)  # else the pages say too little
    assert len(names) == 14
    assert set(names) == set(verdicts.gains().query("passes > 1").index)


def test_tuning_the_rate_gains_more_than_any_method(fresh: pd.DataFrame) -> None:
    default = whole("default")
    default = default[default["method"] == "ERM"].assign(method="default")
    pair = pd.concat([fresh[fresh["method"] == "ERM"], default])
    gain = judged(pair, "default").loc["ERM", "difference"]
    assert 100 * gain == pytest.approx(1.6, abs=0.05)
    gains = judged(fresh, "ERM")["difference"]
    assert gains.idxmax() == "NSO-EMA" and gains.max() < gain


def test_the_gains_of_selected_runs_are_not_larger_and_less_certain(
    fresh: pd.DataFrame,
) -> None:
    selected = judged(whole("selected"), "ERM")
    later = judged(fresh, "ERM").loc[selected.index]
    assert (selected["difference"] - later["difference"]).mean() < 0.0005
    assert 2 < (selected["interval"] / later["interval"]).mean() < 4


def test_the_tuning_takes_the_gain_away(fresh: pd.DataFrame) -> None:
    """Chapters 11 and 14 and the README: the mean gain of ten methods, in points."""
    single = compare.on_all_tasks(compare.select(ONE_RATE))
    methods = headline.tests().popitem()[1].index
    gaps = [
        compare.over_tasks(compare.differences(runs, "ERM", "test_accuracy"))
        for runs in (single, fresh)
    ]
    assert gaps[0].index.equals(gaps[1].index) and len(gaps[0]) == 60
    before, after = (100 * gap[methods].mean(axis=1) for gap in gaps)
    assert before.mean() == pytest.approx(1.19, abs=0.005)
    mean, half = map(float, statistics.interval(before - after))
    assert (mean, half) == pytest.approx((1.12, 0.12), abs=0.005)
    assert 0.9 < mean / before.mean() < 1
    rest = [method for method in methods if method != "FAM"]  # at an edge; see the plan
    loss = (100 * (gaps[0][rest] - gaps[1][rest])).mean(axis=1)
    assert statistics.interval(loss) == pytest.approx((1.17, 0.12), abs=0.005)
    erm = [
        runs[runs["method"] == "ERM"]["test_accuracy"].mean()
        for runs in (single, fresh)
    ]
    assert 100 * (erm[1] - erm[0]) - mean == pytest.approx(0.4, abs=0.05)


def test_luck_does_not_make_the_gain_at_one_rate() -> None:
    """Chapter 14: nor does it in selected runs."""
    kinds = ("fresh", "selected")
    single = [compare.on_all_tasks(compare.select(ONE_RATE, kind)) for kind in kinds]
    gains = [judged(runs, "ERM")["difference"] for runs in single]
    assert 100 * abs(gains[0].mean() - gains[1].mean()) < 0.1
    assert 100 * gains[1].mean() == pytest.approx(1.27, abs=0.005)


def test_no_default_is_better_than_tuned_plain_training(fresh: pd.DataFrame) -> None:
    default = whole("default")
    default = default[default["method"] != "ERM"]
    runs = pd.concat([default, fresh[fresh["method"] == "ERM"]])
    assert judged(runs, "ERM")["difference"].max() < -0.005


def test_most_of_the_luck_is_that_of_few_runs() -> None:
    """The luckiest tenth of the pairs of a selected run and its repetitions."""
    shares = []
    selected, repeated = (
        table.groupby(["method", "task", "seed"])["test_accuracy"].mean()
        for table in (whole("selected"), whole("repeated"))
    )
    for _, luck in (selected - repeated).groupby("method"):
        luck = luck.sort_values(ascending=False)
        shares.append(luck.iloc[: len(luck) // 10].sum() / luck.sum())
    assert min(shares) > 0.5


def test_what_it_was_the_learning_rate_opens_with() -> None:
    """And the landing page: of ten methods recorded both ways, in points."""
    single, tuned, _ = headline.tests().values()
    assert len(single) == len(tuned) == 10
    better = (single["p_holm"] < 0.05) & ~single["at_edge"]
    gains = 100 * single.loc[better, "difference"]
    assert len(gains) == 8
    assert gains.min() == pytest.approx(0.7, abs=0.05)
    assert gains.max() == pytest.approx(2.0, abs=0.05)
    assert list(single.index[single["at_edge"]]) == ["FAM"]
    assert 100 * single.loc["FAM", "difference"] == pytest.approx(0.6, abs=0.05)
    left = tuned[(tuned["p_holm"] < 0.05) & (tuned["difference"] > 0)]
    assert len(left) == 5
    assert 100 * left["difference"].max() == pytest.approx(0.4, abs=0.05)


def test_with_noisy_labels_ema_gains_on_the_spirals_and_sam_everywhere() -> None:
    shapes = ("gaussian", "sinusoid", "spiral")
    by_shape = [
        100 * verdicts.gains(f"plane/{shape}-0.*/*/narrow-tuned")["difference"]
        for shape in shapes
    ]
    ema, sam = ([gains[name] for gains in by_shape] for name in ("EMA", "SAM"))
    assert ema[2] > 0.9 * sum(ema)
    assert min(sam) > 0.3


def test_the_cards_of_the_landing_page_are_what_is_recommended() -> None:
    names = {
        "noisy labels": (None, "FriendlySAM"),
        "clean labels": (None, None),
        "noisy labels, constant rate": ("EMA", "NSO-EMA"),
        "clean labels, constant rate": ("EMA", "NSO-EMA"),
        "nothing tuned": ("SGD", "NSO"),
        "fine-tuning on few examples": (None, None),
        "calibrated probabilities": ("SWA", "WeightNoise"),
    }
    situations = {each.words: each for each in verdicts.SITUATIONS}
    for words, expected in names.items():
        rows = [verdicts.recommended(situations[words], n) for n in (1, 99)]
        assert tuple(row if row is None else row.name for row in rows) == expected


def test_only_one_gain_on_the_cards_is_surely_worth_half_a_point() -> None:
    names = ("EMA", "SAM", "FriendlySAM", "NSO-EMA")
    sure = []
    for each in verdicts.SITUATIONS:
        if "labels" not in each.words:
            continue
        table = verdicts.gains(each.pattern)
        low = table["difference"] - table["interval"]
        sure += [(each.words, name) for name in names if low[name] > verdicts.WORTH]
    assert sure == [("noisy labels, constant rate", "NSO-EMA")]


SMALL_IMAGES = ("digits-mlp", "MNIST-n5000-mlp", "cifar10-jpeg-n4000-small_cnn")
DIGITS, MNIST, PHOTOGRAPHS = (f"images/{name}" for name in SMALL_IMAGES)
LARGER = PHOTOGRAPHS.replace("images", "images-larger-rates")


def on_small_images(metric: str = "test_accuracy") -> pd.DataFrame:
    """Against plain training, as one family; of photographs a point is worth having."""
    runs = compare.select([f"images/{name}/*" for name in SMALL_IMAGES])
    tests = compare.paired(runs, "ERM", metric)
    half, whole = (
        verdicts.verdicts(tests, metric, gain if metric == "test_accuracy" else None)
        for gain in (0.005, 0.01)
    )
    photographs = tests["task"] == PHOTOGRAPHS
    return pd.concat([half[~photographs], whole[photographs]]).set_index("method")


@pytest.mark.parametrize("metric", ["test_accuracy", "test_loss"])
def test_the_figure_judges_small_images_as_the_chapter_does(metric: str) -> None:
    """One number has one verdict: Holm's method over the plan's family F."""
    runs = scoreboard.rules("none/*", "images/*", "none/*")
    views = scoreboard.views({"tuned": runs["tuned, falling"]}, ["ERM"])
    views = views[views["metric"] == metric].set_index(["place", "method"])
    places = ["digits", "5,000 of MNIST", "4,000 of CIFAR-10"]
    names = dict(zip((DIGITS, MNIST, PHOTOGRAPHS), places, strict=True))
    table = on_small_images(metric)
    for method, row in table.iterrows():
        view = views.loc[(f"images: {names[row['task']]}", method)]
        assert view["verdict"] == row["verdict"]
        assert view["p_holm"] == pytest.approx(row["p_holm"])
    assert len(views) == len(table)


def test_in_the_first_search_no_significant_gain_has_a_verdict() -> None:
    table = on_small_images()
    assert len(table) == 55
    assert not table["verdict"].isin(["better", "worse"]).any()
    significant = table[table["p_holm"] < 0.05]
    on_photographs = significant[significant["task"] == PHOTOGRAPHS]
    assert set(on_photographs.index) == {"SAM", "NSO-EMA"}
    for method in on_photographs.index:
        chosen = records.load(f"{PHOTOGRAPHS}/{method}")["selection"]
        assert chosen["at_edge"] == ["lr"]
    on_mnist = significant[significant["task"] == MNIST]["difference"]
    assert len(on_photographs) + len(on_mnist) == len(significant)
    assert set(on_mnist.index[on_mnist < 0]) == {"SoftAD", "Flooding", "FAM"}
    assert (on_mnist > 0).sum() == 9 and on_mnist.idxmax() == "SAM"
    digits = table[table["task"] == DIGITS]
    assert len(digits) == 21
    assert digits["difference"].idxmax() == digits["p"].idxmin() == "SAM"
    assert digits.loc["SAM", "verdict"] == "inconclusive"
    assert records.load(f"{MNIST}/ERM")["selection"]["at_edge"] == ["lr"]
    assert (table.loc[table["task"] == MNIST, "verdict"] == "at an edge").all()
    photographs = table[table["task"] == PHOTOGRAPHS]
    assert len(photographs) == 13
    edge = photographs["verdict"] == "at an edge"
    assert edge.sum() == 8 and edge[["SAM", "NSO-EMA"]].all()
    above = photographs.index[photographs["difference"] > 0.01]
    assert len(above) == 6 and edge[above].all()
    left = photographs.loc[~edge, "verdict"].to_dict()
    none = "no gain worth having"
    assert left == dict.fromkeys(["ASAM", "SoftAD"], none) | dict.fromkeys(
        ["FAM", "GNP", "WeightNoise"], "inconclusive"
    )
    loss = on_small_images("test_loss")
    better = (loss["task"] == PHOTOGRAPHS) & (loss["verdict"] == "better")
    assert set(loss.index[better]) == {"ASAM", "SoftAD"}


def test_the_plan_counts_the_tests_of_the_families_added_later() -> None:
    plan = Path(__file__).parents[2] / "book" / "plan.md"
    rows = {
        line[2]: line.split(" | ")[2]
        for line in plan.read_text(encoding="utf-8").splitlines()
        if line.startswith(("| J |", "| K |", "| L |", "| M |", "| N |", "| Q |"))
    }
    falling = compare.select(["plane/*/narrow-tuned-cosine"])["method"]
    shorter = compare.select(["plane/*/narrow-tuned-equal-passes-cosine"])["method"]
    assert rows["L"] == str(falling.nunique() - 1)
    assert rows["M"] == f"{shorter.nunique()} each"
    names = {"SAM", "ASAM", "USAM", "RSAM", "FriendlySAM", "GSAM", "NSO", "GNP"}
    assert set(shorter) == names
    larger = compare.select([f"{LARGER}/*"])["method"]
    assert rows["N"] == str(larger.nunique() - 1)
    assert rows["Q"] == str(len(searched_again()))
    again = [name for name in records.names() if name.startswith("finetune-again/")]
    others = [name for name in again if not name.endswith("/NSO")]
    count = sum(len(records.load(name)["settings"]) for name in others)
    assert int(rows["J"]) + int(rows["K"]) == count == 15


def test_more_tests_in_the_family_took_two_stars() -> None:
    """The plan has Holm's p in three families."""
    table = on_small_images()
    later = ["ASAM", "EMA", "FAM", "IFlood", "NSO-EMA", "SAM-EMA", "SWA"]
    added = (table["task"] == PHOTOGRAPHS) & table.index.isin(later)
    last = (table["task"] == MNIST) & ~table.index.isin(["SAM", "EMA"])
    found = {}
    for family in (table, table[~last], table[~last & ~added]):
        sam = (family["task"] == DIGITS) & (family.index == "SAM")
        (p,) = statistics.holm(family["p"])[sam]
        (wilcoxon,) = statistics.holm(family["p_wilcoxon"])[sam]
        found[len(family)] = p
        assert (wilcoxon < 0.05) == (p < 0.05)
    assert found == pytest.approx({55: 0.071, 36: 0.056, 29: 0.046}, abs=0.0006)
    names = zip(table["task"], table.index, strict=True)
    nso = [name == (PHOTOGRAPHS, "NSO") for name in names]
    (now,) = table["p_holm"][nso]
    (before,) = statistics.holm(table["p"][~last])[pd.Series(nso, table.index)[~last]]
    assert [before, now] == pytest.approx([0.0497, 0.0618], abs=0.0002)


def test_on_which_gpu_the_photographs_were_trained() -> None:
    methods = compare.select([f"{PHOTOGRAPHS}/*"])["method"].unique()
    found = {
        name: records.load(f"{PHOTOGRAPHS}/{name}")["provenance"]["device"]
        for name in methods
    }
    assert sorted({name.split()[1] for name in found.values()}) == ["H100", "H200"]
    other = [name for name in methods if found[name] != found["ERM"]]
    assert "H100" in found["ERM"] and len(other) == 7
    assert "NSO-EMA" in other and not {"SAM", "NSO"} & set(other)


def test_the_lower_test_losses_of_another_machine() -> None:
    table = on_small_images("test_loss")
    table = table[(table["task"] == PHOTOGRAPHS) & (table["p_holm"] < 0.05)]
    assert (table["difference"] < 0).all()
    devices = {
        name: records.load(f"{PHOTOGRAPHS}/{name}")["provenance"]["device"]
        for name in ("ERM", *table.index)
    }
    other = {name for name in table.index if devices[name] != devices["ERM"]}
    assert other == {"ASAM", "SWA", "SAM-EMA", "NSO-EMA"}
    assert set(table.index) - other == {"SAM", "NSO", "SoftAD"}


def test_the_rates_that_were_tried_on_photographs() -> None:
    for method, largest, chosen in (
        ("ERM", 0.8, 0.32),
        ("SAM", 0.44, 0.44),
        ("NSO-EMA", 0.71, 0.71),
    ):
        record = records.load(f"{PHOTOGRAPHS}/{method}")
        rates = [setting["lr"] for setting in record["settings"]]
        assert max(rates) == pytest.approx(largest, abs=0.005)
        taken = rates[record["selection"]["setting"]]
        assert taken == pytest.approx(chosen, abs=0.005)


def test_at_larger_rates_no_method_is_more_accurate() -> None:
    runs = compare.select([f"{LARGER}/*"])
    assert runs.groupby("method")["seed"].nunique().eq(5).all()
    assert {
        record["provenance"]["device"] for record in compare.loaded([f"{LARGER}/*"])
    } == {"NVIDIA H200"}
    tests = compare.paired(runs, "ERM", "test_accuracy")
    table = verdicts.verdicts(tests, "test_accuracy", 0.01).set_index("method")
    assert len(table) == 13
    none = table.index[table["verdict"] == "no gain worth having"]
    assert set(table.index) - set(none) == {"NSO"}
    assert table.loc["NSO", "verdict"] == "inconclusive"
    assert (table["p_holm"] > 0.05).all()
    lower = table.index[table["difference"] < -0.016]
    assert set(lower) == {"EMA", "Flooding", "FAM"}
    loss = compare.paired(runs, "ERM", "test_loss").set_index("method")
    better = loss[loss["p_holm"] < 0.05]["difference"]
    names = {"SAM", "SAM-EMA", "GNP", "ASAM", "SoftAD", "NSO", "NSO-EMA"}
    assert set(better.index) == names
    assert [better.min(), better.max()] == pytest.approx([-0.104, -0.067], abs=0.001)
    before = on_small_images("test_loss")
    before = before[before["task"] == PHOTOGRAPHS]["p_holm"] < 0.05
    assert names - set(before.index[before]) == {"GNP"}
    means = runs.groupby("method")[["train_accuracy", "test_ece"]].mean()
    poorer = means.loc[list(names), "train_accuracy"] < 0.95
    assert set(poorer.index[~poorer]) == {"SoftAD"}
    assert means.loc["ERM", "train_accuracy"] == pytest.approx(0.991, abs=0.0005)
    errors = {"SAM": 0.060, "SoftAD": 0.018, "ERM": 0.125}
    for method, error in errors.items():
        assert means.loc[method, "test_ece"] == pytest.approx(error, abs=0.0006)


def searched_again(metric: str = "test_accuracy") -> pd.DataFrame:
    """Digits and MNIST with larger rates against plain training: family Q."""
    names = [f"images-larger-rates/{name}/*" for name in SMALL_IMAGES[:2]]
    tests = compare.paired(compare.select(names), "ERM", metric)
    gain = 0.005 if metric == "test_accuracy" else None
    return verdicts.verdicts(tests, metric, gain)


def test_searched_again_sam_gains_on_mnist_and_nothing_does_on_digits() -> None:
    table = searched_again()
    assert len(table) == 42 and (table["n"] == 15).all()
    assert not (table["verdict"] == "at an edge").any()
    digits = table["task"].str.endswith("digits-mlp")
    mnist = table[~digits].set_index("method")
    assert set(mnist.index[mnist["verdict"] == "better"]) == {"SAM"}
    assert set(mnist.index[mnist["verdict"] == "worse"]) == {"AdamW", "SoftAD"}
    assert mnist.loc["ASAM", "p_holm"] > 0.05
    digits = table[digits].set_index("method")
    assert (digits["p_holm"] > 0.4).all()
    assert digits.loc["SAM", "verdict"] == "inconclusive"
    assert digits["difference"].idxmax() == mnist["difference"].idxmax() == "SAM"
    loss = searched_again("test_loss").groupby("task")["verdict"].value_counts()
    better = loss.xs("better", level="verdict")
    assert better.tolist() == [20, 18]  # of 21 each: nearly every method
    assert loss.xs("worse", level="verdict").tolist() == [1, 1]


def test_six_methods_on_mnist_are_nearly_plain_training_at_another_rate() -> None:
    task = f"images-larger-rates/{SMALL_IMAGES[1]}"
    plain = records.load(f"{task}/ERM")
    best = plain["settings"][plain["selection"]["setting"]]
    assert best["lr"] == pytest.approx(0.67, abs=0.005)
    table = searched_again().query("task == @task").set_index("method")
    six = ["Flooding", "IFlood", "FAM", "NSO", "WeightNoise", "EMA"]
    for method in six:
        record = records.load(f"{task}/{method}")
        searched = record["settings"][: record["selection"]["budget"]]
        chosen = dict(searched[record["selection"]["setting"]])
        assert chosen.pop("lr") == pytest.approx(0.27, abs=0.005)
        ((name, value),) = chosen.items()
        assert value == min(setting[name] for setting in searched)
    losses = -100 * table.loc[six, "difference"]
    assert [losses.min(), losses.max()] == pytest.approx([0.12, 0.19], abs=0.005)


def test_sams_gain_on_mnist_is_left_at_equal_passes() -> None:
    """Family R: plain training of twice the epochs, under the same seeds."""
    task = f"images-larger-rates/{SMALL_IMAGES[1]}"
    longer = f"twice-the-epochs/{SMALL_IMAGES[1]}/ERM"
    sam, plain = (compare.select([name]) for name in (f"{task}/SAM", longer))
    epochs = [records.load(f"{task}/SAM"), records.load(longer)]
    assert [record["task"]["epochs"] for record in epochs] == [20, 40]
    assert records.load(longer)["selection"]["at_edge"] == []
    runs = pd.concat([sam, plain.assign(task=sam["task"].iloc[0])])
    (row,) = compare.paired(runs, "ERM", "test_accuracy").itertuples()
    numbers = [100 * row.difference, 100 * row.interval]
    assert row.n == 15 and numbers == pytest.approx([0.35, 0.14], abs=0.006)
    assert row.p < 0.001 and row.p_wilcoxon < 0.01


def test_at_larger_rates_it_is_plain_training_that_changed() -> None:
    """Chapter 12: in points, under the same seeds."""
    tables = [
        100 * compare.wide(compare.select([f"{task}/*"]), "test_accuracy").droplevel(0)
        for task in (PHOTOGRAPHS, LARGER)
    ]
    changes = {"ERM": (1.14, 0.55), "SAM": (-0.12, 0.28), "NSO": (0.35, 0.24)}
    changes["NSO-EMA"] = -0.98, 1.18
    for method, (mean, half) in changes.items():
        change = tables[1][method] - tables[0][method]
        assert len(change) == 5
        assert statistics.interval(change) == pytest.approx((mean, half), abs=0.006)


def test_what_a_larger_rate_explains_on_photographs() -> None:
    """Of the gains of the chosen settings, in points, in the selection runs."""
    nets = compare.nets([f"{LARGER}/*"])
    accuracy = 100 * nets.set_index(["method", "setting", "seed"])["test_accuracy"]
    plain = accuracy["ERM"].unstack("seed")
    own, first = plain.loc[7], plain.columns[0]  # a rate of 0.86
    leads = {"SAM": (6, 1.6, 1.0), "SAM-EMA": (4, 1.9, 0.7), "GNP": (4, 1.3, 0.0)}
    for method, (nearest, at_its_rate, at_own_rates) in leads.items():
        chosen = records.load(f"{LARGER}/{method}")["selection"]["setting"]
        lead = accuracy[method][chosen][first]
        assert lead - plain.loc[nearest, first] == pytest.approx(at_its_rate, abs=0.05)
        assert lead - own[first] == pytest.approx(at_own_rates, abs=0.05)
    assert plain[first].idxmax() == 8  # a rate of 1.2
    ema = accuracy["EMA"].unstack("seed")[first]
    rates = [s["lr"] for s in records.load(f"{LARGER}/EMA")["settings"]]
    middle = ema[[0.57 < rate < 0.67 for rate in rates]]
    assert middle.sort_values().tolist()[1:] == pytest.approx([62.9, 63.2], abs=0.1)
    assert ema[3] == pytest.approx(61.3, abs=0.1) and rates[3] > 1.49
    nets = compare.nets([f"{PHOTOGRAPHS}/*"])
    accuracy = 100 * nets.set_index(["method", "setting", "seed"])["test_accuracy"]
    first = nets["seed"].min()
    lead = accuracy["ASAM", 8, first] - accuracy["ERM", 6, first]
    assert lead == pytest.approx(1.0, abs=0.06)


def test_the_rates_that_were_not_tried_on_photographs() -> None:
    """In the second design, by the methods of chapter 12's figure."""
    for method in ("SAM", "NSO", "EMA"):
        rates = [
            setting["lr"] for setting in records.load(f"{LARGER}/{method}")["settings"]
        ]
        assert not any(0.28 < rate < 0.57 or 0.67 < rate < 1.4 for rate in rates)
    chosen = {
        method: record["settings"][record["selection"]["setting"]]["lr"]
        for method in ("ERM", "SAM", "NSO")
        for record in compare.loaded([f"{LARGER}/{method}"])
    }
    assert chosen == pytest.approx(
        {"ERM": 0.864, "SAM": 0.578, "NSO": 0.578}, abs=0.001
    )
    edges = [r["selection"]["at_edge"] for r in compare.loaded([f"{LARGER}/*"])]
    assert edges == [[]] * 14


def test_the_figure_of_the_readme_is_drawn_from_the_records() -> None:
    """Otherwise: `headline.save(Path("book/_static"))`."""
    file = Path(__file__).parents[2] / "book" / "_static" / headline.FILE
    assert f">{headline.description()}<" in file.read_text(encoding="utf-8")


def test_at_equal_passes_the_figure_says_what_the_table_says() -> None:
    """Although its families have the methods of one pass, too."""
    rules = scoreboard.rules(images="none/*", one_rate="none/*")
    views = scoreboard.views({"equal": rules["equal passes, constant"]}, ["ERM", "EMA"])
    here = views["place"].eq(scoreboard.PLACES[0].words)
    views = views[here & views["metric"].eq("test_accuracy")]
    plain = [f"plane/*/{name}/narrow-tuned" for name in ("ERM", "EMA")]
    runs = compare.select(["plane/*/narrow-tuned-equal-passes", *plain])
    for baseline in ("ERM", "EMA"):
        shown = views[views["baseline"] == baseline].set_index("method")
        table = judged(runs, baseline)
        assert len(table) < len(shown)
        assert (shown.loc[table.index, "verdict"] == table["verdict"]).all()


def test_what_is_said_of_the_published_defaults() -> None:
    """All 22, and plain training's own, are worse than plain training with a tuned rate;
    where the rate falls, ten are worse than plain training's own, too."""
    least = {"": 0.0065, "-cosine": 0.0125}
    for end, loss in least.items():
        pattern = [f"plane/*/narrow-tuned{end}"]
        defaults = compare.on_all_tasks(compare.select(pattern, "default"))
        tuned = compare.select(pattern)
        tuned = tuned[tuned["method"] == "ERM"].assign(method="tuned")
        table = judged(pd.concat([defaults, tuned]), "tuned")
        assert len(table) == 23
        assert (table["verdict"] == "worse").all()
        assert table["difference"].max() < -loss
    falling = compare.select(["plane/*/narrow-tuned-cosine"], "default")
    table = judged(compare.on_all_tasks(falling), "ERM")
    worse = table.loc[table["verdict"] == "worse", "difference"].drop(
        ["EMA", "SAM-EMA", "NSO-EMA"]
    )
    assert len(worse) == 7
    assert worse.nsmallest(2).round(3).to_dict() == {"LookSAM": -0.013, "ASAM": -0.010}


def test_what_is_said_of_the_nets_of_a_paper() -> None:
    """Fifteen planned tests on three sets, as chapter 14 tells them."""
    constant = compare.select(["plane/*/*/coarse-grid"])
    falling = compare.select(["plane/*/*/coarse-grid-cosine"])
    wide = pd.concat([constant, falling.assign(method="ERM, falling")])
    wide["task"] = wide["task"].str.removeprefix("plane/").str.removesuffix("-0.05")

    def tests(metric: str, worth: float | None) -> pd.DataFrame:
        table = verdicts.verdicts(compare.paired(wide, "ERM", metric), metric, worth)
        assert len(table) == 15
        return table.set_index(["method", "task"])

    accuracy, loss = tests("test_accuracy", 0.005), tests("test_loss", None)
    better = accuracy.index[accuracy["verdict"] == "better"]
    assert set(better) == {
        ("SAM", "gaussian"),
        ("SAM", "sinusoid"),
        ("Flooding", "gaussian"),
    }
    gain = 100 * accuracy["difference"]
    assert abs(gain["SAM", "spiral"]) < 0.1 and abs(gain["Flooding", "spiral"]) < 0.1
    edges = accuracy.index[accuracy["at_edge"]]
    assert set(edges) == {("EMA", "gaussian"), ("EMA", "sinusoid")}
    for task in ("gaussian", "sinusoid"):
        assert 0.6 < gain["EMA", task] / gain["SAM", task] < 1
        for method in ("Flooding", "SoftAD"):
            assert loss.loc[(method, task), "verdict"] == "better"
        assert loss.loc[("SAM", task), "verdict"] == "inconclusive"
        small = compare.select([f"plane/{task}-0.05/ERM/narrow-tuned"])
        most = wide[wide["task"] == task].groupby("method")["test_accuracy"].mean()
        assert small["test_accuracy"].mean() > most.max() + 0.003
    flooding = [
        chosen["level"]
        for task in ("gaussian", "spiral")
        for chosen in [setting_of(f"plane/{task}-0.05/Flooding/coarse-grid")]
    ]
    assert flooding[0] == pytest.approx(0.23, abs=0.005)
    assert flooding[1] == min(
        setting["level"]
        for setting in records.load("plane/spiral-0.05/Flooding/coarse-grid")[
            "settings"
        ]
    )


def setting_of(name: str) -> dict[str, float]:
    """The setting that validation chose."""
    record = records.load(name)
    setting: dict[str, float] = record["settings"][record["selection"]["setting"]]
    return setting
