"""The command line: `flatnb run | book | clean | address | records`.

Exit status: 0; 1: a notebook, page or check failed; 2: wrong command; 130: interrupted.
"""

import argparse
import inspect
import itertools
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flatnb import __version__
from flatnb.book import run as runner
from flatnb.book import stage
from flatnb.book.profiles import PROFILES
from flatnb.book.run import UserError
from flatnb.results import records

# What papermill, editors and Colab leave in a notebook besides outputs and counts.
TRACES = (
    "metadata.papermill metadata.run metadata.language_info metadata.vscode "
    "cell.metadata.papermill cell.metadata.outputId cell.metadata.executionInfo"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the return value is the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.command(arguments)
    except (UserError, records.RecordError, OSError) as error:
        print(f"flatnb: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"flatnb: {error}: pip install 'flatnb[book,site]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nflatnb: interrupted", file=sys.stderr)
        return 130


def _root() -> Path:
    root = runner.root_of(Path.cwd())
    if root is None:
        raise UserError(f"{Path.cwd()} is not in the repository: it has no _toc.yml")
    return root


def run_command(arguments: Namespace) -> int:
    """Execute notebooks into copies, and those only that changed.

    A run is repeated when its notebook, parameters, flatnb, package versions, threads
    or records changed. The sources are never written to. -p changes a parameter.
    """
    runs = runner.run(
        arguments.notebooks,
        profile=arguments.profile,
        given=dict(arguments.p or []),
        timeout=arguments.timeout,
    )
    if any(run.error for run in runs):
        return 1
    print(*(os.path.relpath(run.output) for run in runs), sep="\n")
    return 0


def book_command(arguments: Namespace) -> int:
    """Run the notebooks of the book, build its pages."""
    root = _root()
    stage.staged_settings(root)  # a mistake there shows before hours of runs
    pages = [page for page in stage.toc_files(root) if page.suffix == ".ipynb"]
    sources = [Path(os.path.relpath(root / page)) for page in pages]
    runs = runner.run(sources, profile=arguments.profile, timeout=arguments.timeout)
    if any(run.error for run in runs):
        return 1
    executed = {page: run.output for page, run in zip(pages, runs, strict=True)}
    if not stage.build(stage.stage(root, executed), root / "_build" / "html"):
        return 1
    print(f"open {root / '_build' / 'html' / 'index.html'}")
    return 0


def clean_command(arguments: Namespace) -> int:
    """Strip outputs and traces of execution from notebooks."""
    paths = arguments.notebooks or sorted((_root() / "notebooks").glob("*.ipynb"))
    options = ["--keep-id", "--unix-newlines", "--extra-keys", TRACES]
    return subprocess.call([sys.executable, "-m", "nbstripout", *options, *paths])


def address_command(arguments: Namespace) -> int:
    """Set the repository's address, in _config.yml and each notebook's first cell."""
    texts = stage.with_address(_root(), arguments.url, arguments.branch)
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    return 0


# --- records ------------------------------------------------------------------------


def _table(columns: Sequence[str], rows: Sequence[Any], empty: str) -> None:
    from pandas import DataFrame

    print(DataFrame(rows, columns=columns).to_string(index=False) if rows else empty)


def _experiments() -> dict[str, Any]:
    from flatnb.experiments import EXPERIMENTS

    return {experiment.name: experiment for experiment in EXPERIMENTS}


def records_list(arguments: Namespace) -> int:
    """All records, a line each."""
    rows = []
    for name in records.names():
        record = records.load(name)
        sizes = (len(record["seeds"]), len(record["settings"]))
        source = (record["provenance"]["device"], record["provenance"]["date"][:10])
        rows.append((name, record["method"], *sizes, *source))
    columns = ("name", "method", "seeds", "settings", "device", "date")
    _table(columns, rows, f"no records in {records.root()}: see `flatnb records todo`")
    return 0


def records_todo(arguments: Namespace) -> int:
    """Experiments without a record, the most valuable first."""
    recorded = set(records.names())
    missing = [e for e in _experiments().values() if e.name not in recorded]
    missing.sort(key=lambda experiment: experiment.cost.value)
    rows = [(e.name, e.cost.gpu_minutes, e.cost.cpu_minutes) for e in missing]
    columns = ("flatnb records make", "GPU min", "CPU min")
    _table(columns, rows, "every experiment is recorded")
    return 0


def records_make(arguments: Namespace) -> int:
    """Run experiments and record them; after an interruption, resume."""
    from flatnb.results import sweep

    experiments = _experiments()
    recorded = set(records.names())
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
    remaining = iter(results)
    status = 0
    for name in names:
        outcome = list(itertools.islice(remaining, len(jobs[name])))
        try:
            record = experiments[name].record(outcome)
        except RuntimeError as error:  # a job failed
            print(f"flatnb: {name} is not recorded: {error}", file=sys.stderr)
            status = 1
            continue
        path = records.save(record, replace=arguments.replace)
        print(f"recorded in {os.path.relpath(path)}")
    return status


def records_verify(arguments: Namespace) -> int:
    """Repeat a cheap sample of each record, or with --whole a fresh run to its last
    epoch, and keep what was found in verified.json; status 1 if one falls outside, or
    cannot be repeated here, for want of its data or of a package."""
    experiments = _experiments()
    names = records.names()
    if arguments.names:
        names = records.match(arguments.names, names)
    loaded = {name: records.load(name) for name in names}
    for name, record in list(loaded.items()):  # before anything runs
        try:
            _check_experiment(record, experiments.get(name), arguments.whole)
        except ValueError as error:
            if arguments.names:
                raise UserError(str(error)) from error
            print(f"skipped  {error}", flush=True)
            del loaded[name]
    part = "whole" if arguments.whole else "sample"
    inside = True
    for name, record in loaded.items():
        if arguments.whole and "evaluation" not in record:
            print(f"skipped  {name}  it has no fresh run", flush=True)
            continue
        checks = None
        try:
            checks = _repeated(record, experiments[name], arguments.whole)
        except (OSError, ImportError) as error:  # of this machine, not of the record
            print(f"skipped  {name}  {type(error).__name__}: {error}", flush=True)
            inside = False
            continue
        except Exception as error:  # the code has moved on: say so, check the others
            print(f"outside  {name}  {type(error).__name__}: {error}", flush=True)
        records.keep_check(record, part, checks)
        if checks is None:
            inside = False
            continue
        for check in checks.itertuples():
            verdict = "inside " if check.inside else "outside"
            values = f"recorded {check.recorded}, now {check.repeated}"
            metric = f"{check.metric}: {values}, tolerance {check.tolerance:g}"
            print(f"{verdict}  {name}  {metric}", flush=True)
            inside &= check.inside
    return int(not inside)


def _check_experiment(record: Any, experiment: Any, whole: bool) -> None:
    """ValueError unless what would be repeated is what the experiment runs."""
    name = record["name"]
    if experiment is None:
        unknown = "no experiment of flatnb has this name, and only those are run"
        raise ValueError(f"{name} is not verified: {unknown}")
    records.check_sample(record, experiment.sample)
    fresh = whole and "evaluation" in record
    if fresh and record["settings"] != experiment.settings:
        other = "its settings are not those of the experiment of this name"
        raise ValueError(f"{name} is not verified: {other}")


def _repeated(record: Any, experiment: Any, whole: bool) -> Any:
    """The checks of `records.verify`, of the sample or of a whole run."""
    from flatnb.experiments.runner import in_precision_of
    from flatnb.results.jobs import Job

    job = experiment.sample
    if whole:
        run = experiment.whole_run(record)
        record = {**record, "sample": run}
        job = Job(run["call"], run["settings"])
    with in_precision_of(record["provenance"]["device"]):
        return records.verify(record, job)


NOTEBOOKS: dict[str, Any] = {"type": Path, "metavar": "NOTEBOOK"}
OPTIONS: dict[str, dict[str, Any]] = {
    "notebooks": {**NOTEBOOKS, "nargs": "+"},
    "[notebooks]": {**NOTEBOOKS, "nargs": "*", "help": "by default all"},
    "names": {"nargs": "+", "metavar": "NAME"},
    "[names]": {"nargs": "*", "metavar": "NAME", "help": "by default all"},
    "url": {"metavar": "https://github.com/OWNER/NAME"},
    "-p": {"nargs": 2, "action": "append", "metavar": ("NAME", "VALUE")},
    "--profile": {"choices": PROFILES, "default": "laptop", "help": "how much to run"},
    "--timeout": {"type": float, "help": "seconds for one cell"},
    "--branch": {"default": "main", "help": "a branch or tag"},
    "--workers": {"type": int, "metavar": "N", "help": "processes (by GPUs or cores)"},
    "--folder": {"type": Path, "help": "for the results of single runs"},
    "--executor": {"help": "dask://host:port or submitit://partition"},
    "--retry": {"action": "store_true", "help": "run what failed again"},
    "--whole": {"action": "store_true", "help": "a fresh run, to its last epoch"},
    "--replace": {"action": "store_true", "help": "also what is recorded already"},
}
COMMANDS = {
    "run": (run_command, "notebooks -p --profile --timeout"),
    "book": (book_command, "--profile --timeout"),
    "clean": (clean_command, "[notebooks]"),
    "address": (address_command, "url --branch"),
    "records list": (records_list, ""),
    "records todo": (records_todo, ""),
    "records make": (
        records_make,
        "names --workers --folder --executor --retry --replace",
    ),
    "records verify": (records_verify, "[names] --whole"),
}


def _parser() -> argparse.ArgumentParser:
    """The table of commands as a parser; docstrings are the help."""
    parser = argparse.ArgumentParser(prog="flatnb", description="A book that reruns.")
    parser.add_argument("--version", action="version", version=f"flatnb {__version__}")
    groups = {"": parser.add_subparsers(required=True, metavar="command")}
    records_help = "recorded results: list, compute and check them"
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
