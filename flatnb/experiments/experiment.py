"""An experiment: its two jobs, and the record that their results make."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import numpy as np

from flatnb.experiments.runner import Curve, Value
from flatnb.experiments.study import NOT_FINITE
from flatnb.experiments.tuning import Setting
from flatnb.results.provenance import provenance
from flatnb.results.sweep import Job, Result

_SAMPLED = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")


class Cost(NamedTuple):
    """A task's value, and the minutes of a run of one pass.

    A run is one net; in the plane all settings and seeds, in matrix sensing a setting.

    Args:
        value: by which `flatnb records todo` sorts; 1 comes first.
        gpu_minutes: estimated.
        cpu_minutes: on one core, extrapolated from a few epochs.
    """

    value: int
    gpu_minutes: float
    cpu_minutes: float

    def times(self, runs: float) -> Cost:
        """The cost of a number of runs."""
        return Cost(self.value, self.gpu_minutes * runs, self.cpu_minutes * runs)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One task and one method: what is run, and the record that it makes.

    Args:
        name: of the record.
        cost: of all runs.
        job: all runs, as one call. If `tuned`, it returns what
            `flatnb.experiments.study.study` does.
        sample: a cheap job, which verifying the record repeats.
        task: all settings of the task, with its "name"; the record states them.
        method: its name.
        passes: forward-backward passes per step.
        settings: every setting that is tried, a dict each.
        seeds: of the selection.
        space: what is searched, in words.
        budget: how many settings, the first ones, can be chosen. One past them is the
            published default.
        tuned: if not, the first setting is taken, and all runs are fresh.
        at_edge: the hyperparameters of a chosen setting that lie at an edge.
        run: the job of one run, of a setting and a seed.
        sampled: metrics of the sample that the record keeps.
        kept: metrics whose curves are kept of every setting.

    >>> from flatnb.experiments import EXPERIMENTS
    >>> [experiment.method for experiment in EXPERIMENTS if "sensing" in experiment.name]
    ['GD', 'WeightNoise', 'NSO']
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
    tuned: bool = True
    at_edge: Callable[[Setting], list[str]] = lambda chosen: []
    run: Callable[[Setting, int], Job] | None = None
    sampled: Sequence[str] = _SAMPLED
    kept: Sequence[str] = ()

    def jobs(self) -> list[Job]:
        """All runs, and the sample: the jobs for `flatnb.results.sweep.run`."""
        return [replace(self.job, cost=60 * self.cost.cpu_minutes), self.sample]

    def record(self, results: Sequence[Result]) -> dict[str, Any]:
        """The record of the jobs' results, which are in the order of `jobs`.

        Raises:
            RuntimeError: a job failed; it names the first error.
        """
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
        final |= runs.get("flatness", {})
        selection = self._selection(runs)
        setting = selection["setting"]
        evaluation = {"evaluation": runs["evaluation"]} if self.tuned else {}
        kept = {name: tables[name].tolist() for name in self.kept}
        return {
            "schema": 2,
            "name": self.name,
            "task": self.task,
            "method": self.method,
            "passes": self.passes,
            "settings": self.settings,
            "seeds": self.seeds,
            "final": final,
            "curves": {
                "epochs": runs["epochs"],
                "setting": [setting] * len(self.seeds),
                "metrics": {n: table[setting].tolist() for n, table in tables.items()},
                **({"all": kept} if kept else {}),
            },
            "selection": selection,
            **evaluation,
            "failures": runs["failures"] if self.tuned else self._failures(final),
            "sample": self._check(self.sample, self._ends(sample)),
            "provenance": {
                **provenance(),
                **runs["machine"],
                "seconds": sum(result.seconds for result in results),
            },
        }

    def whole_run(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The first fresh run of a record as a sample, which repeats it to its last epoch.

        Raises:
            ValueError: the record has no fresh runs.
        """
        if self.run is None or "evaluation" not in record:
            raise ValueError(f"{self.name} has no evaluation of which to repeat a run")
        first = record["evaluation"]["chosen"]
        setting = record["settings"][first["settings"][0]]
        ends = {metric: first["final"][metric][0] for metric in self.sampled}
        return self._check(self.run(setting, first["seeds"][0]), ends)

    def _selection(self, runs: Value) -> dict[str, Any]:
        stated = {"space": self.space, "budget": self.budget, "per": "task"}
        if not self.tuned:
            unused = dict.fromkeys(("split", "metric", "ties"))
            nothing = {"setting": 0, "chosen": [0] * len(self.seeds), "at_edge": []}
            return {**stated, **unused, **nothing}
        setting = runs["choice"]["setting"]
        return {
            **stated,
            "split": "val",
            "metric": "accuracy",
            "ties": "loss",
            "setting": setting,
            "chosen": runs["choice"]["by_seed"],
            "at_edge": self.at_edge(self.settings[setting]),
        }

    def _failures(self, final: Mapping[str, Sequence[Curve]]) -> list[dict[str, Any]]:
        """The runs that ended without a number, where all were made."""
        return [
            {"setting": i, "seed": self.seeds[j], "error": NOT_FINITE}
            for i, row in enumerate(final[self.sampled[0]])
            for j, end in enumerate(row)
            if end is None
        ]

    def _ends(self, value: Value) -> dict[str, Any]:
        """Where the first run ended."""
        return {m: value["metrics"][m][0][0][-1] for m in self.sampled}

    def _check(self, job: Job, ends: Mapping[str, Any]) -> dict[str, Any]:
        """A run that can be repeated, and how far a repetition may lie: other
        processors round otherwise, and training amplifies it."""
        found = {f"metrics.{metric}.0.0.-1": end for metric, end in ends.items()}
        tolerance = {
            path: 0.02 if self.tuned else 0.02 * abs(end or 0.0)
            for path, end in found.items()
        }
        stated = {"call": job.call, "settings": job.settings}
        return {**stated, "metrics": found, "tolerance": tolerance}
