"""The checkpoint of a training: one file that is whole or absent, and safe to load.

It is a line that names the format, a digest of what follows, and what `torch.save`
writes. Loading compares the digest, runs no code from the file (`weights_only`) and
refuses the file of another run.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flatnb._checks import instance, shown
from flatnb._files import sweep_up, whole

_FORMAT = b"flatnb training checkpoint 4\n"
_SECONDS = 60.0  # at least so long between two writes
_DIGEST_SIZE = hashlib.sha256().digest_size


class Checkpoint:
    """The file from which a training resumes. Without a path, nothing is kept.

    `identity` is what determines the run, compared as text, tensors by a digest;
    `parts` are what has a `state_dict`; `order` is the generator of the batches.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        identity: Mapping[str, Any],
        parts: Mapping[str, Any],
        order: torch.Generator,
        device: torch.device,
    ) -> None:
        allowed = "None, or the path of a file in a folder that exists"
        instance("checkpoint", path, (str, os.PathLike, type(None)), allowed)
        self._path = None if path is None else Path(path)
        if self._path is not None:
            place = self._path.parent.is_dir() and not self._path.is_dir()
            if "\0" in str(path) or not place:
                raise ValueError(f"checkpoint={shown(str(path))}; allowed: {allowed}")
        self._identity = {name: _text(value) for name, value in identity.items()}
        self._written = time.monotonic()
        self._parts = parts
        self._order = order
        self._device = device

    def load(self) -> dict[str, Any] | None:
        """Restore all parts and random streams; what `save` got, None without a file.

        Raises:
            ValueError: a damaged file, no checkpoint, or one of another run.
        """
        if self._path is None or not self._path.exists():
            return None
        header, _, content = self._path.read_bytes().partition(_FORMAT)
        digest, content = content[:_DIGEST_SIZE], content[_DIGEST_SIZE:]
        try:
            if header or hashlib.sha256(content).digest() != digest:
                raise ValueError("its digest is not that of its content")
            state = torch.load(
                io.BytesIO(content), map_location="cpu", weights_only=True
            )
            others = [
                k for k, text in self._identity.items() if state["run"][k] != text
            ]
            if not others:
                self._restore(state)
        except Exception as error:  # whatever pickle and the parts happen to raise
            raise ValueError(
                f"{self._path} is damaged, or no checkpoint of this training "
                f"({shown(error)}). Delete it to start again, or give another path"
            ) from error
        if others:
            raise ValueError(
                f"{self._path} is of another run, with another {', '.join(others)}. "
                "Resume with the same arguments, give another path, or delete the file "
                "to start again"
            )
        return state["progress"]

    def due(self) -> bool:
        """Whether it is `_SECONDS` since the file was written."""
        return time.monotonic() - self._written >= _SECONDS

    def save(self, progress: Mapping[str, Any]) -> None:
        """Replace the file. After a failure (a full disk) it is as it was before."""
        if self._path is None:
            return
        state = {
            "run": self._identity,
            "progress": dict(progress),
            "parts": {name: part.state_dict() for name, part in self._parts.items()},
            "order": self._order.get_state(),
            "random": torch.get_rng_state(),
        }
        if self._device.type == "cuda":
            state["random_cuda"] = torch.cuda.get_rng_state(self._device)
        content = io.BytesIO()
        torch.save(state, content)
        sweep_up(self._path)  # what a killed run left
        with whole(self._path, "wb") as file:
            file.write(_FORMAT + hashlib.sha256(content.getbuffer()).digest())
            file.write(content.getbuffer())
        self._written = time.monotonic()

    def _restore(self, state: Mapping[str, Any]) -> None:
        for name, part in self._parts.items():
            part.load_state_dict(state["parts"][name])
        self._order.set_state(state["order"])
        torch.set_rng_state(state["random"])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"], self._device)


def _text(value: Any) -> str:
    """A value as text that is the same in every process; a tensor by a digest."""
    if isinstance(value, Tensor):
        entries = value.detach().cpu().flatten().view(torch.uint8).numpy()
        digest = hashlib.sha256(entries.data).hexdigest()
        return f"{tuple(value.shape)} {value.dtype} {digest}"
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_text, value))})"
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))  # addresses in memory
