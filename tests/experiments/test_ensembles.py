import dataclasses

import torch

from flatnb import models
from flatnb.data import Split, plane, stack
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
    torch.testing.assert_close((-before[0, 4]).exp() + (-after[0, 4]).exp(), torch.tensor(1.0))
    # It trained the nets of the other parts, and nothing else of its own, of 4 or 5.
    assert 23 / 2 < (before[0] != after[0]).sum() <= 23 - 3
    torch.testing.assert_close(before[1], after[1])
