"""Splits, data sets and batches.

A :class:`Split` is a tensor of examples with its labels; a :class:`Data` is three of
them (training, validation, test) with what a training loop needs to draw batches.
Batches are taken by
one `index_select` each and augmented as batches: nothing is done example by example in
    Python.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from flatnb._checks import function, instance, integer, place, sequence, shown


@dataclass(frozen=True)
class Split:
    """Examples and their labels.

    Attributes:
        x: floating point, (n, ...); or (members, n, ...), a set of its own for each
            member.
        y: class indices, int64, (n,); or (members, n).

    Raises:
        TypeError: x is not a floating-point tensor, or y not an int64 tensor.
        ValueError: no examples, or shapes or devices of x and y that do not fit
            together.
    """

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        for name, value in (("x", self.x), ("y", self.y)):
            instance(name, value, Tensor, "a torch.Tensor")
        if not self.x.is_floating_point():
            raise TypeError(
                f"x has dtype {self.x.dtype}; allowed: floating point. Use x.float()"
            )
        if self.y.dtype != torch.int64:
            raise TypeError(
                f"y has dtype {self.y.dtype}; allowed: torch.int64. Use y.long()"
            )
        if self.y.dim() not in (1, 2) or self.x.shape[: self.y.dim()] != self.y.shape:
            raise ValueError(
                f"x of shape {tuple(self.x.shape)} with y of shape {tuple(self.y.shape)}; allowed: "
                "x (n, ...) with y (n,), or x (members, n, ...) with y (members, n)"
            )
        if self.y.numel() == 0:
            raise ValueError(
                f"y has shape {tuple(self.y.shape)}: a split needs an example"
            )
        if self.x.device != self.y.device:
            raise ValueError(
                f"x is on {self.x.device} and y on {self.y.device}; move one of them"
            )

    def __len__(self) -> int:
        """Number of examples, for each member."""
        return self.y.shape[-1]

    def __getitem__(self, index: slice | Tensor | Sequence[int]) -> Split:
        """The examples of a slice, a list of indices, or a tensor of indices or
        booleans.

        With a member axis, the same positions are taken from every member.
        """
        if not isinstance(index, slice):
            index = self._positions(index)
        if self.members is None:
            return Split(self.x[index], self.y[index])
        return Split(self.x[:, index], self.y[:, index])

    def _positions(self, index: Tensor | Sequence[int]) -> Tensor:
        allowed = (
            "a slice, or a list or 1-d tensor of integers or booleans, not all False"
        )
        try:
            positions = torch.as_tensor(index, device=self.y.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"index={shown(index)}; allowed: {allowed}") from error
        if (
            positions.dim() != 1
            or positions.is_floating_point()
            or positions.is_complex()
        ):
            raise TypeError(f"index={shown(index)}; allowed: {allowed}")
        if not positions.numel() or (
            positions.dtype == torch.bool and not positions.any()
        ):
            raise ValueError(
                f"index={shown(index)} takes no example; allowed: {allowed}"
            )
        return positions

    @property
    def members(self) -> int | None:
        """Size of the member axis, or None where there is none."""
        return self.y.shape[0] if self.y.dim() == 2 else None

    def to(self, device: torch.device | str) -> Split:
        """The same split on `device`; itself if it is there."""
        device = place(device)
        x, y = self.x.to(device), self.y.to(device)
        return self if x is self.x and y is self.y else Split(x, y)


@dataclass(frozen=True)
class Data:
    """A classification task: three splits, and how batches are drawn from the first.

    Attributes:
        name: as tables and records show it.
        train: what is trained on.
        val: what hyperparameters are chosen by.
        test: what is reported.
        classes: the names of classes 0, 1, ...
        batch_size: examples in a batch, for each member.
        augment: called as augment(x, generator) on each training batch x (n, ...), with
            a CPU generator whatever the device of x; see `flatnb.data.augment`. None:
            no augmentation.

    Raises:
        TypeError, ValueError: splits that do not fit together, labels outside the
            classes, or a batch size below 1, or above 1 for a training set of one
            example.
    """

    name: str
    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    batch_size: int = 128
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None

    def __post_init__(self) -> None:
        size = integer("batch_size", self.batch_size)
        instance("name", self.name, str, "text")
        if not sequence("classes", self.classes, str, "names of the classes"):
            raise ValueError(
                f"classes={self.classes!r}; allowed: the name of at least one class"
            )
        if self.augment is not None:
            function("augment", self.augment, "None, or a function (x, generator) -> x")
        for name in ("train", "val", "test"):
            instance(name, getattr(self, name), Split, "a Split")
        if len(self.train) == 1 and size > 1:
            raise ValueError(
                f"one training example with batch_size={size}: a batch of one is left out unless "
                "batch_size=1"
            )
        for name in ("train", "val", "test"):
            self._check_split(name, getattr(self, name))

    def _check_split(self, name: str, split: Split) -> None:
        if split.members != self.members:
            raise ValueError(
                f"{name} has a member axis of {split.members}, train of {self.members}; they must "
                "agree (None: no such axis)"
            )
        axes = split.y.dim()
        if split.x.shape[axes:] != self.train.x.shape[axes:]:
            raise ValueError(
                f"an example has shape {tuple(split.x.shape[axes:])} in {name} and "
                f"{tuple(self.train.x.shape[axes:])} in train; they must agree"
            )
        low, high = int(split.y.min()), int(split.y.max())
        if low < 0 or high >= len(self.classes):
            raise ValueError(
                f"labels of {name} range from {low} to {high}; allowed: 0 to "
                f"{len(self.classes) - 1}, for {len(self.classes)} classes"
            )

    @property
    def members(self) -> int | None:
        """Size of the member axis, or None where there is none."""
        return self.train.members

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        full, rest = divmod(len(self.train), self.batch_size)
        return full + (rest > 1 or (rest == 1 and self.batch_size == 1))

    def to(self, device: torch.device | str) -> Data:
        """The same data on `device`."""
        device = place(device)
        train, val, test = (
            self.train.to(device),
            self.val.to(device),
            self.test.to(device),
        )
        return replace(self, train=train, val=val, test=test)

    def batches(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of (x, y), shuffled by `generator` and augmented.

        The last batch may be short. If a single example is left over it is not used in
        this
        epoch, unless batch_size is 1: BatchNorm cannot train on one. With a member
            axis, all
        members see the same permutation and the same draws of the augmentation, so each
        is trained as it would be on its own part of the data with the same generator.

        Args:
            generator: on the CPU, so that an epoch is the same on every device.

        Raises:
            ValueError: a generator on another device.
        """
        return ((x, y) for _, x, y in self.index_batches(generator))

    def index_batches(
        self, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """As `batches`, each with the indices of its training examples: (index, x, y).

        `index` is int64, (n,), on the data's device; all members share it.
        """
        if not isinstance(getattr(generator, "device", None), torch.device):
            raise TypeError(f"generator={shown(generator)}; allowed: torch.Generator()")
        if generator.device.type != "cpu":
            raise ValueError(
                f"the generator is on {generator.device}; allowed: torch.Generator()"
            )
        return self._batches(generator)

    def _batches(
        self, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
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

    Raises:
        ValueError: nothing to stack, a part that has a member axis already, or parts
            that differ in sizes, classes, batch size or augmentation.
    """
    parts = sequence("parts", parts, Data, "a list of Data")
    if not parts:
        raise ValueError("parts=[]: nothing to stack; give at least one Data")
    first = parts[0]
    if any(part.members is not None for part in parts):
        raise ValueError(
            "a part has a member axis already; stack the plain data sets at once"
        )
    for what, get in _ALIKE.items():
        for i, part in enumerate(parts):
            if get(part) != get(first):
                raise ValueError(
                    f"stack needs data sets of equal {what}; the first has {get(first)}, number "
                    f"{i} has {get(part)}"
                )
    return replace(
        first,
        name=", ".join(dict.fromkeys(part.name for part in parts)),
        train=_stack([part.train for part in parts]),
        val=_stack([part.val for part in parts]),
        test=_stack([part.test for part in parts]),
    )


def _shapes(data: Data) -> list[tuple[int, ...]]:
    return [tuple(split.x.shape) for split in (data.train, data.val, data.test)]


_ALIKE: dict[str, Callable[[Data], Any]] = {
    "shapes": _shapes,
    "classes": lambda data: data.classes,
    "batch_size": lambda data: data.batch_size,
    "augment": lambda data: data.augment,
}


def _stack(splits: Sequence[Split]) -> Split:
    return Split(torch.stack([s.x for s in splits]), torch.stack([s.y for s in splits]))
