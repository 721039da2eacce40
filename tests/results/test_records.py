"""Records: their form, their files, paths into them, samples repeated, numbers in
prose.
"""

import json
import math
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch

from flatnb.results import form, records, sweep
from flatnb.results.provenance import code, provenance
from flatnb.results.records import RecordError

NAME = "plane/circle-0.05/SAM"


def example(name: str = NAME) -> dict[str, Any]:
    """A record of three settings and two seeds, evaluated by three; one run failed."""

    def fresh(settings: list[int], seeds: list[int], orders: list[int]) -> Any:
        losses = [1 / 3, math.nan, 0.25, 0.5][: len(seeds)]
        accuracies = [0.91, 0.5, 0.93, 0.92][: len(seeds)]
        final = {"test_accuracy": accuracies, "test_loss": losses}
        return dict(settings=settings, seeds=seeds, orders=orders, final=final)

    return {
        "schema": 2,
        "name": name,
        "task": {
            "name": "plane",
            "data": {"set": "circle", "noise": 0.05},
            "epochs": 2,
        },
        "method": "SAM",
        "passes": 2,
        "settings": [
            {"lr": 0.1, "rho": 0.05},
            {"lr": 0.1, "rho": 0.1},
            {"lr": 1 / 3, "rho": None},
        ],
        "seeds": [0, 7],
        "final": {
            "test_accuracy": [[0.9, 0.92], [0.94, 0.93], [0.5, None]],
            "test_loss": [[0.3, 1 / 3], [0.2, 0.25], [math.nan, math.inf]],
        },
        "curves": {
            "epochs": [0, 1, 2],
            "setting": [1, 0],
            "metrics": {"test_loss": [[0.7, 0.5, 0.2], [0.7, 0.4, 1 / 3]]},
        },
        "selection": {
            "space": "lr 0.1, 1/3; rho 0.05, 0.1",
            "budget": 2,
            "split": "val",
            "metric": "accuracy",
            "ties": "loss",
            "per": "task",
            "setting": 1,
            "at_edge": ["rho"],
            "chosen": [1, 0],
            "otherwise": {"rule": "ties to the largest rho", "chosen": [1, 1]},
        },
        "evaluation": {
            "chosen": fresh([1] * 3, [100, 101, 102], [0] * 3),
            "default": fresh([2] * 3, [100, 101, 102], [0] * 3),
            "repeated": fresh([1, 0] * 2, [0, 7] * 2, [1, 1, 2, 2]),
        },
        "failures": [{"setting": 2, "seed": 7, "error": "the loss was nan in epoch 1"}],
        "sample": {
            "call": "flatnb.experiments.plane:train",
            "settings": {"values": [1 / 3, 1.0]},
            "metrics": {"loss": 2 / 3},
            "tolerance": {"loss": 0.001},
        },
        "provenance": {**provenance(), "seconds": 12.3456789},
    }


def of_schema_1(record: dict[str, Any]) -> dict[str, Any]:
    """The record as it was before selection and evaluation were apart."""
    del record["evaluation"], record["selection"]["setting"]
    del record["selection"]["at_edge"]
    return record | {"schema": 1}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLATNB_RECORDS", str(tmp_path / "records"))
    return tmp_path / "records"


# --- the folder ---------------------------------------------------------------------


def test_root_is_that_of_the_checkout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("FLATNB_RECORDS")
    monkeypatch.chdir(tmp_path)
    assert records.root() == Path(__file__).resolve().parents[2] / "book" / "records"
    monkeypatch.setattr(records, "PACKAGE", tmp_path / "site-packages" / "flatnb")
    with pytest.raises(RecordError, match="set FLATNB_RECORDS to a folder"):
        records.root()


def test_names_are_paths_and_temporary_files_have_none(folder: Path) -> None:
    assert records.names() == []
    with pytest.raises(RecordError, match="nothing is named b; nothing exists"):
        records.match(["b"], records.names())
    for name in ("b", "a/2.5/SAM", "a/10/SAM"):
        records.save(example(name))
    (folder / "a" / ".b.json").touch()
    (folder / ".checkpoints").mkdir()
    (folder / ".checkpoints" / "b.json").touch()
    assert records.names() == ["a/10/SAM", "a/2.5/SAM", "b"]
    assert records.match(["b", "a/*"], records.names()) == [
        "b",
        "a/10/SAM",
        "a/2.5/SAM",
    ]
    with pytest.raises(
        RecordError, match=r"nothing is named c\*; the closest are .*a/10/SAM"
    ):
        records.match(["b", "c*"], records.names())


@pytest.mark.parametrize(
    "name", ["../a", "/a", "a/../b", "a//b", "", "a/", "a b", ".a", "verified"]
)
def test_a_name_cannot_leave_the_folder(name: str) -> None:
    with pytest.raises(RecordError, match="no record"):
        records.load(name)
    with pytest.raises(RecordError, match=r"record\.name: .* does not match"):
        records.save(example(name))


# --- saving and loading -------------------------------------------------------------


def test_what_is_saved_is_loaded_rounded_where_it_is_a_result(folder: Path) -> None:
    record = example()
    path = records.save(record)
    assert path == folder / f"{NAME}.json"
    loaded = records.load(NAME)
    assert loaded["settings"] == record["settings"]
    assert loaded["sample"]["settings"] == {"values": [1 / 3, 1.0]}
    assert loaded["final"]["test_loss"] == [[0.3, 0.333333], [0.2, 0.25], [None, None]]
    assert loaded["curves"]["metrics"]["test_loss"][1][2] == 0.333333
    fresh = loaded["evaluation"]["chosen"]["final"]["test_loss"]
    assert fresh == [0.333333, None, 0.25]
    assert loaded["sample"]["metrics"]["loss"] == 0.666667
    assert loaded["provenance"]["seconds"] == 12.3457
    assert list(loaded) == list(form.schema()["properties"])


def test_a_record_of_schema_1_is_read_as_it_is() -> None:
    record = of_schema_1(example())
    records.save(record)
    loaded = records.load(NAME)
    assert loaded["schema"] == 1 and "evaluation" not in loaded
    assert records.selected(loaded)["test_accuracy"] == [0.94, 0.92]


def test_arrays_and_tensors_become_lists() -> None:
    record = example()
    record["seeds"] = np.array([0, 7])
    record["passes"] = np.int64(2)
    record["final"]["test_loss"] = torch.tensor(
        [[0.1, 0.2], [0.3, 0.4], [0.5, math.nan]]
    )
    record["curves"]["epochs"] = (0, 1, 2)
    records.save(record)
    loaded = records.load(NAME)
    assert loaded["seeds"] == [0, 7] and loaded["passes"] == 2
    assert loaded["final"]["test_loss"] == [[0.1, 0.2], [0.3, 0.4], [0.5, None]]


def test_the_text_depends_on_the_content_alone_and_keeps_runs_on_lines() -> None:
    record = example()
    text = records.save(record).read_text()
    turned = {key: record[key] for key in reversed(record)}
    turned["settings"] = [dict(reversed(one.items())) for one in record["settings"]]
    assert records.save(turned, replace=True).read_text() == text
    assert text.endswith("}\n") and "NaN" not in text and "Infinity" not in text
    lines = [line.strip() for line in text.splitlines()]
    assert '{"lr": 0.1, "rho": 0.05},' in lines
    assert "[0.94, 0.93]," in lines
    assert '"seeds": [0, 7],' in lines


def test_another_result_is_not_replaced_unasked() -> None:
    path = records.save(example())
    before = path.read_bytes()
    again = example()
    again["provenance"]["seconds"] = 99
    records.save(again)  # the same result
    assert path.read_bytes() == before
    other = example()
    other["final"]["test_loss"][0][0] = 0.31
    with pytest.raises(RecordError, match="holds another result"):
        records.save(other)
    assert path.read_bytes() == before
    records.save(other, replace=True)
    assert records.load(NAME)["final"]["test_loss"][0][0] == 0.31


@pytest.mark.parametrize("value", [math.nan, math.inf, Path("a"), b"a"])
def test_a_setting_must_be_finite_and_plain(value: object, folder: Path) -> None:
    record = example()
    record["task"]["epochs"] = value
    with pytest.raises(RecordError, match=r"record\.task\.epochs"):
        records.save(record)
    assert not folder.exists()


@pytest.fixture
def full_disk() -> Iterator[Callable[[], None]]:
    """Called, it lets no file grow beyond 1 kB, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_loses_nothing(folder: Path, full_disk: Callable[[], None]) -> None:
    path = records.save(example())
    before = path.read_bytes()
    other = example()
    other["method"] = "ASAM"
    full_disk()
    with pytest.raises(OSError, match="too large"):
        records.save(other, replace=True)
    with pytest.raises(OSError, match="too large"):
        records.save(example("other"))
    assert path.read_bytes() == before
    assert [file for file in folder.rglob("*") if file.is_file()] == [path]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema": NaN}', "it has NaN; allowed: finite"),
        ('{"schema": 1e999}', "Out of range float values"),
        ('{"schema": -1E+309}', "Out of range float values"),
        (f'{{"schema": 1{"0" * 250}e99}}', "Out of range float values"),
        (f'{{"schema": {"9" * 400}.0}}', "Out of range float values"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        (b"\xff", "is not JSON"),
        ("[]", r"a.json is not a valid record: record: \[\] is not of type 'object'"),
        ('{"schema": 3}', r"record\.schema: 3 is not one of"),
    ],
)
def test_other_files_are_refused(folder: Path, text: str | bytes, message: str) -> None:
    folder.mkdir()
    (folder / "a.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecordError, match=message):
        records.load("a")


def test_a_record_under_another_name_is_refused(folder: Path) -> None:
    records.save(example()).rename(folder / "a.json")
    with pytest.raises(RecordError, match=f"holds the record {NAME}"):
        records.load("a")
    with pytest.raises(RecordError, match=r"no record gone in .*flatnb records list"):
        records.load("gone")


def test_reading_and_saving_need_no_package_of_the_book() -> None:
    code = (
        "import sys\nfor name in ('nbformat', 'papermill', 'sphinx'):\n"
        "    sys.modules[name] = None\n"
        "from flatnb.results import records; import json\n"
        "record = json.load(sys.stdin); records.save(record); records.load(record['name'])"
    )
    record = json.loads(records.save(example()).read_text())
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps({**record, "name": "b"}),
        text=True,
        capture_output=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert records.names() == ["b", NAME]


# --- the form -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("settings", [], r"record.settings: \[\] "),
        ("seeds", [3, 3], "has non-unique elements"),
        (
            "final.test_loss",
            [[0.1, 0.2], [0.3, 0.4], [0.5]],
            "final.test_loss is not 3 × 2 numbers",
        ),
        ("final.test_loss", [[0.1, True]] * 3, "is not 3 × 2 numbers"),
        ("final.test_loss", 0.1, "final.test_loss: 0.1 is not of type 'array'"),
        ("final.test_loss", [[0.1, 0.2]], "is not 3 × 2 numbers"),
        ("final.rho", [[0.1, 0.2]] * 3, "metric named like the column rho"),
        (
            "curves.metrics.test_loss",
            [[0.1, 0.2]] * 2,
            "metrics.test_loss is not 2 × 3 numbers",
        ),
        ("curves.setting", [0], "record.curves.setting is not one index"),
        ("selection.chosen", [0, 1.0], "1.0 is not of type 'integer'"),
        ("selection.chosen", [0, 3], "record.selection.chosen is not one index"),
        (
            "selection.otherwise.chosen",
            [3, 0],
            "record.selection.otherwise.chosen is not one",
        ),
        (
            "failures",
            [{"setting": 0, "seed": 1, "error": ""}],
            "failures has .*, of no setting or seed",
        ),
        ("selection.setting", 3, "record.selection.setting is not an index"),
        ("selection.setting", 0, "evaluation.chosen is not of record.selection.sett"),
        ("evaluation.chosen.settings", [], r"chosen.settings: \[\] "),
        ("evaluation.chosen.settings", [1, 1], "chosen is not a setting and an order"),
        ("evaluation.default.settings", [2, 3, 2], "default is not a setting and an"),
        ("evaluation.chosen.orders", [0, 0], "chosen is not a setting and an order"),
        ("evaluation.chosen.orders", [0, 0, -1], "-1 is less than the minimum"),
        ("evaluation.default.seeds", [5, 6, 5], "default has a seed and order twice"),
        ("evaluation.chosen.seeds", [5, 6, 7], "chosen has 7, a seed of the selection"),
        (
            "evaluation.repeated.orders",
            [1, 1, 1, 2],
            "repeated has a seed and order tw",
        ),
        ("evaluation.chosen.final.test_loss", [0.1] * 2, "test_loss is not 3 numbers"),
        ("evaluation.chosen.final.test_loss", [True] * 3, "test_loss is not 3 numbers"),
        ("evaluation.other", {}, "'other' was unexpected"),
        ("evaluation", {}, "'chosen' is a required property"),
        ("schema", 1, "evaluation is of schema 2, the record of sch"),
        ("sample.call", "os:system", "record.sample.call: 'os:system' does not match"),
        ("provenance.date", "today", "record.provenance.date: 'today' does not match"),
    ],
)
def test_lists_that_do_not_fit_are_named(
    path: str, value: object, message: str
) -> None:
    record = example()
    *parents, last = path.split(".")
    part = record
    for key in parents:
        part = part[key]
    part[last] = value
    with pytest.raises(RecordError, match=message):
        records.save(record)


@pytest.mark.parametrize("key", ["setting", "at_edge"])
def test_a_record_of_schema_2_says_what_was_chosen(key: str) -> None:
    record = example()
    del record["selection"][key]
    with pytest.raises(RecordError, match=f"'{key}' is a required property"):
        records.save(record)


# --- looking in ---------------------------------------------------------------------


def test_values_by_path() -> None:
    records.save(example())
    record = records.load(NAME)
    for path, expected in (
        ("passes", 2),
        ("task.data.noise", 0.05),
        ("settings.2.lr", 1 / 3),
        ("curves.metrics.test_loss.0.-1", 0.2),
        ("seeds", [0, 7]),
    ):
        assert records.lookup(record, path) == expected
    assert records.selected(record)["test_accuracy"] == [0.94, 0.92]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing", "no 'nothing' in nothing; there is schema, name, task"),
        ("task.sets", r"no 'sets' in task\.sets; there is data, epochs, name"),
        ("seeds.2", r"no '2' in seeds\.2; there is \[0, 7\]"),
        ("seeds.-3", "no '-3' in seeds"),
        ("method.x", r"no 'x' in method\.x; there is 'SAM'"),
        ("", "no '' in ; there is schema"),
    ],
)
def test_a_path_that_leads_nowhere_says_what_there_is(path: str, message: str) -> None:
    records.save(example())
    with pytest.raises(RecordError, match=message):
        records.lookup(records.load(NAME), path)


def test_the_frame_has_a_row_for_each_setting_and_seed() -> None:
    records.save(example())
    table = records.frame(records.load(NAME))
    columns = ["setting", "lr", "rho", "seed", "test_accuracy", "test_loss"]
    assert list(table) == columns
    assert table["setting"].tolist() == [0, 0, 1, 1, 2, 2]
    assert table["seed"].tolist() == [0, 7] * 3
    assert table["test_accuracy"].tolist()[:5] == [0.9, 0.92, 0.94, 0.93, 0.5]
    assert table["test_loss"].dtype == float and table["test_loss"].isna().sum() == 2


# --- samples ------------------------------------------------------------------------


def repeating(run: Callable[..., Any], settings: dict[str, Any]) -> Any:
    """A job that calls `run`, under the name that the example's sample states."""
    job = sweep.Job(example()["sample"]["call"], settings)
    object.__setattr__(job, "run", lambda: run(**settings))
    return job


def test_verifying_repeats_the_sample() -> None:
    record = example()

    def run(**settings: Any) -> dict[str, Any]:
        assert settings == {"seed": 3}
        return {
            "loss": torch.tensor(1 / 3),
            "runs": [{"norm": 2.0, "lost": math.nan}],
        }

    job = repeating(run, {"seed": 3})
    record["sample"] |= {
        "settings": {"seed": 3},
        "metrics": {"loss": 1 / 3, "runs.0.norm": 2.1, "runs.0.lost": math.nan},
        "tolerance": {"loss": 0.0, "runs.0.norm": 0.1, "runs.0.lost": 0.0},
    }
    records.save(record)
    checks = records.verify(records.load(NAME), job)
    assert set(checks["metric"]) == {"loss", "runs.0.norm", "runs.0.lost"}
    assert checks["inside"].all()
    record["sample"]["metrics"] = {
        "loss": 0.3333,
        "runs.0.norm": 2.10001,
        "runs.0.lost": 1.0,
    }
    assert not records.verify(record, job)["inside"].any()
    record["sample"]["metrics"] = record["sample"]["tolerance"] = {"gone": 0.0}
    with pytest.raises(RecordError, match="no 'gone' in gone"):
        records.verify(record, job)


# --- what verifying found -----------------------------------------------------------


def checked(recorded: list[float], repeated: list[float], tolerance: float) -> Any:
    """A table as `verify` returns it."""
    frame = {"metric": [f"m{i}" for i in range(len(recorded))]}
    table = pandas.DataFrame({**frame, "recorded": recorded, "repeated": repeated})
    table["tolerance"] = tolerance
    close = np.isclose(recorded, repeated, rtol=0, atol=tolerance, equal_nan=True)
    return table.assign(inside=close)


def test_what_verifying_found_is_kept_beside_the_records(folder: Path) -> None:
    assert records.verified() == {} and records.dashboard().empty
    for name in ("b", "a"):
        records.save(example(name))
    record = records.load("b")
    found = checked([1.0, 2.0, math.nan], [1.25, 1.5, math.nan], 0.5)
    records.keep_check(record, "whole", found)
    records.keep_check(record, "sample", checked([1.0], [1.0], 0.0))
    assert records.names() == ["a", "b"]
    entry = records.verified()["b"]["whole"]
    assert entry["change"] == {"m0": 0.25, "m1": -0.5, "m2": 0.0} and entry["inside"]
    assert entry["code"] == code() and entry["record"] == record["provenance"]["date"]
    table = records.dashboard()
    assert table["name"].tolist() == ["a", "b", "b"]
    assert table["repeated"].tolist() == ["", "sample", "whole"]
    assert table["off"].tolist()[1:] == [0.0, 0.5] and math.isnan(table["off"][0])
    assert table["inside"].tolist() == [None, True, True]
    assert table["on"].tolist()[1] == entry["date"][:10]
    assert table["schema"].tolist() == [2, 2, 2]


def test_a_repetition_tells_how_the_accuracy_changed_if_its_sign_was_kept() -> None:
    records.save(example())
    accuracy = "metrics.test_accuracy.0.0.-1"
    found = checked([0.5, 1.0], [0.375, 1.5], 1.0).assign(metric=[accuracy, "m1"])
    records.keep_check(records.load(NAME), "whole", found)
    table = records.dashboard()
    assert table["accuracy"].tolist() == [-0.125] and table["off"].tolist() == [0.5]
    file = records.root() / "verified.json"
    older = json.loads(file.read_text())
    entry = older[NAME]["whole"]
    entry["off"] = {name: abs(value) for name, value in entry.pop("change").items()}
    file.write_text(json.dumps(older))
    table = records.dashboard()
    assert table["accuracy"].isna().all() and table["off"].tolist() == [0.5]


def test_a_repetition_that_failed_or_lost_a_number_is_not_inside() -> None:
    records.save(example())
    record = records.load(NAME)
    records.keep_check(record, "sample", None)
    assert records.verified()[NAME]["sample"]["change"] == {}
    assert records.dashboard()["inside"].tolist() == [False]
    records.keep_check(record, "sample", checked([1.0, 1.0], [math.nan, 1.0], 0.5))
    assert records.verified()[NAME]["sample"]["change"] == {"m0": None, "m1": 0.0}
    (row,) = records.dashboard().to_dict("records")
    assert row["inside"] is False and math.isnan(row["off"])


def test_what_was_found_of_an_earlier_record_does_not_count() -> None:
    record = example()
    record["provenance"]["date"] = "2026-01-02T03:04:05+00:00"
    records.save(record)
    records.keep_check(records.load(NAME), "sample", checked([1.0], [1.0], 0.0))
    assert records.dashboard()["repeated"].tolist() == ["sample"]
    record["provenance"]["date"] = "2026-01-02T03:04:06+00:00"
    record["final"]["test_loss"][0][0] = 0.31
    records.save(record, replace=True)
    assert records.dashboard()["repeated"].tolist() == [""]


def test_checks_kept_at_once_lose_none(folder: Path) -> None:
    made = [example(f"a/{i}") for i in range(12)]
    for record in made:
        records.save(record)
    table = checked([1.0], [1.0], 0.0)
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda r: records.keep_check(r, "sample", table), made))
    assert sorted(records.verified()) == sorted(record["name"] for record in made)


def test_an_error_leaves_what_was_found(
    folder: Path, full_disk: Callable[[], None]
) -> None:
    made = [example(f"a/{i}") for i in range(4)]
    table = checked([1.0], [1.0], 0.0)
    for record in made[:3]:
        records.save(record)
        records.keep_check(record, "sample", table)
    before = (folder / "verified.json").read_bytes()
    full_disk()
    with pytest.raises(OSError, match="too large"):
        records.keep_check(made[3], "sample", checked([1.0] * 60, [1.0] * 60, 0.0))
    assert (folder / "verified.json").read_bytes() == before
    (folder / "verified.json").write_text("{")
    with pytest.raises(RecordError, match=r"verified.json is not JSON: .* remove it"):
        records.keep_check(made[0], "sample", table)
