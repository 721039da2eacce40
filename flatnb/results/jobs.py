"""One job of a sweep, and its result; the functions are for `sweep`.

`<folder>/<key>.json` is the result of a job. Next to it there can be `<key>.lock`,
locked while the job runs, `.<key>.json.*.part`, a result being written, and `<key>*.pt`,
the job's checkpoints. All may be deleted when no sweep runs.
"""

import hashlib
import importlib
import inspect
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from flatnb._checks import shown
from flatnb._files import sweep_up, whole


@dataclass(frozen=True)
class Job:
    """One call: `function(**settings)`, which returns a dict that JSON can hold.

    Attributes:
        call: "package.module:function"; every worker must be able to import the module.
        settings: arguments, all that determines the result; JSON makes tuples lists.
        cost: expected seconds on one core, no part of the key; the largest runs first.

    >>> Job("math:hypot", {"x": 3.0}).key
    'f559feb6dfd9c54d'
    """

    call: str
    settings: dict[str, Any]
    cost: float = 1.0

    @property
    def key(self) -> str:
        """16 hex digits of SHA-256 of [call, settings] as JSON; 1 and 1.0 differ."""
        job = [self.call, self.settings]
        text = json.dumps(job, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def run(self, checkpoint: Path | None = None) -> Any:
        """Call the function here; the path is for a parameter `checkpoint`.

        >>> Job("json:loads", {"s": "[1, 2]"}).run()
        [1, 2]
        """
        module, _, name = self.call.partition(":")
        function = getattr(importlib.import_module(module), name)
        if "checkpoint" in inspect.signature(function).parameters:
            return function(**self.settings, checkpoint=checkpoint)
        return function(**self.settings)


@dataclass(frozen=True)
class Result:
    """A job's `value`, or else its `error` ("Type: message"; its file has the
    traceback), and the `seconds` that the call took, 0 for an error."""

    job: Job
    value: dict[str, Any] | None
    error: str | None
    seconds: float


def read(folder: Path, job: Job) -> Result | None:
    """The job's result, or None; ValueError where its file holds something else."""
    path = folder / f"{job.key}.json"
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if Job(**kept["job"]).key != job.key:
            raise ValueError("it is of another job")
        return Result(job, kept.get("value"), kept.get("error"), kept["seconds"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a result ({type(error).__name__}: {error}); it is not "
            f"overwritten: move it away to run {job}"
        ) from None


def keep(job: Job, folder: Path, seconds: float = 0.0, **outcome: Any) -> None:
    """Write the job's file, with its `value` or `error`; the caller holds the lock."""
    path = folder / f"{job.key}.json"
    stated = {"call": job.call, "settings": job.settings}
    sweep_up(path)  # of processes that died
    with whole(path) as file:
        json.dump({"job": stated, **outcome, "seconds": seconds}, file, indent=1)
        file.write("\n")


def call(job: Job, folder: Path) -> None:
    """Call the function here, and keep what it returns or raises."""
    start = time.perf_counter()
    try:
        settings = json.loads(json.dumps(job.settings))
        value = Job(job.call, settings).run(folder / f"{job.key}.pt")
        if not isinstance(value, dict):
            raise TypeError(f"{job.call} returned {shown(value)}; allowed: a dict")
        keep(job, folder, time.perf_counter() - start, value=value)
    except (Exception, SystemExit) as error:
        text = "".join(traceback.format_exception(error))
        keep(job, folder, error=f"{type(error).__name__}: {error}", traceback=text)


def work(
    job: Job, folder: Path, compute: Callable[[Job, Path], None] = call
) -> Result | None:
    """The job's result, computed unless it exists; None when another sweep is at it."""
    lock = FileLock(folder / f"{job.key}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return read(folder, job)
    try:
        if read(folder, job) is None:
            compute(job, folder)
        result = read(folder, job)
        if result is not None and result.error is None:
            for checkpoint in folder.glob(f"{job.key}*.pt"):
                checkpoint.unlink(missing_ok=True)
        Path(lock.lock_file).unlink(missing_ok=True)  # later holders see the result
        return result
    finally:
        lock.release()


def main(end: int) -> None:
    """Make the call that stdin states; end, with all that the job started, when nothing
    can write to the pipe `end`."""
    threading.Thread(target=_end_with, args=(end,), daemon=True).start()
    name, settings, folder = json.load(sys.stdin)
    call(Job(name, settings), Path(folder))


def _end_with(end: int) -> None:
    os.read(end, 1)
    os.kill(0, signal.SIGKILL)  # the process group
