"""Splits, batches, stacks and the tasks in the plane."""

import itertools
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from flatnb import _torchvision, data
from flatnb.data import Data, Split, augment


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(n: int, members: int | None = None) -> Split:
    """Example i of member m is 1000 m + i."""
    x = torch.arange(float(n))[:, None]
    y = torch.arange(n) % 2
    if members is None:
        return Split(x, y)
    return Split(
        torch.stack([1000 * m + x for m in range(members)]),
        y.expand(members, n).clone(),
    )


def task(
    n: int = 10, batch_size: int = 4, members: int | None = None, augment=()
) -> Data:
    splits = [numbered(size, members) for size in (n, 3, 5)]
    return Data("numbered", *splits, ("a", "b"), batch_size, augment)


def noise(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return x + torch.rand(x.shape, generator=generator)


# Splits


def test_a_split_is_indexed_by_slices_lists_and_masks() -> None:
    split = numbered(5)
    assert len(split) == 5 and split.members is None
    assert split[1:3].x.flatten().tolist() == [1, 2]
    assert split[[4, 0]].x.flatten().tolist() == [4, 0]
    assert split[split.y == 1].x.flatten().tolist() == [1, 3]


def test_a_split_with_members_is_indexed_along_its_examples() -> None:
    split = numbered(5, members=2)
    assert len(split) == 5 and split.members == 2
    assert split[torch.tensor([3, 1])].x[..., 0].tolist() == [[3, 1], [1003, 1001]]


@pytest.mark.parametrize(
    ("x", "y", "error", "match"),
    [
        ([1.0], torch.zeros(1), TypeError, r"x=\[1.0\]; allowed: a tensor of float"),
        (torch.zeros(2, 1).byte(), torch.zeros(2), TypeError, r"x\.dtype=torch\.uint8"),
        (torch.zeros(3, 1), torch.zeros(2), ValueError, r"\(3, 1\), y.shape=\(2,\)"),
        (torch.zeros(2, 3, 1), torch.zeros(2, 4), ValueError, r"\(2, 4\)"),
        (torch.zeros(2, 1), torch.zeros(()), ValueError, r"y.shape=\(\)"),
        (torch.zeros(0, 1), torch.zeros(0), ValueError, "at least one example"),
    ],
)
def test_a_split_refuses_what_does_not_fit(x, y, error, match) -> None:
    with pytest.raises(error, match=match):
        Split(x, y.long())


def test_token_ids_are_examples_too() -> None:
    split = Split(torch.tensor([[101, 102], [101, 7]]), torch.tensor([0, 1]))
    assert split[1:].x.tolist() == [[101, 7]]


def test_labels_are_integers() -> None:
    with pytest.raises(TypeError, match=r"y\.dtype=torch\.float32"):
        Split(torch.zeros(2, 1), torch.zeros(2))


# Data


def test_data_refuses_what_does_not_fit() -> None:
    good = task()
    negative = Split(torch.zeros(1, 1), torch.tensor([-1]))
    wide = Split(torch.zeros(1, 2), torch.tensor([0]))
    for change, match in [
        ({"classes": ("only",)}, r"train.y is in \[0, 1\]; allowed: in \[0, 1\)"),
        ({"val": negative}, r"val.y is in \[-1, -1\]"),
        ({"test": wide}, r"test.x.shape=\(1, 2\); allowed: that of train, \(10, 1\)"),
        ({"val": numbered(3, members=2)}, r"val.x.shape=\(2, 3, 1\); allowed"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 2.0}, r"batch_size=2\.0"),
    ]:
        with pytest.raises(ValueError, match=match):
            replace(good, **change)


def test_what_is_on_the_device_already_is_not_copied() -> None:
    given = task()
    moved = given.to("cpu")
    for s in ("train", "val", "test"):
        assert getattr(moved, s).x is getattr(given, s).x
        assert getattr(moved, s).y is getattr(given, s).y
    elsewhere = given.train.to("meta")
    assert elsewhere.x.device.type == elsewhere.y.device.type == "meta"


@pytest.mark.parametrize(
    ("n", "size"), [(10, 4), (12, 4), (9, 4), (9, 20), (5, 1), (1, 1), (2, 2)]
)
def test_an_epoch_holds_each_example_once_but_a_lone_last(n: int, size: int) -> None:
    given = task(n, size)
    batches = list(given.batches(generator()))
    assert len(batches) == given.steps
    lengths = [len(y) for _, y in batches]
    lone = n % size == 1 and size > 1
    assert sum(lengths) == n - lone
    assert lengths[:-1] == [size] * (len(lengths) - 1)
    seen = torch.cat([x for x, _ in batches]).flatten().long()
    assert len(seen.unique()) == n - lone
    assert torch.equal(torch.cat([y for _, y in batches]), seen % 2)


@pytest.mark.parametrize("members", [None, 2])
def test_the_indices_of_a_batch_are_those_of_its_examples(members) -> None:
    given = task(10, 4, members)
    plain = given.batches(generator(3))
    for (index, x, y), (x_plain, y_plain) in zip(
        given.index_batches(generator(3)), plain, strict=True
    ):
        assert torch.equal(given.train[index].x, x) and torch.equal(
            given.train[index].y, y
        )
        assert torch.equal(x, x_plain) and torch.equal(y, y_plain)


def test_epochs_differ_and_the_generator_decides() -> None:
    def order(epochs: int, seed: int) -> list[list[float]]:
        g = generator(seed)
        given = task(50)
        return [
            torch.cat([x for x, _ in given.batches(g)]).flatten().tolist()
            for _ in range(epochs)
        ]

    assert order(2, seed=1) == order(2, seed=1)
    first, second = order(2, seed=1)
    assert first != second
    assert first != order(1, seed=2)[0]


def test_every_place_in_the_epoch_is_equally_likely() -> None:
    given, g = task(4, 4), generator()
    seen = torch.zeros(4, 4)
    for _ in range(2000):
        (x, _) = next(given.batches(g))
        seen[x.flatten().long(), torch.arange(4)] += 1
    # 2000 draws at 1/4: standard deviation 19.4; five of them.
    assert (seen - 500).abs().max() < 97


def test_only_training_batches_are_augmented() -> None:
    given = task(8, 4, augment=[noise])
    x = torch.cat([x for x, _ in given.batches(generator())])
    plain = torch.cat([x for x, _ in task(8, 4).batches(generator())])
    assert torch.equal(given.train.x, numbered(8).x)
    assert (x - x.floor()).min() > 0
    # The first batch follows the same permutation; later ones too, as it is drawn at
    # the start.
    assert torch.equal(x.floor(), plain)


def test_crop_and_flip_give_the_images_of_torchvision_as_often() -> None:
    transforms = _torchvision.load().transforms
    # Entries differ, so that places do.
    image, draws = torch.arange(1.0, 17).view(1, 4, 4), 3600
    theirs = transforms.Compose(
        [
            transforms.RandomCrop(4, padding=1, padding_mode="reflect"),
            transforms.RandomHorizontalFlip(),
        ]
    )
    split = Split(image.expand(draws, 1, 4, 4), torch.zeros(draws, dtype=torch.long))
    steps = [augment.RandomCrop(1), augment.RandomFlip()]
    ours = Data("one image", split, split, split, ("a",), draws, steps)

    def counts(images: torch.Tensor) -> dict[tuple[float, ...], int]:
        return Counter(tuple(i.flatten().tolist()) for i in images)

    published = counts(torch.stack([theirs(image) for _ in range(draws)]))
    batch = counts(next(ours.batches(generator()))[0])
    assert set(published) == set(batch) and len(batch) == 2 * 9
    for seen in (*published.values(), *batch.values()):
        # 3600 draws at 1/18: standard deviation 13.7; five of them.
        assert abs(seen - draws / 18) < 69


# Stacks


def test_each_member_of_a_stack_is_trained_as_alone() -> None:
    parts = [
        replace(
            task(10, 4, augment=[noise]),
            train=Split(1000.0 * m + numbered(10).x, numbered(10).y),
        )
        for m in range(3)
    ]
    stacked = data.stack(parts)
    assert stacked.train.members == 3 and stacked.name == "numbered"
    assert (len(stacked.train), len(stacked.val), len(stacked.test)) == (10, 3, 5)
    g, together = generator(), []
    for _ in range(2):
        together += list(stacked.batches(g))
    for m, part in enumerate(parts):
        g, alone = generator(), []
        for _ in range(2):
            alone += list(part.batches(g))
        for (x, y), (x_alone, y_alone) in zip(together, alone, strict=True):
            assert torch.equal(x[m], x_alone) and torch.equal(y[m], y_alone)


def test_stack_refuses_what_does_not_fit() -> None:
    for parts, match in [
        ([], r"parts have .* \[\]; allowed: at least one part"),
        (
            [task(), task(batch_size=5)],
            r"4, \(\)\), .*5, \(\)\)\]; allowed: .* the same",
        ),
        ([task(), task(augment=[noise])], "function noise .* allowed: .* the same"),
        ([task(), replace(task(), classes=("x", "y"))], "'x'.* allowed: .* the same"),
        ([task(members=2)], r"y.shape=\(1, 2, 10\)"),
    ]:
        with pytest.raises(ValueError, match=match):
            data.stack(parts)
    with pytest.raises(RuntimeError, match="equal size"):
        data.stack([task(10), task(11)])


# The plane

TASKS = ("gaussian", "sinusoid", "spiral")


@pytest.mark.parametrize("name", TASKS)
def test_plane_has_the_sizes_and_types_of_the_paper(name: str) -> None:
    made = data.plane(name)
    assert [len(s) for s in (made.train, made.val, made.test)] == [100, 100, 20_000]
    assert made.batch_size == 50 and made.classes == ("0", "1") and made.name == name
    assert made.train.x.dtype == torch.float32 and made.train.x.shape == (100, 2)
    if name != "sinusoid":
        assert made.train.y.sum() == 50 and made.test.y.sum() == 10_000


@pytest.mark.parametrize("name", TASKS)
def test_the_seed_decides_and_the_splits_differ(name: str) -> None:
    one, same, other = (
        data.plane(name, seed=s, noise=0.1, n_test=100) for s in (1, 1, 2)
    )
    for split in ("train", "val", "test"):
        a, b, c = (getattr(d, split) for d in (one, same, other))
        assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y)
        assert not torch.equal(a.x, c.x)
    for a, b in itertools.combinations((one.train, one.val, one.test), 2):
        assert not torch.equal(a.x, b.x)


@pytest.mark.parametrize("name", TASKS)
def test_noise_flips_its_share_on_all_splits_and_moves_no_point(name: str) -> None:
    clean, noisy = (data.plane(name, noise=p, seed=3, n_test=1000) for p in (0.0, 0.05))
    for split, n in (("train", 100), ("val", 100), ("test", 1000)):
        a, b = getattr(clean, split), getattr(noisy, split)
        assert torch.equal(a.x, b.x)
        flipped = a.y != b.y
        if name == "gaussian":  # within each class: int(50 * .05) = 2 each
            assert [int((flipped & (a.y == k)).sum()) for k in (0, 1)] == [
                int(n / 2 * 0.05)
            ] * 2
        else:
            assert int(flipped.sum()) == int(n * 0.05)


def test_gaussian_has_the_published_means_and_covariance() -> None:
    split = data.plane("gaussian", n_test=40_000).test
    for k in (0, 1):
        x = split.x[split.y == k].double()
        # Standard errors: sqrt(.1 / 20000) = .0022, and .1 sqrt(2 / 20000) = .001.
        assert (x.mean(0) - k).abs().max() < 0.012
        assert (x.T.cov() - torch.eye(2) / 10).abs().max() < 0.005


def test_sinusoid_is_labeled_by_its_curve() -> None:
    split = data.plane("sinusoid", n_test=40_000).test
    w, v = torch.tensor([1.0, 1.0]).double(), torch.tensor([-1.0, 1.0]).double()
    x = split.x.double()
    value = x @ w + torch.sin(x @ v)
    sure = (
        value.abs() > 1e-5
    )  # float32 points next to the curve may lie on its other side
    assert torch.equal(split.y[sure], (value[sure] > 0).long())
    assert x.mean(0).abs().max() < 0.025
    assert (x.T.cov() - torch.eye(2)).abs().max() < 0.036


def test_spiral_is_two_arms_with_unit_noise() -> None:
    split = data.plane("spiral", n_test=20_000).test
    angle = torch.linspace(0, 4 * math.pi, 10_000, dtype=torch.float64)
    for k, start in ((1, 0.0), (0, math.pi)):
        arm = (angle + start)[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
        noise = split.x[split.y == k].double() - arm
        assert noise.mean(0).abs().max() < 0.05
        assert (noise.T.cov() - torch.eye(2)).abs().max() < 0.075


def test_odd_sizes_are_served() -> None:
    made = data.plane("spiral", n_train=7, n_val=3, n_test=2)
    assert made.train.y.tolist() == [0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"name": "moons"}, "name='moons'; allowed: gaussian, sinusoid, spiral"),
        ({"noise": 0.5}, r"noise=0\.5"),
        ({"noise": -0.1}, r"noise=-0\.1"),
        ({"noise": math.nan}, "noise=nan"),
        ({"n_train": 1}, "n_train=1"),
        ({"n_val": 0}, "n_val=0"),
        ({"n_test": 10.0}, r"n_test=10\.0"),
        ({"seed": -1}, "seed=-1"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_plane_names_what_is_out_of_range(arguments: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        data.plane(**{"name": "gaussian", **arguments})
