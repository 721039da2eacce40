"""Files that are there whole or not at all."""

import contextlib
import glob
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def whole(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file to write to, which becomes `path` once it is on the disk.

    It is written under a fresh hidden name in the same folder, so no link that lies
    there is followed and no other writer is met; then it is synced and renamed. No
    reader and no crash meets half a file. After an error `path` is as it was, and the
    new file is gone; what a killed writer leaves is removed by `sweep_up`.

    Args:
        path: the file to make, or to replace.
        mode: "w", UTF-8 text, or "wb".

    Raises:
        OSError: the folder is missing or cannot be written, the disk is full.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    with contextlib.ExitStack() as stack:
        try:  # "x" makes the file, or fails: it opens nothing that is there
            file = part.open(
                mode.replace("w", "x"), encoding=None if "b" in mode else "utf-8"
            )
        except (FileNotFoundError, NotADirectoryError) as error:
            why = f"there is no folder {path.parent}; make it, or give another path"
            raise type(error)(error.errno, why, str(path)) from None
        stack.callback(part.unlink, missing_ok=True)
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)


def sweep_up(path: Path) -> None:
    """Remove what killed writers of `path` have left; only where nobody else writes it."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        part.unlink(missing_ok=True)
