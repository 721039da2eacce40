from dataclasses import asdict, replace

import pytest
import torch
from made import FREE, record_of
from test_runner import CNN

from flatnb.experiments import finetune, images
from flatnb.experiments.images import FineTuning
from flatnb.experiments.tuning import METHODS
from flatnb.results import records

SOURCE = replace(CNN, epochs=1, n_train=None, n_val=None)
TASK = FineTuning(name="tiny", source=SOURCE, shots=3, epochs=2, every=1)


def halves(data, shots):
    second = finetune._with_classes(data, 5, 10)
    return finetune._with_classes(data, 0, 5), finetune._with_shots(second, shots, 0)


def test_halves_share_no_class_and_few_images_are_trained_on():
    data = images.load(SOURCE, 0)
    first, second = halves(data, 4)
    assert first.classes + second.classes == data.classes
    assert len(first.train) == int((data.train.y < 5).sum())
    assert torch.bincount(second.train.y).tolist() == [4] * 5
    assert int(second.test.y.max()) == 4
    with pytest.raises(ValueError, match="shots=10000; allowed: at most"):
        halves(data, 10_000)


@pytest.mark.parametrize("method", ["NSO", "EMA"])
def test_makes_a_valid_record(method):
    one = images.experiment(TASK, METHODS[method], FREE)
    record = record_of(one)
    assert records.verify(record, one.sample)["inside"].all()


def test_a_run_does_not_change_what_the_next_starts_from():
    given = {"task": asdict(TASK), "method": "ERM", "setting": {"lr": 0.1}, "seed": 0}
    assert finetune.train_one(**given) == finetune.train_one(**given)
