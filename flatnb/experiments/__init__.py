"""The experiments of the book: tasks, methods, and what each method is tuned over.

`EXPERIMENTS` lists them, the most valuable first; each makes the jobs of a sweep and,
of their results, a record. `flatnb records make NAME` runs one.
"""

from collections.abc import Iterator
from types import ModuleType

from flatnb.experiments import images, plane, sensing
from flatnb.experiments.experiment import Experiment
from flatnb.experiments.tasks import TASKS, FineTuning, Images, Plane, Sensing

__all__ = ["EXPERIMENTS", "Experiment"]

_MODULES = {Plane: plane, Sensing: sensing, Images: images, FineTuning: images}


def _experiments() -> Iterator[Experiment]:
    for task in TASKS:
        module: ModuleType = _MODULES[type(task)]
        for method in module.methods(task):
            yield module.experiment(task, method)


EXPERIMENTS = sorted(_experiments(), key=lambda experiment: experiment.cost.value)
