"""What the chapter on fine-tuning says in words is what the records say."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from flatnb.experiments.pretrained import EQUAL_PASSES, MORE_SEEDS
from flatnb.results import compare, records, verdicts
from flatnb.results.statistics import holm, interval

SIGNS, TREC, SST2 = "sign-language-digits-5-shots", "trec-10-shots", "sst2-20-shots"
TASKS = [f"finetune/{name}/*" for name in (SIGNS, TREC, SST2)]


@pytest.fixture(scope="module")
def runs() -> pd.DataFrame:
    return compare.select(TASKS)


def test_task_by_task_nothing_is_significant(runs: pd.DataFrame) -> None:
    tests = compare.paired(runs, "ERM", "test_accuracy")
    table = verdicts.verdicts(tests, "test_accuracy", 0.01)
    assert not table["verdict"].isin(["better", "worse"]).any()
    trec = table[table["task"].str.endswith(TREC)]
    assert (trec["verdict"] == "no gain worth having").all()
    assert trec["difference"].abs().max() < 0.0125
    others = table[~table["task"].str.endswith(TREC)]
    assert 0.14 < others["detectable"].median() < 0.17


def test_on_the_mean_of_the_tasks_nso_is_better_and_weight_noise_worse() -> None:
    table = verdicts.gains(TASKS, gain=0.01)
    assert set(table.index[table["verdict"] == "better"]) == {"NSO"}
    assert set(table.index[table["verdict"] == "worse"]) == {"WeightNoise"}
    for name in ("EMA", "ASAM"):
        assert abs(table.loc[name, "difference"]) < 0.002
    situation = next(
        s for s in verdicts.SITUATIONS if s.words.startswith("fine-tuning")
    )
    assert verdicts.recommended(situation).name == "NSO"
    assert verdicts.recommended(situation, passes=2) is None


def test_on_sst2_plain_fine_tuning_got_a_rate_three_times_that_of_the_others() -> None:
    rates = {}
    for method in ("ERM", "NSO", "SAM", "FAM"):
        record = records.load(f"finetune/{SST2}/{method}")
        rates[method] = record["settings"][record["selection"]["setting"]]["lr"]
    plain = rates.pop("ERM")
    assert all(2.9 < plain / rate < 3.1 for rate in rates.values())


def test_the_flattest_nets_of_sst2_are_those_of_plain_fine_tuning(
    runs: pd.DataFrame,
) -> None:
    traces = runs[runs["task"].str.endswith(SST2)].groupby("method")["trace"]
    assert traces.mean().idxmin() == "ERM"
    assert traces.max()["ERM"] < 2
    shares = verdicts.flatter(f"finetune/{SST2}/*", metric="test_loss")["share"]
    assert shares.iloc[0] == pytest.approx(0.2, abs=0.02)


def test_on_hand_signs_the_traces_of_nso_are_a_fifth_of_those_of_plain(
    runs: pd.DataFrame,
) -> None:
    flat = verdicts.endings([f"finetune/{SIGNS}/*"]).set_index(["measure", "method"])
    row = flat.loc["trace", "NSO"]
    assert 0.18 < row["ratio"] < 0.21 and row["p_holm"] > 0.05
    assert flat.loc["trace", "ratio"].idxmin() == "NSO"
    signs = runs[runs["task"].str.endswith(SIGNS)]
    assert signs.groupby("method")["test_accuracy"].mean().idxmax() == "NSO"


def test_what_nso_gains_on_hand_signs_is_compute() -> None:
    def accuracy(method: str, folder: str = SIGNS) -> np.ndarray:
        record = records.load(f"finetune-again/{folder}/{method}")
        assert record["seeds"] == list(MORE_SEEDS)
        return 100 * np.array(record["final"]["test_accuracy"])

    nso = accuracy("NSO")[0]
    plain, longer = accuracy("ERM"), accuracy("ERM", f"{SIGNS}-{EQUAL_PASSES}-epochs")
    others = [*plain, *longer, *(accuracy(m)[0] for m in ("SAM", "WeightNoise", "SWA"))]
    p = holm([stats.ttest_rel(nso, other).pvalue for other in others])
    assert (p < 0.05).tolist() == [True, True, False, False, False, False, True]
    for gap, typed in (
        (nso - longer[0], (-0.1, 3.7)),
        (longer[0] - plain[0], (8.6, 2.4)),
    ):
        assert tuple(map(float, interval(gap))) == pytest.approx(typed, abs=0.05)


def test_on_hand_signs_the_nets_of_sam_have_the_lowest_loss_and_calibration_error() -> (
    None
):
    names = [n for n in records.names() if n.startswith(f"finetune-again/{SIGNS}")]
    assert len(names) == 6
    for metric in ("test_loss", "test_ece"):
        means = {}
        for name in names:
            for i, values in enumerate(records.load(name)["final"][metric]):
                means[name, i] = np.mean(values)
        assert min(means, key=means.__getitem__)[0].endswith("/SAM")
