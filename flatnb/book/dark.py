"""Colors on a dark page: each keeps its hue, and stands out from the dark page about as
much as it does from a white one.

White becomes the page, black the near-white of its text, and what lies between keeps
its order: the contrast with `PAGE` grows with that to white, as `CONTRASTS` says, whose
points are joined by straight lines in the logarithms. So a pale ground stays near the
page, and a line with a contrast of 3 to white has more than that. The lightness of
OKLab (Ottosson, 2020, https://bottosson.github.io/posts/oklab) that gives this contrast
is found by bisection; chroma that sRGB does not have is reduced. Colors are sRGB,
(..., 3) in [0, 1].
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import to_hex, to_rgb

if TYPE_CHECKING:
    from numpy.typing import NDArray

PAGE = "#14181E"  # the dark page
# Contrast with white, and what it becomes with the page.
CONTRASTS = {1.0: 1.0, 1.3: 1.3, 3.0: 4.6, 21.0: 12.0}
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722])
# OKLab: linear sRGB to the responses of three cones, and their cube roots to L, a, b.
_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def _linear(colors: NDArray) -> NDArray:
    return np.where(
        colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4
    )


def _gamma(linear: NDArray) -> NDArray:
    curve = 1.055 * np.maximum(linear, 0) ** (1 / 2.4) - 0.055
    return np.where(linear <= 0.0031308, 12.92 * linear, curve)


def contrast(one: NDArray, other: NDArray) -> NDArray:
    """The contrast of two colors, 1 to 21, by WCAG 2.

    >>> float(contrast(np.zeros(3), np.ones(3)))
    21.0
    """
    first, second = (0.05 + _linear(np.asarray(c)) @ _LUMINANCE for c in (one, other))
    return np.maximum(first, second) / np.minimum(first, second)


def _rgb(lab: NDArray) -> NDArray:
    """Of OKLab to linear sRGB, with as much of the chroma as sRGB has."""
    keep, step = np.ones(lab.shape[:-1]), 0.5
    inverse = np.linalg.inv(_LAB).T, np.linalg.inv(_CONES).T

    def linear(share: NDArray) -> NDArray:
        reduced = lab * np.stack([np.ones_like(share), share, share], axis=-1)
        return (reduced @ inverse[0]) ** 3 @ inverse[1]

    def inside(share: NDArray) -> NDArray:
        found = linear(share)
        return np.all((found > -1e-4) & (found < 1 + 1e-4), axis=-1)

    whole = inside(keep)
    keep = np.where(whole, 1.0, 0.5)
    for _ in range(10):
        step /= 2
        keep = np.where(whole, 1.0, keep + np.where(inside(keep), step, -step))
    return np.clip(linear(keep), 0, 1)


def dark(colors: NDArray) -> NDArray:
    """The counterparts of colors (..., 3) on a dark page.

    >>> dark(np.ones(3)).round(2).tolist()  # white becomes the page
    [0.08, 0.09, 0.12]
    """
    page = np.array(to_rgb(PAGE))
    colors = np.asarray(colors, dtype=np.float64)
    points = np.log(list(CONTRASTS.items())).T
    wanted = np.exp(np.interp(np.log(contrast(colors, np.ones(3))), *points))
    luminance = wanted * (0.05 + _linear(page) @ _LUMINANCE) - 0.05
    lab = np.cbrt(_linear(colors) @ _CONES.T) @ _LAB.T
    # The page is a little blue: so is what is close to white, and black not.
    tint = np.cbrt(_linear(page) @ _CONES.T) @ _LAB.T
    ab = lab[..., 1:] + tint[1:] / wanted[..., None]
    low, high = np.zeros(wanted.shape), np.ones(wanted.shape)
    for _ in range(12):
        middle = (low + high) / 2
        found = _rgb(np.concatenate([middle[..., None], ab], axis=-1)) @ _LUMINANCE
        low, high = (
            np.where(found < luminance, middle, low),
            np.where(found < luminance, high, middle),
        )
    return _gamma(_rgb(np.concatenate([low[..., None], ab], axis=-1)))


@cache
def dark_hex(color: str) -> str:
    """The counterpart of one color, by name or as hexadecimal.

    >>> dark_hex("white") == PAGE.lower()
    True
    """
    red, green, blue = dark(np.array(to_rgb(color)))
    return to_hex((red, green, blue))
