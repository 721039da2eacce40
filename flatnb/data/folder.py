"""Image folders as tensors of bytes: ``train/<class>/*`` and ``test/<class>/*``, or
``<class>/*`` without a split.
"""

import contextlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flatnb._checks import shown
from flatnb._torchvision import load as load_torchvision
from flatnb.data.base import stratified

_TEST_SHARE = 0.2  # of a folder without a split


class Pixels(NamedTuple):
    """Images as bytes, uint8 (n, channels, height, width), with labels, int64 (n,)."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: tuple[str, ...]


def read_folder(folder: Path, size: int | None) -> Pixels:
    """All images of a folder; what counts as one is decided by torchvision's ImageFolder.

    A folder with neither ``train`` nor ``test`` has its classes at the top, and 20 % of
    each, drawn under seed 0, are for testing: the same for every run.

    Pixels are gray (one channel) if every image is, else RGB; transparency is dropped,
    the EXIF orientation applied. With `size`, the middle square of each image is resized
    to `size` pixels per side (bilinear, antialiased).

    Raises:
        FileNotFoundError: no folder, only one of ``train`` and ``test``, or a class
            without images.
        ValueError: fewer than two classes, other classes in test than in train, a file
            that cannot be read, or images of different sizes without `size`.
    """
    kind = load_torchvision().datasets.ImageFolder
    parts = [folder / "train", folder / "test"]
    if folder.is_dir() and not any(map(os.path.lexists, parts)):
        whole = kind(folder)
        if len(whole.classes) < 2:
            names = shown(whole.classes)
            raise ValueError(
                f"folder={folder} has classes {names}; allowed: two or more"
            )
        x, y = _decoded(whole.samples, size), torch.tensor(whole.targets)
        train, test = stratified(y, _TEST_SHARE, seed=0)
        return Pixels(x[train], y[train], x[test], y[test], tuple(whole.classes))
    if not all(part.is_dir() for part in parts):
        allowed = "a folder with train/<class>/* and test/<class>/*, or <class>/* alone"
        raise FileNotFoundError(f"folder={folder}; allowed: {allowed}")
    train, test = map(kind, parts)
    if len(train.classes) < 2 or train.classes != test.classes:
        raise ValueError(
            f"folder={folder} has classes {shown(train.classes)} in train and "
            f"{shown(test.classes)} in test; allowed: the same in both, two or more"
        )
    x, n = _decoded([*train.samples, *test.samples], size), len(train)
    train_y, test_y = torch.tensor(train.targets), torch.tensor(test.targets)
    return Pixels(x[:n], train_y, x[n:], test_y, tuple(train.classes))


def _decoded(samples: Sequence[tuple[str, int]], size: int | None) -> Tensor:
    """Images of (path, class), as `_decode_all` keeps them."""
    files = []
    for path, _ in samples:
        stat = Path(path).stat()
        files.append((path, stat.st_size, stat.st_mtime_ns))
    return _decode_all(tuple(files), size)


# Of two folders, for the next seed; a file that has changed is another argument.
@lru_cache(maxsize=2)
def _decode_all(files: tuple[tuple[str, int, int], ...], size: int | None) -> Tensor:
    """uint8 (n, channels, height, width) of files (path, bytes, time of change)."""
    with ThreadPoolExecutor() as pool:  # decoding releases the interpreter's lock
        arrays = list(
            pool.map(partial(_decode, size=size), [path for path, *_ in files])
        )
    shapes = {array.shape[:2] for array in arrays}
    if len(shapes) > 1:
        raise ValueError("size=None; allowed where images differ: pixels per side")
    channels = max(array.shape[2] for array in arrays)
    x = torch.empty(len(arrays), channels, *shapes.pop(), dtype=torch.uint8)
    for i, array in enumerate(arrays):
        x[i] = torch.from_numpy(array).movedim(2, 0)
    return x


def _decode(path: str, size: int | None) -> np.ndarray:
    """uint8 (height, width, 1) or (height, width, 3)."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"mode {image.mode}; allowed: 8 bits per channel")
            image.load()  # which turns a TIFF already
            turned: Image.Image = image
            with contextlib.suppress(Exception):  # broken EXIF data
                turned = ImageOps.exif_transpose(image)
            pixels = turned.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
    except Exception as error:  # each decoder fails in its own way
        raise ValueError(
            f"{path} cannot be read ({error}); fix or remove it"
        ) from error
    if size is not None:
        pixels = ImageOps.fit(pixels, (size, size), Image.Resampling.BILINEAR)
    return np.array(pixels).reshape(pixels.height, pixels.width, -1)
