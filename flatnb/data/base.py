"""Splits, data sets and batches.

A `Split` is a tensor of examples with its labels; a `Data` is three of them (training,
validation, test) with what a training loop needs to draw batches. A batch is one
`index_select`, augmented as a whole: no loop in Python runs over examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from flatnb._checks import function, instance, integer, place, sequence, shown

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """Examples and their labels, indexed along the examples.

    >>> split = Split(torch.rand(5, 2), torch.tensor([0, 1, 1, 0, 1]))
    >>> len(split[split.y == 1]), len(split[:2])
    (3, 2)

    Attributes:
        x: floating point, (n, ...); or (members, n, ...), one set per member.
        y: class indices, int64, (n,); or (members, n).

    Raises:
        TypeError: x is not a floating-point tensor, or y not an int64 tensor.
        ValueError: no examples, or shapes or devices that do not fit together.
    """

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        x = instance("x", self.x, Tensor, "a torch.Tensor")
        y = instance("y", self.y, Tensor, "a torch.Tensor")
        if not x.is_floating_point():
            raise TypeError(
                f"x.dtype={x.dtype}; allowed: floating point; use x.float()"
            )
        if y.dtype != torch.int64:
            raise TypeError(f"y.dtype={y.dtype}; allowed: torch.int64; use y.long()")
        if y.dim() not in (1, 2) or x.shape[: y.dim()] != y.shape or not y.numel():
            raise ValueError(
                f"x.shape={tuple(x.shape)}, y.shape={tuple(y.shape)}; allowed: at least "
                "one example, x (n, ...) with y (n,), or x (members, n, ...) with y "
                "(members, n)"
            )
        if x.device != y.device:
            raise ValueError(f"x.device={x.device}; allowed: that of y, {y.device}")

    def __len__(self) -> int:
        """Number of examples, for each member."""
        return self.y.shape[-1]

    def __getitem__(self, index: slice | Tensor | Sequence[int]) -> Split:
        """The examples of a slice, or of a list or tensor of indices or booleans."""
        if not isinstance(index, slice):
            index = torch.as_tensor(index, device=self.y.device)
        if self.members is None:
            return Split(self.x[index], self.y[index])
        return Split(self.x[:, index], self.y[:, index])

    @property
    def members(self) -> int | None:
        """Size of the member axis, or None without one."""
        return self.y.shape[0] if self.y.dim() == 2 else None

    def to(self, device: torch.device | str) -> Split:
        """The same split on `device`; nothing is copied if it is there already."""
        device = place(device)
        x, y = self.x.to(device), self.y.to(device)
        return self if x is self.x and y is self.y else Split(x, y)


@dataclass(frozen=True)
class Data:
    """A classification task: three splits, and how batches are drawn from the first.

    >>> split = Split(torch.rand(5, 2), torch.tensor([0, 1, 1, 0, 1]))
    >>> data = Data("toy", split, split, split, classes=("no", "yes"), batch_size=2)
    >>> [len(y) for x, y in data.batches(torch.Generator())]
    [2, 2]

    Attributes:
        name: as tables and records show it.
        train: what is trained on.
        val: what hyperparameters are chosen by.
        test: what is reported.
        classes: the names of classes 0, 1, ...
        batch_size: examples per batch, for each member.
        augment: called as augment(x, generator) on each training batch x (n, ...), with
            a CPU generator whatever the device of x; see `flatnb.data.augment`. None:
            no augmentation.

    Raises:
        TypeError, ValueError: splits that do not fit together, labels outside the
            classes, or a batch size below 1, or above 1 for a single training example.
    """

    name: str
    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    batch_size: int = 128
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None

    def __post_init__(self) -> None:
        instance("name", self.name, str, "text")
        if not sequence("classes", self.classes, str, "names of the classes"):
            raise ValueError(f"classes={self.classes!r}; allowed: at least one name")
        if self.augment is not None:
            function("augment", self.augment, "None, or a function (x, generator) -> x")
        for name in SPLITS:
            instance(name, getattr(self, name), Split, "a Split")
        size = integer("batch_size", self.batch_size)
        if len(self.train) == 1 and size > 1:
            raise ValueError(f"batch_size={size}; allowed for one training example: 1")
        for name in SPLITS:
            self._check_split(name, getattr(self, name))

    def _check_split(self, name: str, split: Split) -> None:
        if split.members != self.members:
            raise ValueError(
                f"{name}.members={split.members}; allowed: that of train, {self.members}"
            )
        axes = split.y.dim()
        shape, expected = split.x.shape[axes:], self.train.x.shape[axes:]
        if shape != expected:
            raise ValueError(
                f"{name} has examples of shape {tuple(shape)}; allowed: that of train, "
                f"{tuple(expected)}"
            )
        low, high = int(split.y.min()), int(split.y.max())
        if low < 0 or high >= len(self.classes):
            raise ValueError(
                f"{name}.y ranges from {low} to {high}; allowed: 0 to "
                f"{len(self.classes) - 1}, for {len(self.classes)} classes"
            )

    @property
    def members(self) -> int | None:
        """Size of the member axis, or None without one."""
        return self.train.members

    @property
    def steps(self) -> int:
        """Batches per epoch."""
        full, remainder = divmod(len(self.train), self.batch_size)
        return full + (remainder > 1 or (remainder == 1 and self.batch_size == 1))

    def to(self, device: torch.device | str) -> Data:
        """The same data on `device`."""
        return replace(
            self, **{name: getattr(self, name).to(device) for name in SPLITS}
        )

    def batches(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of (x, y), shuffled by `generator` and augmented.

        The last batch may be short; a single example that is left over is not used in
        this epoch, unless batch_size is 1, because BatchNorm cannot train on one. All
        members see the same permutation and the same draws of the augmentation.

        Args:
            generator: on the CPU, so that an epoch is the same on every device.
        """
        return ((x, y) for _, x, y in self.index_batches(generator))

    def index_batches(
        self, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """As `batches`, each with the indices of its training examples: (index, x, y).

        `index` is int64, (n,), on the data's device; all members share it.
        """
        instance("generator", generator, torch.Generator, "torch.Generator()")
        x, y = self.train.x, self.train.y
        axis = y.dim() - 1
        order = torch.randperm(len(self.train), generator=generator).to(y.device)
        for index in order.split(self.batch_size)[: self.steps]:
            batch = x.index_select(axis, index)
            yield index, self._augmented(batch, generator), y.index_select(axis, index)

    def _augmented(self, x: Tensor, generator: torch.Generator) -> Tensor:
        if self.augment is None:
            return x
        if self.members is None:
            return self.augment(x, generator)
        state = generator.get_state()
        parts = []
        for part in x:
            generator.set_state(state)
            parts.append(self.augment(part, generator))
        return torch.stack(parts)


def stack(parts: Sequence[Data]) -> Data:
    """Data sets of equal sizes as one with a leading member axis, for an `Ensemble`.

    All members share one permutation in training, as they would if each was trained
    alone with the same generator. Names that differ are joined by commas.

    >>> from flatnb.data import plane, stack
    >>> stack([plane("spiral", seed=seed) for seed in range(3)]).train.x.shape
    torch.Size([3, 100, 2])

    Raises:
        ValueError: nothing to stack, a part with a member axis, or parts that differ in
            classes, batch size or augmentation.
        RuntimeError: parts that differ in sizes.
    """
    parts = sequence("parts", parts, Data, "a list of Data")
    if not parts:
        raise ValueError("parts=[]; allowed: at least one Data")
    for name in ("classes", "batch_size", "augment"):
        values = [getattr(part, name) for part in parts]
        if any(value != values[0] for value in values):
            raise ValueError(f"parts have {name} {shown(values)}; allowed: equal ones")
    splits: dict[str, Any] = {}
    for name in SPLITS:
        x = torch.stack([getattr(part, name).x for part in parts])
        y = torch.stack([getattr(part, name).y for part in parts])
        splits[name] = Split(x, y)
    names = dict.fromkeys(part.name for part in parts)
    return replace(parts[0], name=", ".join(names), **splits)
