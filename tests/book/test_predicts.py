"""What chapter 18 and the landing page say of the trace and the test loss."""

import numpy as np
import pandas as pd
import pytest

from flatnb.experiments.tuning import METHODS
from flatnb.results import compare, statistics

BOARD = ["plane/*/narrow-tuned", "images/digits*", "images/MNIST-n*"]


@pytest.fixture(scope="module")
def nets() -> pd.DataFrame:
    """Of all settings that were searched with the learning rates of most methods."""
    table = compare.nets(BOARD)
    budgets = {
        record["name"]: record["selection"]["budget"]
        for record in compare.loaded(BOARD)
    }
    own = [name for name, method in METHODS.items() if method.optimizer]
    table = table[table["setting"] < table["record"].map(budgets)]
    table = table[~table["method"].isin(own)].reset_index(drop=True)
    return table.assign(rate=np.floor(4 * np.log10(table["lr"]) + 1e-9))


def signs(table: pd.DataFrame) -> tuple[int, int, int]:
    """On how many sets flatter goes with a lower loss, with a higher one; and of how many."""
    above = table["correlation"] > table["interval"]
    below = table["correlation"] < -table["interval"]
    return int(above.sum()), int(below.sum()), int(table["correlation"].notna().sum())


def test_with_rate_and_training_loss_held_the_trace_has_both_signs(
    nets: pd.DataFrame,
) -> None:
    held = statistics.flatness(
        nets, ["trace"], ["test_loss"], given=["lr", "train_loss"]
    )
    assert signs(held) == (1, 4, 11)


def test_among_nets_of_nearly_one_rate_flatter_goes_with_a_lower_test_loss(
    nets: pd.DataFrame,
) -> None:
    alike = statistics.flatness(
        nets, ["trace"], ["test_loss"], strata=["rate"], given=["train_loss"]
    )
    assert signs(alike) == (11, 0, 11)
    plane = alike[alike["task"].str.startswith("plane/")]
    assert len(plane) == 9
    assert plane["correlation"].mean() == pytest.approx(0.19, abs=0.005)


def test_of_the_nets_that_fit_mnist_the_flatter_have_fewer_errors_and_a_higher_loss(
    nets: pd.DataFrame,
) -> None:
    fit = nets[nets["task"].eq("images/MNIST-n5000-mlp") & (nets["train_loss"] < 0.01)]
    found = statistics.flatness(fit, ["trace"], ["test_loss", "test_error"])
    found = found.set_index("target")[["correlation", "interval"]]
    assert found.loc["test_error"].tolist() == pytest.approx([0.77, 0.10], abs=0.005)
    assert found.loc["test_loss"].tolist() == pytest.approx([-0.39, 0.05], abs=0.005)
