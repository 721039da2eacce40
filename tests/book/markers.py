"""Numbers typed in prose are held against the records that they come from.

A marker stands immediately after the number:

    SAM reaches 93.1 %<!-- record: plane/circle-0.05/SAM:selected.test_accuracy.mean -->

    marker = "<!-- record: " name ":" path " -->"
    number = [sign] digits ["." digits] ["e" [sign] digits] [[space] "%"]  ("%": 100 ×)

The number must be what the path leads to, to within half a unit of its last digit. A
path has the record's own keys and the indices of its lists; `selected.<metric>`, the
final metric of each seed at the setting chosen for it; and behind a list of numbers
`mean`, or `interval`, the half-width of the mean's 95 % interval.

    SAM gains 0.3<!-- gain: plane/*/narrow-tuned:SAM --> points

A gain is that over ERM in test accuracy, in points: of the fresh runs of all records that
fit the pattern, by `compare.overall`, within a seed where the tasks share what it draws;
with `.interval`, the half-width of its interval.
Several patterns are parted by commas. `SoftAD/Flooding` is the gain of SoftAD over
Flooding.

    lower in 56 %<!-- flatter: plane/*/narrow-tuned:trace --> of the pairs

Of all pairs of fresh runs, the share in which the net of the smaller measure has the
lower test loss, by `verdicts.flatter`; of another metric with `trace.test_error`.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Any

from flatnb.results import compare, records, verdicts
from flatnb.results.statistics import interval

# Whatever means to be a marker, right or wrong.
_COMMENT = re.compile(r"<!--\s*(?:record|gain|flatter)\b.*?-->", re.S | re.I)
_MARKER = re.compile(
    r"<!-- (?P<kind>record|gain|flatter): (?P<name>[^\s:]+):(?P<path>\S+) -->"
)
_NUMBER = re.compile(
    r"(?<![\w.,])(?P<number>[-−+]?[0-9]+(?:\.[0-9]+)?(?:[eE][-−+]?[0-9]+)?)(?P<percent>\s?%)?\Z"
)


def value(name: str, path: str) -> Any:
    """What stands in a record at a path."""
    record = records.load(name)
    record = {**record, "selected": records.selected(record)}
    path, _, last = path.rpartition(".")
    if last not in ("mean", "interval"):
        return records.lookup(record, f"{path}.{last}" if path else last)
    values = records.lookup(record, path)
    if not isinstance(values, list) or not all(map(_is_number, values)):
        raise records.RecordError(
            f"{last} is of lists of numbers; null is a failed run"
        )
    mean, half = interval(values)
    return float(mean if last == "mean" else half)


def gain(pattern: str, path: str) -> float:
    """The gain of the method that the path begins with, or its interval, in points."""
    names, _, end = path.partition(".")
    method, _, baseline = names.partition("/")
    baseline = baseline or "ERM"
    runs = compare.select(pattern.split(","))
    if not {method, baseline} <= set(runs["method"]):
        raise records.RecordError(f"no gain {path} in {pattern}")
    runs = runs[runs["method"].isin([baseline, method])]
    shared = compare.share_seeds(runs["task"].unique())
    tests = compare.overall(runs, baseline, "test_accuracy", shared=shared)
    tests = tests.set_index("method")
    if method not in tests.index or end not in ("", "interval"):
        raise records.RecordError(f"no gain {path} in {pattern}")
    return 100 * float(tests.loc[method, end or "difference"])


def flatter(pattern: str, path: str) -> float:
    """The share of pairs in which the flatter net is the better one."""
    measure, _, metric = path.partition(".")
    try:
        table = verdicts.flatter(pattern, measure, metric or "test_loss")
        return float(table["wins"].sum() / table["pairs"].sum())
    except KeyError as error:
        raise records.RecordError(f"no pairs of {path} in {pattern}") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def faults(text: str) -> list[str]:
    """The markers in prose that are ill-formed, lead nowhere, or follow another number."""
    lines = []
    for comment in _COMMENT.finditer(text):
        before = text[max(0, comment.start() - 60) : comment.start()]
        if why := _fault(comment.group(), before):
            line = text.count("\n", 0, comment.start()) + 1
            lines.append(f"line {line}: {comment.group()}: {why}")
    return lines


def _fault(comment: str, before: str) -> str | None:
    marker, typed = _MARKER.fullmatch(comment), _NUMBER.search(before)
    if marker is None:
        return "not of the form <!-- record: name:key.path -->, <!-- gain: … -->, …"
    if typed is None:
        return f"no number stands directly before it, but {before[-10:]!r}"
    try:
        find = {"record": value, "gain": gain, "flatter": flatter}[marker["kind"]]
        held = find(marker["name"], marker["path"])
    except records.RecordError as error:
        return str(error)
    if not _is_number(held) or not math.isfinite(held):
        return f"leads to {held!r}, not to a number"
    number = Decimal(typed["number"].replace("−", "-"))
    exact = Decimal(repr(held)) * (100 if typed["percent"] else 1)
    half = Decimal(1).scaleb(int(number.as_tuple().exponent)) / 2
    if abs(number - exact) <= half:
        return None
    return f"{number} is typed, and the record has {exact}"
