r"""Flooding's double descent by epoch: a perceptron on MNIST-1D with noisy labels.

T. Ishida et al., "Do we need zero training loss after achieving zero training error?",
ICML 2020, report that the test loss falls, rises, and falls again while the training
loss floats at the flood level. Here every flood level, 0 (ERM) included, trains under
every seed for hundreds of epochs, at one learning rate without a schedule; a seed is
signals, labels and initial weights, and the order of batches is shared. Nothing is
tuned.

**Criterion**, written before the recorded runs. Let :math:`c_t` be a curve over
evaluations, the test loss or the test error, and :math:`m_t` its mean over evaluations t
to t + 4. The *hump* is the smaller of the rise before and the fall after the top,
relative to it:

.. math:: \max_t \frac1{m_t}
    \min\Big(m_t - \min_{s \le t} c_s,\; m_t - \min_{s \ge t} m_s\Big).

The *noise* is the standard deviation of :math:`m_t` over seeds, relative to the mean; of
all t the median. A seed shows a double descent if its hump is above 5 % and above twice
the noise; a flood level does if nine seeds of ten do. See `humps`. The net, the learning
rate and the criterion were chosen by runs under other seeds, 0 and 1; the criterion was
revised once there, because without the smoothing it took ERM's spikes for a hump.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from flatnb import models
from flatnb.data import mnist1d, stack
from flatnb.experiments.experiment import Cost, Experiment
from flatnb.experiments.runner import Member, Training, Value, train_members
from flatnb.experiments.study import tables
from flatnb.experiments.tuning import METHODS
from flatnb.results.sweep import Job

LEVELS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
SEEDS = list(range(10, 20))
LR = 0.1
_WINDOW = 5  # evaluations
SIZES: dict[str, Any] = {
    "n_train": 4000,
    "n_test": 5000,
    "label_noise": 0.15,
    "batch_size": 100,
    "width": 100,
    "hidden": 2,
    "epochs": 1000,
    "every": 10,
}


def train(
    *,
    settings: list[dict[str, float]],
    seeds: list[int],
    n_train: int,
    n_test: int,
    label_noise: float,
    batch_size: int,
    width: int,
    hidden: int,
    epochs: int,
    every: int,
    checkpoint: Path | None = None,
) -> Value:
    """Train each flood level under each seed, as one ensemble.

    >>> tiny = dict(n_train=40, n_test=20, batch_size=20, width=4, hidden=1)
    >>> settings = [{"lr": 0.1, "level": level} for level in (0.0, 0.5)]
    >>> runs = dict(settings=settings, seeds=[0, 1, 2], epochs=4, every=2, **tiny)
    >>> np.array(train(label_noise=0.1, **runs)["metrics"]["test_loss"]).shape
    (2, 3, 3)
    """
    sizes = {"n_train": n_train, "n_test": n_test, "batch_size": batch_size}
    sets = {s: mnist1d(**sizes, label_noise=label_noise, seed=s) for s in seeds}
    value = train_members(
        lambda: models.mlp(40, width, hidden, 10),
        lambda members: stack([sets[member.seed] for member in members]),
        METHODS["Flooding"],
        [Member(setting, seed) for setting in settings for seed in seeds],
        Training(epochs, every, 0, cosine=False, checkpoint=checkpoint),
    )
    return tables(value, len(seeds))


def humps(curves: Any) -> tuple[np.ndarray, float]:
    """The hump of each seed's curve, (seeds,), and the noise, as the criterion has them.

    `curves`, (seeds, evaluations), are of something that training lowers.

    >>> double, single = [4, 1, *[2] * 5, *[1.5] * 5], [4, 1, *[2] * 5, *[3] * 5]
    >>> humps([double, single])[0].tolist()
    [0.25, 0.0]
    """
    table = np.asarray(curves, dtype=float)
    means = np.lib.stride_tricks.sliding_window_view(table, _WINDOW, axis=1).mean(-1)
    before = np.minimum.accumulate(table, axis=1)[:, : means.shape[1]]
    after = np.minimum.accumulate(means[:, ::-1], axis=1)[:, ::-1]
    sides = np.minimum(means - before, means - after)
    noise = np.median(means.std(axis=0, ddof=1) / means.mean(axis=0))
    return (sides / means).max(axis=1, initial=0.0), float(noise)


def experiments() -> Iterator[Experiment]:
    """The one experiment: all flood levels."""
    yield experiment(SIZES)


def experiment(sizes: dict[str, Any]) -> Experiment:
    """All flood levels, at one size."""
    settings = [{"lr": LR, "level": level} for level in LEVELS]
    call = f"{__name__}:train"
    short = {**sizes, "epochs": 2, "every": 2}
    name = f"double-descent/mnist1d-n{sizes['n_train']}"
    return Experiment(
        name=f"{name}/Flooding",
        cost=Cost(3, 2.0, 17.0),
        job=Job(call, {**sizes, "settings": settings, "seeds": SEEDS}),
        sample=Job(call, {**short, "settings": settings[-1:], "seeds": SEEDS[:1]}),
        task={
            **sizes,
            "name": name,
            "optimizer": "SGD, momentum 0.9",
            "schedule": "constant",
            "budget_unit": "epochs",
            "note": "level 0 is ERM; label noise in the training labels only",
        },
        method="Flooding",
        passes=1,
        settings=settings,
        seeds=SEEDS,
        space="nothing is chosen: every flood level is looked at, 0 first",
        budget=1,
        tuned=False,
        kept=("train_loss", "test_loss", "test_accuracy"),
    )
