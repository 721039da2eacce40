"""Books of a few cells in a temporary folder, for the tests of the runner and its
commands.
"""

from pathlib import Path
from typing import Any

from flatnb.book import notebook

ROOT = Path(__file__).resolve().parents[2]
PARAMETERS = """\
profile: str = "laptop"  # smoke, laptop or paper
count: int = 3  # how many | with = in its help
rate: float = 1  # a step
quiet: bool = False
names: list[str] = ["a", "b"]  # of methods
seeds: list = [0, 1]"""


def code(source: str, *tags: str, **metadata: Any) -> dict[str, Any]:
    """A code cell as a clean notebook holds it."""
    metadata = {**metadata, **({"tags": list(tags)} if tags else {})}
    return {
        "cell_type": "code",
        "execution_count": None,
        "metadata": metadata,
        "outputs": [],
        "source": source,
    }


def save(
    path: Path, *sources: str | dict[str, Any], parameters: str | None = PARAMETERS
) -> Path:
    """Write a notebook: a title, the parameters cell, then the code given."""
    cells: list[dict[str, Any]] = [
        {"cell_type": "markdown", "metadata": {}, "source": f"# {path.stem}"}
    ]
    if parameters is not None:
        cells.append(code(parameters, "parameters", "hide-input"))
    cells += [code(one) if isinstance(one, str) else one for one in sources]
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
    path.write_text(notebook.dump(content), encoding="utf-8")
    return path


def book(root: Path) -> Path:
    """A book of two pages under `root`, with this repository's own settings."""
    (root / "book" / "_static").mkdir(parents=True)
    (root / "book" / "_static" / "custom.css").write_text("p { margin: 0 }\n")
    intro = "# Intro\n\nSee {cite:p}`one`.\n\n```{bibliography}\n```\n"
    (root / "book" / "intro.md").write_text(intro)
    entry = "@misc{one, author = {A. One}, title = {First}, year = {2020}}\n"
    (root / "book" / "references.bib").write_text(entry)
    toc = "format: jb-book\nroot: book/intro\nchapters:\n  - file: notebooks/01_a\n"
    (root / "_toc.yml").write_text(toc)
    (root / "_config.yml").write_text((ROOT / "_config.yml").read_text())
    first = code(notebook.bootstrap(), "bootstrap")
    save(root / "notebooks" / "01_a.ipynb", first, "print(profile)")
    return root
