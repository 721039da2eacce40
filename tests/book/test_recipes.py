"""The recipes for frameworks in two processes: the weights are those of SAM by hand;
and the table at the top of their page.

The page itself runs them in one. In several, a recipe that went past the framework's
DistributedDataParallel would leave each process with weights of its own, and no error.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RANKS = 2
PACKAGES = ["accelerate", "lightning", "transformers"]


@pytest.fixture(scope="module")
def found(root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each of the processes found."""
    if lacking := [name for name in PACKAGES if find_spec(name) is None]:
        pytest.skip(f"not installed: {', '.join(lacking)}")
    folder = tmp_path_factory.mktemp("recipes")
    worker = Path(__file__).with_name("recipes_worker.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={RANKS}", str(worker), str(folder)]
    run = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["accelerate", "Trainer", "Lightning"])
def test_recipe_in_two_processes_is_sam_by_hand(found: list[dict], recipe: str) -> None:
    assert all(rank[recipe] < 1e-4 for rank in found), [r[recipe] for r in found]


@pytest.mark.slow
def test_lightnings_own_optimization_is_for_one_process(found: list[dict]) -> None:
    assert all("optimize manually" in rank["refused"] for rank in found)


def test_the_table_at_the_top_has_every_recipe() -> None:
    """A line for each section of third level, and for the one without such sections."""
    page = ROOT / "notebooks" / "A3_recipes.ipynb"
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
    texts = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
    (table,) = [text for text in texts if text.startswith("## All recipes")]
    lines = [line for line in table.splitlines() if line.startswith("| [")]
    links = re.findall(r"^\| \[[^]]+\]\(#([\w-]+)\)", table, re.M)
    headings = re.findall(r"^### (.*)$", "\n".join(texts), re.M)
    slugs = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]
    assert sorted(links) == sorted([*slugs, "several-processes"])
    assert len(lines) == len(links) + 1  # EMA in any loop is on another page
    assert all(line.count(" | ") == 1 for line in lines)
