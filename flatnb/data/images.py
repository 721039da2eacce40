"""Image data sets: the digits of scikit-learn, torchvision's sets, and image folders.

Images are float32 (n, channels, height, width), with channels :math:`(p - m_c) / s_c`:
mean and deviation are of the training part, without the validation images.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatnb._checks import choice, integer, number, shown
from flatnb._torchvision import load as load_torchvision
from flatnb.data.base import Data, Split, stratified
from flatnb.data.folder import Pixels, read_folder

_DIGITS = tuple("0123456789")


def images(
    name: str = "digits",
    *,
    folder: str | Path | None = None,
    val_fraction: float = 0.2,
    n_train: int | None = None,
    label_noise: float = 0.0,
    seed: int = 0,
    batch_size: int = 128,
    augment: Sequence[Callable[[Tensor, torch.Generator], Tensor]] = (),
    size: int | None = None,
) -> Data:
    """An image classification task.

    "digits" are 1,797 scans of 8 x 8 pixels from scikit-learn, a fixed, stratified 20 %
    of them for testing. "MNIST", "FashionMNIST", "CIFAR10", "CIFAR100" and "SVHN" are
    read by torchvision from $FLATNB_DATA or ~/.cache/flatnb, downloaded if absent. Any
    other name takes a `folder` with ``train/<class>/*`` and ``test/<class>/*``, or with
    ``<class>/*``, of which the same 20 % are for testing whatever the seed.

    >>> few = images("digits", n_train=300, label_noise=0.2, seed=1)
    >>> few.train.x.shape, len(few.val), len(few.test)
    (torch.Size([300, 1, 8, 8]), 288, 360)

    Args:
        val_fraction: share, in (0, 1), of each training class that is for validation.
        n_train: number of training images, drawn after the split and the normalization.
        label_noise: probability, in [0, 1), that the label of a training image is
            redrawn, uniformly over all classes.
        seed: of the validation split, the images drawn, and the label noise.
        size: for folders: pixels per side, to which the middle square is resized.

    Raises:
        FileNotFoundError: the folder does not exist, or a set cannot be downloaded.
    """
    number("val_fraction", val_fraction, "a share in (0, 1)", 0, 1)
    number("label_noise", label_noise, "a share in [0, 1)", 0, 1, closed=True)
    pixels = _pixels(name, folder, size)
    train, val = stratified(pixels.train_y, val_fraction, seed)
    mean, std = _statistics(pixels.train_x[train])
    random = torch.Generator().manual_seed(seed)
    if n_train is not None:
        integer("n_train", n_train, 1, len(train) + 1)
        train = train[torch.randperm(len(train), generator=random)[:n_train]]
    labels = pixels.train_y[train]
    if label_noise > 0:
        noisy = torch.rand(len(labels), generator=random) < label_noise
        classes = len(pixels.classes)
        labels[noisy] = torch.randint(classes, (int(noisy.sum()),), generator=random)
    return Data(
        name,
        Split(_normalized(pixels.train_x[train], mean, std), labels),
        Split(_normalized(pixels.train_x[val], mean, std), pixels.train_y[val]),
        Split(_normalized(pixels.test_x, mean, std), pixels.test_y),
        classes=pixels.classes,
        batch_size=batch_size,
        augment=augment,
    )


def _pixels(name: str, folder: str | Path | None, size: int | None) -> Pixels:
    if folder is None:
        source = BUILT_IN[choice("name", name, BUILT_IN)]
        if size is not None:
            raise ValueError(f"size={shown(size)}; allowed for {name}: None")
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        root = os.environ.get("FLATNB_DATA") or Path(cache, "flatnb")
        return source(root=Path(root).expanduser())
    # Results on other files must not be mixed with those of a built-in set.
    if name in BUILT_IN:
        raise ValueError(
            f"name={name!r} with a folder; allowed: any but {', '.join(BUILT_IN)}"
        )
    return read_folder(Path(folder).expanduser(), size)


def _digits(root: Path) -> Pixels:
    from sklearn.datasets import load_digits

    scans = load_digits()
    x = torch.from_numpy(scans.images.astype(np.uint8))[:, None]
    y = torch.from_numpy(scans.target.astype(np.int64))
    train, test = stratified(y, 0.2, seed=0)
    return Pixels(x[train], y[train], x[test], y[test], _DIGITS)


def _torchvision(
    name: str,
    classes: tuple[str, ...] | None = None,
    parts: tuple[dict[str, Any], ...] = ({"train": True}, {"train": False}),
    *,
    root: Path,
) -> Pixels:
    """A class of ``torchvision.datasets``, read from a folder or downloaded to it.

    `classes` default to those it names; `parts` its arguments for training and test.
    """
    from filelock import FileLock

    kind = getattr(load_torchvision().datasets, name)

    def read(download: bool) -> Pixels:
        train, test = [kind(root, **part, download=download) for part in parts]
        names = classes or tuple(train.classes)
        return Pixels(*_tensors(train), *_tensors(test), names)

    with contextlib.suppress(Exception):  # absent, or broken in any way
        return read(download=False)
    try:
        root.mkdir(parents=True, exist_ok=True)
        print(f"downloading {name} to {root}")
        with FileLock(root / f".{name}.lock"):  # one process downloads
            return read(download=True)
    except Exception as error:  # no network, checksum, full disk, read-only folder
        raise FileNotFoundError(
            f"{name} is not whole in {root}, and could not be downloaded "
            f"({shown(error)}). Delete what is there of it and connect to the network, "
            "set FLATNB_DATA to a folder that has it, or use 'digits'"
        ) from None


def _tensors(part: Any) -> tuple[Tensor, Tensor]:
    """Images, channels first, and labels of a part of one of torchvision's sets."""
    x = torch.as_tensor(part.data)
    if x.dim() == 3:
        x = x[:, None]
    elif x.shape[-1] == 3:
        x = x.permute(0, 3, 1, 2)
    y = part.labels if hasattr(part, "labels") else part.targets
    return x, torch.as_tensor(y).long()


# How each set's images are read, given a root folder: a row per data set.
BUILT_IN: dict[str, Callable[..., Pixels]] = {
    "digits": _digits,
    "MNIST": partial(_torchvision, "MNIST", _DIGITS),
    "FashionMNIST": partial(_torchvision, "FashionMNIST"),
    "CIFAR10": partial(_torchvision, "CIFAR10"),
    "CIFAR100": partial(_torchvision, "CIFAR100"),
    "SVHN": partial(
        _torchvision, "SVHN", _DIGITS, ({"split": "train"}, {"split": "test"})
    ),
}


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of bytes, exact from their counts."""
    values = torch.arange(256, dtype=torch.float64)
    counts = [channel.flatten().bincount(minlength=256) for channel in x.unbind(1)]
    share = torch.stack(counts).double() / x[:, 0].numel()
    mean = share @ values
    std = (share * (values - mean[:, None]).square()).sum(1).sqrt()
    std[std == 0] = 1  # a constant channel becomes zero
    return mean, std


def _normalized(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    x = x.to(torch.float32, memory_format=torch.contiguous_format)
    return x.sub_(mean.float()[:, None, None]).div_(std.float()[:, None, None])
