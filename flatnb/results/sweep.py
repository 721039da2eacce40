"""Sweeps: many calls of functions, each in a process of its own, each result in a file.

The hash of a job's function and settings is its key, `<folder>/<key>.json` its result.
What is there is never computed again: a sweep that was interrupted, even by kill -9,
resumes when run again; sweeps that share a folder, on any machines, divide the jobs.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qsl, urlsplit

import torch
from tqdm import tqdm

from flatnb._checks import integer, sequence, shown
from flatnb.results.jobs import Job, Result, keep, read, work
from flatnb.results.provenance import cores

PAUSE = 1.0  # seconds until a job that another sweep holds is looked at again
QUEUED = 64  # jobs in the queue of an executor at a time
# How Dask and submitit say that a worker died under a job; neither need be installed.
DEATHS = {"KilledWorker", "UncompletedJobError"}


def run(
    jobs: Sequence[Job],
    folder: Path | str,
    *,
    executor: futures.Executor | str | None = None,
    workers: int | None = None,
    retry: bool = False,
) -> list[Result]:
    """Run the jobs that have no result in `folder` yet; return all results, in order.

    A job that raises, or whose process dies, is kept with its error; the others continue.
    A function's parameter `checkpoint` is a path there, `<key>.pt`: it may save its
    state in it, or in several `<key>*.pt`, and go on from them; a value removes them. A
    job's process has no input, and what it leaves running ends with it.

    Args:
        folder: made if it is not there; workers elsewhere must see it at the same path.
        executor: by default a process per job, on this machine; or, left open, a
            `concurrent.futures.Executor`; "dask://host:port", a running scheduler; or
            "submitit://partition?timeout_min=60", Slurm with submitit's parameters.
        workers: jobs at a time: by default one for each GPU, else one for each
            OMP_NUM_THREADS cores (1 if unset). Each has cores // workers threads,
            OMP_NUM_THREADS at the most, and one GPU. Of an executor: jobs queued (64).
        retry: also run jobs that are kept with an error.

    A file that is not a result of its job raises a ValueError. After Ctrl-C, or when the
    folder cannot be written, running jobs end, and what is finished is kept.

    >>> import tempfile
    >>> job = Job("flatnb.results.provenance:versions", {"packages": ["torch"]})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     (result,) = run([job], folder, executor=futures.ThreadPoolExecutor(1))
    >>> sorted(result.value), result.error
    (['flatnb', 'python', 'torch'], None)
    """
    jobs = sequence("jobs", jobs, Job, "a list of Job")
    keyed = {job.key: job for job in jobs}
    if workers is not None:
        integer("workers", workers)
    folder = Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Result] = {}
    for key, job in keyed.items():
        result = read(folder, job)
        if result is not None and retry and result.error is not None:
            (folder / f"{key}.json").unlink(missing_ok=True)
        elif result is not None:
            results[key] = result
    missing = [job for key, job in keyed.items() if key not in results]
    missing.sort(key=lambda job: -job.cost)
    if not missing:
        return [results[job.key] for job in jobs]
    with (
        _place(executor, workers, folder) as place,
        tqdm(
            total=len(keyed),
            initial=len(results),
            unit="job",
            mininterval=0.2 if sys.stderr.isatty() else 30.0,  # of a log
        ) as bar,
    ):
        try:
            for result in _computed(place, missing, folder):
                results[result.job.key] = result
                bar.update()
                if result.error is not None:
                    bar.write(f"failed {result.job}: {result.error}", sys.stderr)
        except BaseException:
            state = f"{len(results)} of {len(keyed)} jobs are kept in {folder}"
            bar.write(f"{state}; run the sweep again to resume", sys.stderr)
            raise
    return [results[job.key] for job in jobs]


def _computed(
    place: _Processes | _Queue, missing: Sequence[Job], folder: Path
) -> Iterator[Result]:
    """The results of the jobs, as they end."""
    with futures.ThreadPoolExecutor(place.workers) as threads:
        pending = {threads.submit(place.result, job, folder): job for job in missing}
        try:
            while pending:
                for future in futures.wait(pending, return_when="FIRST_COMPLETED").done:
                    job = pending.pop(future)
                    result = future.result()
                    if result is not None:
                        yield result
                    else:  # another sweep is at this job
                        time.sleep(PAUSE)
                        pending[threads.submit(place.result, job, folder)] = job
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            place.kill()
            raise


@contextlib.contextmanager
def _place(
    executor: futures.Executor | str | None, workers: int | None, folder: Path
) -> Iterator[_Processes | _Queue]:
    address = urlsplit(executor if isinstance(executor, str) else "")
    if executor is None:
        reading, writing = os.pipe()
        with open(reading, "rb") as end, open(writing, "wb") as lifeline:
            yield _Processes(_environments(workers), end.fileno(), lifeline)
    elif isinstance(executor, futures.Executor):
        yield _Queue(executor.submit, workers)
    elif address.scheme == "dask":
        import distributed

        with distributed.Client(f"tcp://{address.netloc}") as client:
            # pure: Dask would answer a second try with the outcome of the first.
            yield _Queue(functools.partial(client.submit, pure=False), workers)
    elif address.scheme == "submitit":
        import submitit

        options: dict[str, Any] = {}
        if address.netloc:
            options["slurm_partition"] = address.netloc
        for name, value in parse_qsl(address.query):
            options[name] = int(value) if value.isdigit() else value
        slurm = submitit.AutoExecutor(folder / "submitit")
        slurm.update_parameters(**options)
        yield _Queue(slurm.submit, workers)
    else:
        raise ValueError(
            f"executor={shown(executor)}; allowed: None, an Executor, dask://host:port "
            "or submitit://partition?timeout_min=60"
        )


class _Queue:
    """An executor of concurrent.futures, Dask or submitit, by its `submit`."""

    def __init__(self, submit: Callable[..., Any], workers: int | None) -> None:
        self.workers = workers or QUEUED
        self._submit = submit
        self._submitted: list[Any] = []

    def result(self, job: Job, folder: Path) -> Result | None:
        future = self._submit(work, job, folder)
        self._submitted.append(future)
        try:
            return future.result()
        except Exception as error:
            if type(error).__name__ not in DEATHS:
                raise
            death = functools.partial(keep, error=f"WorkerDied: {error}")
            return work(job, folder, death)

    def kill(self) -> None:
        for future in self._submitted:
            future.cancel()


def _environments(workers: int | None) -> list[dict[str, str]]:
    """What each process's environment adds to ours: thread counts, and its GPU."""
    limit = int(os.environ.get("OMP_NUM_THREADS") or 0)
    gpus = torch.cuda.device_count()  # without starting CUDA in this process
    workers = workers or gpus or max(1, cores() // max(1, limit))
    threads = str(min(max(1, cores() // workers), limit or cores()))
    added = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
    places = visible.split(",")
    return [
        {**added, "CUDA_VISIBLE_DEVICES": places[worker % len(places)]}
        for worker in range(workers)
    ]


class _Processes:
    """A process per job, each in one of the environments. They end when the pipe to
    `end` has no `lifeline`: `kill` closes it, or the kernel when this process dies."""

    def __init__(
        self, environments: list[dict[str, str]], end: int, lifeline: IO[bytes]
    ) -> None:
        self.workers = len(environments)
        self._free: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        for environment in environments:
            self._free.put(environment)
        self._end = end
        self._lifeline = lifeline

    def result(self, job: Job, folder: Path) -> Result | None:
        return work(job, folder, self._compute)

    def _compute(self, job: Job, folder: Path) -> None:
        environment = self._free.get()
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        code = f"from flatnb.results.jobs import main; main({self._end})"
        with subprocess.Popen(
            [sys.executable, "-Pc", code],
            stdin=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path, **environment},
            pass_fds=[self._end],
            start_new_session=True,  # Ctrl-C is for the sweep
        ) as process:
            process.communicate(json.dumps([job.call, job.settings, str(folder)]))
        self._free.put(environment)
        with contextlib.suppress(ProcessLookupError):  # what the job left running
            os.killpg(process.pid, signal.SIGKILL)
        if self._lifeline.closed:
            raise futures.CancelledError
        if read(folder, job) is None:
            reason = f"exit code {process.returncode} (killed, or out of memory?)"
            keep(job, folder, error=f"WorkerDied: {reason}")

    def kill(self) -> None:
        self._lifeline.close()
