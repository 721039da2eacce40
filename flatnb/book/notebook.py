"""Notebooks: their profiles and first cell, running them with papermill, staging them
for the book.

A run is determined by its notebook, parameters, flatnb's code, package and Python
versions, thread count and declared records; `key` hashes these, and a run whose key is
known is not repeated. Each run has a process of its own, so that a wall clock can end a
hung kernel and papermill's change of directory stays its own. The kernel works in the
notebook's folder, as Jupyter's does, and the first cell takes Colab's there too: a
relative path means the same in all three.

Only the standard library is imported here; papermill and the rest inside the functions
that need them, because every notebook imports this module.
"""

import ast
import hashlib
import importlib.metadata
import io
import itertools
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tokenize
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

TIMEOUTS = {
    "smoke": 600,
    "laptop": 3600,
    "paper": 24 * 3600,
}  # seconds for one notebook
PROFILES = tuple(TIMEOUTS)
TYPES: dict[str, type] = {
    "bool": bool,
    "int": int,
    "float": float,
    "str": str,
    "list": list,
}
PACKAGE = Path(__file__).resolve().parents[1]
# Their versions are part of a run's key: they can change a number or a figure.
PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "matplotlib",
    "seaborn",
    "scikit-learn",
    "pandas",
    "scipy",
    "papermill",
    "accelerate",
    "lightning",
    "transformers",
)

# The first code cell of every notebook, here without an address. The clone is not named
# flatnb: beside it, `import flatnb` would find that folder, as a namespace package, and
# not the one inside.
BOOTSTRAP = """\
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

REPOSITORY = ""  # this line and the next are written by `flatnb address`
REVISION = "main"
clone, package = Path("flatnb-clone"), Path("../flatnb/__init__.py")
if not (
    getattr(find_spec("flatnb"), "origin", None) or clone.exists() or package.exists()
):
    if not REPOSITORY:
        raise ImportError(
            "flatnb is not installed; to fetch it here, set: flatnb address URL"
        )
    subprocess.check_call(
        ["git", "clone", "-q", "--depth=1", "-b", REVISION, REPOSITORY, clone]
    )
    subprocess.check_call(
        [sys.executable, *"-m pip install -q --no-deps -e".split(), clone]
    )
if clone.exists():  # work where Jupyter would, so that relative paths mean the same
    os.chdir(clone / "notebooks")
if package.exists():  # the code that came with this notebook, installed or not
    sys.path.insert(0, str(Path("..").resolve()))
from flatnb.book.profiles import about  # noqa: E402

print(about(REVISION))"""


class UserError(Exception):
    """What the user can put right; the command line shows it without a traceback."""


def bootstrap(repository: str = "", revision: str = "main") -> str:
    """The text of the first code cell, for a repository's address ("" while there is none)."""
    text = BOOTSTRAP.replace('REPOSITORY = ""', f'REPOSITORY = "{repository}"')
    return text.replace('REVISION = "main"', f'REVISION = "{revision}"')


# --- a notebook's parameters --------------------------------------------------------


# What Python's parser and `literal_eval` raise for text that they do not take.
_NOT_PYTHON = (SyntaxError, ValueError, TypeError, RecursionError, MemoryError)


@dataclass(frozen=True)
class Parameter:
    """One line of the parameters cell: `name: type = value  # help`."""

    name: str
    type: str
    default: Any
    help: str
    item: str = "str"  # of a list

    def __str__(self) -> str:
        kind = f"list[{self.item}]" if self.type == "list" else self.type
        help = f"  # {self.help}" if self.help else ""
        return f"  {self.name}: {kind} = {self.default!r}{help}"

    def parse(self, text: str) -> Any:
        """The value that `text` from the command line stands for; ValueError if there is none."""
        text.encode()  # bytes of a command line that are no text: a ValueError
        if self.type != "list":
            return _scalar(self.type, text)
        text = text.strip()
        if not text.startswith("["):
            return [_scalar(self.item, part.strip()) for part in text.split(",")]
        value = ast.literal_eval(text)
        return [_scalar(self.item, str(part)) for part in value]


def _scalar(kind: str, text: str) -> Any:
    if kind == "bool":
        if text.lower() not in {"true", "false"}:
            raise ValueError(f"{text!r} is neither true nor false")
        return text.lower() == "true"
    return TYPES[kind](text)


def tagged(notebook: Mapping[str, Any], tag: str) -> list[dict[str, Any]]:
    """The cells that bear a tag."""
    return [
        cell for cell in notebook["cells"] if tag in cell["metadata"].get("tags", ())
    ]


def text_of(cell: Mapping[str, Any]) -> str:
    """A cell's source, which a file holds as a string or as a list of lines."""
    return "".join(cell["source"])


def read(path: Path) -> dict[str, Any]:
    """A notebook file as plain data; UserError, with file and place, if it is none."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        fault = _fault(notebook)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except RecursionError:
        fault = "it is nested too deeply"
    except ValueError as error:  # neither JSON nor UTF-8
        fault = str(error)
    if fault:
        raise UserError(f"{path} is not a notebook: {fault}")
    return notebook


# What we ask of a notebook beside nbformat's schema: the metadata `flatnb`; and that
# types of cells and outputs are text, which nbformat takes for granted when it words an
# error.
_DECLARED = {
    "type": "object",
    "properties": {"records": {"type": "array", "items": {"type": "string"}}},
    "additionalProperties": False,
}
_OUTPUT = {"properties": {"output_type": {"type": "string"}}}
_CELL = {"properties": {"cell_type": {"type": "string"}, "outputs": {"items": _OUTPUT}}}
_OURS = {
    "properties": {
        "metadata": {"properties": {"flatnb": _DECLARED}},
        "cells": {"items": _CELL},
    }
}
_DEPTH = 100  # lists and objects in each other; outputs may hold a figure's


def _fault(notebook: Any) -> str | None:
    """The first thing that neither schema allows or that no file can hold, and where it is."""
    import jsonschema
    import nbformat

    newest = nbformat.v4.nbformat_minor
    given = notebook if isinstance(notebook, dict) else {}
    minor = given.get("nbformat_minor")
    if given.get("nbformat") != 4 or type(minor) is not int or not 0 <= minor <= newest:
        return f"it is not in notebook format 4.0 to 4.{newest}"
    if _deeper(notebook, _DEPTH):
        return f"lists and objects lie more than {_DEPTH} deep in each other"
    ours = jsonschema.Draft202012Validator(_OURS)
    checks = (ours.iter_errors(notebook), nbformat.validator.iter_validate(notebook))
    for error in itertools.chain(*checks):
        return f"{_place(error.absolute_path)}: {_line(error.message)}"
    for index, cell in enumerate(notebook["cells"]):
        if _is_broken(cell):
            return f"{_place(['cells', index])}: text with half a surrogate pair"
    return "metadata: text with half a surrogate pair" if _is_broken(notebook) else None


def _line(text: str) -> str:
    """A text as the part of a line."""
    text = " ".join(text.split())
    return text if len(text) <= 160 else f"{text[:159]}…"


def _deeper(data: Any, depth: int) -> bool:
    """Whether lists and objects lie more than `depth` deep in each other."""
    level = [data]
    for _ in range(depth):
        parts = (
            part
            for one in level
            for part in (one.values() if isinstance(one, dict) else one)
        )
        level = [part for part in parts if isinstance(part, dict | list)]
    return bool(level)


def _is_broken(data: Any) -> bool:
    try:
        json.dumps(data, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _place(keys: Iterable[str | int]) -> str:
    """In words; cells are counted from 1, as they are where one fails."""
    match list(keys):
        case ["cells", int(index), *inner]:
            return ", ".join([f"cell {index + 1}", *map(str, inner)])
        case inner:
            return ", ".join(map(str, inner)) or "at the top"


def parameters(path: Path) -> dict[str, Parameter]:
    """What the parameters cell declares, in order.

    Read from the syntax tree: papermill's own reader goes by regular expressions and
        drops a line
    with `|`, or with a second `=` in its value or comment.
    """
    cells = tagged(read(path), "parameters")
    if len(cells) != 1:
        raise UserError(
            f"{path} has {len(cells)} cells tagged `parameters`; it needs exactly one"
        )
    source = text_of(cells[0])
    try:
        body = ast.parse(source).body
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (*_NOT_PYTHON, tokenize.TokenError) as error:
        why = _line(str(error)) or type(error).__name__
        raise UserError(f"{path}, parameters cell: {why}") from None
    helps = {
        t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT
    }
    found = {}
    for node in body:
        try:
            one = _declared(node, helps.get(node.end_lineno or 0, ""))
        except _NOT_PYTHON:
            line = source.splitlines()[node.lineno - 1]
            raise UserError(
                f"{path}, parameters cell: `{_line(line)}` is not "
                f"`name: type = value  # help` with a plain value of type {', '.join(TYPES)}"
            ) from None
        found[one.name] = one
    if "profile" not in found:
        raise UserError(
            f'{path}, parameters cell: the line `profile: str = "laptop"` is missing'
        )
    return found


def _declared(node: ast.stmt, help: str) -> Parameter:
    if not (
        isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and node.value
    ):
        raise ValueError("not `name: type = value`")
    default = ast.literal_eval(node.value)
    kind, _, item = ast.unparse(node.annotation).rstrip("]").partition("[")
    fits = (int, float) if kind == "float" else TYPES.get(kind, ())
    if not isinstance(default, fits):
        raise ValueError("not a plain type, or not a value of it")
    if not item:
        item = (
            type(default[0]).__name__
            if isinstance(default, list) and default
            else "str"
        )
    if item not in TYPES:
        raise ValueError("not a list of a plain type")
    json.dumps(default, allow_nan=False).encode()  # what no file can hold is no value
    return Parameter(node.target.id, kind, default, help, item)


def chosen(path: Path, profile: str, given: Mapping[str, str]) -> dict[str, Any]:
    """The values to inject; UserError lists what the notebook knows if `given` does not fit."""
    known = parameters(path)
    listing = f"{path} knows\n" + "\n".join(map(str, known.values()))
    values: dict[str, Any] = {"profile": profile}
    for name, text in given.items():
        if name == "profile":
            raise UserError(
                "give the profile as --profile, which also names the output folder"
            )
        if name not in known:
            raise UserError(f"unknown parameter {name!r}; {listing}")
        try:
            values[name] = known[name].parse(text)
        except _NOT_PYTHON:
            raise UserError(f"{name} cannot be {text!r}; {listing}") from None
    return values


# --- what determines a run ----------------------------------------------------------


def root_of(path: Path) -> Path | None:
    """The folder at or above `path` that holds the book's _toc.yml."""
    path = path.resolve()
    return next((p for p in (path, *path.parents) if (p / "_toc.yml").is_file()), None)


def digest(data: object) -> str:
    """sha256 of plain data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def version(package: str) -> str:
    """The installed version of a package, or "absent"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def versions() -> dict[str, str]:
    """Python and the packages that can change a result."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def _records(path: Path, notebook: Mapping[str, Any]) -> dict[str, str]:
    """Hashes of the records that the metadata `flatnb.records` names: "plane/a/SAM", "plane/*"."""
    declared = notebook["metadata"].get("flatnb", {}).get("records", [])
    if not declared:  # a reader of one notebook may have no folder of records
        return {}
    from flatnb.results import (
        records,  # here, because a worker runs this file as a script
    )

    try:
        names = records.match(declared, records.names())
        return {name: sha256(records.path_of(name)) for name in names}
    except records.RecordError as error:
        raise UserError(f"{path} declares records: {error}") from None


def key(path: Path, values: Mapping[str, Any], threads: int) -> str:
    """sha256 over all that determines a run's outputs, and the page made of it.

    values: the injected parameters, the profile among them. threads: what the kernel
        computes with.
    """
    notebook = read(path)
    metadata = {k: v for k, v in notebook["metadata"].items() if k != "language_info"}
    cells = [[c["cell_type"], text_of(c), c["metadata"]] for c in notebook["cells"]]
    declared = _records(path, notebook)
    return digest(
        [metadata, cells, dict(values), sources(), versions(), threads, declared]
    )


def sources() -> dict[str, str]:
    """Hashes of the package's own files."""
    return {
        str(p.relative_to(PACKAGE)): sha256(p) for p in sorted(PACKAGE.rglob("*.py"))
    }


# --- running ------------------------------------------------------------------------


@dataclass
class Result:
    """What became of one notebook: `error` is None if it ran, or did not have to."""

    source: Path
    output: Path
    values: dict[str, Any]
    key: str
    reused: bool = False
    seconds: float = 0.0
    error: str | None = None


@dataclass
class _Worker:
    """A process that executes one notebook, in a private folder that holds all it writes."""

    result: Result
    threads: int
    folder: Path = field(init=False)
    process: subprocess.Popen[bytes] = field(init=False)
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="flatnb-"))
        source = self.result.source
        # A copy: what is executed is what the key was computed from, whatever is edited
        # meanwhile.
        shutil.copyfile(source, self.folder / "source.ipynb")
        job = {"parameters": self.result.values, "cwd": str(source.resolve().parent)}
        (self.folder / "job.json").write_text(json.dumps(job))
        # The kernel is this very interpreter, whatever kernels are installed; the shell
        # notes its process number and becomes it.
        note = [
            "/bin/sh",
            "-c",
            'echo $$ > "$0"; exec "$@"',
            str(self.folder / "kernel.pid"),
        ]
        argv = [
            *note,
            sys.executable,
            "-m",
            "ipykernel_launcher",
            "-f",
            "{connection_file}",
        ]
        spec = self.folder / "kernels" / "python3" / "kernel.json"
        spec.parent.mkdir(parents=True)
        spec.write_text(
            json.dumps({"argv": argv, "display_name": "python3", "language": "python"})
        )
        with (self.folder / "log").open("wb") as log:
            # -P: the package's folder must not come first on the path, where
            # flatnb/data would stand for any module named data.
            self.process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(self.folder)],
                env=self._environment(),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _environment(self) -> dict[str, str]:
        private = {
            "JUPYTER_PATH": str(self.folder),  # where kernels are looked up first
            "IPYTHONDIR": str(
                self.folder / "ipython"
            ),  # the user's start-up files stay out
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # Agg would show no figure
            "OMP_NUM_THREADS": str(self.threads),
        }
        if (PACKAGE.parent / "pyproject.toml").exists():  # a clone, installed or not
            paths = [str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")]
            private["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        return {**os.environ, **private}

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def cell(self) -> int:
        """Number of the cell that runs, counted from 1 in the source; 0 before the first."""
        return int(_text(self.folder / "cell") or 0)

    def kill(self) -> None:
        """End the process and its kernel, which has a process group of its own."""
        pids = [self.process.pid, int(_text(self.folder / "kernel.pid") or 0)]
        for pid in filter(None, pids):
            try:
                os.killpg(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
        self.process.wait()

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        assert self.process.stdin is not None
        self.process.stdin.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def finish(self, timeout: float) -> bool:
        """True once the run is over and its result filed."""
        if self.process.poll() is None and self.seconds < timeout:
            return False
        late = self.process.poll() is None
        outcome = _text(self.folder / "outcome.json")
        if late or not outcome:
            self.kill()  # also where the worker died and left its kernel
        self.result.seconds = self.seconds
        if late:
            at = f"cell {self.cell()}"
            self.result.error = (
                f"{at}: killed at the limit of {timeout:g} s (--timeout)"
            )
        elif outcome:
            self.result.error = json.loads(outcome)["error"]
        else:
            tail = "\n".join(_text(self.folder / "log").splitlines()[-15:])
            self.result.error = f"cell {self.cell()}: its process died\n{tail}"
        try:
            self._file()
        except OSError as error:
            kept = (
                Path(tempfile.mkdtemp(prefix="flatnb-kept-")) / self.result.output.name
            )
            shutil.copyfile(self.folder / "executed.ipynb", kept)
            raise UserError(
                f"cannot write {self.result.output}: {error.strerror}; the executed copy is {kept}"
            ) from None
        return True

    def _file(self) -> None:
        """Put the executed copy and what it is keyed by into the output folder."""
        output, failed = self.result.output, failed_copy(self.result.output)
        try:
            executed = _presentable(json.loads(_text(self.folder / "executed.ipynb")))
        except ValueError:  # killed before or while it was written
            executed = ""
        if self.result.error is not None:
            if executed:
                write(failed, executed)
            return
        write(output, executed)
        side = {
            "key": self.result.key,
            "sha256": sha256(output),
            "parameters": self.result.values,
            "threads": self.threads,
            "seconds": round(self.result.seconds, 1),
            "versions": versions(),
        }
        write(sidecar(output), json.dumps(side, indent=1) + "\n")
        failed.unlink(missing_ok=True)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def plain(text: str) -> str:
    """Text without a terminal's colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def write(path: Path, text: str) -> None:
    """Write aside, then rename: a reader never meets half a file."""
    from flatnb._files import whole

    with whole(path) as file:
        file.write(text)


def dump(notebook: Mapping[str, Any]) -> str:
    """A notebook as Jupyter writes it to a file: sources as lists of lines."""
    cells = [
        {**c, "source": text_of(c).splitlines(keepends=True)} for c in notebook["cells"]
    ]
    content = {**notebook, "cells": cells}
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def failed_copy(output: Path) -> Path:
    """Where the executed copy of a failed run is kept."""
    return output.with_suffix(".failed.ipynb")


def sidecar(output: Path) -> Path:
    """The file beside an executed copy that says what it was made from."""
    return output.with_suffix(".json")


def _presentable(notebook: dict[str, Any]) -> str:
    """An executed copy without papermill's clock times and file names of this machine."""
    notebook["metadata"].pop("papermill", None)
    hidden = [t for c in tagged(notebook, "parameters") for t in c["metadata"]["tags"]]
    for cell in notebook["cells"]:
        for name in ("papermill", "execution"):
            cell["metadata"].pop(name, None)
        # papermill gives the cell it adds none of the parameters cell's other tags.
        if "injected-parameters" in cell["metadata"].get("tags", ()):
            cell["metadata"]["tags"] += [tag for tag in hidden if tag != "parameters"]
        if not cell["metadata"].get("tags", True):
            del cell["metadata"]["tags"]
    return dump(notebook)


def _finished(result: Result) -> bool:
    """Whether the output folder holds this very run."""
    try:
        side = json.loads(_text(sidecar(result.output)))
        whole = {"parameters", "threads", "seconds"} <= set(side)
        return whole and [side["key"], side["sha256"]] == [
            result.key,
            sha256(result.output),
        ]
    except (ValueError, KeyError, TypeError, OSError):
        return False


def share(jobs: int | None, profile: str) -> tuple[int, int]:
    """(jobs, threads of each): the cores are shared out; OMP_NUM_THREADS, if set, is
    the most.

    By default one job at the paper profile, whose GPU is not to be shared, else up to
    four. The number of notebooks plays no part, so that one run alone has the key of
    one run among many.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    jobs = jobs or (1 if profile == "paper" else min(4, cores))
    threads = max(1, cores // jobs)
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return jobs, min(threads, int(limit)) if limit.isdigit() and int(limit) else threads


def plan(
    notebooks: Iterable[Path],
    profile: str,
    given: Mapping[str, str],
    out: Path,
    threads: int,
) -> list[Result]:
    """What there is to run and where it goes; UserError before anything runs if that cannot be."""
    results: dict[Path, Result] = {}
    for path in notebooks:
        values = chosen(path, profile, given)
        # Runs with different parameters have different names, and none has the plain
        # one.
        name = f"{path.stem}-{digest(values)[:8]}" if given else path.stem
        output = out / f"{name}.ipynb"
        if (other := results.get(output)) and other.source.resolve() != path.resolve():
            raise UserError(
                f"{other.source} and {path} would both be written to {output}"
            )
        results[output] = Result(path, output, values, key(path, values, threads))
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out) as probe:
            probe.write(bytes(1024))
    except OSError as error:
        raise UserError(f"cannot write into {out}: {error.strerror}") from None
    return list(results.values())


class _Progress:
    """Plain lines, and on a terminal a last line that says what runs now."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.live = total, 0, sys.stdout.isatty()

    def line(self, text: str, done: int = 0) -> None:
        self.done += done
        clear = "\r\x1b[K" if self.live else ""
        print(f"{clear}[{self.done}/{self.total}] {text}", flush=True)

    def status(self, workers: Sequence[_Worker]) -> None:
        if self.live:
            running = [
                f"{w.result.source.name} cell {w.cell()} {w.seconds:.0f} s"
                for w in workers
            ]
            text = f"[{self.done}/{self.total}] {', '.join(running)}"
            text = text[: shutil.get_terminal_size().columns - 1] if workers else ""
            print(f"\r\x1b[K{text}", end="", flush=True)


def run(
    notebooks: Iterable[Path],
    *,
    profile: str = "laptop",
    given: Mapping[str, str] | None = None,
    jobs: int | None = None,
    out: Path | None = None,
    timeout: float | None = None,
    force: bool = False,
) -> list[Result]:
    """Execute notebooks into `out` (by default _build/notebooks/<profile> of the book).

    given: parameters as text, parsed to the declared types. jobs: notebooks run at one
        time.
    timeout: seconds for one notebook; TIMEOUTS of the profile by default. force: run
        what is known.
    A notebook that fails does not stop the others; its Result says why.
    Raises UserError before anything runs when something given does not fit.
    """
    if profile not in PROFILES:
        raise UserError(f"profile is {profile!r}; it can be {', '.join(PROFILES)}")
    for name, value in {"--jobs": jobs, "--timeout": timeout}.items():
        if value is not None and not value > 0:
            raise UserError(f"{name} is {value:g}; it must be positive")
    if find_spec("papermill") is None:
        raise UserError("papermill is not installed: pip install 'flatnb[book]'")
    jobs, threads = share(jobs, profile)
    base = root_of(Path.cwd()) or Path.cwd()
    results = plan(
        notebooks,
        profile,
        given or {},
        out or base / "_build" / "notebooks" / profile,
        threads,
    )
    timeout = timeout or TIMEOUTS[profile]
    progress = _Progress(len(results))
    waiting: list[Result] = []
    for result in results:
        result.reused = not force and _finished(result)
        if result.reused:
            progress.line(f"unchanged {result.source}", done=1)
        else:
            waiting.append(result)
    _attend(waiting, jobs, threads, timeout, progress)
    return results


def _attend(
    waiting: list[Result], jobs: int, threads: int, timeout: float, progress: _Progress
) -> None:
    """Keep `jobs` workers busy until none waits; end them all if anything interrupts."""
    working: list[_Worker] = []
    try:
        while waiting or working:
            while waiting and len(working) < jobs:
                working.append(_Worker(waiting.pop(0), threads))
                progress.line(f"running {working[-1].result.source} …")
            for worker in list(working):
                if worker.finish(timeout):
                    working.remove(worker)
                    worker.close()
                    what = "failed" if worker.result.error else "finished"
                    text = f"{what} {worker.result.source} … {worker.seconds:.0f} s"
                    progress.line(text, done=1)
            progress.status(working)
            time.sleep(0.1)
    finally:
        for worker in working:
            worker.close()


# --- inside a worker's process ------------------------------------------------------


def _work(folder: Path) -> None:
    """Execute folder/source.ipynb as folder/job.json says; the outcome goes to outcome.json."""
    import nbformat
    import papermill
    from nbclient import NotebookClient

    os.chdir(folder)  # papermill formats paths like strings: these names have no braces
    job = json.loads(Path("job.json").read_text())
    config = NotebookClient(nbformat.v4.new_notebook()).config
    config.KernelManager.connection_file = str(folder / "connection.json")
    socket = str(folder / "socket")
    if len(socket) < 90:  # the longest name of a Unix socket is a little over 100 bytes
        # Sockets of its own: free TCP ports are raced for when several kernels start,
        # and so is the one fixed name that jupyter_client gives ipc sockets.
        config.KernelManager.transport = "ipc"
        config.KernelManager.ip = socket
    tags = [
        cell["metadata"].get("tags", ()) for cell in read(Path("source.ipynb"))["cells"]
    ]
    added = next(i for i, names in enumerate(tags) if "parameters" in names) + 1

    def number(index: int) -> int:  # in the source, which lacks the cell papermill adds
        return index + 1 - (index >= added)

    def note(cell: Any, cell_index: int) -> None:
        (folder / "cell").write_text(str(number(cell_index)))

    error: str | None = None
    try:
        papermill.execute_notebook(
            "source.ipynb",
            "executed.ipynb",
            job["parameters"],
            kernel_name="python3",
            language="python",
            progress_bar=False,
            cwd=job["cwd"],
            on_cell_start=note,
            config=config,
        )
    except papermill.PapermillExecutionError as failure:
        tail = "\n".join(plain("\n".join(failure.traceback)).splitlines()[-20:])
        what = f"{failure.ename}: {failure.evalue}"
        error = f"cell {number(failure.cell_index)} failed: {what}\n{tail}"
    except Exception as failure:
        error = (
            f"cell {_text(folder / 'cell') or 0}: {type(failure).__name__}: {failure}"
        )
    (folder / "outcome").write_text(json.dumps({"error": error}), encoding="utf-8")
    os.replace(folder / "outcome", folder / "outcome.json")


# --- staging ------------------------------------------------------------------------


def _yaml(path: Path) -> dict[str, Any]:
    """A file of settings; UserError if it is none."""
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not YAML: {_line(str(error))}") from None
    if not isinstance(data, dict):
        raise UserError(
            f"{path} holds {type(data).__name__}; it must hold names and values"
        )
    return data


def toc_files(root: Path) -> list[Path]:
    """The pages that _toc.yml names, relative to the book's root, in its order."""

    def names(node: Any) -> Iterable[Any]:
        if isinstance(node, list):
            for one in node:
                yield from names(one)
        elif isinstance(node, dict):
            for word, value in node.items():
                if word in {"root", "file"}:
                    yield value
                else:
                    yield from names(value)

    pages = []
    for name in names(_yaml(root / "_toc.yml")):
        if not isinstance(name, str) or "\0" in name:
            raise UserError(
                f"{root / '_toc.yml'} names {name!r} as a file; it must be text"
            )
        candidates = [Path(name), Path(f"{name}.ipynb"), Path(f"{name}.md")]
        page = next((p for p in candidates if (root / p).is_file()), None)
        if page is None:
            raise UserError(
                f"_toc.yml names {name}, and there is no {name}.ipynb or {name}.md"
            )
        pages.append(page)
    return pages


ADDRESS = re.compile(r"https://github\.com/[A-Za-z0-9-]+/[A-Za-z0-9._-]+")


def check_address(url: str) -> None:
    """UserError unless the url is a repository's on GitHub, which is what Colab opens."""
    if not ADDRESS.fullmatch(url):
        raise UserError(f"{url!r} is not of the form https://github.com/OWNER/NAME")


def address(root: Path) -> tuple[str, str]:
    """The repository's url, "" while there is none, and branch, from _config.yml."""
    repository = config_of(root).get("repository") or {}
    return repository.get("url") or "", repository.get("branch") or "main"


def config_of(root: Path) -> dict[str, Any]:
    """The settings in _config.yml; UserError for what we read of them and cannot."""
    path = root / "_config.yml"
    config = _yaml(path)
    for name in ("repository", "execute", "html"):
        if not isinstance(config.get(name) or {}, dict):
            raise UserError(
                f"{path}: {name} is {config[name]!r}; it must hold names and values"
            )
    for name, value in (config.get("repository") or {}).items():
        if name in ("url", "branch") and not isinstance(value, str | None):
            raise UserError(f"{path}: repository, {name} is {value!r}; it must be text")
    return config


def staged_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings to build with: notebooks are not run again; no address, no links to
    it.

    An empty address crashes Jupyter Book, and for a missing one it puts its own: so the
        buttons go.
    """
    staged = {
        **config,
        "execute": {**(config.get("execute") or {}), "execute_notebooks": "off"},
    }
    url = (config.get("repository") or {}).get("url")
    if url:
        check_address(url)
        return staged
    shown = (config.get("html") or {}).items()
    staged["html"] = {
        name: value for name, value in shown if not str(name).endswith("_button")
    }
    return {
        k: v for k, v in staged.items() if k not in ("repository", "launch_buttons")
    }


def status(executed: Mapping[Path, Path]) -> str:
    """Markdown tables of what the executed copies were made with, and where the pages are."""
    from flatnb.results import records  # imports torch

    here = records.provenance()
    rows = ["| notebook | profile | threads | seconds |", "|---|---|---|---|"]
    for page, copy in executed.items():
        side = json.loads(_text(sidecar(copy)))
        profile = side["parameters"].get("profile", "")
        link = f"{{doc}}`../{page.with_suffix('')}`"
        rows.append(
            f"| {link} | {profile} | {side['threads']} | {side['seconds']:.0f} |"
        )
    rows += ["", "| | |", "|---|---|"]
    rows += [
        f"| {name} | {here[name]} |" for name in ("cpu", "device", "platform", "commit")
    ]
    rows += [f"| {name} | {version} |" for name, version in versions().items()]
    return "\n".join(rows)


def stage(root: Path, executed: Mapping[Path, Path]) -> Path:
    """Lay out _build/stage: the book with each notebook replaced by its executed copy.

    executed: copies by the notebook's path relative to root. Paths in the stage are
        those of the
    repository, so that source, edit and Colab links made from them point at real files.
    """
    import yaml

    folder = root / "_build" / "stage"
    shutil.rmtree(folder, ignore_errors=True)
    # Pages show what notebooks made of the records: a new record alone changes none.
    ignore = shutil.ignore_patterns("__pycache__", ".*", "records")
    shutil.copytree(root / "book", folder / "book", ignore=ignore)
    for page in toc_files(root):
        (folder / page).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(executed.get(page, root / page), folder / page)
    page = folder / "book" / "status.md"
    if page.exists():
        write(page, _text(page).replace("<!-- status -->", status(executed)))
    shutil.copyfile(root / "_toc.yml", folder / "_toc.yml")
    config = staged_config(config_of(root))
    write(folder / "_config.yml", yaml.safe_dump(config, allow_unicode=True))
    return folder


if __name__ == "__main__":
    import threading

    def _end_with_parent() -> None:
        """The parent holds the other end of stdin: when it is gone, so are we, and our kernel."""
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=_end_with_parent, daemon=True).start()
    _work(Path(sys.argv[1]))
