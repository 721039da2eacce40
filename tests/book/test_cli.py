"""The commands, run as a reader runs them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_book import ROOT, book, code, read, save, tagged, text_of, write

from flatnb import __version__
from flatnb.book import cli
from flatnb.book import run as runner

URL = "https://github.com/acme/flatnb"


def start(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "flatnb", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A test run in the background ignores SIGINT, and its children would.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


# --- run ----------------------------------------------------------------------------


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main(["--version"])
    assert exit.value.code == 0 and capsys.readouterr().out == f"flatnb {__version__}\n"


def test_records_need_no_package_of_the_book() -> None:
    book = "nbformat papermill yaml sphinx_external_toc jupyter_book nbstripout"
    code = f"""
import sys
sys.modules.update(dict.fromkeys({book.split()}))
from flatnb.book.cli import main
print(main(["records", "list"]), main(["run", "a.ipynb"]))
"""
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert process.stdout.splitlines()[-1] == "0 2"
    assert "pip install 'flatnb[book,site]'" in process.stderr


def test_a_mistake_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "a.ipynb", parameters=None)
    for command, message in (
        (["run", "gone.ipynb"], "cannot read gone.ipynb: No such file or directory"),
        (
            ["run", str(path)],
            f"{path}: no cell tagged `parameters` has the line "
            '`profile: str = "laptop"`',
        ),
        (["book"], f"{tmp_path} is not in the repository: it has no _toc.yml"),
    ):
        assert cli.main(command) == 2
        assert capsys.readouterr().err == f"flatnb: {message}\n"


def test_a_failing_notebook_is_status_1(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "bad.ipynb", "raise ValueError('no')")
    save(tmp_path / "good.ipynb", "print(1)")
    monkeypatch.setattr(runner, "share", lambda profile: (1, 1))
    command = ["run", "bad.ipynb", "good.ipynb", "--profile", "smoke"]
    assert cli.main(command) == 1
    out, err = capfd.readouterr()
    copy = "_build/notebooks/smoke/bad.failed.ipynb"
    assert "ValueError: no\n" in err
    assert f"\nthe executed copy is {copy}\n" in err
    assert set(line.partition(",")[0] for line in out.splitlines()) == {
        "running bad.ipynb …",
        "[1/2] failed bad.ipynb",
        "running good.ipynb …",
        "[2/2] finished good.ipynb",
    }


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupting_ends_kernels_and_leaves_nothing_half_written(
    number: signal.Signals, tmp_path: Path
) -> None:
    note = "import os, time\nfrom pathlib import Path\nPath('pid').write_text(str(os.getpid()))\n"
    save(tmp_path / "long.ipynb", note + "time.sleep(1000)")
    process = start("run", "long.ipynb", cwd=tmp_path)
    pid = tmp_path / "pid"
    while not (pid.exists() and pid.read_text()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate()
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert err.endswith("flatnb: interrupted\n") and "Traceback" not in err
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.kill(int(pid.read_text()), 0)
            time.sleep(0.1)
    # Only a killed runner leaves its private folder.
    unwanted = "[!.]*" if number == signal.SIGKILL else "*"
    assert not list((tmp_path / "_build" / "notebooks" / "laptop").glob(unwanted))


# --- clean, address -----------------------------------------------------------------


def test_clean_removes_what_a_run_leaves_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = book(tmp_path)
    monkeypatch.chdir(root / "notebooks")
    path = root / "notebooks" / "01_a.ipynb"
    figure = {"image": {"alt": "a"}, "figure": {"caption": "b", "name": "c"}}
    save(path, code("draw()", "hide-input", mystnb=figure))
    wanted = path.read_text()
    assert cli.main(["clean"]) == 0 and path.read_text() == wanted

    content = read(path)
    content["metadata"].update(
        language_info={"name": "python"}, papermill={"duration": 1}
    )
    content["cells"][-1]["metadata"].update(
        papermill={"status": "completed"}, execution={"a": "1"}
    )
    content["cells"][-1]["execution_count"] = 4
    stream = {"output_type": "stream", "name": "stdout", "text": ["1\n"]}
    content["cells"][-1]["outputs"] = [stream]
    write(path, content)
    assert cli.main(["clean"]) == 0
    assert path.read_text() == wanted


def address_of(path: Path) -> list[str]:
    """The lines of a notebook's first cell that name the repository."""
    (cell,) = tagged(path, "bootstrap")
    names = ("REPOSITORY =", "REVISION =")
    lines = text_of(cell).splitlines()
    return [line.partition("  #")[0] for line in lines if line.startswith(names)]


def test_address_is_written_everywhere_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = book(tmp_path)
    monkeypatch.chdir(root)
    config, path = root / "_config.yml", root / "notebooks" / "01_a.ipynb"
    old_config, old_notebook = config.read_text(), path.read_text()
    assert cli.main(["address", URL, "--branch", "v1"]) == 0
    changed = set(config.read_text().splitlines()) - set(old_config.splitlines())
    assert changed == {f'  url: "{URL}"', "  branch: v1"}
    assert address_of(path) == [f'REPOSITORY = "{URL}"', 'REVISION = "v1"']
    changed = set(path.read_text().splitlines()) - set(old_notebook.splitlines())
    assert len(changed) == 2

    new_config, new_notebook = config.read_text(), path.read_text()
    capsys.readouterr()
    for url in (
        "http://github.com/a/b",
        "https://gitlab.com/a/b",
        "https://github.com/a",
        "a/b",
        "https://github.com/a/b/tree/main",
        'https://github.com/a/b"',
    ):
        assert cli.main(["address", url]) == 2
        wanted = f"url={url!r}, branch='main'; allowed: https://github.com/OWNER/NAME"
        assert wanted in capsys.readouterr().err
    assert cli.main(["address", URL, "--branch=-x"]) == 2
    assert (config.read_text(), path.read_text()) == (new_config, new_notebook)
    assert cli.main(["address", ""]) == 0
    assert (config.read_text(), path.read_text()) == (old_config, old_notebook)
