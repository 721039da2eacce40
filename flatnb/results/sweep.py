"""Sweeps: many calls of functions, each in a process of its own, each result in a file.

A job is a function's name and its settings; the hash of both is its key, and
`<folder>/<key>.json` its result. What is there is never computed again, so a sweep that
was interrupted, by Ctrl-C or by kill -9, is resumed by running it again, and several
sweeps, on one machine or on several that share the folder, divide the jobs among them:

    jobs = [Job("package.module:train", {"lr": lr}) for lr in (0.1, 1.0)]
    for result in run(jobs, "runs"):
        print(result.job.settings, result.value or result.error)
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import (
    CancelledError,
    Executor,
    Future,
    ThreadPoolExecutor,
)
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tqdm import tqdm

from flatnb._checks import flag, instance, integer, sequence, shown
from flatnb.results.jobs import BUSY, LOST, Job, Record, check, died, lock, read, work
from flatnb.results.provenance import cores

PAUSE = 1.0  # seconds until a job that another sweep holds is looked at again
QUEUED = 64  # Slurm jobs in the queue at a time
# How Dask and submitit say that a worker died under a job; neither need be installed.
DEATHS = {"KilledWorker", "UncompletedJobError"}


@dataclass(frozen=True)
class Result:
    """What became of a job: `value`, or else `error` ("Type: message").

    `seconds` is what the call took. The file of the result has the error's traceback.
    """

    job: Job
    value: dict[str, Any] | None
    error: str | None
    seconds: float
    key: str


def run(
    jobs: Sequence[Job],
    folder: Path | str,
    *,
    executor: Executor | str | None = None,
    workers: int | None = None,
    retry: bool = False,
    progress: bool = True,
) -> list[Result]:
    """Run what has no result in `folder` yet; return all results, in the jobs' order.

    A job that raises, or whose process dies, is kept with its error and does not stop
    the others. A function with a parameter `checkpoint` is given a path there: it may
    save its state in that file (aside, then rename) and goes on from it when it finds
    one; once there is a value, the file is removed. In a process of its own, a job has
    no input, and what it leaves running ends with it.

    Args:
        jobs: those of one key run once.
        folder: made if it is not there. Workers on other machines must see it under the
            same path.
        executor: by default a process per job, on this machine. Or any
            `concurrent.futures.Executor`, which is left open; or "dask://host:port", a
            running scheduler; or "submitit://partition?timeout_min=60&cpus_per_task=4",
            Slurm with submitit's parameters (without Slurm, processes on this machine).
        workers: jobs at a time; by default one for each GPU, without GPUs one for each
            OMP_NUM_THREADS cores (1 if unset). Each computes with cores // workers
            threads, OMP_NUM_THREADS at the most, and sees one GPU. With submitit, jobs
            in the queue at a time (64).
        retry: also run jobs that are kept with an error.
        progress: show a progress bar.

    Raises:
        ValueError: before anything runs: a call that names no function, settings that
            are not JSON or that the function does not take, a file that is no result of
            its job.
        OSError: the folder cannot be written, the disk is full. No new job is started
            then; those that run are waited for, and what is finished is kept.
        BrokenExecutor, CancelledError: the executor given takes or runs no more jobs.
        KeyboardInterrupt: Ctrl-C ends the running jobs; what is finished is kept.

    >>> import tempfile
    >>> job = Job("flatnb.results.provenance:versions", {"packages": ["torch"]})
    >>> with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as threads:
    ...     (result,) = run([job], folder, executor=threads, progress=False)
    >>> sorted(result.value), result.error
    (['python', 'torch'], None)
    """
    jobs = sequence("jobs", jobs, Job, "a list of Job")
    flag("retry", retry)
    flag("progress", progress)
    instance("folder", folder, (str, Path), "the path of a folder")
    if not str(folder) or "\0" in str(folder):
        raise ValueError(f"folder={shown(folder)}; allowed: the path of a folder")
    _check_executor(executor, workers)
    folder = Path(folder).absolute()
    keyed = {job.key: job for job in jobs}
    for job in keyed.values():
        check(job)
    folder.mkdir(parents=True, exist_ok=True)
    records: dict[str, Record] = {}
    for key, job in keyed.items():
        record = read(folder, job)
        if record is not None and retry and "error" in record:
            (folder / f"{key}.json").unlink(missing_ok=True)
        elif record is not None:
            records[key] = record
    missing = [job for key, job in keyed.items() if key not in records]
    missing.sort(key=lambda job: -job.cost)
    if not missing:
        return [_result(job, records[job.key]) for job in jobs]
    with (
        _executor(executor, workers, folder) as pool,
        _bar(len(keyed), records, folder, progress) as bar,
    ):
        for job, record in _computed(pool, missing, folder):
            records[job.key] = record
            bar.update()
            if "error" in record and progress:
                bar.write(f"failed {job}: {_message(record)}", sys.stderr)
    return [_result(job, records[job.key]) for job in jobs]


@contextlib.contextmanager
def _bar(
    total: int, records: dict[str, Record], folder: Path, progress: bool
) -> Iterator[Any]:
    """A progress bar; what stops the sweep says how many jobs are kept."""
    seconds = 0.2 if sys.stderr.isatty() else 30.0  # between two lines of a log
    with tqdm(
        total=total,
        initial=len(records),
        unit="job",
        mininterval=seconds,
        disable=not progress,
    ) as bar:
        try:
            yield bar
        except BaseException as error:
            note = (
                f"{len(records)} finished jobs are kept in {folder}, "
                f"{total - len(records)} are open; run the same sweep again to go on"
            )
            if progress:
                bar.write(note, sys.stderr)
            error.add_note(note)
            raise


def _result(job: Job, record: Record) -> Result:
    error = _message(record) if "error" in record else None
    return Result(job, record.get("value"), error, record["seconds"], job.key)


def _message(record: Record) -> str:
    return f"{record['error']['type']}: {record['error']['message']}"


def _computed(
    pool: Executor, waiting: Sequence[Job], folder: Path
) -> Iterator[tuple[Job, Record]]:
    """Each job with its record, as they end."""
    pending: dict[Future[Record | None], Job] = {}
    ended: queue.SimpleQueue[Future[Record | None]] = queue.SimpleQueue()
    try:
        while waiting or pending:
            for job in waiting:
                future = pool.submit(work, job, folder)
                pending[future] = job
                future.add_done_callback(ended.put)
            future = ended.get()
            job = pending.pop(future)
            record = _outcome(job, future, folder)
            waiting = [job] if record is None else []
            if record is not None:
                yield job, record
            else:  # another sweep is at this job
                time.sleep(PAUSE)
    finally:
        for future in pending:
            future.cancel()


def _outcome(job: Job, future: Future[Record | None], folder: Path) -> Record | None:
    try:
        return future.result()
    except Exception as error:
        if type(error).__name__ not in DEATHS:
            raise
        return died(job, folder, str(error))


# --- executors ----------------------------------------------------------------------


def _check_executor(executor: object, workers: object) -> None:
    allowed = (
        "None, an Executor, dask://host:port or submitit://partition?timeout_min=60"
    )
    instance("executor", executor, (str, Executor, type(None)), allowed)
    text = executor if isinstance(executor, str) else None
    if text is not None and not text.startswith(("dask://", "submitit://")):
        raise ValueError(f"executor={shown(executor)}; allowed: {allowed}")
    if workers is not None:
        integer("workers", workers)
        if executor is not None and not str(text).startswith("submitit://"):
            raise ValueError(
                f"workers={shown(workers)}, but {executor!r} has its own; leave it out"
            )


@contextlib.contextmanager
def _executor(
    executor: Executor | str | None, workers: int | None, folder: Path
) -> Iterator[Executor]:
    """What runs the jobs; our own is closed at the end, on Ctrl-C with its jobs."""
    if isinstance(executor, Executor):
        yield executor
        return
    if executor is None:
        pool: _Processes | _Slurm = _Processes(_environments(workers))
    elif executor.startswith("submitit://"):
        pool = _Slurm(executor, workers or QUEUED, folder)
    else:
        with _cluster("distributed").Client(
            executor.replace("dask", "tcp", 1)
        ) as client:
            # pure: Dask would answer a second try with the outcome of the first.
            yield client.get_executor(pure=False)
        return
    try:
        yield pool
    except KeyboardInterrupt:
        pool.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _environments(workers: int | None) -> list[dict[str, str]]:
    """What each worker's environment adds to ours: thread counts, and its GPU."""
    import torch  # here, so that nothing but the default workers needs it

    limit = int(os.environ.get("OMP_NUM_THREADS") or 0)
    gpus = torch.cuda.device_count()  # without starting CUDA in this process
    workers = workers or gpus or max(1, cores() // max(1, limit))
    threads = str(min(max(1, cores() // workers), limit or cores()))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
    environments = []
    for worker in range(workers):
        environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        if gpus > 1:
            environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[worker % gpus]
        environments.append(environment)
    return environments


class _Processes(ThreadPoolExecutor):
    """Threads that each start a process per job and wait for it."""

    def __init__(self, environments: Sequence[dict[str, str]]) -> None:
        super().__init__(len(environments))
        self._free: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        for environment in environments:
            self._free.put(environment)
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        return super().submit(self._run, *args)

    def _run(self, job: Job, folder: Path) -> Record | None:
        with lock(folder, job) as held:  # look before a process is started
            record = read(folder, job)
        if record is not None or not held:
            return record
        environment = self._free.get()
        try:
            code = self._process([job.call, job.settings, str(folder)], environment)
        finally:
            self._free.put(environment)
        if self._stopped:
            raise CancelledError
        if code == BUSY:
            return None
        if code == LOST:
            raise OSError(f"the result of {job} cannot be kept in {folder}: see above")
        return died(job, folder, f"exit code {code} (killed, or out of memory?)")

    def _process(self, message: list[Any], environment: dict[str, str]) -> int:
        """The exit code of the process of a job."""
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        with subprocess.Popen(
            [sys.executable, "-Pc", "from flatnb.results.jobs import main; main()"],
            stdin=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path, **environment},
            start_new_session=True,  # Ctrl-C is for the sweep
        ) as process:
            self._running.add(process)
            if self._stopped:
                process.kill()
            with contextlib.suppress(BrokenPipeError):
                print(json.dumps(message), file=process.stdin, flush=True)
            code = process.wait()
            self._running.discard(process)
            with contextlib.suppress(ProcessLookupError):  # what the job left running
                os.killpg(process.pid, signal.SIGKILL)
            return code

    def kill(self) -> None:
        self._stopped = True
        for process in list(self._running):
            process.kill()


def _cluster(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{module} is not installed ({error}): pip install 'flatnb[cluster]'",
            name=module,
        ) from error


class _Slurm(ThreadPoolExecutor):
    """submitit's jobs as futures: threads that each wait for a job in the queue."""

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

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        return super().submit(self._call, function, *args)

    def _call(self, function: Any, *args: Any) -> Any:
        job = self._executor.submit(function, *args)
        self._jobs.append(job)
        return job.result()

    def kill(self) -> None:
        for job in self._jobs:
            job.cancel()
