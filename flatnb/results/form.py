"""The form of a record: JSON text to and from plain data, checked.

records.schema.json says what each part is; `check` adds what a schema cannot say.
Reading a text runs no code, whatever it holds. This module is for `records`.
"""

import functools
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

_SCALARS = {int, float, str, bool, type(None)}
# Parts of the schema: an index, and what may be a scalar.
_WHOLE = {"type": "integer", "minimum": 0}
_OPEN = [{"$ref": f"#/$defs/{name}"} for name in ("scalar", "plain", "nested")]


class RecordError(ValueError):
    """Raised for an invalid record, record name or path into a record; it says what to do."""


# What a number needs to be larger than any float; few records hold it.
_MAY_OVERFLOW = re.compile(rb"[eE]\+?[0-9]{3}|[0-9]{200}")


def _refuse(constant: str) -> None:
    raise ValueError(f"it has {constant}; allowed: finite numbers, and null")


def parse(text: str | bytes, label: str = "this") -> dict[str, Any]:
    """The record that a text holds; `label`, its file, is for the error."""
    try:
        record = json.loads(text, parse_constant=_refuse)
        if _MAY_OVERFLOW.search(text if isinstance(text, bytes) else text.encode()):
            json.dumps(record, allow_nan=False)  # finds 1e999, which `loads` takes
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{label} is not JSON: {_one_line(str(error))}") from None
    check(record, label)
    return record


@functools.cache
def schema() -> dict[str, Any]:
    """The schema, as JSON."""
    path = Path(__file__).with_name("records.schema.json")
    return json.loads(path.read_text(encoding="utf-8"))


@functools.cache
def _validator() -> Any:
    """Of the schema, for which 1.0 is not an integer: it could not be an index, either.

    The long lists of a record hold whole numbers, its objects scalars: where all are,
    one look is enough, many times faster than one at each.
    """
    import jsonschema

    draft = jsonschema.Draft202012Validator
    kinds = draft.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)

    def items(validator: Any, each: Any, value: Any, parent: Any) -> Iterator[Any]:
        whole = each == _WHOLE and isinstance(value, list)
        if not (
            whole and set(map(type, value)) <= {int} and min(value, default=0) >= 0
        ):
            yield from draft.VALIDATORS["items"](validator, each, value, parent)

    def others(validator: Any, each: Any, value: Any, parent: Any) -> Iterator[Any]:
        scalars = each in _OPEN and isinstance(value, dict)
        if not (scalars and set(map(type, value.values())) <= _SCALARS):
            key = "additionalProperties"
            yield from draft.VALIDATORS[key](validator, each, value, parent)

    faster = {"items": items, "additionalProperties": others}
    extended = jsonschema.validators.extend(draft, faster, type_checker=kinds)
    return extended(schema())


def check(record: Any, label: str = "this") -> None:
    """Check that this is a record; the RecordError names each fault and its place."""
    errors = list(_validator().iter_errors(record))
    errors.sort(key=lambda error: -len(error.path))  # the most particular first
    faults = [f"record{error.json_path[1:]}: {error.message}" for error in errors]
    if not faults:  # the shapes can be looked at only where the form holds
        faults = list(_shape_faults(record))
    if faults:
        lines = "; ".join(map(_one_line, faults[:5]))
        raise RecordError(f"{label} is not a valid record: {lines}")


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 160 else f"{text[:80]} … {text[-77:]}"


def _shape_faults(record: Mapping[str, Any]) -> Iterator[str]:
    """Unequal lengths and indices out of range, in a record of the schema's form."""
    settings, seeds = len(record["settings"]), record["seeds"]
    curves, selection = record["curves"], record["selection"]
    epochs = len(curves["epochs"])
    tables = {
        "final": (record["final"], (settings, len(seeds))),
        "curves.metrics": (curves["metrics"], (len(seeds), epochs)),
        "curves.all": (curves.get("all", {}), (settings, len(seeds), epochs)),
    }
    for place, (metrics, shape) in tables.items():
        for metric, table in metrics.items():
            array = np.array(table, dtype=object)
            kinds = set(map(type, array.flat))
            if array.shape != shape or not kinds <= {int, float, type(None)}:
                size = " × ".join(map(str, shape))
                yield f"record.{place}.{metric} is not {size} numbers or nulls"
    evaluation = record.get("evaluation", {})
    for kind, runs in evaluation.items():
        yield from _run_faults(f"record.evaluation.{kind}", runs, settings)
        selected = set(seeds).intersection(runs["seeds"])
        if selected and kind != "repeated":
            yield f"record.evaluation.{kind} has {min(selected)}, a seed of the selection"
    if evaluation and record["schema"] == 1:
        yield "record.evaluation is of schema 2, the record of schema 1"
    elif evaluation and set(evaluation["chosen"]["settings"]) != {selection["setting"]}:
        yield "record.evaluation.chosen is not of record.selection.setting"
    if selection.get("setting", 0) >= settings:
        yield "record.selection.setting is not an index into settings"
    choices = {
        "curves.setting": curves["setting"],
        "selection.chosen": selection["chosen"],
        "selection.otherwise.chosen": selection.get("otherwise", selection)["chosen"],
    }
    for place, indices in choices.items():
        if len(indices) != len(seeds) or max(indices, default=0) >= settings:
            yield f"record.{place} is not one index into settings for each seed"
    every_seed = {*seeds}.union(*(runs["seeds"] for runs in evaluation.values()))
    for failure in record["failures"]:
        if failure["setting"] >= settings or failure["seed"] not in every_seed:
            yield f"record.failures has {failure}, of no setting or seed"
    columns = ["record", "task", "method", "passes", "setting", "seed", "order"]
    columns += ["loss_gap", "test_error", *record["final"]]
    columns += {name for setting in record["settings"] for name in setting}
    for name in sorted({name for name in columns if columns.count(name) > 1}):
        yield f"record has a hyperparameter or metric named like the column {name}"


def _run_faults(place: str, runs: Mapping[str, Any], settings: int) -> Iterator[str]:
    """Of fresh runs, of which no two have one seed and order."""
    seeds, orders, indices = runs["seeds"], runs["orders"], runs["settings"]
    for metric, values in runs["final"].items():
        kinds = set(map(type, values))
        if len(values) != len(seeds) or not kinds <= {int, float, type(None)}:
            yield f"{place}.final.{metric} is not {len(seeds)} numbers or nulls"
    if not len(indices) == len(orders) == len(seeds) or max(indices) >= settings:
        yield f"{place} is not a setting and an order for each seed"
    elif len(set(zip(seeds, orders, strict=True))) < len(seeds):
        yield f"{place} has a seed and order twice"


_RESULTS = (
    "record.final",
    "record.evaluation",
    "record.curves",
    "record.sample.metrics",
    "record.provenance",
)


def plain(value: Any, place: str = "record") -> Any:
    """A value as JSON has it; results are rounded, or None if they are not finite."""
    if hasattr(value, "tolist"):  # arrays, tensors, NumPy's numbers
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: plain(part, f"{place}.{key}") for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part, f"{place}[{index}]") for index, part in enumerate(value)]
    if isinstance(value, float) and place.startswith(_RESULTS):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, float) and not math.isfinite(value):
        raise RecordError(f"{place} is {value}; only a result may lack a number")
    return value


def dump(value: Any, depth: int = 0, listed: bool = False) -> str:
    """JSON for diffs: innermost lists and objects on a line, inner keys sorted."""
    parts = list(value.values()) if isinstance(value, dict) else value
    nested = isinstance(parts, list) and any(
        isinstance(part, dict | list) for part in parts
    )
    if not value or (not nested and (listed or not isinstance(value, dict))):
        return json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True)
    gap = "\n" + " " * (depth + 1)
    if isinstance(value, list):
        lines = [dump(part, depth + 1, listed=True) for part in value]
        return f"[{gap}{f',{gap}'.join(lines)}{gap[:-1]}]"
    items = sorted(value.items()) if depth else value.items()
    lines = [f"{dump(key)}: {dump(part, depth + 1)}" for key, part in items]
    return f"{{{gap}{f',{gap}'.join(lines)}{gap[:-1]}}}"
