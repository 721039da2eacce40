"""`flatnb records …`, run as a reader runs it; experiments are stand-ins, sweeps are
real once.
"""

import json
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from test_records import NAME, example, of_schema_1

from flatnb.book import cli
from flatnb.experiments.experiment import Cost
from flatnb.results import records


@dataclass(frozen=True)
class Experiment:
    """What the commands use of an experiment. Its jobs parse JSON, which fails for
    "{".
    """

    name: str
    value: int
    texts: tuple[str, ...] = ('{"loss": 0.5}', '{"loss": 1.5}')

    @property
    def cost(self) -> Cost:
        return Cost(self.value, 2.0, 60.0)

    def jobs(self) -> list[Any]:
        from flatnb.results.sweep import Job

        return [Job("json:loads", {"s": text}) for text in self.texts]

    @property
    def sample(self) -> Any:
        return self.jobs()[-1]

    def record(self, results: list[Any]) -> dict[str, Any]:
        if any(result.value is None for result in results):
            raise RuntimeError("a job failed")
        losses = [result.value["loss"] for result in results]
        record = example(self.name)
        record["final"] = {"test_loss": [losses] * 3}
        return record


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLATNB_RECORDS", str(tmp_path / "records"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "records"


@pytest.fixture
def experiments(monkeypatch: pytest.MonkeyPatch) -> list[Experiment]:
    """The list that the commands see."""
    module: Any = ModuleType("flatnb.experiments")
    module.EXPERIMENTS = []
    monkeypatch.setitem(sys.modules, "flatnb.experiments", module)
    return module.EXPERIMENTS


@pytest.fixture
def sweeps(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options of each sweep; the sweeps compute nothing, and a job for "{"
    fails.
    """
    module: Any = pytest.importorskip("flatnb.results.sweep")
    calls: list[dict[str, Any]] = []

    def run(jobs: list[Any], folder: Path, **options: Any) -> list[Any]:
        calls.append({"folder": folder, **options})
        texts = [job.settings["s"] for job in jobs]
        return [
            SimpleNamespace(value=None, error="ValueError: no")
            if text == "{"
            else SimpleNamespace(value=json.loads(text), error=None)
            for text in texts
        ]

    monkeypatch.setattr(module, "run", run)
    return calls


def out(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    """What a command prints, one space between words; it must end with the status."""
    assert cli.main(["records", *words]) == status
    printed = capsys.readouterr()
    text = printed.err if status == 2 else printed.out
    return "\n".join(" ".join(line.split()) for line in text.splitlines())


# --- list ---------------------------------------------------------------------------


def test_list_has_a_line_a_record(capsys: pytest.CaptureFixture[str]) -> None:
    assert out(capsys, "list").startswith("no records in ")
    record = example()
    record["provenance"] |= {"device": "H100", "date": "2026-01-02T03:04:05+00:00"}
    records.save(record)
    assert out(capsys, "list").splitlines() == [
        "name method seeds settings device date",
        f"{NAME} SAM 2 3 H100 2026-01-02",
    ]


def test_a_name_that_is_not_there_is_a_mistake(
    capsys: pytest.CaptureFixture[str],
) -> None:
    records.save(example())
    text = out(capsys, "verify", "plain/*", status=2)
    assert text == f"flatnb: nothing is named plain/*; the closest are {NAME}"


def test_a_broken_record_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.mkdir()
    (folder / "a.json").write_text("{}")
    text = out(capsys, "list", status=2)
    assert (
        "a.json is not a valid record: record: 'schema' is a required property" in text
    )


# --- todo ---------------------------------------------------------------------------


def test_todo_lists_what_is_missing_most_valuable_first(
    experiments: list[Experiment], capsys: pytest.CaptureFixture[str]
) -> None:
    experiments += [Experiment("c", 3), Experiment(NAME, 2), Experiment("a", 1)]
    records.save(example())
    assert out(capsys, "todo").splitlines() == [
        "flatnb records make GPU min CPU min",
        "a 2.0 60.0",
        "c 2.0 60.0",
    ]
    del experiments[2], experiments[0]
    assert out(capsys, "todo") == "every experiment is recorded"


# --- make ---------------------------------------------------------------------------


def test_make_runs_a_sweep_and_records_it(
    experiments: list[Experiment], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiments += [
        Experiment(NAME, 1),
        Experiment("plane/a", 2, ('{"loss": 2.5}',) * 2),
    ]
    text = out(capsys, "make", "plane/*", "--workers", "1", "--folder", "runs")
    assert text.splitlines()[-2:] == [
        f"recorded in records/{name}.json" for name in (NAME, "plane/a")
    ]
    assert records.load(NAME)["final"]["test_loss"][0] == [0.5, 1.5]
    assert records.load("plane/a")["final"]["test_loss"][0] == [2.5, 2.5]
    assert len(list((tmp_path / "runs").glob("*.json"))) == 3


def test_make_leaves_what_is_recorded_unless_asked(
    experiments: list[Experiment], sweeps: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    experiments += [Experiment(NAME, 1), Experiment("plane/a", 2)]
    before = records.save(example()).read_bytes()
    text = out(capsys, "make", "plane/*", "--executor", "dask://host:80", "--retry")
    assert (
        text.splitlines()[0] == f"{NAME} is recorded already (--replace makes it again)"
    )
    assert (records.root() / f"{NAME}.json").read_bytes() == before
    assert set(records.names()) == {NAME, "plane/a"}
    (options,) = sweeps
    assert options == {
        "folder": Path.cwd() / "_build" / "sweep",
        "executor": "dask://host:80",
        "workers": None,
        "retry": True,
    }
    out(capsys, "make", NAME, "--replace")
    assert records.load(NAME)["final"]["test_loss"][0] == [0.5, 1.5]


def test_an_experiment_with_a_failed_job_is_not_recorded(
    experiments: list[Experiment], sweeps: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    experiments += [Experiment("a", 1), Experiment("b", 2, ('{"loss": 1}', "{"))]
    assert cli.main(["records", "make", "a", "b"]) == 1
    err = capsys.readouterr().err
    assert err == "flatnb: b is not recorded: a job failed\n"
    assert records.names() == ["a"]


def test_mistakes_before_a_sweep_are_one_line(
    experiments: list[Experiment], capsys: pytest.CaptureFixture[str]
) -> None:
    experiments.append(Experiment("a", 1))
    assert (
        out(capsys, "make", "b", status=2)
        == "flatnb: nothing is named b; the closest are a"
    )
    line = out(capsys, "make", "a", "--workers", "0", status=2)
    assert line.startswith("flatnb: workers=0; allowed")
    assert records.names() == []


def test_an_interruption_is_status_130(
    experiments: list[Experiment], sweeps: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*jobs: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    experiments.append(Experiment("a", 1))
    monkeypatch.setattr(sys.modules["flatnb.results.sweep"], "run", interrupted)
    assert cli.main(["records", "make", "a"]) == 130
    assert records.names() == []


# --- verify -------------------------------------------------------------------------


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The arguments of each call of flatnb.data.sample:run, which returns its
    argument's half.
    """
    module: Any = ModuleType("flatnb.data.sample")
    calls: list[float] = []

    def run(x: float) -> dict[str, float]:
        calls.append(x)
        return {"half": x / 2}

    module.run = run
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


def sampled(
    name: str, x: float | str, half: float, tolerance: float, **sample: Any
) -> Any:
    """An experiment that computes the half of x, and its record, with the sample
    changed.
    """
    from flatnb.results.sweep import Job

    record, job = example(name), Job("flatnb.data.sample:run", {"x": x})
    record["sample"] = {
        "call": job.call,
        "settings": job.settings,
        "metrics": {"half": half},
        "tolerance": {"half": tolerance},
        **sample,
    }
    records.save(record)
    return SimpleNamespace(name=name, sample=job)


def test_verify_says_inside_or_outside(
    experiments: list[Any], called: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    assert out(capsys, "verify") == ""
    experiments += [sampled("a", 3.0, 1.5, 0.0), sampled("b", 4.0, 1.9, 0.11)]
    assert out(capsys, "verify").splitlines() == [
        "inside a half: recorded 1.5, now 1.5, tolerance 0",
        "inside b half: recorded 1.9, now 2.0, tolerance 0.11",
    ]
    experiments += [sampled("c", 4.0, 1.9, 0.09), sampled("d", "4", 2.0, 0.0)]
    lines = out(capsys, "verify", "[a-d]", status=1).splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["inside", "a"],
        ["inside", "b"],
        ["outside", "c"],
        ["outside", "d"],
    ]
    assert "TypeError" in lines[-1]
    assert called == [3.0, 4.0, 3.0, 4.0, 4.0, "4"]


def test_verify_takes_what_a_record_does_not_name_from_the_experiment(
    experiments: list[Any], called: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    experiments += [sampled("a", 3.0, 1.5, 0.0, settings={})]
    assert out(capsys, "verify").startswith("inside a half: recorded 1.5, now 1.5")


def test_verify_trains_in_the_precision_of_the_record(
    experiments: list[Any],
    called: list[float],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from flatnb.experiments import runner

    devices: list[str] = []

    def in_precision_of(device: str) -> Any:
        devices.append(device)
        return nullcontext()

    monkeypatch.setattr(runner, "in_precision_of", in_precision_of)
    experiments += [sampled("a", 3.0, 1.5, 0.0), sampled("b", 3.0, 1.5, 0.0)]
    record = records.load("b")
    record["provenance"]["device"] = "NVIDIA H200"
    records.save(record, replace=True)
    out(capsys, "verify")
    assert devices == [records.load("a")["provenance"]["device"], "NVIDIA H200"]


def test_verify_keeps_what_it_found(
    experiments: list[Any], called: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    experiments += [sampled("a", 3.0, 1.5, 0.0), sampled("b", 4.0, 1.9, 0.09)]
    experiments += [sampled("c", "4", 2.0, 0.0)]
    out(capsys, "verify", status=1)
    table = records.dashboard().set_index("name")
    assert table["inside"].tolist() == [True, False, False]
    assert table["off"].tolist()[:2] == [0.0, pytest.approx(0.1)]
    assert table["repeated"].tolist() == ["sample"] * 3
    out(capsys, "verify", "a")
    assert len(records.dashboard()) == 3


@pytest.mark.parametrize("error", [FileNotFoundError, ModuleNotFoundError])
def test_what_cannot_be_repeated_here_is_said_and_counts_neither_way(
    experiments: list[Any],
    called: list[float],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: type[Exception],
) -> None:
    experiments += [sampled("a", 3.0, 1.5, 0.0), sampled("b", 4.0, 2.0, 0.0)]
    out(capsys, "verify", "a")
    before = records.verified()

    def lacks_its_data(x: float) -> None:
        raise error("no such thing here")

    monkeypatch.setattr(sys.modules["flatnb.data.sample"], "run", lacks_its_data)
    lines = out(capsys, "verify", status=1).splitlines()
    assert [line.split()[:2] for line in lines] == [["skipped", "a"], ["skipped", "b"]]
    assert "no such thing here" in lines[0]
    assert records.verified() == before


def test_verify_repeats_a_whole_run_when_asked(
    experiments: list[Any], called: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    one, old = sampled("a", 3.0, 1.5, 0.0), sampled("b", 3.0, 1.5, 0.0)
    for each in (one, old):
        each.settings = example()["settings"]
    one.whole_run = lambda record: {
        "call": one.sample.call,
        "settings": {"x": 7.0},
        "metrics": {"half": record["evaluation"]["chosen"]["final"]["test_loss"][2]},
        "tolerance": {"half": 4.0},
    }
    records.save(of_schema_1(records.load("b")), replace=True)
    experiments += [one, old]
    assert out(capsys, "verify", "--whole").splitlines() == [
        "inside a half: recorded 0.25, now 3.5, tolerance 4",
        "skipped b it has no fresh run",
    ]
    assert called == [7.0]
    found = records.verified()
    assert list(found) == ["a"] and abs(found["a"]["whole"]["change"]["half"]) == 3.25
    out(capsys, "verify", "a")
    assert set(records.verified()["a"]) == {"sample", "whole"}
    # The settings that would be trained are never those of a stranger.
    one.settings = one.settings[:2]
    text = out(capsys, "verify", "--whole", "a", status=2)
    assert text.startswith("flatnb: a is not verified: its settings are not those of")
    assert called == [7.0, 3.0]


# What a stranger's record may ask for; none is called, and no other sample either.
HOSTILE: dict[str, dict[str, Any]] = {
    "another module": {
        "call": "flatnb.book.cli:main",
        "settings": {"argv": ["address", ""]},
    },
    "terabytes at its own entry": {
        "call": "flatnb.experiments.sensing:train",
        "settings": {"d": 10**6, "rank": 1, "m": 10**9, "rules": [], "seeds": [0]},
    },
    "another argument": {"settings": {"x": 3.0, "checkpoint": "made"}},
    "another type": {"settings": {"x": [3.0]}},
}


@pytest.mark.parametrize("sample", HOSTILE.values(), ids=HOSTILE)
def test_verify_runs_nothing_when_a_record_asks_for_something_else(
    sample: dict[str, Any],
    experiments: list[Any],
    called: list[float],
    capsys: pytest.CaptureFixture[str],
    folder: Path,
) -> None:
    experiments += [sampled("a", 3.0, 1.5, 0.0), sampled("b", 3.0, 1.5, 0.0, **sample)]
    for reason in (
        "b is not verified, because its sample is not that of the exp",
        "b is not verified: no experiment of flatnb has this name",
    ):
        text = out(capsys, "verify", "[ab]", status=2)
        assert text.startswith(f"flatnb: {reason}") and len(text.splitlines()) == 1
        assert called == [] and list(folder.parent.iterdir()) == [folder]
        # Of all records, those that are of an experiment are repeated.
        text = out(capsys, "verify")
        assert f"skipped {reason}" in text and called == [3.0]
        called.clear()
        (folder / "verified.json").unlink()
        experiments[1:] = []


@pytest.mark.parametrize("call", ["os:system", "flatnb.a:b c", "flatnb.a.b"])
def test_a_call_of_another_package_is_not_even_read(
    call: str, experiments: list[Any], capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    experiments += [sampled("a", 3.0, 1.5, 0.0)]
    content = json.loads((folder / "a.json").read_text())
    content["sample"]["call"] = call
    (folder / "a.json").write_text(json.dumps(content))
    assert "a.json is not a valid record: record.sample.call: " in out(
        capsys, "verify", status=2
    )


def test_all_samples_of_the_book_are_those_of_their_experiments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from flatnb.experiments import EXPERIMENTS

    monkeypatch.delenv("FLATNB_RECORDS")
    made = {one.name: one.sample for one in EXPERIMENTS}
    for name in records.names():
        path = records.root() / f"{name}.json"
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["schema"] == 2:  # earlier ranges were others
            records.check_sample(record, made[name])
