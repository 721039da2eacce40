from dataclasses import replace

import pytest
import torch
from test_runner import CNN

from flatnb.experiments import finetune, images
from flatnb.experiments.finetune import FineTuning
from flatnb.experiments.runner import Training, train_net
from flatnb.experiments.tuning import METHODS

SOURCE = replace(CNN, epochs=1, n_train=None, n_val=None)
TASK = FineTuning(name="tiny", source=SOURCE, shots=3, epochs=2)


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


def test_a_run_does_not_change_what_the_next_starts_from():
    def tuned():
        start, data, _ = finetune.start(TASK, 0)
        net = finetune.renewed(start, len(data.classes), 0)
        before = [p.clone() for p in net.parameters()]
        train_net(net, data, METHODS["ERM"], {"lr": 0.1}, Training(2, 2, 0))
        assert not any(map(torch.equal, before, net.parameters()))
        return before

    assert all(map(torch.equal, tuned(), tuned()))


def test_only_the_last_layer_is_new():
    start, data, _ = finetune.start(TASK, 0)
    net = finetune.renewed(start, len(data.classes), 0)
    assert all(map(torch.equal, net[:-1].parameters(), start[:-1].parameters()))
    assert not torch.equal(net[-1].weight, start[-1].weight)
    other = finetune.renewed(start, len(data.classes), 1)
    assert not torch.equal(net[-1].weight, other[-1].weight)
