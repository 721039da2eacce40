"""Top-5 Hessian eigenvalues beside published packages, and what a product costs.

    python -m benchmarks.curvature [--threads 2] [--nets perceptron] [--against
    PyHessian …] python -m benchmarks.curvature --curves

Each contender runs at the loosest setting of its ladder whose relative error is at most
1e-5 for every seed, or at the tightest there was time for, with the error it reached;
building the operator is included. Looking for the setting ends after --seconds a
contender, so that a net takes minutes. The contenders take turns, so that whatever else
the machine does hits all alike, and ratios are medians over the rounds of the same
round's times, on the clock and in CPU seconds of all threads, which suffer less from
other programs; a contender too slow for that is timed in its search. `--curves` prints
what the top-5 cost against samples and parameters instead. Packages that are not
installed are named as such: `pip install --no-deps pyhessian hessian-eigenthings
curvlinops-for-pytorch` (pre-releases allowed).
"""

from __future__ import annotations

import argparse
import copy
import importlib
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn

from benchmarks import keep_memory
from flatnb import models
from flatnb.curvature import GaussNewtonOperator, HessianOperator, top_eigenvalues

SAMPLES, TOP, WANTED, RESIDUAL, SEEDS = 1000, 5, 1e-5, 1e-3, (0, 1, 2)
Run = Callable[[int], tuple[np.ndarray, int]]  # seed -> eigenvalues, products
Data = tuple[Tensor, Tensor]
MOST = 500  # steps of power iteration for one eigenvalue


class Setting(NamedTuple):
    label: str
    run: Run


def ladder(at: Callable[[float], Run]) -> list[Setting]:
    """Tolerances from loose to tight, the same for all who have one."""
    tolerances = (3e-3, 1e-3, 1e-4, 3e-5, 1e-5, 1e-6, 1e-7)
    return [Setting(f"tol {tol:.0e}", at(tol)) for tol in tolerances]


def images(count: int) -> Data:
    """Ten smooth patterns, noise, and every tenth label drawn anew."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(10, 3, 8, 8, generator=generator)
    y = torch.randint(0, 10, (count,), generator=generator)
    x = F.interpolate(patterns[y], size=32, mode="bilinear")
    x += torch.randn(x.shape, generator=generator)
    wrong = torch.rand(count, generator=generator) < 0.1
    return x, torch.where(wrong, torch.randint(0, 10, (count,), generator=generator), y)


def perceptron() -> nn.Module:
    layers = [
        nn.Linear(3072, 128),
        nn.ReLU(),
        nn.Linear(128, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    ]
    return nn.Sequential(nn.Flatten(), *layers)


def convolutional() -> nn.Module:
    layers: list[nn.Module] = []
    for channels, filters in ((3, 16), (16, 32), (32, 64)):
        layers += [
            nn.Conv2d(channels, filters, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def trained(make: Callable[[], nn.Module], data: Data, epochs: int = 3) -> nn.Module:
    torch.manual_seed(0)
    model, (x, y) = make(), data
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for _ in range(epochs):
        for some, labels in zip(x.split(100), y.split(100), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(some), labels).backward()
            optimizer.step()
    return model.eval()


# -- contenders
# --------------------------------------------------------------------------------


def ours(model: nn.Module, data: Data) -> list[Setting]:
    def at(tol: float) -> Run:
        def run(seed: int) -> tuple[np.ndarray, int]:
            operator = HessianOperator(model, F.cross_entropy, [data])
            found = top_eigenvalues(operator, TOP, tol=tol, seed=seed)
            return found.values.numpy(), found.products

        return run

    return ladder(at)


def power_iteration(model: nn.Module, data: Data) -> list[Setting]:
    """PyHessian's way: one graph, power iteration, found vectors projected out."""
    params = list(model.parameters())

    def normalised(vector: list[Tensor]) -> list[Tensor]:
        length = sum((v * v).sum() for v in vector) ** 0.5
        return [v / (length + 1e-6) for v in vector]

    def project(vector: list[Tensor], found: list[list[Tensor]]) -> list[Tensor]:
        for u in found:
            overlap = sum((a * b).sum() for a, b in zip(u, vector, strict=True))
            vector = [v - overlap * a for v, a in zip(vector, u, strict=True)]
        return normalised(vector)

    def at(tol: float) -> Run:
        def run(seed: int) -> tuple[np.ndarray, int]:
            torch.manual_seed(seed)
            loss = F.cross_entropy(model(data[0]), data[1])
            grads = torch.autograd.grad(loss, params, create_graph=True)
            values, vectors, products = [], [], 0
            for _ in range(TOP):
                v, last = normalised([torch.randn_like(p) for p in params]), None
                for _ in range(MOST):
                    v = project(v, vectors)
                    hv = torch.autograd.grad(grads, params, v, retain_graph=True)
                    value = sum(
                        (a * b).sum() for a, b in zip(hv, v, strict=True)
                    ).item()
                    v, products = normalised(list(hv)), products + 1
                    if last is not None and abs(value - last) < tol * (
                        abs(last) + 1e-6
                    ):
                        break
                    last = value
                values.append(value)
                vectors.append(v)
            return np.sort(values)[::-1], products

        return run

    return ladder(at)


def pyhessian(model: nn.Module, data: Data) -> list[Setting]:
    package = importlib.import_module("pyhessian")

    def at(tol: float) -> Run:
        def run(seed: int) -> tuple[np.ndarray, int]:
            torch.manual_seed(seed)
            net = copy.deepcopy(model)  # it leaves gradients behind
            hessian = package.hessian(net, F.cross_entropy, data=data, cuda=False)
            values, _ = hessian.eigenvalues(maxIter=MOST, tol=tol, top_n=TOP)
            return np.sort(values)[::-1], 0

        return run

    return ladder(at)


def eigenthings(model: nn.Module, data: Data) -> list[Setting]:
    package = importlib.import_module("hessian_eigenthings")

    def at(iterations: int) -> Run:
        def run(seed: int) -> tuple[np.ndarray, int]:
            operator = package.HessianOperator(
                model, [data], package.supervised_loss(F.cross_entropy)
            )
            found = package.lanczos(
                operator, k=TOP, max_iter=iterations, tol=0.0, which="LA", seed=seed
            )
            return np.sort(found.eigenvalues.numpy())[::-1], found.iterations

        return run

    steps = [*range(10, 31), 35, 40, 50, 60]
    return [Setting(f"{m} iterations", at(m)) for m in steps]


def curvlinops(basis: int | None) -> Callable[[nn.Module, Data], list[Setting]]:
    """Through SciPy's eigsh, with its own size of the basis (20 for five) or
    another.
    """

    def settings(model: nn.Module, data: Data) -> list[Setting]:
        package = importlib.import_module("curvlinops")
        params = list(model.parameters())

        def at(tol: float) -> Run:
            def run(seed: int) -> tuple[np.ndarray, int]:
                operator = package.HessianLinearOperator(
                    model,
                    nn.CrossEntropyLoss(),
                    params,
                    [data],
                    check_deterministic=False,
                ).to_scipy(dtype=np.float32)
                return by_eigsh(operator, tol, basis, seed)

            return run

        return [
            Setting(f"tol {tol:.0e}", at(tol)) for tol in (1e-1, 1e-2, 1e-3, 1e-4, 1e-6)
        ]

    return settings


def by_eigsh(
    operator: LinearOperator, tol: float, basis: int | None, seed: int
) -> tuple[np.ndarray, int]:
    counted = Counted(operator)
    start = (
        np.random.default_rng(seed)
        .standard_normal(operator.shape[0])
        .astype(operator.dtype)
    )
    values = eigsh(
        counted,
        TOP,
        which="LA",
        tol=tol,
        ncv=basis,
        v0=start,
        return_eigenvectors=False,
    )
    return np.sort(values)[::-1], counted.products


class Counted(LinearOperator):
    def __init__(self, operator: LinearOperator) -> None:
        super().__init__(operator.dtype, operator.shape)
        self._operator, self.products = operator, 0

    def _matvec(self, v: np.ndarray) -> np.ndarray:
        self.products += 1
        return self._operator.matvec(v.reshape(-1)).reshape(-1)


OTHERS: dict[str, Callable[[nn.Module, Data], list[Setting]]] = {
    "hessian-eigenthings": eigenthings,  # its Lanczos
    "curvlinops+eigsh": curvlinops(
        None
    ),  # with eigsh's own ncv, 20 for five eigenvalues
    "curvlinops+eigsh-ncv-12": curvlinops(12),
    "power-iteration": power_iteration,
    "PyHessian": pyhessian,
}


# -- measurements
# ------------------------------------------------------------------------------


def reference(model: nn.Module, data: Data) -> np.ndarray:
    """In float64, by SciPy's eigsh, which is not the algorithm under test.

    Eigenvalues are good to about the square of its tolerance.
    """
    operator = HessianOperator(
        copy.deepcopy(model).double(), F.cross_entropy, [(data[0].double(), data[1])]
    )

    def product(v: np.ndarray) -> np.ndarray:
        return (operator @ torch.from_numpy(v.reshape(-1).copy())).numpy()

    scipy = LinearOperator(operator.shape, matvec=product, dtype=np.float64)
    return by_eigsh(scipy, 1e-5, None, 0)[0]


@dataclass
class Timed:
    """What one setting took and reached, a run a seed."""

    setting: Setting
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)  # of all threads
    error: float = 0.0
    products: int = 0

    def run(self, seed: int, exact: np.ndarray) -> None:
        start, busy = time.perf_counter(), time.process_time()
        values, self.products = self.setting.run(seed)
        self.seconds.append(time.perf_counter() - start)
        self.cpu.append(time.process_time() - busy)
        self.error = max(self.error, float(np.max(np.abs(values / exact - 1))))


def loosest(settings: list[Setting], exact: np.ndarray, seconds: float) -> Timed:
    """The first setting good enough for all seeds, by bisection on the first seed."""
    began, low, high = time.perf_counter(), 0, len(settings) - 1
    done: dict[int, Timed] = {}

    def tried(place: int) -> Timed:
        if place not in done:
            done[place] = Timed(settings[place])
            done[place].run(SEEDS[0], exact)
        return done[place]

    def late() -> bool:
        return time.perf_counter() - began > seconds

    while low < high and not late():
        middle = (low + high) // 2
        low, high = (
            (low, middle) if tried(middle).error <= WANTED else (middle + 1, high)
        )
    if late():  # the loosest good one so far, else the tightest
        good = [place for place, timed in done.items() if timed.error <= WANTED]
        return done[min(good) if good else max(done)]
    for place in range(low, len(settings)):
        for seed in SEEDS[1:]:
            if tried(place).error <= WANTED and not late():
                tried(place).run(seed, exact)
        if tried(place).error <= WANTED or late():
            break
    return tried(place)


def compare(
    name: str,
    model: nn.Module,
    data: Data,
    against: list[str],
    rounds: int,
    seconds: float,
) -> None:
    size = sum(p.numel() for p in model.parameters())
    exact = reference(model, data)
    print(f"\n## {name}, {size:,} parameters, {len(data[0]):,} samples")
    print("reference: " + " ".join(f"{value:.8g}" for value in exact), flush=True)
    chosen: dict[str, Timed] = {}
    for label, make in [
        ("flatnb", ours),
        *((label, OTHERS[label]) for label in against),
    ]:
        try:
            chosen[label] = loosest(make(model, data), exact, seconds)
        except ImportError as error:
            print(f"{label:24} not installed ({error})")
        except Exception as error:  # somebody else's package: say so and go on
            print(f"{label:24} does not run: {type(error).__name__}: {str(error)[:60]}")
    slow = {
        label for label, one in chosen.items() if max(one.seconds) * rounds > seconds
    }
    for label in chosen.keys() - slow:
        chosen[label].seconds.clear()
        chosen[label].cpu.clear()
    for turn in range(rounds):
        for label in chosen:
            if label not in slow:
                chosen[label].run(SEEDS[turn % len(SEEDS)], exact)
    print(
        f"{'method':24} {'setting':14} {'runs':>4} {'s':>8} {'products':>8} {'error':>9} "
        f"{'x flatnb':>9} {'in CPU s':>9}"
    )
    base = chosen["flatnb"]
    for label, one in chosen.items():
        print(
            f"{label:24} {one.setting.label:14} {len(one.seconds):4} "
            f"{statistics.median(one.seconds):8.3f} {one.products or '-':>8} {one.error:9.1e} "
            f"{ratio(one.seconds, base.seconds):9.2f} {ratio(one.cpu, base.cpu):9.2f}",
            flush=True,
        )


def ratio(one: list[float], other: list[float]) -> float:
    """Median over rounds, where both were timed in the same ones."""
    if len(one) == len(other):
        return statistics.median(a / b for a, b in zip(one, other, strict=True))
    return statistics.median(one) / statistics.median(other)


def products(
    name: str, model: nn.Module, data: Data, rounds: int, seconds: float
) -> None:
    """One gradient, and one product of each kind."""
    hessian = HessianOperator(model, F.cross_entropy, [data])
    newton = GaussNewtonOperator(model, F.cross_entropy, [data])
    passing = HessianOperator(model, F.cross_entropy, [data], keep_graph=False)
    params, v = list(model.parameters()), torch.randn(hessian.size)
    steps: dict[str, Callable[[], object]] = {
        "gradient": lambda: torch.autograd.grad(
            F.cross_entropy(model(data[0]), data[1]), params
        ),
        "Hessian product, graph kept": lambda: hessian @ v,
        "Hessian product, graph made in passing": lambda: passing @ v,
        "Gauss-Newton product, graph kept": lambda: newton @ v,
    }
    times: dict[str, list[float]] = {label: [] for label in steps}
    end = time.perf_counter() + seconds
    for turn in range(5 * rounds):
        if turn >= 3 and time.perf_counter() > end:
            break
        for label, step in steps.items():
            start = time.perf_counter()
            step()
            times[label].append(time.perf_counter() - start)
    print(f"\n### {name}: cost of a product")
    for label, found in times.items():
        share = statistics.median(
            a / b for a, b in zip(found, times["gradient"], strict=True)
        )
        print(
            f"{label:44} {1e3 * statistics.median(found):9.1f} ms  x{share:.2f} gradient"
        )


def curves() -> None:
    """Top-5 to a relative residual of 1e-3 against samples and parameters."""
    print(f"\n## cost of the top {TOP} to a relative residual of {RESIDUAL:.0e}")
    print(
        f"{'net':24} {'parameters':>12} {'samples':>8} {'build s':>8} "
        f"{'Lanczos s':>9} {'products':>8} {'error':>8}"
    )
    nets: list[tuple[str, Callable[[], nn.Module], int]] = []
    for samples in (250, 1000, 4000):
        nets += [
            ("perceptron", perceptron, samples),
            ("convolutional", convolutional, samples),
        ]
    for width in (16, 32, 64):
        label = f"ResNet-18, width {width}"
        nets.append((label, lambda w=width: models.resnet18(classes=10, width=w), 64))
    for label, make, samples in nets:
        data = images(samples)
        model = trained(make, data, epochs=1)
        start = time.perf_counter()
        pieces = list(zip(data[0].split(500), data[1].split(500), strict=True))
        operator = HessianOperator(model, F.cross_entropy, pieces)
        built = time.perf_counter() - start
        found = top_eigenvalues(operator, TOP, tol=RESIDUAL, max_products=60)
        error = float((found.residuals / found.values.abs()).max())
        print(
            f"{label:24} {operator.size:12,} {samples:8,} "
            f"{built:8.2f} {found.seconds:9.2f} {found.products:8} {error:8.1e}",
            flush=True,
        )


NETS: dict[str, Callable[[], nn.Module]] = {
    "perceptron": perceptron,
    "convolutional": convolutional,
}


def main() -> None:
    keep_memory()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--seconds", type=float, default=60, help="for the search of a setting"
    )
    parser.add_argument("--nets", nargs="*", default=[*NETS], choices=[*NETS])
    parser.add_argument("--against", nargs="*", default=[*OTHERS], choices=[*OTHERS])
    parser.add_argument(
        "--curves", action="store_true", help="cost against samples, parameters"
    )
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    print(
        f"torch {torch.__version__}, {args.threads} threads, CPU; top-{TOP} to {WANTED:.0e}"
    )
    if args.curves:
        curves()
        return
    data = images(SAMPLES)
    for name in args.nets:
        model = trained(NETS[name], data)
        products(name, model, data, args.rounds, args.seconds / 2)
        compare(name, model, data, args.against, args.rounds, args.seconds)


if __name__ == "__main__":
    main()
