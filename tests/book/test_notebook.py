"""Parameters, profiles, keys, the runner with real kernels, and the stage."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from small_book import PARAMETERS, book, code, save

import flatnb
from flatnb.book import notebook, profiles
from flatnb.book.notebook import UserError


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return save(tmp_path / "plain.ipynb", "print(count)")


# --- profiles and the first cell ----------------------------------------------------


def test_settings_are_those_of_the_profile() -> None:
    three = {name: {"epochs": i} for i, name in enumerate(notebook.PROFILES)}
    assert [profiles.settings(name, **three).epochs for name in notebook.PROFILES] == [
        0,
        1,
        2,
    ]


def test_settings_refuse_unknown_profiles_and_uneven_names() -> None:
    with pytest.raises(ValueError, match=r"'big'.*smoke, laptop, paper"):
        profiles.settings("big", smoke={}, laptop={}, paper={})
    with pytest.raises(ValueError, match="'paper' lack epochs"):
        profiles.settings("smoke", smoke={"epochs": 1}, laptop={"epochs": 1}, paper={})


def test_a_package_that_is_missing_is_false_and_has_classes_to_derive_from(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert profiles.optional("json") is json and capsys.readouterr().out == ""
    missing = profiles.optional("no_such_package")
    assert "pip install no_such_package" in capsys.readouterr().out
    assert not missing and issubclass(type("Trained", (missing.Module,), {}), object)
    assert not hasattr(missing, "__path__")


def first_cell(
    folder: Path, text: str, found: bool = False
) -> subprocess.CompletedProcess[str]:
    """Execute the cell where flatnb is importable if `found`; git and pip only tell."""
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
if {found}:
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


def test_first_cell_is_short_python_and_names_the_address_once() -> None:
    text = notebook.bootstrap("https://github.com/acme/flatnb", "v1")
    compile(text, "first cell", "exec")
    assert len(text.splitlines()) <= 30
    assert (
        text.count("https://github.com/acme/flatnb")
        == text.count('REVISION = "v1"')
        == 1
    )
    assert "%" not in text and not any(
        line.startswith("!") for line in text.splitlines()
    )


def test_first_cell_fetches_the_repository_then_works_in_its_notebooks(
    tmp_path: Path,
) -> None:
    text = notebook.bootstrap("https://github.com/acme/flatnb", "v1")
    clone = tmp_path.resolve() / "flatnb-clone"
    git, pip, about, place = first_cell(tmp_path, text).stdout.splitlines()
    assert (
        git
        == "git clone -q --depth=1 -b v1 https://github.com/acme/flatnb flatnb-clone"
    )
    assert pip.endswith("-m pip install -q --no-deps -e flatnb-clone")
    assert about == "at v1"
    assert place == f"{clone / 'notebooks'} {clone}"
    # After a restart Colab is back in its own folder, where the clone lies.
    assert first_cell(tmp_path, text).stdout.splitlines() == [about, place]


def test_first_cell_without_an_address_says_what_to_set(tmp_path: Path) -> None:
    done = first_cell(tmp_path, notebook.bootstrap())
    assert done.returncode and done.stderr.endswith("set: flatnb address URL\n")
    assert not any(tmp_path.iterdir())


def test_first_cell_leaves_an_installed_package_alone(tmp_path: Path) -> None:
    done = first_cell(tmp_path, notebook.bootstrap(), found=True)
    assert done.stdout.splitlines() == ["at main", f"{tmp_path.resolve()} site"]


def test_the_first_line_tells_device_and_versions() -> None:
    assert profiles.about("v1").endswith(
        f"torch {torch.__version__} · flatnb {flatnb.__version__} (v1)"
    )


# --- parameters ---------------------------------------------------------------------


def test_parameters_are_read_with_type_default_and_help(plain: Path) -> None:
    found = notebook.parameters(plain)
    assert list(found) == ["profile", "count", "rate", "quiet", "names", "seeds"]
    assert found["count"] == notebook.Parameter(
        "count", "int", 3, "how many | with = in its help", "str"
    )
    assert str(found["names"]) == "  names: list[str] = ['a', 'b']  # of methods"
    assert found["seeds"].item == "int"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("count", "-7", -7),
        ("rate", "1e-3", 1e-3),
        ("quiet", "True", True),
        ("quiet", "false", False),
        ("names", "x, y=1", ["x", "y=1"]),
        ("names", "['a,b']", ["a,b"]),
        ("seeds", "4", [4]),
        ("seeds", "[4, 5]", [4, 5]),
    ],
)
def test_values_are_parsed_to_the_declared_type(
    plain: Path, name: str, text: str, value: object
) -> None:
    assert notebook.chosen(plain, "smoke", {name: text}) == {
        "profile": "smoke",
        name: value,
    }


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("count", "1.5"),
        ("rate", "fast"),
        ("quiet", "1"),
        ("seeds", "1,x"),
        ("seeds", "[1"),
        ("cuont", "3"),
    ],
)
def test_a_wrong_parameter_is_answered_with_the_known_ones(
    plain: Path, name: str, text: str
) -> None:
    with pytest.raises(UserError) as caught:
        notebook.chosen(plain, "smoke", {name: text})
    first, *listing = str(caught.value).splitlines()
    assert name in first and str(plain) in first
    assert listing == [str(one) for one in notebook.parameters(plain).values()]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "0 cells tagged `parameters`"),
        ("count: int = 3", '`profile: str = "laptop"` is missing'),
        (f"{PARAMETERS}\nwidth = 3", "`width = 3` is not"),
        (f"{PARAMETERS}\nwidth: int = 2 * count", "is not `name: type = value"),
        (f"{PARAMETERS}\nwidth: int = 2.5", "is not `name: type = value"),
        (f"{PARAMETERS}\nwidth: float | None = 2.5", "is not `name: type = value"),
        (f"{PARAMETERS}\nwidth: int = ", "invalid syntax"),
    ],
)
def test_an_unusable_parameters_cell_is_refused(
    tmp_path: Path, source: str | None, message: str
) -> None:
    path = save(tmp_path / "a.ipynb", parameters=source)
    with pytest.raises(UserError, match=re.escape(message)):
        notebook.parameters(path)


def test_what_is_no_notebook_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.ipynb").write_text('{"cells": 3')
    with pytest.raises(UserError, match="is not a notebook"):
        notebook.read(tmp_path / "a.ipynb")
    with pytest.raises(UserError, match="cannot read"):
        notebook.read(tmp_path / "b.ipynb")


# --- keys ---------------------------------------------------------------------------


def test_key_changes_with_all_that_determines_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "_toc.yml").touch()
    monkeypatch.setenv("FLATNB_RECORDS", str(tmp_path))
    record = tmp_path / "plane" / "r.json"
    record.parent.mkdir(parents=True)
    record.write_text("1")
    package = tmp_path / "package"
    package.mkdir()
    (package / "a.py").write_text("a = 1")
    monkeypatch.setattr(notebook, "PACKAGE", package)
    path = save(tmp_path / "a.ipynb", "print(1)")

    def declare() -> None:
        content = notebook.read(path)
        content["metadata"]["flatnb"] = {"records": ["plane/*"]}
        path.write_text(notebook.dump(content))

    def change(values: dict[str, object], threads: int) -> str:
        return notebook.key(path, values, threads)

    smoke: dict[str, object] = {"profile": "smoke"}
    keys = [change(smoke, 1), change(smoke, 2), change({"profile": "laptop"}, 1)]
    keys.append(change({**smoke, "count": 4}, 1))
    for step in (
        lambda: save(path, "print(2)"),
        lambda: save(path, "print(2)", code("", "hide-cell")),
        declare,
        lambda: record.write_text("2"),
        lambda: (record.parent / "s.json").write_text("1"),
        lambda: (package / "a.py").write_text("a = 2"),
        lambda: monkeypatch.setattr(
            notebook.platform, "python_version", lambda: "3.99"
        ),
        lambda: monkeypatch.setattr(
            notebook, "version", lambda name: f"{name} of tomorrow"
        ),
    ):
        step()
        keys.append(change(smoke, 1))
    assert len(set(keys)) == len(keys)
    assert change(smoke, 1) == keys[-1]


def test_key_ignores_what_an_editor_leaves(plain: Path) -> None:
    before = notebook.key(plain, {}, 1)
    content = notebook.read(plain)
    content["metadata"]["language_info"] = {"name": "python", "version": "3.0"}
    for cell in content["cells"]:
        cell["source"] = "".join(cell["source"])
        cell["id"] += "-new"
    plain.write_text(json.dumps(content))
    assert notebook.key(plain, {}, 1) == before


def test_a_missing_record_is_refused(plain: Path) -> None:
    content = notebook.read(plain)
    content["metadata"]["flatnb"] = {"records": ["gone/*"]}
    plain.write_text(notebook.dump(content))
    with pytest.raises(UserError, match=r"declares records: nothing is named gone/\*"):
        notebook.key(plain, {}, 1)


def test_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        notebook.os, "sched_getaffinity", lambda pid: range(16), raising=False
    )
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert notebook.share(None, "laptop") == (4, 4)
    assert notebook.share(None, "paper") == (1, 16)
    assert notebook.share(3, "paper") == (3, 5)
    assert notebook.share(40, "smoke") == (40, 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert notebook.share(None, "paper") == (1, 2)


# --- running ------------------------------------------------------------------------


def gone(pid: int) -> bool:
    """Whether a process ends within seconds."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_a_run_and_its_second_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Braces and blanks: papermill formats paths like strings.
    path = save(
        tmp_path / "a {b}" / "one.ipynb",
        "import os, sys\nprint(profile, count, names, os.getcwd())\n"
        "print(sys.executable, os.environ['OMP_NUM_THREADS'])",
    )
    source, out = path.read_bytes(), tmp_path / "out {x}"
    # A kernel that must not be chosen, where the user's own would lie.
    other = tmp_path / "home" / "kernels" / "python3" / "kernel.json"
    other.parent.mkdir(parents=True)
    other.write_text(
        json.dumps({"argv": ["false"], "display_name": "x", "language": "python"})
    )
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("MPLBACKEND", "no-such-backend")

    def run(**options: object) -> notebook.Result:
        arguments = {"profile": "smoke", "jobs": 1, "out": out, **options}
        return notebook.run([path], **arguments)[0]  # type: ignore[arg-type]

    first = run()
    assert first.error is None and not first.reused
    assert path.read_bytes() == source and list(path.parent.iterdir()) == [path]
    assert {p.name for p in out.iterdir()} == {"one.ipynb", "one.json"}
    executed = notebook.read(first.output)
    (injected,) = notebook.tagged(executed, "injected-parameters")
    assert injected["metadata"]["tags"] == ["injected-parameters", "hide-input"]
    printed = "".join(executed["cells"][-1]["outputs"][0]["text"]).splitlines()
    assert printed[0] == f"smoke 3 ['a', 'b'] {path.parent.resolve()}"
    threads = json.loads((out / "one.json").read_text())["threads"]
    assert printed[1] == f"{sys.executable} {threads}"
    assert (
        "papermill" not in first.output.read_text()
        and str(out) not in first.output.read_text()
    )

    second = run()
    assert second.reused and second.key == first.key
    # Not taken for the same: a copy changed by hand, one that lost its side file,
    # another key.
    first.output.write_text(first.output.read_text() + "\n")
    assert not notebook._finished(second)
    other_parameters = run(given={"count": "5", "names": "c"})
    assert not other_parameters.reused and other_parameters.output != first.output
    (output,) = notebook.read(other_parameters.output)["cells"][-1]["outputs"]
    assert "".join(output["text"]).startswith("smoke 5 ['c']")


def test_a_failing_cell_is_told_kept_and_never_reused(tmp_path: Path) -> None:
    bad = save(tmp_path / "bad.ipynb", "a = 1", "def f(x):\n    return 1 / x\nf(0)")
    dead = save(tmp_path / "dead.ipynb", "import os; os.kill(os.getpid(), 9)")
    results = notebook.run([bad, dead], profile="smoke", jobs=2, out=tmp_path / "out")
    assert not any(notebook._finished(one) for one in results)
    assert results[0].error is not None and results[1].error is not None
    told = results[0].error.splitlines()
    assert told[0] == "cell 4 failed: ZeroDivisionError: division by zero"
    assert (
        told[-1] == "ZeroDivisionError: division by zero"
        and "\x1b" not in results[0].error
    )
    assert results[1].error.startswith("cell 3: DeadKernelError")
    kept = {p.name for p in (tmp_path / "out").iterdir()}
    assert "bad.failed.ipynb" in kept and not kept & {
        "bad.ipynb",
        "bad.json",
        "dead.ipynb",
    }


def test_a_hung_kernel_is_killed_at_the_limit(tmp_path: Path) -> None:
    hang = "import os, time\nfrom pathlib import Path\nPath('pid').write_text(str(os.getpid()))\n"
    path = save(tmp_path / "hang.ipynb", hang + "while True: pass")
    (result,) = notebook.plan([path], "smoke", {}, tmp_path / "out", 1)
    worker = notebook._Worker(result, 1)
    try:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert not worker.finish(timeout=100)
            time.sleep(0.05)
        assert worker.finish(timeout=0)
    finally:
        worker.close()
    assert result.error == "cell 3: killed at the limit of 0 s (--timeout)"
    assert gone(int((tmp_path / "pid").read_text())) and not worker.folder.exists()
    assert not notebook._finished(result)


def test_nothing_runs_when_a_notebook_does_not_fit(tmp_path: Path) -> None:
    good = save(tmp_path / "a" / "one.ipynb", "open('ran', 'w')")
    twin = save(tmp_path / "b" / "one.ipynb")
    (tmp_path / "file").touch()
    out = tmp_path / "out"
    for paths, options, message in (
        ([good, twin], {}, "would both be written"),
        ([good], {"given": {"no": "1"}}, "unknown parameter 'no'"),
        ([good], {"given": {"profile": "paper"}}, "give the profile as --profile"),
        ([good], {"profile": "big"}, "profile is 'big'"),
        ([good], {"jobs": 0}, "--jobs is 0"),
        ([good], {"timeout": -1.0}, "--timeout is -1"),
        ([good], {"out": tmp_path / "file"}, "cannot write into"),
    ):
        with pytest.raises(UserError, match=message):
            notebook.run(paths, **{"out": out, **options})  # type: ignore[arg-type]
    assert not (good.parent / "ran").exists()


def test_a_full_disk_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "a.ipynb", "print('kept')")
    (result,) = notebook.plan([path], "smoke", {}, tmp_path / "out", 1)

    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    worker = notebook._Worker(result, 1)
    try:
        worker.process.wait()
        monkeypatch.setattr(notebook, "write", full)
        with pytest.raises(
            UserError, match=r"No space left .* executed copy is"
        ) as caught:
            worker.finish(timeout=100)
    finally:
        worker.close()
    kept = Path(str(caught.value).rpartition(" ")[2])
    (output,) = notebook.read(kept)["cells"][-1]["outputs"]
    assert "".join(output["text"]) == "kept\n"
    kept.unlink()
    kept.parent.rmdir()


def test_writing_leaves_the_old_file_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "a"
    notebook.write(path, "old")
    with pytest.raises(UnicodeEncodeError):
        notebook.write(path, "new \ud800")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


# --- staging ------------------------------------------------------------------------


def test_stage_keeps_paths_and_takes_executed_copies(tmp_path: Path) -> None:
    root = book(tmp_path)
    copy = tmp_path / "copy.ipynb"
    copy.write_text("executed")
    (root / "book" / "records" / "plane").mkdir(parents=True)
    (root / "book" / "records" / "plane" / "a.json").write_text("{}")
    stage = notebook.stage(root, {Path("notebooks/01_a.ipynb"): copy})
    assert stage == root / "_build" / "stage"
    assert (stage / "notebooks" / "01_a.ipynb").read_text() == "executed"
    for same in (
        "_toc.yml",
        "book/intro.md",
        "book/references.bib",
        "book/_static/custom.css",
    ):
        assert (stage / same).read_bytes() == (root / same).read_bytes()
    assert not list(
        stage.rglob("*.json")
    )  # pages are made of notebooks, not of records


def test_the_status_page_says_what_each_copy_was_made_with(tmp_path: Path) -> None:
    root = book(tmp_path)
    (root / "book" / "status.md").write_text("# Status\n\n<!-- status -->\n")
    copy = tmp_path / "copy.ipynb"
    copy.write_text("executed")
    side = {"parameters": {"profile": "smoke"}, "threads": 7, "seconds": 12.4}
    notebook.sidecar(copy).write_text(json.dumps(side))
    stage = notebook.stage(root, {Path("notebooks/01_a.ipynb"): copy})
    text = (stage / "book" / "status.md").read_text()
    assert "| {doc}`../notebooks/01_a` | smoke | 7 | 12 |" in text
    assert f"| torch | {notebook.version('torch')} |" in text and "<!--" not in text


def test_staged_settings_without_an_address_have_no_links(tmp_path: Path) -> None:
    text = (book(tmp_path) / "_config.yml").read_text()
    config = notebook.staged_config(yaml.safe_load(text))
    assert "repository" not in config and "launch_buttons" not in config
    assert not any("button" in name for name in config["html"])
    assert config["execute"]["execute_notebooks"] == "off"
    source = yaml.safe_load(text)
    for same in ("title", "sphinx", "parse", "bibtex_bibfiles", "exclude_patterns"):
        assert config[same] == source[same]


def test_staged_settings_with_an_address_link_to_it(tmp_path: Path) -> None:
    text = (book(tmp_path) / "_config.yml").read_text()
    url = "https://github.com/acme/flatnb"
    config = notebook.staged_config(
        yaml.safe_load(text.replace('url: ""', f"url: {url}"))
    )
    assert config["repository"]["url"] == url
    assert config["launch_buttons"]["colab_url"].startswith("https://colab.")
    assert (
        config["html"]["use_edit_page_button"] and config["html"]["use_issues_button"]
    )
    with pytest.raises(UserError, match="is not of the form"):
        notebook.staged_config({"repository": {"url": "https://example.org/x"}})


def test_a_page_that_is_not_there_is_named(tmp_path: Path) -> None:
    root = book(tmp_path)
    with (root / "_toc.yml").open("a") as file:
        file.write("  - file: notebooks/02_b\n")
    with pytest.raises(UserError, match="names notebooks/02_b"):
        notebook.toc_files(root)
