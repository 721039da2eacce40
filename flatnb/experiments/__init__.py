"""The experiments of the book: tasks, methods, and what each method is tuned over.

`EXPERIMENTS` lists them, the most valuable first; `flatnb records make NAME` runs one.
"""

from flatnb.experiments import images, plane, sensing
from flatnb.experiments.experiment import Experiment

__all__ = ["EXPERIMENTS", "Experiment"]

EXPERIMENTS = sorted(
    [*plane.experiments(), *images.experiments(), *sensing.experiments()],
    key=lambda experiment: experiment.cost.value,
)
