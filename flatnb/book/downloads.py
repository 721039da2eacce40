"""What readers take away from the pages: notebooks with and without outputs, and the
recorded runs as CSV.
"""

import hashlib
import json
import shutil
from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pandas

from flatnb.book import figures
from flatnb.results import compare, records
from flatnb.results.runs import KINDS

FOLDER = "downloads"  # below the pages
NOTEBOOKS = {"executed": "notebook, with outputs", "clean": "notebook, without outputs"}


def save_notebook(folder: Path, source: Path, executed: Path | None) -> None:
    """Put a notebook, and its executed copy if there is one, into `folder`."""
    for kind in NOTEBOOKS:
        (folder / kind).mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, folder / "clean" / source.name)
    if executed:
        content = json.loads(executed.read_text(encoding="utf-8"))
        text = json.dumps(published(content), indent=1, ensure_ascii=False)
        (folder / "executed" / source.name).write_text(text + "\n", encoding="utf-8")


def published(notebook: dict[str, Any]) -> dict[str, Any]:
    """An executed notebook with one picture of each figure, and of what papermill notes
    only the parameters, the version, the seconds and the end: the rest are folders of
    the machine that ran it."""
    for cell in notebook["cells"]:
        cell["metadata"].pop("papermill", None)
        for output in cell.get("outputs", ()):
            if "data" in output:
                output["data"] = figures.smaller(output["data"])
    run = notebook["metadata"].get("papermill", {})
    kept = {"parameters", "version", "duration", "end_time"} & set(run)
    notebook["metadata"]["papermill"] = {name: run[name] for name in sorted(kept)}
    return notebook


def families(patterns: Collection[str]) -> list[str]:
    """The first parts of the names of those records that fit some pattern.

    >>> families(["plane/gaussian-0/*", "sensing/*"])
    ['plane', 'sensing']
    """
    fits = [n for n in records.names() if any(fnmatchcase(n, p) for p in patterns)]
    return sorted({name.split("/")[0] for name in fits})


def save_records(folder: Path, cache: Path, family: str) -> dict[str, int]:
    """Write the runs of a family of records into `folder`, a file per kind of run that
    it has, with a row per run and a column per quantity, in six digits. A family that
    chose nothing, because its settings were given, has one file, of all its settings.

    Files are kept in `cache` for as long as records and code stay the same: to write
    those of the plane takes ten seconds.

    Returns:
        Name of a file -> how many runs it has.
    """
    made = cache / family / _state(family)
    if not made.exists():
        shutil.rmtree(made.parent, ignore_errors=True)
        unfinished = made.with_name("unfinished")
        unfinished.mkdir(parents=True)
        for name, runs in _runs(family).items():
            if len(runs):
                runs = runs.dropna(axis=1, how="all")
                file = unfinished / f"{name}.csv"
                runs.to_csv(file, index=False, float_format="%.6g")
        unfinished.rename(made)
    folder.mkdir(parents=True, exist_ok=True)
    counts = {}
    for file in sorted(made.glob("*.csv")):
        shutil.copyfile(file, folder / file.name)
        with file.open(encoding="utf-8") as lines:
            counts[file.name] = sum(1 for _ in lines) - 1
    return counts


def _runs(family: str) -> dict[str, pandas.DataFrame]:
    """Name of a file, without its end -> the runs in it."""
    patterns = [f"{family}/*"]
    selections = [record["selection"] for record in compare.loaded(patterns)]
    if all(each["split"] is None and each["budget"] == 1 for each in selections):
        return {f"{family}-runs": compare.nets(patterns)}
    return {f"{family}-{kind}": compare.select(patterns, kind) for kind in KINDS}


def _state(family: str) -> str:
    """A hash of what the files of a family depend on."""
    digest = hashlib.sha256()
    code = [*Path(compare.__file__).parent.glob("*.py"), Path(__file__)]
    for path in sorted([*code, *(records.root() / family).rglob("*.json")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def runs_cell(counts: dict[str, int]) -> dict[str, Any]:
    """The cell below a page that reads records: links to the runs of these files."""
    links = [
        f'<a href="../{FOLDER}/records/{name}">{name}</a> ({count:,} runs)'
        for name, count in counts.items()
    ]
    source = (
        f"**Recorded runs** of the tasks on this page, one row per run: "
        f"{', '.join(links)}. {{func}}`~flatnb.results.compare.select` says what the "
        "columns are."
    )
    return {"cell_type": "markdown", "id": "runs", "metadata": {}, "source": source}
