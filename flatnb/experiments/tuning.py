r"""One declaration per method: what is tuned, over which range, and how it is drawn.

From `METHODS` follow the settings that sweeps try, what `flatnb records todo` lists,
the passes that each method is charged, and the colors of `flatnb.plots`. The ranges
were written before any run, and every method gets the same number of settings, learning
rate included: a method of two hyperparameters covers each more thinly than a method of
one. One hyperparameter is spaced evenly; d > 1 of them take the first points of

.. math:: x_{nj} = \left(\tfrac12 + n\, g^{-j}\right) \bmod 1, \qquad g^{d+1} = g + 1,

which fill the unit cube evenly for any number of points (M. Roberts, "The unreasonable
effectiveness of quasirandom sequences", 2018).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from flatnb._checks import integer
from flatnb._nets import along_members
from flatnb.ensemble import Ensemble, member_learning_rates
from flatnb.methods import (
    ASAM,
    ERM,
    FAM,
    GNP,
    GSAM,
    NSO,
    RSAM,
    SAM,
    USAM,
    AdaFlood,
    Flooding,
    FriendlySAM,
    IFlood,
    LookSAM,
    Method,
    SoftAD,
    WeightNoise,
    adaflood_levels,
)

Setting = dict[str, float]


@dataclass(frozen=True)
class Range:
    """From `low` to `high`, evenly in the logarithm or `linear`; a published default.

    >>> log(0.01, 1.0).value(0.5), even(0.3, 0.9).value(0.5)
    (0.1, 0.6)
    """

    low: float
    high: float
    default: float = math.nan
    linear: bool = False

    def value(self, share: float) -> float:
        """The value at a share in [0, 1] of the way, to 6 significant digits."""
        if self.linear:
            return float(f"{self.low + share * (self.high - self.low):.6g}")
        return float(f"{self.low * (self.high / self.low) ** share:.6g}")

    def __str__(self) -> str:
        spacing = "evenly" if self.linear else "in the logarithm"
        return f"[{self.low:g}, {self.high:g}] {spacing}"


log = Range  # (low, high, default), evenly in the logarithm
even = partial(Range, linear=True)


@dataclass(frozen=True)
class Optimizer:
    """An optimizer: its name in records, its class, and the learning rates searched."""

    name: str
    make: Callable[..., torch.optim.Optimizer]
    rates: Range

    def build(
        self, model: nn.Module, settings: Sequence[Setting], weight_decay: float = 0.0
    ) -> torch.optim.Optimizer:
        """For a net and its setting, or for an `Ensemble` with one setting per member.

        A setting's own weight decay replaces that of the task.
        """
        params, rates = list(model.parameters()), [s["lr"] for s in settings]
        decays = [setting.get("weight_decay", weight_decay) for setting in settings]
        if not isinstance(model, Ensemble):
            return self.make(params, lr=rates[0], weight_decay=decays[0])
        # A step of a large ensemble costs a GPU passes over the weights; fused: one.
        fused = True if params[0].is_cuda else None
        optimizer = self.make(params, lr=max(rates), weight_decay=0.0, fused=fused)
        member_learning_rates(optimizer, rates, decays if any(decays) else None)
        return optimizer


ADAM = Optimizer("Adam", torch.optim.Adam, log(1e-4, 1e-1, 1e-3))
ADAMW = Optimizer("AdamW", torch.optim.AdamW, ADAM.rates)
_MOMENTUM = partial(torch.optim.SGD, momentum=0.9)
SGD = Optimizer("SGD, momentum 0.9", _MOMENTUM, log(1e-3, 1.0, 0.1))

# Step t = 0, 1, ... -> how far the average then goes to the weights, (members,).
Weight = Callable[[int], Tensor]


def swa(steps: int, start: Tensor) -> Weight:
    """The mean over all steps from the share `start` on; before, the weights.

    >>> [float(swa(4, torch.tensor([0.5]))(t)) for t in range(4)]
    [1.0, 1.0, 1.0, 0.5]
    """
    first = (start * steps).ceil()
    return lambda t: 1 / (t - first + 1).clamp(min=1)


def ema(steps: int, decay: Tensor) -> Weight:
    """average <- decay * average + (1 - decay) * weights, starting from the weights."""
    return lambda _: 1 - decay


def adaflood(held_out: Tensor, gamma: Sequence[float]) -> Method:
    """AdaFlood with the levels that each member's gamma gives its held-out losses."""
    rows = zip(held_out, gamma, strict=True)
    levels = [adaflood_levels(losses, gamma=value) for losses, value in rows]
    return AdaFlood(torch.stack(levels))


class Look(NamedTuple):
    """How a method is drawn: a color of `flatnb.plots.PALETTE`, dashes, a marker."""

    color: str
    dash: str | tuple[int, tuple[int, ...]]
    marker: str


class Design(IntEnum):
    """The most demanding design of the plane that a method takes part in."""

    NO_RUNS = 0  # it has no experiments yet
    TUNED = 1  # the learning rate is one of its hyperparameters; images, too
    ONE_RATE = 2  # the SoftAD paper's learning rate, its own range
    PAPER = 3  # that learning rate, and the one grid of the paper's methods


PAPER_GRID = even(0.01, 2.0)


@dataclass(frozen=True)
class Tuned:
    """A method as the experiments tune it.

    Attributes:
        method: called with its hyperparameters, numbers or tensors (members,); with
            held-out losses and lists, if there are auxiliary nets. Plain training if
            the hyperparameters are the optimizer's or the average's.
        space: hyperparameters besides the learning rate; the first is shown on axes.
        design: where it takes part.
        look: how figures draw it.
        label: its name in records, if it is not that of the class.
        optimizer: its own, instead of the task's.
        average: of the weights: `swa` or `ema`, called with steps and hyperparameters.
        auxiliary: nets per seed trained before, each without a part of the examples,
            which it then scores.
    """

    method: Callable[..., Method]
    space: Mapping[str, Range]
    design: Design
    look: Look
    label: str = ""
    optimizer: Optimizer | None = None
    average: Callable[..., Weight] | None = None
    auxiliary: int = 0

    @property
    def name(self) -> str:
        """In records, tables and figures."""
        return self.label or self.method.__name__

    def settings(self, budget: int, rates: Range | float) -> list[Setting]:
        """The settings tried, learning rate first.

        Args:
            budget: how many; at one rate a method without hyperparameters has one.
            rates: the learning rates searched, or the one learning rate.

        Raises:
            ValueError: a budget below 1.

        >>> METHODS["SAM"].settings(2, 0.1)
        [{'lr': 0.1, 'rho': 0.01}, {'lr': 0.1, 'rho': 2.0}]
        """
        budget, ranges = integer("budget", budget), self._ranges(rates)
        points = _points(len(ranges), budget) if ranges else [[]]
        fixed = {} if isinstance(rates, Range) else {"lr": rates}
        pairs = [zip(ranges.items(), point, strict=True) for point in points]
        return [fixed | {name: r.value(x) for (name, r), x in row} for row in pairs]

    def published(self, lr: float) -> Setting:
        """The published default, at a learning rate."""
        return {"lr": lr, **{name: r.default for name, r in self.space.items()}}

    def described(self, rates: Range | float) -> str:
        """The space in words, for a record."""
        fixed = [] if isinstance(rates, Range) else [f"lr {rates:g}"]
        searched = [f"{name} {span}" for name, span in self._ranges(rates).items()]
        end = "settings past the budget: the published default, not eligible"
        return "; ".join([*fixed, *searched, end])

    @property
    def note(self) -> str:
        """What a record states of auxiliary nets."""
        n = self.auxiliary
        text = (
            f"levels: losses of {n} auxiliary nets per seed, each trained plainly "
            f"without a part of 1/{n}, and scoring it; same net, optimizer, schedule "
            f"and epochs, published default learning rate; passes: one, and {n - 1} "
            "for them; one set of nets for all settings"
        )
        return text if n else ""

    @property
    def passes(self) -> float:
        """Forward-backward passes per step, those of auxiliary nets included."""
        losses = torch.zeros(1, 1) if self.auxiliary else None
        return self.build([self.published(1.0)], losses).passes + self._auxiliary_work

    def work(self, settings: int) -> float:
        """What so many settings cost, in trainings of one pass; auxiliary nets once."""
        extra = self._auxiliary_work
        return settings * (self.passes - extra) + extra

    @property
    def _auxiliary_work(self) -> int:
        return max(0, self.auxiliary - 1)  # n nets on a share of (n - 1) / n each

    def build(
        self, settings: Sequence[Setting], held_out: Tensor | None = None
    ) -> Method:
        """One method with a setting per member; of a single setting, a plain one.

        Args:
            settings: one per member.
            held_out: losses of auxiliary nets, (members, examples).

        Raises:
            ValueError: a setting of other names, or no held-out losses.

        >>> METHODS["SAM"].build([{"lr": 0.1, "rho": 0.05}])
        SAM(rho=0.05)
        """
        names = ["lr", *self.space]
        for setting in settings:
            if {"lr", *setting} != set(names):
                raise ValueError(f"{setting=}; {self.name} allows: {', '.join(names)}")
        columns = {name: [s[name] for s in settings] for name in self.space}
        if self.auxiliary:
            if held_out is None:
                raise ValueError("held_out=None; allowed: losses of auxiliary nets")
            return self.method(held_out, **columns)
        if self.method is ERM:
            return ERM()
        if len(settings) == 1:
            return self.method(**{name: float(c[0]) for name, c in columns.items()})
        return self.method(**{name: torch.tensor(c) for name, c in columns.items()})

    def averaged(
        self, model: nn.Module, settings: Sequence[Setting], steps: int
    ) -> AveragedModel | None:
        """Its average of the weights over so many steps, for `flatnb.fit`; or None."""
        if self.average is None:
            return None
        columns = {
            name: torch.tensor([s[name] for s in settings]) for name in self.space
        }
        weight = self.average(steps, **columns)

        @torch.no_grad()
        def update(averages: Any, params: Any, count: int | Tensor) -> None:
            share = weight(int(count))
            for value, p in zip(averages, params, strict=True):
                value.lerp_(p, along_members(share, p))

        return AveragedModel(model, multi_avg_fn=update)

    def _ranges(self, rates: Range | float) -> Mapping[str, Range]:
        if isinstance(rates, Range):
            return {"lr": rates, **self.space}
        if self.design is Design.PAPER:
            return dict.fromkeys(self.space, PAPER_GRID)
        return self.space


def _points(dimensions: int, count: int) -> list[list[float]]:
    if dimensions == 1:
        return [[n / max(1, count - 1)] for n in range(count)]
    g = 2.0
    for _ in range(64):  # a contraction: converges to the root of g^(d + 1) = g + 1
        g = (1 + g) ** (1 / (dimensions + 1))
    shares = [g ** -(j + 1) for j in range(dimensions)]
    return [[math.fmod(0.5 + n * share, 1.0) for share in shares] for n in range(count)]


_SHORT, _LONG, _DOTS = (0, (2, 1)), (0, (7, 2)), (0, (1, 3))
_DASH_DASH_DOT, _DASH_DOT_DOT = (0, (4, 1, 4, 1, 1, 1)), (0, (5, 1, 1, 1, 1, 1))
_NO_RUNS, _TUNED, _ONE_RATE, _PAPER = Design

# Flooding, IFlood and SoftAD have no published default: 0.05 is the middle of Ishida et
# al.'s grid on images, 0.1 the size of what the SoftAD paper reports as selected.
# AdaFlood's gamma = 0 takes the held-out losses as levels; 1 is plain training.
_TABLE = (
    Tuned(ERM, {}, _PAPER, Look("black", "-", "o")),
    Tuned(Flooding, {"level": log(0.005, 1.0, 0.05)}, _PAPER, Look("red", "--", "s")),
    Tuned(IFlood, {"level": log(0.005, 1.0, 0.05)}, _PAPER, Look("maroon", ":", "D")),
    Tuned(SoftAD, {"theta": log(0.005, 1.0, 0.1)}, _PAPER, Look("green", "-", "^")),
    Tuned(SAM, {"rho": log(0.01, 2.0, 0.05)}, _PAPER, Look("blue", "-.", "P")),
    Tuned(NSO, {"sigma": log(0.002, 0.2, 0.01)}, _ONE_RATE, Look("gold", "-", "h")),
    Tuned(
        WeightNoise, {"sigma": log(0.002, 0.2, 0.01)}, _ONE_RATE, Look("plum", ":", "d")
    ),
    Tuned(
        GNP,
        {"r": log(0.01, 2.0, 0.1), "alpha": even(0.1, 1.0, 0.8)},
        _ONE_RATE,
        Look("pink", _LONG, "*"),
    ),
    Tuned(ASAM, {"rho": log(0.05, 10.0, 0.5)}, _ONE_RATE, Look("violet", "--", "X")),
    Tuned(
        FAM, {"lam": log(1e-4, 1.0, 0.1)}, _ONE_RATE, Look("sky", _DASH_DOT_DOT, "H")
    ),
    Tuned(
        adaflood,
        {"gamma": even(0.05, 0.95, 0.5)},
        _ONE_RATE,
        Look("red", "-.", "v"),
        "AdaFlood",
        auxiliary=5,
    ),
    Tuned(USAM, {"rho": log(0.01, 2.0, 0.05)}, _TUNED, Look("blue", ":", "<")),
    Tuned(
        RSAM,
        {"rho": log(0.01, 2.0, 0.05), "sigma": log(0.001, 0.1, 0.01)},
        _TUNED,
        Look("blue", _SHORT, ">"),
    ),
    Tuned(
        ERM,
        {"start": even(0.3, 0.95, 0.75)},
        _TUNED,
        Look("indigo", "-.", "P"),
        "SWA",
        average=swa,
    ),
    Tuned(
        ERM,
        {"decay": even(0.9, 0.999, 0.999)},
        _TUNED,
        Look("indigo", ":", "X"),
        "EMA",
        average=ema,
    ),
    Tuned(
        ERM,
        {"weight_decay": log(1e-4, 1.0, 0.01)},
        _TUNED,
        Look("indigo", "--", "s"),
        "AdamW",
        optimizer=ADAMW,
    ),
    Tuned(ERM, {}, _TUNED, Look("black", "--", "s"), "SGD", optimizer=SGD),
    Tuned(
        LookSAM,
        {"rho": log(0.01, 2.0, 0.05), "alpha": even(0.1, 1.0, 0.7)},
        _NO_RUNS,
        Look("blue", _LONG, "v"),
    ),
    Tuned(
        GSAM,
        {"rho": log(0.01, 2.0, 0.05), "alpha": log(0.02, 1.0, 0.2)},
        _NO_RUNS,
        Look("blue", _DOTS, "D"),
    ),
    Tuned(
        FriendlySAM,
        {"rho": log(0.01, 2.0, 0.05), "lam": even(0.6, 0.95, 0.9)},
        _NO_RUNS,
        Look("blue", _DASH_DASH_DOT, "s"),
    ),
)
METHODS: Mapping[str, Tuned] = {tuned.name: tuned for tuned in _TABLE}

# Exported and not tuned here. bSAM is an optimizer: its step takes both gradients and
# moves the weights, with one radius per group of parameters, so `fit` cannot look at
# the gradient before the step, nor an ensemble give each member a radius. `Every` is
# tuned and drawn under the name of the method that it holds.
UNDECLARED = {"BSAM": Look("blue", _DASH_DOT_DOT, "p"), "Every": None}
LOOKS = {name: tuned.look for name, tuned in METHODS.items()} | UNDECLARED
