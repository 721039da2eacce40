"""What the audit's opening says, held against the records."""

import pytest

from flatnb.results import compare, verdicts

PLANE = "plane/*/{}/narrow-tuned"


def gain(method: str, reference: str) -> tuple[float, str]:
    """In points, and the verdict in a family of this test alone."""
    runs = compare.select([PLANE.format(name) for name in (method, reference)])
    assert runs["task"].nunique() == 9
    tests = compare.overall(runs, reference, "test_accuracy")
    row = verdicts.verdicts(tests, "test_accuracy", 0.005).iloc[0]
    return 100 * row["difference"], row["verdict"]


@pytest.mark.parametrize(
    ("method", "reference", "points", "verdict"),
    [
        ("SoftAD", "SAM", -0.5, "worse"),
        ("NSO", "ERM", 0.4, "better"),
        ("FAM", "ERM", 0.0, "no gain worth having"),
    ],
)
def test_gains(method: str, reference: str, points: float, verdict: str) -> None:
    found, words = gain(method, reference)
    assert found == pytest.approx(points, abs=0.1)
    assert words == verdict


@pytest.mark.parametrize(
    ("method", "measure", "ratio"),
    [("NSO", "trace", 0.25), ("FAM", "relative_flatness", 0.5)],
)
def test_flatness(method: str, measure: str, ratio: float) -> None:
    ends = verdicts.endings([PLANE.format(name) for name in (method, "ERM")])
    row = ends.set_index("measure").loc[measure]
    assert row["ratio"] == pytest.approx(ratio, abs=0.05)
    assert row["p_holm"] < 0.05


def test_matrix_sensing() -> None:
    runs = compare.select(["sensing/*"])
    for reference in ("WeightNoise", "GD"):
        pair = runs[runs["method"].isin(["NSO", reference])]
        tests = compare.overall(pair, reference, "distance")
        assert verdicts.verdicts(tests, "distance")["verdict"].tolist() == ["better"]
