"""A notebook states which records it reads: it is run again when they change, and its page
links to their runs."""

import json
import re
from pathlib import Path

import pytest

from flatnb.results import records

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
FAMILIES = sorted({name.split("/")[0] for name in records.names()})
NAMED = re.compile(rf"(?<![\\w./-])({'|'.join(FAMILIES)})/")
# These read the plane where they are given no pattern.
OF_THE_PLANE = re.compile(
    r"\b(report\.gains?|verdicts\.(gains|flatter|endings|recommended)|headline\.figure)\("
)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_families_that_the_code_names_are_those_stated(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    code = "\n".join(
        "".join(cell["source"])
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
    )
    named = set(NAMED.findall(code))
    named |= {"plane"} if OF_THE_PLANE.search(code) else set()
    stated = notebook["metadata"].get("flatnb", {}).get("records", [])
    if stated == ["*"]:
        return
    fit = records.match(stated, records.names())
    assert named == {name.split("/")[0] for name in fit}
