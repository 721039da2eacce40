"""Execute notebooks with papermill, each in a process of its own.

A run is determined by its notebook, its parameters, the code of flatnb, the versions of
packages and Python, the number of threads and the records that the notebook declares.
`key` hashes these, and a run whose key is known is not repeated. A kernel works in its
notebook's folder, as Jupyter's does. What only the book needs is imported in functions,
so that `flatnb records` works without it.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from flatnb._files import whole
from flatnb.results import provenance, records

FAILED = ".failed.ipynb"  # suffix of the executed copy of a run that failed
TIMEOUTS = {"smoke": 600, "laptop": 3600, "paper": 24 * 3600}  # seconds per notebook
# Their versions can change a number or a figure.
PACKAGES = (
    *("torch", "torchvision", "numpy", "matplotlib", "seaborn", "scikit-learn"),
    *("pandas", "scipy", "papermill", "accelerate", "lightning", "transformers"),
)

# papermill, which ends with the runner, by kill -9 too; its kernel ends with it.
PAPERMILL = """
import json, os, sys, threading
import papermill
from traitlets.config import Config

def end_with_runner():
    os.read(0, 1)
    os._exit(1)

threading.Thread(target=end_with_runner, daemon=True).start()
place, socket = sys.argv[1:]
config = Config()
# Kernels that start together race for free TCP ports, and for the fixed name that
# jupyter_client gives sockets. The name of a Unix socket has at most 100 bytes.
if os.name == "posix" and len(os.fsencode(socket)) < 90:
    config.KernelManager.transport, config.KernelManager.ip = "ipc", socket
papermill.execute_notebook(
    "source.ipynb",
    "executed.ipynb",
    json.load(open("parameters.json")),
    kernel_name="python3",
    language="python",
    progress_bar=False,
    cwd=place,
    config=config,
)
"""


class UserError(Exception):
    """What the user can fix; the command line shows it without a traceback."""


def root_of(path: Path) -> Path | None:
    """The folder at or above `path` that holds the book's _toc.yml."""
    path = path.resolve()
    return next((p for p in (path, *path.parents) if (p / "_toc.yml").is_file()), None)


# --- notebook files -----------------------------------------------------------------


def read(path: Path) -> dict[str, Any]:
    """A notebook file; UserError, one line with file and place, if it is none."""
    import nbformat

    try:
        notebook = nbformat.from_dict(json.loads(path.read_text(encoding="utf-8")))
        json.dumps(notebook, ensure_ascii=False).encode()
        fault = _fault(notebook)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, nested too deep
        fault = str(error)
    except TypeError:  # which nbformat meets when it words an error
        fault = "a cell or an output whose type is no text"
    if fault:
        raise UserError(f"{path} is not a notebook: {line(fault)}")
    return notebook


def _fault(notebook: Any) -> str | None:
    """The first thing that is not allowed, and where; cells are counted from 1."""
    import nbformat

    match notebook:
        case {"nbformat": 4, "nbformat_minor": 0 | 1 | 2 | 3 | 4 | 5}:
            pass
        case _:
            return "it is not in notebook format 4.0 to 4.5"
    for error in nbformat.validator.iter_validate(notebook):
        place = list(error.absolute_path)
        if place[:1] == ["cells"] and len(place) > 1:
            place[:2] = [f"cell {place[1] + 1}"]
        return f"{', '.join(map(str, place)) or 'at the top'}: {error.message}"
    match notebook["metadata"].get("flatnb", {"records": []}):
        case {"records": [*names], **rest} if not rest and all(
            isinstance(name, str) for name in names
        ):
            return None
    return 'metadata, flatnb: allowed is {"records": [names]}'


def line(text: str) -> str:
    """A text as part of a line."""
    text = " ".join(text.split())
    return text if len(text) <= 160 else f"{text[:159]}…"


def write(path: Path, text: str) -> None:
    """Write aside, then rename: a reader never meets half a file."""
    with whole(path) as file:
        file.write(text)


# --- parameters ---------------------------------------------------------------------


def parameters(path: Path) -> dict[str, Any]:
    """What papermill finds in the parameters cell: name, type, default, help."""
    from papermill.translators import PythonTranslator

    cells = read(path)["cells"]
    tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", ())]
    if len(tagged) != 1:
        count = f"{len(tagged)} cells tagged `parameters`"
        raise UserError(f"{path} has {count}; it needs exactly one")
    source = "".join(tagged[0]["source"])
    declared = {p.name: p for p in PythonTranslator.inspect({"source": source})}
    if "profile" not in declared:
        missing = '`profile: str = "laptop"` is missing'
        raise UserError(f"{path}, parameters cell: the line {missing}")
    return declared


def _truth(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


TYPES: dict[str, Any] = {"bool": _truth, "int": int, "float": float, "str": str}


def chosen(path: Path, profile: str, given: Mapping[str, str]) -> dict[str, Any]:
    """The values to inject; UserError lists those known if `given` does not fit."""
    known = parameters(path)
    listing = f"{path} knows"
    for name, kind, default, text in known.values():
        listing += f"\n  {name}: {kind} = {default}  # {text}"
    values: dict[str, Any] = {"profile": profile}
    for name, text in given.items():
        if name == "profile":
            raise UserError("give the profile as --profile: it names the output folder")
        if name not in known:
            raise UserError(f"unknown parameter {name!r}; {listing}")
        try:
            values[name] = TYPES[known[name].inferred_type_name](text)
            text.encode()  # bytes of a command line need not be text
        except (KeyError, ValueError):
            raise UserError(f"{name} cannot be {text!r}; {listing}") from None
    return values


# --- what determines a run ----------------------------------------------------------


def digest(data: object) -> str:
    """SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def key(path: Path, values: Mapping[str, Any], threads: int) -> str:
    """SHA-256 over all that determines a run's outputs, and the page made of it."""
    notebook = read(path)
    metadata = {k: v for k, v in notebook["metadata"].items() if k != "language_info"}
    page: list[Any] = [[c["cell_type"], c["metadata"]] for c in notebook["cells"]]
    page += ["".join(cell["source"]) for cell in notebook["cells"]]
    declared = metadata.get("flatnb", {}).get("records")
    try:  # a reader of one notebook may have no folder of records
        names = records.match(declared, records.names()) if declared else []
    except records.RecordError as error:
        raise UserError(f"{path} declares records: {error}") from None
    hashes = {name: sha256(records.path_of(name)) for name in names}
    made_with = [provenance.code(), provenance.versions(PACKAGES), threads]
    return digest([metadata, page, dict(values), hashes, made_with])


def share(jobs: int | None, profile: str) -> tuple[int, int]:
    """(jobs, threads of each): the cores shared out, OMP_NUM_THREADS at the most.

    By default one job at the paper profile, whose GPU is not to be shared, else up to
    four, however many notebooks there are: a run alone has the key of one among many.
    """
    cores = provenance.cores()
    jobs = jobs or (1 if profile == "paper" else min(4, cores))
    limit = int(os.environ.get("OMP_NUM_THREADS") or cores)
    return jobs, min(max(1, cores // jobs), limit)


# --- running ------------------------------------------------------------------------


@dataclasses.dataclass
class Run:
    """One execution of a notebook; `error` is None if it succeeded, or was known."""

    source: Path
    output: Path
    values: dict[str, Any]
    threads: int
    key: str
    seconds: float = 0.0
    error: str | None = None

    def is_known(self) -> bool:
        """Whether the output is that of this very run, unchanged."""
        try:
            side = json.loads(
                self.output.with_suffix(".json").read_text(encoding="utf-8")
            )
            return [side["key"], side["sha256"]] == [self.key, sha256(self.output)]
        except (ValueError, KeyError, TypeError, OSError):
            return False


def run(
    notebooks: Iterable[Path],
    *,
    profile: str = "laptop",
    given: Mapping[str, str] | None = None,
    jobs: int | None = None,
    out: Path | None = None,
    timeout: float | None = None,
    force: bool = False,
) -> list[Run]:
    """Execute notebooks into `out`, by default _build/notebooks/<profile> of the book.

    A notebook that fails does not stop the others: `Run.error` says why.

    Args:
        given: parameters as text, parsed to the declared types.
        jobs: notebooks run at a time.
        timeout: seconds for one notebook; by default TIMEOUTS of the profile.
        force: also run what is known.

    Raises:
        UserError: before anything runs, when something given does not fit.
    """
    for name, value in {"--jobs": jobs, "--timeout": timeout}.items():
        if value is not None and not value > 0:
            raise UserError(f"{name} is {value:g}; it must be positive")
    jobs, threads = share(jobs, profile)
    folder = out or (root_of(Path.cwd()) or Path.cwd()) / f"_build/notebooks/{profile}"
    folder = folder.absolute()  # kernels work elsewhere
    runs: dict[Path, Run] = {}
    for path in notebooks:
        values = chosen(path, profile, given or {})
        # Runs with different parameters have different names, none the plain one.
        name = f"{path.stem}-{digest(values)[:8]}" if given else path.stem
        output = folder / f"{name}.ipynb"
        if output in runs and not path.samefile(runs[output].source):
            twins = f"{runs[output].source} and {path}"
            raise UserError(f"{twins} would both be written to {output}")
        runs[output] = Run(path, output, values, threads, key(path, values, threads))
    folder.mkdir(parents=True, exist_ok=True)
    waiting = [run for run in runs.values() if force or not run.is_known()]
    if known := len(runs) - len(waiting):
        print(f"{known} of {len(runs)} unchanged", flush=True)
    _execute_all(waiting, jobs, timeout or TIMEOUTS[profile])
    return list(runs.values())


def _execute_all(runs: list[Run], jobs: int, timeout: float) -> None:
    """Execute so many at a time; if anything interrupts, end those that run."""
    stop = threading.Event()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            futures = [pool.submit(_execute, run, timeout, stop) for run in runs]
            for count, future in enumerate(as_completed(futures), 1):
                run = future.result()
                state = "failed" if run.error else "finished"
                took = f"{run.source}, {run.seconds:.0f} s"
                print(f"[{count}/{len(runs)}] {state} {took}\n", end="", flush=True)
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _execute(run: Run, timeout: float, stop: threading.Event) -> Run:
    """Execute one notebook in a private folder, and put its copy into place."""
    print(f"running {run.source} …\n", end="", flush=True)
    start = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix=".run-", dir=run.output.parent) as name,
        tempfile.TemporaryDirectory(prefix="flatnb-") as sockets,  # of a short name
    ):
        folder = Path(name)
        # papermill formats paths like strings: these names have no braces.
        shutil.copyfile(run.source, folder / "source.ipynb")
        (folder / "parameters.json").write_text(json.dumps(run.values))
        place = str(run.source.resolve().parent)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(  # -P: no folder of the caller's on its path
                [sys.executable, "-Pc", PAPERMILL, place, f"{sockets}/kernel"],
                cwd=folder,
                env=os.environ | _environment(folder, run.threads),
                stdin=subprocess.PIPE,  # never written to
                stdout=log,
                stderr=log,
                start_new_session=True,  # a terminal's Ctrl-C is for us alone
            )
            with process:
                in_time = _wait(process, start + timeout, stop)
                _kill(folder)
        run.seconds = time.monotonic() - start
        if not in_time:
            run.error = f"killed at the limit of {timeout:g} s (--timeout)"
        elif process.returncode:
            text = (folder / "log").read_text(encoding="utf-8", errors="replace")
            run.error = "\n".join(plain(text).splitlines()[-30:])
        if not stop.is_set():
            _file(run, folder / "executed.ipynb")
    return run


def _wait(process: subprocess.Popen[bytes], end: float, stop: threading.Event) -> bool:
    """Whether a process ended by itself, in time."""
    while process.poll() is None:
        if stop.wait(0.1) or time.monotonic() > end:
            return False
    return True


def _kill(folder: Path) -> None:
    """Kill all that a run in `folder` started: a kernel and its own have no group."""
    import psutil

    for process in psutil.process_iter(["environ"]):
        environment = process.info["environ"] or {}  # None: another user's
        if environment.get("IPYTHONDIR") == str(folder / "ipython"):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _environment(folder: Path, threads: int) -> dict[str, str]:
    """What a kernel's environment has besides ours: all it leaves lies in `folder`."""
    clone = Path(__file__).resolve().parents[2]
    paths = [str(clone)] if (clone / "pyproject.toml").exists() else []
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    return {
        "IPYTHONDIR": str(folder / "ipython"),  # the user's start-up files stay out
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "JUPYTER_PATH": f"{sys.prefix}/share/jupyter",  # this interpreter is the kernel
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(paths),
    }


def _file(run: Run, executed: Path) -> None:
    """Put an executed copy into the output folder, with what it is keyed by."""
    failed = run.output.with_suffix(FAILED)
    failed.unlink(missing_ok=True)
    if run.error:
        with contextlib.suppress(UserError):  # absent, or cut off by a kill
            read(executed)
            executed.replace(failed)
        return
    side = dataclasses.asdict(run) | {"sha256": sha256(executed)}
    executed.replace(run.output)
    write(
        run.output.with_suffix(".json"), json.dumps(side, indent=1, default=str) + "\n"
    )


def plain(text: str) -> str:
    """Text without a terminal's colors."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)
