"""Contrasts that a study names: written from two models' differences, resumed, refused by name."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import live_study
import numpy as np
import polars as pl
import pytest
import torch
from drawn_panels import drawn
from streamlit.testing.v1 import AppTest
from tiny_models import tiny
from tiny_tokenizers import chatml

from app.build import weights as build_weights
from app.build.build import build
from app.build.prepare import Prepared
from app.build.verify import verify
from app.charts.palette import DARK, LIGHT
from app.frame.opened import Opened, read_facts
from app.frame.selection import defaults, update
from app.live.deltas import read_deltas, steerable
from app.live.weight_tables import delta_table, heads_table
from app.weight_steering import view as weight_steering_view
from app.weights import panels as weights
from app.weights import tables as q
from engine.errors import StoreError, StudyError
from engine.models.loading import load
from engine.study.fingerprints import diff_studies
from engine.study.study import Study
from engine.weights.deltas import difference
from engine.weights.heads import head_shares
from store.reader import Store

LOW = "model.layers.1.self_attn.o_proj.weight"
FULL = "model.layers.2.mlp.down_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"
CONTRASTS = {"agreeable": {"plus": "one", "minus": "two"}, "back": {"plus": "two", "minus": "one"}}


def low(shape: torch.Size, rank: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    out, width = shape
    return 0.05 * torch.randn(out, rank, generator=generator) @ torch.randn(rank, width, generator=generator)


def save_models(folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """base; one and two, each with 2 directions in LOW, all of FULL and a norm; same, equal to one; wide."""
    tokenizer = chatml()
    base = tiny("qwen3", seed=3, vocab_size=len(tokenizer), max_position_embeddings=256).to(dtype)
    models = {"base": base, "wide": tiny("qwen3", seed=3, vocab_size=len(tokenizer), intermediate_size=40)}
    for seed, name in enumerate(("one", "two", "same")):
        tuned = copy.deepcopy(base)
        parameters = dict(tuned.named_parameters())
        with torch.no_grad():
            own = seed % 2
            parameters[LOW].add_(low(parameters[LOW].shape, 2, 10 + own).to(dtype))
            parameters[FULL].add_(low(parameters[FULL].shape, 32, 20 + own).to(dtype))
            if dtype == torch.float32:
                parameters[NORM].mul_(1.5 + own)
        models[name] = tuned
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def study_of(folder: Path, contrasts: dict[str, Any], models: tuple[str, ...] = (), **spec: Any) -> Study:
    names = models or ("base", "one", "two", "same")
    data = {
        "name": "contrasts",
        "models": {name: {"path": name, "device": "cpu"} | spec for name in names},
        "prompts": {"files": ["prompts.jsonl"], "validation": 0.5, "date": "2024-07-26"},
        "capture": {"positions": ["decision"], "components": ["resid"], "unit_prompts": 8},
        "contrasts": contrasts,
    }
    return Study.from_dict(data, folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contrasts")
    save_models(folder)
    live_study.write_prompts(folder / "prompts.jsonl")
    return folder


@pytest.fixture(scope="module")
def store(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return build(study_of(folder, CONTRASTS), tmp_path_factory.mktemp("store") / "store", quiet=True)


def weights_of(folder: Path, name: str) -> dict[str, np.ndarray]:
    model = load(study_of(folder, {}).models[name], name).model
    return {key: value.detach().numpy() for key, value in model.named_parameters()}


def test_a_contrast_is_the_first_models_weights_minus_the_seconds(folder: Path, store: Store) -> None:
    one, two, base = (weights_of(folder, name) for name in ("one", "two", "base"))
    found = {delta.name: delta for delta in read_deltas(store, "agreeable")}
    assert set(found) == {LOW, FULL, NORM}
    for name, delta in found.items():
        wanted = one[name].astype(np.float64) - two[name]
        # Differences of float32 weights of size 0.2 and up to 2 for the norm: rounding of 1e-7 of that.
        np.testing.assert_allclose(delta.matrix(), wanted, atol=1e-6)
        assert delta.norm == pytest.approx(np.linalg.norm(wanted), rel=1e-5)
        assert delta.relative == pytest.approx(np.linalg.norm(wanted) / np.linalg.norm(base[name]), rel=1e-5)
        true = np.linalg.norm(delta.matrix() - wanted) / np.linalg.norm(wanted)
        assert true <= delta.error + 1e-6, "the stated error is a bound"
    assert found[LOW].rank == 4, "two directions of each side"
    assert found[FULL].rank is None
    spectrum = np.linalg.svd(one[LOW] - two[LOW], compute_uv=False)[:4]
    np.testing.assert_allclose(found[LOW].spectrum, spectrum, rtol=1e-4)  # type: ignore[arg-type]


def test_it_is_what_an_experiment_makes_of_the_two_models(store: Store) -> None:
    stored = list(read_deltas(store, "agreeable"))
    made = difference(list(read_deltas(store, "one")), list(read_deltas(store, "two")))
    assert [delta.name for delta in stored] == [delta.name for delta in made]
    for one, two in zip(stored, made, strict=True):
        assert (one.rank, one.error, one.norm) == (two.rank, two.error, two.norm)
        np.testing.assert_array_equal(one.matrix(), two.matrix())


def test_the_other_way_round_is_its_negative(store: Store) -> None:
    back = {delta.name: delta.matrix() for delta in read_deltas(store, "back")}
    for delta in read_deltas(store, "agreeable"):
        np.testing.assert_allclose(delta.matrix(), -back[delta.name], atol=1e-6)


def test_heads_are_those_of_the_contrast(folder: Path, store: Store) -> None:
    lm = load(study_of(folder, {}).models["base"], "base")
    (delta,) = (delta for delta in read_deltas(store, "agreeable") if delta.name == LOW)
    wanted = [share.share for share in head_shares(lm.taps, delta)]
    stored = store.table(heads_table("agreeable")).filter(pl.col("part") == "o")
    np.testing.assert_allclose(stored["share"].to_numpy(), wanted, rtol=1e-6)
    assert len(wanted) == lm.taps.n_heads


def test_two_equal_models_have_an_empty_contrast(folder: Path, tmp_path: Path) -> None:
    study = study_of(folder, {"nothing": {"plus": "one", "minus": "same"}})
    store = build(study, tmp_path / "s", quiet=True)
    assert list(read_deltas(store, "nothing")) == []
    assert not steerable(store, "nothing")


@pytest.mark.parametrize("lost", [f"weights/agreeable/delta/{LOW}/left", f"weights/back/delta/{FULL}/dense"])
def test_a_lost_part_is_written_again_byte_by_byte(
    folder: Path, store: Store, tmp_path: Path, lost: str
) -> None:
    copied = Path(shutil.copytree(store.path, tmp_path / "copy"))
    files = list((copied / lost).glob("c*"))
    before = [file.read_bytes() for file in files]
    for file in files:
        file.unlink()
    assert verify(study_of(folder, CONTRASTS), copied) == 1
    build(study_of(folder, CONTRASTS), copied, quiet=True)
    assert [file.read_bytes() for file in files] == before
    assert verify(study_of(folder, CONTRASTS), copied) == 0


def test_a_killed_run_goes_on_and_is_the_same(
    folder: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(store.path, tmp_path / "copy"))
    for name in CONTRASTS:
        shutil.rmtree(path / "weights" / name)
        for file in path.glob(f"tables/weight-delta*{name}.parquet"):
            file.unlink()
    original = build_weights._write_values

    def stop_at_the_second(writer: Any, name: str, *given: Any) -> str:
        if name == "back":
            raise KeyboardInterrupt
        return original(writer, name, *given)

    with monkeypatch.context() as patch:
        patch.setattr(build_weights, "_write_values", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            build(study_of(folder, CONTRASTS), path, quiet=True)
    assert Store(path).state == "building"
    assert delta_table("agreeable") in Store(path).table_names()
    assert delta_table("back") not in Store(path).table_names()
    build(study_of(folder, CONTRASTS), path, quiet=True)
    names = [name for name in store.array_names() if name.startswith(("weights/agreeable", "weights/back"))]
    assert len(names) == 2 * (3 + 2 + 1)
    for name in names:
        np.testing.assert_array_equal(Store(path).array(name), store.array(name))
    for name in CONTRASTS:
        assert Store(path).table(delta_table(name)).equals(store.table(delta_table(name)))


def test_half_precision_says_what_both_sides_lost(tmp_path: Path) -> None:
    save_models(tmp_path, torch.bfloat16)
    live_study.write_prompts(tmp_path / "prompts.jsonl")
    study = study_of(
        tmp_path, {"agreeable": CONTRASTS["agreeable"]}, ("base", "one", "two"), dtype="bfloat16"
    )
    store = build(study, tmp_path / "s", quiet=True)
    models = [load(study.models[name], name).model for name in ("one", "two")]
    one, two = (dict(model.named_parameters())[FULL].detach().double().numpy() for model in models)
    (delta,) = (delta for delta in read_deltas(store, "agreeable") if delta.name == FULL)
    assert delta.half, "kept as 16 bits, as the weights are"
    true = np.linalg.norm(delta.matrix() - (one - two)) / np.linalg.norm(one - two)
    assert 0 < true <= delta.error < 0.02


def test_the_fingerprint_knows_contrasts(folder: Path) -> None:
    with_them, without = study_of(folder, CONTRASTS), study_of(folder, {})
    other = study_of(folder, {"agreeable": {"plus": "one", "minus": "same"}, "back": CONTRASTS["back"]})
    prints = {study.fingerprint() for study in (with_them, without, other)}
    assert len(prints) == 3
    turned = study_of(folder, dict(reversed(CONTRASTS.items())))
    assert turned.fingerprint() == with_them.fingerprint(), "their order changes no number"
    assert diff_studies(with_them.to_json(), other.to_json()) == ["contrasts.agreeable.minus: two → same"]
    read = Study.from_json(json.loads(json.dumps(with_them.to_json())))
    assert read == with_them
    older = {key: value for key, value in without.to_json().items() if key != "contrasts"}
    assert Study.from_json(older).fingerprint() == without.fingerprint()
    assert diff_studies(older, without.to_json()) == []


@pytest.mark.parametrize(
    ("contrasts", "says"),
    [
        ({"x": {"plus": "one", "minus": "three"}}, r"minus of the contrast 'x' is one of.*no model 'three'"),
        ({"x": {"plus": "base", "minus": "one"}}, r"plus of the contrast 'x'.*first model, 'base', has no"),
        ({"x": {"plus": "one", "minus": "one"}}, r"the contrast 'x' takes 'one' from itself"),
        ({"one": {"plus": "one", "minus": "two"}}, r"the contrast 'one' has the name of a model"),
        ({"One": {"plus": "one", "minus": "two"}}, r"the contrast 'One' has the name of a model"),
        ({"a b": {"plus": "one", "minus": "two"}}, r"name 'a b' may use letters"),
        ({"x": {"plus": "one"}}, r"'contrasts\.x\.minus' is missing"),
        ({"x": {"plus": "one", "minus": "two", "scale": 2}}, r"unknown key 'contrasts\.x\.scale'"),
    ],
)
def test_what_makes_no_contrast_is_refused_by_name(
    folder: Path, contrasts: dict[str, Any], says: str
) -> None:
    with pytest.raises(StudyError, match=says):
        study_of(folder, contrasts)


def test_other_tensors_are_refused_before_anything_is_captured(folder: Path) -> None:
    study = study_of(folder, {"x": {"plus": "one", "minus": "wide"}}, ("base", "one", "wide"))
    with pytest.raises(StudyError, match=r"'x' can't be made: 'wide' has other tensors.*contrasts\.x\.minus"):
        Prepared.of(study)
    assert Prepared.of(study_of(folder, CONTRASTS)).shapes


def test_an_unknown_contrast_is_refused_by_name(store: Store) -> None:
    with pytest.raises(StoreError, match="no weight difference of nobody"):
        list(read_deltas(store, "nobody"))


@pytest.fixture(scope="module")
def opened(store: Store) -> Opened:
    return Opened(str(store.path), store, read_facts(store))


def test_contrasts_stand_beside_the_models_differences(opened: Opened) -> None:
    assert q.differences(opened) == ("one", "two", "same", "agreeable", "back")
    assert q.label(opened, "agreeable") == "agreeable = one − two"
    assert q.label(opened, "one") == "one − base"
    chosen = update(defaults(opened.facts), opened.facts, delta="agreeable", layer=1)
    assert weights.model_of(opened, chosen) == "agreeable"
    assert weights.model_of(opened, update(chosen, opened.facts, delta="two", b="one")) == "one"
    panels = {panel.name: panel for panel in weights.panels(opened, chosen)}
    assert set(panels) == {"weight-blocks", "weight-tensors", "weight-spectrum", "weight-heads"}
    for panel in panels.values():
        drawn(panel)
        assert panel.draw(DARK) != panel.draw(LIGHT)
        assert "agreeable = one − two" in panel.caption or panel.name == "weight-heads"
        assert set(panel.models) <= set(opened.facts.models)
        names: dict[str, Any] = {}
        exec(panel.code, names)
        assert names["table"].equals(panel.table)
    assert panels["weight-blocks"].title.startswith("agreeable changes every block, most block 2 by ")
    assert panels["weight-tensors"].title.startswith("one differs from two only in ")
    assert panels["weight-spectrum"].title.startswith(
        "agreeable's difference in self_attn.o_proj of block 1 has rank 4 of 32"
    )
    by_block = panels["weight-blocks"].table.filter(pl.col("series") == "agreeable")
    wanted = next(delta for delta in read_deltas(opened.store, "agreeable") if delta.name == FULL).norm
    assert by_block.filter(pl.col("layer") == 2)["norm"][0] == pytest.approx(wanted)


def test_steering_offers_a_contrast_as_the_pair_that_it_is(opened: Opened) -> None:
    found = weight_steering_view.offered(opened, defaults(opened.facts))
    assert found["one/two"] == "agreeable = one − two"
    assert found["two/one"] == "back = two − one"
    assert found["one/same"] == "one − same"
    assert list(found)[:5] == ["one", "two", "same", "one/two", "two/one"]
    chosen = update(defaults(opened.facts), opened.facts, deltas="one/two")
    (contrast,) = weight_steering_view.contrasts_of(chosen)
    assert (contrast.plus, contrast.minus) == ("one", "two")


def test_the_pages_show_a_contrast(opened: Opened, open_app: Callable[..., AppTest]) -> None:
    app = open_app(opened.path, "weights", b="two", layer="1")
    app.selectbox(key="weights-model").set_value("agreeable").run()
    assert not app.exception
    said = "\n".join(str(block.value) for block in (*app.markdown, *app.caption))
    assert "one differs from two only in" in said
    app.selectbox(key="weights-model").set_value("one").run()
    assert not app.exception
    assert "one differs from base " in "\n".join(str(block.value) for block in app.markdown)
    steering = open_app(opened.path, "weight_steering", deltas="one/two")
    assert not steering.exception
    assert steering.multiselect(key="weights-deltas").value == ["one/two"]


def plain_effective_rank(matrix: np.ndarray) -> float:
    sigma = np.linalg.svd(matrix, compute_uv=False)
    share = sigma / sigma.sum()
    share = share[share > 1e-7]  # float32 noise of a low-rank matrix
    return float(np.exp(-(share * np.log(share)).sum()))


@pytest.mark.parametrize(("name", "of", "from_"), [("one", "one", "base"), ("agreeable", "one", "two")])
def test_the_pages_tables_are_those_of_the_models_weights(
    folder: Path, opened: Opened, name: str, of: str, from_: str
) -> None:
    """Norm, relative norm, effective rank, spectrum, blocks and heads by NumPy from the models themselves."""
    plus, minus, base = (weights_of(folder, model) for model in (of, from_, "base"))
    changes = {key: plus[key].astype(np.float64) - minus[key] for key in (LOW, FULL, NORM)}
    close = {"rtol": 2e-4}  # float32 weights of size 0.2 minus each other; ranks and heads amplify it
    part_of = {q.part_of(key): (key, changes[key]) for key in changes}
    for measure in weights.MEASURES:
        shown = {
            (row["part"], row["layer"]): row["value"] for row in q.grid(opened, name, measure).to_dicts()
        }
        assert {part for part, _ in shown} == set(part_of)
        assert {layer for _, layer in shown} == {0, 1, 2}
        for (part, layer), value in shown.items():
            key, change = part_of[part]
            if f".{layer}." not in key:
                assert value == (None if measure == "effective_rank" else 0.0)
                continue
            wanted = {
                "norm": np.linalg.norm(change),
                "relative": np.linalg.norm(change) / np.linalg.norm(base[key]),
                "effective_rank": plain_effective_rank(change) if change.ndim == 2 else None,
            }[measure]
            assert value == (None if wanted is None else pytest.approx(wanted, rel=2e-4)), (part, layer)

    for key, part, layer in ((LOW, "self_attn.o_proj", 1), (FULL, "mlp.down_proj", 2)):
        sigma = np.linalg.svd(changes[key], compute_uv=False)
        shown_sigma = q.spectra(opened, (name,), layer, part)["value"].drop_nulls().to_numpy()
        np.testing.assert_allclose(shown_sigma, sigma[: len(shown_sigma)], **close)
        assert len(shown_sigma) == (np.linalg.matrix_rank(changes[key], tol=1e-4) if key == LOW else 32)

    for row in q.by_block(opened, (name,)).iter_rows(named=True):
        inside = [key for key in base if f"layers.{row['layer']}." in key]
        change = np.sqrt(sum(np.linalg.norm(changes[key]) ** 2 for key in inside if key in changes))
        whole = np.sqrt(sum(np.linalg.norm(base[key]) ** 2 for key in inside))
        assert row["norm"] == pytest.approx(change, rel=2e-4)
        assert row["value"] == pytest.approx(change / whole, rel=2e-4)

    shares = (changes[LOW].reshape(32, 4, 16) ** 2).sum(axis=(0, 2))  # (d, heads · head width)
    np.testing.assert_allclose(q.heads(opened, name, "o")["share"], shares / shares.sum(), **close)
