"""Execute notebooks with papermill.

`key` hashes what determines a run: notebook, parameters, the code of flatnb, versions
of packages and Python, threads, and the records that the notebook declares. A run of
known key is not repeated. A kernel works in its notebook's folder, as Jupyter's does.
What only the book needs is imported in functions: `flatnb records` works without it.
"""

import hashlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any
from unittest import mock

from flatnb._checks import shown
from flatnb.charts.page import PAGE
from flatnb.results import provenance, records

FAILED = ".failed.ipynb"  # suffix of the executed copy of a run that failed
TIMEOUTS = {"smoke": 600, "laptop": 3600, "paper": 24 * 3600}  # seconds per cell
# Their versions can change a number or a figure.
PACKAGES = (
    *("torch", "torchvision", "numpy", "matplotlib", "seaborn", "scikit-learn"),
    *("pandas", "scipy", "papermill", "accelerate", "lightning", "transformers"),
    "altair",
)
# Arguments of a kernel: its figures as SVG, and as PNG at twice a page's resolution.
FIGURES = [
    "--InlineBackend.figure_formats={'svg', 'png'}",
    "--InlineBackend.print_figure_kwargs={'bbox_inches': 'tight', 'dpi': 192}",
]


class UserError(Exception):
    """What the user can fix; the command line shows it without a traceback."""


def root_of(path: Path) -> Path | None:
    """The folder at or above `path` that holds the book's _toc.yml."""
    path = path.resolve()
    return next((p for p in (path, *path.parents) if (p / "_toc.yml").is_file()), None)


def read(path: Path) -> dict[str, Any]:
    """A notebook file; UserError, one line with file and place, if it is none."""
    import nbformat

    try:
        notebook = nbformat.from_dict(json.loads(path.read_text(encoding="utf-8")))
        for error in nbformat.validator.iter_validate(notebook):
            raise ValueError(f"{error.json_path}: {error.message}")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except Exception as error:  # no JSON, no UTF-8, what nbformat fails to put in words
        raise UserError(f"{path} is not a notebook: {shown(error)}") from None
    return notebook


def parameters(path: Path) -> dict[str, Any]:
    """What papermill finds in the parameters cell: name, type, default, help."""
    found = declared(read(path)["cells"])
    if "profile" not in found:
        missing = 'no cell tagged `parameters` has the line `profile: str = "laptop"`'
        raise UserError(f"{path}: {missing}")
    return found


def declared(cells: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The parameters that cells of a notebook declare, likewise."""
    from papermill.translators import PythonTranslator

    tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", ())]
    source = "\n".join("".join(cell["source"]) for cell in tagged)
    return {p.name: p for p in PythonTranslator.inspect({"source": source})}


def _truth(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


TYPES: dict[str, Any] = {"bool": _truth, "int": int, "float": float, "str": str}


def chosen(path: Path, profile: str, given: Mapping[str, str]) -> dict[str, Any]:
    """The values to inject; UserError lists those known if `given` does not fit."""
    known = parameters(path)
    del known["profile"]  # it names the output folder: an option of its own
    values: dict[str, Any] = {"profile": profile}
    for name, text in given.items():
        try:
            values[name] = TYPES[known[name].inferred_type_name](text)
        except (KeyError, ValueError):
            message = f"{name}={text!r}; {path} allows:"
            for parameter, kind, default, help_text in known.values():
                message += f"\n  {parameter}: {kind} = {default}  # {help_text}"
            raise UserError(message) from None
    return values


def digest(data: object) -> str:
    """SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def key(path: Path, values: Mapping[str, Any], threads: int) -> str:
    """SHA-256 over all that determines a run's outputs, and the page made of it."""
    notebook = read(path)
    metadata = {k: v for k, v in notebook["metadata"].items() if k != "language_info"}
    page: list[Any] = [[c["cell_type"], c["metadata"]] for c in notebook["cells"]]
    page += ["".join(cell["source"]) for cell in notebook["cells"]]
    declared = {}
    if "flatnb" in metadata:
        try:
            names = records.match(metadata["flatnb"]["records"], records.names())
        except (records.RecordError, KeyError, TypeError) as error:
            raise UserError(f"{path} declares records: {shown(error)}") from None
        root = records.root()
        declared = {name: (root / f"{name}.json").read_text("utf-8") for name in names}
    made_with = [provenance.code(), provenance.versions(PACKAGES), threads]
    return digest([metadata, page, dict(values), declared, made_with])


def share(profile: str) -> tuple[int, int]:
    """Notebooks run at a time, and threads of each, OMP_NUM_THREADS at the most. One at
    the paper profile, whose GPU is not to be shared, else up to four, however many
    notebooks there are: a run alone has the key of one among many."""
    cores = provenance.cores()
    jobs = 1 if profile == "paper" else min(4, cores)
    return jobs, min(cores // jobs, int(os.environ.get("OMP_NUM_THREADS") or cores))


@dataclass
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
        """Whether the output is that of this very run."""
        try:
            notebook = json.loads(self.output.read_text(encoding="utf-8"))
            return notebook["metadata"]["run"]["key"] == self.key
        except (OSError, ValueError, KeyError, TypeError):
            return False


def run(
    notebooks: Iterable[Path],
    *,
    profile: str = "laptop",
    given: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> list[Run]:
    """Execute notebooks into _build/notebooks/<profile> of the book, or from here.

    `given` has parameters as text, `timeout` is in seconds per cell, by default that of
    TIMEOUTS. A notebook that fails does not stop the others: `Run.error` says why.
    UserError, before anything runs, if a notebook or a parameter does not fit.
    """
    jobs, threads = share(profile)
    folder = (root_of(Path.cwd()) or Path.cwd()) / "_build" / "notebooks" / profile
    runs: dict[Path, Run] = {}
    for path in notebooks:
        values = chosen(path, profile, given or {})
        # Runs with different parameters have different names, none the plain one.
        name = f"{path.stem}-{digest(values)[:8]}" if given else path.stem
        output = folder / f"{name}.ipynb"
        if output in runs and not path.samefile(runs[output].source):
            raise UserError(f"{output} would be of {runs[output].source} and of {path}")
        runs[output] = Run(path, output, values, threads, key(path, values, threads))
    folder.mkdir(parents=True, exist_ok=True)
    changed = [run for run in runs.values() if not run.is_known()]
    if known := len(runs) - len(changed):
        print(f"{known} of {len(runs)} unchanged", flush=True)
    with (
        tempfile.TemporaryDirectory(
            prefix=".run-", dir=folder, ignore_cleanup_errors=True
        ) as private,
        mock.patch.dict(os.environ, _environment(Path(private), threads)),
        # Its threads end with this process, however it ends, and so do the kernels.
        ThreadPool(jobs) as pool,
    ):
        limit = timeout or TIMEOUTS[profile]
        execute = partial(_execute, folder=Path(private), timeout=limit)
        for count, run in enumerate(pool.imap_unordered(execute, changed), 1):
            state = "failed" if run.error else "finished"
            took = f"{run.source}, {run.seconds:.0f} s"
            print(f"[{count}/{len(changed)}] {state} {took}\n", end="", flush=True)
            if run.error:
                print(f"\n{run.error}\n", file=sys.stderr, flush=True)
    return list(runs.values())


def _execute(run: Run, folder: Path, timeout: float) -> Run:
    """Execute one notebook in a private folder, and put its copy into place."""
    import papermill

    print(f"running {run.source} …\n", end="", flush=True)
    start = time.monotonic()
    notebook = read(run.source)
    notebook["metadata"]["run"] = {"key": run.key, "threads": run.threads}
    executed = folder / run.output.name
    failed = run.output.with_suffix(FAILED)
    failed.unlink(missing_ok=True)
    try:
        papermill.execute_notebook(
            notebook,
            str(executed).replace("{", "{{").replace("}", "}}"),  # it is formatted
            run.values,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            execution_timeout=timeout,
            extra_arguments=["--log-level=CRITICAL", *FIGURES],
            # The kernel's folder; `cwd` would be that of this process, too.
            resources={"metadata": {"path": str(run.source.resolve().parent)}},
        )
        executed.replace(run.output)
    except Exception as error:  # of a cell, of the kernel, of papermill
        text = plain(f"{type(error).__name__}: {error}")
        run.error = "\n".join(text.splitlines()[-30:])
        if executed.exists():
            executed.replace(failed)
            run.error += f"\nthe executed copy is {os.path.relpath(failed)}"
    run.seconds = time.monotonic() - start
    return run


def _environment(folder: Path, threads: int) -> dict[str, str]:
    """What a kernel's environment has besides ours: all it leaves lies in `folder`."""
    clone = Path(__file__).resolve().parents[2]
    path = os.environ.get("PYTHONPATH", "")
    if (clone / "pyproject.toml").exists():
        path = f"{clone}{os.pathsep}{path}".rstrip(os.pathsep)
    return {
        PAGE: "1",
        "IPYTHONDIR": str(folder / "ipython"),  # the user's start-up files stay out
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "JUPYTER_PATH": f"{sys.prefix}/share/jupyter",  # this interpreter is the kernel
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": path,
    }


def plain(text: str) -> str:
    """Text without a terminal's colors."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)
