"""Runs an experiment again."""

from __future__ import annotations

from engine.lab.experiment import ExperimentResult, Lab
from engine.lab.repeat import Repeat


def run(repeat: Repeat, lab: Lab) -> ExperimentResult:
    """Everything is computed anew; raises what the experiment raises."""
    experiment = repeat.experiment()
    found = experiment.run(lab)
    return ExperimentResult({**found.summary, "repeat_of": experiment.to_json()}, dict(found.tables))
