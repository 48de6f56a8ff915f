"""What a store's writer refuses, by name and without leaving anything behind."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from synthetic_store import FINGERPRINT, STUDY, contents, planes, small_plan, write_all

from engine.errors import StoreError
from store.plan import PositionPlan, StorePlan
from store.reader import Store
from store.writer import StoreWriter

pytestmark = pytest.mark.fault


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(StoreError, match=r"Could not write .*Not a directory"):
            StoreWriter.create_or_resume(path, small_plan(), STUDY, FINGERPRINT)
    assert (tmp_path / "file").read_text() == "mine"


def test_another_folder_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(StoreError, match=r"not a store and not empty.*Given: thesis\.tex"):
        StoreWriter.create_or_resume(tmp_path, small_plan(), STUDY, FINGERPRINT)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(StoreError, match=r"ftp://.*cannot be opened"):
        StoreWriter.create_or_resume("ftp://bucket/x", small_plan(), STUDY, FINGERPRINT)


def test_another_study_is_named_and_left_alone(tmp_path: Path) -> None:
    write_all(tmp_path / "s")
    before = contents(tmp_path / "s", manifest=True)
    other = {**STUDY, "seed": 4, "capture": {"dtype": "float32"}}
    with pytest.raises(StoreError) as caught:
        StoreWriter.create_or_resume(tmp_path / "s", small_plan(), other, "cd" * 32)
    for part in ("made from another study", "capture.dtype: 'bfloat16' -> 'float32'", "seed: 3 -> 4"):
        assert part in str(caught.value)
    with pytest.raises(StoreError, match=r"differs in: another prompt file"):
        StoreWriter.create_or_resume(
            tmp_path / "s", small_plan(), other, "cd" * 32, describe=lambda a, b: ["another prompt file"]
        )
    with pytest.raises(StoreError, match=r"unit_prompts: 8 -> 4"):
        StoreWriter.create_or_resume(tmp_path / "s", small_plan(unit_prompts=4), STUDY, FINGERPRINT)
    assert contents(tmp_path / "s", manifest=True) == before


def test_unfinished_stores_say_so(tmp_path: Path) -> None:
    plan, path = small_plan(), tmp_path / "s"
    with StoreWriter.create_or_resume(path, plan, STUDY, FINGERPRINT, durable=False) as writer:
        for unit in (0, 2):
            writer.commit("base", unit, planes(plan, "base", unit))
        with pytest.raises(StoreError, match=r"Expected: 3 units.*base lacks 1; tuned lacks 3"):
            writer.finish({})
    store = Store(path)
    assert (store.complete, store.state, store.committed("base")) == (False, "building", [0, 2])
    message = r"base/last_content/sites of .*row=8:16.* was not computed yet.*it goes on where it stopped"
    with pytest.raises(StoreError, match=message):
        store.activations("base", "resid", 0)
    rows = [*plan.prompts_of(0), *plan.prompts_of(2)]
    assert len(store.activations("base", "resid", 0, rows=rows)) == len(rows)
    with pytest.raises(StoreError, match=r"no such table.*Given: 'prompts'"):
        store.prompts  # noqa: B018
    with StoreWriter.create_or_resume(path, plan, STUDY, FINGERPRINT, durable=False) as writer:
        writer.commit("base", 1, planes(plan, "base", 1))
    assert len(store.activations("base", "resid", 0)) == 21, "an open reader sees units as they come"


def test_changing_a_finished_store_reopens_it(tmp_path: Path) -> None:
    plan = write_all(tmp_path / "s")
    with StoreWriter.create_or_resume(tmp_path / "s", plan, STUDY, FINGERPRINT, durable=False) as writer:
        assert [writer.pending(model) for model in plan.models] == [[], []]
        writer.write_table("prompts", pl.DataFrame({"id": ["other"]}))
    assert not Store(tmp_path / "s").complete
    write_all(tmp_path / "s", plan)
    assert Store(tmp_path / "s").complete


def test_misfits_name_the_place_and_write_nothing(tmp_path: Path) -> None:
    plan, path = small_plan(), tmp_path / "s"
    with StoreWriter.create_or_resume(path, plan, STUDY, FINGERPRINT, durable=False) as writer:
        before = contents(path, manifest=True)
        wrong: list[Any] = [planes(plan, "base", 0) for _ in range(3)]
        wrong[0]["mean"]["mlp_out", 1] = wrong[0]["mean"]["mlp_out", 1][:-1]
        del wrong[1]["mean"]["mlp_out", 1]
        wrong[2]["mean"]["mlp_out", 1] = wrong[2]["mean"]["mlp_out", 1][:, :-1]
        for values in wrong:
            with pytest.raises(
                StoreError, match=r"Unit 0 of model base, position mean: mlp_out 1 .* 8 rows of width 10"
            ):
                writer.commit("base", 0, values)
        for name, array, dims in (
            ("other/x", np.ones(3), ("a",)),
            ("weights/../x", np.ones(3), ("a",)),
            ("weights/x", np.array(["text"]), ("a",)),
            ("weights/x", np.ones((3, 2)), ("a",)),
            ("weights/x", np.float32(1), ()),
        ):
            with pytest.raises(
                StoreError, match=r"cannot be kept.*below grams/, weights/, subspaces/ or shared/"
            ):
                writer.write_array(name, array, dims)
        with pytest.raises(StoreError, match=r"table cannot be called '\.\./x'"):
            writer.write_table("../x", pl.DataFrame({"a": [1]}))
        assert contents(path, manifest=True) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": (3,)}, r"Model base has no such layer\. Expected: layers 0\.\.2\. Given: \[3\]"),
        ({"components": ("resid", "q")}, r"Unknown component"),
        ({"dtype": "float16"}, r"cannot be kept in this dtype"),
        ({"n_prompts": 0}, r"needs prompts"),
        ({"models": ("a b", "a-b")}, r"become the same folder name"),
        ({"models": ("?",)}, r"cannot be a folder name"),
    ],
)
def test_impossible_plans(change: dict[str, Any], message: str) -> None:
    with pytest.raises(StoreError, match=message):
        small_plan(**change)


def test_row_counts_must_fit_the_prompts() -> None:
    plan = small_plan()
    for counts in ((1,) * 20, (1,) * 20 + (-1,)):
        ragged = PositionPlan("many", dict.fromkeys(plan.models, counts))
        with pytest.raises(StoreError, match=r"Row counts of position tokens.*21 counts of 0 or more"):
            StorePlan(plan.models, {"tokens": ragged}, plan.n_prompts)
    with pytest.raises(StoreError, match=r"belong to kind 'many'"):
        StorePlan(plan.models, {"tokens": PositionPlan("many")}, plan.n_prompts)


def test_tables_and_manifest_do_not_depend_on_the_clock(tmp_path: Path) -> None:
    write_all(tmp_path / "a")
    time.sleep(0.02)
    write_all(tmp_path / "b")
    assert contents(tmp_path / "a", manifest=True) == contents(tmp_path / "b", manifest=True)
