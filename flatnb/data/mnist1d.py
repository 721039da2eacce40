r"""MNIST-1D: ten classes of one-dimensional signals of 40 points.

A signal is the template of its digit, 12 points, which is

1. padded with 36 to 60 zeros and read off at 72 points, so that it is squeezed;
2. scaled by a factor in [0.8, 1.2) and rotated by 0 to 47 points;
3. given smooth noise outside of the template, white noise everywhere, and a slope;
4. read off at 40 points.

The generator and its constants are those of the package `mnist1d` 0.0.2 (Apache-2.0): S.
Greydanus and D. Kobak, "Scaling Down Deep Learning with MNIST-1D", ICML 2024. From the
same random numbers both make the same signals.
"""

from typing import Any, NamedTuple

import numpy as np
import torch

from flatnb._checks import integer, number
from flatnb.data.base import Data, Split

_TEMPLATES = np.array(
    [
        [5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5],
        [5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5],
        [5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5],
        [5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5],
        [5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5],
        [5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5],
        [5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5],
        [5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5],
        [5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5],
        [5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5],
    ]
)
_PADDING = (36, 60)
_LENGTH = 12 + 60  # points before the signal is read off at _POINTS
_POINTS = 40
_SHIFTS = 48


class Draws(NamedTuple):
    """The random numbers of n signals: uniform ones in [0, 1), normal ones N(0, 1)."""

    padding: np.ndarray  # (n,), uniform
    scale: np.ndarray  # (n,), uniform
    shift: np.ndarray  # (n,), integers from 0 to 47
    smooth: np.ndarray  # (n, 72), normal
    white: np.ndarray  # (n, 72), normal
    slope: np.ndarray  # (n,), uniform


def mnist1d(
    *,
    n_train: int = 4_000,
    n_val: int = 1_000,
    n_test: int = 10_000,
    label_noise: float = 0.0,
    seed: int = 0,
    batch_size: int = 100,
) -> Data:
    """MNIST-1D, generated: x (n, 40) and classes 0 to 9, equally many of each.

    The published set has 4,000 training and 1,000 test signals; here the test set may be
    as large as wished. Signals are standardized by the mean and the deviation of the
    training signals, which do not depend on the label noise.

    >>> clean, noisy = mnist1d(n_train=200), mnist1d(n_train=200, label_noise=0.15)
    >>> clean.train.x.shape, int((clean.train.y != noisy.train.y).sum())
    (torch.Size([200, 40]), 30)

    Args:
        label_noise: share of the **training** labels, in [0, 1) and rounded down, that
            are replaced by one of the nine others; validation and test have none.
    """
    number("label_noise", label_noise, "a share in [0, 1)", 0, 1, closed=True)
    # Streams of their own, so that the signals of a part depend on nothing but its size.
    streams = np.random.SeedSequence(integer("seed", seed, 0)).spawn(4)
    *parts, flips = (np.random.default_rng(stream) for stream in streams)
    sizes = {"train": n_train, "val": n_val, "test": n_test}
    signals, labels = {}, {}
    for (name, n), rng in zip(sizes.items(), parts, strict=True):
        y = np.arange(integer(f"n_{name}", n, 2, 1 << 31)) % len(_TEMPLATES)
        signals[name], labels[name] = _signals(y, _draws(rng, n)), y
    mean, deviation = signals["train"].mean(), signals["train"].std()
    flipped = flips.choice(n_train, size=int(n_train * label_noise), replace=False)
    others = flips.integers(1, len(_TEMPLATES), len(flipped))
    labels["train"][flipped] = (labels["train"][flipped] + others) % len(_TEMPLATES)
    splits: dict[str, Any] = {}
    for name, x in signals.items():
        features = torch.from_numpy((x - mean) / deviation).float()
        splits[name] = Split(features, torch.from_numpy(labels[name]))
    classes = tuple(map(str, range(len(_TEMPLATES))))
    return Data("MNIST-1D", **splits, classes=classes, batch_size=batch_size)


def _draws(rng: np.random.Generator, n: int) -> Draws:
    return Draws(
        padding=rng.random(n),
        scale=rng.random(n),
        shift=rng.integers(0, _SHIFTS, n),
        smooth=rng.standard_normal((n, _LENGTH)),
        white=rng.standard_normal((n, _LENGTH)),
        slope=rng.random(n),
    )


def _signals(y: np.ndarray, draws: Draws) -> np.ndarray:
    """The signals of digits y, (n, 40), before they are standardized."""
    templates = _TEMPLATES - _TEMPLATES.mean(1, keepdims=True)
    templates /= templates.std(1, keepdims=True)
    templates = (templates - templates[:, :1]) / 6  # from 0, and back to 0
    length = templates.shape[1]
    low, high = _PADDING
    padded = length + low + (draws.padding * (high - low + 1)).astype(int)
    # Where each of the 72 points lies on the padded template; zeros lie from 12 on.
    places = np.linspace(0, 1, _LENGTH) * (padded - 1)[:, None]
    points = np.arange(length)
    pairs = zip(places, templates[y], strict=True)
    x = np.stack([np.interp(row, points, template) for row, template in pairs])
    x *= 1 + 0.4 * (draws.scale[:, None] - 0.5)
    index = (np.arange(_LENGTH) - draws.shift[:, None]) % _LENGTH
    x = np.take_along_axis(x, index, axis=1)
    outside = np.take_along_axis(places > length - 1e-9, index, axis=1)
    x = np.where(outside, 0.25 * _smoothed(draws.smooth), x) + 0.02 * draws.white
    x -= 0.75 * (draws.slope[:, None] - 0.5) * np.linspace(-0.5, 0.5, _LENGTH)
    places = np.linspace(0, _LENGTH - 1, _POINTS)
    return np.stack([np.interp(places, np.arange(_LENGTH), row) for row in x])


def _smoothed(noise: np.ndarray) -> np.ndarray:
    """Rows under a Gaussian filter of deviation 2, cut at 8 points, with mirrored ends."""
    kernel = np.exp(-0.5 * (np.arange(-8, 9) / 2) ** 2)
    padded = np.pad(noise, ((0, 0), (8, 8)), mode="symmetric")
    windows = np.lib.stride_tricks.sliding_window_view(padded, len(kernel), axis=1)
    return windows @ (kernel / kernel.sum())
