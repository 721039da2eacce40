"""Files that are whole or absent."""

import contextlib
import glob
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def whole(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file to write to, UTF-8 text or "wb", which becomes `path` once it is on the disk.

    No reader and no crash sees half a file, and an error leaves `path` as it was. It is
    written under a random hidden name in the same folder, so it follows no link and
    meets no other writer. What a killed writer leaves is removed by `sweep_up`.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    encoding = None if "b" in mode else "utf-8"
    # "x" creates the file or fails: it never opens an existing one.
    file = part.open(mode.replace("w", "x"), encoding=encoding)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def sweep_up(path: Path) -> None:
    """Remove what killed writers of `path` left; only where no other process writes it."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        part.unlink(missing_ok=True)
