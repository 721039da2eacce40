"""An experiment: its two jobs, and the record that their results make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import numpy as np

from flatnb.experiments.runner import Curve, Value, choose
from flatnb.experiments.tuning import Setting
from flatnb.results.provenance import provenance
from flatnb.results.sweep import Job, Result

_SAMPLED = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")


class Cost(NamedTuple):
    """A task's value (1: the most), and the minutes of a run of one pass. A run is one
    net; in the plane all settings and seeds, in matrix sensing a setting."""

    value: int
    gpu_minutes: float  # estimated
    cpu_minutes: float  # on one core, from a few epochs

    def times(self, runs: float) -> Cost:
        """The cost of so many runs."""
        return Cost(self.value, self.gpu_minutes * runs, self.cpu_minutes * runs)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One task and one method, from `task` to `budget` as the record states them.

    A setting is chosen per "seed", or per "task" by the tuning seed (`scope`); None:
    nothing is tuned, the first is taken.
    """

    name: str  # of the record
    cost: Cost  # of all runs
    job: Job  # all runs; it returns a `runner.result` of tables [setting][seed]
    sample: Job  # a cheap one, which verifying the record repeats
    task: Mapping[str, Any]
    method: str
    passes: float
    settings: Sequence[Setting]
    seeds: Sequence[int]
    space: str  # what was searched, in words
    budget: int  # the settings that can be chosen, the first so many
    scope: str | None = "seed"
    sampled: Sequence[str] = _SAMPLED  # metrics of the sample that the record keeps

    def jobs(self) -> list[Job]:
        """The jobs of a sweep."""
        return [replace(self.job, cost=60 * self.cost.cpu_minutes), self.sample]

    def record(self, results: Sequence[Result]) -> dict[str, Any]:
        """The record of the jobs' results, in order; RuntimeError if a job failed."""
        errors = [result.error for result in results if result.value is None]
        if errors:
            raise RuntimeError(
                f"{len(errors)} of {len(results)} jobs failed, the first with "
                f"{errors[0]}; fix the cause and make the record again with retry"
            )
        runs, sample = (cast(Value, result.value) for result in results)
        # Objects, because a missing number is None: (setting, seed, epoch).
        tables = {
            name: np.array(t, dtype=object) for name, t in runs["metrics"].items()
        }
        final = {name: table[..., -1].tolist() for name, table in tables.items()}
        final |= runs.get("flatness", {}) | runs.get("tuning", {})
        selection = self._selection(final)
        chosen = (selection["chosen"], range(len(self.seeds)))
        return {
            "schema": 1,
            "name": self.name,
            "task": self.task,
            "method": self.method,
            "passes": self.passes,
            "settings": self.settings,
            "seeds": self.seeds,
            "final": final,
            "curves": {
                "epochs": runs["epochs"],
                "setting": selection["chosen"],
                "metrics": {n: table[chosen].tolist() for n, table in tables.items()},
            },
            "selection": selection,
            "failures": self._failures(final, selection["chosen"]),
            "sample": self._sample(sample),
            "provenance": {
                **provenance(),
                "threads": runs["threads"],
                "device": runs["device"],
                "seconds": sum(result.seconds for result in results),
            },
        }

    def _selection(self, final: Mapping[str, Sequence[Curve]]) -> dict[str, Any]:
        scope = self.scope or "task"
        stated = {"space": self.space, "budget": self.budget, "per": scope}
        if self.scope is None:
            unused = dict.fromkeys(("split", "metric", "ties"))
            return {**stated, **unused, "chosen": [0] * len(self.seeds)}

        def column(metric: str, seed: int) -> Curve:
            if self.scope == "task":
                metric, seed = f"tuning_{metric}", 0
            return [row[seed] for row in final[metric][: self.budget]]

        seeds = range(len(self.seeds))
        accuracies = [column("val_accuracy", seed) for seed in seeds]
        losses = [column("val_loss", seed) for seed in seeds]
        name = [*self.settings[0], "lr"][1]  # the first, but for the rate
        sizes: Curve = [-setting[name] for setting in self.settings[: self.budget]]
        return {
            **stated,
            "split": "val",
            "metric": "accuracy",
            "ties": "loss",
            "chosen": list(map(choose, accuracies, losses)),
            "otherwise": {
                "rule": "val accuracy, ties to the largest hyperparameter",
                "chosen": [choose(values, sizes) for values in accuracies],
            },
        }

    def _failures(
        self, final: Mapping[str, Sequence[Curve]], chosen: Sequence[int]
    ) -> list[dict[str, Any]]:
        """The runs that ended without a number, of those that were made."""
        metric = self.sampled[0]
        error = "the loss was not finite"
        failures = [
            {"setting": i, "seed": self.seeds[j], "error": error}
            for i, row in enumerate(final[metric])
            for j, end in enumerate(row)
            if end is None and (self.scope != "task" or i == chosen[j])
        ]
        return failures + [
            {"setting": i, "seed": self.seeds[0], "error": f"tuning: {error}"}
            for i, row in enumerate(final.get(f"tuning_{metric}", ()))
            if row[0] is None
        ]

    def _sample(self, sample: Value) -> dict[str, Any]:
        """Where the sample's first run ended, and how far a repetition may lie: other
        processors round otherwise, and training amplifies it."""
        ends, tolerance = {}, {}
        for metric in self.sampled:
            path = f"metrics.{metric}.0.0.-1"
            ends[path] = sample["metrics"][metric][0][0][-1]
            tolerance[path] = 0.02 if self.scope else 0.02 * abs(ends[path] or 0.0)
        job = {"call": self.sample.call, "settings": self.sample.settings}
        return {**job, "metrics": ends, "tolerance": tolerance}
