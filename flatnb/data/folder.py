"""Image folders: ``train/<class>/*`` and ``test/<class>/*``, read into tensors of
bytes.

Images are decoded by a pool of threads and kept as one file of tensors, so that a
folder is decoded once. The file is keyed by every image's path, size and time of
change.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from stat import S_ISDIR
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flatnb._files import whole

SUFFIXES = (
    ".bmp",
    ".gif",
    ".jpeg",
    ".jpg",
    ".pgm",
    ".png",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)
_ARCHIVES = (".tar", ".tar.gz", ".tar.xz", ".tar.bz2", ".tgz", ".txz", ".zip")
_DECODER = "2: turned by EXIF; the square cropped, then resized"  # to be changed with the decoder
_CHUNK = 256  # images a task of the pool: enough that handing out tasks costs nothing


class Pixels(NamedTuple):
    """Images as bytes, uint8 (n, channels, height, width), with labels, int64 (n,)."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: tuple[str, ...]


class _File(NamedTuple):
    path: str
    label: int
    stamp: str  # what the cache is keyed by


def read_folder(folder: Path, size: int | None, cache: Path) -> Pixels:
    """All images of a folder, from the cache if it has them, else decoded and kept
    there.

    Classes are the folders in ``train``, in alphabetical order; files with other
    suffixes than `SUFFIXES` are passed over. Pixels are grey (one channel) if every
    image is, else RGB; transparency is dropped. An image is turned or mirrored as its
    EXIF orientation says. A cache folder that cannot be written is no error.

    Args:
        folder: holds ``train`` and ``test``.
        size: crop the middle square of each image and resize it to so many pixels a
            side (bilinear, antialiased). None: images are taken as they are and must be
            of one size.
        cache: the tensors are kept in its folder ``folders``.

    Raises:
        FileNotFoundError: no such folder, or none of ``train`` or ``test`` in it.
        ValueError: an archive, fewer than two classes, other classes in test than in
            train, a class without images, a link that leads nowhere, an image that
            cannot be read, or different sizes.

    Warns:
        UserWarning: once, of images so large that Pillow warns of each.
    """
    train, test, classes = _list(folder)
    key = _key(train + test, size)
    name = f"{folder.name}-{hashlib.sha256(f'{folder.resolve()} {size}'.encode()).hexdigest()[:12]}"
    place = cache / "folders" / f"{name}.pt"
    kept = _load(place, key)
    if kept is not None:
        return kept
    x = _decode_all([file.path for file in train + test], size)
    y = torch.tensor([file.label for file in train + test])
    n = len(train)
    pixels = Pixels(x[:n], y[:n], x[n:], y[n:], classes)
    _save(place, key, pixels)
    return pixels


def _list(folder: Path) -> tuple[list[_File], list[_File], tuple[str, ...]]:
    if folder.is_file() and folder.name.lower().endswith(_ARCHIVES):
        raise ValueError(
            f"{folder} is an archive; unpack it, and give the folder it unpacks to"
        )
    for part in (folder, folder / "train", folder / "test"):
        if not part.is_dir():
            raise FileNotFoundError(
                f"no folder {part}; an image folder holds train/<class>/* and test/<class>/*"
            )
    names = {part: _subfolders(folder / part) for part in ("train", "test")}
    if len(names["train"]) < 2:
        raise ValueError(
            f"{folder / 'train'} has {len(names['train'])} class folders"
            f"{' (' + names['train'][0] + ')' if names['train'] else ''}; allowed: at least two"
        )
    if names["train"] != names["test"]:
        odd = sorted(set(names["train"]) ^ set(names["test"]))
        where = "train" if odd[0] in names["train"] else "test"
        raise ValueError(
            f"train and test of {folder} must have the same class folders; {odd[0]!r} is only in "
            f"{where}" + (f", and {len(odd) - 1} more differ" if len(odd) > 1 else "")
        )
    train, test = (
        [f for k, c in enumerate(names[part]) for f in _files(folder / part / c, k)]
        for part in ("train", "test")
    )
    return train, test, tuple(names["train"])


def _subfolders(folder: Path) -> list[str]:
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            with _reading(entry.path):
                # `is_dir` would pass over a link to nothing.
                if not entry.name.startswith(".") and S_ISDIR(entry.stat().st_mode):
                    found.append(entry.name)
    return sorted(found)


@contextlib.contextmanager
def _reading(path: str | Path) -> Iterator[None]:
    """ValueError, with the path, for a link that leads nowhere, or what is not ours to read."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}); mend or remove it"
        ) from None


def _files(folder: Path, label: int) -> list[_File]:
    found = []
    with _reading(folder), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith("."):
                with _reading(entry.path):
                    stat = entry.stat()
                stamp = f"{entry.path}\0{label}\0{stat.st_size}\0{stat.st_mtime_ns}"
                found.append(_File(entry.path, label, stamp))
    if not found:
        raise ValueError(
            f"no images in {folder}; allowed: files ending in {' '.join(SUFFIXES)}"
        )
    return sorted(found)


def _key(files: Sequence[_File], size: int | None) -> str:
    text = "\n".join([_DECODER, f"size={size}", *(file.stamp for file in files)])
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _decode_all(paths: Sequence[str], size: int | None) -> Tensor:
    """uint8 (n, channels, height, width)."""
    with _one_warning():
        return _stacked(paths, size)


@contextlib.contextmanager
def _one_warning() -> Iterator[None]:
    """One for all images of which Pillow warns that they are very large, in place of its own."""
    from PIL import Image

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Image.DecompressionBombWarning)
        yield
    large = [one for one in caught if one.category is Image.DecompressionBombWarning]
    for one in caught:
        if one not in large:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    if large:
        warnings.warn(
            f"{len(large)} images have more than {Image.MAX_IMAGE_PIXELS} pixels; where that is "
            "no mistake, make smaller copies: each is decoded whole",
            stacklevel=2,
        )


def _stacked(paths: Sequence[str], size: int | None) -> Tensor:
    first = _decode(paths[0], size)
    chunks = [paths[i : i + _CHUNK] for i in range(0, len(paths), _CHUNK)]
    read = partial(_decode_chunk, size=size, model=(paths[0], first.shape[:2]))
    with ThreadPoolExecutor() as pool:  # decoding releases the interpreter's lock
        arrays = list(pool.map(read, chunks))
    channels = max(array.shape[-1] for array in arrays)
    return torch.cat([_channels_first(array, channels) for array in arrays])


def _decode_chunk(
    paths: Sequence[str], size: int | None, model: tuple[str, tuple[int, ...]]
) -> np.ndarray:
    images = []
    for path in paths:
        image = _decode(path, size)
        if image.shape[:2] != model[1]:
            (h0, w0), (h, w) = model[1], image.shape[:2]
            raise ValueError(
                f"images of different sizes: {model[0]} is {w0} x {h0} pixels, {path} is {w} x "
                f"{h}; give size= to bring all to one"
            )
        images.append(image)
    channels = max(image.shape[-1] for image in images)
    return np.stack([np.broadcast_to(i, (*i.shape[:2], channels)) for i in images])


def _channels_first(images: np.ndarray, channels: int) -> Tensor:
    images = np.broadcast_to(images, (*images.shape[:3], channels))
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def _decode(path: str, size: int | None) -> np.ndarray:
    """uint8 (height, width, 1) or (height, width, 3)."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"it has mode {image.mode}; allowed: 8 bits a channel")
            kind = "L" if image.mode in ("1", "L", "LA") else "RGB"
            image.load()
            pixels = image if image.mode == kind else image.convert(kind)
            pixels = _turned(pixels, image)
    except (
        Exception
    ) as error:  # each format's reader fails in its own way on a broken file
        raise ValueError(
            f"{path} cannot be read as an image ({error}); mend or remove it"
        ) from error
    if size is not None:
        pixels = _resized(pixels, size)
    array = np.asarray(pixels)
    return array[:, :, None] if array.ndim == 2 else array


def _turned(pixels, image):  # type: ignore[no-untyped-def]  # PIL is imported late
    """Turned or mirrored as the image's EXIF orientation says, 1 to 8."""
    from PIL import ExifTags, Image

    if image.format == "TIFF":  # Pillow turns them itself, and older ones still say so
        return pixels
    orientation = None
    with contextlib.suppress(Exception):  # broken EXIF data say nothing
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    t = Image.Transpose
    turns = {
        2: t.FLIP_LEFT_RIGHT,
        3: t.ROTATE_180,
        4: t.FLIP_TOP_BOTTOM,
        5: t.TRANSPOSE,
        6: t.ROTATE_270,
        7: t.TRANSVERSE,
        8: t.ROTATE_90,
    }
    return pixels.transpose(turns[orientation]) if orientation in turns else pixels


def _resized(image, size: int):  # type: ignore[no-untyped-def]  # PIL is imported late
    """The middle square, resized: what is resized is bounded, however long the image."""
    from PIL import Image

    width, height = image.size
    short = min(width, height)
    left, top = (width - short) / 2, (height - short) / 2
    box = (left, top, left + short, top + short)
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box)


def _load(place: Path, key: str) -> Pixels | None:
    try:
        kept = torch.load(place, weights_only=True)
        return Pixels(*kept["pixels"]) if kept["key"] == key else None
    except (
        Exception
    ):  # absent, cut short or of another version: then the images are decoded
        return None


def _save(place: Path, key: str, pixels: Pixels) -> None:
    # torch reports a full disk as a RuntimeError.
    with contextlib.suppress(OSError, RuntimeError):
        place.parent.mkdir(parents=True, exist_ok=True)
        with whole(place, "wb") as file:
            torch.save({"key": key, "pixels": tuple(pixels)}, file)
