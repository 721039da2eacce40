"""The cost of one training step by each method, as a ratio to a plain SGD step.

    python -m benchmarks.methods [--threads 2] [--repeats 15] [--nets resnet18 mlp30]
    [--profile]

All variants of one net run interleaved in one process, so that whatever else the
machine does hits them alike; medians and interquartile ranges of the per-round ratios
are printed. Published packages take part where they are installed
(`pip install --no-deps pytorch_optimizer`).

`--profile` says where a step's time goes: the closure's forward passes, the backward
passes, norms, noise, moving and restoring parameters, the optimizer, and the rest (the
walk over the modules, the random streams, the hyperparameters' arithmetic).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import flatnb
from benchmarks import keep_memory
from flatnb import models
from flatnb.methods.method import Step
from flatnb.methods.noise import Stream

BATCH = 64


def nets() -> dict[str, tuple[Callable[[], nn.Module], Tensor]]:
    image = torch.randn(BATCH, 3, 32, 32)
    return {
        "resnet18": (lambda: models.resnet18(classes=10), image),
        "resnet18-narrow": (lambda: models.resnet18(classes=10, width=16), image),
        "mlp30": (
            lambda: models.mlp(256, 256, 30, 10, batchnorm=False),
            torch.randn(BATCH, 256),
        ),
    }


def variants() -> dict[str, flatnb.Method]:
    """The methods, at usual settings."""
    return {
        repr(m): m
        for m in (
            flatnb.Flooding(0.05),
            flatnb.IFlood(0.05),
            flatnb.SoftAD(0.1),
            flatnb.SAM(0.05),
            flatnb.ASAM(0.5),
            flatnb.USAM(0.05),
            flatnb.GSAM(0.05, 0.2),
            flatnb.FriendlySAM(0.05),
            flatnb.GNP(r=0.1, alpha=0.8),
            flatnb.NSO(0.01),
            flatnb.FAM(0.1),
        )
    }


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)


def ours(method: flatnb.Method, make: Callable[[], nn.Module], x: Tensor, y: Tensor):
    model = make()
    optimizer = sgd(model)

    def step() -> None:
        optimizer.zero_grad()
        method.backward(model, lambda: F.cross_entropy(model(x), y, reduction="none"))
        optimizer.step()

    return step


def plain(
    passes: int,
    make: Callable[[], nn.Module],
    x: Tensor,
    y: Tensor,
    update: bool = True,
):
    model = make()
    optimizer = sgd(model)

    def step() -> None:
        for _ in range(passes):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
        if update:
            optimizer.step()

    return step


def packages(
    make: Callable[[], nn.Module], x: Tensor, y: Tensor
) -> dict[str, Callable[[], None]]:
    """SAM-family optimizers of installed packages, by their own two-step interface."""
    try:
        import pytorch_optimizer as po
    except ImportError:
        return {}

    def two_step(**kwargs):
        model = make()
        optimizer = po.SAM(
            model.parameters(),
            torch.optim.SGD,
            lr=1e-4,
            momentum=0.9,
            rho=0.05,
            **kwargs,
        )

        def step() -> None:
            F.cross_entropy(model(x), y).backward()
            optimizer.first_step(zero_grad=True)
            F.cross_entropy(model(x), y).backward()
            optimizer.second_step(zero_grad=True)

        return step

    name = f"pytorch_optimizer {version('pytorch_optimizer')}"
    return {
        f"{name} SAM": two_step(),
        f"{name} SAM(use_foreach)": two_step(foreach=True),
        f"{name} SAM(adaptive)": two_step(adaptive=True),
    }


def measure(
    steps: dict[str, Callable[[], None]], repeats: int
) -> dict[str, list[float]]:
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return seconds


# What a step is made of: the part, and the functions (owner, name) whose time it is.
PARTS = {
    "backward": [(Tensor, "backward")],
    "norms": [(Step, "norm"), (Step, "norms"), (Step, "dot")],
    "noise": [(Stream, "draw")],
    "moves": [
        (Step, "move"),
        (Step, "mirror"),
        (Step, "close"),
        (Step, "add_gradient"),
    ],
    "penalty": [(flatnb.FAM, "penalty")],
    "optimizer": [(torch.optim.SGD, "step")],
}


def profile(
    method: flatnb.Method,
    make: Callable[[], nn.Module],
    x: Tensor,
    y: Tensor,
    repeats: int,
) -> dict[str, float]:
    """Median milliseconds of each part of a step by `method`."""
    spent: dict[str, list[float]] = {name: [] for name in ["forward", *PARTS]}

    def timed(part: str, function: Callable) -> Callable:
        def wrapped(*args, **kwargs):
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent[part][-1] += time.perf_counter() - start

        return wrapped

    model, total = make(), []
    optimizer = sgd(model)
    closure = timed("forward", lambda: F.cross_entropy(model(x), y, reduction="none"))
    with ExitStack() as stack:
        for part, places in PARTS.items():
            for owner, name in places:
                function = timed(part, getattr(owner, name))
                stack.enter_context(mock.patch.object(owner, name, function))
        for _ in range(repeats + 1):
            for times in spent.values():
                times.append(0.0)
            start = time.perf_counter()
            optimizer.zero_grad()
            method.backward(model, closure)
            optimizer.step()
            total.append(time.perf_counter() - start)
    ms = {part: 1e3 * statistics.median(times[1:]) for part, times in spent.items()}
    return {**ms, "rest": 1e3 * statistics.median(total[1:]) - sum(ms.values())}


def main() -> None:
    keep_memory()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--nets", nargs="+", default=list(nets()), choices=list(nets()))
    parser.add_argument(
        "--profile", action="store_true", help="where a step's time goes"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for net in args.nets:
        make, x = nets()[net]
        y = torch.randint(10, (BATCH,))
        if args.profile:
            print(
                f"\n{net}, batch {BATCH}, {args.threads} threads: milliseconds of the parts of "
                f"a step, medians of {args.repeats}"
            )
            for m in [flatnb.ERM(), *variants().values()]:
                parts = profile(m, make, x, y, args.repeats)
                line = "  ".join(f"{part} {ms:.1f}" for part, ms in parts.items())
                print(f"{m!r:24s} {line}", flush=True)
            continue
        bare = plain(2, make, x, y, update=False)
        steps = {"SGD": plain(1, make, x, y), "two bare passes": bare}
        steps |= {name: ours(m, make, x, y) for name, m in variants().items()}
        steps |= packages(make, x, y)
        count = sum(p.numel() for p in make().parameters())
        print(
            f"\n{net}: {count:,} parameters, batch {BATCH}, {args.threads} threads, "
            f"{args.repeats} interleaved rounds, torch {torch.__version__}"
        )
        print(
            f"{'step':40s} {'median ms':>10s} {'ratio to SGD':>13s} {'IQR':>13s}",
            flush=True,
        )
        seconds = measure(steps, args.repeats)
        for name, times in seconds.items():
            ratios = [t / s for t, s in zip(times, seconds["SGD"], strict=True)]
            low, mid, high = statistics.quantiles(ratios, n=4)
            ms = 1e3 * statistics.median(times)
            print(f"{name:40s} {ms:10.1f} {mid:13.2f} {low:6.2f}–{high:.2f}")


if __name__ == "__main__":
    main()
