"""An experiment: its jobs, and the record that their results make."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flatnb.results import records
from flatnb.results.sweep import Job, Result

METRICS = (
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "test_loss",
    "test_accuracy",
    "test_ece",
    "norm",
    "grad_norm",
)
# How far a repeated sample may lie: other processors round otherwise, and training
# amplifies it.
TOLERANCE = {"loss": 0.02, "accuracy": 0.02}

Table = Sequence[Sequence[float | None]]  # [setting][seed]


@dataclass(frozen=True)
class Experiment:
    """One task and one method.

    Attributes:
        name: of its record.
        title: what it is, in a line.
        value: 1 is the most valuable to have.
        gpu_minutes: on one recent GPU; an estimate.
        cpu_minutes: on one core; from the time of a few epochs.
        jobs: makes the sweep's jobs; the last is the cheap `sample`.
        record: makes the record of their results, in the jobs' order.
    """

    name: str
    title: str
    value: int
    gpu_minutes: float
    cpu_minutes: float
    jobs: Callable[[], list[Job]]
    record: Callable[[list[Result]], dict[str, Any]]

    @property
    def sample(self) -> Job:
        """The job that verifying the record repeats."""
        return self.jobs()[-1]


def finished(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The values of the results.

    Raises:
        RuntimeError: a job failed; a record needs all of them.
    """
    failed = [result for result in results if result.value is None]
    if failed:
        raise RuntimeError(
            f"{len(failed)} of {len(results)} jobs failed, the first with {failed[0].error}; mend "
            "the cause and make the record again with retry"
        )
    return [result.value for result in results if result.value is not None]


def choose(final: Mapping[str, Table], budget: int, seed: int) -> int:
    """The setting of best validation accuracy for the seed at place `seed`; ties by
    lower loss.

    A run without a finite loss is not eligible; 0 if none is.
    """

    def rank(i: int) -> tuple[float, float]:
        accuracy, loss = final["val_accuracy"][i][seed], final["val_loss"][i][seed]
        if accuracy is None or loss is None or not math.isfinite(loss):
            return -math.inf, -math.inf
        return accuracy, -loss

    return max(range(budget), key=rank)


def choose_largest(
    final: Mapping[str, Table],
    settings: Sequence[Mapping[str, float]],
    budget: int,
    seed: int,
) -> int:
    """As `choose`, but of equal accuracies the largest hyperparameter (the learning
    rate if none).

    Of several hyperparameters, the first that is not the learning rate.
    """
    name = [*settings[0], "lr"][1]

    def rank(i: int) -> tuple[float, float]:
        accuracy = final["val_accuracy"][i][seed]
        return (-math.inf if accuracy is None else accuracy), settings[i][name]

    return max(range(budget), key=rank)


def assemble(
    *,
    name: str,
    task: dict[str, Any],
    method: str,
    passes: float,
    settings: Sequence[Mapping[str, float]],
    seeds: Sequence[int],
    budget: int,
    space: str,
    value: Mapping[str, Any],
    sample: Job,
    sampled: Mapping[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """The record of a full table of settings and seeds, a setting chosen for each seed.

    Args:
        value: {"epochs": [...], "metrics": {name: [setting][seed][epoch]}, "threads",
            "device"}, and "flatness": {name: [setting][seed]} of ensembles.
        sample: the job whose result is `sampled`, of the same form, and which verifying
            repeats.
        space: the space searched, in words.
        seconds: of all jobs.
    """
    final = {
        metric: [[curve[-1] for curve in row] for row in table]
        for metric, table in value["metrics"].items()
    }
    final |= value.get("flatness", {})
    places = range(len(seeds))
    chosen = [choose(final, budget, place) for place in places]
    largest = [choose_largest(final, settings, budget, place) for place in places]
    curves = {
        m: [t[i][j] for j, i in enumerate(chosen)] for m, t in value["metrics"].items()
    }
    failures = [
        {"setting": i, "seed": seeds[j], "error": "the loss was not finite"}
        for i, row in enumerate(final["train_loss"])
        for j, loss in enumerate(row)
        if loss is None
    ]
    return {
        "schema": 1,
        "name": name,
        "task": task,
        "method": method,
        "passes": passes,
        "settings": list(settings),
        "seeds": list(seeds),
        "final": final,
        "curves": {"epochs": value["epochs"], "setting": chosen, "metrics": curves},
        "selection": {
            "space": space,
            "budget": budget,
            "split": "val",
            "metric": "accuracy",
            "ties": "loss",
            "per": "seed",
            "chosen": chosen,
            "otherwise": {
                "rule": "val accuracy, ties to the largest hyperparameter",
                "chosen": largest,
            },
        },
        "failures": failures,
        "sample": sample_of(sample, sampled),
        "provenance": {
            **records.provenance(),
            "threads": value["threads"],
            "device": value["device"],
            "seconds": seconds,
        },
    }


def sample_of(job: Job, value: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a record that verifying repeats: the first run's loss and accuracy at its end."""
    metrics: dict[str, float | None] = {}
    tolerance: dict[str, float] = {}
    for split in ("train", "test"):
        for metric in ("loss", "accuracy"):
            path = f"metrics.{split}_{metric}.0.0.-1"
            metrics[path] = value["metrics"][f"{split}_{metric}"][0][0][-1]
            tolerance[path] = TOLERANCE[metric]
    return {
        "call": job.call,
        "settings": job.settings,
        "metrics": metrics,
        "tolerance": tolerance,
    }


def number(value: float) -> float | None:
    """6 significant digits; None where there is no number."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
