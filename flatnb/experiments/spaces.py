r"""The hyperparameters each method is tuned over, written down before any run.

Every method gets the same number of settings, its learning rate included, so that a
method of two hyperparameters covers each more thinly than a method of one. With one
dimension, the settings are evenly spaced; with d > 1 they are the first points of the
additive sequence

.. math:: x_{nj} = \left(\tfrac12 + n\, g^{-j}\right) \bmod 1, \qquad g^{d+1} = g + 1,

which fills the unit cube evenly for any number of points, and whose first points are
those of every smaller budget (M. Roberts, "The unreasonable effectiveness of
quasirandom sequences", 2018).

AdaFlood has auxiliary nets, trained before it, which its passes count; see `AUXILIARY`.

bSAM is not here. It is an optimizer, one call of which takes both gradients and moves
the weights; `flatnb.fit` looks at the gradient between the two, to stop before a step
that is not finite, and counts the passes of methods only. And its radius is one number
for a group of parameters, where an ensemble needs one a member.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import flatnb
from flatnb.methods import Method, adaflood_levels

Setting = dict[str, float]


@dataclass(frozen=True)
class Range:
    """From `low` to `high`, evenly in the logarithm unless `linear`."""

    low: float
    high: float
    linear: bool = False

    def at(self, share: float) -> float:
        """The value at a share in [0, 1] of the way, to 6 significant digits."""
        if self.linear:
            return float(f"{self.low + share * (self.high - self.low):.6g}")
        return float(f"{self.low * (self.high / self.low) ** share:.6g}")

    def __str__(self) -> str:
        return f"[{self.low:g}, {self.high:g}]{' evenly' if self.linear else ' in the logarithm'}"


# What a method is tuned over beside the learning rate, and its published default.
# Flooding, IFlood and SoftAD have none: 0.05 is the middle of Ishida et al.'s grid on
# images, 0.1 the size of what the SoftAD paper reports as selected. The first range of
# a method is the one shown on axes.
RANGES: dict[str, dict[str, Range]] = {
    "ERM": {},
    "AdamW": {"weight_decay": Range(1e-4, 1.0)},
    "SGD": {},
    "SWA": {"start": Range(0.3, 0.95, linear=True)},
    "EMA": {"decay": Range(0.9, 0.999, linear=True)},
    "Flooding": {"level": Range(0.005, 1.0)},
    "IFlood": {"level": Range(0.005, 1.0)},
    "SoftAD": {"theta": Range(0.005, 1.0)},
    # At 0 the levels are the auxiliary losses as they are, at 1 AdaFlood is plain
    # training.
    "AdaFlood": {"gamma": Range(0.05, 0.95, linear=True)},
    "SAM": {"rho": Range(0.01, 2.0)},
    "ASAM": {"rho": Range(0.05, 10.0)},
    "USAM": {"rho": Range(0.01, 2.0)},
    "RSAM": {"rho": Range(0.01, 2.0), "sigma": Range(0.001, 0.1)},
    "LookSAM": {"rho": Range(0.01, 2.0), "alpha": Range(0.1, 1.0, linear=True)},
    "GSAM": {"rho": Range(0.01, 2.0), "alpha": Range(0.02, 1.0)},
    "FriendlySAM": {"rho": Range(0.01, 2.0), "lam": Range(0.6, 0.95, linear=True)},
    "GNP": {"r": Range(0.01, 2.0), "alpha": Range(0.1, 1.0, linear=True)},
    "NSO": {"sigma": Range(0.002, 0.2)},
    "WeightNoise": {"sigma": Range(0.002, 0.2)},
    "FAM": {"lam": Range(1e-4, 1.0)},
}
DEFAULTS: dict[str, Setting] = {
    "AdamW": {"weight_decay": 0.01},
    "SWA": {"start": 0.75},
    "EMA": {"decay": 0.999},
    "Flooding": {"level": 0.05},
    "IFlood": {"level": 0.05},
    "SoftAD": {"theta": 0.1},
    "AdaFlood": {"gamma": 0.5},
    "SAM": {"rho": 0.05},
    "ASAM": {"rho": 0.5},
    "USAM": {"rho": 0.05},
    "RSAM": {"rho": 0.05, "sigma": 0.01},
    "LookSAM": {"rho": 0.05, "alpha": 0.7},
    "GSAM": {"rho": 0.05, "alpha": 0.2},
    "FriendlySAM": {"rho": 0.05, "lam": 0.9},
    "GNP": {"r": 0.1, "alpha": 0.8},
    "NSO": {"sigma": 0.01},
    "WeightNoise": {"sigma": 0.01},
    "FAM": {"lam": 0.1},
}
METHODS = tuple(RANGES)

# Auxiliary nets of AdaFlood, as in the authors' code: each is trained without a fifth.
FOLDS = 5
AUXILIARY = (
    f"levels: losses of {FOLDS} auxiliary nets a seed, each trained plainly without a part of "
    f"1/{FOLDS}, and scoring it; same net, optimizer, schedule and epochs, published default "
    f"learning rate; passes: one, and {FOLDS - 1} for them; one set of nets for all settings"
)

# Of the SoftAD paper in the plane: one grid for all four.
PAPER_GRID = Range(0.01, 2.0, linear=True)
_PAPER = ("Flooding", "IFlood", "SoftAD", "SAM")

# Learning rates searched, by optimizer.
RATES = {"adam": Range(1e-4, 1e-1), "sgd": Range(1e-3, 1.0)}


def space(method: str, budget: int, rates: Range = RATES["adam"]) -> list[Setting]:
    """The `budget` settings of a method, learning rate first ("lr").

    Raises:
        ValueError: an unknown method, or a budget below 1.
    """
    return _settings({"lr": rates, **_ranges(method)}, budget)


def fixed_rate(method: str, budget: int, lr: float) -> list[Setting]:
    """`budget` settings of a method at one learning rate; one, where nothing else is to
    be set.

    Flooding, IFlood, SoftAD and SAM have the equal grid of the SoftAD paper,
    `PAPER_GRID`.

    Raises:
        ValueError: an unknown method, or a budget below 1.
    """
    ranges = _ranges(method)
    if method in _PAPER:
        ranges = dict.fromkeys(ranges, PAPER_GRID)
    return [{"lr": lr, **s} for s in _settings(ranges, budget if ranges else 1)]


def default(method: str, lr: float) -> Setting:
    """The published default of a method, at a learning rate.

    Raises:
        ValueError: an unknown method.
    """
    _ranges(method)
    return {"lr": lr, **DEFAULTS.get(method, {})}


def described(method: str, rates: Range | float) -> str:
    """The space in words, for a record."""
    ranges = _ranges(method)
    if isinstance(rates, float):
        if method in _PAPER:
            ranges = dict.fromkeys(ranges, PAPER_GRID)
        parts = [f"lr {rates:g}"]
    else:
        parts = [f"lr {rates}"]
    parts += [f"{name} {one}" for name, one in ranges.items()]
    return (
        "; ".join(parts)
        + "; settings past the budget: the published default, not eligible"
    )


def passes(method: str) -> float:
    """Forward-backward passes a step, in AdaFlood's case with those of its auxiliary
    nets.

    Raises:
        ValueError: an unknown method.
    """
    if method == "AdaFlood":
        return 1 + (FOLDS - 1)  # FOLDS nets on a share of (FOLDS - 1) / FOLDS each
    return build(method, [default(method, 1.0)]).passes


def work(method: str, settings: int) -> float:
    """What so many settings of a method cost, in trainings of one pass; nets that serve
    all, once.

    Raises:
        ValueError: an unknown method.
    """
    if method == "AdaFlood":
        return settings + FOLDS - 1
    return settings * passes(method)


def build(
    method: str, settings: Sequence[Setting], held_out: Tensor | None = None
) -> Method:
    """One method for an ensemble with one setting a member; a plain one for a single
    setting.

    The optimizers and averages among the baselines train as ERM.

    Args:
        method: a name of `METHODS`.
        settings: one a member.
        held_out: for AdaFlood, losses of auxiliary nets, (members, examples).

    Raises:
        ValueError: an unknown method, settings of other names than the method's, or
            none; AdaFlood without losses.
    """
    names = list(_ranges(method))
    for setting in settings:
        if set(setting) - {"lr"} != set(names):
            raise ValueError(
                f"{method} got the setting {setting}; allowed: {', '.join(['lr', *names])}"
            )
    if not settings:
        raise ValueError(f"no setting for {method}; give at least one")
    if method in ("ERM", "AdamW", "SGD", "SWA", "EMA"):
        return flatnb.ERM()
    if method == "AdaFlood":
        if held_out is None:
            raise ValueError(
                "AdaFlood without held_out; give the losses of auxiliary nets"
            )
        pairs = zip(held_out, settings, strict=True)
        return flatnb.AdaFlood(
            torch.stack(
                [adaflood_levels(losses, gamma=s["gamma"]) for losses, s in pairs]
            )
        )
    values: dict[str, Any] = {n: torch.tensor([s[n] for s in settings]) for n in names}
    if len(settings) == 1:
        values = {n: float(settings[0][n]) for n in names}
    return getattr(flatnb, method)(**values)


def _ranges(method: str) -> dict[str, Range]:
    if method not in RANGES:
        raise ValueError(f"no method {method!r}; allowed: {', '.join(METHODS)}")
    return RANGES[method]


def _settings(ranges: dict[str, Range], budget: int) -> list[Setting]:
    if budget < 1:
        raise ValueError(f"budget={budget!r}; allowed: an integer >= 1")
    if not ranges:
        return [{}]
    return [
        {
            name: one.at(share)
            for (name, one), share in zip(ranges.items(), point, strict=True)
        }
        for point in _points(len(ranges), budget)
    ]


def _points(dimensions: int, count: int) -> list[list[float]]:
    if dimensions == 1:
        return [[n / max(1, count - 1)] for n in range(count)]
    g = 2.0
    for _ in range(64):  # a contraction: converges to the root of g^(d + 1) = g + 1
        g = (1 + g) ** (1 / (dimensions + 1))
    shares = [g ** -(j + 1) for j in range(dimensions)]
    return [[math.fmod(0.5 + n * share, 1.0) for share in shares] for n in range(count)]
