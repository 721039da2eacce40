"""An experiment: its two jobs, and the record that their results make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from flatnb.experiments.runner import Curve, Value, choose
from flatnb.experiments.tasks import Cost
from flatnb.experiments.tuning import Setting
from flatnb.results.provenance import provenance
from flatnb.results.sweep import Job, Result


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One task and one method.

    Attributes:
        name: of the record.
        cost: of all runs.
        job: all runs; it returns a `runner.result` of tables [setting][seed].
        sample: a cheap job, which verifying the record repeats.
        task: what the record states of it, as of method, passes, settings and seeds.
        space: what was searched, in words.
        budget: the settings that can be chosen, the first so many.
        scope: a setting is chosen per "seed", or per "task" by the tuning seed; None:
            nothing is tuned, the first is taken.
        sampled: the metrics of the sample that the record keeps.
    """

    name: str
    cost: Cost
    job: Job
    sample: Job
    task: Mapping[str, Any]
    method: str
    passes: float
    settings: Sequence[Setting]
    seeds: Sequence[int]
    space: str
    budget: int
    scope: str | None = "seed"
    sampled: Sequence[str] = (
        *("train_loss", "train_accuracy"),
        *("test_loss", "test_accuracy"),
    )

    def jobs(self) -> list[Job]:
        """The jobs of a sweep."""
        return [replace(self.job, cost=60 * self.cost.cpu_minutes), self.sample]

    def record(self, results: Sequence[Result]) -> dict[str, Any]:
        """The record of the jobs' results, in their order.

        Raises:
            RuntimeError: a job failed; a record needs both.
        """
        errors = [result.error for result in results if result.value is None]
        if errors:
            raise RuntimeError(
                f"{len(errors)} of {len(results)} jobs failed, the first with "
                f"{errors[0]}; fix the cause and make the record again with retry"
            )
        runs, sample = (cast(Value, result.value) for result in results)
        metrics: dict[str, list[list[Curve]]] = runs["metrics"]
        final = {name: _ends(table) for name, table in metrics.items()}
        final |= runs.get("flatness", {}) | runs.get("tuning", {})
        selection = self._selection(final)
        chosen = selection["chosen"]
        curves = {
            name: [table[setting][seed] for seed, setting in enumerate(chosen)]
            for name, table in metrics.items()
        }
        return {
            "schema": 1,
            "name": self.name,
            "task": self.task,
            "method": self.method,
            "passes": self.passes,
            "settings": self.settings,
            "seeds": self.seeds,
            "final": final,
            "curves": {"epochs": runs["epochs"], "setting": chosen, "metrics": curves},
            "selection": selection,
            "failures": self._failures(final, chosen),
            "sample": self._sample(sample),
            "provenance": {
                **provenance(),
                "threads": runs["threads"],
                "device": runs["device"],
                "seconds": sum(result.seconds for result in results),
            },
        }

    def _selection(self, final: Mapping[str, Sequence[Curve]]) -> dict[str, Any]:
        stated = {
            "space": self.space,
            "budget": self.budget,
            "per": self.scope or "task",
        }
        if self.scope is None:
            unused = dict.fromkeys(("split", "metric", "ties"))
            return {**stated, **unused, "chosen": [0] * len(self.seeds)}

        def compared(metric: str) -> list[Curve]:
            """For each seed, the value of each setting that can be chosen."""
            if self.scope == "seed":
                rows = final[metric][: self.budget]
                return [list(column) for column in zip(*rows, strict=True)]
            rows = final[f"tuning_{metric}"][: self.budget]
            return [[row[0] for row in rows]] * len(self.seeds)

        accuracies, losses = compared("val_accuracy"), compared("val_loss")
        name = [*self.settings[0], "lr"][1]  # the first, but for the rate
        sizes: Curve = [-setting[name] for setting in self.settings]
        return {
            **stated,
            "split": "val",
            "metric": "accuracy",
            "ties": "loss",
            "chosen": list(map(choose, accuracies, losses)),
            "otherwise": {
                "rule": "val accuracy, ties to the largest hyperparameter",
                "chosen": [choose(column, sizes) for column in accuracies],
            },
        }

    def _failures(
        self, final: Mapping[str, Sequence[Curve]], chosen: Sequence[int]
    ) -> list[dict[str, Any]]:
        """The runs that ended without a number, of those that were made."""
        metric = self.sampled[0]
        error = "diverged" if self.scope is None else "the loss was not finite"
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
        ends = {
            f"metrics.{metric}.0.0.-1": sample["metrics"][metric][0][0][-1]
            for metric in self.sampled
        }
        tolerance = {
            path: 0.02 if self.scope else 0.02 * abs(end or 0.0)
            for path, end in ends.items()
        }
        return {
            "call": self.sample.call,
            "settings": self.sample.settings,
            "metrics": ends,
            "tolerance": tolerance,
        }


def _ends(table: Sequence[Sequence[Curve]]) -> list[Curve]:
    """[setting][seed], of [setting][seed][epoch]: the last epoch."""
    return [[curve[-1] for curve in row] for row in table]
