"""Checkpoints of a training: one file, written aside and renamed, of tensors, numbers
and text.

Loading runs no code from the file (`weights_only`), compares its checksums and its
form, and refuses the file of another run.
"""

from __future__ import annotations

import copy
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

from flatnb._checks import shown
from flatnb._files import sweep_up, whole

_FORMAT = "flatnb training checkpoint 2"


class Checkpoint:
    """The file from which a training resumes.

    Args:
        path: the file, there or not, in a folder that exists. None: nothing is loaded.
        identity: what determines the run, compared as text. Tensors are told apart by a
            digest.
        parts: what has a `state_dict` and a `load_state_dict`.
        order: the generator of the batches.
        device: where the model is; its random stream is kept too.

    Raises:
        FileNotFoundError, IsADirectoryError, TypeError: no file can lie at the path.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        identity: Mapping[str, Any],
        parts: Mapping[str, Any],
        order: torch.Generator,
        device: torch.device,
    ) -> None:
        self._path = None if path is None else _place(path)
        self._identity = (
            {} if path is None else {k: _text(v) for k, v in identity.items()}
        )
        self._parts, self._order, self._device = parts, order, device

    def load(self) -> dict[str, Any] | None:
        """Put all parts and random streams back; what `save` was given, or None without
        a file.

        Raises:
            ValueError: a damaged file, no checkpoint, or one of another run. Nothing
                was changed.
        """
        if self._path is None or not self._path.exists():
            return None
        state = _read(self._path)
        self._compare(state["run"])
        before = copy.deepcopy(self._state({}))
        try:
            self._set(state)
        except Exception as error:  # whatever the parts happen to raise
            self._set(before)
            raise _damaged(self._path, error) from error
        return state["progress"]

    def save(self, progress: dict[str, Any]) -> None:
        """Write the file anew. After a failure (a full disk) the one before is still there."""
        assert self._path is not None
        state = self._state(progress)
        state["form"] = _form(state)
        sweep_up(self._path)  # what a killed run has left
        with whole(self._path, "wb") as file:
            torch.save(state, file)

    def _state(self, progress: dict[str, Any]) -> dict[str, Any]:
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
        return state

    def _set(self, state: Mapping[str, Any]) -> None:
        for name, part in self._parts.items():
            part.load_state_dict(state["parts"][name])
        self._order.set_state(state["order"])
        torch.set_rng_state(state["random"])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"], self._device)

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


def _place(path: str | os.PathLike[str]) -> Path:
    """The path of a file, in a folder that is there."""
    text = str(path) if isinstance(path, str | os.PathLike) else ""
    if not text or "\0" in text:
        raise TypeError(
            f"checkpoint={shown(path)}; allowed: the path of a file, or None"
        )
    place = Path(path)
    if place.is_dir():
        raise IsADirectoryError(f"checkpoint={text!r} is a folder; give a file in it")
    if not place.parent.is_dir():
        raise FileNotFoundError(
            f"checkpoint={text!r}: there is no folder {place.parent}; make it, or give "
            "another path"
        )
    return place


def _read(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load compares no checksums
        if damaged is not None:
            raise ValueError(f"wrong checksum of {damaged}")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or state.get("format") != _FORMAT:
            raise ValueError(f"it does not say {_FORMAT!r}")
        if state.pop("form", None) != _form(state):
            raise ValueError("its parts are not those that were saved")
        if not isinstance(state["run"], dict):
            raise TypeError("it names no run")
    except OSError:
        raise
    except Exception as error:  # whatever the parsers of zip and pickle happen to raise
        raise _damaged(path, error) from error
    return state


def _damaged(path: Path, error: Exception) -> ValueError:
    reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return ValueError(
        f"{path} is damaged, or no checkpoint of this training ({reason}). Delete it to start "
        "anew, or give another path"
    )


def _form(value: Any) -> str:
    """A digest of all but the entries of tensors, which the file's checksums cover."""
    return hashlib.sha256(
        repr(_outline(value)).encode("utf-8", "surrogatepass")
    ).hexdigest()


def _outline(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape), str(value.dtype)
    if isinstance(value, Mapping):
        return "dict", [(key, _outline(part)) for key, part in value.items()]
    if isinstance(value, list | tuple):
        return type(value).__name__, [_outline(part) for part in value]
    return value


def _text(value: Any) -> str:
    if isinstance(value, Tensor):
        return _digest(value)
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_text, value))})"
    return re.sub(
        r" at 0x[0-9a-f]+", "", str(value)
    )  # addresses differ between processes


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
