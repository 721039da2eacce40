"""The experiments of the book: tasks, methods, and what each method is tuned over.

`EXPERIMENTS` lists them, the most valuable first; `flatnb records make NAME` runs one.
"""

from flatnb.experiments import (
    double_descent,
    gnp_map,
    images,
    plane,
    pretrained,
    sensing,
)
from flatnb.experiments.experiment import Experiment

__all__ = ["EXPERIMENTS", "Experiment"]

_KINDS = (plane, images, pretrained, sensing, double_descent, gnp_map)
EXPERIMENTS = sorted(
    (experiment for kind in _KINDS for experiment in kind.experiments()),
    key=lambda experiment: experiment.cost.value,
)
