r"""One declaration per method: what is tuned, over which range, and how it is drawn.

From `METHODS` follow sweeps, `flatnb records todo`, and the colors of `flatnb.plots`.
Every method gets the same number of settings, learning rate included. The ranges were
written before any run, and widened once, before the runs that are compared now, where
an earlier choice lay at an end. One hyperparameter is spaced evenly; d > 1 of them
take the first points of a sequence that fills the unit cube evenly for any number of
points (M. Roberts, "The unreasonable effectiveness of quasirandom sequences", 2018),

.. math:: x_{nj} = \left(\tfrac12 + n\, g^{-j}\right) \bmod 1, \qquad g^{d+1} = g + 1.

The first few of these do not reach the ends of the cube: ten of them in two dimensions
span 0.77 of one side and 0.86 of the other. With `to_ends` they are stretched to all.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from flatnb import methods
from flatnb._checks import integer
from flatnb._nets import along_members
from flatnb.ensemble import Ensemble, member_learning_rates
from flatnb.methods import ERM, Method

Setting = dict[str, float]


@dataclass(frozen=True)
class Range:
    """The range of a hyperparameter that is searched.

    `log`, `even` and `near` make one: evenly spaced in the logarithm, in the number
    itself, or in the logarithm of what lacks to 1.

    Args:
        low, high: both included.
        default: the published value.
        edges: the ends, "low" or "high", beyond which better values may lie; not those
            where the method becomes ERM, or where its definition stops.
        spacing: as `log`, `even` and `near` set it.

    >>> log(0.01, 1.0).value(0.5), even(0.3, 0.9).value(0.5), near(0.9, 0.999).value(0.5)
    (0.1, 0.6, 0.99)
    """

    low: float
    high: float
    default: float = math.nan
    edges: tuple[str, ...] = ("high",)
    spacing: str = "in the logarithm"

    def value(self, share: float) -> float:
        """The value at a share in [0, 1] of the way, to 6 significant digits."""
        if self.spacing == "evenly":
            value = self.low + share * (self.high - self.low)
        elif self.spacing == "in the logarithm":
            value = self.low * (self.high / self.low) ** share
        else:
            lack = 1 - self.low
            value = 1 - lack * ((1 - self.high) / lack) ** share
        return float(f"{value:.6g}")

    def __str__(self) -> str:
        return f"[{self.low:g}, {self.high:g}] {self.spacing}"


log = Range  # (low, high, default), evenly in the logarithm
even = partial(Range, spacing="evenly")
near = partial(Range, spacing="in the logarithm of what lacks to 1")


@dataclass(frozen=True)
class Optimizer:
    """An optimizer: its name in records, its class, and the learning rates searched."""

    name: str
    make: Callable[..., torch.optim.Optimizer]
    rates: Range

    @property
    def passes(self) -> int:
        """Forward-backward passes per step."""
        return getattr(self.make, "passes", 1)

    def build(
        self,
        model: nn.Module,
        settings: Sequence[Setting],
        weight_decay: float = 0.0,
        examples: float = math.nan,
    ) -> torch.optim.Optimizer:
        """For a net and its setting, or for an `Ensemble` with one setting per member.
        A setting's own weight decay replaces that of the task. Only bSAM depends on the
        number of training examples.

        >>> SGD.build(nn.Linear(2, 2), [{"lr": 0.3}]).param_groups[0]["lr"]
        0.3
        """
        params = list(model.parameters())
        rates = [setting["lr"] for setting in settings]
        decays = [setting.get("weight_decay", weight_decay) for setting in settings]
        if self.make is methods.BSAM:
            return _bsam(model, settings, weight_decay, examples)
        if not isinstance(model, Ensemble):
            return self.make(params, lr=rates[0], weight_decay=decays[0])
        # A step costs several passes over weights that no cache holds; fused: one.
        large = sum(p.numel() for p in params) > _NOT_IN_CACHE
        fused = True if large or params[0].is_cuda else None
        optimizer = self.make(params, lr=max(rates), weight_decay=0.0, fused=fused)
        member_learning_rates(optimizer, rates, decays if any(decays) else None)
        return optimizer


def _bsam(
    model: nn.Module, settings: Sequence[Setting], weight_decay: float, examples: float
) -> methods.BSAM:
    """bSAM, with the prior whose term in the gradient is the weight decay."""
    rates, rho = ([setting[name] for setting in settings] for name in ("lr", "rho"))
    seeds = model.seeds if isinstance(model, Ensemble) else None
    optimizer = methods.BSAM(
        model.parameters(),
        max(rates),
        examples=examples,
        rho=rho[0] if seeds is None else torch.tensor(rho),
        prior_precision=examples * weight_decay,
        member_seeds=seeds,
    )
    if seeds is not None:
        member_learning_rates(optimizer, rates)
    return optimizer


_BOTH = ("low", "high")
_NOT_IN_CACHE = 2**24  # weights
ADAM = Optimizer("Adam", torch.optim.Adam, log(1e-5, 0.3, 1e-3, _BOTH))
ADAMW = Optimizer("AdamW", torch.optim.AdamW, ADAM.rates)
_MOMENTUM = partial(torch.optim.SGD, momentum=0.9)
SGD = Optimizer("SGD, momentum 0.9", _MOMENTUM, log(1e-4, 1.0, 0.1, _BOTH))
# None are published for such nets: this range and that of rho follow a pilot.
BSAM = Optimizer("bSAM", methods.BSAM, log(3e-3, 10.0, 0.5, _BOTH))

# How far the average goes to the weights at step t = 0, 1, ... of `steps`, (members,).


def swa(t: int, steps: int, start: Tensor) -> Tensor:
    """The mean over all steps from the share `start` on; before, the weights.

    >>> [float(swa(t, 4, torch.tensor([0.5]))) for t in range(4)]
    [1.0, 1.0, 1.0, 0.5]
    """
    return 1 / (t - (start * steps).ceil() + 1).clamp(min=1)


def ema(t: int, steps: int, decay: Tensor) -> Tensor:
    """average <- decay * average + (1 - decay) * weights, starting from the weights.

    >>> ema(3, 4, torch.tensor([0.75]))
    tensor([0.2500])
    """
    return 1 - decay


def adaflood(held_out: Tensor, gamma: Sequence[float]) -> Method:
    """AdaFlood with the levels that each member's gamma gives its held-out losses."""
    rows = zip(held_out, gamma, strict=True)
    levels = [methods.adaflood_levels(losses, gamma=value) for losses, value in rows]
    return methods.AdaFlood(torch.stack(levels))


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
    """A method as the experiments tune it: a row of `flatnb.experiments.tuning.METHODS`.

    Args:
        method: the class, which takes its hyperparameters as numbers, or as tensors
            (members,) in an ensemble; ERM, where the optimizer or an average is tuned.
        space: hyperparameter -> `Range`, besides the learning rate; axes show the first.
        look: color, dashes and marker in figures.
        design: the most demanding experiments that it takes part in. TUNED: all in which
            the learning rate is tuned, too; NO_RUNS: none.
        label: its name in records, if it is not that of the class.
        optimizer: in place of the task's.
        average: of the weights, `swa` or `ema`.
        auxiliary: nets per seed, each of which scores a part of the examples. `method`
            then takes their losses first.
        forwards: forward passes without gradient per step in a net with BatchNorm.

    >>> row = Tuned(methods.SAM, {"rho": log(0.01, 2.0)}, Look("blue", "-", "P"))
    >>> row.settings(budget=3, rates=0.1)
    [{'lr': 0.1, 'rho': 0.01}, {'lr': 0.1, 'rho': 0.141421}, {'lr': 0.1, 'rho': 2.0}]
    """

    method: Callable[..., Method]
    space: Mapping[str, Range]
    look: Look
    design: Design = Design.NO_RUNS
    label: str = ""
    optimizer: Optimizer | None = None
    average: Callable[..., Tensor] | None = None
    auxiliary: int = 0
    forwards: int = 0

    @property
    def name(self) -> str:
        """In records, tables and figures."""
        return self.label or self.method.__name__

    def settings(
        self, budget: int, rates: Range | float, to_ends: bool = False
    ) -> list[Setting]:
        """The settings that are tried, learning rate first.

        Args:
            budget: how many; it is one where nothing is searched.
            rates: the range of the learning rate, or the one that all have.
            to_ends: stretch them, so that those of each hyperparameter reach both ends
                of its range.

        >>> METHODS["SAM"].settings(2, 0.1)
        [{'lr': 0.1, 'rho': 0.01}, {'lr': 0.1, 'rho': 2.0}]
        """
        integer("budget", budget)
        ranges = self._ranges(rates)
        points = _points(len(ranges), budget) if ranges else [[]]
        points = _stretched(points) if to_ends else points
        fixed = {} if isinstance(rates, Range) else {"lr": rates}
        pairs = [zip(ranges.items(), point, strict=True) for point in points]
        return [fixed | {name: r.value(x) for (name, r), x in row} for row in pairs]

    def published(self, lr: float) -> Setting:
        """The published default, at a learning rate.

        >>> METHODS["SAM"].published(0.1)
        {'lr': 0.1, 'rho': 0.05}
        """
        return {"lr": lr, **{name: r.default for name, r in self.space.items()}}

    def described(self, rates: Range | float, to_ends: bool = False) -> str:
        """The space in words, for a record."""
        fixed = [] if isinstance(rates, Range) else [f"lr {rates:g}"]
        searched = [f"{name} {span}" for name, span in self._ranges(rates).items()]
        end = "settings past the budget: the published default, not eligible"
        reach = ["settings reach both ends of each range"] if to_ends else []
        return "; ".join([*fixed, *searched, *reach, end])

    def at_edge(
        self, settings: Sequence[Setting], chosen: Setting, rates: Range | float
    ) -> list[str]:
        """The hyperparameters of which no tried value lies beyond the chosen one, at an
        end of their range where better ones may lie.

        >>> tried = METHODS["SAM"].settings(3, 0.1)
        >>> [METHODS["SAM"].at_edge(tried, one, 0.1) for one in tried]
        [[], [], ['rho']]
        """
        ends = {"low": min, "high": max}
        return [
            name
            for name, span in self._ranges(rates).items()
            if any(
                chosen[name] == ends[edge](setting[name] for setting in settings)
                for edge in span.edges
            )
        ]

    @property
    def note(self) -> str:
        """What a record states of auxiliary nets."""
        note = f"levels: losses held out from {self.auxiliary} auxiliary nets per seed"
        return note if self.auxiliary else ""

    @property
    def passes(self) -> float:
        """Forward-backward passes per step in a net with BatchNorm, those of auxiliary
        nets included; a forward pass alone counts a third."""
        return self.work(1)

    def work(self, settings: int) -> float:
        """What a number of settings costs, in trainings of one pass. Auxiliary nets, n on a
        share of (n - 1) / n each, count once.

        >>> METHODS["SAM"].work(40), METHODS["AdaFlood"].work(40)
        (80.0, 44.0)
        """
        losses = torch.zeros(1, 1) if self.auxiliary else None
        passes = self.build([self.published(1.0)], losses).passes + self.forwards / 3
        passes *= 1 if self.optimizer is None else self.optimizer.passes
        return settings * passes + max(0, self.auxiliary - 1)

    def build(
        self, settings: Sequence[Setting], held_out: Tensor | None = None
    ) -> Method:
        """One method with a setting per member; of a single setting, a plain one.
        `held_out` has losses of auxiliary nets, (members, examples).

        >>> METHODS["SAM"].build([{"lr": 0.1, "rho": 0.05}])
        SAM(rho=0.05)
        """
        names = ["lr", *self.space]
        for setting in settings:
            if {"lr", *setting} != set(names):
                raise ValueError(f"{setting=}; {self.name} allows: {', '.join(names)}")
        own = [name for name in self.space if name not in self._averaging]
        columns = {name: [s[name] for s in settings] for name in own}
        if self.method is ERM:
            return ERM()
        if self.auxiliary:
            return self.method(held_out, **columns)
        if len(settings) == 1:
            return self.method(**{name: float(c[0]) for name, c in columns.items()})
        return self.method(**{name: torch.tensor(c) for name, c in columns.items()})

    def averaged(
        self, model: nn.Module, settings: Sequence[Setting], steps: int
    ) -> AveragedModel | None:
        """Its average of the weights over `steps` steps, for `flatnb.fit`; or None."""
        average = self.average
        if average is None:
            return None
        columns = {n: torch.tensor([s[n] for s in settings]) for n in self._averaging}

        @torch.no_grad()
        def update(averages: Any, params: Any, count: int | Tensor) -> None:
            share = average(int(count), steps, **columns)
            for value, p in zip(averages, params, strict=True):
                value.lerp_(p, along_members(share, p))

        return AveragedModel(model, multi_avg_fn=update)

    @property
    def _averaging(self) -> set[str]:
        """The hyperparameters of the average, not of the method."""
        if self.average is None:
            return set()
        return set(self.space).intersection(inspect.signature(self.average).parameters)

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


def _stretched(points: list[list[float]]) -> list[list[float]]:
    """The points, such that the outermost of each dimension are at 0 and 1."""
    if len(points) == 1:
        return points
    x = torch.tensor(points, dtype=torch.float64)
    low, high = x.aminmax(dim=0)
    return ((x - low) / (high - low)).tolist()


# Hyperparameters besides the learning rate: where each is searched, and its default.
# Flooding, IFlood and SoftAD have none published: 0.05 is the middle of Ishida et al.'s
# grid on images, 0.1 the size of what the SoftAD paper reports as selected.
_LEVEL = {"level": log(0.005, 1.0, 0.05)}
_THETA = {"theta": log(0.005, 1.0, 0.1)}
_GAMMA = {"gamma": even(0.05, 0.95, 0.5, ())}  # 0: held-out losses as levels; 1: ERM
_RHO = {"rho": log(0.01, 2.0, 0.05)}
_ASAM = {"rho": log(0.05, 10.0, 0.5)}
_RSAM = _RHO | {"sigma": log(0.001, 0.5, 0.01)}
_LOOKSAM = _RHO | {"alpha": even(0.1, 1.0, 0.7)}
_GSAM = _RHO | {"alpha": log(0.02, 1.0, 0.2)}
_FRIENDLY = _RHO | {"lam": even(0.6, 0.95, 0.9, _BOTH)}
_GNP = {"r": log(0.01, 5.0, 0.1), "alpha": even(0.1, 1.0, 0.8, ())}  # 1: SAM
_SIGMA = {"sigma": log(0.002, 0.5, 0.01)}
_LAM = {"lam": log(1e-4, 1.0, 0.1)}
_START = {"start": even(0.0, 0.95, 0.75, ())}  # 1: ERM
_DECAY = {"decay": near(0.8, 0.9995, 0.999)}
_BSAM = {"rho": log(0.001, 5.0, 0.01)}
_WEIGHT_DECAY = {"weight_decay": log(1e-4, 1.0, 0.01)}
_SHORT = (0, (2, 1))
_LONG = (0, (7, 2))
_DOTS = (0, (1, 3))
_DASH_DASH_DOT = (0, (4, 1, 4, 1, 1, 1))
_DASH_DOT_DOT = (0, (5, 1, 1, 1, 1, 1))
_, _TUNED, _ONE_RATE, _PAPER = Design

_TABLE = (
    Tuned(ERM, {}, Look("black", "-", "o"), _PAPER),
    Tuned(methods.Flooding, _LEVEL, Look("red", "--", "s"), _PAPER),
    Tuned(methods.IFlood, _LEVEL, Look("maroon", ":", ">"), _PAPER),
    Tuned(methods.SoftAD, _THETA, Look("green", "-", "^"), _PAPER),
    Tuned(methods.SAM, _RHO, Look("blue", "-.", "P"), _PAPER),
    Tuned(methods.NSO, _SIGMA, Look("gold", "-", "h"), _ONE_RATE, forwards=1),
    Tuned(methods.WeightNoise, _SIGMA, Look("plum", ":", "d"), _ONE_RATE, forwards=1),
    Tuned(methods.GNP, _GNP, Look("pink", _LONG, "*"), _ONE_RATE),
    Tuned(methods.ASAM, _ASAM, Look("violet", "--", "X"), _ONE_RATE),
    Tuned(methods.FAM, _LAM, Look("sky", _DASH_DOT_DOT, "H"), _ONE_RATE),
    Tuned(adaflood, _GAMMA, Look("red", "-.", "v"), _ONE_RATE, "AdaFlood", auxiliary=5),
    Tuned(methods.USAM, _RHO, Look("blue", ":", "<"), _TUNED),
    Tuned(methods.RSAM, _RSAM, Look("blue", _SHORT, ">"), _TUNED, forwards=1),
    Tuned(ERM, _START, Look("indigo", "-.", "p"), _TUNED, "SWA", average=swa),
    Tuned(ERM, _DECAY, Look("indigo", ":", "v"), _TUNED, "EMA", average=ema),
    Tuned(ERM, _WEIGHT_DECAY, Look("indigo", "--", "h"), _TUNED, "AdamW", ADAMW),
    Tuned(ERM, {}, Look("black", "--", "s"), _TUNED, "SGD", SGD),
    Tuned(ERM, _BSAM, Look("blue", _DASH_DOT_DOT, "8"), _TUNED, "BSAM", BSAM),
    Tuned(methods.LookSAM, _LOOKSAM, Look("blue", _LONG, "^"), _TUNED),
    Tuned(methods.GSAM, _GSAM, Look("blue", _DOTS, "D"), _TUNED),
    Tuned(methods.FriendlySAM, _FRIENDLY, Look("blue", _DASH_DASH_DOT, "s"), _TUNED),
    Tuned(
        methods.SAM,
        _RHO | _DECAY,
        Look("indigo", "-", "H"),
        _TUNED,
        "SAM-EMA",
        average=ema,
    ),
    Tuned(
        methods.NSO,
        _SIGMA | _DECAY,
        Look("indigo", _LONG, "*"),
        _TUNED,
        "NSO-EMA",
        average=ema,
        forwards=1,
    ),
)
METHODS: Mapping[str, Tuned] = {tuned.name: tuned for tuned in _TABLE}

# Exported and not tuned here: `Every` is tuned and drawn under the name of the method
# that it holds.
UNDECLARED = {"Every": None}
LOOKS = {name: tuned.look for name, tuned in METHODS.items()} | UNDECLARED
