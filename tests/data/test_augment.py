"""Random crops and flips of whole batches."""

import numpy as np
import pytest
import torch

from flatnb import data
from flatnb.data import augment


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures_of(
    n: int, height: int = 6, width: int = 5, channels: int = 2
) -> torch.Tensor:
    return torch.rand(n, channels, height, width, generator=generator(9))


def test_crop_is_exact() -> None:
    x = pictures_of(200)
    out = augment.RandomCrop(2)(x, generator(1))
    top, left = torch.randint(5, (2, 200), generator=generator(1)).tolist()
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="reflect")
    for i in range(200):
        expected = padded[i, :, top[i] : top[i] + 6, left[i] : left[i] + 5]
        assert np.array_equal(out[i].numpy(), expected)


def test_all_places_of_the_crop_are_equally_likely_and_independent() -> None:
    # A bright pixel in the middle of 9 x 9 shows where the window was.
    n, pad = 50_000, 2
    x = torch.zeros(n, 1, 9, 9)
    x[:, :, 4, 4] = 1
    out = augment.RandomCrop(pad)(x, generator())
    place = out.flatten(1).argmax(1)
    row, column = 4 + pad - place // 9, 4 + pad - place % 9
    offset = (row * 5 + column).view(-1)
    counts = offset.bincount(minlength=25)
    assert len(counts) == 25
    # 50000 draws at 1/25: standard deviation 43.8; five of them.
    assert (counts - n / 25).abs().max() < 219
    pairs = (offset[:-1] * 25 + offset[1:]).bincount(minlength=625)
    assert (pairs - n / 625).abs().max() < 5 * (n / 625) ** 0.5


def test_flip_is_exact_fair_and_independent() -> None:
    n = 20_000
    x = pictures_of(n, 2, 3, 1)
    out = augment.RandomFlip()(x, generator())
    flipped = (out == x.flip(3)).flatten(1).all(1)
    same = (out == x).flatten(1).all(1)
    assert torch.equal(flipped, ~same)
    # Standard deviations: sqrt(n) / 2 = 70.7, and sqrt(3 n / 16) = 61.2 for pairs; five
    # of them.
    assert abs(int(flipped.sum()) - n / 2) < 354
    assert abs(int((flipped[1:] & flipped[:-1]).sum()) - n / 4) < 354


STEPS = [augment.RandomCrop(2), augment.RandomFlip()]


@pytest.mark.parametrize("step", STEPS, ids=repr)
def test_the_generator_decides_and_the_input_stays(step) -> None:
    x = pictures_of(64)
    before = x.clone()
    state = torch.get_rng_state()
    one, same, other = (step(x, generator(s)) for s in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(x, before) and torch.equal(torch.get_rng_state(), state)
    assert one.shape == x.shape and one.dtype == x.dtype


@pytest.mark.parametrize("step", STEPS, ids=repr)
def test_memory_format_and_precision_change_no_draw(step) -> None:
    x = pictures_of(64)
    out = step(x, generator())
    last = x.to(memory_format=torch.channels_last)
    assert torch.equal(step(last, generator()), out)
    assert torch.equal(step(x.bfloat16(), generator()), out.bfloat16())


def test_augmentations_follow_one_another() -> None:
    crop, flip = augment.RandomCrop(2), augment.RandomFlip()
    split = data.Split(pictures_of(30), torch.zeros(30, dtype=torch.long))
    made = data.Data("a", split, split, split, ("b",), 30, [crop, flip])
    g = generator(5)
    order = torch.randperm(30, generator=g)
    expected = flip(crop(split.x[order], g), g)
    assert torch.equal(next(made.batches(generator(5)))[0], expected)


def test_augmentations_print_as_written_and_compare_by_value() -> None:
    steps = (augment.RandomCrop(pad=4), augment.RandomFlip())
    assert repr(steps) == "(RandomCrop(pad=4), RandomFlip())"
    assert steps == (augment.RandomCrop(4), augment.RandomFlip())
    assert steps[0] != augment.RandomCrop(3)


def test_a_crop_larger_than_the_image_is_refused() -> None:
    with pytest.raises(RuntimeError, match="Padding size should be less"):
        augment.RandomCrop(5)(pictures_of(1), generator())
