"""GNP from ERM to SAM: the map of radius r and mixing coefficient alpha.

GNP's gradient is (1 - alpha) grad L(w) + alpha grad L(w + r g / ||g||), so alpha = 0 is
ERM at any radius, and alpha = 1 is SAM of radius r: both edges of the map are known
methods. A perceptron that fits its training images learns at each point of the map, all
at one learning rate; the points of a seed are one ensemble, which shares initial weights
and the order of batches. Nothing is tuned.

Y. Zhao, H. Zhang and X. Hu, "Penalizing gradient norm for efficiently improving
generalization in deep learning", ICML 2022, recommend alpha = 0.6 to 0.8.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace

from flatnb.experiments import images
from flatnb.experiments.experiment import Cost, Experiment
from flatnb.experiments.images import DIGITS, Images
from flatnb.experiments.tuning import SGD
from flatnb.results.sweep import Job

ALPHAS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
RADII = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # 0.02 is all but ERM, 2 is too far
LR = 0.1
_MNIST = replace(
    DIGITS, name="MNIST-n5000-mlp", data="MNIST", batch=100, n_train=5000, n_val=2000
)
_FRESH = range(100, 110)  # seeds that no range or rate was chosen by
TASKS = {
    DIGITS: (Cost(3, 0.05, 0.15), _FRESH),
    _MNIST: (Cost(3, 0.4, 1.8), _FRESH[:5]),
}


def experiments() -> Iterator[Experiment]:
    """The map of each task."""
    for task, (cost, seeds) in TASKS.items():
        yield experiment(task, cost, seeds)


def experiment(task: Images, cost: Cost, seeds: Sequence[int]) -> Experiment:
    """The map of one task, a setting per alpha and r; `cost` is that of a seed.

    >>> experiment(DIGITS, Cost(3, 0.05, 0.15), [0]).settings[6:8]
    [{'lr': 0.1, 'r': 2.0, 'alpha': 0.0}, {'lr': 0.1, 'r': 0.02, 'alpha': 0.2}]
    """
    points = itertools.product(ALPHAS, RADII)
    settings = [{"lr": LR, "r": r, "alpha": alpha} for alpha, r in points]
    stated = asdict(task)
    runs = {"task": stated, "method": "GNP", "settings": settings, "seeds": [*seeds]}
    short = {"task": {**stated, "epochs": 1, "every": 1}, "seeds": [*seeds[:1]]}
    call = f"{images.__name__}:train_perceptrons"
    name = f"gnp-map/{task.name}"
    return Experiment(
        name=f"{name}/GNP",
        cost=cost.times(len(seeds)),
        job=Job(call, runs),
        sample=Job(call, {**runs, **short, "settings": settings[-1:]}),
        task={
            **stated,
            "name": name,
            "optimizer": SGD.name,
            "schedule": "cosine",
            "budget_unit": "epochs",
            "note": "alpha = 0 is ERM, alpha = 1 is SAM; the whole map is of interest",
        },
        method="GNP",
        passes=2,
        settings=settings,
        seeds=[*seeds],
        space="nothing is chosen: every point of the map is looked at, ERM first",
        budget=1,
        tuned=False,
    )
