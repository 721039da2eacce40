"""The command line: `flatnb run | book | serve | records | clean | address`.

Exit status: 0; 1 when a notebook, a page or a check failed; 2 for a wrong command; 130
when interrupted.
"""

import argparse
import inspect
import itertools
import json
import os
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flatnb import __version__
from flatnb.book import run as runner
from flatnb.book import stage
from flatnb.book.profiles import PROFILES
from flatnb.book.run import UserError
from flatnb.results import records
from flatnb.results.statistics import interval

# What execution, editors and Colab leave in a notebook besides outputs and counts.
TRACES = """
    metadata.papermill metadata.language_info metadata.signature metadata.vscode
    metadata.widgets cell.metadata.papermill cell.metadata.execution
    cell.metadata.ExecuteTime cell.metadata.outputId cell.metadata.executionInfo
    cell.metadata.collapsed cell.metadata.scrolled
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the return value is the exit status."""
    arguments = _parser().parse_args(argv)

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    # A closed terminal or a stopped job must not leave kernels behind either; nohup
    # ignores SIGHUP, and so do we then.
    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in handlers.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        return arguments.command(arguments)
    except BrokenPipeError:  # the reader had enough: `flatnb records list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (UserError, records.RecordError, OSError) as error:
        print(f"flatnb: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"flatnb: {error}: pip install 'flatnb[book]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nflatnb: interrupted", file=sys.stderr)
        return 130
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _root() -> Path:
    root = runner.root_of(Path.cwd())
    if root is None:
        place = f"no _toc.yml in {Path.cwd()} or above"
        raise UserError(f"{place}: go to the repository's folder")
    return root


# --- notebooks and pages ------------------------------------------------------------


def run_command(arguments: Namespace) -> int:
    """Execute notebooks into copies, and those only that changed.

    A run is repeated when its notebook, parameters, flatnb, package versions, threads
    or records changed. The sources are never written to. -p changes a parameter.
    """
    given = dict(arguments.p or [])
    runs = _run(arguments, arguments.notebooks, given=given, out=arguments.out)
    if not any(run.error for run in runs):
        print(*(os.path.relpath(run.output) for run in runs), sep="\n")
    return int(any(run.error for run in runs))


def _run(arguments: Namespace, notebooks: Sequence[Path], **options: Any) -> list[Any]:
    """Execute notebooks, and say which failed."""
    for name in ("profile", "jobs", "timeout", "force"):
        options[name] = getattr(arguments, name)
    runs = runner.run(notebooks, **options)
    for run in [run for run in runs if run.error]:
        copy = os.path.relpath(run.output.with_suffix(runner.FAILED))
        place = f"; the executed copy is {copy}" if os.path.exists(copy) else ""
        print(f"\n{run.error}\nflatnb: {run.source} failed{place}", file=sys.stderr)
    return runs


def book_command(arguments: Namespace) -> int:
    """Run the notebooks of the book, build its pages."""
    root = _root()
    stage.staged_settings(root)  # a mistake there shows before hours of runs
    pages = [page for page in stage.toc_files(root) if page.suffix == ".ipynb"]
    runs = _run(arguments, [Path(os.path.relpath(root / page)) for page in pages])
    if any(run.error for run in runs):
        return 1
    executed = {page: run.output for page, run in zip(pages, runs, strict=True)}
    if not stage.build(stage.stage(root, executed), root / "_build" / "html"):
        return 1
    print(f"open {root / '_build' / 'html' / 'index.html'}")
    return 0


def serve_command(arguments: Namespace) -> int:
    """Show the built pages, to this machine only."""
    pages = _root() / "_build" / "html"
    if not (pages / "index.html").exists():
        raise UserError(f"no pages in {pages}: build them with `make book`")
    server = [sys.executable, "-u", "-m", "http.server", str(arguments.port)]
    return subprocess.call([*server, "--bind", "127.0.0.1", "--directory", pages])


def clean_command(arguments: Namespace) -> int:
    """Strip outputs and traces of execution from notebooks."""
    paths = arguments.notebooks or sorted((_root() / "notebooks").glob("*.ipynb"))
    texts = {path: stripped(path) for path in paths}
    dirty = [path for path, (text, clean) in texts.items() if text != clean]
    for path in dirty:
        state = "is not clean" if arguments.check else "cleaned"
        print(f"{os.path.relpath(path)} {state}")
        if not arguments.check:
            runner.write(path, texts[path][1] + "\n")
    return int(arguments.check and bool(dirty))


def stripped(path: Path) -> tuple[str, str]:
    """A notebook's text as it is, and without outputs, counts and traces."""
    import nbformat
    from nbstripout import strip_output

    notebook = runner.read(path)
    text = nbformat.writes(notebook)
    strip_output(notebook, False, False, keep_id=True, extra_keys=TRACES.split())
    return text, nbformat.writes(notebook)


def address_command(arguments: Namespace) -> int:
    """Set the repository's address, in _config.yml and each notebook's first cell.

    The links of the pages come from _config.yml. Without a url, the cells are brought
    in line with it.
    """
    root = _root()
    url, branch = arguments.url, arguments.branch
    if url is None:
        url, branch = stage.address(root)
    for path, text in stage.with_address(root, url, branch).items():
        runner.write(path, text)
        print(f"{os.path.relpath(path)}: {url or 'no address'}, {branch}")
    return 0


# --- records ------------------------------------------------------------------------


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]], empty: str) -> None:
    from pandas import DataFrame

    print(DataFrame(rows, columns=columns).to_string(index=False) if rows else empty)


def _experiments() -> dict[str, Any]:
    from flatnb.experiments import EXPERIMENTS

    return {experiment.name: experiment for experiment in EXPERIMENTS}


def records_list(arguments: Namespace) -> int:
    """All records, a line each."""
    rows = []
    for record in map(records.load, records.names()):
        name, source = record["name"], record["provenance"]
        sizes = [len(record["seeds"]), len(record["settings"])]
        row = (name, record["method"], *sizes, source["device"], source["date"][:10])
        rows.append(row)
    columns = ("name", "method", "seeds", "settings", "device", "date")
    _table(columns, rows, f"no records in {records.root()}: see `flatnb records todo`")
    return 0


def records_show(arguments: Namespace) -> int:
    """What was found, how, and where; a NAME may be a pattern, such as 'plane/*'."""
    for name in records.match(arguments.names, records.names()):
        _show(records.load(name))
    return 0


def _show(record: Mapping[str, Any]) -> None:
    print(record["name"], "\n")
    for label in ("task", "method", "passes", "selection", "failures", "provenance"):
        print(f"{label}: {json.dumps(record[label], ensure_ascii=False)}")
    for seed, index in zip(record["seeds"], record["selection"]["chosen"], strict=True):
        print(f"seed {seed}: {record['settings'][index]}")
    print("\nAfter the last epoch, mean and 95 % interval over the seeds:\n")
    rows = []
    for metric, values in records.selected(record).items():
        numbers = [value for value in values if value is not None]
        rows.append((metric, *interval(numbers), len(numbers)))
    _table(("metric", "mean", "±", "n"), rows, "no metric")


def records_todo(arguments: Namespace) -> int:
    """Experiments without a record, the most valuable first."""
    recorded = set(records.names())
    missing = [e for e in _experiments().values() if e.name not in recorded]
    missing.sort(key=lambda experiment: experiment.cost.value)
    rows = [(e.title, e.cost.gpu_minutes, e.cost.cpu_minutes, e.name) for e in missing]
    columns = ("experiment", "GPU min", "CPU min", "flatnb records make")
    _table(columns, rows, "every experiment is recorded")
    return 0


def records_make(arguments: Namespace) -> int:
    """Run experiments and record them; after an interruption, go on."""
    from flatnb.results import sweep

    experiments, recorded = _experiments(), set(records.names())
    names = records.match(arguments.names, list(experiments))
    for name in recorded.intersection(names):
        if not arguments.replace:
            print(f"{name} is recorded already (--replace makes it again)")
            names.remove(name)
    jobs = {name: experiments[name].jobs() for name in names}
    base = runner.root_of(Path.cwd()) or Path.cwd()
    try:  # one sweep for all, which keeps every worker busy
        results = sweep.run(
            list(itertools.chain.from_iterable(jobs.values())),
            arguments.folder or base / "_build" / "sweep",
            executor=arguments.executor,
            workers=arguments.workers,
            retry=arguments.retry,
        )
    except (ValueError, RuntimeError, ModuleNotFoundError) as error:
        raise UserError(str(error)) from error
    remaining, complete = iter(results), True
    for name in names:
        outcome = list(itertools.islice(remaining, len(jobs[name])))
        complete &= _record(experiments[name], outcome, arguments.replace)
    return int(not complete)


def _record(experiment: Any, results: Sequence[Any], replace: bool) -> bool:
    """Record one experiment; False when a run of it failed."""
    errors = [result.error for result in results if result.error is not None]
    if errors:
        count = f"{experiment.name}: {len(errors)} of {len(results)} runs failed"
        reason = f"the first with {errors[0]}; --retry runs them again"
        print(f"flatnb: {count}, {reason}", file=sys.stderr)
    try:
        record = experiment.record(results)
    except RuntimeError as error:
        print(f"flatnb: {experiment.name} is not recorded: {error}", file=sys.stderr)
        return False
    path = records.save(record, replace=replace)
    print(f"recorded in {os.path.relpath(path)}")
    return not errors


def records_verify(arguments: Namespace) -> int:
    """Repeat a cheap sample of each record; status 1 if one falls outside."""
    experiments, names = _experiments(), records.names()
    if arguments.names:
        names = records.match(arguments.names, names)
    loaded = {name: records.load(name) for name in names}
    for name, record in loaded.items():  # refuse what is odd before running anything
        if name not in experiments:
            unknown = "no experiment of flatnb has this name, and only those are run"
            raise UserError(f"{name} is not verified: {unknown}")
        records.check_sample(record, experiments[name].sample)
    inside = True
    for name, record in loaded.items():
        try:
            checks = records.verify(record, experiments[name].sample)
        except Exception as error:  # the code has moved on: say so, check the others
            print(f"outside  {name}  {type(error).__name__}: {error}", flush=True)
            inside = False
            continue
        for check in checks:
            verdict = "inside " if check.inside else "outside"
            values = f"recorded {check.recorded}, now {check.repeated}"
            metric = f"{check.metric}: {values}, tolerance {check.tolerance:g}"
            print(f"{verdict}  {name}  {metric}", flush=True)
            inside &= check.inside
    return int(not inside)


# --- the parser ---------------------------------------------------------------------

NOTEBOOKS: dict[str, Any] = {"type": Path, "metavar": "NOTEBOOK"}
SECONDS = ", ".join(f"{name} {limit}" for name, limit in runner.TIMEOUTS.items())
OPTIONS: dict[str, dict[str, Any]] = {
    "notebooks": {**NOTEBOOKS, "nargs": "+"},
    "[notebooks]": {**NOTEBOOKS, "nargs": "*", "help": "by default all"},
    "names": {"nargs": "+", "metavar": "NAME"},
    "[names]": {"nargs": "*", "metavar": "NAME", "help": "by default all"},
    "url": {"nargs": "?", "metavar": "https://github.com/OWNER/NAME"},
    "-p": {"nargs": 2, "action": "append", "metavar": ("NAME", "VALUE")},
    "--out": {"type": Path, "metavar": "DIR", "help": "for executed copies"},
    "--profile": {"choices": PROFILES, "default": "laptop", "help": "how much to run"},
    "--jobs": {"type": int, "metavar": "N", "help": "notebooks that share the cores"},
    "--timeout": {"type": float, "help": f"seconds for one notebook ({SECONDS})"},
    "--force": {"action": "store_true", "help": "run what did not change, too"},
    "--port": {"type": int, "default": 8000},
    "--check": {"action": "store_true", "help": "only name what is not clean"},
    "--branch": {"default": "main", "help": "a branch or tag"},
    "--workers": {"type": int, "metavar": "N", "help": "processes (by GPUs or cores)"},
    "--folder": {"type": Path, "help": "for the results of single runs"},
    "--executor": {"help": "dask://host:port or submitit://partition"},
    "--retry": {"action": "store_true", "help": "run what failed again"},
    "--replace": {"action": "store_true", "help": "also what is recorded already"},
}
COMMANDS = {
    "run": (run_command, "notebooks -p --out --profile --jobs --timeout --force"),
    "book": (book_command, "--profile --jobs --timeout --force"),
    "serve": (serve_command, "--port"),
    "clean": (clean_command, "[notebooks] --check"),
    "address": (address_command, "url --branch"),
    "records list": (records_list, ""),
    "records show": (records_show, "names"),
    "records todo": (records_todo, ""),
    "records make": (
        records_make,
        "names --workers --folder --executor --retry --replace",
    ),
    "records verify": (records_verify, "[names]"),
}


def _parser() -> argparse.ArgumentParser:
    """The table of commands as a parser; docstrings are the help."""
    parser = argparse.ArgumentParser(prog="flatnb", description="A book that reruns.")
    parser.add_argument("--version", action="version", version=f"flatnb {__version__}")
    groups = {"": parser.add_subparsers(required=True, metavar="command")}
    records_help = "recorded results: show, compute and check them"
    group = groups[""].add_parser("records", help=records_help)
    groups["records"] = group.add_subparsers(required=True, metavar="what")
    for command, (function, options) in COMMANDS.items():
        group_name, _, name = command.rpartition(" ")
        text = inspect.getdoc(function) or ""
        summary = text.partition("\n")[0]
        leaf = groups[group_name].add_parser(name, help=summary, description=text)
        leaf.set_defaults(command=function)
        for option in options.split():
            leaf.add_argument(option.strip("[]"), **OPTIONS[option])
    return parser
