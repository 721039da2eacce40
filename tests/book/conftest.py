"""The small book as pages."""

import os
from pathlib import Path

import pytest
from filelock import FileLock
from small_book import book

from flatnb.book import stage

URL = "https://github.com/acme/flatnb"


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The small book built without and with an address; its notebook not executed.

    Built once for all workers: it takes seconds, and no test changes it.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    roots = {"without": folder / "without-address", "with": folder / "with-address"}
    with FileLock(folder / "small-book.lock"):
        for name, root in roots.items():
            if not (root / "_build" / "html").exists():
                book(root)
                url = URL if name == "with" else ""
                for path, text in stage.with_address(root, url, "v1").items():
                    path.write_text(text)
                assert stage.build(stage.stage(root, {}), root / "_build" / "html")
    return roots
