"""Subspace scores as an experiment: stored tables give the sweep back, and nothing else is needed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from subspace_runs import DELTAS, SMALL, SyntheticLab, result, synthetic_lab

from engine.errors import AnalysisError, JobError, PatchError
from engine.kinds import experiment_from_json
from engine.lab.experiment import Experiment
from engine.subspaces.numbers import (
    REGISTRY,
    Registry,
    Scores,
    across,
    at_ranks,
    candidate,
    prepare_all,
    registering_in,
    stability,
)
from engine.subspaces.spec import KS, SubspaceScores
from engine.subspaces.tables import DESCRIBED, scores_of, tables_of
from store.runs import RunLog

FEW = ("mlp_write", "logits_null", "chars_clusters", "qk_x_chars_clusters", "act_ceiling")


def assert_equal(found: Scores, expected: Scores) -> None:
    """Every number, name and word, to the last bit."""
    for name in ("candidates", "k", "broad", "clean", "d", "left_out", "target"):
        assert getattr(found, name) == getattr(expected, name), name
    for name in ("layers", "averaged"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    for name in ("tables", "ceilings", "details"):
        one, two = getattr(found, name), getattr(expected, name)
        assert set(one) == set(two), name
        for key in two:
            np.testing.assert_array_equal(one[key], two[key], err_msg=f"{name} {key}")


def few(lab: SyntheticLab, **changes: Any) -> SubspaceScores:
    del lab
    return SubspaceScores(**SMALL | {"candidates": FEW} | changes)


@pytest.fixture(scope="module")
def lab() -> SyntheticLab:
    return synthetic_lab()


@pytest.fixture
def own() -> Iterator[Registry]:
    """A copy of the registry to which decorated functions are added."""
    registry = Registry(REGISTRY)
    with registering_in(registry):
        yield registry


def test_stored_tables_give_the_sweep_back(lab: SyntheticLab) -> None:
    lab = replace(lab, inputs=replace(lab.inputs, gate_proj=None))  # some candidates cannot be built
    prepared = prepare_all(lab.inputs, lab.targets, widest=8, broad=12)
    ks = (1, 3, 8)
    summary, tables = tables_of(prepared, ks, SMALL["cleans"])
    entries = [entry.described() for entry in prepared[0].candidates]
    summary["candidates"] = [{name: getattr(e, name) for name in DESCRIBED} for e in entries]
    for delta, one in zip(DELTAS, prepared, strict=True):
        for k in ks:
            for clean in (None, *SMALL["cleans"]):
                for layers in (None, [0], [2, 1], [0, 1, 2, 3, 4]):
                    found = scores_of(summary, tables, delta, k, clean, layers)
                    assert_equal(found, one.scores(k, clean=clean, layers=layers))
    assert {"gate_kernel", "gate_active_written"} <= {row["name"] for row in summary["left_out"]}
    assert found.definitions() == one.scores(8).definitions()


def test_a_stored_run_gives_the_same_scores(tmp_path: Path) -> None:
    run = result()
    assert json.loads(json.dumps(run.summary, allow_nan=False)) == run.summary
    tables = dict(run.tables)
    run_id = RunLog(tmp_path).append(SubspaceScores().to_json(), run.summary, tables.pop("table"), tables)
    read = RunLog(tmp_path).open(run_id)
    for delta in DELTAS:
        again = scores_of(read.summary, read.tables, delta, 6, 2)
        assert_equal(again, scores_of(run.summary, run.tables, delta, 6, 2))
    assert again.details["qk_x_chars_clusters"].shape == (5, 6)


def test_reads_are_taken_with_or_without_the_gains_of_norms(lab: SyntheticLab) -> None:
    """R_act of a read by a plain SVD of W, and of W diag(g); what is asked by default has the old hash."""
    assert "fold_norm" not in SubspaceScores(fold_norm=True).to_json()
    d, layer, k = lab.inputs.d, 2, 4
    rows = np.asarray(lab.targets[0].label(layer))
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    gain = np.asarray(lab.inputs.mlp_norm(layer))  # type: ignore[misc]
    assert lab.inputs.up_proj is not None
    for fold in (True, False):
        wanted = few(lab, candidates=("mlp_up_read", "mlp_write"), fold_norm=fold)
        found = wanted.run(lab)  # type: ignore[arg-type]
        weight = np.asarray(lab.inputs.up_proj(layer)) * (gain if fold else 1.0)
        basis = np.linalg.svd(weight)[2][:k].T
        share = ((rows @ basis) ** 2).sum() / len(rows)
        scores = scores_of(found.summary, found.tables, DELTAS[0], k)
        at = scores.names.index("mlp_up_read"), scores.layers.tolist().index(layer)
        assert scores.tables["r_act"][at] == pytest.approx(share / (k / d), rel=1e-9)
    assert wanted.describe().endswith("norms' gains left out")
    assert experiment_from_json(wanted.to_json()) == wanted


def test_ranks_together_equal_ranks_alone(lab: SyntheticLab) -> None:
    entries = {name: REGISTRY[name] for name in FEW}
    together = prepare_all(lab.inputs, lab.targets, entries, widest=8, broad=12)
    found = at_ranks(together, {2: (0, 4), 8: (8,), 5: (1,)})
    for target, each in zip(lab.targets, found, strict=True):
        alone = prepare_all(replace(lab.inputs, target=target), [target], entries, widest=8, broad=12)[0]
        for k, clean in ((2, 0), (2, 4), (8, 8), (5, 1)):
            assert_equal(each[k].scores(clean), alone.scores(k, clean=clean))


def test_a_candidate_that_fails_at_one_rank_has_the_others(lab: SyntheticLab, own: Registry) -> None:
    @candidate(
        name="odd_ranks",
        family="own",
        axis_kind="mixed",
        source="none",
        needs=(),
        definition="odd ranks only",
    )
    def odd_ranks(inputs: Any, layer: int, k: int) -> np.ndarray:
        if k % 2 == 0 and layer == 2:
            raise KeyError("even")
        return np.eye(inputs.d)[:, :k]

    entries = {name: own[name] for name in ("mlp_write", "odd_ranks")}
    prepared = prepare_all(lab.inputs, lab.targets, entries, widest=4, broad=6)
    assert prepared[0].scores(2).names == ("mlp_write",)
    assert prepared[0].scores(3).names == ("mlp_write", "odd_ranks")  # whatever was asked before
    summary, tables = tables_of(prepared, (2, 3, 4), (0,))
    failed = [(row["delta"], row["k"], row["name"], row["layer"]) for row in summary["left_out"]]
    assert failed == [(delta, k, "odd_ranks", 2) for delta in DELTAS for k in (2, 4)]
    summary["candidates"] = [{n: getattr(e, n) for n in DESCRIBED} for e in entries.values()]
    assert_equal(scores_of(summary, tables, DELTAS[1], 3), prepared[1].scores(3))
    assert_equal(scores_of(summary, tables, DELTAS[1], 2), prepared[1].scores(2))


def test_candidates_cannot_look_at_the_change_but_ceilings_can(lab: SyntheticLab, own: Registry) -> None:
    facts: dict[str, Any] = {"family": "own", "source": "change", "needs": (), "definition": "peeks"}

    @candidate(name="peeks", axis_kind="mixed", **facts)
    def peeks(inputs: Any, layer: int, k: int) -> np.ndarray:
        return np.asarray(inputs.moment("combined", layer).vectors[:, :k])

    @candidate(name="peeks_in_the_raw", axis_kind="write", **facts)
    def peeks_in_the_raw(inputs: Any, layer: int, k: int) -> np.ndarray:
        return np.linalg.qr(inputs.raw.target.label(layer).T)[0][:, :k]

    @candidate(name="may_look", axis_kind="ceiling", shared=True, **facts)
    def may_look(inputs: Any, layer: int, k: int) -> np.ndarray:
        return np.asarray(inputs.moment("combined", 2).vectors[:, :k])

    entries = {name: own[name] for name in ("peeks", "peeks_in_the_raw", "may_look", "dW_combined_ceiling")}
    for one in prepare_all(lab.inputs, lab.targets, entries, widest=3, broad=6):
        scores = one.scores(3, layers=[2])
        assert scores.names == ("may_look", "dW_combined_ceiling")
        assert all("not for this candidate to see" in failed.reason for failed in scores.left_out)
        shares = scores.percent("combined")
        np.testing.assert_allclose(shares, 100.0)  # each change's own, not the first one's
    with pytest.raises(AnalysisError, match="axis_kind ceiling"):
        candidate(name="says_so", axis_kind="mixed", **facts | {"needs": ("delta",)})(peeks)


def test_what_a_run_says_of_itself(lab: SyntheticLab) -> None:
    lab = replace(lab, notes=["from the lab"], reported=[])
    found = few(lab, ks=(3, 1, 3, 100), broad=64, deltas=("tuned_again",)).run(lab)  # type: ignore[arg-type]
    assert found.summary["subject"] == "base"
    assert found.summary["deltas"] == ["tuned_again"]
    assert (found.summary["ks"], found.summary["broad"], found.summary["d"]) == ([1, 3], 48, 48)
    assert found.summary["counts"] == {"fit": 14, "evaluate": 17}
    assert found.summary["changed"] == {"tuned_again": [1, 2, 3]}
    assert found.summary["code"] is None
    assert found.summary["notes"] == [
        "from the lab",
        "Ranks above the model's width 48 were left out: 100.",
        "The broad rank is the model's width 48, not 64.",
    ]
    kinds = {entry["name"]: entry["axis_kind"] for entry in found.summary["candidates"]}
    assert kinds == {name: REGISTRY[name].axis_kind for name in FEW}
    assert found.tables["table"].height == 2 * len(FEW) * 5
    assert found.tables["specificity"].height == (5 + 4) * len(FEW) * 5  # clean 3 only where k is 3
    done = [change["done"] for change in lab.reported if "done" in change]
    assert done == sorted(done)
    assert done[0] == 0
    assert done[-1] < lab.reported[-1]["total"]


@pytest.mark.parametrize("calls", [0, 3, 29])
def test_a_cancelled_run_stops_at_once(lab: SyntheticLab, calls: int) -> None:
    lab = replace(lab, reported=[], stop_after=calls)
    with pytest.raises(JobError, match="cancelled"):
        few(lab).run(lab)  # type: ignore[arg-type]
    assert len(lab.reported) == calls + 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"deltas": ("absent",)}, "no such weight change.*tuned, tuned_again.*absent"),
        ({"candidates": ("mlp_write", "mlp_wrote")}, "no such candidate.*mlp_wrote"),
        ({"ks": (49, 60)}, "No rank fits"),
        ({"code": "0" * 64}, "names no file"),
    ],
)
def test_refusals(lab: SyntheticLab, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PatchError, match=message):
        few(lab, **changes).run(lab)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seed": 3}, "draw nothing"),
        ({"n_boot": 500, "level": 0.9}, "n_boot, level"),
        ({"ks": []}, "ks"),
        ({"ks": [0]}, "ks"),
        ({"cleans": [-1]}, "cleans"),
        ({"code": "abc"}, "code"),
        ({"widths": 3}, "widths"),
    ],
)
def test_descriptions_that_cannot_be_used(given: dict[str, Any], message: str) -> None:
    with pytest.raises(PatchError, match=message):
        experiment_from_json({"job": "subspace_scores"} | given)


def test_a_description_comes_back_and_is_told_apart_by_its_content() -> None:
    every = [
        SubspaceScores(),
        SubspaceScores(code="a" * 64),
        SubspaceScores(code="b" * 64),
        SubspaceScores(broad=32),
        SubspaceScores(deltas=("tuned",)),
    ]
    again: list[Experiment] = [experiment_from_json(json.loads(json.dumps(one.to_json()))) for one in every]
    assert again == every
    assert len({one.content_hash("study") for one in every}) == len(every)
    assert not {"seed", "n_boot", "level"} & set(every[0].to_json())
    assert experiment_from_json({"job": "subspace_scores"}) == every[0]
    assert SubspaceScores(ks=(64, 1, 64)).ks == (1, 64)
    assert every[0].ks == KS
    assert every[1].describe() == "subspace scores of all weight changes, k = 1 to 64, with own candidates"
    assert SubspaceScores(broad=16).describe().endswith("k = 1 to 64, broad rank 16")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("absent", 2), "weight change.*tuned, tuned_again"),
        (("tuned", 5), "rank k.*1, 2, 3, 4, 6, 8"),
        (("tuned", 2, 3), "clean directions.*0, 1, 2, 4.*Given: 3"),
        (("tuned", 2, None, [5]), "cannot be averaged"),
        (("tuned", 2, None, []), "cannot be averaged"),
    ],
)
def test_what_a_stored_run_does_not_have(asked: tuple[Any, ...], message: str) -> None:
    with pytest.raises(AnalysisError, match=message):
        scores_of(result().summary, result().tables, *asked)


def test_changes_side_by_side_have_means_and_students_interval() -> None:
    run = result()
    scores = [scores_of(run.summary, run.tables, delta, 4) for delta in DELTAS]
    table, agreement = across(scores), stability(scores)
    row = {name: index for index, name in enumerate(table["candidate"])}
    summaries = [one.summary() for one in scores]
    assert set(row) == set(agreement.names)
    joint = np.nan_to_num(np.asarray(table["joint_mean"], float), nan=-1.0)
    assert (np.diff(joint) <= 0).all()
    for index, name in enumerate(agreement.names):
        for measure in ("joint", "r_act", "r_combined", "cosine"):
            values = [float(one[measure][list(one["candidate"]).index(name)]) for one in summaries]
            found = {part: table[f"{measure}_{part}"][row[name]] for part in ("mean", "sd", "low", "high")}
            each = [table[f"{measure}[{delta}]"][row[name]] for delta in DELTAS]
            np.testing.assert_array_equal(each, values)
            np.testing.assert_allclose(found["mean"], agreement.mean[measure][index], rtol=1e-12)
            np.testing.assert_allclose(found["sd"], agreement.sd[measure][index], rtol=1e-9, atol=1e-14)
            if np.ptp(values):
                low, high = stats.t.interval(0.95, 1, np.mean(values), stats.sem(values))
                np.testing.assert_allclose([found["low"], found["high"]], [low, high], rtol=1e-9)
    alone = across(scores[:1])
    assert np.isnan(np.asarray(alone["joint_sd"], float)).all()
    with pytest.raises(AnalysisError, match="side by side"):
        across([scores[0], scores[0]])
