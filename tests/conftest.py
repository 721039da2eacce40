"""What every test shares: no window, one thread, a fixed seed, and which tests wait to
be asked.
"""

import os
from pathlib import Path

import pytest
import torch

# Kernels that a test starts inherit both.
os.environ["MPLBACKEND"] = "Agg"
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--run-all", action="store_true", help="run the tests marked slow too"
    )
    parser.addoption(
        "--run-pages", action="store_true", help="run the tests of the built pages too"
    )


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    waits = []
    if not config.getoption("--run-all"):
        waits.append(("slow", "slow: run by make test-all"))
    if not config.getoption("--run-pages"):
        waits.append(("pages", "pages: run by make test-pages, after make book"))
    if not os.environ.get("FLATNB_DATA"):
        waits.append(("data", "FLATNB_DATA names no folder of data sets"))
    for item in items:
        for marker, reason in waits:
            if item.get_closest_marker(marker) is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The same numbers whatever ran before, on whichever worker."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return Path(__file__).resolve().parents[1]
