"""Where a figure of several columns of axes can be cut, for screens on which its columns
stand one below the other.

matplotlib's SVG says where the axes are, the figure's pixels where nothing is drawn. A
cut goes through white only, from top to bottom, so no label is ever cut.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image

_NARROW = 0.6  # inches: what is narrower (a color bar) stays with the axes to its left
_BARE = 0.12  # inches left of axes: too little for tick labels
_HALF = 0.06  # inches that a tick label at the end of an axis reaches past it
_SIZE = re.compile(r'viewBox="0 0 ([\d.]+) ([\d.]+)"')  # in points
_SVG = "{http://www.w3.org/2000/svg}"
# Where a text begins; its glyphs are moved, too, but neither scaled nor turned.
_TEXT = re.compile(r"translate\(([\d.]+) [\d.]+\) (?:scale|rotate)")
_STATED = re.compile(r' data-panels="([^"]*)"')


class Part(NamedTuple):
    """A part of a figure: from and to, as shares of its width, and how far down it is
    shown, as a share of its height."""

    start: float
    end: float
    floor: float = 1.0


@dataclass
class _Column:
    """Axes one below the other: their edges, and where the texts inside and around them
    are, in points."""

    left: float
    right: float
    bottom: float
    texts: list[float]


def found(svg: str, png: bytes) -> list[list[Part]]:
    """The columns of a figure that is given as matplotlib's SVG and as pixels: of each the
    parts that are to stand side by side. These are the column itself and, left of it if
    its axes have no tick labels of their own, the labels of the first. Empty if the figure
    has one column, or no white between two."""
    size, axes = _SIZE.search(svg), _columns(svg)
    if size is None or len(axes) < 2:
        return []
    width, height = map(float, size.groups())
    with Image.open(io.BytesIO(png)) as picture:
        white = np.all(np.asarray(picture.convert("L")) >= 250, axis=0)
    edges = [0.0]
    for left, right in pairwise(axes):
        start = max(left.right, *left.texts) / width
        cut = _cut(white, start, min(right.left, *right.texts) / width)
        if cut is None:
            return []
        edges.append(cut)
    columns: list[list[Part]] = []
    first = axes[0]
    for column, (start, end) in zip(axes, pairwise([*edges, 1.0]), strict=True):
        ink = start + np.argmin(white[int(start * len(white)) :]) / len(white)
        bare = column.left - ink * width < 72 * _BARE < first.left
        own = Part(start, end)
        bottom = min(first.bottom, column.bottom) + 72 * _HALF  # it may have fewer axes
        labels = Part(0.0, first.left / width, bottom / height)
        columns.append([labels, own] if bare and column is not first else [own])
    return columns


def _columns(svg: str) -> list[_Column]:
    """The axes from left to right; those that overlap in width are one column."""
    axes = []
    for group in ElementTree.fromstring(svg).iter(f"{_SVG}g"):
        patch = group.find(f"{_SVG}g/{_SVG}path")
        if not group.get("id", "").startswith("axes_") or patch is None:
            continue
        numbers = [float(n) for n in re.findall(r"-?[\d.]+", patch.get("d", ""))]
        x, y = numbers[0::2], numbers[1::2]
        moved = [part.get("transform", "") for part in group.iter(f"{_SVG}g")]
        texts = [float(found[1]) for found in map(_TEXT.match, moved) if found]
        axes.append(_Column(min(x), max(x), max(y), texts))
    columns: list[_Column] = []
    for one in sorted(axes, key=lambda one: one.left):
        narrow = one.right - one.left < 72 * _NARROW
        if columns and (one.left < columns[-1].right or narrow):
            last = columns[-1]
            last.right = max(last.right, one.right)
            last.bottom = max(last.bottom, one.bottom)
            last.texts += one.texts
        else:
            columns.append(one)
    return columns


def _cut(white: np.ndarray, start: float, end: float) -> float | None:
    """The middle of the widest white between two places, or None."""
    place, stop = (round(share * len(white)) for share in (start, end))
    runs = np.flatnonzero(np.diff([0, *white[place:stop], 0])).reshape(-1, 2)
    if not len(runs):
        return None
    widest = runs[np.argmax(np.diff(runs).ravel())]
    return float(place + widest.mean()) / len(white)


def words(columns: list[list[Part]]) -> str:
    """Columns as a file of a figure states them.

    >>> words([[Part(0, 0.5)], [Part(0, 0.1, 0.9), Part(0.5, 1)]])
    '0 0.5 1; 0 0.1 0.9, 0.5 1 1'
    """
    return "; ".join(
        ", ".join(" ".join(f"{share:.4g}" for share in part) for part in parts)
        for parts in columns
    )


def of(path: Path) -> list[list[Part]]:
    """The columns that a file of a figure states: an SVG as `data-panels`, a PNG as its
    text `panels`. Empty if it states none."""
    if path.suffix == ".svg":
        stated = _STATED.search(path.read_text(encoding="utf-8"))
        text = stated[1] if stated else ""
    else:
        with Image.open(path) as picture:
            text = str(picture.info.get("panels", ""))
    return [
        [Part(*map(float, part.split())) for part in parts.split(",")]
        for parts in text.split(";")
        if parts
    ]
