"""Folders of labeled sentences: ``train.txt`` and ``test.txt``, with a line
``label sentence`` for each sentence.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from flatnb._checks import shown


class Sentences(NamedTuple):
    """Sentences with labels, int64 (n,); classes are named by their numbers."""

    train_x: list[str]
    train_y: Tensor
    test_x: list[str]
    test_y: Tensor
    classes: tuple[str, ...]


def read_sentences(folder: Path) -> Sentences:
    """All sentences of a folder, in the order of its files. A label is a number 0, 1,
    ... up to that of the last class; what lies between it and the sentence is one space.

    Files are in UTF-8, and a byte that is not becomes U+FFFD: TREC, as it is published,
    has one.

    Raises:
        FileNotFoundError: ``train.txt`` or ``test.txt`` is not there.
        ValueError: a line without label or sentence, an empty file, fewer than two
            classes in train, one without a sentence there, or one of test alone.
    """
    train_x, train_y = _read(folder / "train.txt")
    test_x, test_y = _read(folder / "test.txt")
    count = int(train_y.max()) + 1
    found = sorted(set(train_y.tolist()))
    if count < 2 or found != list(range(count)):
        raise ValueError(
            f"{folder / 'train.txt'} has the labels {shown(found)}; allowed: 0, 1, ... "
            "without a gap, two or more"
        )
    if int(test_y.max()) >= count:
        raise ValueError(
            f"{folder / 'test.txt'} has the label {int(test_y.max())}; allowed: those of "
            f"train, 0 to {count - 1}"
        )
    return Sentences(train_x, train_y, test_x, test_y, tuple(map(str, range(count))))


def _read(file: Path) -> tuple[list[str], Tensor]:
    if not file.is_file():
        allowed = "a folder with train.txt and test.txt, of lines `label sentence`"
        raise FileNotFoundError(f"{file} is not there; allowed: {allowed}")
    sentences, labels = [], []
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, 1):
        if number == len(lines) and not line:  # after the last end of a line
            break
        label, _, sentence = line.partition(" ")
        if not (label.isascii() and label.isdigit()) or not sentence.strip():
            raise ValueError(
                f"{file}, line {number}: {shown(line)}; allowed: a number 0, 1, ..., a "
                "space, and a sentence"
            )
        sentences.append(sentence.strip())
        labels.append(int(label))
    if not labels:
        raise ValueError(f"{file} is empty; allowed: a line `label sentence` or more")
    return sentences, torch.tensor(labels)
