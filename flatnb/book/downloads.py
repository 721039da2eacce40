"""What readers take away from the pages: notebooks, with and without outputs."""

import json
import shutil
from pathlib import Path
from typing import Any

from flatnb.book import figures

FOLDER = "downloads"  # below the pages
KINDS = {"executed": "notebook, with outputs", "clean": "notebook, without outputs"}


def save_notebook(folder: Path, source: Path, executed: Path | None) -> None:
    """Put a notebook, and its executed copy if there is one, into `folder`."""
    for kind in KINDS:
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
