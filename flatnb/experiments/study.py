"""Tuning under one seed, then fresh seeds: for nets that train one after another."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from flatnb._files import whole
from flatnb.experiments import spaces
from flatnb.experiments.base import (
    METRICS,
    Experiment,
    assemble,
    choose,
    choose_largest,
    finished,
)
from flatnb.experiments.ensembles import device_name
from flatnb.experiments.spaces import Setting
from flatnb.results.sweep import Job, Result

TUNING_SEED = 1000


def run(
    train: Callable[..., dict[str, Any]],
    settings: Sequence[Setting],
    seeds: Sequence[int],
    checkpoint: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Every setting under TUNING_SEED, then the one of best validation accuracy under
    each seed.

    Args:
        train: called as train(setting=..., seed=...); returns
            {"epochs": [...], "metrics": {name: [[[of each epoch]]]}}.
        checkpoint: a file that keeps the finished runs, to go on from.

    Returns:
        {"epochs", "tuning": {name: [setting][0][epoch]}, "chosen": index,
        "metrics": {name: [0][seed][epoch]}, "threads", "device", "seconds": of all
        runs, those before an interruption too}.
    """
    path = None if checkpoint is None else Path(checkpoint)
    kept = _kept(path) if path and path.exists() else {}

    def once(setting: Setting, seed: int) -> dict[str, Any]:
        key = json.dumps([setting, seed], sort_keys=True)
        if key not in kept:
            began = time.perf_counter()
            kept[key] = train(setting=setting, seed=seed)
            kept[key]["seconds"] = time.perf_counter() - began
            if path:
                with whole(path) as file:
                    json.dump(kept, file)
        return kept[key]

    tried = [once(setting, TUNING_SEED) for setting in settings]
    tuning = {m: [each["metrics"][m][0] for each in tried] for m in METRICS}
    chosen = choose(_last(tuning), len(settings), 0)
    runs = [once(settings[chosen], seed) for seed in seeds]
    return {
        "epochs": runs[0]["epochs"],
        "tuning": tuning,
        "chosen": chosen,
        "metrics": {m: [[each["metrics"][m][0][0] for each in runs]] for m in METRICS},
        "threads": torch.get_num_threads(),
        "device": device_name(),
        # Unknown of runs kept by a version that did not count.
        "seconds": sum(one.get("seconds", 0.0) for one in [*tried, *runs]),
    }


def _kept(path: Path) -> dict[str, Any]:
    """The finished runs that a checkpoint keeps."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if all({"epochs", "metrics"} <= set(one) for one in kept.values()):
            return kept
        reason = "a run without epochs or metrics"
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error)
    raise ValueError(
        f"{path} is damaged, or keeps no runs ({reason}); delete it to start anew"
    )


def each(
    experiment: Callable[..., Experiment],
    tasks: Sequence[tuple[Any, int, float, float]],
    methods: Sequence[str],
) -> list[Experiment]:
    """The experiments of all tasks, given with value and minutes, by all methods."""
    return [
        experiment(task, method, value=value, gpu_minutes=gpu, cpu_minutes=cpu)
        for task, value, gpu, cpu in tasks
        for method in methods
    ]


def described(
    task: Mapping[str, Any],
    method: str,
    settings: Sequence[Setting],
    seeds: int,
    rates: spaces.Range,
) -> dict[str, Any]:
    """What `assemble` is told of a task trained by annealed SGD, or by AdamW, and of a
    method.

    Args:
        task: its settings, with the name.
        settings: those tried.
        seeds: how many, from 0.
        rates: the learning rates searched.
    """
    adamw = method == "AdamW"
    return {
        "name": f"{task['name']}/{method}",
        "task": {
            **task,
            "schedule": "cosine",
            "budget_unit": "epochs",
            "optimizer": "AdamW" if adamw else "SGD, momentum 0.9",
        },
        "method": method,
        "passes": spaces.passes(method),
        "seeds": list(range(seeds)),
        "budget": len(settings),
        "space": spaces.described(method, rates),
    }


def experiment(
    module: str,
    what: Mapping[str, Any],
    settings: Sequence[Setting],
    given: Mapping[str, Any],
    sample: Mapping[str, Any],
    *,
    title: str,
    value: int,
    gpu_minutes: float,
    cpu_minutes: float,
) -> Experiment:
    """The experiment of one study.

    Args:
        module: has `study` and `train_one`.
        what: of `described`.
        settings: those tried.
        given, sample: the settings of `study` and of a small `train_one`, beside its
            own.
        gpu_minutes, cpu_minutes: of one run of one pass.
    """
    seeds = what["seeds"]
    runs = (len(settings) + len(seeds)) * what["passes"]
    jobs = [
        Job(
            f"{module}:study",
            {**given, "settings": list(settings), "seeds": seeds},
            60 * cpu_minutes * runs,
        ),
        Job(f"{module}:train_one", {**sample, "setting": settings[0], "seed": 0}),
    ]
    task = {
        **what["task"],
        "tuning_seed": TUNING_SEED,
        "note": "metrics tuning_*: every setting under the tuning seed, in the first column",
    }

    def record(results: list[Result]) -> dict[str, Any]:
        whole, sampled = finished(results)
        full = _full(whole, len(settings), len(seeds))
        made = assemble(
            **{**what, "task": task},
            settings=settings,
            value=full,
            sample=jobs[1],
            sampled=sampled,
            seconds=whole.get("seconds", results[0].seconds) + results[1].seconds,
        )
        return _per_task(made, whole, settings, len(seeds))

    return Experiment(
        name=what["name"],
        title=title,
        value=value,
        jobs=lambda: jobs,
        record=record,
        gpu_minutes=gpu_minutes * runs,
        cpu_minutes=cpu_minutes * runs,
    )


def _last(tables: Mapping[str, Any]) -> dict[str, Any]:
    return {
        m: [[curve[-1] for curve in row] for row in table]
        for m, table in tables.items()
    }


def _full(value: Mapping[str, Any], settings: int, seeds: int) -> dict[str, Any]:
    """The study's runs as a table of all settings; without a number where none was run."""
    nothing = [[None] * len(value["epochs"])] * seeds
    tables = {
        metric: [table[0] if i == value["chosen"] else nothing for i in range(settings)]
        for metric, table in value["metrics"].items()
    }
    return {**value, "metrics": tables}


def _per_task(
    made: dict[str, Any],
    value: Mapping[str, Any],
    settings: Sequence[Setting],
    seeds: int,
) -> dict[str, Any]:
    """The record with the tuning runs in its tables, and their choice for all seeds."""
    tuning = _last(value["tuning"])
    chosen = [value["chosen"]] * seeds
    final = dict(made["final"])
    for metric, table in tuning.items():
        final[f"tuning_{metric}"] = [row + [None] * (seeds - 1) for row in table]
    failures = [one for one in made["failures"] if one["setting"] == value["chosen"]]
    failures += [
        {
            "setting": i,
            "seed": made["seeds"][0],
            "error": "tuning: the loss was not finite",
        }
        for i, row in enumerate(tuning["train_loss"])
        if row[0] is None
    ]
    largest = choose_largest(tuning, settings, len(settings), 0)
    selection = {
        **made["selection"],
        "per": "task",
        "chosen": chosen,
        "otherwise": {**made["selection"]["otherwise"], "chosen": [largest] * seeds},
    }
    metrics = {m: table[0] for m, table in value["metrics"].items()}
    curves = {**made["curves"], "setting": chosen, "metrics": metrics}
    return {
        **made,
        "final": final,
        "failures": failures,
        "selection": selection,
        "curves": curves,
    }
