"""Books of a few cells in a temporary folder, for the tests of the runner and its
commands.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from flatnb.book import stage

ROOT = Path(__file__).resolve().parents[2]
PARAMETERS = """\
profile: str = "laptop"  # smoke, laptop or paper
count: int = 3  # how many
rate: float = 1  # a step
quiet: bool = False
names: str = "a, b"  # of methods"""


def read(path: Path) -> dict[str, Any]:
    """A notebook's content, unchecked."""
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, content: Any) -> None:
    """Write a notebook as Jupyter does."""
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n")


def text_of(cell: dict[str, Any]) -> str:
    """A cell's source, which a file holds as a string or as a list of lines."""
    return "".join(cell["source"])


def tagged(path: Path, tag: str) -> list[dict[str, Any]]:
    """The cells that bear a tag."""
    cells = read(path)["cells"]
    return [cell for cell in cells if tag in cell["metadata"].get("tags", ())]


def code(source: str, *tags: str, **metadata: Any) -> dict[str, Any]:
    """A code cell as a clean notebook holds it."""
    metadata = {**metadata, **({"tags": list(tags)} if tags else {})}
    return {
        "cell_type": "code",
        "execution_count": None,
        "metadata": metadata,
        "outputs": [],
        "source": source.splitlines(keepends=True),
    }


def save(
    path: Path, *sources: str | dict[str, Any], parameters: str | None = PARAMETERS
) -> Path:
    """Write a notebook: a title, the parameters cell, then the code given."""
    cells: list[dict[str, Any]] = [
        {"cell_type": "markdown", "metadata": {}, "source": [f"# {path.stem}"]}
    ]
    if parameters is not None:
        cells.append(code(parameters, "parameters", "hide-input"))
    cells += [code(cell) if isinstance(cell, str) else cell for cell in sources]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    content = {
        "cells": cells,
        "metadata": {"kernelspec": kernel},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, content)
    return path


def book(root: Path) -> Path:
    """A book of two pages under `root`, with this repository's own settings."""
    for folder in ("_static", "_templates"):
        shutil.copytree(ROOT / "book" / folder, root / "book" / folder)
    (root / "book" / "_static" / "custom.css").write_text("p { margin: 0 }\n")
    intro = (
        "# Intro\n\n**Flat is 2<!-- a note --> & wide.** See {cite:p}`one`: $x^2$.\n"
    )
    intro += "\n```{bibliography}\n```\n"
    (root / "book" / "intro.md").write_text(intro)
    entry = (
        "@misc{one, author = {A. One}, title = {First}, year = {2020}, "
        "url = {https://github.com/acme/one}}\n"
    )
    (root / "book" / "references.bib").write_text(entry)
    toc = "format: jb-book\nroot: book/intro\nchapters:\n  - file: notebooks/01_a\n"
    (root / "_toc.yml").write_text(toc)
    (root / "_config.yml").write_text((ROOT / "_config.yml").read_text())
    (cell,) = tagged(next((ROOT / "notebooks").glob("*.ipynb")), "bootstrap")
    first = code(text_of(cell), "bootstrap")
    save(root / "notebooks" / "01_a.ipynb", first, "print(profile)")
    for path, text in stage.with_address(root, "", "main").items():
        path.write_text(text)
    return root
