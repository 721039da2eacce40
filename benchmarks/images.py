"""Training batches with crop and flip: ours beside torchvision's transforms in a
DataLoader.

    python -m benchmarks.images [--threads 2] [--workers 2] [--rounds 5] [--batch 128]

The data has the shape of CIFAR, 32 x 32 x 3 in uint8; pixels are random, which no step
looks at. Ours normalises the whole set once, when it is read, and then selects, crops
(4 reflected pixels) and flips whole batches in the training process. torchvision's
transforms treat one image at a time in worker processes; two forms of them are timed,
with the same crop and flip:

    usual     uint8 -> PIL -> crop -> flip -> ToTensor -> Normalize, as in its examples
    tensors   crop -> flip on images that were normalised once, as ours are

In each round every form runs for one epoch, in turn; workers are started, and their
first batch awaited, before the clock. Medians of images per second over the rounds are
printed, with the smallest and the largest, and the median of the rounds' ratios. What
the one normalisation costs is printed too.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks import keep_memory
from flatnb import _torchvision
from flatnb.data import Data, Split
from flatnb.data.augment import RandomCrop, RandomFlip

MEAN, DEVIATION = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


class Images(Dataset):
    """Examples and labels, each image transformed on its own."""

    def __init__(self, images: Any, labels: Tensor, transform: Callable) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(self.images[i]), int(self.labels[i])


def normalised(images: Tensor) -> Tensor:
    """(n, 32, 32, 3) in uint8 as (n, 3, 32, 32), of mean 0 and deviation 1 on CIFAR."""
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, DEVIATION))
    return images.permute(0, 3, 1, 2).div(255).sub_(mean).div_(deviation).contiguous()


def loader(
    images: Any, labels: Tensor, steps: list, batch: int, workers: int
) -> DataLoader:
    transform = _torchvision.load().transforms.Compose(steps)
    return DataLoader(
        Images(images, labels, transform),
        batch,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def rate(batches: Callable[[], Iterable], images: int, batch: int) -> float:
    """Images per second over one epoch, from its second batch on."""
    epoch: Iterator = iter(batches())
    next(epoch)
    start = time.perf_counter()
    for _ in epoch:
        pass
    return (images - batch) / (time.perf_counter() - start)


def main() -> None:
    keep_memory()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2, help="of our process")
    parser.add_argument("--workers", type=int, default=2, help="of the DataLoader")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument(
        "--images", type=int, default=50_000, help="in an epoch of ours"
    )
    parser.add_argument(
        "--fewer", type=int, default=8_000, help="in an epoch of torchvision's"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(
        256, (args.images, 32, 32, 3), generator=generator, dtype=torch.uint8
    )
    labels = torch.randint(10, (args.images,), generator=generator)
    start = time.perf_counter()
    x = normalised(pixels)
    once = time.perf_counter() - start

    t = _torchvision.load().transforms
    crop, flip = (
        t.RandomCrop(32, padding=4, padding_mode="reflect"),
        t.RandomHorizontalFlip(),
    )
    usual = [t.ToPILImage(), crop, flip, t.ToTensor(), t.Normalize(MEAN, DEVIATION)]
    split = Split(x, labels)
    ours = Data(
        "noise",
        split,
        split[:2],
        split[:2],
        tuple("0123456789"),
        args.batch,
        [RandomCrop(4), RandomFlip()],
    )
    some = labels[: args.fewer]
    forms: dict[str, tuple[Callable[[], Iterable], int]] = {
        "flatnb": (partial(ours.batches, generator), args.images),
        "torchvision, usual": (
            partial(
                iter, loader(pixels.numpy(), some, usual, args.batch, args.workers)
            ),
            args.fewer,
        ),
        "torchvision, tensors": (
            partial(iter, loader(x, some, [crop, flip], args.batch, args.workers)),
            args.fewer,
        ),
    }
    rates: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(args.rounds):
        for name, (batches, images) in forms.items():
            rates[name].append(rate(batches, images, args.batch))
    print(
        f"batches of {args.batch}; flatnb with {args.threads} threads, torchvision with "
        f"{args.workers} workers; {args.rounds} rounds; images per second"
    )
    for name, seen in rates.items():
        line = f"{name:22}{statistics.median(seen):10.0f}   ({min(seen):.0f} to {max(seen):.0f})"
        if seen is not rates["flatnb"]:
            ratio = statistics.median(
                a / b for a, b in zip(rates["flatnb"], seen, strict=True)
            )
            line += f"   flatnb is {ratio:.1f} times as fast"
        print(line)
    print(f"normalising {args.images} images, once: {once:.2f} s")


if __name__ == "__main__":
    main()
