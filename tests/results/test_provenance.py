"""Provenance: of this process, and without what only this machine has."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from flatnb.results import provenance


def test_provenance_is_of_this_process() -> None:
    found = provenance.provenance()
    assert found["threads"] == torch.get_num_threads()
    assert found["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["packages"]["numpy"] == np.__version__
    assert found["python"] == sys.version.split()[0]
    assert json.loads(json.dumps(found)) == found


def test_the_command_names_no_folder_of_the_machine() -> None:
    words = [
        "/opt/venv/bin/python",
        "-m",
        "flatnb",
        "--folder=/data/a",
        "/x/y",
        "book/records",
        "dask://host:80/a",
    ]
    assert provenance._command(words) == (
        "python -m flatnb --folder=a y book/records dask://host:80/a"
    )


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_is_that_of_the_package_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)  # set where a hook runs the tests
    package = tmp_path / "flatnb"
    package.mkdir()
    (package / "a.py").write_text("1")
    monkeypatch.setattr(provenance, "PACKAGE", package)
    assert provenance._commit() == (None, None)
    git(tmp_path, "init", "-q")
    assert provenance._commit() == (None, None)  # nothing committed
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "a")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert provenance._commit() == (head, False)
    (tmp_path / "notes").write_text("no code")
    assert provenance._commit() == (head, False)
    before = provenance.code()
    (package / "a.py").write_text("2")
    assert provenance._commit() == (head, True) and provenance.code() != before
    installed = tmp_path / "env" / "flatnb"
    installed.mkdir(parents=True)
    monkeypatch.setattr(provenance, "PACKAGE", installed)
    assert provenance._commit() == (None, None)  # another project's
