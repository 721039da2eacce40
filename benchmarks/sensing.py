"""A step of matrix sensing next to the plain NumPy form, at the published size.

    python -m benchmarks.sensing [--threads 2] [--rounds 15]

The plain form holds the m x d^2 measurement matrix in float64 and multiplies it once
for the residuals and once for the gradient, separately for each side of the noise; it
has no metrics. `descend` takes the same steps: NSO alone, then gradient descent,
one-sided noise and NSO at once; its time includes noise and updates, not metrics. In
each round both run in turn in this one process, with a pause before each, because
threads that wait for work hold their core for a while. The ratio is of each round;
medians and interquartile ranges are printed. NumPy takes its threads from the
environment (OMP_NUM_THREADS), by default all cores.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from benchmarks import keep_memory
from flatnb.data import sensing
from flatnb.data.sensing import Rule, unpack

RULES = [Rule(), Rule(sigma=0.08, sides=1), Rule(sigma=0.08)]
STEPS = 50
PAUSE = 0.2  # seconds


class Plain:
    """The measurements as an m x d^2 float64 array."""

    def __init__(self, problem: sensing.Problem) -> None:
        self.a = unpack(problem.train).flatten(1).double().numpy()
        self.y = problem.train_y.double().numpy()
        self.d = len(problem.target)
        self.random = np.random.default_rng(0)

    def gradient(self, u: np.ndarray) -> np.ndarray:
        residuals = self.a @ (u @ u.T).ravel() - self.y
        return (residuals @ self.a / len(self.y)).reshape(self.d, self.d) @ u

    def step(self, u: np.ndarray, rule: Rule) -> np.ndarray:
        if not rule.sigma:
            return u - rule.lr * self.gradient(u)
        noise = rule.sigma * self.random.standard_normal(u.shape)
        sides = [self.gradient(u + sign * noise) for sign in (1, -1)[: rule.sides]]
        return u - rule.lr * sum(sides) / len(sides)


def plain_seconds(plain: Plain, rules: list[Rule]) -> float:
    """Seconds for one step of each rule, a mean over half a second and more."""
    u = np.random.default_rng(1).standard_normal((plain.d, plain.d))
    time.sleep(PAUSE)
    steps = 0
    begin = time.perf_counter()
    while (passed := time.perf_counter() - begin) < 0.5:
        for rule in rules:
            plain.step(u, rule)
        steps += 1
    return passed / steps


def descend_seconds(problem: sensing.Problem, rules: list[Rule]) -> float:
    """Seconds per step of all rules, minus those of the metrics at both ends."""
    time.sleep(PAUSE)
    begin = time.perf_counter()
    run = sensing.descend(problem, rules, epochs=STEPS, every=STEPS)
    middle = time.perf_counter()
    for _ in run["epochs"]:
        problem.metrics(run["u"])
    return (2 * middle - begin - time.perf_counter()) / STEPS


def show(name: str, values: list[float]) -> None:
    low, median, high = np.percentile(values, [25, 50, 75])
    print(f"  {name:<34}{median:8.1f}   ({low:.1f} to {high:.1f})", flush=True)


def main() -> None:
    keep_memory()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    problem = sensing.problem()
    plain = Plain(problem)
    print(
        f"d=100, rank=5, m=2500, threads={args.threads}; median (quartiles) of {args.rounds}"
    )
    for title, rules in (("NSO", RULES[2:]), ("all three", RULES)):
        times = [
            (plain_seconds(plain, rules), descend_seconds(problem, rules))
            for _ in range(args.rounds + 1)
        ][1:]  # the first wakes threads and fills caches
        print(f"{title}: milliseconds per step")
        show("plain NumPy, float64", [1e3 * a for a, _ in times])
        show("descend, float32", [1e3 * b for _, b in times])
        show("ratio", [a / b for a, b in times])


if __name__ == "__main__":
    main()
