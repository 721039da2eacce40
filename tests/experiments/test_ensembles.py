import dataclasses

import torch

from flatnb import models
from flatnb.data import Split, plane, stack
from flatnb.experiments import ensembles
from flatnb.experiments.ensembles import held_out_losses


def held_out(sets):
    how = {"optimizer": "adam", "epochs": 4, "seed": 3}
    return held_out_losses(lambda: models.mlp(2, 5, 1, 2), stack(sets), [7, 8], **how)


def test_a_label_does_not_train_the_nets_that_score_it():
    sets = [plane("gaussian", n_train=23, n_test=20, seed=seed) for seed in (1, 2)]
    y = sets[0].train.y.clone()
    y[4] = 1 - y[4]
    other = dataclasses.replace(sets[0], train=Split(sets[0].train.x, y))
    before, after = held_out(sets), held_out([other, sets[1]])
    assert before.shape == (2, 23)
    # The same net finds the other label as likely as it found this one unlikely.
    torch.testing.assert_close(
        (-before[0, 4]).exp() + (-after[0, 4]).exp(), torch.tensor(1.0)
    )
    # It trained the nets of the other parts, and nothing else of its own, of 4 or 5.
    assert 23 / 2 < (before[0] != after[0]).sum() <= 23 - 3
    torch.testing.assert_close(before[1], after[1])


def test_on_a_gpu_there_are_as_many_ensembles_as_its_free_memory_asks_for(monkeypatch):
    net = models.mlp(2, 8, 1, 2)
    one = 20 * sum(4 * p.numel() for p in net.parameters())
    for free, sizes in (
        (6 * one, [6]),
        (6 * one - 1, [3, 3]),
        (2 * one, [2, 2, 2]),
        (0, [1] * 6),
    ):
        monkeypatch.setattr(
            ensembles, "available_bytes", lambda device, free=free: free
        )
        parts = ensembles._parts(net, 6, torch.device("cuda"))
        assert [len(part) for part in parts] == sizes
