"""One job of a sweep: its key, its file of results, and the call that makes it.

`<folder>/<key>.json` is the result of a job. Next to it there can be `<key>.lock`,
locked while the job runs (the kernel frees it when the holder dies),
`.<key>.json.*.part`, a result being written, and `<key>.pt`, the job's checkpoint. All
may be deleted when no sweep runs.
"""

from __future__ import annotations

import contextlib
import errno
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from flatnb._checks import instance, number, shown
from flatnb._files import sweep_up, whole
from flatnb.results.provenance import cores

Record = dict[str, Any]  # the content of a result's file
BUSY = 75  # exit code of a process whose job another sweep holds
LOST = 74  # exit code of a process that could not write the result
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # says nothing about the job


@dataclass(frozen=True)
class Job:
    """One call: `function(**settings)`, which returns a dict that JSON can hold.

    Attributes:
        call: "package.module:function"; every worker must be able to import the module.
        settings: the keyword arguments, everything that determines the result. The
            function gets them as JSON gives them back: a tuple is a list.
        cost: expected seconds on one core. The largest runs first; it is no part of the
            key.

    >>> job = Job("math:hypot", {"x": 3.0})
    >>> print(job, job.key)
    hypot(x=3.0) f559feb6dfd9c54d
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
        """16 hex digits of SHA-256 of [call, settings] as JSON, sorted, without spaces.

        1 and 1.0 differ.

        Raises:
            ValueError: the settings are not JSON (NaN is not).
        """
        job = [self.call, self.settings]
        try:
            text = json.dumps(
                job, sort_keys=True, separators=(",", ":"), allow_nan=False
            )
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"settings of {self.call} are {shown(self.settings)}: {error}; "
                "allowed: what JSON has (numbers, texts, booleans, None, lists, dicts)"
            ) from None
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def run(self) -> Any:
        """Call the function in this process."""
        return function_of(self.call)(**self.settings)

    def __str__(self) -> str:
        settings = ", ".join(
            f"{name}={value!r}" for name, value in self.settings.items()
        )
        return f"{self.call.rpartition(':')[2]}({settings})"


def check(job: Job) -> None:
    """ValueError unless the call names a function that takes the settings."""
    signature = inspect.signature(function_of(job.call))
    settings = dict(job.settings)
    if "checkpoint" in settings:
        raise ValueError(
            f"{job}: the sweep gives `checkpoint`; leave it out of settings"
        )
    if "checkpoint" in signature.parameters:
        settings["checkpoint"] = None
    try:
        signature.bind(**settings)
    except TypeError as error:
        raise ValueError(f"{job}: {error}; it is {job.call}{signature}") from None


def function_of(call: str) -> Callable[..., Any]:
    module, _, name = call.partition(":")
    if not module or module == "__main__" or not name.isidentifier():
        raise ValueError(
            f"call={call!r}; allowed: package.module:function, a module that workers "
            "can import"
        )
    try:
        function = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise ValueError(f"call={call!r} cannot be imported: {error}") from error
    if not callable(function):
        raise ValueError(f"call={call!r}: {module} has no function {name}")
    return function


# --- files --------------------------------------------------------------------------


def read(folder: Path, job: Job) -> Record | None:
    """The job's record, or None.

    Raises:
        ValueError: the file is no record of this job; it is left as it is.
    """
    path = folder / f"{job.key}.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        stated = Job(record["job"]["call"], record["job"]["settings"]).key
        complete = _is_complete(record)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"is no result ({type(error).__name__}: {error})"
    else:
        if complete and stated == job.key:
            return record
        reason = f"holds the job {stated}" if complete else "is no complete result"
    raise ValueError(
        f"{path} {reason}; it is not overwritten: move it away to run {job}"
    )


def _is_complete(record: Record) -> bool:
    if not isinstance(record["seconds"], float):
        return False
    if "value" in record:
        return "error" not in record and isinstance(record["value"], dict)
    return all(isinstance(record["error"][part], str) for part in ("type", "message"))


def _write(folder: Path, job: Job, outcome: Record, seconds: float) -> Record:
    """Write the job's record; the caller holds its lock."""
    # Threads that the job computed with: torch's, else what torch would take.
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else os.environ.get("OMP_NUM_THREADS")
    call = {"call": job.call, "settings": job.settings}
    record = {"job": call, **outcome, "seconds": seconds}
    record["threads"] = int(threads or cores())
    path = folder / f"{job.key}.json"
    sweep_up(path)  # of processes that died
    with whole(path) as file:
        json.dump(record, file, indent=1)
        file.write("\n")
    return json.loads(json.dumps(record))  # the same as when it is read later


@contextlib.contextmanager
def lock(folder: Path, job: Job) -> Iterator[bool]:
    """Hold the job's lock while the block runs, if nobody does; whether it is held."""
    path = folder / f"{job.key}.lock"
    file = FileLock(path)
    try:
        file.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        if (folder / f"{job.key}.json").exists():  # who gets the lock later sees it
            path.unlink(missing_ok=True)
        file.release()


# --- running ------------------------------------------------------------------------


def work(job: Job, folder: Path) -> Record | None:
    """The job's record, computed unless it exists; None when another sweep is at it."""
    checkpoint = folder / f"{job.key}.pt"
    with lock(folder, job) as held:
        record = read(folder, job)
        if record is None and held:
            start = time.perf_counter()
            outcome = _outcome(job, checkpoint)
            record = _write(folder, job, outcome, time.perf_counter() - start)
        if record is not None and "value" in record:
            checkpoint.unlink(missing_ok=True)
        return record


def _outcome(job: Job, checkpoint: Path) -> Record:
    """What the function returned, as "value", or raised, as "error"."""
    arguments = json.loads(json.dumps(job.settings))
    try:
        function = function_of(job.call)
        if "checkpoint" in inspect.signature(function).parameters:
            arguments["checkpoint"] = checkpoint
        value = function(**arguments)
        if not isinstance(value, dict):
            raise TypeError(f"{job.call} returned {shown(value)}; allowed: a dict")
        return {"value": json.loads(json.dumps(value))}
    except (Exception, SystemExit) as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        text = "".join(traceback.format_exception(error))
        return _error(type(error).__name__, str(error), text)


def _error(kind: str, message: str, text: str = "") -> Record:
    return {"error": {"type": kind, "message": message, "traceback": text}}


def died(job: Job, folder: Path, message: str) -> Record | None:
    """Keep the death of the job's process as its error, unless there is a result."""
    with lock(folder, job) as held:
        record = read(folder, job)
        if record is None and held:
            record = _write(folder, job, _error("WorkerDied", message), 0.0)
        return record


def main() -> None:
    """In a session of its own: read the job from stdin; end when stdin is closed."""
    call, settings, folder = json.loads(sys.stdin.readline())
    sweep = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # a job that reads must not wait
    threading.Thread(target=_end_with, args=(sweep,), daemon=True).start()
    try:
        record = work(Job(call, settings), Path(folder))
    except OSError:
        traceback.print_exc()
        sys.exit(LOST)
    if record is None:
        sys.exit(BUSY)


def _end_with(sweep: int) -> None:
    os.read(sweep, 1)  # returns when the sweep is gone, by kill -9 too
    os.kill(0, signal.SIGKILL)  # this process and all that the job started
