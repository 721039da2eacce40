"""Splits, data sets, and batches: each one `index_select`, augmented as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatnb._checks import instance, integer, sequence, shown

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """Examples and their labels, indexed along the examples.

    >>> split = Split(torch.rand(5, 2), torch.tensor([0, 1, 1, 0, 1]))
    >>> len(split[split.y == 1]), len(split[:2])
    (3, 2)

    Attributes:
        x: floating point, or token ids in int64, (n, ...); or (members, n, ...), one
            set per member.
        y: class indices, int64, (n,); or (members, n).
    """

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        x = instance("x", self.x, Tensor, "a tensor of floating point or int64")
        y = instance("y", self.y, Tensor, "a tensor of int64")
        numbers = x.is_floating_point() or x.dtype == torch.int64
        if not numbers or y.dtype != torch.int64:
            raise TypeError(
                f"x.dtype={x.dtype}, y.dtype={y.dtype}; allowed: for x floating point "
                "or, of token ids, int64; for y int64"
            )
        if y.dim() not in (1, 2) or x.shape[: y.dim()] != y.shape or not y.numel():
            raise ValueError(
                f"x.shape={tuple(x.shape)}, y.shape={tuple(y.shape)}; allowed: at least "
                "one example, (n, ...) and (n,), or (members, n, ...) and (members, n)"
            )

    def __len__(self) -> int:
        """Number of examples, for each member."""
        return self.y.shape[-1]

    def __getitem__(self, index: slice | Tensor | Sequence[int]) -> Split:
        """The examples of a slice, or of a list or tensor of indices or booleans."""
        if self.members is None:
            return Split(self.x[index], self.y[index])
        return Split(self.x[:, index], self.y[:, index])

    @property
    def members(self) -> int | None:
        """Size of the member axis, or None without one."""
        return self.y.shape[0] if self.y.dim() == 2 else None

    def to(self, device: torch.device | str) -> Split:
        """The same split on `device`."""
        return Split(self.x.to(device), self.y.to(device))


@dataclass(frozen=True)
class Data:
    """A classification task: three splits, and how batches are drawn from the first.

    >>> split = Split(torch.rand(5, 2), torch.tensor([0, 1, 1, 0, 1]))
    >>> data = Data("toy", split, split, split, classes=("no", "yes"), batch_size=2)
    >>> [len(y) for x, y in data.batches(torch.Generator())]
    [2, 2]

    Attributes:
        name: as tables and records show it.
        val: what hyperparameters are chosen by; `test` is what is reported.
        classes: the names of classes 0, 1, ...
        batch_size: examples per batch, for each member.
        augment: called in turn on each training batch; see `flatnb.data.augment`.

    Raises:
        TypeError, ValueError: splits that do not fit together, labels out of range.
    """

    name: str
    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    batch_size: int = 128
    augment: Sequence[Callable[[Tensor, torch.Generator], Tensor]] = ()

    def __post_init__(self) -> None:
        integer("batch_size", self.batch_size)
        for name in SPLITS:
            split = instance(name, getattr(self, name), Split, "a Split")
            shape, expected = split.x.shape, self.train.x.shape
            axes = split.y.dim()
            if split.members != self.train.members or shape[axes:] != expected[axes:]:
                raise ValueError(
                    f"{name}.x.shape={tuple(shape)}; allowed: that of train, "
                    f"{tuple(expected)}, but for the number of examples"
                )
            low, high = int(split.y.min()), int(split.y.max())
            if low < 0 or high >= len(self.classes):
                allowed = f"in [0, {len(self.classes)}), the number of classes"
                raise ValueError(f"{name}.y is in [{low}, {high}]; allowed: {allowed}")

    @property
    def steps(self) -> int:
        """Batches per epoch."""
        full, remainder = divmod(len(self.train), self.batch_size)
        return full + (remainder > 1)

    def to(self, device: torch.device | str) -> Data:
        """The same data on `device`."""
        splits: Any = {name: getattr(self, name).to(device) for name in SPLITS}
        return replace(self, **splits)

    def batches(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of (x, y), shuffled by `generator` and augmented.

        The last batch may be short; a single example left over is not used: BatchNorm
        cannot train on one. The generator is on the CPU, so that an epoch is the same
        on every device. All members see the same permutation and augmentation.
        """
        return ((x, y) for _, x, y in self.index_batches(generator))

    def index_batches(
        self, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """As `batches`, with the indices of the examples, int64 (n,): (index, x, y)."""
        x, y = self.train.x, self.train.y
        axis = y.dim() - 1
        order = torch.randperm(len(self.train), generator=generator).to(y.device)
        for index in order.split(self.batch_size)[: self.steps]:
            batch = x.index_select(axis, index)
            yield index, self._augmented(batch, generator), y.index_select(axis, index)

    def _augmented(self, x: Tensor, generator: torch.Generator) -> Tensor:
        if not self.augment:
            return x
        state = generator.get_state()
        augmented = []
        for part in [x] if self.train.members is None else x:
            generator.set_state(state)
            for step in self.augment:
                part = step(part, generator)
            augmented.append(part)
        return augmented[0] if self.train.members is None else torch.stack(augmented)


def stack(parts: Sequence[Data]) -> Data:
    """Data sets of equal sizes as one with a leading member axis, for an `Ensemble`.
    Names that differ are joined by commas.

    >>> from flatnb.data import plane, stack
    >>> stack([plane("spiral", seed=seed) for seed in range(3)]).train.x.shape
    torch.Size([3, 100, 2])

    Raises:
        ValueError, RuntimeError: no parts, one with a member axis, or parts that differ.
    """
    parts = sequence("parts", parts, Data, "a list of Data")
    shared = [(part.classes, part.batch_size, part.augment) for part in parts]
    if not parts or any(entry != shared[0] for entry in shared):
        raise ValueError(
            f"parts have classes, batch size and augmentation {shown(shared)}; allowed: "
            "at least one part, all with the same"
        )
    splits: dict[str, Any] = {}
    for name in SPLITS:
        x = torch.stack([getattr(part, name).x for part in parts])
        y = torch.stack([getattr(part, name).y for part in parts])
        splits[name] = Split(x, y)
    names = dict.fromkeys(part.name for part in parts)
    return replace(parts[0], name=", ".join(names), **splits)


def stratified(y: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of two parts of the labels y (n,), in order: the second has this fraction
    of each class.

    >>> [part.tolist() for part in stratified(torch.tensor([0, 0, 1, 1]), 0.5, seed=0)]
    [[1, 2], [0, 3]]
    """
    from sklearn.model_selection import train_test_split

    first, second = train_test_split(
        np.arange(len(y)), test_size=fraction, stratify=y.numpy(), random_state=seed
    )
    return torch.from_numpy(np.sort(first)), torch.from_numpy(np.sort(second))
