import dataclasses

import pytest
import torch
from made import record_of

from flatnb import records
from flatnb.experiments import finetune, images

SOURCE = images.Task("digits", "digits", "small_cnn", 2, 1, 64, 2, 2)
TASK = finetune.Task("tiny", SOURCE, shots=3, epochs=2, every=1)


def test_halves_share_no_class_and_few_images_are_trained_on():
    data = images.load(SOURCE, 0)
    first, second = finetune.halves(data, 4, seed=0)
    assert first.classes + second.classes == data.classes
    assert len(first.train) == int((data.train.y < 5).sum())
    assert torch.bincount(second.train.y).tolist() == [4] * 5
    assert int(second.test.y.max()) == 4
    with pytest.raises(ValueError, match="shots are wanted"):
        finetune.halves(data, 10_000, seed=0)


@pytest.mark.parametrize("method", ["NSO", "EMA"])
def test_makes_a_valid_record(method):
    one = finetune.experiment(TASK, method, value=1, gpu_minutes=1, cpu_minutes=1)
    record = record_of(one)
    assert all(check.inside for check in records.verify(record))


def test_a_run_does_not_change_what_the_next_starts_from():
    given = {"task": dataclasses.asdict(TASK), "method": "ERM", "setting": {"lr": 0.1}, "seed": 0}
    assert finetune.train_one(**given) == finetune.train_one(**given)
