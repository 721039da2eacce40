"""Sweeps: results are kept, once and whole, whatever dies, fails, fills up or runs
beside.
"""

import contextlib
import errno
import json
import math
import os
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sweep_jobs import writing

from flatnb.results import sweep
from flatnb.results.sweep import Job, Result, run

TESTS = Path(__file__).resolve().parent


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Workers that start at once: for what a process of its own would not change."""
    with ThreadPoolExecutor(2) as executor:
        yield executor


def process(folder: Path, log: Path, count: int, seconds: float, workers: int) -> Any:
    """`sweep_jobs` as a program, in a process group of its own."""
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "sweep_jobs",
            str(folder),
            str(log),
            str(count),
            str(seconds),
            str(workers),
        ],
        env=os.environ | {"PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parents[1]}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def until(fact: Callable[[], Any], seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def records(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Each record's file number, time of change and text: a file written again
    differs.
    """
    found = {}
    for path in folder.glob("*.json"):
        state = path.stat()
        found[path.name] = (state.st_ino, state.st_mtime_ns, path.read_text())
    return found


def assert_whole(
    folder: Path, jobs: list[Job], results: list[Result], beside: Collection[str] = ()
) -> None:
    """Every job has its value, in order; the folder holds their records, and those of
    the keys `beside`, and nothing else."""
    assert [result.value and result.value["name"] for result in results] == [
        job.settings["name"] for job in jobs
    ]
    keys = {job.key for job in jobs} | set(beside)
    assert {path.name for path in folder.iterdir()} == {f"{key}.json" for key in keys}
    for job in jobs:
        record = json.loads((folder / f"{job.key}.json").read_text())
        assert record["job"] == {"call": job.call, "settings": job.settings}


# --- jobs and their keys ------------------------------------------------------------


def test_key_is_that_of_the_content() -> None:
    key = Job("m:f", {"a": 1, "b": [1, 2]}).key
    assert len(key) == 16 and int(key, 16) >= 0
    assert key == Job("m:f", {"b": (1, 2), "a": 1}, cost=9).key
    others = [
        Job("m:g", {"a": 1, "b": [1, 2]}),
        Job("m:f", {"a": 1.0, "b": [1, 2]}),
        Job("m:f", {"a": 1, "b": [2, 1]}),
        Job("m:f", {}),
    ]
    assert len({key, *(job.key for job in others)}) == 5


@pytest.mark.parametrize(
    ("size", "message"), [({1}, "not JSON serializable"), (math.nan, "JSON")]
)
def test_settings_that_are_not_json_are_refused_before_anything_runs(
    size: object, message: str, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    log, job = tmp_path / "log", Job("sweep_jobs:fill", {"size": size})
    with pytest.raises((TypeError, ValueError), match=message):
        run([*writing(log, 1), job], tmp_path / "runs", executor=threads)
    assert not log.exists()


@pytest.mark.parametrize(
    ("job", "error"),
    [
        (Job("sweep_jobs.fill", {}), "ModuleNotFoundError: .*sweep_jobs.fill"),
        (Job("no_such_module:f", {}), "ModuleNotFoundError: .*no_such_module"),
        (Job("sweep_jobs:absent", {}), "AttributeError: .*'absent'"),
        (Job("sweep_jobs:fill", {"sise": 3}), "TypeError: .*'sise'"),
        (
            Job("sweep_jobs:resumable", {"upto": 1, "stop": 0, "checkpoint": "x"}),
            "TypeError: .*multiple values for keyword argument 'checkpoint'",
        ),
    ],
)
def test_what_cannot_be_called_fails_as_other_jobs_do(
    job: Job, error: str, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    (result,) = run([job], tmp_path, executor=threads)
    assert result.error and re.match(error, result.error)


def test_duplicates_run_once_and_the_costly_first(tmp_path: Path) -> None:
    log = tmp_path / "log"
    jobs = [
        Job(job.call, job.settings, cost)
        for job, cost in zip(writing(log, 4, 0), (1, 3, 2, 3), strict=True)
    ]
    with ThreadPoolExecutor(1) as one:
        results = run([*jobs, jobs[0]], tmp_path / "runs", executor=one, workers=1)
    assert log.read_text().splitlines() == ["job 1", "job 3", "job 2", "job 0"]
    assert [result.job for result in results] == [*jobs, jobs[0]]
    assert results[0] == results[4]
    assert_whole(tmp_path / "runs", jobs, results[:4])


def test_what_is_there_is_not_computed_again(
    tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    folder, log = tmp_path / "runs", tmp_path / "log"
    first = run(writing(log, 3), folder, executor=threads)
    before = records(folder)
    again = run(writing(log, 5), folder, executor=threads)
    assert again[:3] == first
    assert before.items() <= records(folder).items()
    assert Counter(log.read_text().splitlines()) == {f"job {i}": 1 for i in range(5)}


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"job": {}}', "another", "\udc80"])
def test_a_file_that_is_no_record_of_the_job_is_reported_and_left(
    damage: str, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    jobs = writing(tmp_path / "log", 2)
    run(jobs, tmp_path, executor=threads)
    path = tmp_path / f"{jobs[0].key}.json"
    if damage == "another":
        damage = (tmp_path / f"{jobs[1].key}.json").read_text()
    text = damage.encode(errors="surrogateescape")
    path.write_bytes(text)
    for retry in (False, True):
        with pytest.raises(ValueError, match=f"{jobs[0].key}.json .*not overwritten"):
            run(jobs, tmp_path, executor=threads, retry=retry)
    assert path.read_bytes() == text


# --- failures -----------------------------------------------------------------------


def test_a_failure_is_kept_and_stops_nothing_until_it_is_retried(
    tmp_path: Path, threads: ThreadPoolExecutor, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, marker = tmp_path / "runs", tmp_path / "marker"
    failing = Job("sweep_jobs:fail_unless", {"marker": str(marker)}, cost=2)
    jobs = [failing, Job("sweep_jobs:nothing", {}), *writing(tmp_path / "log", 3)]
    results = run(jobs, folder, executor=threads)
    assert (
        results[0].error == "ArithmeticError: marker is missing"
        and results[0].value is None
    )
    assert results[1].error and results[1].error.startswith(
        "TypeError: sweep_jobs:nothing"
    )
    assert all(result.value for result in results[2:])
    kept = json.loads((folder / f"{failing.key}.json").read_text())
    assert kept["error"] == results[0].error
    assert "in fail_unless" in kept["traceback"]
    shown = capsys.readouterr().err
    assert f"failed {failing}: ArithmeticError: marker is missing" in shown
    assert f"failed {jobs[1]}: TypeError: sweep_jobs:nothing returned None" in shown

    before = records(folder)
    marker.touch()
    assert run(jobs, folder, executor=threads) == results, "only retry tries again"
    assert records(folder) == before
    again = run(jobs, folder, executor=threads, retry=True)
    assert again[0].value == {"found": True} and again[0].error is None
    assert again[1].error == results[1].error
    assert again[2:] == results[2:]


def test_a_checkpoint_is_given_kept_over_a_failure_and_removed(
    tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    job = Job("sweep_jobs:resumable", {"upto": 5, "stop": 3})
    (result,) = run([job], tmp_path, executor=threads)
    assert result.error == "InterruptedError: at 3"
    assert (tmp_path / f"{job.key}.pt").read_text() == "3"
    (result,) = run([job], tmp_path, executor=threads, retry=True)
    assert result.value == {"start": 3, "count": 5}
    assert [path.name for path in tmp_path.iterdir()] == [f"{job.key}.json"]


@contextlib.contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file grows beyond `size` bytes: what is written up to there is written, as on
    a full disk; the error is EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_ends_the_sweep_and_loses_nothing_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, log = tmp_path / "runs", tmp_path / "log"
    jobs = writing(log, 4)
    with ThreadPoolExecutor(1) as one:
        run(jobs[:2], folder, executor=one)
        before = records(folder)
        with files_up_to(16), pytest.raises(OSError, match="too large") as caught:
            run(jobs, folder, executor=one)
        assert caught.value.errno == errno.EFBIG
        assert "2 of 4 jobs are kept" in capsys.readouterr().err
        assert records(folder) == before
        results = run(jobs, folder, executor=one)
    assert_whole(folder, jobs, results)
    assert before.items() <= records(folder).items()


def test_a_result_that_cannot_be_written_is_an_error_of_its_job(
    tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    big = Job("sweep_jobs:fill", {"size": 1 << 22})
    with files_up_to(1 << 21):
        (result,) = run([big], tmp_path, executor=threads)
    assert result.error and result.error.startswith("OSError: [Errno 27]")
    (result,) = run([big], tmp_path, executor=threads, retry=True)
    assert result.value


# --- other executors ----------------------------------------------------------------


def test_executors_are_named_in_errors(tmp_path: Path) -> None:
    jobs = writing(tmp_path / "log", 1)
    for executor in ("local", 3):
        with pytest.raises(ValueError, match=f"executor={executor!r}.*dask://host:por"):
            run(jobs, tmp_path, executor=executor)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="workers=0; allowed: an integer >= 1"):
        run(jobs, tmp_path, workers=0)


def test_a_dask_cluster_runs_the_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: ThreadPoolExecutor
) -> None:
    @contextlib.contextmanager
    def client(address: str) -> Iterator[Any]:
        assert address == "tcp://host:1"
        yield SimpleNamespace(submit=lambda *call, pure: threads.submit(*call))

    monkeypatch.setitem(sys.modules, "distributed", SimpleNamespace(Client=client))
    jobs = writing(tmp_path / "log", 2)
    results = run(jobs, tmp_path / "runs", executor="dask://host:1")
    assert_whole(tmp_path / "runs", jobs, results)


def test_slurm_runs_the_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters: dict[str, Any] = {}

    class AutoExecutor:
        def __init__(self, folder: Path) -> None:
            assert folder == tmp_path / "runs" / "submitit"

        def update_parameters(self, **options: Any) -> None:
            parameters.update(options)

        def submit(self, function: Callable[..., Any], *args: Any) -> Any:
            return SimpleNamespace(result=lambda: function(*args), cancel=lambda: None)

    module = SimpleNamespace(AutoExecutor=AutoExecutor)
    monkeypatch.setitem(sys.modules, "submitit", module)
    jobs = writing(tmp_path / "log", 2)
    results = run(jobs, tmp_path / "runs", executor="submitit://gpu?timeout_min=60")
    assert_whole(tmp_path / "runs", jobs, results)
    assert parameters == {"slurm_partition": "gpu", "timeout_min": 60}


def test_a_worker_that_died_on_a_cluster_is_the_error_of_its_job(
    tmp_path: Path,
) -> None:
    class KilledWorker(Exception):
        """Dask's, by its name."""

    class Deadly(ThreadPoolExecutor):
        def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> "Future[Any]":
            if args[0].call == "sweep_jobs:die":
                return super().submit(self._die)
            return super().submit(function, *args, **kwargs)

        def _die(self) -> None:
            raise KilledWorker("out of memory")

    killer = Job("sweep_jobs:die", {"log": "", "times": 99}, cost=2)
    jobs = [killer, *writing(tmp_path / "log", 4)]
    with Deadly(1) as executor:
        results = run(jobs, tmp_path / "runs", executor=executor)
    assert results[0].error == "WorkerDied: out of memory"
    assert_whole(tmp_path / "runs", jobs[1:], results[1:], beside={killer.key})


def test_an_executor_that_loses_a_job_or_is_shut_down_ends_the_sweep(
    tmp_path: Path,
) -> None:
    class Forgetful(ThreadPoolExecutor):
        def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> "Future[Any]":
            future: Future[Any] = Future()
            future.cancel()
            return future

    jobs = writing(tmp_path / "log", 2)
    with (
        Forgetful(1) as executor,
        pytest.raises(CancelledError),
    ):
        run(jobs, tmp_path / "runs", executor=executor)
    with ThreadPoolExecutor(1) as closed:
        pass
    with pytest.raises(RuntimeError, match="cannot schedule"):
        run(jobs, tmp_path / "runs", executor=closed)


def test_environments_share_cores_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def chosen(gpus: int, workers: int | None) -> list[tuple[str, str]]:
        monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
        found = sweep._environments(workers)
        return [(one["OMP_NUM_THREADS"], one["CUDA_VISIBLE_DEVICES"]) for one in found]

    assert chosen(0, None) == [("1", "")] * 8
    assert chosen(0, 3) == [("2", "")] * 3
    assert chosen(0, 20) == [("1", "")] * 20
    assert chosen(1, None) == [("8", "0")]
    assert chosen(2, None) == [("4", "0"), ("4", "1")]
    assert chosen(2, 3) == [("2", "0"), ("2", "1"), ("2", "0")]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert chosen(0, None) == [("2", "5"), ("2", "7")] * 2
    assert chosen(2, None) == [("2", "5"), ("2", "7")]


# --- two sweeps, and what dies ------------------------------------------------------


def test_two_sweeps_in_one_folder_share_the_jobs(tmp_path: Path) -> None:
    folder, log, jobs = (
        tmp_path / "runs",
        tmp_path / "log",
        writing(tmp_path / "log", 16),
    )
    results: list[list[Result]] = []

    def one() -> None:
        with ThreadPoolExecutor(2) as executor:
            results.append(run(jobs, folder, executor=executor))

    sweeps = [threading.Thread(target=one) for _ in range(2)]
    for thread in sweeps:
        thread.start()
    for thread in sweeps:
        thread.join()
    assert results[0] == results[1]
    assert Counter(log.read_text().splitlines()) == {f"job {i}": 1 for i in range(16)}
    assert_whole(folder, jobs, results[0])


def test_a_job_whose_process_was_killed_is_a_failure_and_the_others_run(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "runs"
    killed = Job(
        "sweep_jobs:die", {"log": str(tmp_path / "deaths"), "times": 1}, cost=2
    )
    threads = Job("sweep_jobs:environment", {"name": "OMP_NUM_THREADS"})
    jobs = [killed, threads, *writing(tmp_path / "log", 2, 0)]
    results = run(jobs, folder, workers=2)
    assert results[0].error and "WorkerDied: exit code -9" in results[0].error
    share = sweep._environments(2)[0]["OMP_NUM_THREADS"]
    assert results[1].value == {"OMP_NUM_THREADS": share}
    beside = {killed.key, threads.key}
    assert_whole(folder, jobs[2:], results[2:], beside=beside)
    (again,) = run([killed], folder, workers=1, retry=True)
    assert again.value == {"times": 1}


def test_two_sweeps_may_retry_a_job_at_once(
    tmp_path: Path, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, read = Job("sweep_jobs:nothing", {}), sweep.read
    (before,) = run([job], tmp_path, executor=threads)

    def read_late(folder: Path, job: Job) -> Any:
        record = read(folder, job)
        (folder / f"{job.key}.json").unlink()  # as the other sweep does
        return record

    monkeypatch.setattr(sweep, "read", read_late)
    (again,) = run([job], tmp_path, executor=threads, retry=True)
    assert again.error == before.error


def test_a_process_of_a_job_waits_for_no_input_and_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [Job("sweep_jobs:ask", {}), Job("sweep_jobs:leave", {})]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "filelock.py").write_text("raise ImportError")  # the user's own
    asked, left = run(jobs, tmp_path / "runs", workers=2)
    assert asked.error == "EOFError: EOF when reading a line"
    assert left.value
    until(lambda: not is_running(left.value["pid"]))


def test_killing_the_sweep_loses_nothing_and_leaves_no_process(tmp_path: Path) -> None:
    folder, log = tmp_path / "runs", tmp_path / "log"
    jobs = writing(log, 6, 2.0)
    with process(folder, log, 6, 2.0, workers=1) as sweeping:
        until(lambda: records(folder))
        until(lambda: workers_of(sweeping.pid))
        workers = workers_of(sweeping.pid)
        sweeping.kill()
    before = records(folder)
    until(lambda: not any(map(is_running, workers)))
    assert 1 <= len(before) < 6
    with ThreadPoolExecutor(4) as executor:
        results = run(jobs, folder, executor=executor)
    assert [result.value and result.value["name"] for result in results] == [
        f"job {i}" for i in range(6)
    ]
    assert before.items() <= records(folder).items()
    assert max(Counter(log.read_text().splitlines()).values()) <= 2


@pytest.mark.slow
def test_ctrl_c_ends_the_running_jobs_and_says_how_to_go_on(tmp_path: Path) -> None:
    folder, log = tmp_path / "runs", tmp_path / "log"
    with process(folder, log, 3, 300, workers=1) as sweeping:
        until(log.exists)
        workers = workers_of(sweeping.pid)
        os.killpg(sweeping.pid, signal.SIGINT)  # as a terminal does
        _, errors = sweeping.communicate(timeout=250)
    assert "0 of 3 jobs are kept" in errors and "again to resume" in errors
    assert "KeyboardInterrupt" in errors
    assert workers and not any(map(is_running, workers))
    assert not list(folder.glob("*.json"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_sweeps_lose_double_and_halve_no_record(tmp_path: Path) -> None:
    """Two sweeps share a folder; at random moments one of them is killed."""
    folder, log = tmp_path / "runs", tmp_path / "log"
    count, seconds, kills = 20, 0.5, 6
    jobs = writing(log, count, seconds)
    dice = random.Random(0)
    sweeps = [process(folder, log, count, seconds, workers=1) for _ in range(2)]
    seen: dict[str, tuple[int, int, str]] = {}
    for kill in range(kills):
        victim = sweeps[kill % 2]
        until(lambda victim=victim: workers_of(victim.pid))
        time.sleep(dice.uniform(0, 5))  # to start takes a job some seconds
        victim.kill()
        victim.communicate()
        sweeps[kill % 2] = process(folder, log, count, seconds, workers=1)
        now = records(folder)
        assert all("value" in json.loads(text) for _, _, text in now.values())
        assert seen.items() <= now.items(), (
            "a finished record is gone, or was written again"
        )
        seen = now
    assert 0 < len(seen) < count, "the kills fell outside the sweep"
    for sweeping in sweeps:
        _, errors = sweeping.communicate(timeout=250)
        assert sweeping.returncode == 0, errors
    with ThreadPoolExecutor(1) as executor:
        results = run(jobs, folder, executor=executor)
    assert all(result.value for result in results)
    assert seen.items() <= records(folder).items()
    # Only a job that a kill met runs again; each sweep runs one at a time.
    again = Counter(log.read_text().splitlines()).total() - count
    assert 0 <= again <= kills


def workers_of(pid: int) -> list[int]:
    """The processes of jobs that a process started."""
    command = ["ps", "-A", "-ww", "-o", "pid=,ppid=,args="]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()]
    return [
        int(row[0]) for row in rows if int(row[1]) == pid and "import main" in row[2]
    ]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
