"""Parameters, keys, and the runner with real kernels."""

import json
import os
import sys
import time
from pathlib import Path

import pytest
from small_book import code, read, save, tagged, write

from flatnb.book import run as runner
from flatnb.book.run import UserError
from flatnb.results import provenance


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return save(tmp_path / "plain.ipynb", "print(count)")


# --- parameters ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("count", "-7", -7),
        ("rate", "1e-3", 1e-3),
        ("quiet", "True", True),
        ("quiet", "false", False),
        ("names", "x, y=1", "x, y=1"),
    ],
)
def test_values_are_parsed_to_the_declared_type(
    plain: Path, name: str, text: str, value: object
) -> None:
    values = runner.chosen(plain, "smoke", {name: text})
    assert values == {"profile": "smoke", name: value}
    assert type(values[name]) is type(value)


@pytest.mark.parametrize(
    ("name", "text"),
    [("count", "1.5"), ("rate", "fast"), ("quiet", "1"), ("cuont", "3")],
)
def test_a_wrong_parameter_is_answered_with_the_known_ones(
    plain: Path, name: str, text: str
) -> None:
    with pytest.raises(UserError) as caught:
        runner.chosen(plain, "smoke", {name: text})
    first, *listing = str(caught.value).splitlines()
    assert first == f"{name}={text!r}; {plain} allows:"
    assert listing[:3] == [
        "  count: int = 3  # how many",
        "  rate: float = 1  # a step",
        "  quiet: bool = False  # ",
    ]


def test_an_unusable_parameters_cell_is_refused(tmp_path: Path) -> None:
    for parameters in (None, "count: int = 3"):
        path = save(tmp_path / "a.ipynb", parameters=parameters)
        with pytest.raises(UserError, match='has the line `profile: str = "laptop"`'):
            runner.parameters(path)


# --- keys ---------------------------------------------------------------------------


def test_key_changes_with_all_that_determines_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLATNB_RECORDS", str(tmp_path))
    record = tmp_path / "plane" / "r.json"
    record.parent.mkdir(parents=True)
    record.write_text("1")
    path = save(tmp_path / "a.ipynb", "print(1)")

    def declare() -> None:
        content = read(path)
        content["metadata"]["flatnb"] = {"records": ["plane/*"]}
        write(path, content)

    smoke: dict[str, object] = {"profile": "smoke"}
    keys = [runner.key(path, smoke, 1), runner.key(path, smoke, 2)]
    keys.append(runner.key(path, {"profile": "laptop"}, 1))
    keys.append(runner.key(path, {**smoke, "count": 4}, 1))
    for step in (
        lambda: save(path, "print(2)"),
        lambda: save(path, "print(2)", code("", "hide-cell")),
        declare,
        lambda: record.write_text("2"),
        lambda: (record.parent / "s.json").write_text("1"),
        lambda: monkeypatch.setattr(provenance, "code", lambda: "changed"),
        lambda: monkeypatch.setattr(runner, "PACKAGES", ("torch",)),
    ):
        step()
        keys.append(runner.key(path, smoke, 1))
    assert len(set(keys)) == len(keys)
    assert runner.key(path, smoke, 1) == keys[-1]


def test_key_ignores_what_an_editor_leaves(plain: Path) -> None:
    before = runner.key(plain, {}, 1)
    content = read(plain)
    content["metadata"]["language_info"] = {"name": "python", "version": "3.0"}
    for cell in content["cells"]:
        cell["source"] = "".join(cell["source"])
        cell["id"] += "-new"
    write(plain, content)
    assert runner.key(plain, {}, 1) == before


def test_a_missing_record_is_refused(plain: Path) -> None:
    content = read(plain)
    content["metadata"]["flatnb"] = {"records": ["gone/*"]}
    write(plain, content)
    with pytest.raises(
        UserError, match=r"declares records: .*nothing is named gone/\*"
    ):
        runner.key(plain, {}, 1)
    for odd in ([], {"records": "gone/*"}, {"record": []}):
        content["metadata"]["flatnb"] = odd
        write(plain, content)
        with pytest.raises(UserError, match="declares records: "):
            runner.key(plain, {}, 1)


def test_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(16), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert runner.share("laptop") == (4, 4)
    assert runner.share("paper") == (1, 16)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert runner.share("paper") == (1, 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(1), raising=False)
    assert runner.share("smoke") == (1, 1)


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
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Braces and blanks: papermill formats paths like strings.
    path = save(
        tmp_path / "a {b}" / "one.ipynb",
        "import os, sys\nprint(profile, count, names, os.getcwd())\n"
        "print(sys.executable, os.environ['OMP_NUM_THREADS'])",
    )
    source, out = path.read_bytes(), tmp_path / "out {x}" / "_build/notebooks/smoke"
    (tmp_path / "out {x}").mkdir()
    monkeypatch.chdir(tmp_path / "out {x}")
    # A kernel that must not be chosen, where the user's own would lie.
    other = tmp_path / "home" / "kernels" / "python3" / "kernel.json"
    other.parent.mkdir(parents=True)
    spec = {"argv": ["false"], "display_name": "x", "language": "python"}
    other.write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("MPLBACKEND", "no-such-backend")

    def run(**given: str) -> runner.Run:
        (done,) = runner.run([path], profile="smoke", given=given)
        return done

    first = run()
    assert first.error is None and first.is_known()
    assert path.read_bytes() == source and list(path.parent.iterdir()) == [path]
    assert {p.name for p in out.iterdir()} == {"one.ipynb"}
    assert len(tagged(first.output, "injected-parameters")) == 1
    (output,) = read(first.output)["cells"][-1]["outputs"]
    printed = "".join(output["text"]).splitlines()
    assert printed[0] == f"smoke 3 a, b {path.parent.resolve()}"
    threads = read(first.output)["metadata"]["run"]["threads"]
    assert printed[1] == f"{sys.executable} {threads}"

    before = first.output.stat().st_mtime_ns
    capsys.readouterr()
    second = run()
    assert second.key == first.key and first.output.stat().st_mtime_ns == before
    assert capsys.readouterr().out == "1 of 1 unchanged\n"
    # Not taken for the same: half a copy, another key.
    first.output.write_text(first.output.read_text()[:-9])
    assert not second.is_known()
    other_run = run(count="5", names="c", rate="1e-05")
    assert other_run.output != first.output
    (output,) = read(other_run.output)["cells"][-1]["outputs"]
    assert "".join(output["text"]).startswith("smoke 5 c")
    (cell,) = tagged(other_run.output, "injected-parameters")
    assert "rate = 1e-05\n" in "".join(cell["source"]) + "\n"


def test_a_failing_cell_is_said_kept_and_never_reused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bad = save(tmp_path / "bad.ipynb", "a = 1", "def f(x):\n    return 1 / x\nf(0)")
    dead = save(tmp_path / "dead.ipynb", "import os; os.kill(os.getpid(), 9)")
    runs = runner.run([bad, dead], profile="smoke")
    assert not any(run.is_known() for run in runs)
    assert runs[0].error is not None and runs[1].error is not None
    assert "ZeroDivisionError: division by zero" in runs[0].error
    assert 'Exception encountered at "In [4]"' in runs[0].error
    assert "\x1b" not in runs[0].error
    assert "DeadKernelError: Kernel died" in runs[1].error
    out = tmp_path / "_build" / "notebooks" / "smoke"
    kept = {p.name for p in out.iterdir()}
    assert kept == {"bad.failed.ipynb", "dead.failed.ipynb"}


def test_a_hung_cell_ends_at_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = "import os; open('pid', 'w').write(str(os.getpid()))", "while True: pass"
    path = save(tmp_path / "hang.ipynb", *cells)
    monkeypatch.chdir(tmp_path)
    (run,) = runner.run([path], profile="smoke", timeout=2)
    assert run.error is not None and run.error.startswith("CellTimeoutError: ")
    assert gone(int((tmp_path / "pid").read_text()))
    assert not run.is_known()
    assert [p.name for p in run.output.parent.iterdir()] == ["hang.failed.ipynb"]


def test_a_kernel_leaves_its_files_in_the_private_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "a" / "b.ipynb", "import os; print(os.environ['IPYTHONDIR'])")
    monkeypatch.chdir(tmp_path)
    (run,) = runner.run([Path("a/b.ipynb")], profile="smoke")
    assert run.error is None
    (output,) = read(run.output)["cells"][-1]["outputs"]
    assert "".join(output["text"]).startswith(str(run.output.parent))


def test_nothing_runs_when_a_notebook_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    good = save(tmp_path / "a" / "one.ipynb", "open('ran', 'w')")
    twin = save(tmp_path / "b" / "one.ipynb")
    for paths, given, message in (
        ([good, twin], {}, "one.ipynb would be of"),
        ([good], {"no": "1"}, "no='1'; .*one.ipynb allows:\n  count"),
        ([good], {"profile": "paper"}, "profile='paper'; "),
    ):
        with pytest.raises(UserError, match=message):
            runner.run(paths, given=given)
    (tmp_path / "_build").touch()
    with pytest.raises(OSError, match="_build"):
        runner.run([good])
    assert not (good.parent / "ran").exists()
