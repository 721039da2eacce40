"""A grid of hyperparameters and seeds, trained at once as one ensemble: `fit_grid`."""

from __future__ import annotations

import itertools
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from flatnb._checks import function, instance, integer, number, place, sequence, shown
from flatnb.ensemble import Ensemble, member_learning_rates
from flatnb.methods import Method
from flatnb.train import Callback, fit

if TYPE_CHECKING:
    import pandas

    from flatnb.data import Data


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
        make_model: makes the plain net, see `Ensemble`.
        make_data: gives the `Data` of a seed, of one size for all.
        method: called with a tensor (members,) for each column of `grid` but "lr", by
            name, such as `flatnb.SAM`; or a method, for which the columns but "lr" only
            name the members.
        grid: values to try by name, such as {"rho": [0.05, 0.1]}; "lr" is the learning
            rate. None: one member per seed.
        seeds: of data and initial weights.
        epochs, seed, callbacks: see `fit`.
        every: evaluate after every so many epochs; at the end only if not given.
        optimizer: called as optimizer(parameters, lr=...); for several learning rates
            one that `member_learning_rates` allows.

    Returns:
        `Run.frame` with the grid's columns, "seed" and "member"; the trained ensemble.

    >>> import flatnb
    >>> from flatnb import data, models
    >>> table, nets = flatnb.fit_grid(
    ...     lambda: models.mlp(2, 4, 1, 2),
    ...     lambda seed: data.plane("gaussian", n_test=100, seed=seed),
    ...     flatnb.SAM,
    ...     {"rho": [0.05, 0.1]},
    ...     seeds=range(3),
    ...     epochs=2,
    ... )
    >>> table.query("epoch == 2").groupby("rho").test_accuracy.count().to_dict()
    {0.05: 3, 0.1: 3}
    """
    import pandas

    from flatnb.data import Data, stack

    function("make_data", make_data, "a function of a seed")
    function("optimizer", optimizer, "a class of torch.optim")
    lr = number("lr", lr, "a number > 0", 0.0)
    every = integer("epochs", epochs) if every is None else every
    columns = _columns(grid, seeds)
    rows = list(itertools.product(*columns.values()))
    keys = pandas.DataFrame(rows, columns=list(columns)).rename_axis("member")
    values = {name: keys[name].tolist() for name in columns}
    seeds, rates = values.pop("seed"), values.pop("lr", [lr] * len(rows))
    if not isinstance(method, Method):
        function("method", method, "a method, or what makes one, such as flatnb.SAM")
        method = method(**{name: torch.tensor(v) for name, v in values.items()})
    sets = {s: make_data(s) for s in dict.fromkeys(seeds)}
    sequence("make_data", sets.values(), Data, "a function that returns a Data")
    nets = Ensemble(make_model, len(rows), seeds).to(place(device))
    stepper = optimizer(nets.parameters(), lr=max(rates))
    member_learning_rates(stepper, rates)
    run = fit(
        nets,
        stack([sets[s] for s in seeds]),
        method,
        stepper,
        epochs=epochs,
        every=every,
        seed=seed,
        callbacks=callbacks,
    )
    history = run.frame().drop(columns=["method", "seed"])
    return keys.reset_index().merge(history, on="member"), nets


def _columns(grid: Any, seeds: Any) -> dict[str, list[Any]]:
    """The columns of a grid and the seeds, checked."""
    allowed = 'lists of numbers by name, such as {"rho": [0.05, 0.1]}'
    grid = {} if grid is None else instance("grid", grid, Mapping, allowed)
    columns: dict[str, list[Any]] = {}
    for name, values in grid.items():
        columns[name] = sequence(f"grid[{name!r}]", values, numbers.Real, allowed)
        if not columns[name] or name in ("seed", "member"):
            raise ValueError(f"grid={shown(grid)}; allowed: {allowed}")
    columns["seed"] = sequence("seeds", seeds, numbers.Integral, "integers")
    if not columns["seed"]:
        raise ValueError("seeds=[]; allowed: at least one integer")
    return columns
