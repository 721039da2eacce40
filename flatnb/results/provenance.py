"""Where a result comes from: code, versions, machine."""

import datetime
import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

PACKAGE = Path(__file__).resolve().parents[1]


def provenance() -> dict[str, Any]:
    """How and where this process computes; the caller adds `seconds`, of all runs.
    `commit` and `dirty` (its files differ) are None outside the package's repository.

    >>> sorted(provenance()["packages"])
    ['flatnb', 'numpy', 'torch', 'torchvision']
    """
    commit, dirty = _commit()
    return {
        "command": _command(sys.orig_argv),
        "commit": commit,
        "dirty": dirty,
        "code": code(),
        **machine(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def machine() -> dict[str, Any]:
    """What this process computes on, and with.

    >>> machine()["threads"] >= 1
    True
    """
    cuda = torch.cuda.is_available()
    packages = versions(["torch", "torchvision", "numpy"])
    return {
        "python": packages.pop("python"),
        "packages": packages,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "threads": torch.get_num_threads(),
        "cpu": _cpu(),
        "platform": platform.platform(),
    }


def code() -> str:
    """A hash of the package's sources: 16 hex digits of SHA-256.

    >>> len(code())
    16
    """
    digest = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{file.relative_to(PACKAGE).as_posix()}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The version of Python, flatnb and each package, "absent" if it is not installed.

    >>> versions(["not-a-package"])["not-a-package"]
    'absent'
    """
    from flatnb import __version__

    installed = {"python": platform.python_version(), "flatnb": __version__}
    for package in packages:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed[package] = "absent"
    return installed


def cores() -> int:
    """How many cores this process may use.

    >>> cores() >= 1
    True
    """
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _command(words: Sequence[str]) -> str:
    """A command line as one types it: folders of this machine say nothing elsewhere."""
    return " ".join(re.sub(r"(?<![\w.~:/-])/(?:[^/\s]+/)*", "", word) for word in words)


def _git(*arguments: str) -> str:
    """What git says of the package's folder; CalledProcessError if it fails."""
    command = ["git", "-C", str(PACKAGE), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _commit() -> tuple[str | None, bool | None]:
    try:
        top = _git("rev-parse", "--show-toplevel").strip()
        commit = _git("rev-parse", "HEAD").strip()
        # Installed below another project's folder, the package is not of that project.
        if Path(top).resolve() == PACKAGE.parent:
            return commit, bool(_git("status", "--porcelain", "--", "."))
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository
        pass
    return None, None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")  # of Linux
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    model = re.search(r"^model name\s*:\s*(.+?)\s*$", text, re.M)
    return model[1] if model else platform.processor() or platform.machine()
