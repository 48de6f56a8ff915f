"""Conditions run on stores of real (tiny) models: prompts, positions, origins of vectors, errors."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from live_study import BLOCKS, CHANGED, make_store, make_study, save_models

from app.live import model_cache
from app.live.lab import StoreLab
from app.live.model_cache import ModelCache
from app.live.run import LiveRunner, StoreRuns, compute, run_live
from app.live.worker import Worker
from engine.errors import JobError, ModelError, PatchError, StudyError
from engine.lab.experiment import Where, chosen_rows, train_rows
from engine.patching.run import ConditionResult
from engine.patching.run_patch import partial_curve
from engine.patching.spec import Condition
from engine.study.roots import allow_roots
from store.reader import Store
from store.runs import RunLog


def condition(**changes: Any) -> Condition:
    plain = {"target": "tuned", "source": "base", "component": "resid_post", "layer": CHANGED}
    return Condition(**{**plain, "n_boot": 200, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("live")
    make_store(folder, "bfloat16")
    make_store(folder, "float32")
    return folder


@pytest.fixture(scope="module")
def rounded(folder: Path) -> Store:
    return Store(folder / "store-bfloat16")


@pytest.fixture(scope="module")
def exact(folder: Path) -> Store:
    return Store(folder / "store-float32")


@pytest.fixture(scope="module")
def cache() -> ModelCache:
    return ModelCache("cpu", max_models=3)


def run(store: Store, cache: ModelCache, **changes: Any) -> ConditionResult:
    result = compute(store, condition(**changes), cache, lambda **_: None, lambda: False)
    assert isinstance(result, ConditionResult)
    return result


@pytest.mark.parametrize("position", ["last_content", "decision", "last_nonspecial"])
@pytest.mark.parametrize(("target", "source"), [("tuned", "base"), ("base", "tuned")])
def test_the_change_is_found_where_it_was_planted(
    rounded: Store, cache: ModelCache, target: str, source: str, position: str
) -> None:
    """Literal patches do nothing before the changed block and something behind it, in a rounded store too.

    `last_nonspecial` was not captured: it is resolved and run live.
    """
    both = {"target": target, "source": source, "kind": "literal", "position": position}
    for component, layer in (("resid_pre", CHANGED), ("resid_post", CHANGED - 1), ("attn_out", CHANGED)):
        result = run(rounded, cache, **both, component=component, layer=layer)
        # float32 activations of the source, not the store's bfloat16 ones: KL 0 within rounding
        assert np.abs(result.kl).max() <= 1e-6
        assert result.source_origin == f"recomputed with {source}"
    felt = run(rounded, cache, **both, layer=CHANGED)
    assert felt.kl.min() > 1e-4
    assert felt.intervals[0].low > 0


def test_a_float32_store_gives_the_vectors_without_the_source_model(exact: Store, rounded: Store) -> None:
    alone = ModelCache("cpu", max_models=2)
    result = run(exact, alone)
    assert result.source_origin == "stored float32"
    assert alone.loaded == ["tuned"]
    recomputed = run(rounded, alone)
    assert alone.loaded == ["base", "tuned"]
    # stored in other batches than the engine's: float32 rounding
    np.testing.assert_allclose(result.kl, recomputed.kl, rtol=1e-3, atol=1e-6)


def test_rounded_vectors_are_used_only_without_the_source_and_said(folder: Path, tmp_path: Path) -> None:
    """The source model's files are gone: the stored bfloat16 values serve, with a note."""
    path = tmp_path / "moved"
    shutil.copytree(folder / "models", path / "models")
    shutil.copytree(folder / "store-bfloat16", path / "store")
    shutil.copy(folder / "prompts.jsonl", path / "prompts.jsonl")
    manifest = Store(path / "store").manifest
    manifest["study"]["folder"] = str(path)
    shutil.rmtree(path / "models" / "base")
    store = Store(path / "store")
    store.manifest = manifest
    result = run(store, ModelCache("cpu"), kind="literal", layer=CHANGED)
    assert result.source_origin == "stored bfloat16"
    assert "vectors of base are the stored, rounded ones" in result.notes[0]
    assert "not on this machine" in result.notes[0]
    assert result.table["source_token"].to_list()[0].startswith("#")  # no tokenizer either
    exact_kl = run(Store(folder / "store-bfloat16"), ModelCache("cpu"), kind="literal", layer=CHANGED).kl
    # bfloat16 keeps 8 bits: KL moves, by a few per cent
    np.testing.assert_allclose(result.kl, exact_kl, rtol=0.2, atol=1e-4)
    assert not np.array_equal(result.kl, exact_kl)
    with pytest.raises(ModelError, match=r"files of the model base \(path\) are not on this machine"):
        run(store, ModelCache("cpu"), component="head_out", kind="literal")


def test_a_changed_model_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_models(tmp_path)
    monkeypatch.setenv("PATCHBAY_ROOTS", str(tmp_path))
    store = Store(folder / "store-float32")
    store.manifest["study"]["folder"] = str(tmp_path)
    run(store, ModelCache("cpu"))  # the same files at another place are the same model
    config = tmp_path / "models" / "tuned" / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    with pytest.raises(ModelError, match=r"tuned.*have changed since the store was written"):
        run(store, ModelCache("cpu"))


def test_two_tokenizers_each_patch_their_own_token(rounded: Store, cache: ModelCache) -> None:
    result = run(rounded, cache, source="other", kind="literal", alphas=(1.0,), split="all")
    shown = result.table
    for side, name in (("target", "tuned"), ("source", "other")):
        tokens = rounded.tokens(name)
        for line in shown.iter_rows(named=True):
            encoded = tokens.row(line["row"], named=True)
            start, end = encoded["offsets"][line[f"{side}_index"]]
            text = encoded["rendered"][start:end]
            assert line[f"{side}_token"] == text or line[f"{side}_token"].startswith("⟨")
            assert text in "?？"  # the last character of every question
    assert (shown["target_index"] != shown["source_index"]).any()
    assert result.kl.min() > 1e-4


def test_prompts_are_those_of_split_language_and_category(exact: Store, cache: ModelCache) -> None:
    table = exact.prompts
    for where in ({}, {"language": "zh"}, {"language": "en", "category": "buy"}):
        for split in ("train", "validation", "all"):
            wanted = table if split == "all" else table.filter(pl.col("split") == split)
            for column, value in where.items():
                wanted = wanted.filter(pl.col(column) == value)
            rows = chosen_rows(table, split, Where(**where))  # type: ignore[arg-type]
            assert table["id"].gather(rows).to_list() == wanted["id"].to_list()
    # moments come from the whole train split, whatever is reported on
    assert set(table["split"].gather(train_rows(table))) == {"train"}
    assert len(train_rows(table)) == table.filter(pl.col("split") == "train").height
    zh = run(exact, cache, where={"language": "zh"})
    everyone = run(exact, cache)
    chosen = (everyone.table["language"] == "zh").to_numpy()
    np.testing.assert_allclose(zh.kl[0], everyone.kl[0][chosen], rtol=1e-4, atol=1e-6)


def test_one_pair_is_too_few(exact: Store) -> None:
    one = exact.prompts.filter(pl.col("pair_id") == "p0")["split"][0]
    table = exact.prompts.with_columns(
        pl.when(pl.col("pair_id") == "p0").then(pl.lit("only")).otherwise("category").alias("category")
    )
    with pytest.raises(PatchError, match=f"a single prompt or pair.*Given: 2 of split {one}"):
        chosen_rows(table, one, Where(category="only"))


def test_the_mean_control_uses_the_train_split(exact: Store, cache: ModelCache) -> None:
    """Deviation at alpha 0 = the mean control, and it is not the mean of the reported prompts."""
    mean = run(exact, cache, kind="mean")
    none = run(exact, cache, kind="raw", scale="deviation", alphas=(0.0,))
    np.testing.assert_allclose(mean.kl, none.kl, rtol=0, atol=1e-9)
    assert mean.source_origin == "not needed"
    assert "source_token" not in mean.table.columns


@pytest.mark.parametrize("component", ["head_z", "head_out"])
def test_heads_of_a_stored_and_a_recomputed_source_agree(
    exact: Store, rounded: Store, cache: ModelCache, component: str
) -> None:
    asked = {"component": component, "heads": (1, 3), "kind": "literal", "layer": CHANGED + 1}
    one, two = run(exact, cache, **asked), run(rounded, cache, **asked)
    assert one.source_origin == ("stored float32" if component == "head_z" else "recomputed with base")
    np.testing.assert_allclose(one.kl, two.kl, rtol=1e-3, atol=1e-6)
    assert one.kl.max() > 1e-5
    assert run(exact, cache, **{**asked, "heads": (0, 2)}).kl.max() != one.kl.max()


def test_a_run_is_stored_and_opens_without_a_model(folder: Path, exact: Store) -> None:
    path = str(folder / "store-float32")
    asked = condition(kind="literal", alphas=(0.5, 1.0), layer=3)
    run_id, result = run_live(path, asked, device="cpu")
    key = asked.content_hash(exact.fingerprint)
    assert RunLog(path).find(key) == StoreRuns().find(path, key) == run_id
    opened = StoreRuns().open(path, run_id)
    assert Condition.from_json(opened.condition) == asked
    assert opened.table.equals(result.table)
    assert opened.summary["curve"][1]["kl"] == pytest.approx(result.kl[1].mean())
    assert opened.summary["self_check"]["passed"] is True
    assert run_live(path, asked, device="cpu")[0] == run_id
    assert RunLog(path).list().height == 1


def test_a_result_that_cannot_be_stored_is_handed_back(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATCHBAY_ROOTS", str(folder))
    shutil.copytree(folder / "store-float32", tmp_path / "store", ignore=shutil.ignore_patterns("runs"))
    (tmp_path / "store" / "runs").write_text("a file where the folder should be")
    outcome = LiveRunner("cpu").run(str(tmp_path / "store"), condition(), lambda **_: None, lambda: False)
    assert outcome.run_id is None
    assert outcome.message.startswith("Not saved: ")
    assert outcome.unsaved is not None
    assert outcome.unsaved.table["kl"].len() == outcome.unsaved.summary["n_prompts"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target": "tuned2"}, "no model 'tuned2'. Expected: base or tuned or other"),
        ({"layer": BLOCKS}, f"Layer {BLOCKS} is out of range for tuned. Expected: 0 to {BLOCKS - 1}"),
        ({"component": "head_z", "heads": (0, 9)}, "Head 9 is out of range for tuned. Expected: 0 to 3"),
        ({"source": "other", "component": "head_z"}, "different widths at head_z@2"),
        ({"where": {"language": "fr"}}, "No prompt fits this choice"),
    ],
)
def test_what_does_not_fit_is_said_before_a_model_is_loaded(
    exact: Store, changes: dict[str, Any], said: str
) -> None:
    untouched = ModelCache("cpu")
    with pytest.raises(PatchError) as caught:
        run(exact, untouched, **changes)
    assert said in str(caught.value)
    assert untouched.loaded == []


def test_cancelling_stops_between_stages(exact: Store) -> None:
    with pytest.raises(JobError, match="cancelled"):
        compute(exact, condition(), ModelCache("cpu"), lambda **_: None, lambda: True)


def test_models_and_engines_are_reused_and_dropped(rounded: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    real = model_cache.load

    def counted(spec: Any, name: str) -> Any:
        loads.append(name)
        return real(spec, name)

    monkeypatch.setattr(model_cache, "load", counted)
    small = ModelCache("cpu", max_models=1)
    run(rounded, small, kind="self", layer=0)
    run(rounded, small, kind="self", layer=1)
    assert (loads, small.loaded) == (["tuned"], ["tuned"])
    run(rounded, small, kind="literal", layer=1)
    assert loads == ["tuned", "base", "tuned"]
    assert small.loaded == ["tuned"]
    lm = small.model(make_study(Path(rounded.manifest["study"]["folder"]), "bfloat16"), "tuned", {}, print)
    ids = [[3, 4, 5, 6], [7, 8, 9]]
    engine = small.engine(lm, ids, [3, 2], "patched")
    assert small.engine(lm, ids, [3, 2], "patched") is engine
    assert small.engine(lm, ids, [2, 2], "patched") is not engine
    assert small.engine(lm, ids, [3, 2], "decision") is not engine
    assert small.engine(lm, [[3, 4, 5], [6, 7, 8, 9]], [2, 3], "patched") is not engine


def _no_room() -> ModelError:
    """As `load` puts it."""
    error = ModelError("The model does not fit into memory.")
    error.__cause__ = MemoryError()
    return error


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), _no_room()], ids=repr)
def test_a_full_device_drops_the_other_models_and_says_so(
    rounded: Store, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    real, said = model_cache.load, []
    full = ModelCache("cpu", max_models=2)

    def crowded(spec: Any, name: str) -> Any:
        if full.loaded:
            raise error
        return real(spec, name)

    monkeypatch.setattr(model_cache, "load", crowded)
    compute(rounded, condition(), full, lambda **c: said.append(c.get("message")), lambda: False)
    assert "Memory ran out: the other models were dropped and tuned is loaded again." in said
    assert full.loaded == ["tuned"]


def test_partial_curves_leave_out_what_is_not_done() -> None:
    nan = float("nan")
    asked = condition(alphas=(0.0, 0.9, 2.0))
    so_far = partial_curve(asked, np.array([[1.0, 3.0, nan], [4.0, nan, nan], [nan, nan, nan]]))
    assert so_far == {
        "curve": [{"alpha": 0.0, "kl": 2.0, "n": 2}, {"alpha": 0.9, "kl": 4.0, "n": 1}],
        "kl": 4.0,
    }
    assert partial_curve(asked, np.full((3, 2), nan)) == {"curve": []}


def test_a_store_does_not_send_the_program_to_models_elsewhere(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest names the folder that the study lay in; whoever wrote it may name any."""
    alone = Store(shutil.copytree(folder / "store-float32", tmp_path / "far" / "store"))
    told = f"models\\.tuned\\.path lies outside.*--root {folder / 'models'}"
    with pytest.raises(StudyError, match=told):
        run(alone, ModelCache("cpu"))
    lab = StoreLab(alone, ModelCache("cpu"), lambda **_: None, lambda: False)
    with pytest.raises(StudyError, match="lies outside"):
        lab.tokenizer("tuned")
    monkeypatch.setenv("PATCHBAY_ROOTS", str(folder / "models"))
    assert run(alone, ModelCache("cpu")).kl.min() > 1e-4


def test_a_worker_is_given_the_roots_of_its_server(folder: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copytree(folder / "store-float32", tmp_path / "far" / "store"))
    asked = condition()
    allow_roots([folder / "models"])
    try:
        with Worker(["cpu"]) as worker:
            assert worker.wait(worker.submit(alone, asked), 120).error is None
    finally:
        allow_roots([])
    shutil.rmtree(alone / "runs")
    with Worker(["cpu"]) as worker:
        told = worker.wait(worker.submit(alone, asked), 120)
        assert f"--root {folder / 'models'}" in str(told.error)
