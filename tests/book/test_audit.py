"""What the audit's opening says, held against the records."""

import pandas
import pytest

from flatnb.results import compare, verdicts


def plane(*methods: str) -> list[str]:
    return [f"plane/*/{method}/narrow-tuned" for method in methods]


def compared(runs: pandas.DataFrame, reference: str, metric: str) -> pandas.Series:
    """The one comparison that the runs allow, with a verdict of its own."""
    gain = 0.005 if metric == "test_accuracy" else None
    tests = compare.overall(runs, reference, metric)
    assert len(tests) == 1
    return verdicts.verdicts(tests, metric, gain).iloc[0]


@pytest.mark.parametrize(
    ("method", "reference", "metric", "difference", "verdict"),
    [
        ("SoftAD", "SAM", "test_accuracy", -0.005, "worse"),
        ("SoftAD", "Flooding", "test_accuracy", -0.002, "worse"),
        ("SoftAD", "SAM", "test_loss", 0.015, "worse"),
        ("SoftAD", "Flooding", "test_loss", 0.015, "worse"),
        ("SoftAD", "SAM", "loss_gap", -0.1, "better"),
        ("SoftAD", "Flooding", "loss_gap", -0.1, "better"),
        ("Flooding", "ERM", "test_accuracy", 0.0, "no gain worth having"),
        ("Flooding", "ERM", "test_loss", -0.006, "better"),
        ("NSO", "ERM", "test_accuracy", 0.004, "better"),
        ("FAM", "ERM", "test_accuracy", 0.0, "no gain worth having"),
    ],
)
def test_differences_in_the_plane(
    method: str, reference: str, metric: str, difference: float, verdict: str
) -> None:
    runs = compare.select(plane(method, reference))
    assert runs["task"].nunique() == 9
    row = compared(runs, reference, metric)
    assert row["difference"] == pytest.approx(difference, rel=0.2, abs=0.001)
    assert row["verdict"] == verdict


@pytest.mark.parametrize(
    ("method", "measure", "ratio"),
    [("NSO", "trace", 0.25), ("FAM", "relative_flatness", 0.5)],
)
def test_flatness_in_the_plane(method: str, measure: str, ratio: float) -> None:
    row = verdicts.endings(plane(method, "ERM")).set_index("measure").loc[measure]
    assert row["ratio"] == pytest.approx(ratio, abs=0.05)
    assert row["p_holm"] < 0.05


@pytest.mark.parametrize("reference", ["WeightNoise", "GD"])
def test_matrix_sensing(reference: str) -> None:
    runs = compare.select([f"sensing/*/{name}" for name in ("NSO", reference)])
    assert compared(runs, reference, "distance")["verdict"] == "better"
