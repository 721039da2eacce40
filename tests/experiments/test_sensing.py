import pytest
from made import record_of

from flatnb.experiments import sensing
from flatnb.results import records

TINY = {"d": 6, "rank": 1, "m": 40}


def test_makes_a_valid_record_at_a_small_size():
    one = sensing.experiment("NSO", {**TINY, "epochs": 60})
    record = record_of(one)
    assert records.verify(record, one.sample)["inside"].all()
    assert record["settings"][0]["sigma"] == 0.08


def test_without_noise_both_rules_are_gradient_descent():
    rules = [{"lr": 0.0025, "sigma": 0.0, "sides": sides} for sides in (1, 2)]
    value = sensing.train(rules=rules, seeds=[3], epochs=20, every=10, **TINY)
    first, second = value["metrics"]["distance"]
    assert first[0] == pytest.approx(second[0], rel=1e-4)
    assert value["epochs"] == [0, 10, 20]
