"""Records that were changed at random are read as records, or refused in one line."""

import copy
import json
import random
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hostile import MARK, places
from test_records import NAME, example, of_schema_1

from flatnb.results import form, records

# Put into the JSON text as they stand: most are no values that Python would write.
RAW = (
    "null",
    "true",
    "-1",
    "1.0",
    "1.5",
    "[]",
    "{}",
    '""',
    '"x"',
    "[null]",
    '{"a": [true]}',
    "1e400",
    "9" * 5000,
    "NaN",
    "-Infinity",
    f'"{"x" * 10**5}"',
    json.dumps([[1.5] * 60] * 60),
    "[" * 10**5 + "]" * 10**5,
    '{"a": 1, "a": 2}',
    "",
    "1,",
    "[",
)


def mutated(record: dict[str, Any], draw: random.Random) -> str:
    """The text of a record with something changed, removed or added somewhere."""
    record = copy.deepcopy(record)
    container, key = draw.choice(places(record))
    step = draw.choice(["change", "change", "change", "remove", "add", "rename"])
    if step == "change":
        container[key] = MARK
    elif step == "add" and isinstance(container, list):
        container.append(MARK)
    elif step == "add":
        container["added"] = MARK
    elif step == "rename" and isinstance(container, dict):
        container[draw.choice(["", "mean", "a\nb", "x" * 10**4])] = container.pop(key)
    else:
        del container[key]
    return json.dumps(record).replace(f'"{MARK}"', draw.choice(RAW))


@pytest.fixture(params=[1, 2], ids=["schema 1", "schema 2"])
def file(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.setenv("FLATNB_RECORDS", str(tmp_path))
    record = example()
    return records.save(of_schema_1(record) if request.param == 1 else record)


def is_refused(file: Path, text: str) -> bool:
    file.write_text(text)
    try:
        record = records.load(NAME)
    except records.RecordError as error:
        assert str(file) in str(error)
        assert len(str(error)) < 2000 and len(str(error).splitlines()) == 1
        return True
    assert len(records.frame(record)) == len(record["settings"]) * len(record["seeds"])
    assert records.selected(record).keys() == record["final"].keys()
    for runs in record.get("evaluation", {}).values():
        size = len(runs["seeds"])
        assert {len(values) for values in runs["final"].values()} <= {size}
        assert [record["settings"][i] for i in runs["settings"]]
    assert form.parse(form.dump(record)) == record
    return False


def fuzz(file: Path, seeds: range) -> int:
    good = json.loads(file.read_text())
    return sum(is_refused(file, mutated(good, random.Random(seed))) for seed in seeds)


def test_changed_records_are_read_or_refused_in_one_line(file: Path) -> None:
    assert not is_refused(file, file.read_text())
    assert 50 < fuzz(file, range(100)) < 100


def test_the_shortcuts_of_the_form_find_what_the_whole_schema_finds(file: Path) -> None:
    kinds = jsonschema.Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: type(value) is int
    )
    whole = jsonschema.validators.extend(
        jsonschema.Draft202012Validator, type_checker=kinds
    )(form.schema())
    good = json.loads(file.read_text())
    faults = 0
    for seed in range(400):
        try:
            record = json.loads(mutated(good, random.Random(seed)))
        except (ValueError, RecursionError):
            continue
        found, expected = (
            sorted(str(error) for error in validator.iter_errors(record))
            for validator in (form._validator(), whole)
        )
        assert found == expected
        faults += bool(found)
    assert faults > 50


@pytest.mark.slow
def test_many_changed_records(file: Path) -> None:
    fuzz(file, range(1000, 4000))
