"""What the pages of SAM and GNP open with, and no marker holds, is what records say."""

import pytest

from flatnb.results import compare, verdicts

MAPS = ["gnp-map/digits-mlp/GNP", "gnp-map/MNIST-n5000-mlp/GNP"]


@pytest.mark.parametrize("name", ["SAM", "GNP"])
def test_better_at_equal_epochs_and_not_significantly_so_at_equal_passes(
    name: str,
) -> None:
    assert verdicts.gains().loc[name, "verdict"] == "better"
    shorter = [
        f"plane/*/{name}/narrow-tuned-equal-passes",
        "plane/*/ERM/narrow-tuned",
    ]
    row = verdicts.gains(shorter).loc[name]
    assert row["p_holm"] > 0.05 and row["verdict"] == "no gain worth having"


def test_gnp_is_not_significantly_different_from_sam() -> None:
    pair = ["plane/*/GNP/narrow-tuned", "plane/*/SAM/narrow-tuned"]
    assert verdicts.gains(pair, baseline="SAM").loc["GNP", "p_holm"] > 0.05


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("metric", ["test_accuracy", "test_loss"])
def test_no_mixture_is_better_than_sam_at_its_best_radius(
    name: str, metric: str
) -> None:
    nets = compare.nets([name])
    nets = nets[nets["alpha"] > 0]
    means = nets.groupby(["alpha", "r"], as_index=False)[["val_accuracy", "val_loss"]]
    tuned = nets.merge(compare.best(means.mean(), by=["alpha"])[["alpha", "r"]])
    tuned = tuned.assign(method=tuned["alpha"].map("{:g}".format), task=name)
    tests = compare.paired(tuned, "1", metric).assign(at_edge=False)
    assert len(tests) == 4
    assert (verdicts.verdicts(tests, metric)["verdict"] != "better").all()


def test_on_mnist_the_radius_matters_more_than_alpha() -> None:
    nets = compare.nets(MAPS[1:])
    means = nets[nets["alpha"] > 0].groupby(["alpha", "r"])["test_accuracy"].mean()
    by_alpha, by_radius = (means.groupby(name).mean() for name in ("alpha", "r"))
    assert by_radius.max() - by_radius.min() > 3 * (by_alpha.max() - by_alpha.min())


@pytest.mark.parametrize("name", MAPS)
def test_the_best_of_a_map_ends_with_a_longer_gradient(name: str) -> None:
    means = compare.nets([name]).groupby(["alpha", "r"])
    norms = means["grad_norm"].mean()
    best = means["val_accuracy"].mean().idxmax()
    assert norms[best] > 1.5 * norms[0.0].iloc[0]
