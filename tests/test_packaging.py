"""The files around the library agree with each other: dependencies, versions,
workflows, links.
"""

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from torch.optim import swa_utils

import flatnb

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ["3.11", "3.12", "3.13"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))

CONDA_NAMES = {"pytorch": "torch"}
IMPORT_NAMES = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}
IMPORT_NAMES |= {"vl_convert": "vl-convert-python"}

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def declared(*extras: str) -> dict[str, SpecifierSet]:
    """The floors of pyproject.toml: the core's and those of the extras named."""
    lines = PROJECT["dependencies"] + [
        line for extra in extras for line in PROJECT["optional-dependencies"][extra]
    ]
    found = [Requirement(line) for line in lines]
    return {canonicalize_name(one.name): one.specifier for one in found}


def pins(python: str, platform: str = "linux") -> dict[str, str]:
    """The version of each package that constraints.txt chooses for one Python
    (X.Y.Z).
    """
    where = {
        "python_version": python.rpartition(".")[0],
        "python_full_version": python,
        "sys_platform": platform,
    }
    chosen: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        one = Requirement(line)
        if one.marker and not one.marker.evaluate(where):
            continue
        (specifier,) = one.specifier
        assert specifier.operator == "==", (
            f"constraints.txt: {line} is not an exact version"
        )
        assert "+" not in specifier.version, (
            f"constraints.txt: {line} names one build of a version"
        )
        name = canonicalize_name(one.name)
        assert name not in chosen, (
            f"constraints.txt: two versions of {name} on Python {python}"
        )
        chosen[name] = specifier.version
    return chosen


def tracked() -> list[Path]:
    """Every file under version control that is still there."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip(
            "no git checkout, or no git: which files belong to the project is unknown"
        )
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    files = [ROOT / name for name in names.split("\0") if name]
    return [file for file in files if file.is_file()]


def test_pyproject_has_floors_only() -> None:
    for name, specifier in declared(*PROJECT["optional-dependencies"]).items():
        operators = {one.operator for one in specifier}
        assert ">=" in operators, f"{name} has no floor"
        assert operators <= {">=", "<"}, (
            f"{name}{specifier} pins: pins belong in constraints.txt"
        )


def test_versions_of_colab_are_allowed() -> None:
    lines = (ROOT / ".github" / "colab.txt").read_text().splitlines()
    floors = declared(*PROJECT["optional-dependencies"])
    for pin in (Requirement(line) for line in lines if not line.startswith("#")):
        (exact,) = pin.specifier
        assert exact.operator == "==", f"colab.txt: {pin} is not an exact version"
        assert exact.version in floors.get(pin.name, SpecifierSet()), (
            f"{pin} is below the floor"
        )


def test_conda_environment_is_the_same_list() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    listed = [
        Requirement(line)
        for line in environment["dependencies"]
        if isinstance(line, str)
    ]
    conda = {CONDA_NAMES.get(one.name, one.name): one.specifier for one in listed}
    assert conda.pop("python") == SpecifierSet(PROJECT["requires-python"])
    assert conda.pop("pip") == SpecifierSet()
    assert environment["dependencies"][-1] == {"pip": ["-e .[pretrained,site,browser]"]}
    by_pip = {"pretrained", "sentences", "site", "browser"}
    assert conda == declared(*set(PROJECT["optional-dependencies"]) - by_pip)


@pytest.mark.parametrize("platform", ["linux", "darwin"])
@pytest.mark.parametrize("python", ["3.11.0", "3.11.9", "3.12.0", "3.12.9", "3.13.0"])
def test_constraints_pin_every_dependency_within_its_floor(
    python: str, platform: str
) -> None:
    chosen = pins(python, platform)
    for name, specifier in declared(*PROJECT["optional-dependencies"]).items():
        assert name in chosen, f"{name} is in pyproject.toml and not in constraints.txt"
        assert specifier.contains(chosen[name]), (
            f"{name}: {chosen[name]} is not {specifier}"
        )


def imports(source: str) -> set[str]:
    """The packages a source imports, at its top or inside a function, or names as
    `optional`.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "optional":
            found |= {argument.value for argument in node.args}
    others = found - set(sys.stdlib_module_names) - {"flatnb"}
    return {canonicalize_name(IMPORT_NAMES.get(name, name)) for name in others}


def test_what_the_library_imports_is_declared() -> None:
    core, book = set(declared()), set(declared("book", "site"))
    book |= {"docutils", "sphinx"}  # what jupyter-book is made of
    for file in sorted((ROOT / "flatnb").rglob("*.py")):
        # The runner and the command line belong to the book; all else must do with the
        # core.
        of_the_book = "book" in file.parts or file.stem == "__main__"
        allowed = book if of_the_book else core
        if file.name == "sweep.py":  # in functions, for who asks for a cluster
            allowed = allowed | set(declared("cluster"))
        if file.parent.name == "charts":  # in functions; without it there is the figure
            allowed = allowed | {"altair"}
        missing = imports(file.read_text()) - allowed
        assert not missing, (
            f"{file.relative_to(ROOT)} imports {sorted(missing)}, not declared"
        )


def test_what_the_tests_import_is_declared() -> None:
    declared_names = set(declared("book", "site", "browser", "dev"))
    allowed = declared_names | {"tests", "conftest", "benchmarks"}
    for file in sorted((ROOT / "tests").rglob("*.py")):
        local = {canonicalize_name(other.stem) for other in ROOT.glob("tests/**/*.py")}
        missing = imports(file.read_text()) - allowed - local
        assert not missing, (
            f"{file.relative_to(ROOT)} imports {sorted(missing)}, not declared"
        )


def test_what_the_notebooks_import_is_declared() -> None:
    allowed = set(declared("recipes")) | {"ipython"}  # of every kernel
    for file in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                missing = imports("".join(cell["source"])) - allowed
                assert not missing, (
                    f"{file.name} imports {sorted(missing)}, not declared"
                )


def test_training_needs_no_package_of_the_book() -> None:
    book = sorted(set(declared("book")) - set(declared()))
    modules = [name.replace("-", "_") for name in book] + ["nbclient", "yaml"]
    code = (
        f"import sys\nfor name in {modules}: sys.modules[name] = None\n"
        "import flatnb, flatnb.data, flatnb.models, flatnb.plots, flatnb.train"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_pythons_agree() -> None:
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}"
    classifiers = [
        line.rpartition(" ")[2] for line in PROJECT["classifiers"] if ":: 3." in line
    ]
    assert classifiers == PYTHONS
    readme = (ROOT / "README.md").read_text()
    assert f"Python ≥ {PYTHONS[0]}" in readme
    assert f"{', '.join(PYTHONS[:-1])} and {PYTHONS[-1]} are tested" in readme
    tests = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    assert tests["jobs"]["tests"]["strategy"]["matrix"]["python"] == PYTHONS


def test_versions_agree() -> None:
    assert flatnb.__version__ == PROJECT["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]


def test_there_is_a_workflow_for_each_thing_to_hold() -> None:
    assert [file.stem for file in WORKFLOWS] == ["book", "colab", "links", "tests"]


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_workflow_is_safe(file: Path) -> None:
    text = file.read_text()
    workflow = yaml.safe_load(text)
    # A shell that is not named, or is named with options, runs without pipefail.
    assert workflow["defaults"]["run"]["shell"] == "bash"
    assert all(
        step.get("shell", "bash") == "bash"
        for job in workflow["jobs"].values()
        for step in job["steps"]
    )
    assert workflow["permissions"] == {"contents": "read"}, (
        "write only where one job must"
    )
    assert "pull_request_target" not in text, (
        "it runs a stranger's code with our rights"
    )
    assert "secrets." not in text
    # Without a limit a hung kernel holds a runner for six hours.
    assert all("timeout-minutes" in job for job in workflow["jobs"].values())


@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md", "book/rerun.md"])
def test_the_three_commands_are_the_same_everywhere(file: str) -> None:
    block = """```console
$ make book                                    # run the notebooks, build the pages
$ make test                                    # checks and tests
$ .venv/bin/flatnb run notebooks/04_*.ipynb    # run one notebook into a copy
```"""
    assert block in (ROOT / file).read_text(encoding="utf-8")


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_links_point_at_files(document: str) -> None:
    for target in re.findall(
        r"\]\((?!https?:)([^)#]+)\)", (ROOT / document).read_text()
    ):
        assert (ROOT / target).exists(), (
            f"{document} links to {target}, which is not there"
        )


def blocks(document: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.S)


def names_of_a_loop() -> tuple[dict[str, Any], Callable[[Any], float]]:
    """What the examples take as given, and the loss of a net."""
    x = torch.randn(32, 2)
    y = (x[:, 0] > 0).long()
    model = torch.nn.Linear(2, 2)
    given = {
        **{"torch": torch, "F": torch.nn.functional, "flatnb": flatnb},
        **{"model": model, "x": x, "y": y, "batches": [(x, y)] * 20, "epochs": 2},
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        **{name: getattr(swa_utils, name) for name in swa_utils.__all__},
    }

    @torch.no_grad()
    def loss(net: Any) -> float:
        return torch.nn.functional.cross_entropy(net(x), y).item()

    return given, loss


def test_the_examples_of_the_readme_train_and_measure(
    capsys: pytest.CaptureFixture[str],
) -> None:
    training, averaging, measuring = blocks("README.md")
    names, loss = names_of_a_loop()
    before = loss(names["model"])
    exec(averaging, names)
    after = loss(names["model"])
    assert after < loss(names["average"]) < before
    exec(training, names)
    assert loss(names["model"]) < after
    assert names["optimizer"].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)
    exec(measuring, names)
    assert "products" in capsys.readouterr().out


def test_the_lines_of_the_landing_page_train() -> None:
    training, averaging = blocks("book/intro.md")
    names, loss = names_of_a_loop()
    before = loss(names["model"])
    exec(averaging, names)
    assert loss(names["average"]) == pytest.approx(before)
    exec(training, names)
    assert loss(names["model"]) < before


def test_no_file_names_a_folder_of_one_machine() -> None:
    # Absolute paths below the folders where people and machines keep their own things.
    pattern = re.compile(rb"(?<![\w.~*/-])/(?:home|root|tmp|work|Users)/\w")
    for file in tracked():
        found = pattern.search(file.read_bytes())
        assert not found, f"{file.relative_to(ROOT)} names {found.group().decode()}…"


def test_typed_marker_is_there() -> None:
    assert (ROOT / "flatnb" / "py.typed").is_file()
