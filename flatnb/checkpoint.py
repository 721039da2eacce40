"""The checkpoint of a training: a file of `torch.save` that is whole or absent. Loading
verifies its checksums, runs no code from it and refuses that of another run.
"""

import hashlib
import os
import re
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flatnb._checks import instance, shown
from flatnb._files import sweep_up, whole

_SECONDS = 60.0  # minimum seconds between two writes


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
        if self._path and (self._path.is_dir() or not self._path.parent.is_dir()):
            raise ValueError(f"checkpoint={shown(str(path))}; allowed: {allowed}")
        self._identity = {name: _text(value) for name, value in identity.items()}
        self._written = time.monotonic()
        self._parts = parts
        self._order = order
        self._device = device

    def load(self) -> dict[str, Any] | None:
        """Restore all parts and random streams; what `save` got, None without a file."""
        if self._path is None or not self._path.exists():
            return None
        try:
            with zipfile.ZipFile(self._path) as archive:
                if archive.testzip() is not None:
                    raise ValueError("a checksum is not that of its content")
            state = torch.load(self._path, map_location="cpu", weights_only=True)
            saved = state["run"]
            others = [k for k, text in self._identity.items() if saved[k] != text]
            if not others:
                self._order.set_state(state["order"])
                torch.set_rng_state(state["random"])
                if self._device.type == "cuda":
                    torch.cuda.set_rng_state(state["random_cuda"], self._device)
                for name, part in self._parts.items():
                    part.load_state_dict(state["parts"][name])
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
        sweep_up(self._path)  # what a killed run left
        with whole(self._path, "wb") as file:
            torch.save(state, file)
        self._written = time.monotonic()


def _text(value: Any) -> str:
    """A value as text that is the same in every process; a tensor by a digest."""
    if isinstance(value, Tensor):
        entries = value.detach().cpu().flatten().view(torch.uint8).numpy()
        digest = hashlib.sha256(entries.data).hexdigest()
        return f"{tuple(value.shape)} {value.dtype} {digest}"
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_text, value))})"
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))  # addresses in memory
