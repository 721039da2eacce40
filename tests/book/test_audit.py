"""What the audit's three pages say, held against the records and against their cells."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
from small_book import text_of
from test_book import ROOT, execute, sources

from flatnb import audit
from flatnb.book import run as runner

PAGES = sorted((ROOT / "notebooks").glob("*_audit_*.ipynb"))
VERDICTS = {  # on what the leads say, and on the port of SAM
    "21_audit_losses": {"grid": "differs, changes a baseline"},
    "22_audit_sharpness": {
        "default": "differs, changes results",
        **dict.fromkeys(
            ("dropout", "helper", "option", "biases"), "differs, in a port only"
        ),
    },
    "23_audit_noise": {
        "kappa": "agrees",
        "index": "differs, changes results",
        "rsam-restored": "differs, changes a baseline",
        "bsam-restored": "differs, changes a baseline",
    },
}


@pytest.mark.parametrize(
    ("task", "method", "reference", "metric", "difference", "verdict"),
    [
        (audit.PLANE, "SoftAD", "SAM", "test_accuracy", -0.0056, "worse"),
        (audit.PLANE, "SoftAD", "Flooding", "test_accuracy", -0.002, "worse"),
        (audit.PLANE, "SoftAD", "SAM", "test_loss", 0.015, "worse"),
        (audit.PLANE, "SoftAD", "Flooding", "test_loss", 0.015, "worse"),
        (audit.PLANE, "SoftAD", "SAM", "loss_gap", -0.1, "better"),
        (audit.PLANE, "SoftAD", "Flooding", "loss_gap", -0.107, "better"),
        (audit.PLANE, "SoftAD", "Flooding", "norm", -0.34, "better"),
        (audit.PLANE, "SoftAD", "SAM", "norm", 0.55, "worse"),
        (audit.PLANE, "Flooding", "ERM", "test_accuracy", 0, "no gain worth having"),
        (audit.PLANE, "Flooding", "ERM", "test_loss", -0.006, "better"),
        (
            audit.PLANE,
            "IFlood",
            "ERM",
            "test_accuracy",
            -0.0007,
            "no gain worth having",
        ),
        (audit.PLANE, "IFlood", "ERM", "test_loss", 0.029, "worse"),
        (audit.FALLING, "IFlood", "ERM", "test_accuracy", -0.0003, "at an edge"),
        (audit.PLANE, "AdaFlood", "ERM", "test_accuracy", -0.0019, "worse"),
        (audit.PLANE, "AdaFlood", "ERM", "test_loss", -0.01, "better"),
        (audit.PLANE, "SAM", "ERM", "test_accuracy", 0.003, "better"),
        ("digits", "SAM", "ERM", "test_accuracy", 0.005, "inconclusive"),
        (audit.PLANE, "ASAM", "ERM", "test_accuracy", 0.0016, "better"),
        (audit.PLANE, "GNP", "ERM", "test_accuracy", 0.0027, "better"),
        (audit.PLANE, "GNP", "SAM", "test_accuracy", 0, "no gain worth having"),
        (audit.PLANE, "NSO", "ERM", "test_accuracy", 0.0041, "better"),
        (audit.PLANE, "NSO", "WeightNoise", "test_accuracy", 0.002, "better"),
        (audit.PLANE, "NSO", "SAM", "test_accuracy", 0.0011, "no gain worth having"),
        (audit.PLANE, "FAM", "ERM", "test_accuracy", 0, "no gain worth having"),
        (audit.FALLING, "FAM", "ERM", "test_accuracy", 0, "no gain worth having"),
        (audit.FALLING, "SoftAD", "SAM", "test_accuracy", -0.0036, "worse"),
        (audit.FALLING, "SoftAD", "Flooding", "test_accuracy", -0.0014, "worse"),
        (audit.FALLING, "SoftAD", "SAM", "test_loss", 0.007, "worse"),
        (audit.FALLING, "SoftAD", "Flooding", "test_loss", -0.007, "better"),
        (audit.FALLING, "SoftAD", "SAM", "loss_gap", -0.082, "better"),
        (audit.FALLING, "SoftAD", "Flooding", "loss_gap", -0.09, "better"),
        (audit.FALLING, "SoftAD", "Flooding", "norm", -2.03, "better"),
        (audit.FALLING, "SoftAD", "SAM", "norm", 1.51, "worse"),
        (audit.FALLING, "Flooding", "ERM", "test_accuracy", -0.0011, "worse"),
        (audit.FALLING, "AdaFlood", "ERM", "test_accuracy", -0.0015, "worse"),
        (audit.FALLING, "AdaFlood", "ERM", "test_loss", -0.027, "better"),
        (audit.FALLING, "GNP", "SAM", "test_accuracy", -0.0018, "worse"),
        (audit.FALLING, "NSO", "ERM", "test_accuracy", 0.0012, "better"),
        (audit.FALLING, "NSO", "SAM", "test_accuracy", 0, "no gain worth having"),
        (audit.FALLING, "SAM", "ERM", "test_loss", -0.013, "better"),
        (audit.FALLING, "GNP", "ERM", "test_loss", -0.007, "better"),
        (audit.EQUAL, "SoftAD", "SAM", "test_accuracy", -0.0031, "worse"),
        (audit.EQUAL_FALLING, "SoftAD", "SAM", "test_accuracy", -0.0027, "at an edge"),
        (
            audit.EQUAL,
            "NSO",
            "WeightNoise",
            "test_accuracy",
            -0.002,
            "no gain worth having",
        ),
        (audit.SENSING, "NSO", "WeightNoise", "distance", -0.0022, "better"),
        (audit.SENSING, "NSO", "GD", "distance", -1.81, "better"),
    ],
)
def test_differences(
    task: str, method: str, reference: str, metric: str, difference: float, verdict: str
) -> None:
    test = audit.test_of(task, method, reference, metric)
    assert test.difference == pytest.approx(difference, rel=0.05, abs=0.001)
    assert test.verdict == verdict


@pytest.mark.parametrize("method", ["SAM", "ASAM", "GNP"])
def test_gains_in_the_plane_are_below_half_a_point(method: str) -> None:
    words = audit.gain(audit.PLANE, method)["verdict"]
    assert words == "significantly better, under half a point"
    for task in (audit.FALLING, audit.EQUAL, audit.EQUAL_FALLING):
        assert audit.test_of(task, method, "ERM", "test_accuracy").p_holm > 0.05


@pytest.mark.parametrize("method", ["Flooding", "IFlood", "AdaFlood"])
@pytest.mark.parametrize("task", [audit.PLANE, audit.FALLING])
def test_floods_gain_no_accuracy_in_the_plane(method: str, task: str) -> None:
    test = audit.test_of(task, method, "ERM", "test_accuracy")
    assert test.difference < 0 and test.difference + test.interval < 0.001
    assert test.verdict != "better"


def test_on_small_images_sam_gains_on_mnist() -> None:
    """The second search; in the first one nothing significant has a verdict."""
    for task in (*audit.IMAGES, *audit.LARGER_RATES):
        for method in ("SAM", "ASAM", "GNP"):
            test = audit.test_of(task, method, "ERM", "test_accuracy")
            if task in audit.IMAGES:
                assert test.verdict not in ("better", "worse")
            else:
                significant = (task, method) == ("MNIST, larger rates", "SAM")
                assert (test.p_holm < 0.05) == significant
                assert (test.verdict == "better") == significant
                loss = audit.test_of(task, method, "ERM", "test_loss")
                assert loss.verdict == "better"


def test_one_side_is_not_quite_significantly_better_at_equal_compute() -> None:
    test = audit.test_of(audit.EQUAL, "NSO", "WeightNoise", "test_accuracy")
    assert test.p_holm == pytest.approx(0.055, abs=0.001)  # as the plan has it


def test_at_equal_compute_gnp_and_asam_have_a_lower_test_loss() -> None:
    for method in ("GNP", "ASAM"):
        for task in (audit.EQUAL, audit.EQUAL_FALLING):
            test = audit.test_of(task, method, "ERM", "test_loss")
            assert test.verdict == "better"


def test_on_sentences_trace_and_training_loss_of_nso_are_larger() -> None:
    for task in ("TREC", "SST-2"):
        row = audit.ending(task, "NSO", "trace")
        assert row["verdict"] == "significantly larger"
        ending = audit._endings(task, float("inf"))["trace", "NSO"]
        assert ending.train_loss > ending.baseline_loss


@pytest.mark.parametrize(
    ("method", "measure", "ratio"),
    [
        ("NSO", "trace", 0.25),
        ("FAM", "relative_flatness", 0.5),
        ("GNP", "trace", 0.5),
        ("GNP", "top_eigenvalue", 0.5),
    ],
)
def test_flatness_in_the_plane(method: str, measure: str, ratio: float) -> None:
    row = audit.ending(audit.PLANE, method, measure)
    (number,) = re.findall(r"×\s([\d.]+)\s\[", row["over ERM's"])
    assert float(number) == pytest.approx(ratio, abs=0.05)
    assert row["verdict"] == "significantly smaller"


def test_where_fam_shows_no_gain_worth_having() -> None:
    tasks = [*audit.PLANES, *audit.FINE_TUNING, *audit.IMAGES, *audit.LARGER_RATES]
    found: dict[str, list[str]] = {}
    for task in tasks:
        if row := audit.gain(task, "FAM"):
            found.setdefault(row["verdict"].partition(" (")[0], []).append(task)
    assert found == {
        "no gain worth having": [
            audit.PLANE,
            audit.FALLING,
            "photos",
            "TREC",
            "digits",
            *audit.LARGER_RATES,
        ],
        "no verdict, though significant: at an edge": ["MNIST"],
        "inconclusive": [
            "hand signs, 10 per class",
            "hand signs, 5 per class",
            "SST-2",
            "CIFAR-10",
        ],
    }


def test_on_the_nets_of_the_softad_paper() -> None:
    found = {
        (method, reference, metric): audit.test_of(
            audit.WIDE, method, reference, metric
        )
        for method, reference in (
            ("SoftAD", "SAM"),
            ("SoftAD", "Flooding"),
            ("Flooding", "ERM"),
        )
        for metric in ("test_accuracy", "test_loss")
    }
    assert {key: test.verdict for key, test in found.items()} == {
        ("SoftAD", "SAM", "test_accuracy"): "worse",
        ("SoftAD", "SAM", "test_loss"): "better",
        ("SoftAD", "Flooding", "test_accuracy"): "no gain worth having",
        ("SoftAD", "Flooding", "test_loss"): "worse",
        ("Flooding", "ERM", "test_accuracy"): "better",
        ("Flooding", "ERM", "test_loss"): "better",
    }
    gains = {
        key[:2]: 100 * test.difference for key, test in found.items() if "acc" in key[2]
    }
    assert gains["SoftAD", "SAM"] == pytest.approx(-1.3, abs=0.05)
    assert gains["SoftAD", "Flooding"] == pytest.approx(-0.62, abs=0.005)
    half = 100 * found["SoftAD", "Flooding", "test_accuracy"].interval
    assert half == pytest.approx(0.55, abs=0.005)
    assert gains["Flooding", "ERM"] == pytest.approx(0.8, abs=0.05)


@pytest.fixture
def checked(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Path, audit.Checks]]:
    """A page and its checks at the smoke profile, without its tables of claims."""
    monkeypatch.chdir(ROOT / "notebooks")
    monkeypatch.setattr(sys, "path", list(sys.path))
    dtype = torch.get_default_dtype()
    names: dict[str, Any] = {"__name__": "__main__", "display": print}
    with plt.rc_context():
        for source in sources(request.param, "smoke"):
            if "audit.evidence(" not in source:
                execute(source, names)
        yield request.param, names["checks"]
    torch.set_default_dtype(dtype)
    plt.close("all")


@pytest.mark.parametrize("checked", PAGES, ids=lambda path: path.stem, indirect=True)
def test_the_checks_say_what_the_lead_says(
    checked: tuple[Path, audit.Checks],
) -> None:
    path, checks = checked
    names = {claim.code: name for name, claim in checks.claims.items()}
    verdicts = {names[row["the code"]]: row["verdict"] for row in checks.rows}
    assert set(verdicts) == set(checks.claims)
    assert verdicts | VERDICTS[path.stem] == verdicts
    for code in names:
        assert "https://github.com/" in code or "no file" in code


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_no_lead_counts_checks_that_we_chose(path: Path) -> None:
    assert "checks" not in text_of(runner.read(path)["cells"][0])


def test_at_most_36_checks() -> None:
    cells = [text_of(cell) for path in PAGES for cell in runner.read(path)["cells"]]
    assert 0 < sum(cell.count("audit.Claim(") for cell in cells) <= 36


def test_where_the_sam_family_has_a_lower_test_loss_in_the_plane() -> None:
    better = {
        method: [
            task
            for task in audit.PLANES
            if audit.test_of(task, method, "ERM", "test_loss").verdict == "better"
        ]
        for method in ("SAM", "ASAM", "GNP")
    }
    assert better["GNP"] == list(audit.PLANES)
    assert better["SAM"] == [audit.FALLING]
    assert better["ASAM"] == [audit.EQUAL, audit.EQUAL_FALLING]
