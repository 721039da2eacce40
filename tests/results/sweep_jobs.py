"""Jobs for the tests of sweeps, and a sweep that runs in a process of its own to be
killed.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from flatnb.results import sweep


def write(log: str, name: str, seconds: float = 0.05) -> dict[str, Any]:
    """Note in `log` that the job runs, and take a while."""
    with open(log, "a") as file:  # one short line: appended whole
        file.write(f"{name}\n")
    time.sleep(seconds)
    return {"name": name, "pid": os.getpid()}


def environment(name: str) -> dict[str, Any]:
    return {name: os.environ.get(name)}


def fill(size: int) -> dict[str, Any]:
    return {"text": "x" * size}


def fail_unless(marker: str) -> dict[str, Any]:
    if not Path(marker).exists():
        raise ArithmeticError(f"{Path(marker).name} is missing")
    return {"found": True}


def nothing() -> None:
    """A job must return a dict."""


def ask() -> dict[str, Any]:
    return {"answer": input()}


def leave() -> dict[str, Any]:
    """Leave a process running."""
    return {"pid": subprocess.Popen(["sleep", "300"]).pid}


def die(log: str, times: int) -> dict[str, Any]:
    """Kill -9 the worker, the first so many times."""
    with open(log, "a") as file:
        file.write("die\n")
    if Path(log).read_text().count("die\n") <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"times": times}


def resumable(upto: int, stop: int, checkpoint: Path) -> dict[str, Any]:
    """Count upto, going on from the checkpoint; stop once on the way."""
    start = int(checkpoint.read_text()) if checkpoint.exists() else 0
    for step in range(start, upto):
        checkpoint.write_text(str(step + 1))
        checkpoint.with_suffix(".other.pt").touch()
        if step + 1 == stop and start == 0:
            raise InterruptedError(f"at {stop}")
    return {"start": start, "count": upto}


def writing(log: Path, count: int, seconds: float = 0.05) -> list[sweep.Job]:
    return [
        sweep.Job(
            "sweep_jobs:write",
            {"log": str(log), "name": f"job {i}", "seconds": seconds},
        )
        for i in range(count)
    ]


if __name__ == "__main__":
    folder, log, count, seconds, workers = sys.argv[1:]
    sweep.run(
        writing(Path(log), int(count), float(seconds)), folder, workers=int(workers)
    )
