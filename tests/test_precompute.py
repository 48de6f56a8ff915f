"""The command line end to end on a tiny study, and every kind of bad input by its message."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_study import prompt_rows, write_study
from transformers import AutoTokenizer

import precompute
from app.build import capture as capture_module
from engine.errors import StoreError
from engine.models.loading import load
from engine.models.pieces import model_pieces
from engine.passes.capture import capture_unit
from engine.prompts.positions import Positions
from engine.study.study import Study
from store.reader import Store


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study"), pairs=6, positions=["decision", "mean", "tokens"])


@pytest.fixture(scope="module")
def store(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "tiny"
    assert precompute.main([str(study), "--store", str(path)]) == 0
    return path


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert precompute.main([str(a) for a in arguments]) == 1
    return capsys.readouterr().err


def test_options_are_read() -> None:
    assert precompute.parse_layers("0-2,5") == (0, 1, 2, 5)
    assert precompute.parse_layers("all") == "all"
    assert precompute.parse_names("decision,sample(k=2,skip_last=1),mean") == (
        "decision",
        "sample(k=2,skip_last=1)",
        "mean",
    )
    with pytest.raises(SystemExit):
        precompute.parser().parse_args(["x.toml", "--layers", "two"])


def test_the_store_holds_what_the_models_do(store: Path, study: Path) -> None:
    opened = Store(store)
    assert opened.complete
    assert all(check["passed"] for check in opened.self_checks())
    lm = load(Study.load(study).models["tuned"], "tuned")
    token_ids = opened.tokens("tuned")["token_ids"].to_list()
    last = {"decision": Positions("decision", "one", tuple(np.array([len(i) - 1]) for i in token_ids), {})}
    alone = capture_unit(
        lm, token_ids, range(len(token_ids)), last, components=("resid", "head_z"), batch_tokens=1
    )["decision"]
    for key in (("resid", 0), ("resid", 3), ("head_z", 1)):
        stored = opened.activations("tuned", *key, position="decision")
        # bfloat16 keeps 8 significant bits
        np.testing.assert_allclose(stored, alone[key], rtol=2**-8, atol=1e-5)


def test_position_statistics_are_kept(store: Path) -> None:
    opened = Store(store)
    lengths = opened.tokens("base")["token_ids"].list.len()
    found = opened.model_info("base")["positions"]
    assert set(found) == {"decision", "mean", "tokens"}
    assert found["decision"]["tokens"] == found["decision"]["prompts"] == len(lengths)
    assert found["decision"]["from_end"] == [0, 0, 0]
    assert found["tokens"]["tokens"] == lengths.sum()
    assert found["tokens"]["per_prompt"] == [lengths.min(), lengths.median(), lengths.max()]
    assert found["mean"]["fallbacks"] == 0


def test_grams_are_those_of_the_stored_activations(store: Path) -> None:
    opened = Store(store)
    for component, layer in (("resid", 2), ("head_z", 0)):
        rows = opened.activations("base", component, layer, "mean").astype(np.float64)
        centred = rows - rows.mean(0)
        got = opened.gram("base", component, layer, "mean")
        np.testing.assert_allclose(got, centred @ centred.T, rtol=0, atol=1e-6 * np.abs(got).max())


def test_rows_of_all_arrays_are_rows_of_the_prompts_table(store: Path) -> None:
    opened = Store(store)
    lengths = opened.tokens("base")["token_ids"].list.len().to_list()
    assert lengths == sorted(lengths, reverse=True)
    texts = {row["id"]: row["text"] for row in prompt_rows(6)}
    for row, rendered in zip(
        opened.prompts.iter_rows(named=True), opened.tokens("base")["rendered"], strict=True
    ):
        assert row["text"] == texts[row["id"]]
        assert row["text"] in rendered
    index = opened.row_index("base", "tokens")
    assert index["row_count"].to_list() == lengths
    everything = opened.activations("base", "resid", 1, "tokens")
    last = everything[(index["row_start"] + index["row_count"] - 1).to_numpy()]
    np.testing.assert_array_equal(last, opened.activations("base", "resid", 1, "decision"))


def test_an_interrupted_run_goes_on(
    study: Path,
    tmp_path: Path,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls = 0

    def interrupted(*arguments: object, **named: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return capture_unit(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(capture_module, "capture_unit", interrupted)
    assert precompute.main([str(study), "--store", str(tmp_path / "s")]) == 130
    assert "goes on from here" in capsys.readouterr().err
    partial = Store(tmp_path / "s")
    assert not partial.complete
    assert partial.committed("base") == [0, 1]
    monkeypatch.undo()
    assert precompute.main([str(study), "--store", str(tmp_path / "s")]) == 0
    for name in Store(store).array_names():
        np.testing.assert_array_equal(
            _array(tmp_path / "s", name), _array(store, name), err_msg=f"{name} differs after a resume"
        )


def _array(path: Path, name: str) -> np.ndarray:
    """An array as zarr reads it; one that is made of parts shared between models, as the store does."""
    import zarr

    found = zarr.open(path / name, mode="r")
    return np.asarray(found[...]) if isinstance(found, zarr.Array) else Store(path).array(name)


def test_verify_finds_a_flipped_byte_and_passes_without(
    study: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    assert precompute.main([str(study), "--store", str(store), "--verify"]) == 0
    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    shard = max((copy / "activations/tuned/mean/sites").glob("c*"), key=lambda p: p.stat().st_size)
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 16
    shard.write_bytes(data)
    capsys.readouterr()
    assert precompute.main([str(study), "--store", str(copy), "--verify"]) == 1
    assert re.search(r"DAMAGED.*activations/tuned/mean/sites", "".join(capsys.readouterr()))


def test_plan_runs_nothing(study: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert precompute.main([str(study), "--plan", "--store", str(tmp_path / "none")]) == 0
    text = capsys.readouterr().out
    assert "12 prompts, 2 models" in text
    assert re.search(r"tuned\s+\S+ M\s+\d+", text)
    assert not (tmp_path / "none").exists()


def test_planned_bytes_are_the_arrays_bytes(study: Path, store: Path) -> None:
    from app.build.prepare import Prepared

    prepared = Prepared.of(Study.load(study))
    planned = sum(cost.activation_bytes for cost in prepared.costs())
    assert planned == prepared.store_plan().raw_bytes()


def test_options_change_the_fingerprint_and_another_study_is_refused(
    study: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, study, "--store", store, "--layers", "0-1")
    assert "made from another study" in message
    assert "capture.layers: all → [0, 1]" in message
    assert Store(store).complete


def test_each_nth_block_is_kept_as_in_the_whole_store(study: Path, store: Path, tmp_path: Path) -> None:
    some = tmp_path / "some"
    assert precompute.main([str(study), "--store", str(some), "--stride", "2"]) == 0
    found, whole = Store(some), Store(store)
    assert list(found.layers("tuned")) == [0, 2]
    assert list(found.states("tuned")) == [0, 1, 2, 3]
    for site in ("resid_pre", "resid_post", "mlp_out"):
        one, other = (s.activations("tuned", site, 2, "decision") for s in (found, whole))
        np.testing.assert_array_equal(one, other)
    with pytest.raises(StoreError, match="1"):
        found.activations("tuned", "mlp_out", 1, "decision")


def edit(file: Path, change: Callable[[str], str]) -> Path:
    file.write_text(change(file.read_text(encoding="utf-8")), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.replace("batch_tokens", "batch_token"), r"batch_token.*batch_tokens"),
        (lambda t: t + "\nlayers = [0, 7]", r"capture\.layers.*Expected: indices 0 to 2.*Given: 7"),
        (lambda t: "name = ", r"not valid TOML"),
        (lambda t: t.replace('path = "tuned"', 'path = "absent"'), r"models\.tuned\.path.*absent"),
        (lambda t: t.replace('path = "tuned"', 'path = "empty"'), r"not a model folder.*config\.json"),
    ],
    ids=["unknown key", "layer out of range", "corrupt", "missing model", "no config"],
)
def test_a_bad_study_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[str], str], says: str
) -> None:
    file = edit(write_study(tmp_path / "bad", pairs=2), change)
    (tmp_path / "bad/empty").mkdir()
    assert re.search(says, refused(capsys, file, "--store", tmp_path / "store"), re.S)
    assert not (tmp_path / "store").exists()


def test_a_missing_study_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "isn't there" in refused(capsys, tmp_path / "none.toml", "--store", tmp_path / "store")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: [*rows, rows[0]], r"p0-en"),
        (lambda rows: [rows[0] | {"text": "  "}, *rows[1:]], r"[Ee]mpty"),
        (lambda rows: [rows[0] | {"text": "apples " * 400}, *rows[1:]], r"context|128"),
        (
            lambda rows: [rows[0] | {"split": "train"}, rows[1] | {"split": "validation"}, *rows[2:]],
            r"p0.*split|split.*p0",
        ),
    ],
    ids=["duplicate id", "empty text", "too long", "split overlap"],
)
def test_bad_prompts_are_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[list[Any]], list[Any]], says: str
) -> None:
    file = write_study(tmp_path / "bad", pairs=2)
    rows = change(prompt_rows(2))
    (tmp_path / "bad/prompts.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    assert re.search(says, refused(capsys, file, "--store", tmp_path / "store"), re.S)
    assert not (tmp_path / "store").exists()


def test_a_tokenizer_without_chat_template_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_study(tmp_path / "bad", pairs=2)
    for name in ("base", "tuned"):
        folder = tmp_path / "bad" / name
        tokenizer = AutoTokenizer.from_pretrained(folder)
        (folder / "chat_template.jinja").unlink()
        tokenizer.chat_template = None
        tokenizer.save_pretrained(folder)
    message = refused(capsys, file, "--store", tmp_path / "store")
    assert "chat template" in message
    assert "plain" in message
    assert not (tmp_path / "store").exists()


def test_a_truncated_store_is_refused_by_name(
    store: Path, tmp_path: Path, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    shard = max((copy / "activations/base/decision/sites").glob("c*"), key=lambda p: p.stat().st_size)
    shard.write_bytes(b"")
    assert precompute.main([str(study), "--store", str(copy), "--verify"]) == 1
    assert "activations/base/decision/sites" in "".join(capsys.readouterr())


def test_several_workers_write_the_same_store(study: Path, store: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (extra: ray)")
    assert precompute.main([str(study), "--store", str(tmp_path / "s"), "--workers", "2"]) == 0
    for name in Store(store).array_names():
        np.testing.assert_array_equal(_array(tmp_path / "s", name), _array(store, name), err_msg=name)


def test_workers_without_ray_say_what_to_install(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    message = refused(capsys, study, "--store", tmp_path / "s", "--workers", "2")
    assert "Several workers need Ray" in message
    assert "pip install -e '.[ray]'" in message


def test_head_kernels_read_as_the_weights_give_them(study: Path, store: Path) -> None:
    """Also where a block's keys are too small to be shared, and factors of them would refer to nothing."""
    opened = Store(store)
    for name, spec in Study.load(study).models.items():
        pieces = {piece.name: piece.values for piece in model_pieces(load(spec, name).taps)}
        found = opened.array(f"weights/{name}/kernel_right")
        assert found.shape == pieces["kernel_right"].shape
        np.testing.assert_allclose(found, pieces["kernel_right"], rtol=0, atol=1e-6)  # float32
