"""What notebooks import, and their first cell."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_book import ROOT, tagged, text_of

import flatnb
from flatnb.book import profiles


def test_settings_are_those_of_the_profile() -> None:
    three = {name: {"epochs": i} for i, name in enumerate(profiles.PROFILES)}
    for i, name in enumerate(profiles.PROFILES):
        assert profiles.settings(name, **three).epochs == i


def test_settings_refuse_unknown_profiles() -> None:
    with pytest.raises(ValueError, match=r"'big'; allowed: smoke, laptop, paper"):
        profiles.settings("big", smoke={}, laptop={}, paper={})


def test_a_package_that_is_missing_is_false_and_has_classes_to_derive_from(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert profiles.optional("json") is json and capsys.readouterr().out == ""
    missing = profiles.optional("no_such_package")
    assert "pip install no_such_package" in capsys.readouterr().out
    assert not missing and issubclass(type("Trained", (missing.Module,), {}), object)


def test_the_first_line_has_device_and_versions() -> None:
    assert profiles.about("v1").endswith(
        f"torch {torch.__version__} · flatnb {flatnb.__version__} (v1)"
    )


# --- the first cell -----------------------------------------------------------------

URL = "https://github.com/acme/flatnb"


def first_cell(url: str = "") -> str:
    """The first cell of a notebook, with the address given."""
    (cell,) = tagged(next((ROOT / "notebooks").glob("*.ipynb")), "bootstrap")
    lines = text_of(cell).splitlines()
    for number, line in enumerate(lines):
        if line.startswith("REPOSITORY ="):
            lines[number : number + 2] = [f'REPOSITORY = "{url}"', 'REVISION = "v1"']
    return "\n".join(lines)


def executed(
    folder: Path, text: str, installed: bool = False
) -> subprocess.CompletedProcess[str]:
    """Execute the cell where flatnb is importable if `installed`; git and pip print."""
    prelude = f"""
import importlib.util, os, pathlib, subprocess, sys
def package(root):
    root.joinpath("flatnb", "book").mkdir(parents=True)
    root.joinpath("flatnb", "__init__.py").touch()
    root.joinpath("flatnb", "book", "profiles.py").write_text("about = 'at {{}}'.format")
def call(command):
    print(*command)
    if "clone" in command:
        command[-1].joinpath("notebooks").mkdir(parents=True)
        package(command[-1])
subprocess.check_call = call
if {installed}:
    package(pathlib.Path("site"))
    sys.path.insert(0, "site")
else:
    importlib.util.find_spec = lambda name: None
exec({text!r}, {{}})
print(os.getcwd(), sys.path[0])
"""
    return subprocess.run(
        [sys.executable, "-c", prelude], cwd=folder, capture_output=True, text=True
    )


def test_first_cell_fetches_the_repository_then_works_in_its_notebooks(
    tmp_path: Path,
) -> None:
    clone = tmp_path.resolve() / "flatnb-clone"
    done = executed(tmp_path, first_cell(URL))
    git, pip, about, place = done.stdout.splitlines()
    assert git == f"git clone -q --depth=1 -b v1 {URL} flatnb-clone"
    assert pip.endswith("-m pip install -q --no-deps -e flatnb-clone")
    assert about == "at v1"
    assert place == f"{clone / 'notebooks'} {clone}"
    # After a restart Colab is back in its own folder, where the clone lies.
    done = executed(tmp_path, first_cell(URL))
    assert done.stdout.splitlines() == [about, place]


def test_first_cell_without_an_address_says_what_to_set(tmp_path: Path) -> None:
    done = executed(tmp_path, first_cell())
    assert done.returncode and done.stderr.endswith("set: flatnb address URL\n")
    assert not any(tmp_path.iterdir())


def test_first_cell_leaves_an_installed_package_alone(tmp_path: Path) -> None:
    done = executed(tmp_path, first_cell(), installed=True)
    assert done.stdout.splitlines() == ["at v1", f"{tmp_path.resolve()} site"]
