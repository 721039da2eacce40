"""An audit's words: checks with verdicts, links, lines from the records."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flatnb import audit


def test_a_link_goes_to_lines_and_survives_brackets() -> None:
    source = audit.Source("owner/name", "0a1b", "a (b)/c.py")
    address = "https://github.com/owner/name/blob/0a1b/a%20%28b%29/c.py"
    assert source.at() == f'<a href="{address}">c.py</a>'
    assert source.at(3, 5) == f'<a href="{address}#L3-L5">c.py:3–5</a>'


def test_checks_count_and_name_severities(capsys: pytest.CaptureFixture[str]) -> None:
    checks = audit.Checks(
        {"a": audit.Claim("A", "x", "y"), "b": audit.Claim("B", "x", "y", "cosmetic")}
    )
    checks.add("a", True, "0")
    checks.add("b", False, "1")
    assert "B: x. The code differs, cosmetic: 1" in capsys.readouterr().out
    assert (checks.count("agrees"), checks.count("differs")) == (1, 1)
    line = "Checks, chosen by hand: 2. Agree: 1. Differ: 1, by severity: cosmetic 1."
    assert checks.summary() == line
    shown = checks.table().data
    assert len(shown.columns) <= 6
    assert shown.iloc[1, 0] == "<b>B</b>: x"
    assert shown["verdict"].tolist() == ["agrees", "differs, cosmetic"]


def test_bad_names_are_refused() -> None:
    with pytest.raises(ValueError, match="severity"):
        audit.Claim("A", "x", "y", "grave")
    with pytest.raises(ValueError, match="name"):
        audit.Checks({}).add("a", True, "0")


def test_rows_are_empty_without_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(audit.TASKS, "none", "images/FashionMNIST-mlp/{}")
    families = [*audit.FAMILIES, [("none", "ERM", audit.ALL)]]
    monkeypatch.setattr(audit, "FAMILIES", families)
    assert audit.gain("none", "AdaFlood") == {}
    assert audit.ending("none", "AdaFlood", "trace") == {}
    assert "GPU minutes" in audit.unrecorded(["none"], ["AdaFlood"])


def test_a_comparison_has_a_family() -> None:
    with pytest.raises(ValueError, match="no family"):
        audit.test_of(audit.PLANE, "SAM", "SoftAD", "test_accuracy")


def test_at_equal_compute_a_method_of_one_pass_trains_for_all_the_epochs() -> None:
    found = [
        audit.test_of(task, "SoftAD", "SAM", "test_accuracy").difference
        for task in (audit.PLANE, audit.EQUAL)
    ]
    of_sam = [
        audit.test_of(task, "SAM", "ERM", "test_accuracy").difference
        for task in (audit.PLANE, audit.EQUAL)
    ]
    assert found[1] - found[0] == pytest.approx(of_sam[0] - of_sam[1])
    assert audit.gain(audit.EQUAL, "SoftAD") == {}  # that is the test at equal epochs


def row(
    verdict: str, agree: bool = True, p_holm: float = 0.5, difference: float = -0.02
) -> audit.Row:
    test = SimpleNamespace(
        difference=difference,
        interval=0.025,
        n=5,
        p_holm=p_holm,
        verdict=verdict,
        detectable=0.1,
        agree=agree,
    )
    return audit.row_of(test, "digits", "SAM", "test_accuracy", 0.01)


def test_verdicts_have_the_number_that_they_rest_on() -> None:
    found = row("better")
    assert (found["difference"], found["n"]) == ("-2.00", "5")
    assert found["interval"].split() == ["±", "2.50"]
    assert row("no gain worth having")["verdict"].endswith("having (at most +0.50)")
    worse = row("no gain worth having", difference=-0.04)["verdict"]
    assert worse.endswith("(the interval ends at -1.50)")
    assert row("inconclusive")["verdict"] == "inconclusive (detectable: 10.00)"
    assert row("better", agree=False)["verdict"].endswith("; Wilcoxon's test disagrees")
    assert row("at an edge")["verdict"] == "no verdict: at an edge"
    found = row("at an edge", p_holm=0.01)["verdict"]
    assert found == "no verdict, though significant: at an edge"


def test_a_claim_has_a_tally_and_tables(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    audit.evidence([row("better"), {}], [{}], missing=["", "all"])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["Accuracy against SAM (n = 5): 1 better.", "Not tested: all."]
    (table,) = shown
    heads = [
        "task",
        "points <br>minus SAM",
        "interval, n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}5",
        "verdict",
    ]
    assert list(table.data) == heads


def test_a_table_names_what_its_rows_do_not_share() -> None:
    rows = [row("better"), row("inconclusive") | {"against": "ERM", "n": "6"}]
    assert audit.tally(rows) == "Accuracy: 1 better, 1 inconclusive."
    heads = ["task", "against", "points", "interval", "n", "verdict"]
    assert list(audit.rows_table(rows)) == heads
    both = [
        audit.ending(audit.PLANE, "NSO", "trace", fitting=fit) for fit in (True, False)
    ]
    assert audit.tally(both) == "Trace: 1 descriptive, 1 smaller."
    heads = ["task", "trace over ERM's", "n", "training loss; ERM's", "verdict"]
    assert list(audit.rows_table(both)) == heads
    assert audit.tally([{}]) == "" and audit.rows_table([{}]).empty


def test_no_audit_table_is_wider_than_six_columns() -> None:
    rows = [
        audit.ending(audit.PLANE, "GNP", measure, fitting=fit)
        for measure in ("trace", "top_eigenvalue")
        for fit in (True, False)
    ]
    assert len(audit.rows_table(rows).columns) == 6


def test_gradient_of_the_small_net() -> None:
    net, x, y = audit.small_net(0)
    loss = torch.nn.functional.cross_entropy(net(x), y)
    size = audit.weights(net).numel()
    assert audit.gradient(loss, net).shape == (size,) == (66,)
