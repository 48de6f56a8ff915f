"""What a store that was damaged, or begun under other circumstances, becomes when precompute goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tiny_study import write_study

import precompute
from app import build as build_module
from app.build import stored_equals_recomputed
from app.prepare import Prepared
from engine.model import load
from engine.pieces import model_pieces, piece_names
from engine.results import SelfCheck
from engine.study import Study
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


@pytest.mark.parametrize("lost", ["weights/tuned/kernel_sigma", "weights/base/w_q"])
def test_a_lost_weight_array_is_written_again(study: Path, finished: Path, store: Path, lost: str) -> None:
    for file in (store / lost).glob("c*"):
        file.unlink()
    assert precompute.main([str(study), "--store", str(store)]) == 0
    np.testing.assert_array_equal(Store(store).array(lost), Store(finished).array(lost))


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


def test_a_store_that_failed_its_checks_fails_again(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = SelfCheck.of("logits = plain forward pass", float("nan"), 1e-4)
    monkeypatch.setattr(build_module, "check_logits", lambda *_: bad)
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
    prompts = prepared.sample(3)
    assert stored_equals_recomputed(prepared, Store(store), lm, prompts).passed
    other = load(prepared.study.models["tuned"], "tuned")
    wrong = stored_equals_recomputed(prepared, _Renamed(store), other, prompts)
    assert not wrong.passed
    assert wrong.value > 0.1


class _Renamed(Store):
    """A store that gives the base model's activations under the tuned model's name."""

    def activations(self, model: str, *arguments: object, **named: object) -> np.ndarray:
        assert model == "tuned"
        return super().activations("base", *arguments, **named)  # type: ignore[arg-type]
