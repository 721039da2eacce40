"""The recipes for frameworks in two processes: the weights are those of SAM by hand.

The page itself runs them in one. In several, a recipe that went past the framework's
DistributedDataParallel would leave each process with weights of its own, and no error.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

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
