"""An ensemble next to the same nets trained one after another, as in the plane task.

    python -m benchmarks.ensemble [--threads 2] [--rounds 9] [--cases 50x600 500x22]

A case is WIDTHxMEMBERS: perceptrons with four hidden layers, BatchNorm and ReLU, 100
examples in two batches of 50, trained by SGD with momentum and by Adam. In each round
every variant trains in turn, in this one process, so that whatever else the machine
does hits them alike: the ensemble one epoch of all its members, and a single net as
many epochs as fit a similar time. One net after another costs the same each, so its
time for all members is a product, not a run; it is given with all threads and with one,
because small nets are faster with one. The ratio is to the faster of the two in each
round; medians and interquartile ranges are printed. `cpu` is processor time over all
threads, which other work on the machine disturbs less. A grid of 500 wide nets is
trained in ensembles of about 22, as `flatnb.ensemble.groups` cuts it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import keep_memory
from flatnb.ensemble import Ensemble
from flatnb.models import mlp

EXAMPLES, BATCH = 100, 50
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": partial(torch.optim.SGD, lr=0.01, momentum=0.9),
    "Adam": partial(torch.optim.Adam, lr=0.001),
}


def epochs(
    net: nn.Module, make_optimizer: Callable[..., torch.optim.Optimizer]
) -> Callable:
    """A function that trains `net` for a number of epochs on two normal clouds."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(EXAMPLES) % 2
    x = 0.3 * torch.randn(EXAMPLES, 2, generator=generator) + y[:, None]
    optimizer = make_optimizer(net.parameters())

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        logits = net(x)
        labels = y.expand(logits.shape[:-1]).flatten()
        losses = F.cross_entropy(logits.flatten(0, -2), labels, reduction="none")
        losses.view(logits.shape[:-1]).mean(-1).sum().backward()
        optimizer.step()

    def run(count: int) -> None:
        for _ in range(count):
            for rows in torch.randperm(EXAMPLES, generator=generator).split(BATCH):
                step(x[rows], y[rows])

    return run


def timed(run: Callable[[int], None], count: int, threads: int) -> tuple[float, float]:
    """Seconds per epoch: on the wall, and of the processor."""
    torch.set_num_threads(threads)
    run(1)  # threads wake up, caches fill
    wall, cpu = time.perf_counter(), time.process_time()
    run(count)
    return (time.perf_counter() - wall) / count, (time.process_time() - cpu) / count


def compare(
    width: int, members: int, optimizer: str, threads: int, rounds: int
) -> None:
    make = partial(mlp, 2, width, 4, 2)
    single = epochs(make(), OPTIMIZERS[optimizer])
    nets = Ensemble(make, members, seeds=[0] * members)
    variants = {
        f"one after another, threads={t}": (single, 10, t, members)
        for t in sorted({1, threads})
    }
    together = epochs(nets, OPTIMIZERS[optimizer])
    variants[f"ensemble, threads={threads}"] = (together, 1, threads, 1)
    wall: dict[str, list[float]] = {name: [] for name in variants}
    cpu: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, (run, count, used, factor) in variants.items():
            seconds = timed(run, count, used)
            wall[name].append(seconds[0] * factor)
            cpu[name].append(seconds[1] * factor)
    parameters = sum(p.numel() for p in make().parameters())
    print(
        f"\n{members} perceptrons {width} wide ({parameters:,} parameters each), {optimizer}"
    )
    print(
        f"{'one epoch of all members':36s} {'wall s':>8s} {'cpu s':>8s} {'times faster':>13s} IQR"
    )
    alone = [min(times) for times in zip(*list(wall.values())[:-1], strict=True)]
    for name, seconds in wall.items():
        gains = [a / s for a, s in zip(alone, seconds, strict=True)]
        low, mid, high = statistics.quantiles(gains, n=4)
        print(
            f"{name:36s} {statistics.median(seconds):8.3f} {statistics.median(cpu[name]):8.3f} "
            f"{mid:13.2f} {low:.2f} to {high:.2f}"
        )


def main() -> None:
    keep_memory()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--cases", nargs="+", default=["50x600", "500x22"], metavar="WIDTHxMEMBERS"
    )
    parser.add_argument(
        "--optimizers", nargs="+", default=list(OPTIMIZERS), choices=OPTIMIZERS
    )
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {args.threads} threads, {args.rounds} rounds")
    for case in args.cases:
        width, members = (int(number) for number in case.split("x"))
        for optimizer in args.optimizers:
            compare(width, members, optimizer, args.threads, args.rounds)


if __name__ == "__main__":
    main()
