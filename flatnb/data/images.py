"""Image data sets: the digits of scikit-learn, torchvision's sets, and image folders.

Pixels are normalized per channel, :math:`(p - m_c) / s_c`, with mean and standard
deviation over the training part (validation images are not part of it). Images are
float32 (n, channels, height, width).

To add a data set, add a row to `BUILT_IN`.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatnb._checks import choice, function, instance, integer, number, shown
from flatnb._torchvision import load as load_torchvision
from flatnb.data.base import Data, Split
from flatnb.data.folder import Pixels, read_folder

_LARGEST = 1 << 14  # pixels per side
_TEST_FRACTION = 0.2  # of the digits, which have no test set of their own
_DIGITS = tuple("0123456789")


def images(
    name: str = "digits",
    *,
    folder: str | Path | None = None,
    root: str | Path | None = None,
    val_fraction: float = 0.2,
    n_train: int | None = None,
    n_val: int | None = None,
    n_test: int | None = None,
    label_noise: float = 0.0,
    seed: int = 0,
    batch_size: int = 128,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    size: int | None = None,
) -> Data:
    """An image classification task.

    "digits" are 1,797 scans of 8 x 8 pixels that come with scikit-learn (a fixed,
    stratified 20 % of them are the test set). "MNIST", "FashionMNIST", "CIFAR10",
    "CIFAR100" and "SVHN" are read by torchvision from `root`, and downloaded to it
    first if necessary. Any other name takes a `folder` with ``train/<class>/*`` and
    ``test/<class>/*``; see `flatnb.data.folder`.

    >>> few = images("digits", n_train=300, label_noise=0.2, seed=1)
    >>> few.train.x.shape, len(few.val), len(few.test)
    (torch.Size([300, 1, 8, 8]), 288, 360)

    Args:
        name: a built-in name, or with `folder` any other one.
        folder: a folder of images.
        root: where built-in sets lie, and the tensors that folders are decoded to.
            None: the user's cache, ~/.cache/flatnb; for built-in sets $FLATNB_DATA, if
            that is set.
        val_fraction: share of the training set that becomes the validation set, in (0,
            1), the same of each class up to rounding.
        n_train: use only this many training images, drawn without replacement after the
            set has been split and normalized. None: all.
        n_val: likewise of the validation images.
        n_test: likewise of the test images, the same under every seed.
        label_noise: probability, in [0, 1), that the label of a training image is
            redrawn, uniformly over all classes.
        seed: of the validation split, the images drawn, and the label noise.
        batch_size: of training batches.
        augment: see `flatnb.data.Data` and `flatnb.data.augment`.
        size: for folders: crop the middle square and resize it to this many pixels per
            side.

    Raises:
        ValueError, TypeError: an unknown name, a folder under a built-in name, an
            option out of range, or a folder of images that cannot be used.
        FileNotFoundError: no such folder, or a set that cannot be downloaded.
    """
    val_fraction = number("val_fraction", val_fraction, "a share in (0, 1)", 0, 1)
    label_noise = number(
        "label_noise", label_noise, "a share in [0, 1)", 0, 1, closed=True
    )
    seed = integer("seed", seed, 0, 2**32)
    batch_size = integer("batch_size", batch_size)
    if augment is not None:
        function("augment", augment, "a function (x, generator) -> x")
    instance("name", name, str, "text")
    pixels = _pixels(name, _path("folder", folder), _path("root", root), size)
    train, val = _validation_split(pixels.train_y, val_fraction, seed)
    mean, std = _statistics(pixels.train_x[train])
    random = torch.Generator().manual_seed(seed)
    train = train[_drawn("n_train", n_train, len(train), random)]
    val = val[_drawn("n_val", n_val, len(val), random)]
    fixed = torch.Generator().manual_seed(0)
    test = _drawn("n_test", n_test, len(pixels.test_y), fixed)
    labels = _redrawn(pixels.train_y[train], label_noise, len(pixels.classes), random)
    return Data(
        name,
        Split(_normalized(pixels.train_x[train], mean, std), labels),
        Split(_normalized(pixels.train_x[val], mean, std), pixels.train_y[val]),
        Split(_normalized(pixels.test_x[test], mean, std), pixels.test_y[test]),
        classes=pixels.classes,
        batch_size=batch_size,
        augment=augment,
    )


def _path(name: str, value: object) -> Path | None:
    if value is None:
        return None
    allowed = "the path of a folder"
    if "\0" in str(instance(name, value, (str, Path), allowed)):
        raise ValueError(f"{name}={shown(value)}; allowed: {allowed}")
    return Path(str(value)).expanduser()


def _pixels(
    name: str, folder: Path | None, root: Path | None, size: int | None
) -> Pixels:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flatnb"
    if folder is None:
        source = BUILT_IN[choice("name", name, BUILT_IN)]
        if size is not None:
            raise ValueError(f"size={shown(size)}; allowed for {name}: None")
        shared = os.environ.get("FLATNB_DATA")
        return source(root or (Path(shared).expanduser() if shared else cache))
    # Results on other files must not be mixed with those of a built-in set.
    if name in BUILT_IN:
        raise ValueError(
            f"name={shown(name)} with folder={folder}; allowed: any but "
            f"{', '.join(BUILT_IN)}"
        )
    if size is not None:
        size = integer("size", size, 1, _LARGEST)
    return read_folder(folder, size, root or cache)


def _digits(root: Path) -> Pixels:
    from sklearn.datasets import load_digits

    scans = load_digits()
    x = torch.from_numpy(scans.images.astype(np.uint8))[:, None]
    y = torch.from_numpy(scans.target.astype(np.int64))
    train, test = _validation_split(y, _TEST_FRACTION, seed=0)
    return Pixels(x[train], y[train], x[test], y[test], _DIGITS)


@dataclass(frozen=True)
class Torchvision:
    """A data set of torchvision, read from a root folder or downloaded to it.

    Attributes:
        name: the class in ``torchvision.datasets``.
        train: its arguments for the training part.
        test: its arguments for the test part.
        labels: its attribute that has the labels.
        classes: the names of the classes. None: those of its attribute ``classes``.
    """

    name: str
    train: dict[str, Any] = field(default_factory=lambda: {"train": True})
    test: dict[str, Any] = field(default_factory=lambda: {"train": False})
    labels: str = "targets"
    classes: tuple[str, ...] | None = None

    def __call__(self, root: Path) -> Pixels:
        load_torchvision()  # its own errors are no sign of missing files
        with contextlib.suppress(Exception):  # absent, or broken in any way
            return self._read(root)
        try:
            self._download(root)
            return self._read(root)
        except Exception as error:  # no network, checksum, full disk, read-only folder
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise FileNotFoundError(
                f"{self.name} is not in {root}, or not whole, and could not be "
                f"downloaded ({reason}). Connect to the network, set FLATNB_DATA (or "
                "root=) to a folder that has it, or use 'digits'"
            ) from None

    def _read(self, root: Path) -> Pixels:
        train = self._part(root, self.train, download=False)
        test = self._part(root, self.test, download=False)
        classes = tuple(self.classes or train.classes)
        return Pixels(*self._tensors(train), *self._tensors(test), classes)

    def _part(self, root: Path, options: dict[str, Any], download: bool) -> Any:
        kind = getattr(load_torchvision().datasets, self.name)
        return kind(root, **options, download=download)

    def _tensors(self, part: Any) -> tuple[Tensor, Tensor]:
        x = torch.as_tensor(part.data)
        if x.dim() == 3:
            x = x[:, None]
        elif x.shape[-1] == 3:
            x = x.permute(0, 3, 1, 2)
        return x, torch.as_tensor(getattr(part, self.labels)).long()

    def _download(self, root: Path) -> None:
        """Download aside, then move in whole files.

        torchvision takes any unpacked file for a whole one, so it must not unpack where
        an interruption, or a second process, could leave or meet half a file.
        """
        root.mkdir(parents=True, exist_ok=True)
        print(f"downloading {self.name} to {root}")
        with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as aside:
            for options in (self.train, self.test):
                self._part(Path(aside), options, download=True)
            for file in Path(aside).rglob("*"):
                if file.is_file() and file.suffix != ".gz":  # archives are not needed
                    place = root / file.relative_to(aside)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(file, place)


# How each set's images are read from a root folder.
BUILT_IN: dict[str, Callable[[Path], Pixels]] = {
    "digits": _digits,
    "MNIST": Torchvision("MNIST", classes=_DIGITS),
    "FashionMNIST": Torchvision("FashionMNIST"),
    "CIFAR10": Torchvision("CIFAR10"),
    "CIFAR100": Torchvision("CIFAR100"),
    "SVHN": Torchvision(
        "SVHN", {"split": "train"}, {"split": "test"}, "labels", _DIGITS
    ),
}


def _drawn(
    name: str, n: int | None, available: int, random: torch.Generator
) -> Tensor | slice:
    """Positions of n examples drawn without replacement; all, in order, where n is None."""
    if n is None:
        return slice(None)
    n = integer(name, n, 1, available + 1)
    return torch.randperm(available, generator=random)[:n]


def _redrawn(y: Tensor, share: float, classes: int, random: torch.Generator) -> Tensor:
    """Labels of which each is redrawn over all classes with probability `share`."""
    if share == 0:
        return y
    y = y.clone()
    noisy = torch.rand(len(y), generator=random) < share
    y[noisy] = torch.randint(classes, (int(noisy.sum()),), generator=random)
    return y


def _validation_split(y: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of two parts, in order, with the same share of each class."""
    from sklearn.model_selection import train_test_split

    try:
        parts = train_test_split(
            np.arange(len(y)), test_size=fraction, stratify=y.numpy(), random_state=seed
        )
    except ValueError as error:  # too few images of a class
        raise ValueError(
            f"val_fraction={fraction} cannot split {len(y)} training images: {error}"
        ) from None
    train, val = (torch.from_numpy(np.sort(part)) for part in parts)
    return train, val


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of bytes, exact from their counts."""
    values = torch.arange(256, dtype=torch.float64)
    means, deviations = [], []
    for channel in x.unbind(1):
        counts = torch.bincount(channel.flatten(), minlength=256)
        share = counts.double() / channel.numel()
        mean = share @ values
        deviation = (share @ (values - mean).square()).sqrt()
        means.append(mean)
        # A constant channel becomes zero.
        deviations.append(deviation if deviation > 0 else torch.ones_like(deviation))
    return torch.stack(means), torch.stack(deviations)


def _normalized(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    mean, std = (v.float()[:, None, None] for v in (mean, std))
    x = x.to(torch.float32, memory_format=torch.contiguous_format)
    return x.sub_(mean).div_(std)
