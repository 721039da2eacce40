"""The form of a record: JSON text to and from plain data, checked.

records.schema.json says what each part is; `check` adds what a schema cannot say.
Reading a text runs no code, whatever it holds.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flatnb._checks import shown


class RecordError(ValueError):
    """A record, its name or a path into it that does not hold; it says what to do."""


# --- reading ------------------------------------------------------------------------

# Characters that a terminal takes for commands or no file takes as text, as they stand
# or as JSON escapes them: after an odd number of backslashes.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]"
    r"|(?<!\\)(?:\\\\)*\\(?:[bfr]|u00(?:0[0-8b-fB-F]|1|7[fF]|[89])|u[dD][89a-fA-F])"
)


def parse(text: str, label: str = "this") -> dict[str, Any]:
    """The record that a text holds; `label`, its file, is for the error."""
    try:
        record = json.loads(
            text,
            parse_constant=_finite,
            parse_float=_finite,
            parse_int=_integer,
            object_pairs_hook=_object,
        )
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{label} is not JSON: {one_line(str(error))}") from None
    if control := _CONTROL.search(text):
        line = text.count("\n", 0, control.start()) + 1
        raise RecordError(
            f"{label} is not a valid record: line {line} has a character that cannot "
            "be shown"
        )
    check(record, label)
    return record


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{one_line(text)} is no finite number; write null")
    return number


def _integer(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= (number := int(text)) < 2**63:
        raise ValueError(f"{one_line(text)} is too large; an integer has 64 bits")
    return number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {shown(twice)} stands twice in one object")
    return unique


@functools.cache
def schema() -> dict[str, Any]:
    """The schema, as JSON."""
    path = Path(__file__).with_name("records.schema.json")
    return json.loads(path.read_text(encoding="utf-8"))


def check(record: Any, label: str = "this") -> None:
    """Check that this is a record.

    Args:
        record: anything.
        label: what the error calls it.

    Raises:
        RecordError: naming each fault and its place.
    """
    try:  # the shapes can be looked at only where the form holds
        faults = _form_faults(record) or list(_shape_faults(record))
    except (RecursionError, ValueError) as error:  # nested deeply, integers too long
        faults = [f"record: {error}"]
    if faults:
        lines = "; ".join(map(one_line, faults[:5]))
        ending = "; and more" if len(faults) > 5 else ""
        raise RecordError(f"{label} is not a valid record: {lines}{ending}")


def _form_faults(record: Any) -> list[str]:
    """What breaks the schema, the most particular first; tables of numbers aside.

    Those are for `_shape_faults`: jsonschema looks at each number for itself, and would
    take 20 s for all records.
    """
    if isinstance(record, dict) and isinstance(record.get("final"), dict):
        record = {**record, "final": {name: [] for name in record["final"]}}
    errors = sorted(
        _validator().iter_errors(record), key=lambda error: -len(error.path)
    )
    return [f"record{error.json_path[1:]}: {error.message}" for error in errors]


@functools.cache
def _validator() -> Any:
    """Of the schema, for which 1.0 is no integer: it would be no index, either."""
    import jsonschema

    draft = jsonschema.Draft202012Validator
    kinds = draft.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    return jsonschema.validators.extend(draft, type_checker=kinds)(schema())


def one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 160 else f"{text[:80]} … {text[-77:]}"


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_table(table: Any, rows: int, columns: int) -> bool:
    """Whether it is a list of `rows` lists of `columns` numbers or nulls."""
    return (
        isinstance(table, list)
        and len(table) == rows
        and all(isinstance(row, list) and len(row) == columns for row in table)
        and all(set(map(type, row)) <= {int, float, type(None)} for row in table)
    )


def _shape_faults(record: Mapping[str, Any]) -> Iterator[str]:
    """What a schema cannot say: lists that belong together have one length, indices are
    in range. `record` is of the schema's form."""
    settings, seeds = len(record["settings"]), record["seeds"]
    curves, selection = record["curves"], record["selection"]
    if not settings or not seeds:
        yield "record needs a setting and a seed"
    if len(set(seeds)) < len(seeds):
        yield "record.seeds has one twice"
    for metric, table in record["final"].items():
        if not _is_table(table, settings, len(seeds)):
            size = f"{settings} settings × {len(seeds)} seeds"
            yield f"record.final.{metric} is not {size}"
    for metric, table in curves["metrics"].items():
        epochs = len(curves["epochs"])
        if not _is_table(table, len(seeds), epochs):
            yield (
                f"record.curves.metrics.{metric} is not {len(seeds)} seeds × "
                f"{epochs} epochs"
            )
    choices = {
        "curves.setting": curves["setting"],
        "selection.chosen": selection["chosen"],
    }
    if "otherwise" in selection:
        choices["selection.otherwise.chosen"] = selection["otherwise"]["chosen"]
    for place, indices in choices.items():
        if len(indices) != len(seeds) or max(indices, default=0) >= settings:
            yield f"record.{place} is not one index into settings for each seed"
    if selection["per"] == "task" and len(set(selection["chosen"])) > 1:
        yield "record.selection.chosen differs between seeds, but is per task"
    for failure in record["failures"]:
        if failure["setting"] >= settings or failure["seed"] not in seeds:
            yield "record.failures names setting {setting}, seed {seed}".format(
                **failure
            )
    hyperparameters = {name for setting in record["settings"] for name in setting}
    for name in sorted(hyperparameters & {"seed", *record["final"]}):
        yield f"record.settings has a hyperparameter named like the column {name}"
    if set(record["sample"]["metrics"]) != set(record["sample"]["tolerance"]):
        yield "record.sample does not have one tolerance for each metric"


# --- writing ------------------------------------------------------------------------

_RESULTS = (
    "record.final",
    "record.curves",
    "record.sample.metrics",
    "record.provenance",
)


def plain(value: Any, place: str) -> Any:
    """A value as JSON has it; results are rounded, or None if they are not finite."""
    if hasattr(value, "tolist"):  # arrays, tensors, NumPy's numbers
        value = value.tolist()
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise RecordError(
                    f"{place} has the key {shown(key)}; keys must be text"
                )
        return {key: plain(part, f"{place}.{key}") for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part, f"{place}[{index}]") for index, part in enumerate(value)]
    if isinstance(value, float):
        if place.startswith(_RESULTS):
            return float(f"{value:.6g}") if math.isfinite(value) else None
        if not math.isfinite(value):
            raise RecordError(f"{place} is {value}; only a result may lack a number")
        return value
    if value is None or isinstance(value, str | int):
        return value
    raise RecordError(
        f"{place} is of type {type(value).__name__}, which JSON cannot represent"
    )


def dump(value: Any, depth: int = 0, listed: bool = False) -> str:
    """JSON for readers and small diffs: innermost lists and objects on a line.

    Keys below the top are sorted.
    """
    parts = list(value.values()) if isinstance(value, dict) else value
    nested = isinstance(value, dict | list) and any(
        isinstance(part, dict | list) for part in parts
    )
    if not value or (not nested and (listed or not isinstance(value, dict))):
        return json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True)
    if isinstance(value, dict):
        items = sorted(value.items()) if depth else value.items()
        lines = [f"{dump(key)}: {dump(part, depth + 1)}" for key, part in items]
    else:
        lines = [dump(part, depth + 1, listed=True) for part in value]
    first, last = "{}" if isinstance(value, dict) else "[]"
    gap = "\n" + " " * (depth + 1)
    end = "" if depth else "\n"
    return f"{first}{gap}{f',{gap}'.join(lines)}\n{' ' * depth}{last}{end}"
