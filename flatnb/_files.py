"""Files that are there whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def whole(path: Path, part: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file to write to, `part`, which becomes `path` once it is on the disk.

    No reader and no crash meets half a file; after an error `path` is as it was, and `part` gone.

    Args:
        path: the file to make, or to replace.
        part: on the same file system; of its own for each writer, where there may be several.
        mode: "w", UTF-8 text, or "wb".

    Raises:
        OSError: the folder cannot be written, the disk is full.
    """
    try:
        with part.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
