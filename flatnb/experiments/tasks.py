"""What the experiments train on. All fields of a task but its cost are in records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple


class Cost(NamedTuple):
    """What a task is worth (1: the most), and the minutes of a run of one pass.

    A run is one net; in the plane all settings and seeds, in matrix sensing a setting.
    """

    value: int
    gpu_minutes: float  # estimated
    cpu_minutes: float  # on one core, from a few epochs

    def times(self, runs: float) -> Cost:
        """The cost of so many runs."""
        return Cost(self.value, self.gpu_minutes * runs, self.cpu_minutes * runs)


Facts = dict[str, Any]  # a task as JSON has it


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is common to tasks."""

    cost: Cost = field(default=Cost(9, 0.0, 0.0))

    def stated(self) -> Facts:
        """All fields but the cost."""

        def without_cost(fields: list[tuple[str, Any]]) -> Facts:
            return {name: value for name, value in fields if name != "cost"}

        return asdict(self, dict_factory=without_cost)


@dataclass(frozen=True, kw_only=True)
class Plane(Task):
    """Two classes in the plane, see `flatnb.data.plane`, and a perceptron."""

    data: str = "gaussian"
    noise: float = 0.05
    scale: str  # a name for width, epochs, budget and seeds
    width: int
    epochs: int
    interval: int = 50  # epochs from one evaluation to the next
    n_test: int = 2_000
    budget: int  # settings per method
    seeds: int
    tuned: bool = False  # the learning rate, too; else `plane.LR` for all
    equal_passes: bool = False  # p passes per step: 1/p of the epochs


@dataclass(frozen=True, kw_only=True)
class Images(Task):
    """A data set of images, a net, and a training; `None` images: all there are."""

    name: str
    data: str  # a name of `flatnb.data.images`, or of a folder in $FLATNB_DATA
    net: str  # of `flatnb.models`, `width` wide; "mlp" has `depth` hidden layers
    width: int
    epochs: int
    batch: int
    budget: int  # settings per method
    seeds: int
    depth: int = 1
    n_train: int | None = None
    n_val: int | None = None
    n_test: int | None = None
    augment: str = "none"  # or names of `images.AUGMENTATIONS`
    weight_decay: float = 0.0  # of SGD
    every: int = 10  # epochs from one evaluation to the next


@dataclass(frozen=True, kw_only=True)
class FineTuning(Task):
    """A net trained on half of the classes, fine-tuned on few images of the others."""

    name: str
    source: Images  # the first training
    shots: int  # images of each class that are fine-tuned on
    epochs: int
    every: int = 10


@dataclass(frozen=True, kw_only=True)
class Sensing(Task):
    """Matrix sensing, see `flatnb.data.sensing`, of the published size."""

    d: int = 100
    rank: int = 5
    m: int = 2500
    epochs: int = 3000
    interval: int = 100
    seeds: int = 5


_PAPER = Plane(scale="paper", width=500, epochs=500, n_test=20_000, budget=40, seeds=15)
# As many settings and seeds, in an hour and a quarter of one core for all methods and
# sets: 200 epochs bring ERM's training loss as low as 500 do at a width of 16.
NARROW = replace(_PAPER, scale="narrow", width=32, epochs=200, n_test=2_000)
# The paper's net on a CPU, for an hour: every fourth value, 5 seeds, and one set.
_COARSE = replace(_PAPER, scale="coarse", n_test=2_000, budget=10, seeds=5)


def _plane() -> Iterator[Plane]:
    yield replace(_COARSE, cost=Cost(2, 0.5, 10.0))
    for scale in (
        replace(NARROW, cost=Cost(1, 0.5, 0.6)),
        replace(_PAPER, cost=Cost(3, 0.7, 75.0)),
        replace(NARROW, cost=Cost(6, 0.5, 0.6), tuned=True),
        replace(NARROW, cost=Cost(7, 0.5, 0.6), equal_passes=True),
        replace(_PAPER, cost=Cost(7, 0.7, 75.0), tuned=True),
    ):
        for data in ("gaussian", "sinusoid", "spiral"):
            for noise in (0.0, 0.05, 0.1):
                yield replace(scale, data=data, noise=noise)


DIGITS = Images(
    name="digits-mlp",
    data="digits",
    net="mlp",
    width=64,
    epochs=40,
    batch=64,
    budget=20,
    seeds=5,
    cost=Cost(4, 0.02, 0.055),
)
_CNN = Images(
    name="cifar10-jpeg-resnet18",
    data="cifar10-jpeg",
    net="resnet18",
    width=64,
    epochs=50,
    batch=128,
    budget=4,
    seeds=3,
    augment="crop, flip",
    weight_decay=5e-4,
    cost=Cost(5, 2.0, 2800.0),
)
_PART = replace(_CNN, n_train=4000, n_val=1000, n_test=2000)
_RESNET34 = replace(_CNN, net="resnet34", cost=Cost(8, 3.5, 5800.0))

TASKS: tuple[Plane | Images | FineTuning | Sensing, ...] = (
    *_plane(),
    DIGITS,
    replace(
        DIGITS,
        name="MNIST-n5000-mlp",
        data="MNIST",
        epochs=20,
        batch=100,
        budget=12,
        n_train=5000,
        n_val=2000,
        cost=Cost(4, 0.1, 0.2),
    ),
    replace(
        _PART,
        name="cifar10-jpeg-n4000-small_cnn",
        net="small_cnn",
        width=16,
        epochs=15,
        cost=Cost(5, 0.1, 0.8),
    ),
    # A CPU's share of the next: few images, 1/8 of the width, 1/5 of the epochs.
    replace(
        _PART,
        name="cifar10-jpeg-n4000-resnet18",
        width=8,
        epochs=10,
        batch=64,
        cost=Cost(5, 0.1, 2.3),
    ),
    _CNN,
    replace(_RESNET34, name="CIFAR10-resnet34", data="CIFAR10"),
    replace(_RESNET34, name="CIFAR100-resnet34", data="CIFAR100"),
    replace(
        _CNN, name="SVHN-resnet18", data="SVHN", epochs=30, cost=Cost(8, 2.0, 2400.0)
    ),
    replace(
        DIGITS,
        name="FashionMNIST-mlp",
        data="FashionMNIST",
        width=1000,
        epochs=50,
        batch=200,
        budget=12,
        cost=Cost(7, 1.0, 60.0),
    ),
    FineTuning(
        name="digits-10-shots",
        source=replace(
            DIGITS, name="digits", net="small_cnn", width=16, epochs=20, budget=8
        ),
        shots=10,
        epochs=30,
        cost=Cost(5, 0.05, 0.15),
    ),
    FineTuning(
        name="cifar10-jpeg-20-shots",
        source=replace(_CNN, name="cifar10-jpeg", epochs=30),
        shots=20,
        epochs=50,
        cost=Cost(7, 1.0, 850.0),
    ),
    Sensing(cost=Cost(2, 0.1, 1.6)),
)
