"""The cells of a notebook, as the pages see them."""

from typing import Any

# Tags of the cells that come before the first section of a notebook.
SETUP = {"bootstrap", "parameters", "injected-parameters", "setup"}


def tags(cell: dict[str, Any]) -> list[str]:
    """The tags of a cell, none if it has none.

    >>> tags({"metadata": {"tags": ["setup"]}})
    ['setup']
    """
    return cell["metadata"].get("tags", [])


def minutes(cells: list[dict[str, Any]]) -> int:
    """Minutes to read the prose at 200 words, and the code that is not folded at 20
    lines, per minute.

    >>> minutes([{"cell_type": "markdown", "source": "one " * 400, "metadata": {}}])
    3
    """
    total = 1.0
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            total += len(source.split()) / 200
        elif not {*SETUP, "hide-input"}.intersection(tags(cell)):
            total += len(source.splitlines()) / 20
    return round(total)
