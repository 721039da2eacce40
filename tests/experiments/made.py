"""Records of experiments whose jobs run here and now."""

import json
from typing import Any

from flatnb.experiments import Experiment
from flatnb.experiments.experiment import Cost
from flatnb.results import form, sweep

FREE = Cost(9, 0.0, 0.0)


def record_of(experiment: Experiment) -> dict[str, Any]:
    """The record, of a valid form."""
    results = [sweep.Result(job, job.run(), None, 1.0) for job in experiment.jobs()]
    record = json.loads(json.dumps(experiment.record(results)))
    form.check(record)
    return record
