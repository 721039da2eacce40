r"""Two classes in the plane: three synthetic tasks with label noise.

* gaussian: class k in {0, 1} is :math:`N((k, k), I/10)`, half of the points each.
* sinusoid: :math:`x \sim N(0, I)`; class 1 where
  :math:`x_1 + x_2 + \sin(x_2 - x_1) > 0`, else 0.
* spiral: with :math:`r` on an even grid from 0 to :math:`4\pi` for each class, class 1
  is :math:`r(\cos r, \sin r) + \varepsilon` and class 0 is
  :math:`(r + \pi)(\cos r, \sin r) + \varepsilon`, with
  :math:`\varepsilon \sim N(0, I)`.

The generators are those of the public SoftAD code (M. J. Holland and K. Nakatani, "Soft
ascent-descent as a stable and flexible alternative to flooding", NeurIPS 2024);
sinusoid and spiral descend from T. Ishida et al., "Do we need zero training loss after
achieving zero training error?", ICML 2020.
"""

import math
from typing import Any

import numpy as np
import torch

from flatnb._checks import choice, integer, number
from flatnb.data.base import Data, Split


def plane(
    name: str,
    *,
    n_train: int = 100,
    n_val: int = 100,
    n_test: int = 20_000,
    noise: float = 0.0,
    seed: int = 0,
    batch_size: int = 50,
) -> Data:
    """A task in the plane, x (n, 2); the defaults are those of the SoftAD paper.

    As in that paper label noise lies on **all three** splits: with noise p, no
    classifier is expected to be right on more than a share 1 - p of the test set. The
    points do not depend on it.

    >>> clean, noisy = plane("spiral"), plane("spiral", noise=0.05)
    >>> int((clean.train.y != noisy.train.y).sum())
    5

    Args:
        name: "gaussian", "sinusoid" or "spiral".
        n_train: training points; half are of each class with gaussian and spiral.
        noise: share of labels flipped, in [0, 0.5), rounded down; gaussian: per class.
    """
    points_of = _POINTS[choice("name", name, _POINTS)]
    number("noise", noise, "a share in [0, 0.5)", 0, 0.5, closed=True)
    # Two streams, so that the points are the same whatever the noise.
    streams = np.random.SeedSequence(integer("seed", seed, 0)).spawn(2)
    points, flips = (np.random.default_rng(stream) for stream in streams)
    splits: dict[str, Any] = {}
    for label, n in {"train": n_train, "val": n_val, "test": n_test}.items():
        x, y = points_of(points, integer(f"n_{label}", n, 2, 1 << 31))
        groups = [np.arange(n)]
        if name == "gaussian":
            groups = [np.flatnonzero(y == k) for k in (0, 1)]
        for group in groups:
            flipped = flips.choice(group, size=int(len(group) * noise), replace=False)
            y[flipped] = 1 - y[flipped]
        features = torch.from_numpy(x.astype(np.float32))
        splits[label] = Split(features, torch.from_numpy(y))
    return Data(name, **splits, classes=("0", "1"), batch_size=batch_size)


def _gaussian(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    y = (np.arange(n) >= n // 2).astype(np.int64)
    return y[:, None] + rng.standard_normal((n, 2)) / math.sqrt(10), y


def _sinusoid(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    x = rng.standard_normal((n, 2))
    return x, (x[:, 0] + x[:, 1] + np.sin(x[:, 1] - x[:, 0]) > 0).astype(np.int64)


def _spiral(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    y = (np.arange(n) >= n // 2).astype(np.int64)
    grids = [np.linspace(0, 4 * math.pi, int((y == k).sum())) for k in (0, 1)]
    angle = np.concatenate(grids)
    radius = angle + math.pi * (1 - y)
    x = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return x + rng.standard_normal((n, 2)), y


_POINTS = {"gaussian": _gaussian, "sinusoid": _sinusoid, "spiral": _spiral}
