"""Image data sets: the digit scans of scikit-learn, torchvision's sets, and folders of
images.

Pixels are normalised per channel, :math:`(p - m_c) / s_c`, with mean and standard
deviation over the training part (validation images are not part of it). Images are
float32 (n, channels, height, width).
"""

from __future__ import annotations

import contextlib
import difflib
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatnb._checks import instance, integer, number, shown
from flatnb._torchvision import load as load_torchvision
from flatnb.data.base import Data, Split
from flatnb.data.folder import Pixels, read_folder

BUILT_IN = ("digits", "MNIST", "FashionMNIST", "CIFAR10", "CIFAR100", "SVHN")
_LARGEST = 1 << 14  # pixels of a side
_TEST_FRACTION = 0.2  # of the digits, which have no test set of their own


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
    stratified 20 % of them are the test set, whatever the seed). "MNIST",
    "FashionMNIST", "CIFAR10", "CIFAR100" and "SVHN" are read by torchvision from
    `root`, and downloaded to it if they are not there (with progress and checksums).
    Any other name takes a `folder` with ``train/<class>/*`` and ``test/<class>/*``; it
    is decoded once and then read from one file, in `root` if that is given, else in the
    user's cache folder.

    Args:
        name: as tables and records show it. Built-in names may be spelled in any case
            and with hyphens; a folder needs a name that is no spelling of one of them.
        folder: a folder of images.
        root: where data sets lie. If not given, the environment variable FLATNB_DATA;
            if that is not set, the user's cache folder ($XDG_CACHE_HOME/flatnb, else
            ~/.cache/flatnb).
        val_fraction: share of the training set that becomes the validation set, in (0,
            1), the same of each class up to rounding.
        n_train: as many training images, drawn by the seed without replacement after the
            set is split and normalized. None: all.
        n_val: likewise of the validation images.
        n_test: likewise of the test images, which are the same under every seed.
        label_noise: probability, in [0, 1), that the label of a training image is
            redrawn, uniformly over all classes.
        seed: of the validation split, the images drawn and the label noise.
        batch_size: of training batches.
        augment: see `flatnb.data.Data` and `flatnb.data.augment`.
        size: for folders: crop the middle square and resize it to so many pixels a
            side.

    Raises:
        ValueError, TypeError: an unknown name, a folder under a built-in name, an
            option out of range, a folder of images that cannot be used, or a class of
            one training image.
        FileNotFoundError: a folder that is not there, or a data set that is neither
            there nor can be downloaded.
    """
    instance(
        "name",
        name,
        str,
        f"text: {', '.join(BUILT_IN)}, or one of your own with folder=",
    )
    val_fraction = number("val_fraction", val_fraction, "a share in (0, 1)", 0, 1)
    label_noise = number(
        "label_noise", label_noise, "a share in [0, 1)", 0, 1, closed=True
    )
    seed = integer("seed", seed, 0, 2**32)
    batch_size = integer("batch_size", batch_size)
    for label, place in (("folder", folder), ("root", root)):
        _check_place(label, place)
    if size is not None:
        size = integer("size", size, 1, _LARGEST)
        if folder is None:
            raise ValueError(
                f"size={size} is for image folders; the built-in sets keep their size"
            )
    if augment is not None and not callable(augment):
        raise TypeError(
            f"augment={shown(augment)}; allowed: a function (x, generator) -> x"
        )
    if folder is not None:
        _check_own(name)
        # FLATNB_DATA may be shared by many: what is derived from it goes to the user's
        # own cache.
        cache = _user_cache() if root is None else Path(root).expanduser()
        pixels = read_folder(Path(folder).expanduser(), size, cache)
    else:
        name = _built_in(name)
        pixels = _digits() if name == "digits" else _from_torchvision(name, _root(root))
    train, val = _validation_split(pixels.train_y, val_fraction, seed)
    mean, std = _statistics(pixels.train_x[train])
    random = torch.Generator().manual_seed(seed)
    train = train[_drawn("n_train", n_train, len(train), random)]
    val = val[_drawn("n_val", n_val, len(val), random)]
    test = _drawn(
        "n_test", n_test, len(pixels.test_y), torch.Generator().manual_seed(0)
    )
    labels = _redrawn(pixels.train_y[train], label_noise, len(pixels.classes), random)
    return Data(
        name,
        Split(_normalised(pixels.train_x[train], mean, std), labels),
        Split(_normalised(pixels.train_x[val], mean, std), pixels.train_y[val]),
        Split(_normalised(pixels.test_x[test], mean, std), pixels.test_y[test]),
        classes=pixels.classes,
        batch_size=batch_size,
        augment=augment,
    )


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


def _check_place(name: str, value: object) -> None:
    if value is None:
        return
    allowed = "the path of a folder"
    if not instance(name, value, (str, Path), allowed) or "\0" in str(value):
        raise ValueError(f"{name}={shown(value)}; allowed: {allowed}")


def _spelling(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


_SPELLINGS = {_spelling(name): name for name in BUILT_IN}


def _built_in(name: str) -> str:
    if _spelling(name) in _SPELLINGS:
        return _SPELLINGS[_spelling(name)]
    close = difflib.get_close_matches(_spelling(name), _SPELLINGS, n=1)
    raise ValueError(
        f"no data set {name!r}{f' (did you mean {_SPELLINGS[close[0]]}?)' if close else ''}; "
        f"allowed: {', '.join(BUILT_IN)}, or a name of your own with folder="
    )


def _check_own(name: str) -> None:
    if _spelling(name) in _SPELLINGS or not _spelling(name):
        raise ValueError(
            f"name={name!r} for a folder of images; give a name of its own, such as "
            f"'my-images', not one of {', '.join(BUILT_IN)}: results on other files must not be "
            "mixed with theirs"
        )


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flatnb"


def _root(root: str | Path | None) -> Path:
    chosen = (
        root if root is not None else os.environ.get("FLATNB_DATA") or _user_cache()
    )
    return Path(chosen).expanduser()


def _digits() -> Pixels:
    from sklearn.datasets import load_digits

    scans = load_digits()
    x = torch.from_numpy(scans.images.astype(np.uint8))[:, None]
    y = torch.from_numpy(scans.target.astype(np.int64))
    train, test = _validation_split(y, _TEST_FRACTION, seed=0)
    return Pixels(x[train], y[train], x[test], y[test], tuple("0123456789"))


def _from_torchvision(name: str, root: Path) -> Pixels:
    load_torchvision()  # its own errors are no sign of missing files
    with contextlib.suppress(
        Exception
    ):  # absent, or broken in any way: the remedy is the same
        return _read(name, root)
    try:
        _download(name, root)
        return _read(name, root)
    except (
        Exception
    ) as error:  # no network, wrong checksum, full disk, read-only folder
        raise FileNotFoundError(
            f"{name} is not in {root}, or not whole, and could not be downloaded "
            f"({_one_line(error)}). Connect to the network, or set FLATNB_DATA (or root=) to a "
            "folder that has it, or use 'digits', which needs no download"
        ) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _read(name: str, root: Path) -> Pixels:
    train, test = (
        _torchvision_split(name, root, part, download=False) for part in (True, False)
    )
    classes = getattr(train, "classes", None)
    if name in (
        "MNIST",
        "SVHN",
    ):  # torchvision has "0 - zero" for the one, none for the other
        classes = list("0123456789")
    assert classes is not None
    return Pixels(*_tensors(train), *_tensors(test), tuple(classes))


def _torchvision_split(name: str, root: Path, train: bool, download: bool) -> Any:
    kind = getattr(load_torchvision().datasets, name)
    which = (
        {"split": "train" if train else "test"} if name == "SVHN" else {"train": train}
    )
    return kind(root, **which, download=download)


def _tensors(dataset: Any) -> tuple[Tensor, Tensor]:
    x = torch.as_tensor(dataset.data)
    y = torch.as_tensor(
        dataset.labels if hasattr(dataset, "labels") else dataset.targets
    )
    if x.dim() == 3:
        x = x[:, None]
    elif x.shape[-1] == 3:
        x = x.permute(0, 3, 1, 2)
    return x, y.long()


def _download(name: str, root: Path) -> None:
    """Download aside, then move in whole files.

    torchvision takes any file it finds unpacked for a whole one, so it must not unpack
    where an interruption, or a second process that downloads the same, could leave or
    meet half a file.
    """
    root.mkdir(parents=True, exist_ok=True)
    print(f"downloading {name} to {root}")
    with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as aside:
        for train in (True, False):
            _torchvision_split(name, Path(aside), train, download=True)
        for file in Path(aside).rglob("*"):
            if (
                file.is_file() and file.suffix != ".gz"
            ):  # the archives are not needed again
                place = root / file.relative_to(aside)
                place.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, place)


def _validation_split(y: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the two parts in their order in the set, each class shared out alike."""
    from sklearn.model_selection import train_test_split

    counts = y.bincount()
    kept, classes = math.ceil(fraction * len(y)), int((counts > 0).sum())
    if (few := int(counts[counts > 0].min())) < 2:
        raise ValueError(
            f"class {int((counts == few).nonzero()[0])} has {few} training image, and val_fraction="
            f"{fraction} shares out each class; allowed: at least 2 of each"
        )
    if min(kept, len(y) - kept) < classes:
        raise ValueError(
            f"val_fraction={fraction} makes {kept} of {len(y)} training images the validation set; "
            f"allowed: what leaves at least one image of each of the {classes} classes in both"
        )
    parts = train_test_split(
        np.arange(len(y)), test_size=fraction, stratify=y.numpy(), random_state=seed
    )
    train, val = (torch.from_numpy(np.sort(part)) for part in parts)
    return train, val


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of bytes, exact from their counts."""
    values = torch.arange(256, dtype=torch.float64)
    mean, std = [], []
    for channel in x.unbind(1):
        share = (
            torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        )
        m = share @ values
        s = (share @ (values - m).square()).sqrt()
        mean.append(m)
        std.append(
            s if s > 0 else torch.ones_like(s)
        )  # a constant channel becomes zero
    return torch.stack(mean), torch.stack(std)


def _normalised(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    mean, std = (v.float()[:, None, None] for v in (mean, std))
    return (
        x.to(torch.float32, memory_format=torch.contiguous_format).sub_(mean).div_(std)
    )
