"""What a store that was damaged, or begun under other circumstances, becomes when precompute goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tiny_study import write_study

import precompute
from app.build import build as build_module
from app.build.build import stored_equals_recomputed
from app.build.prepare import Prepared
from engine.models.check import SelfCheck
from engine.models.loading import load
from engine.models.pieces import model_pieces, piece_names
from engine.study.study import Study
from store.files import unseal
from store.reader import Store
from store.writer import StoreWriter


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study"), pairs=4, positions=["tokens"])


@pytest.fixture(scope="module")
def finished(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "tiny"
    assert precompute.main([str(study), "--store", str(path)]) == 0
    return path


@pytest.fixture
def store(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def test_the_pieces_are_those_that_are_listed(study: Path) -> None:
    lm = load(Study.load(study).models["base"], "base")
    assert tuple(piece.name for piece in model_pieces(lm.taps)) == piece_names(lm.taps)


@pytest.mark.parametrize("lost", ["weights/tuned/kernel_sigma", "weights/base/kernel_right"])
def test_a_lost_weight_array_is_written_again(study: Path, finished: Path, store: Path, lost: str) -> None:
    parts = Store(store).attrs(lost).get("parts", [])
    for place in [lost, *(f"shared/{key}" for key in parts)]:
        for file in (store / place).glob("c*"):
            file.unlink()
    assert precompute.main([str(study), "--store", str(store)]) == 0
    np.testing.assert_array_equal(Store(store).array(lost), Store(finished).array(lost))
    assert files(store) == files(finished), "nothing but the manifest's times differs"


def files(path: Path) -> dict[str, bytes]:
    kept = (file for file in path.rglob("*") if file.is_file() and file.name != "manifest.json")
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in kept}


@pytest.mark.parametrize("values", ["dense", "spectrum"])
def test_a_lost_part_of_a_weight_difference_is_written_again(
    study: Path, finished: Path, store: Path, values: str
) -> None:
    stored = Store(finished).table("weight-delta-tuned").drop_nulls("effective_rank")
    lost = f"weights/tuned/delta/{stored['name'][0]}/{values}"
    for file in (store / lost).glob("c*"):
        file.unlink()
    assert precompute.main([str(study), "--store", str(store)]) == 0
    np.testing.assert_array_equal(Store(store).array(lost), Store(finished).array(lost))


def test_flipped_bytes_of_a_finished_store_are_mended(
    study: Path, finished: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert precompute.main([str(study), "--store", str(store)]) == 0
    said = capsys.readouterr().out
    assert "complete already; every file that its ledger lists was read" in said
    assert "runs and saved maps were not read: --verify does that" in said
    damaged = ("activations/tuned/tokens/sites/c.0.0.1.0", "tables/tokens-base.parquet", "manifest.json")
    for name in damaged:
        data = bytearray((store / name).read_bytes())
        data[len(data) // 2] ^= 1
        (store / name).write_bytes(data)
    assert precompute.main([str(study), "--store", str(store)]) == 0
    assert "damaged or missing, so computed again: tables/tokens-base, tuned-00001" in capsys.readouterr().out
    assert files(store) == files(finished)
    assert precompute.main([str(study), "--store", str(store), "--verify"]) == 0


def test_lost_grams_of_a_sample_are_written_again(tmp_path: Path) -> None:
    study = write_study(tmp_path, pairs=12, positions=["decision"], similarity_prompts=16)
    assert precompute.main([str(study), "--store", str(tmp_path / "whole")]) == 0
    store = Path(shutil.copytree(tmp_path / "whole", tmp_path / "store"))
    rows = Store(store).gram_prompts()
    assert rows is not None
    assert rows.size == 16
    lost = [*(store / "grams/tuned/decision/resid").glob("c*"), store / "tables/gram-prompts.parquet"]
    assert len(lost) == 2
    contents = [file.read_bytes() for file in lost]
    for file in lost:
        file.unlink()
    assert precompute.main([str(study), "--store", str(store)]) == 0
    assert [file.read_bytes() for file in lost] == contents
    assert precompute.main([str(study), "--store", str(store), "--verify"]) == 0


def test_a_store_that_failed_its_checks_fails_again(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = SelfCheck.of("logits = plain forward pass", float("nan"), 1e-4)
    monkeypatch.setattr(build_module, "check_engine", lambda *_: [bad])
    for _ in range(2):  # the second time it is complete already
        assert precompute.main([str(study), "--store", str(tmp_path / "s")]) == 1
        assert "tuned: logits = plain forward pass = nan (limit 0.0001)" in capsys.readouterr().err


def test_units_captured_under_other_tokens_are_not_gone_on_with(
    study: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = Prepared.of(Study.load(study))
    loaded = prepared.study
    with StoreWriter.create_or_resume(
        store, prepared.store_plan(), loaded.to_json(), loaded.fingerprint()
    ) as writer:
        other = prepared.encoded["tuned"].with_columns(pl.col("token_ids").list.reverse())
        writer.write_table("tokens-tuned", other)
    before = (store / "ledger/tables/tokens-tuned.json").read_bytes()
    assert precompute.main([str(study), "--store", str(store)]) == 1
    assert "begun with another table tokens-tuned" in capsys.readouterr().err
    assert (store / "ledger/tables/tokens-tuned.json").read_bytes() == before
    assert unseal((store / "manifest.json").read_bytes(), "manifest")["state"] == "building"


def test_positions_of_many_tokens_are_recomputed_too(study: Path, store: Path) -> None:
    prepared = Prepared.of(Study.load(study))
    lm = load(prepared.study.models["base"], "base")
    assert stored_equals_recomputed(prepared, Store(store), lm).passed
    other = load(prepared.study.models["tuned"], "tuned")
    wrong = stored_equals_recomputed(prepared, _Renamed(store), other)
    assert not wrong.passed
    assert wrong.value > 0.1


class _Renamed(Store):
    """A store that gives the base model's activations under the tuned model's name."""

    def activations(self, model: str, *arguments: object, **named: object) -> np.ndarray:
        assert model == "tuned"
        return super().activations("base", *arguments, **named)  # type: ignore[arg-type]
