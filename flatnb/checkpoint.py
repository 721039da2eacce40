"""Checkpoints of a training: one file, written aside and renamed, of tensors, numbers and text.

Loading runs no code from the file (`weights_only`), compares its checksums, and refuses the file of
another run.
"""

from __future__ import annotations

import hashlib
import os
import re
import textwrap
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._files import whole

_FORMAT = "flatnb training checkpoint 1"


class Checkpoint:
    """The file from which a training resumes.

    Args:
        path: the file; its folder must exist. None: nothing is loaded.
        identity: what determines the run, compared as text. Tensors are told apart by a digest.
        parts: what has a `state_dict` and a `load_state_dict`.
        order: the generator of the batches.
        device: where the model is; its random stream is kept too.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        identity: Mapping[str, Any],
        parts: Mapping[str, Any],
        order: torch.Generator,
        device: torch.device,
    ) -> None:
        self._path = None if path is None else Path(path)
        self._identity = {} if path is None else {k: _text(v) for k, v in identity.items()}
        self._parts, self._order, self._device = parts, order, device

    def load(self) -> dict[str, Any] | None:
        """Put all parts and random streams back; what `save` was given, or None without a file.

        Raises:
            ValueError: a damaged file, no checkpoint, or one of another run. Nothing was changed.
        """
        if self._path is None or not self._path.exists():
            return None
        state = _read(self._path)
        self._compare(state["run"])
        for name, part in self._parts.items():
            part.load_state_dict(state["parts"][name])
        self._order.set_state(state["order"])
        torch.set_rng_state(state["random"])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"], self._device)
        return state["progress"]

    def save(self, progress: dict[str, Any]) -> None:
        """Write the file anew. After a failure (a full disk) the one before is still there."""
        assert self._path is not None
        state = {
            "format": _FORMAT,
            "run": self._identity,
            "progress": progress,
            "parts": {name: part.state_dict() for name, part in self._parts.items()},
            "order": self._order.get_state(),
            "random": torch.get_rng_state(),
        }
        if self._device.type == "cuda":
            state["random_cuda"] = torch.cuda.get_rng_state(self._device)
        with whole(self._path, self._path.with_name(self._path.name + ".part"), "wb") as file:
            torch.save(state, file)

    def _compare(self, other: dict[str, str]) -> None:
        differences = [
            f"{name} is {textwrap.shorten(other.get(name, 'none'), 80)} there and "
            f"{textwrap.shorten(own, 80)} here"
            for name, own in self._identity.items()
            if other.get(name) != own
        ]
        if differences:
            raise ValueError(
                f"the checkpoint {self._path} is of another run: {'; '.join(differences)}. Resume "
                "with the same arguments, give another path, or delete the file to start anew"
            )


def _read(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load compares no checksums
        if damaged is not None:
            raise ValueError(f"wrong checksum of {damaged}")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or state.get("format") != _FORMAT:
            raise ValueError(f"it does not say {_FORMAT!r}")
    except OSError:
        raise
    except Exception as error:  # whatever the parsers of zip and pickle happen to raise
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise ValueError(
            f"{path} is damaged, or no checkpoint of a training ({reason}). Delete it to start "
            "anew, or give another path"
        ) from error
    return state


def _text(value: Any) -> str:
    if isinstance(value, Tensor):
        return _digest(value)
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_text, value))})"
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))  # addresses differ between processes


def _digest(t: Tensor, entries: int = 1 << 20) -> str:
    """Shape, dtype and 16 hexadecimal digits that tell values apart: of a large tensor, samples."""
    flat = t.detach().flatten()
    sample = flat[:: max(1, len(flat) // entries)].double().cpu().numpy()
    return f"{tuple(t.shape)} {t.dtype} {hashlib.sha256(sample.tobytes()).hexdigest()[:16]}"


def tensors(parts: Iterable[Any]) -> list[Tensor]:
    """The public tensors among the attributes of each part, by name: hyperparameters of members."""
    return [
        value
        for part in parts
        for name, value in sorted(vars(part).items())
        if isinstance(value, Tensor) and not name.startswith("_")
    ]
