"""The experiments of the book: tasks, methods, and what each method is tuned over.

`EXPERIMENTS` lists them, the most valuable first; each makes the jobs of a sweep and,
of their results, a record. `flatnb records make NAME` runs one.
"""

from flatnb.experiments import finetune, images, plane, sensing
from flatnb.experiments.experiment import Experiment

__all__ = ["EXPERIMENTS", "Experiment"]

EXPERIMENTS: list[Experiment] = sorted(
    [
        *plane.experiments(),
        *sensing.experiments(),
        *images.experiments(),
        *finetune.experiments(),
    ],
    key=lambda experiment: experiment.cost.value,
)
