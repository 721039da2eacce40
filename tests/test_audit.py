"""An audit's words: checks with verdicts, links, lines from the records."""

from __future__ import annotations

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
    line = "Checks, chosen by hand: 2. Agree: 1. Differ: 1 cosmetic."
    assert checks.summary() == line
    shown = checks.table().data
    assert len(shown.columns) <= 6
    assert shown.iloc[1, 0] == "<b>B</b><br>differs, cosmetic"


def test_bad_names_are_refused() -> None:
    with pytest.raises(ValueError, match="severity"):
        audit.Claim("A", "x", "y", "grave")
    with pytest.raises(ValueError, match="name"):
        audit.Checks({}).add("a", True, "0")


def test_lines_are_empty_without_records() -> None:
    assert audit.gain("MNIST", "AdaFlood") == ""
    assert audit.ending("MNIST", "AdaFlood", "trace") == ""
    assert "GPU minutes" in audit.unrecorded(["MNIST"], ["AdaFlood"])


def test_a_comparison_has_a_family() -> None:
    with pytest.raises(ValueError, match="no family"):
        audit.test_of(audit.PLANE, "SAM", "SoftAD", "test_accuracy")


def test_a_claim_without_result_has_a_dash() -> None:
    (row,) = audit.claims_table({"c": ([""], ["rest"])}).data.to_numpy().tolist()
    assert row == ["c", "–", "rest"]


def test_gradient_of_the_small_net() -> None:
    net, x, y = audit.small_net(0)
    loss = torch.nn.functional.cross_entropy(net(x), y)
    size = audit.weights(net).numel()
    assert audit.gradient(loss, net).shape == (size,) == (66,)
