"""Image folders, ``train/<class>/*`` and ``test/<class>/*``, as tensors of bytes.

The tensors are kept in one file per folder and size, so that a folder is decoded once.
The file is used as long as every image has the path, size and time of change it had.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flatnb._checks import shown
from flatnb._files import whole
from flatnb._torchvision import load as load_torchvision

_DECODER = 3  # part of the cache's key; to be raised when decoding changes


class Pixels(NamedTuple):
    """Images as bytes, uint8 (n, channels, height, width), with labels, int64 (n,)."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: tuple[str, ...]


def read_folder(folder: Path, size: int | None, cache: Path) -> Pixels:
    """All images of a folder, from the cache if it has them, else decoded.

    What counts as an image, and as a class, is decided by torchvision's ImageFolder;
    hidden files are skipped. Pixels are grey (one channel) if every image is, else RGB;
    transparency is dropped, the EXIF orientation applied.

    Args:
        folder: holds ``train`` and ``test``.
        size: crop the middle square of each image and resize it to this many pixels per
            side (bilinear, antialiased). None: all images must have one size.
        cache: the tensors are kept in its folder ``folders``, if that can be written.

    Raises:
        FileNotFoundError: no ``train`` or ``test``, or a class without images.
        ValueError: fewer than two classes, other classes in test than in train, a file
            that cannot be read, or different sizes.
    """
    if not (folder / "train").is_dir() or not (folder / "test").is_dir():
        raise FileNotFoundError(
            f"folder={folder}; allowed: a folder with train/<class>/* and "
            "test/<class>/*; unpack an archive first"
        )
    kind = load_torchvision().datasets.ImageFolder
    train, test = (
        kind(folder / part, is_valid_file=_is_image) for part in ("train", "test")
    )
    if len(train.classes) < 2 or train.classes != test.classes:
        raise ValueError(
            f"folder={folder} has classes {shown(train.classes)} in train and "
            f"{shown(test.classes)} in test; allowed: the same in both, two or more"
        )
    paths, labels = zip(*train.samples, *test.samples, strict=True)
    key = _key(paths, labels, size)
    place = hashlib.sha256(f"{folder.resolve()} {size}".encode()).hexdigest()[:12]
    file = cache / "folders" / f"{folder.name}-{place}.pt"
    cached = _load(file, key)
    if cached is not None:
        return cached
    x, y = _decode_all(paths, size), torch.tensor(labels)
    n = len(train)
    pixels = Pixels(x[:n], y[:n], x[n:], y[n:], tuple(train.classes))
    with contextlib.suppress(OSError, RuntimeError):  # torch's error of a full disk
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole(file, "wb") as opened:
            torch.save({"key": key, "pixels": tuple(pixels)}, opened)
    return pixels


def _is_image(path: str) -> bool:
    suffixes = load_torchvision().datasets.folder.IMG_EXTENSIONS
    name = Path(path).name.lower()
    return name.endswith(suffixes) and not name.startswith(".")


def _key(paths: Sequence[str], labels: Sequence[int], size: int | None) -> str:
    """What the cache is valid for: the images, their labels and how they are read."""
    digest = hashlib.sha256(f"decoder {_DECODER}, size {size}".encode())
    for path, label in zip(paths, labels, strict=True):
        with _named(path):
            stat = Path(path).stat()
        stamp = f"\n{path}\0{label}\0{stat.st_size}\0{stat.st_mtime_ns}"
        digest.update(stamp.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _load(file: Path, key: str) -> Pixels | None:
    # Absent, cut short, of another version, or a pickle that would run code.
    with contextlib.suppress(Exception):
        content = torch.load(file, weights_only=True)
        if content["key"] == key:
            return Pixels(*content["pixels"])
    return None


def _decode_all(paths: Sequence[str], size: int | None) -> Tensor:
    """uint8 (n, channels, height, width)."""
    with ThreadPoolExecutor() as pool:  # decoding releases the interpreter's lock
        arrays = list(pool.map(partial(_decode, size=size), paths))
    height, width = arrays[0].shape[:2]
    channels = max(array.shape[2] for array in arrays)
    x = torch.empty(len(arrays), channels, height, width, dtype=torch.uint8)
    for i, array in enumerate(arrays):
        if array.shape[:2] != (height, width):
            raise ValueError(
                f"size=None: {paths[0]} is {width} x {height} pixels, {paths[i]} is "
                f"{array.shape[1]} x {array.shape[0]}; give size= to resize all"
            )
        x[i] = torch.from_numpy(array).movedim(2, 0)
    return x


def _decode(path: str, size: int | None) -> np.ndarray:
    """uint8 (height, width, 1) or (height, width, 3)."""
    from PIL import Image, ImageOps

    with _named(path), Image.open(path) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"mode {image.mode}; allowed: 8 bits per channel")
        turned: Image.Image = image
        if image.format != "TIFF":  # Pillow turns those itself
            with contextlib.suppress(Exception):  # broken EXIF data
                turned = ImageOps.exif_transpose(image)
        pixels = turned.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
        if size is not None:
            # What is resized is the square alone, however long the image.
            short = min(pixels.size)
            x, y = ((side - short) / 2 for side in pixels.size)
            box = (x, y, x + short, y + short)
            pixels = pixels.resize((size, size), Image.Resampling.BILINEAR, box=box)
        return np.array(pixels).reshape(pixels.height, pixels.width, -1)


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    """Any error as a ValueError with the path: each decoder fails in its own way."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read ({error}); fix or remove it"
        ) from error
