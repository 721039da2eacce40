"""The command line: `flatnb run | book | serve | records | clean | address`.

Exit status: 0; 1 when a notebook, a page or a check failed; 2 for a wrong command; 130
    when
interrupted.
"""

import argparse
import functools
import html.parser
import http.server
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from flatnb import __version__
from flatnb.book import notebook
from flatnb.book.notebook import PROFILES, TIMEOUTS, UserError
from flatnb.results import records
from flatnb.results.statistics import interval

# What execution, editors and Colab leave in a notebook beside outputs and counts.
TRACES = (
    *(
        f"metadata.{name}"
        for name in ("papermill", "language_info", "signature", "vscode", "widgets")
    ),
    *(
        f"cell.metadata.{name}"
        for name in (
            "papermill",
            "execution",
            "ExecuteTime",
            "outputId",
            "executionInfo",
            "collapsed",
            "scrolled",
        )
    ),
)
ADDED = {
    "injected-parameters",
    "papermill-error-cell-tag",
}  # tags of cells that papermill adds
# What turns the stage into pages: with the stage's files, it decides whether to build
# again.
BUILDERS = (
    "jupyter-book",
    "sphinx",
    "myst-nb",
    "sphinx-book-theme",
    "pydata-sphinx-theme",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the return value is the exit status."""
    arguments = _parser().parse_args(argv)

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    # A closed terminal or a stopped job must not leave kernels behind either.
    before = {
        which: signal.signal(which, interrupt)
        for which in (signal.SIGTERM, signal.SIGHUP)
    }
    try:
        return arguments.command(arguments)
    except (UserError, records.RecordError) as error:
        print(f"flatnb: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader had enough: `flatnb records list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a full disk, a read-only folder
        print(
            f"flatnb: {error.filename or 'file system'}: {error.strerror}",
            file=sys.stderr,
        )
        return 2
    except ModuleNotFoundError as error:
        print(f"flatnb: {error}: pip install 'flatnb[book]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nflatnb: interrupted; the kernels are ended", file=sys.stderr)
        return 130
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flatnb", description="Run notebooks, build the book."
    )
    parser.add_argument("--version", action="version", version=f"flatnb {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    runs = argparse.ArgumentParser(add_help=False)
    runs.add_argument(
        "--profile",
        choices=PROFILES,
        default="laptop",
        help="how much is computed (default: laptop)",
    )
    runs.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="notebooks run at one time; each computes with cores / N threads "
        "(default: at most 4, and 1 at the paper profile)",
    )
    runs.add_argument(
        "--timeout",
        type=float,
        metavar="S",
        help="seconds after which a notebook is killed (default: "
        + ", ".join(f"{p} {s}" for p, s in TIMEOUTS.items())
        + ")",
    )
    runs.add_argument(
        "--force", action="store_true", help="run what did not change, too"
    )

    run = commands.add_parser(
        "run",
        parents=[runs],
        help="execute notebooks",
        description="Execute notebooks. Sources are never written to. A run "
        "is repeated only when the notebook, its parameters, flatnb, package "
        "versions, the thread count or its records changed.",
    )
    run.add_argument("notebooks", nargs="+", type=Path, metavar="NOTEBOOK")
    run.add_argument(
        "-p",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        dest="given",
        help="a parameter; a list is written 0,1,2; the output's name "
        "then ends in a code for the parameters",
    )
    run.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="for executed copies (default: _build/notebooks/PROFILE)",
    )
    run.set_defaults(command=run_command)

    book = commands.add_parser(
        "book", parents=[runs], help="run the notebooks, build the pages"
    )
    book.set_defaults(command=book_command)

    serve = commands.add_parser("serve", help="show the built pages on this machine")
    serve.add_argument("--port", type=int, default=8000)
    serve.set_defaults(command=serve_command)

    _add_records(commands)

    clean = commands.add_parser("clean", help="strip outputs and traces of execution")
    clean.add_argument(
        "notebooks",
        nargs="*",
        type=Path,
        metavar="NOTEBOOK",
        help="by default all in notebooks/",
    )
    clean.add_argument(
        "--check", action="store_true", help="only name what is to be stripped"
    )
    clean.set_defaults(command=clean_command)

    address = commands.add_parser(
        "address",
        help="set the repository's address",
        description="Write the address into _config.yml, where the "
        "pages' links come from, and each notebook's first cell; "
        "without a url, bring the cells in line with _config.yml.",
    )
    address.add_argument("url", nargs="?", metavar="https://github.com/OWNER/NAME")
    address.add_argument(
        "--branch", default="main", help="a branch or tag (default: main)"
    )
    address.set_defaults(command=address_command)
    return parser


def _add_records(commands: Any) -> None:
    what = commands.add_parser(
        "records",
        help="recorded results: show, compute and check them",
        description="A NAME may be a pattern, such as 'plane/*'.",
    ).add_subparsers(required=True, metavar="what")

    shown = what.add_parser("list", help="all records, a line each")
    shown.set_defaults(command=records_list)

    show = what.add_parser("show", help="what was found, how, and where")
    show.add_argument("names", nargs="+", metavar="NAME")
    show.set_defaults(command=records_show)

    todo = what.add_parser(
        "todo", help="experiments without a record, most valuable first"
    )
    todo.set_defaults(command=records_todo)

    make = what.add_parser(
        "make",
        help="run an experiment and record it",
        description="Run an experiment and record it. What is finished is kept: "
        "the same command goes on after an interruption.",
    )
    make.add_argument("names", nargs="+", metavar="NAME")
    make.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes (default: one a GPU, else by the cores)",
    )
    make.add_argument(
        "--folder",
        type=Path,
        metavar="F",
        help="for the results of single runs (default: _build/sweep)",
    )
    make.add_argument(
        "--executor",
        metavar="SPEC",
        help="dask://host:port, or submitit://partition?timeout_min=60",
    )
    make.add_argument("--retry", action="store_true", help="run what failed again")
    make.add_argument(
        "--replace", action="store_true", help="also what is recorded already"
    )
    make.set_defaults(command=records_make)

    verify = what.add_parser(
        "verify",
        help="repeat a cheap sample of each record",
        description="Repeat a cheap sample of each record; exit status 1 if "
        "one falls outside its tolerance.",
    )
    verify.add_argument("names", nargs="*", metavar="NAME", help="by default all")
    verify.set_defaults(command=records_verify)


def _root() -> Path:
    root = notebook.root_of(Path.cwd())
    if root is None:
        raise UserError(
            f"no _toc.yml in {Path.cwd()} or above: go to the repository's folder"
        )
    return root


# --- run ----------------------------------------------------------------------------


def run_command(arguments: argparse.Namespace) -> int:
    given = dict(arguments.given)
    if len(given) < len(arguments.given):
        raise UserError("a parameter is given twice")
    results = notebook.run(
        arguments.notebooks,
        profile=arguments.profile,
        given=given,
        jobs=arguments.jobs,
        out=arguments.out,
        timeout=arguments.timeout,
        force=arguments.force,
    )
    if _failures(results):
        return 1
    for result in results:
        print(os.path.relpath(result.output))
    return 0


def _failures(results: Sequence[notebook.Result]) -> bool:
    failed = [result for result in results if result.error]
    for result in failed:
        print(f"\nflatnb: {result.source}, {result.error}", file=sys.stderr)
        copy = notebook.failed_copy(result.output)
        if copy.exists():
            print(
                f"flatnb: the executed copy is {os.path.relpath(copy)}", file=sys.stderr
            )
    return bool(failed)


# --- book ---------------------------------------------------------------------------


def book_command(arguments: argparse.Namespace) -> int:
    root = _root()
    notebook.staged_config(
        notebook.config_of(root)
    )  # a mistake there shows before hours of runs
    pages = [page for page in notebook.toc_files(root) if page.suffix == ".ipynb"]
    sources = {page: Path(os.path.relpath(root / page)) for page in pages}
    results = notebook.run(
        sources.values(),
        profile=arguments.profile,
        jobs=arguments.jobs,
        timeout=arguments.timeout,
        force=arguments.force,
    )
    if _failures(results):
        return 1
    executed = {
        page: result.output for page, result in zip(pages, results, strict=True)
    }
    stage = notebook.stage(root, executed)
    if not build(stage, root / "_build" / "html"):
        return 1
    print(f"open {root / '_build' / 'html' / 'index.html'}")
    return 0


def build(stage: Path, pages: Path) -> bool:
    """Turn the stage into pages, unless they are made of it already; False after any
    warning.

    Built aside and whole, then put in place: an incremental build repeats no warning of
        a page it
    leaves alone, and an interrupted one would leave a mixture.
    """
    mark = pages / ".stage"
    wanted = _state(stage)
    if mark.exists() and mark.read_bytes() == wanted.encode():
        return True
    aside = stage.parent / "book"
    shutil.rmtree(aside, ignore_errors=True)
    print("building the pages …", flush=True)
    command = [
        "import sys; from jupyter_book.cli.main import main; sys.exit(main())",
        "build",
        str(stage),
        "--path-output",
        str(aside),
        "-W",
        "-n",
        "--keep-going",
    ]
    done = subprocess.run(
        [sys.executable, "-P", "-c", *command], capture_output=True, text=True
    )
    built = aside / "_build" / "html"
    faults = page_faults(built) if built.is_dir() else []
    if done.returncode or faults:
        output = done.stderr if "WARNING" in done.stderr else done.stdout + done.stderr
        print(
            notebook.plain(output) if done.returncode else "",
            *faults,
            sep="\n",
            file=sys.stderr,
        )
        print(
            f"flatnb: the book has faults; the pages as they are: {built}",
            file=sys.stderr,
        )
        return False
    (built / ".stage").write_text(wanted)
    shutil.rmtree(pages, ignore_errors=True)
    built.rename(pages)
    shutil.rmtree(aside, ignore_errors=True)
    return True


def _state(stage: Path) -> str:
    """A hash of the staged files and of what builds pages from them."""
    files = {
        str(p.relative_to(stage)): notebook.sha256(p)
        for p in stage.rglob("*")
        if p.is_file()
    }
    builders = [notebook.version(name) for name in BUILDERS]
    return notebook.digest(
        [files, builders, notebook.sources()]
    )  # one page is of docstrings


class _Sources(html.parser.HTMLParser):
    """The files a page needs, its images without alternative text, any traceback it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.needed: list[str] = []
        self.mute: list[str] = []
        self.traceback = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        name = "href" if tag == "link" else "src"
        if tag in {"img", "script", "link", "source"} and values.get(name):
            self.needed.append(values[name] or "")
        # For a figure without one, myst-nb takes the file's name.
        if tag == "img" and values.get("alt") in {None, values.get("src")}:
            self.mute.append(values.get("src") or "")
        self.traceback |= "traceback" in (values.get("class") or "").split()

    def handle_data(self, data: str) -> None:
        self.traceback |= "Traceback (most recent call last)" in data


def page_faults(pages: Path) -> list[str]:
    """What no warning tells: tracebacks, files that are not there, images without words."""
    faults = []
    for page in sorted(pages.rglob("*.html")):
        name = page.relative_to(pages)
        if name.parts[0] == "_static":  # templates that the theme leaves there
            continue
        sources = _Sources()
        sources.feed(page.read_text(encoding="utf-8"))
        if sources.traceback:
            faults.append(f"{name}: shows a traceback")
        for url in sources.needed:
            path = urlsplit(url).path
            local = not urlsplit(url).scheme and not url.startswith("//") and path
            if local and not (page.parent / unquote(path)).exists():
                faults.append(f"{name}: {url} is missing")
        faults += [f"{name}: {url} has no alternative text" for url in sources.mute]
    return faults


def serve_command(arguments: argparse.Namespace) -> int:
    pages = _root() / "_build" / "html"
    if not (pages / "index.html").exists():
        raise UserError(f"no pages in {pages}: build them with `make book`")
    handler = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=str(pages)
    )
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", arguments.port), handler)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"port {arguments.port}: {error}; choose one with --port"
        ) from None
    with server:
        print(f"http://127.0.0.1:{server.server_port}/  (Ctrl-C ends)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0


# --- records ------------------------------------------------------------------------


def _table(*rows: Sequence[object]) -> None:
    widths = [
        max(len(str(cell)) for cell in column) for column in zip(*rows, strict=True)
    ]
    for row in rows:
        print(
            "  ".join(
                f"{cell!s:{w}}" for cell, w in zip(row, widths, strict=True)
            ).rstrip()
        )


def _experiments() -> dict[str, Any]:
    from flatnb.experiments import EXPERIMENTS

    return {one.name: one for one in EXPERIMENTS}


def records_list(arguments: argparse.Namespace) -> int:
    rows = []
    for record in map(records.load, records.names()):
        source = record["provenance"]
        rows.append(
            (
                record["name"],
                record["method"],
                len(record["seeds"]),
                len(record["settings"]),
                source["device"],
                source["date"][:10],
            )
        )
    if not rows:
        print(
            f"no records in {records.root()}: `flatnb records todo` shows what makes them"
        )
    else:
        _table(("name", "method", "seeds", "settings", "device", "date"), *rows)
    return 0


def records_show(arguments: argparse.Namespace) -> int:
    for name in records.match(arguments.names, records.names()):
        _show(records.load(name))
    return 0


def _show(record: Mapping[str, Any]) -> None:
    selection, source, seeds = (
        record["selection"],
        record["provenance"],
        record["seeds"],
    )
    print(f"{record['name']}\n")
    about = {
        "task": _words(record["task"]),
        "method": f"{record['method']}, forward-backward passes a step: {record['passes']}",
        "tried": f"{len(record['settings'])} settings × {len(seeds)} seeds: {selection['space']}",
        "chosen": _chosen(record, selection["chosen"]),
        "by": f"{selection['split']} {selection['metric']}, ties: {selection['ties']}, "
        f"per {selection['per']}",
    }
    if other := selection.get("otherwise"):
        about["otherwise"] = f"by {other['rule']}: {_chosen(record, other['chosen'])}"
    if record["failures"]:
        about["failed"] = "; ".join(
            f"setting {one['setting']}, seed {one['seed']}: {one['error']}"
            for one in record["failures"]
        )
    commit = (
        f"{source['commit'] or 'no commit'}{' with changes' if source['dirty'] else ''}"
    )
    about["computed"] = (
        f"{source['date'][:10]} on {source['device']}, {source['threads']} threads, "
        f"{source['seconds']:.0f} s, Python {source['python']}, {_words(source['packages'])}"
    )
    about["from"] = f"{commit}: {source['command']}"
    width = max(60, shutil.get_terminal_size().columns - 1)
    for label, text in about.items():
        lines = textwrap.wrap(text, width - 11, break_long_words=False)
        print(f"{label:10}", textwrap.indent("\n".join(lines), " " * 11).lstrip())
    print(
        "\nAfter the last epoch, at the settings chosen, mean and 95 % interval over seeds:\n"
    )
    rows = []
    for metric, values in records.selected(record).items():
        mean, half = interval([value for value in values if value is not None])
        n = sum(value is not None for value in values)
        text = f"{mean:.4g} ± {half:.2g}" if n > 1 else f"{mean:.4g}"
        rows.append((metric, text, f"n = {n} of {len(seeds)}"))
    _table(*rows)
    print()


def _words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _chosen(record: Mapping[str, Any], indices: Sequence[int]) -> str:
    """The settings chosen, with the seeds that each was chosen for."""
    texts = []
    for index in dict.fromkeys(indices):
        seeds = [s for s, i in zip(record["seeds"], indices, strict=True) if i == index]
        setting = _words(record["settings"][index]) or "no hyperparameter"
        texts.append(f"{setting} (seeds {', '.join(map(str, seeds))})")
    return "; ".join(texts)


def records_todo(arguments: argparse.Namespace) -> int:
    there = set(records.names())
    missing = [one for one in _experiments().values() if one.name not in there]
    if not missing:
        print("every experiment is recorded")
        return 0
    missing.sort(key=lambda one: one.value)
    rows = [
        (
            one.title,
            f"{one.gpu_minutes:.3g}",
            f"{one.cpu_minutes:.3g}",
            f"flatnb records make {one.name}",
        )
        for one in missing
    ]
    total = [
        f"{sum(getattr(one, name) for one in missing):.3g}"
        for name in ("gpu_minutes", "cpu_minutes")
    ]
    _table(
        ("experiment", "GPU min", "CPU min", "command"), *rows, ("together", *total, "")
    )
    return 0


def records_make(arguments: argparse.Namespace) -> int:
    experiments, there = _experiments(), set(records.names())
    chosen = []
    for name in records.match(arguments.names, list(experiments)):
        if name in there and not arguments.replace:
            print(f"{name} is recorded already (--replace makes it anew)")
        else:
            chosen.append(experiments[name])
    try:
        results = _sweep([one.jobs() for one in chosen], arguments)
    except KeyboardInterrupt:  # the sweep has said what it kept
        return 130
    made = [
        _record(one, own, arguments.replace)
        for one, own in zip(chosen, results, strict=True)
    ]
    return int(not all(made))


def _sweep(
    jobs: Sequence[Sequence[Any]], arguments: argparse.Namespace
) -> list[list[Any]]:
    """The results of each experiment's jobs; one sweep for all, which keeps every worker busy."""
    from flatnb.results import sweep

    base = notebook.root_of(Path.cwd()) or Path.cwd()
    try:
        results = iter(
            sweep.run(
                [job for own in jobs for job in own],
                arguments.folder or base / "_build" / "sweep",
                executor=arguments.executor,
                workers=arguments.workers,
                retry=arguments.retry,
            )
        )
    except (ValueError, RuntimeError, ModuleNotFoundError) as error:
        raise UserError(str(error)) from error
    return [[next(results) for _ in own] for own in jobs]


def _record(experiment: Any, results: Sequence[Any], replace: bool) -> bool:
    """Record one experiment; False when a run of it failed, with which it may refuse a record."""
    errors = [result.error for result in results if result.error is not None]
    if errors:
        print(
            f"flatnb: {experiment.name}: {len(errors)} of {len(results)} runs failed, the first "
            f"with {errors[0]}; --retry runs them again",
            file=sys.stderr,
        )
    try:
        record = experiment.record(results)
    except RuntimeError as error:
        print(f"flatnb: {experiment.name} is not recorded: {error}", file=sys.stderr)
        return False
    if record["name"] != experiment.name:
        raise UserError(f"{experiment.name} makes a record named {record['name']}")
    print(f"recorded in {os.path.relpath(records.save(record, replace=replace))}")
    return not errors


def records_verify(arguments: argparse.Namespace) -> int:
    known = records.names()
    names = records.match(arguments.names, known) if arguments.names else known
    experiments = _experiments()
    pairs = []
    for record in map(
        records.load, names
    ):  # refuse what is odd before running anything
        if record["name"] not in experiments:
            raise UserError(
                f"{record['name']} is not verified: no experiment of flatnb has this name, and "
                "only those are run"
            )
        sample = experiments[record["name"]].sample
        records.check_sample(record, sample)
        pairs.append((record, sample))
    return int(not all([_verify(record, sample) for record, sample in pairs]))


def _verify(record: Mapping[str, Any], sample: Any) -> bool:
    """Repeat one sample, and say how each metric came out; whether all are inside."""
    try:
        checks = records.verify(record, sample)
    except (
        Exception
    ) as error:  # the code has moved on from the record: say so, check the rest
        print(f"outside  {record['name']}  {type(error).__name__}: {error}", flush=True)
        return False
    for one in checks:
        verdict = "inside " if one.inside else "outside"
        print(
            f"{verdict}  {record['name']}  {one.metric}: recorded {one.recorded}, "
            f"now {one.repeated}, tolerance {one.tolerance:g}",
            flush=True,
        )
    return all(one.inside for one in checks)


# --- clean, address -----------------------------------------------------------------


def clean_command(arguments: argparse.Namespace) -> int:
    paths = arguments.notebooks or sorted((_root() / "notebooks").glob("*.ipynb"))
    dirty = [
        path for path in paths if notebook.dump(notebook.read(path)) != stripped(path)
    ]
    for path in dirty:
        print(
            f"{os.path.relpath(path)} {'is not clean' if arguments.check else 'cleaned'}"
        )
        if not arguments.check:
            notebook.write(path, stripped(path))
    return int(arguments.check and bool(dirty))


def stripped(path: Path) -> str:
    """A notebook's file without outputs, counts and traces of execution; tags and ids stay."""
    import nbformat
    from nbstripout import strip_output

    node = nbformat.from_dict(notebook.read(path))
    node.cells = [c for c in node.cells if not ADDED & set(c.metadata.get("tags", ()))]
    strip_output(
        node, keep_output=False, keep_count=False, keep_id=True, extra_keys=TRACES
    )
    return notebook.dump(node)


def address_command(arguments: argparse.Namespace) -> int:
    root = _root()
    config = root / "_config.yml"
    texts = {}
    if arguments.url is None:
        url, branch = notebook.address(root)
    else:
        url, branch = arguments.url, arguments.branch
        notebook.check_address(url)
        if not re.fullmatch(r"\w[\w./-]*", branch):
            raise UserError(f"{branch!r} is no branch or tag")
        texts[config] = with_address(config.read_text(encoding="utf-8"), url, branch)
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        content = notebook.read(path)
        cells = notebook.tagged(content, "bootstrap")
        if len(cells) != 1:
            raise UserError(
                f"{path} has {len(cells)} cells tagged `bootstrap`; it needs one"
            )
        cells[0]["source"] = notebook.bootstrap(url, branch)
        texts[path] = notebook.dump(content)
    for path, text in texts.items():
        notebook.write(path, text)
        print(f"{os.path.relpath(path)}: {url or 'no address'}, {branch}")
    return 0


def with_address(config: str, url: str, branch: str) -> str:
    """The text of _config.yml with the repository's url and branch set, all else as it was."""
    for name, value in {"url": url, "branch": branch}.items():
        block = r"^repository:.*\n(?:[ #].*\n|\n)*?"
        line = re.compile(rf"({block}[ ]+{name}:)[^#\n]*?([ ]*#.*)?$", re.M)
        config, count = line.subn(rf"\g<1> {value}\g<2>", config)
        if count != 1:
            raise UserError(f"_config.yml has no line `{name}:` under `repository:`")
    return config
