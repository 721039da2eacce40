"""A grid of hyperparameters and seeds, trained at once as one ensemble: `fit_grid`."""

from __future__ import annotations

import itertools
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from flatnb._checks import sequence, shown
from flatnb.data import Data, stack
from flatnb.ensemble import Ensemble, member_learning_rates
from flatnb.methods import Method
from flatnb.train import Callback, fit

if TYPE_CHECKING:
    import pandas


def fit_grid(
    make_model: Callable[[], nn.Module],
    make_data: Callable[[int], Data],
    method: Method | Callable[..., Method],
    grid: Mapping[str, Sequence[float]] | None = None,
    *,
    seeds: Sequence[int],
    epochs: int,
    every: int | None = None,
    lr: float = 1e-3,
    optimizer: Callable[..., Optimizer] = torch.optim.Adam,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
    device: torch.device | str = "cpu",
) -> tuple[pandas.DataFrame, Ensemble]:
    """Train every combination of a grid on every seed, as one `Ensemble`.

    The members are `itertools.product(*grid.values(), seeds)`, in this order. Those of
    one seed share data and initial weights, and all share the order of the batches, so
    any two members of one seed are a paired comparison.

    Args:
        make_model: see `Ensemble`.
        make_data: gives the `Data` of a seed, of one size for all.
        method: called with a tensor (members,) for each column of `grid` but "lr", by
            name, such as `flatnb.SAM`; or a method, for which those columns only name
            the members.
        grid: numbers to try, by name; "lr" is the learning rate.
        every: epochs between two evaluations; if not given, only the last has one.
        optimizer: called as optimizer(parameters, lr=...); for several learning rates
            one that `member_learning_rates` allows.
        seed: of the training, like `epochs` and `callbacks`; see `fit`.

    Returns:
        `Run.frame` with the grid's columns, "seed" and "member"; the trained ensemble.

    >>> import flatnb
    >>> from flatnb import data, models
    >>> table, nets = flatnb.fit_grid(
    ...     lambda: models.mlp(2, 4, 1, 2),
    ...     lambda seed: data.plane("gaussian", n_test=100, seed=seed),
    ...     flatnb.SAM, {"rho": [0.05, 0.1]}, seeds=range(3), epochs=2,
    ... )
    >>> table.query("epoch == 2").groupby("rho").test_accuracy.count().to_dict()
    {0.05: 3, 0.1: 3}
    """
    import pandas

    columns: dict[str, Sequence[Any]] = {**(grid or {})}
    if "seed" in columns:
        raise ValueError(f"grid={shown(grid)}; allowed: names other than 'seed'")
    columns["seed"] = sequence("seeds", seeds, numbers.Integral, "integers")
    rows = list(itertools.product(*columns.values()))
    if not rows:
        raise ValueError(f"grid and seeds are {shown(columns)}; allowed: no empty list")
    keys = pandas.DataFrame(rows, columns=list(columns)).rename_axis("member")
    values = {name: keys[name].tolist() for name in columns}
    seeds, rates = values.pop("seed"), values.pop("lr", [lr] * len(rows))
    if not isinstance(method, Method):
        method = method(**{name: torch.tensor(v) for name, v in values.items()})
    sets = {s: make_data(s) for s in dict.fromkeys(seeds)}
    nets = Ensemble(make_model, len(rows), seeds).to(device)
    stepper = optimizer(nets.parameters(), lr=max(rates))
    member_learning_rates(stepper, rates)
    run = fit(
        nets,
        stack([sets[s] for s in seeds]),
        method,
        stepper,
        epochs=epochs,
        every=epochs if every is None else every,
        seed=seed,
        callbacks=callbacks,
    )
    history = run.frame().drop(columns=["method", "seed"])
    return keys.reset_index().merge(history, on="member"), nets
