"""Records that were changed at random: each command ends in one clear line, never a
traceback.
"""

import copy
import json
import random
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hostile import MARK, places
from test_records import NAME, example

from flatnb.book import cli
from flatnb.results import records
from flatnb.results.sweep import Job

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
    "1e308",
    "1e400",
    "1" + "0" * 400,
    "9" * 5000,
    "1e-400",
    "NaN",
    "-Infinity",
    str(2**63),
    r'"\ud800"',
    r'{"\ud800": 1}',
    r'"\u001b[2J"',
    r'"\u0000"',
    r'"a\nb"',
    '"\x9b2J"',
    '"\udcff"',
    r'{"a\nflatnb: b": {}}',
    f'"{"x" * 10**5}"',
    json.dumps([[1.5] * 60] * 60),
    "[" * 400 + "]" * 400,
    "[" * 9000 + "]" * 9000,
    '{"a":' * 300 + "1" + "}" * 300,
    '{"a":' * 10**5 + "1" + "}" * 10**5,
    '{"a": 1, "a": 2}',
    "",
    "1,",
    "[",
    "'x'",
)


def mutated(record: dict[str, Any], draw: random.Random) -> str:
    """The text of a record with something changed, removed or added somewhere."""
    record = copy.deepcopy(record)
    container, key = draw.choice(places(record))
    step = draw.choice(["change", "change", "change", "remove", "add", "rename"])
    raw = draw.choice(RAW)
    if step == "change":
        container[key] = MARK
    elif step == "add" and isinstance(container, list):
        container.append(MARK)
    elif step == "add":
        container["added"] = MARK
    elif step == "rename" and isinstance(container, dict):
        container[
            draw.choice(["", "mean", "\x1b[2J", "a\nb", "\ud800", "x" * 10**4])
        ] = container.pop(key)
    else:
        del container[key]
    return json.dumps(record).replace(f'"{MARK}"', raw)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a record, whose experiment computes its sample at once."""
    monkeypatch.setenv("FLATNB_RECORDS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    sample: Any = ModuleType("flatnb.sample")
    sample.run = lambda values: {"loss": values[0]}
    experiments: Any = ModuleType("flatnb.experiments")
    experiments.EXPERIMENTS = [
        SimpleNamespace(name=NAME, sample=Job("flatnb.sample:run", {"values": [0.5]}))
    ]
    for module in (sample, experiments):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    record = example()
    record["sample"] |= {"call": "flatnb.sample:run", "settings": {"values": [0.5]}}
    return records.save(record)


COMMANDS = (("list",), ("show", NAME), ("verify", NAME))


def told(capsys: pytest.CaptureFixture[str], file: Path, text: str) -> bool:
    """Whether the text is refused; all commands that read it must agree, each in one
    line.
    """
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    refused = []
    for command in COMMANDS:
        status = cli.main(["records", *command])
        said = capsys.readouterr()
        assert "\x1b" not in said.out + said.err
        assert status in (0, 1, 2)
        if status == 2:
            (line,) = said.err.splitlines()
            assert line.startswith("flatnb: ") and len(line) < 2000
            assert str(file) in line or NAME in line
        elif command[0] != "verify":
            assert said.err == ""
        refused.append(status == 2 and str(file) in said.err)
    assert len(set(refused)) == 1, refused
    return refused[0]


def fuzz(capsys: pytest.CaptureFixture[str], file: Path, seeds: range) -> int:
    good = json.loads(file.read_text())
    return sum(told(capsys, file, mutated(good, random.Random(seed))) for seed in seeds)


def test_a_good_record_is_taken(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not told(capsys, file, file.read_text())


def test_changed_records_end_in_one_clear_line(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert 50 < fuzz(capsys, file, range(100)) < 100


@pytest.mark.slow
def test_many_changed_records(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fuzz(capsys, file, range(1000, 4000))


@pytest.mark.parametrize(
    "key",
    [
        None,
        "method",
        "seeds",
        "selection.chosen",
        "curves.epochs",
        "sample.settings.values",
        "final.test_loss",
        "task.epochs",
        "provenance.date",
        "provenance.added",
    ],
)
def test_each_odd_value_where_it_hurts(
    key: str | None, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, text = json.loads(file.read_text()), f'"{MARK}"'
    if key is not None:
        *parents, last = key.split(".")
        part = content
        for parent in parents:
            part = part[parent]
        part[last] = MARK
        text = json.dumps(content)
    for raw in RAW:
        told(capsys, file, text.replace(f'"{MARK}"', raw))


def test_what_is_no_file_is_named(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.unlink()
    file.mkdir()
    assert cli.main(["records", "list"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(file) in line and "Is a directory" in line
    file.rmdir()
    file.symlink_to(file)
    assert cli.main(["records", "list"]) == 2
    assert str(file) in capsys.readouterr().err


def test_what_is_saved_can_be_loaded(file: Path) -> None:
    """Values that no record can hold are refused when it is saved, and nothing is
    written.
    """
    before = file.read_bytes()
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    for value in (
        "\ud800",
        "\x1b",
        {"\ud800": 1},
        10**400,
        deep,
        [[[1]]],
        float("nan"),
        {1},
    ):
        record = json.loads(before)
        record["task"]["odd"] = value
        with pytest.raises(records.RecordError) as error:
            records.save(record, replace=True)
        assert len(str(error.value)) < 2000
    assert file.read_bytes() == before
