"""The commands, run as a reader runs them."""

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from small_book import ROOT, book, code, save

from flatnb import __version__
from flatnb.book import cli, notebook

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


def test_a_mistake_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "a.ipynb", parameters=None)
    for command, message in (
        (["run", "gone.ipynb"], "cannot read gone.ipynb: No such file or directory"),
        (
            ["run", str(path)],
            f"{path} has 0 cells tagged `parameters`; it needs exactly one",
        ),
        (
            ["run", str(path), "-p", "a", "1", "-p", "a", "2"],
            "a parameter is given twice",
        ),
        (
            ["book"],
            f"no _toc.yml in {tmp_path} or above: go to the repository's folder",
        ),
        (
            ["serve"],
            f"no _toc.yml in {tmp_path} or above: go to the repository's folder",
        ),
    ):
        assert cli.main(command) == 2
        assert capsys.readouterr().err == f"flatnb: {message}\n"


def test_a_failing_notebook_is_status_1(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "bad.ipynb", "raise ValueError('no')")
    save(tmp_path / "good.ipynb", "print(1)")
    assert (
        cli.main(
            ["run", "bad.ipynb", "good.ipynb", "--profile", "smoke", "--jobs", "1"]
        )
        == 1
    )
    out, err = capfd.readouterr()
    assert "flatnb: bad.ipynb, cell 3 failed: ValueError: no" in err
    assert "flatnb: the executed copy is _build/notebooks/smoke/bad.failed.ipynb" in err
    steps = [line.partition(" …")[0] for line in out.splitlines()]
    assert steps == [
        "[0/2] running bad.ipynb",
        "[1/2] failed bad.ipynb",
        "[1/2] running good.ipynb",
        "[2/2] finished good.ipynb",
    ]


def test_interrupting_ends_kernels_and_leaves_nothing_half_written(
    tmp_path: Path,
) -> None:
    note = "import os, time\nfrom pathlib import Path\nPath('pid').write_text(str(os.getpid()))\n"
    save(tmp_path / "long.ipynb", note + "time.sleep(1000)")
    private = tmp_path / "private"
    private.mkdir()
    os.environ["TMPDIR"], before = str(private), os.environ.get("TMPDIR")
    try:
        process = start("run", "long.ipynb", cwd=tmp_path)
    finally:
        os.environ.pop("TMPDIR") if before is None else os.environ.update(TMPDIR=before)
    pid = tmp_path / "pid"
    while not (pid.exists() and pid.read_text()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert (
        err.endswith("flatnb: interrupted; the kernels are ended\n")
        and "Traceback" not in err
    )
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.kill(int(pid.read_text()), 0)
            time.sleep(0.1)
    assert not list(private.iterdir())
    assert not list((tmp_path / "_build" / "notebooks" / "laptop").iterdir())


# --- book, serve --------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The small book built without and with an address; its notebook is not
    executed.
    """
    roots = {}
    for name in ("without", "with"):
        root = roots[name] = book(tmp_path_factory.mktemp(name))
        if name == "with":
            text = (root / "_config.yml").read_text()
            (root / "_config.yml").write_text(cli.with_address(text, URL, "v1"))
        assert cli.build(notebook.stage(root, {}), root / "_build" / "html")
    return roots


def page(root: Path) -> str:
    return (root / "_build" / "html" / "notebooks" / "01_a.html").read_text()


def test_pages_without_an_address_link_nowhere(built: dict[str, Path]) -> None:
    text = page(built["without"])
    assert 'lang="en"' in text and "custom.css" in text
    assert not any(word in text for word in ("colab", "github.com", "executablebooks"))
    assert (built["without"] / "_build" / "html" / "index.html").exists()


def test_pages_with_an_address_link_to_the_real_files(built: dict[str, Path]) -> None:
    text = page(built["with"])
    colab = "https://colab.research.google.com/github/acme/flatnb/blob/v1/notebooks/01_a.ipynb"
    for link in (colab, f"{URL}/edit/v1/notebooks/01_a.ipynb", f"{URL}/issues/new"):
        assert f'"{link}' in text
    assert "executablebooks" not in text


def test_an_unchanged_stage_is_not_built_again(
    built: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = built["without"]
    monkeypatch.setattr(
        cli.subprocess, "run", lambda *a, **k: pytest.fail("built again")
    )
    assert cli.build(notebook.stage(root, {}), root / "_build" / "html")
    (root / "book" / "intro.md").write_text("# Another\n")
    with pytest.raises(pytest.fail.Exception, match="built again"):
        cli.build(notebook.stage(root, {}), root / "_build" / "html")


def test_a_warning_fails_the_build_and_keeps_the_old_pages(
    built: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    root = built["with"]
    before = page(root)
    with (root / "book" / "intro.md").open("a") as file:
        file.write("\n{ref}`nowhere`\n")
    assert not cli.build(notebook.stage(root, {}), root / "_build" / "html")
    assert "undefined label: 'nowhere'" in capfd.readouterr().err
    assert page(root) == before


def test_tracebacks_and_missing_files_are_found_in_pages(tmp_path: Path) -> None:
    (tmp_path / "_static").mkdir()
    (tmp_path / "_static" / "theme.html").write_text('<img src="{{ path }}">')
    (tmp_path / "there.png").touch()
    outside = (
        '<script src="https://example.org/a.js"></script><img alt="" src="data:,x">'
    )
    (tmp_path / "good.html").write_text(
        f'{outside}<img alt="it" src="there.png?v=1"><p>traceback'
    )
    (tmp_path / "bad.html").write_text(
        '<div class="output traceback highlight"></div><img alt="it" src="gone%20.png">'
        '<link href="gone.css"><img src="there.png">'
    )
    (tmp_path / "text.html").write_text("<pre>Traceback (most recent call last):</pre>")
    assert cli.page_faults(tmp_path) == [
        "bad.html: shows a traceback",
        "bad.html: gone%20.png is missing",
        "bad.html: gone.css is missing",
        "bad.html: there.png has no alternative text",
        "text.html: shows a traceback",
    ]


def test_serve_shows_the_pages_to_this_machine_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = book(tmp_path)
    monkeypatch.chdir(root)
    assert cli.main(["serve"]) == 2
    assert "build them with `make book`" in capsys.readouterr().err
    pages = root / "_build" / "html"
    pages.mkdir(parents=True)
    (pages / "index.html").write_text("hello")
    servers = []
    original = cli.http.server.ThreadingHTTPServer

    def remember(address: tuple[str, int], handler: type) -> object:
        servers.append(original(address, handler))
        return servers[0]

    monkeypatch.setattr(cli.http.server, "ThreadingHTTPServer", remember)
    arguments = cli._parser().parse_args(["serve", "--port", "0"])
    thread = threading.Thread(target=arguments.command, args=[arguments])
    thread.start()
    while not servers:
        time.sleep(0.01)
    host, port = servers[0].server_address
    with urllib.request.urlopen(f"http://{host}:{port}/index.html") as answer:
        assert answer.read() == b"hello"
    monkeypatch.setattr(cli.http.server, "ThreadingHTTPServer", original)
    assert cli.main(["serve", "--port", str(port)]) == 2
    servers[0].shutdown()
    thread.join()
    assert host == "127.0.0.1"
    assert "choose one with --port" in capsys.readouterr().err


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
    assert cli.main(["clean", "--check"]) == 0 and capsys.readouterr().out == ""

    content = notebook.read(path)
    content["metadata"].update(
        language_info={"name": "python"}, papermill={"duration": 1}
    )
    content["cells"][-1]["metadata"].update(
        papermill={"status": "completed"}, execution={"a": "1"}
    )
    content["cells"][-1]["execution_count"] = 4
    stream = {"output_type": "stream", "name": "stdout", "text": ["1\n"]}
    content["cells"][-1]["outputs"] = [stream]
    added = {**code("profile = 'smoke'", "injected-parameters"), "id": "added"}
    content["cells"].insert(2, added)
    path.write_text(notebook.dump(content))
    dirty = path.read_text()

    assert cli.main(["clean", "--check"]) == 1
    assert (
        capsys.readouterr().out == "01_a.ipynb is not clean\n"
        and path.read_text() == dirty
    )
    assert cli.main(["clean"]) == 0
    assert path.read_text() == wanted


def test_address_is_written_everywhere_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = book(tmp_path)
    monkeypatch.chdir(root)
    config, path = root / "_config.yml", root / "notebooks" / "01_a.ipynb"
    old_config, old_notebook = config.read_text(), path.read_text()
    assert cli.main(["address", URL, "--branch", "v1"]) == 0
    assert notebook.address(root) == (URL, "v1")
    changed = set(config.read_text().splitlines()) - set(old_config.splitlines())
    assert changed == {f"  url: {URL}", "  branch: v1"}
    (cell,) = notebook.tagged(notebook.read(path), "bootstrap")
    assert notebook.text_of(cell) == notebook.bootstrap(URL, "v1")

    path.write_text(
        old_notebook
    )  # out of step: without a url the cells follow _config.yml
    assert cli.main(["address"]) == 0
    (cell,) = notebook.tagged(notebook.read(path), "bootstrap")
    assert notebook.text_of(cell) == notebook.bootstrap(URL, "v1")
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
        assert (
            "is not of the form https://github.com/OWNER/NAME"
            in capsys.readouterr().err
        )
    assert cli.main(["address", URL, "--branch=-x"]) == 2
    assert (config.read_text(), path.read_text()) == (new_config, new_notebook)
