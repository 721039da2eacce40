"""Sweeps: many calls of functions, spread over workers, each result kept in a file of
its own.

A job is a function's name and its settings; the hash of both is its key, and
`<folder>/<key>.json` its result. What is there is never computed again, so a sweep that
was interrupted, by Ctrl-C or by kill -9, is resumed by running it again, and several
sweeps, on one machine or on several that share the folder, divide the jobs among them:

    jobs = [Job("package.module:train", {"lr": lr, "seed": s}) for lr in (0.1, 1) for s
    in range(5)] for result in run(jobs, "runs"):
        print(result.job.settings, result.value or result.error)

In a script the call of `run` must stand under `if __name__ == "__main__":`, because
each worker process imports the script anew.

Beside a result there can be, while its job is not finished: `<key>.lock`, under an
    advisory file
lock that the kernel frees when its holder dies; `.<key>.json.*.part`, the result being
written; `<key>.pt`, the job's checkpoint. What a killed worker left of them beside its
result goes with the next sweep; all may be deleted when no sweep runs. The folder's
file system must know flock: local disks and NFS do. On Windows the lock is msvcrt's,
    where this module is not tested.
"""

import contextlib
import errno
import hashlib
import importlib
import inspect
import itertools
import json
import multiprocessing
import os
import queue
import shutil
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from flatnb._checks import flag, instance, integer, number, sequence, shown
from flatnb._files import sweep_up, whole

FULL = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
}  # says nothing about the job: never its result
# How the executors say that a worker died under a job, beside BrokenExecutor: Dask's
# and submitit's exceptions, by name because neither need be installed.
DEATHS = {"KilledWorker", "UncompletedJobError"}
GIVE_UP = (
    5  # deaths under one job, the last ones while only its failure was to be written
)
QUEUED = 64  # Slurm jobs in the queue at a time
AGAIN = 1.0  # seconds until a job that another sweep holds is looked at again
GONE = 300.0  # seconds without any worker, after there were some, that end a sweep over Dask
QUIET = 30.0  # seconds between two lines of progress where there is no terminal


@dataclass(frozen=True)
class Job:
    """One call: `function(**settings)` in a worker, which returns a dict that JSON can
    hold.

    Attributes:
        call: "package.module:function"; every worker must be able to import the module.
        settings: the keyword arguments, everything that determines the result. The
            function gets them as JSON gives them back: a tuple is a list.
        cost: expected seconds on one core. The largest runs first; it is no part of the
            key.
    """

    call: str
    settings: dict[str, Any]
    cost: float = 1.0

    def __post_init__(self) -> None:
        instance("call", self.call, str, "text, package.module:function")
        instance("settings", self.settings, dict, "a dict of keyword arguments")
        number("cost", self.cost, "seconds, a number >= 0", 0, closed=True)

    @property
    def key(self) -> str:
        """16 hex digits of the SHA-256 of [call, settings] as JSON, sorted, without
        spaces.

        1 and 1.0 differ. Raises ValueError when settings are not JSON (NaN is not).
        """
        try:
            text = json.dumps(
                [self.call, self.settings],
                sort_keys=True,
                separators=(",", ":"),
                allow_nan=False,
            )
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"settings of {self.call} are {self.settings!r}: {error}; allowed is what JSON "
                "holds (numbers, strings, booleans, None, lists, dicts)"
            ) from None
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def run(self) -> Any:
        """Call the function in this process."""
        return _function(self.call)(**self.settings)

    def __str__(self) -> str:
        settings = ", ".join(
            f"{name}={value!r}" for name, value in self.settings.items()
        )
        return f"{self.call.rpartition(':')[2]}({settings})"


@dataclass(frozen=True)
class Result:
    """What became of a job: `value`, or else `error` ("Type: message"; the traceback is
    in the file). `seconds` is what the call took."""

    job: Job
    value: dict[str, Any] | None
    error: str | None
    seconds: float
    key: str


class WorkerDied(Exception):
    """The error of a job under which two worker processes died."""


def run(
    jobs: Sequence[Job],
    folder: Path | str,
    *,
    executor: Executor | str | None = None,
    workers: int | None = None,
    retry: bool = False,
    progress: bool = True,
) -> list[Result]:
    """Run what has no result in `folder` yet; return the results in the order of
    `jobs`.

    A function with a parameter `checkpoint` is given a path there: it may save its
        state in that
    file (aside, then rename) and goes on from it when it finds one; once there is a
    value, the file is removed. A job that raises is kept with its error and does not
    stop the rest. A job whose worker dies is run once more, then kept as a `WorkerDied`
    error.

    Args:
        jobs: those of one key run once.
        folder: made if it is not there. Workers on other machines must see it under the
            same path.
        executor: any `concurrent.futures.Executor`, left open; or "dask://host:port", a
            running scheduler, whose first worker is waited for; or
            "submitit://partition?timeout_min=60&cpus_per_task=4", Slurm with submitit's
            parameters (without Slurm, processes on this machine). By default processes
            here.
        workers: processes; by default one for each GPU, without GPUs one for each
            OMP_NUM_THREADS cores (1 if unset). Each computes with cores // workers
            threads, OMP_NUM_THREADS at the most, and sees one GPU. With submitit, jobs
            in the queue at a time (64).
        retry: also run jobs that are kept with an error.
        progress: print a line that is redrawn on a terminal, plain lines now and then
            elsewhere.

    Raises:
        ValueError: before anything runs: a call that names no function, settings that
            are not JSON or that the function does not take, a file that is no result of
            its job.
        OSError: the folder cannot be written, the disk is full. No new job is started
            then; those that run are waited for, and what is finished is kept.
        RuntimeError: workers cannot be started, the executor given is broken, or none
            of Dask's workers is left.
        KeyboardInterrupt: Ctrl-C ends the running jobs; what is finished is kept.
    """
    jobs = sequence("jobs", jobs, Job, "a list of Job")
    if workers is not None:
        workers = integer("workers", workers)
    flag("retry", retry), flag("progress", progress)
    if not instance(
        "folder", folder, (str, Path), "the path of a folder"
    ) or "\0" in str(folder):
        raise ValueError(f"folder={shown(folder)}; allowed: the path of a folder")
    if executor is not None:
        instance(
            "executor", executor, (str, Executor), "None, an Executor, or its address"
        )
    folder = Path(folder).absolute()
    keys = [job.key for job in jobs]
    unique: dict[str, Job] = {}
    for job, key in zip(jobs, keys, strict=True):
        unique.setdefault(key, job)
    for job in unique.values():
        _check(job)
    folder.mkdir(parents=True, exist_ok=True)
    sweep = _Sweep(folder, unique, retry, _Progress(len(unique)) if progress else None)
    if sweep.open:
        with _executor(executor, workers, folder) as pool:
            sweep.run(pool)
    return [
        _result(job, key, sweep.records[key])
        for job, key in zip(jobs, keys, strict=True)
    ]


def _check(job: Job) -> None:
    """ValueError unless the call names a function that takes the settings."""
    function = _function(job.call)
    parameters = inspect.signature(function)
    given = dict(job.settings)
    if "checkpoint" in parameters.parameters:
        if "checkpoint" in given:
            raise ValueError(
                f"{job}: `checkpoint` is given by the sweep; leave it out of settings"
            )
        given["checkpoint"] = None
    try:
        parameters.bind(**given)
    except TypeError as error:
        raise ValueError(
            f"{job}: {error}; the function is {job.call}{parameters}"
        ) from None


def _function(call: str) -> Callable[..., Any]:
    module, _, name = call.partition(":")
    if not module or not name.isidentifier():
        raise ValueError(
            f"call is {call!r}; it must be written package.module:function"
        )
    if module == "__main__":
        raise ValueError(
            f"{call} is in the running script, which workers cannot import; move the "
            "function into a module"
        )
    try:
        function = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise ValueError(f"{call} cannot be imported: {error}") from error
    if not callable(function):
        raise ValueError(f"{module} has no function {name}: call is {call!r}")
    return function


def _result(job: Job, key: str, record: Mapping[str, Any]) -> Result:
    error = record.get("error")
    text = f"{error['type']}: {error['message']}" if error else None
    return Result(job, record.get("value"), text, record["seconds"], key)


# --- the sweep, in the process that called run --------------------------------------


class _Sweep:
    """The jobs still open, handed to an executor until each has a record."""

    def __init__(
        self,
        folder: Path,
        jobs: dict[str, Job],
        retry: bool,
        progress: "_Progress | None",
    ) -> None:
        self.folder, self.progress = folder, progress
        self.records: dict[str, dict[str, Any]] = {}
        self.stale: dict[str, dict[str, Any]] = {}  # errors that are to be tried again
        for key, job in jobs.items():
            record = _read(folder, job, key)
            if record is not None:
                _tidy(folder, key, record)
                known = self.stale if retry and "error" in record else self.records
                known[key] = record
        rest = (job for key, job in jobs.items() if key not in self.records)
        self.open = {job.key: job for job in sorted(rest, key=lambda job: -job.cost)}
        self.futures: dict[Future[Any], Job] = {}
        self.ended: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        self.elsewhere: list[Job] = []  # locked by another sweep
        self.deaths: Counter[str] = Counter()
        self.failure: BaseException | None = None

    def run(self, executor: Executor) -> None:
        if self.progress:
            workers = executor.workers if isinstance(executor, _Processes) else None
            self.progress.start(list(self.open.values()), workers)
        try:
            for job in list(self.open.values()):
                self._submit(executor, job)
            looked = time.monotonic()
            while self.futures or (self.elsewhere and not self.failure):
                with contextlib.suppress(queue.Empty):
                    self._end(executor, self.ended.get(timeout=0.2))
                if (
                    time.monotonic() > looked + AGAIN
                    and self.elsewhere
                    and not self.failure
                ):
                    looked, again, self.elsewhere = time.monotonic(), self.elsewhere, []
                    for job in again:
                        self._submit(executor, job)
                if isinstance(executor, _Dask) and (gone := executor.gone()):
                    self._fail(RuntimeError(gone))
                if self.progress:
                    self.progress.status(self.futures)
        except KeyboardInterrupt as error:
            self._stop()
            self._say("interrupted")
            self.failure = error
        if self.failure:
            self._say(self._kept())
            self.failure.add_note(self._kept())
            raise self.failure
        if self.progress:
            self.progress.finish()

    def _submit(self, executor: Executor, job: Job) -> None:
        if self.failure:
            return
        key = job.key
        died = (
            f"{self.deaths[key]} worker processes died"
            if self.deaths[key] > 1
            else None
        )
        try:
            future = executor.submit(_work, job, self.folder, self.stale.get(key), died)
        except RuntimeError as error:  # broken, or shut down
            self._fail(
                RuntimeError(
                    f"the executor takes no more jobs ({error}); give a new one"
                )
            )
            return
        self.futures[future] = job
        future.add_done_callback(self.ended.put)

    def _end(self, executor: Executor, future: "Future[Any]") -> None:
        """File what came of a job: a record, or the reason why there is none."""
        job = self.futures.pop(future)
        try:
            record = future.result()
        except CancelledError:  # by _stop; else the executor has lost it
            if self.failure is None:
                lost = f"the executor cancelled {job}: its workers or their scheduler are gone"
                self._fail(RuntimeError(f"{lost}; start them again, or give a new one"))
        except Exception as error:
            death = isinstance(error, BrokenExecutor) or type(error).__name__ in DEATHS
            self.deaths[job.key] += death
            if death and self.deaths[job.key] < GIVE_UP:
                self._submit(executor, job)
            else:
                self._fail(error)
        else:
            if record is None:
                self.elsewhere.append(job)
                return
            self.records[job.key] = record
            del self.open[job.key]
            if self.progress:
                self.progress.done(_result(job, job.key, record))

    def _fail(self, error: BaseException) -> None:
        """What stops the sweep; the jobs that run already are waited for."""
        if self.failure is None:
            self.failure = error
            self._say(
                f"{type(error).__name__}: {error}; no new jobs, waiting for the running ones"
            )
        self._stop()

    def _stop(self) -> None:
        for future in list(self.futures):
            future.cancel()

    def _kept(self) -> str:
        return (
            f"{len(self.records)} finished jobs are kept in {self.folder}, {len(self.open)} are "
            "open; run the same sweep again to go on"
        )

    def _say(self, text: str) -> None:
        if self.progress:
            self.progress.line(text)


class _Progress:
    """done/failed/running, time gone and an estimate of the time left."""

    def __init__(self, total: int) -> None:
        self.total, self.live = total, sys.stdout.isatty()

    def start(self, rest: Sequence[Job], workers: int | None) -> None:
        costs = [job.cost for job in rest]
        self.workers, self.begin, self.told = (
            workers,
            time.monotonic(),
            time.monotonic(),
        )
        self.cost_left, self.cost_done, self.busy = sum(costs), 0.0, 0.0
        self.done_before = self.finished = self.total - len(costs)
        self.failed = 0
        if self.done_before:
            self.line(f"{self.done_before} of {self.total} jobs are there already")

    def done(self, result: Result) -> None:
        self.finished += 1
        self.busy += result.seconds
        self.cost_done += result.job.cost
        self.cost_left -= result.job.cost
        if result.error is not None:
            self.failed += 1
            self.line(f"failed {result.job}: {result.error}")

    def left(self) -> float:
        """Seconds: open cost × seconds per cost so far / jobs at a time.

        How many run at a time is known of our own workers; of another executor it is
        measured.
        """
        together = self.workers or max(1.0, self.busy / (time.monotonic() - self.begin))
        return self.cost_left * self.busy / self.cost_done / together

    def status(self, futures: Collection["Future[Any]"]) -> None:
        quiet = 0.2 if self.live else QUIET
        if time.monotonic() < self.told + quiet:
            return
        self.told = time.monotonic()
        running = sum(future.running() for future in futures)
        text = (
            f"[{self.finished}/{self.total}] {self.failed} failed, {running} running, "
            f"{_clock(self.told - self.begin)} gone"
        )
        if self.cost_done:
            text += f", about {_clock(self.left())} left"
        if self.live:
            text = text[: shutil.get_terminal_size().columns - 1]
        print(
            f"\r\x1b[K{text}" if self.live else text,
            end="" if self.live else "\n",
            flush=True,
        )

    def line(self, text: str) -> None:
        print(f"\r\x1b[K{text}" if self.live else text, flush=True)

    def finish(self) -> None:
        text = f"{self.finished - self.done_before} jobs in {_clock(time.monotonic() - self.begin)}"
        if self.failed:
            text += f", {self.failed} of them failed (retry=True runs these again)"
        self.line(text)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


# --- one job, in a worker -----------------------------------------------------------


def _work(
    job: Job, folder: Path, stale: dict[str, Any] | None, died: str | None
) -> dict[str, Any] | None:
    """The job's record, computed unless it is there; None when another worker is at it.

    `stale` is the record of an error that is to be tried again. It is compared, not
    only known to
    be one: another sweep may have tried again meanwhile, and that is as good.
    """
    key = job.key
    with _lock(folder / f"{key}.lock") as held:
        if not held:
            return None
        record = _read(folder, job, key)
        if record is None or record == stale:
            record = _call(job, folder / f"{key}.pt", died)
            _write(folder / f"{key}.json", record)
        if "value" in record:
            (folder / f"{key}.pt").unlink(missing_ok=True)
        return record


def _tidy(folder: Path, key: str, record: Mapping[str, Any]) -> None:
    """Remove what a worker left that was killed between writing its result and ending."""
    lock = folder / f"{key}.lock"
    if lock.exists():
        with _lock(lock) as held:  # which removes it
            if held:
                sweep_up(folder / f"{key}.json")
            if held and "value" in record:
                (folder / f"{key}.pt").unlink(missing_ok=True)


def _call(job: Job, checkpoint: Path, died: str | None) -> dict[str, Any]:
    """Call the function; what it returned or raised as a record."""
    settings = json.loads(json.dumps(job.settings))
    given = dict(settings)
    outcome: dict[str, Any]
    start = time.perf_counter()
    try:
        if died:
            raise WorkerDied(f"{died} under this job (killed, or out of memory?)")
        function = _function(job.call)
        if "checkpoint" in inspect.signature(function).parameters:
            given["checkpoint"] = checkpoint
        value = function(**given)
        if not isinstance(value, dict):
            raise TypeError(
                f"{job.call} returned {type(value).__name__}; it must return a dict"
            )
        # The same value now as when it is read from the file later.
        outcome = {"value": json.loads(json.dumps(value))}
    except (Exception, SystemExit) as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        outcome = {
            "error": {
                "type": type(error).__name__,
                "message": str(error),
                "traceback": "".join(traceback.format_exception(error)),
            }
        }
    seconds = time.perf_counter() - start
    what = {"call": job.call, "settings": settings}
    return {"job": what, **outcome, "seconds": seconds, "threads": _threads()}


def _threads() -> int:
    """Threads the job computed with: torch's if it was imported, else what it would take."""
    if torch := sys.modules.get("torch"):
        return torch.get_num_threads()
    return int(os.environ.get("OMP_NUM_THREADS") or _cores())


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


# --- files --------------------------------------------------------------------------


def _read(folder: Path, job: Job, key: str) -> dict[str, Any] | None:
    """The job's record, or None; ValueError for a file that is none, which is left as it is."""
    path = folder / f"{key}.json"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        text = ""
    try:
        record = json.loads(text)
        stated = Job(record["job"]["call"], record["job"]["settings"]).key
        whole = _is_whole(record)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        why = f"is not a whole record ({type(error).__name__}: {error})"
    else:
        if whole and stated == key:
            return record
        why = f"holds the job {stated}" if whole else "is not a whole record"
    raise ValueError(f"{path} {why}; it is not overwritten: move it away to run {job}")


def _is_whole(record: Mapping[str, Any]) -> bool:
    """Whether it has seconds, and either a value or an error in words."""
    if not isinstance(record["seconds"], float):
        return False
    if "value" in record:
        return "error" not in record and isinstance(record["value"], dict)
    return all(isinstance(record["error"][part], str) for part in ("type", "message"))


def _write(path: Path, record: dict[str, Any]) -> None:
    """Write aside, on to the disk, then rename: no reader and no crash meets half a file."""
    sweep_up(
        path
    )  # of workers that died: nobody else writes it, since we hold the lock
    with whole(path) as file:
        json.dump(record, file, indent=1)
        file.write("\n")
    with contextlib.suppress(OSError):  # the name, too; not every file system can
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _try_lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Hold the lock while the block runs, if nobody does; whether it is held.

    The file is removed before the lock is freed. Somebody who had opened it by then
    gets the lock
    of a file without a name, which excludes nobody: that counts as not held.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            _try_lock(descriptor)
            held = os.path.samestat(os.fstat(descriptor), os.stat(path))
        except (BlockingIOError, PermissionError, FileNotFoundError):
            held = False
        try:
            yield held
        finally:
            if held:
                with contextlib.suppress(PermissionError):  # Windows keeps what is open
                    path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


# --- executors ----------------------------------------------------------------------


@contextlib.contextmanager
def _executor(
    given: Executor | str | None, workers: int | None, folder: Path
) -> Iterator[Executor]:
    """What runs the jobs; closed afterwards, its jobs ended if anything went wrong, if
    it is ours.

    Raises ValueError for another string, ModuleNotFoundError if what it takes is not
    installed.
    """
    if given is None:
        own: _Processes | _Slurm = _Processes(_environments(workers))
    elif isinstance(given, str) and given.startswith("submitit://"):
        own = _Slurm(given, workers or QUEUED, folder)
    elif workers is not None:
        raise ValueError(
            f"workers is {workers}, but {given!r} has its own; leave it out"
        )
    elif isinstance(given, Executor):
        yield given
        return
    elif given.startswith("dask://"):
        with _cluster("distributed").Client(
            f"tcp://{given.removeprefix('dask://')}"
        ) as client:
            yield _Dask(client, given)
        return
    else:
        raise ValueError(
            f"executor is {given!r}; a string can be dask://host:port or "
            "submitit://partition?timeout_min=60"
        )
    try:
        yield own
    except BaseException:
        own.kill()
        raise
    finally:
        own.shutdown()


def _cluster(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{module} is not installed ({error}): pip install 'flatnb[cluster]'",
            name=module,
        ) from error


def _environments(workers: int | None) -> list[dict[str, str]]:
    """For each worker, what its environment adds to ours: thread counts, and its GPU if several."""
    import torch  # here, so that nothing but the default workers needs it

    cores, limit = _cores(), int(os.environ.get("OMP_NUM_THREADS") or 0)
    gpus = torch.cuda.device_count()  # without starting CUDA in this process
    workers = workers or gpus or max(1, cores // max(1, limit))
    threads = str(min(max(1, cores // workers), limit or cores))
    shown = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
    environments = []
    for gpu in itertools.islice(
        itertools.cycle(shown.split(",")[:gpus] or [""]), workers
    ):
        environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        environments.append(
            environment | ({"CUDA_VISIBLE_DEVICES": gpu} if gpus > 1 else {})
        )
    return environments


class _Processes(ThreadPoolExecutor):
    """Worker processes, each with a thread of ours that waits for it.

    One ProcessPoolExecutor for all would fail all jobs when one process dies, and not
    say whose.
    """

    def __init__(self, environments: list[dict[str, str]]) -> None:
        self.workers = len(environments)
        super().__init__(self.workers)
        self._all = [_Worker(environment) for environment in environments]
        self._free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._all:
            self._free.put(worker)

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> "Future[Any]":
        return super().submit(self._call, function, *args, **kwargs)

    def _call(self, function: Any, *args: Any) -> Any:
        worker = self._free.get()
        try:
            return worker.call(function, *args)
        finally:
            self._free.put(worker)

    def kill(self) -> None:
        for worker in self._all:
            worker.kill()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait, cancel_futures=cancel_futures)
        for worker in self._all:
            worker.close()


class _Worker:
    """One process, started by its first job and again after it died."""

    starting = (
        threading.Lock()
    )  # a new process takes over our environment, which all share

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.pool: ProcessPoolExecutor | None = None
        self.pid = 0
        self.killed = False

    def call(self, function: Any, *args: Any) -> Any:
        try:
            future = self._started().submit(function, *args)
        except BrokenExecutor:  # it died while it had no job
            self.close()
            future = self._started().submit(function, *args)
        try:
            return future.result()
        except BrokenExecutor:
            self.close()
            raise

    def _started(self) -> ProcessPoolExecutor:
        for _ in range(3):  # a process can be killed while it starts, too
            if self.pool is None:
                self._start()
            if self.killed:
                raise RuntimeError("the sweep was stopped")
            if self.pool is not None:
                return self.pool
        raise RuntimeError(
            "a worker process died three times while it started; what it said is above. A script "
            'needs `if __name__ == "__main__":` around what calls sweep.run'
        )

    def _start(self) -> None:
        # spawn: neither torch's threads nor CUDA outlive a fork.
        pool = ProcessPoolExecutor(
            1, mp_context=multiprocessing.get_context("spawn"), initializer=_begin
        )
        with self.starting, _environment(self.environment):
            started = pool.submit(os.getpid)
        try:
            self.pid = started.result()
            self.pool = pool
        except BrokenExecutor:
            pool.shutdown()

    def kill(self) -> None:
        self.killed = True
        if self.pid:
            with contextlib.suppress(OSError):
                os.kill(self.pid, getattr(signal, "SIGKILL", signal.SIGTERM))

    def close(self) -> None:
        if self.pool:
            self.pool.shutdown()
        self.pool, self.pid = None, 0


@contextlib.contextmanager
def _environment(added: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _begin() -> None:
    """In a new worker: Ctrl-C is for the process that runs the sweep; end when that one ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()  # returns when it is gone, by kill -9 too
        os._exit(1)


class _Dask(Executor):
    """A Dask client's executor that notices when no worker is left.

    Dask starts a worker that died anew, but gives it up if the new one dies while it
    starts, as it does when the job that killed the first is handed to it at once.
    Without workers jobs would wait
    for ever. Before the first worker they may: a cluster's queue can be long.
    """

    def __init__(self, client: Any, address: str) -> None:
        self._client, self._address = client, address
        # pure: Dask would answer a second try of a job with the outcome of the first.
        self._executor = client.get_executor(pure=False)
        self._seen: float | None = None  # a worker, last
        self._asked = 0.0

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> "Future[Any]":
        return self._executor.submit(function, *args, **kwargs)

    def gone(self) -> str | None:
        """What to say once the workers are gone for good."""
        now = time.monotonic()
        if now < self._asked + AGAIN:
            return None
        self._asked = now
        if self._client.scheduler_info()["workers"]:
            self._seen = now
        if self._seen is None or now <= self._seen + GONE:
            return None
        return (
            f"{self._address} has had no worker for {GONE:g} s: they died, of a job's memory "
            "perhaps; start workers, and see their logs"
        )


class _Slurm(ThreadPoolExecutor):
    """submitit's jobs as futures, so many in the queue at a time, each with a thread that waits."""

    def __init__(self, address: str, workers: int, folder: Path) -> None:
        parts = urlsplit(address)
        options: dict[str, Any] = {
            name: int(value) if value.isdigit() else value
            for name, value in parse_qsl(parts.query)
        }
        if parts.netloc:
            options["slurm_partition"] = parts.netloc
        self._executor = _cluster("submitit").AutoExecutor(folder / "submitit")
        self._executor.update_parameters(**options)
        self._jobs: list[Any] = []
        super().__init__(workers)

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> "Future[Any]":
        return super().submit(self._call, function, *args, **kwargs)

    def _call(self, function: Any, *args: Any) -> Any:
        job = self._executor.submit(function, *args)
        self._jobs.append(job)
        return job.result()

    def kill(self) -> None:
        for job in self._jobs:
            job.cancel()
