from dataclasses import asdict, replace

import numpy as np
import pytest
from made import FREE, record_of

from flatnb.experiments import gnp_map, images
from flatnb.experiments.images import DIGITS
from flatnb.results import records

SHORT = replace(DIGITS, epochs=2, every=2)
RADII = (0.02, 0.5)


def trained(method, settings):
    runs = {"task": asdict(SHORT), "method": method, "seeds": [3]}
    metrics = images.train_perceptrons(settings=settings, **runs)["metrics"]
    names = ("train_loss", "test_loss", "norm")
    return [[metrics[name][k][0][-1] for name in names] for k in range(len(settings))]


def gnp(alpha):
    lr = gnp_map.LR
    return trained("GNP", [{"lr": lr, "r": r, "alpha": alpha} for r in RADII])


def test_the_edge_alpha_0_is_erm_at_any_radius():
    (erm,) = trained("ERM", [{"lr": gnp_map.LR}])
    for point in gnp(0.0):
        assert point == pytest.approx(erm, rel=1e-3)
    assert gnp(0.4)[1] != pytest.approx(erm, rel=1e-2)


def test_the_edge_alpha_1_is_sam_of_that_radius():
    sam = trained("SAM", [{"lr": gnp_map.LR, "rho": r} for r in RADII])
    edge = gnp(1.0)
    assert edge[0] == pytest.approx(sam[0], rel=1e-3)
    assert edge[1] == pytest.approx(sam[1], rel=1e-3)
    assert edge[0] != pytest.approx(sam[1], rel=1e-2)


def test_makes_a_valid_record_of_the_whole_map():
    task = replace(SHORT, epochs=1, every=1, n_train=128)
    one = gnp_map.experiment(task, FREE, [5])
    record = record_of(one)
    assert records.verify(record, one.sample)["inside"].all()
    assert np.shape(record["final"]["test_loss"]) == (6 * 7, 1)
    corners = [record["settings"][k] for k in (0, -1)]
    assert [(s["alpha"], s["r"]) for s in corners] == [(0.0, 0.02), (1.0, 2.0)]
