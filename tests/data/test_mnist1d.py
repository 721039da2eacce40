"""MNIST-1D: the signals of the package, and what surrounds them."""

import importlib
import random

import numpy as np
import pytest
import torch

from flatnb import data

# The package mnist1d 0.0.2 with num_samples=20, train_split=1: the labels, the first
# signal, and point 20 of all signals.
LABELS = [4, 8, 2, 2, 8, 1, 3, 6, 7, 0, 4, 0, 5, 5, 7, 3, 9, 1, 9, 6]
FIRST = [
    *(0.5018, 0.4972, 0.1871, -0.158, -0.1088, -0.0265, 0.5947, 0.2784, 0.1485),
    *(-0.0849, 0.3327, 0.6847, 0.6024, 0.5718, 0.3804, 0.2938, 0.4844, 0.6854, 0.4345),
    *(0.0886, 0.0788, 0.2723, 0.1337, -0.1644, -1.2904, -2.5539, -2.4768, -0.349),
    *(-0.2717, -0.3033, 0.0256, -0.0147, -0.3107, -0.6878, -1.1152, -1.392, -0.9023),
    *(-0.6341, -0.778, -1.1205),
]
POINT_20 = [
    *(0.0788, -0.6297, -0.6785, 0.5711, -0.0662, -0.043, 2.0445, 0.3803, 0.1045),
    *(-0.0081, 0.2181, 0.1754, -1.0084, 1.2396, -0.7705, 1.4785, -0.3801, -0.7634),
    *(0.4037, -0.3908),
]


def test_from_the_same_random_numbers_the_signals_are_those_of_the_package() -> None:
    generator = importlib.import_module("flatnb.data.mnist1d")
    rng = np.random.RandomState(42)
    draws = [
        (
            *(rng.rand(), rng.rand(), rng.choice(48)),
            *(rng.randn(72), rng.randn(72), rng.rand()),
        )
        for _ in LABELS
    ]
    order = rng.permutation(len(LABELS))
    y = np.repeat(np.arange(10), 2)
    columns = map(np.array, zip(*draws, strict=True))
    x = generator._signals(y, generator.Draws(*columns))
    x = ((x - x.mean()) / x.std())[order]
    assert y[order].tolist() == LABELS
    assert x[0] == pytest.approx(FIRST, abs=1e-4)
    assert x[:, 20] == pytest.approx(POINT_20, abs=1e-4)


def test_has_the_published_sizes_and_equally_many_of_each_class() -> None:
    made = data.mnist1d(n_test=1000)
    assert made.train.x.shape == (4000, 40) and made.train.x.dtype == torch.float32
    assert made.train.y.bincount().tolist() == [400] * 10
    assert made.test.y.bincount().tolist() == [100] * 10
    assert made.train.x.mean().abs() < 1e-5
    assert (made.train.x.std() - 1).abs() < 1e-3


def test_noise_replaces_its_share_of_the_training_labels_and_nothing_else() -> None:
    sizes = {"n_train": 1000, "n_val": 50, "n_test": 50}
    clean, noisy = (data.mnist1d(**sizes, label_noise=p, seed=2) for p in (0.0, 0.15))
    for split in ("train", "val", "test"):
        assert torch.equal(getattr(clean, split).x, getattr(noisy, split).x)
    assert torch.equal(clean.val.y, noisy.val.y)
    assert torch.equal(clean.test.y, noisy.test.y)
    steps = (noisy.train.y - clean.train.y) % 10
    assert int((steps > 0).sum()) == 150
    assert set(steps.tolist()) == set(range(10))


def test_the_seed_decides_and_parts_do_not_depend_on_the_size_of_others() -> None:
    def made(seed: int, n_test: int) -> data.Data:
        return data.mnist1d(n_train=60, n_val=60, n_test=n_test, seed=seed)

    one, large, other = made(1, 60), made(1, 90), made(2, 60)
    assert torch.equal(one.train.x, large.train.x)
    assert torch.equal(one.val.x, large.val.x)
    assert not torch.equal(one.train.x, other.train.x)
    assert not torch.equal(one.train.x, one.val.x)
    assert not torch.equal(one.val.x, one.test.x)


def test_the_global_random_streams_stay_as_they_were() -> None:
    def drawn() -> tuple[float, float, float]:
        return random.random(), np.random.rand(), float(torch.rand(()))

    def start() -> None:
        random.seed(0), np.random.seed(0), torch.manual_seed(0)

    start()
    expected = drawn()
    start()
    data.mnist1d(n_train=20, n_val=20, n_test=20, label_noise=0.5)
    assert drawn() == expected


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"label_noise": 1.0}, r"label_noise=1\.0; allowed: a share in \[0, 1\)"),
        ({"n_train": 1}, "n_train=1"),
        ({"n_test": 10.0}, r"n_test=10\.0"),
        ({"seed": -1}, "seed=-1"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_names_what_is_out_of_range(arguments: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        data.mnist1d(**{"n_train": 20, "n_val": 20, "n_test": 20, **arguments})
