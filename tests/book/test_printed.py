"""What cells print, as the pages set it."""

from __future__ import annotations

import pytest

from flatnb.book.printed import paragraphs


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("one sentence.\n", [(False, "one sentence.")]),
        ("a:\n  b\n\nc\n", [(False, "a:"), (True, "b"), (False, "c")]),
        ("-0.10 ± 0.20, from -1 to 1", [(False, "−0.10 ± 0.20, from −1 to 1")]),
        ("1e-06 on 2026-11-27, x-1", [(False, "1e-06 on 2026-11-27, x-1")]),
        ("equal-compute [-1, -.5]", [(False, "equal-compute [−1, −.5]")]),
        ("", []),
    ],
)
def test_sentences_are_paragraphs(printed: str, shown: list[tuple[bool, str]]) -> None:
    assert paragraphs(printed) == shown


@pytest.mark.parametrize(
    "printed",
    ["SAM  0.1\nERM  0.2", "by hand       4.5", "a sentence.\n        ^ here", "a\tb"],
)
def test_what_is_aligned_stays_as_it_is(printed: str) -> None:
    assert paragraphs(printed) is None
