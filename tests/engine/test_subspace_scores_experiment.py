"""Subspace scores as an experiment: tables give back the sweep, own code only where it may run."""

from __future__ import annotations

import numpy as np
from subspace_runs import DELTAS, SMALL, result, synthetic_lab

from engine.analysis.subspace_scores import Scores, prepare_all
from engine.experiments.subspace_tables import DESCRIBED, scores_of, tables_of


def assert_equal(found: Scores, expected: Scores) -> None:
    """Every number, name and word, to the last bit."""
    for name in ("candidates", "k", "broad", "clean", "d", "left_out", "target"):
        assert getattr(found, name) == getattr(expected, name), name
    for name in ("layers", "averaged"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    for name in ("tables", "ceilings", "details"):
        one, two = getattr(found, name), getattr(expected, name)
        assert list(one) == list(two), name
        for key in two:
            np.testing.assert_array_equal(one[key], two[key], err_msg=f"{name} {key}")


def test_stored_tables_give_back_the_sweep() -> None:
    lab = synthetic_lab()
    prepared = prepare_all(lab.inputs, lab.targets, widest=8, broad=12)
    summary, tables = tables_of(prepared, SMALL["ks"], SMALL["cleans"])
    entries = [entry.described() for entry in prepared[0].candidates]
    summary["candidates"] = [{name: getattr(e, name) for name in DESCRIBED} for e in entries]
    for delta, one in zip(DELTAS, prepared, strict=True):
        for k in SMALL["ks"]:
            for clean in (None, *SMALL["cleans"]):
                for layers in (None, [0], [2, 1], [0, 1, 2, 3, 4]):
                    found = scores_of(summary, tables, delta, k, clean, layers)
                    assert_equal(found, one.scores(k, clean=clean, layers=layers))


def test_run() -> None:
    found = result()
    assert found.summary["subject"] == "base"
