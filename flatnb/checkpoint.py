"""The checkpoint of a training: one file that is whole or absent, and safe to load.

It is a line that names the format, a digest of what follows, and what `torch.save`
writes. Loading compares the digest, runs no code from the file (`weights_only`) and
refuses the file of another run.
"""

from __future__ import annotations

import copy
import hashlib
import io
import os
import re
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flatnb._checks import instance
from flatnb._files import sweep_up, whole

_FORMAT = b"flatnb training checkpoint 3\n"
_SECONDS = 60.0  # at least so long between two writes
_DIGEST_SIZE = hashlib.sha256().digest_size


class Checkpoint:
    """The file from which a training resumes.

    Args:
        path: the file, present or not, in a folder that exists. None: nothing is
            loaded or saved.
        identity: what determines the run, compared as text; tensors by a digest.
        parts: what has a `state_dict` and a `load_state_dict`.
        order: the generator of the batches.
        device: of the model; its random stream is kept too.

    Raises:
        TypeError, ValueError: a path where no file can be.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        identity: Mapping[str, Any],
        parts: Mapping[str, Any],
        order: torch.Generator,
        device: torch.device,
    ) -> None:
        self._path = None if path is None else _file_path(path)
        self._identity = {name: _text(value) for name, value in identity.items()}
        self._written = time.monotonic()
        self._parts, self._order, self._device = parts, order, device

    def load(self) -> dict[str, Any] | None:
        """Restore all parts and random streams; None if there is no file.

        Returns:
            What was given to `save`.

        Raises:
            ValueError: a damaged file, no checkpoint, or one of another run. Nothing
                was changed.
        """
        if self._path is None or not self._path.exists():
            return None
        state = _read(self._path)
        self._check_run(state["run"])
        current = copy.deepcopy(self._state({}))
        try:
            self._restore(state)
        except Exception as error:  # whatever the parts happen to raise
            self._restore(current)
            raise _damaged(self._path, error) from error
        return state["progress"]

    def due(self) -> bool:
        """Whether it is `_SECONDS` since the file was written."""
        return time.monotonic() - self._written >= _SECONDS

    def save(self, progress: Mapping[str, Any]) -> None:
        """Replace the file. After a failure (a full disk) it is as it was before."""
        if self._path is None:
            return
        content = io.BytesIO()
        torch.save(self._state(progress), content)
        sweep_up(self._path)  # what a killed run left
        with whole(self._path, "wb") as file:
            file.write(_FORMAT + hashlib.sha256(content.getbuffer()).digest())
            file.write(content.getbuffer())
        self._written = time.monotonic()

    def _state(self, progress: Mapping[str, Any]) -> dict[str, Any]:
        state = {
            "run": self._identity,
            "progress": dict(progress),
            "parts": {name: part.state_dict() for name, part in self._parts.items()},
            "order": self._order.get_state(),
            "random": torch.get_rng_state(),
        }
        if self._device.type == "cuda":
            state["random_cuda"] = torch.cuda.get_rng_state(self._device)
        return state

    def _restore(self, state: Mapping[str, Any]) -> None:
        for name, part in self._parts.items():
            part.load_state_dict(state["parts"][name])
        self._order.set_state(state["order"])
        torch.set_rng_state(state["random"])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"], self._device)

    def _check_run(self, saved: Mapping[str, str]) -> None:
        for name, text in self._identity.items():
            if saved.get(name) != text:
                previous = textwrap.shorten(str(saved.get(name)), 80)
                raise ValueError(
                    f"the checkpoint {self._path} is of another run: {name} is {previous} "
                    f"there and {textwrap.shorten(text, 80)} here. Resume with the same "
                    "arguments, give another path, or delete the file to start again"
                )


def _file_path(path: str | os.PathLike[str]) -> Path:
    allowed = "None, or the path of a file in a folder that exists"
    instance("checkpoint", path, (str, os.PathLike), allowed)
    place = Path(path)
    if "\0" in str(place) or place.is_dir() or not place.parent.is_dir():
        raise ValueError(f"checkpoint={str(path)!r}; allowed: {allowed}")
    return place


def _read(path: Path) -> dict[str, Any]:
    header, _, content = path.read_bytes().partition(_FORMAT)
    digest, content = content[:_DIGEST_SIZE], content[_DIGEST_SIZE:]
    try:
        if header or hashlib.sha256(content).digest() != digest:
            raise ValueError("its digest is not that of its content")
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if not isinstance(state["run"], dict):
            raise TypeError("it names no run")
    except Exception as error:  # whatever the parsers of zip and pickle happen to raise
        raise _damaged(path, error) from error
    return state


def _damaged(path: Path, error: Exception) -> ValueError:
    reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return ValueError(
        f"{path} is damaged, or no checkpoint of this training ({reason}). Delete it "
        "to start again, or give another path"
    )


def _text(value: Any) -> str:
    """A value as text that is the same in every process; a large tensor by samples."""
    if isinstance(value, Tensor):
        flat = value.detach().flatten()
        sample = flat[:: max(1, len(flat) >> 20)].double().cpu().numpy()
        digest = hashlib.sha256(sample.tobytes()).hexdigest()[:16]
        return f"{tuple(value.shape)} {value.dtype} {digest}"
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_text, value))})"
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))  # addresses in memory
