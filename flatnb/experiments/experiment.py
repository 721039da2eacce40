"""An experiment: its two jobs, and the record that their results make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from flatnb.experiments.runner import Curve, Value, choose, choose_largest
from flatnb.experiments.tasks import Cost
from flatnb.results.provenance import provenance
from flatnb.results.sweep import Job, Result


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One task and one method.

    Attributes:
        name: of the record.
        title: what it is, in a line.
        cost: of all runs.
        job: all runs; it returns a `runner.result` of tables [setting][seed].
        sample: a cheap job, which verifying the record repeats.
        stated: what the record states: task, method, passes, settings and seeds.
        space: what was searched, in words.
        budget: the settings that can be chosen, the first so many.
        scope: a setting is chosen per "seed", or per "task" by the tuning seed; None:
            nothing is tuned, the first is taken.
        sampled: the metrics of the sample that the record keeps.
    """

    name: str
    title: str
    cost: Cost
    job: Job
    sample: Job
    stated: Mapping[str, Any]
    space: str
    budget: int
    scope: str | None = "seed"
    sampled: Sequence[str] = (
        *("train_loss", "train_accuracy"),
        *("test_loss", "test_accuracy"),
    )

    def jobs(self) -> list[Job]:
        """The jobs of a sweep."""
        return [self.job, self.sample]

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
        final: dict[str, list[Curve]] = {
            name: [[curve[-1] for curve in row] for row in table]
            for name, table in metrics.items()
        }
        final |= runs.get("flatness", {}) | runs.get("tuning", {})
        selection = self._selection(final)
        places = list(enumerate(selection["chosen"]))
        curves = {n: [table[i][j] for j, i in places] for n, table in metrics.items()}
        return {
            "schema": 1,
            "name": self.name,
            **self.stated,
            "final": final,
            "curves": {
                "epochs": runs["epochs"],
                "setting": selection["chosen"],
                "metrics": curves,
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

    def _selection(self, final: Mapping[str, list[Curve]]) -> dict[str, Any]:
        stated = {
            "space": self.space,
            "budget": self.budget,
            "per": self.scope or "task",
        }
        places = range(len(self.stated["seeds"]))
        if self.scope is None:
            unused = {"split": None, "metric": None, "ties": None}
            return {**stated, **unused, "chosen": [0 for _ in places]}

        def column(metric: str, place: int) -> Curve:
            if self.scope == "task":
                metric, place = f"tuning_{metric}", 0
            return [row[place] for row in final[metric][: self.budget]]

        accuracies = [column("val_accuracy", place) for place in places]
        losses = [column("val_loss", place) for place in places]
        return {
            **stated,
            "split": "val",
            "metric": "accuracy",
            "ties": "loss",
            "chosen": list(map(choose, accuracies, losses)),
            "otherwise": {
                "rule": "val accuracy, ties to the largest hyperparameter",
                "chosen": [
                    choose_largest(a, self.stated["settings"]) for a in accuracies
                ],
            },
        }

    def _failures(
        self, final: Mapping[str, list[Curve]], chosen: Sequence[int]
    ) -> list[dict[str, Any]]:
        """The runs that ended without a number, of those that were made."""
        metric = self.sampled[0]
        error = "diverged" if self.scope is None else "the loss was not finite"
        failures = [
            {"setting": i, "seed": self.stated["seeds"][j], "error": error}
            for i, row in enumerate(final[metric])
            for j, end in enumerate(row)
            if end is None and (self.scope != "task" or i == chosen[j])
        ]
        return failures + [
            {"setting": i, "seed": self.stated["seeds"][0], "error": f"tuning: {error}"}
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
        return {
            "call": self.sample.call,
            "settings": self.sample.settings,
            "metrics": ends,
            "tolerance": tolerance,
        }
