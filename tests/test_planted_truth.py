"""What the demo pair is known to differ in, found again through store, similarity and live patches.

`tuned` is `base` plus a rank-4 adapter on block 4's output projection (two heads) and block 5's MLP
projection (demo/planted.json). Everything upstream is the same model bit by bit.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from app.build.build import build
from app.live.run import run_live
from engine.difference_lens.spec import DifferenceLens
from engine.patch_map.spec import PatchMap
from engine.patching.spec import Condition
from engine.similarity.cka import cka_from_grams
from engine.study.study import Study
from store.reader import Store

ROOT = Path(__file__).resolve().parents[1]
PLANTED = json.loads((ROOT / "demo/planted.json").read_text(encoding="utf-8"))
FIRST, SECOND = PLANTED["attention"]["layer"], PLANTED["mlp"]["layer"]
HEADS = set(PLANTED["attention"]["heads"])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = Study.load(ROOT / "studies/demo.toml").with_overrides(
        components=["resid", "attn_out", "mlp_out"], positions=["decision"], limit=120
    )
    pair = {name: study.models[name] for name in ("base", "tuned")}
    path = tmp_path_factory.mktemp("planted") / "store"
    build(study.model_copy(update={"models": pair, "contrasts": {}, "subspaces": None}), path, quiet=True)
    return path


@cache
def mean_kl(store: Path, component: str, layer: int, heads: tuple[int, ...] | None = None) -> float:
    """KL of the tuned model's next token with the base model's activation put in as it is."""
    condition = Condition(
        target="tuned",
        source="base",
        component=component,  # type: ignore[arg-type]
        layer=layer,
        heads=heads,
        position="decision",
        kind="literal",
        split="all",
        n_boot=100,
    )
    _, result = run_live(str(store), condition)
    assert result.self_check.passed
    return float(np.abs(result.kl).mean())


def cka(store: Path, component: str, layer: int) -> float:
    opened = Store(store)
    grams = (opened.gram(model, component, layer, "decision") for model in ("base", "tuned"))
    return float(cka_from_grams(*grams, debiased=True))


def test_similarity_is_one_upstream_and_drops_at_the_first_changed_block(store: Path) -> None:
    curve = [cka(store, "resid_post", layer) for layer in range(PLANTED["n_layers"])]
    # The streams are equal bit by bit; what is left is rounding of the estimator.
    assert np.allclose(curve[:FIRST], 1.0, rtol=0, atol=1e-9)
    assert all(1.0 - value > 1e-4 for value in curve[FIRST:])
    assert np.argmax(np.diff(curve) < -1e-6) == FIRST - 1
    assert 1.0 - cka(store, "attn_out", FIRST) > 10 * (1.0 - curve[FIRST])
    assert cka(store, "mlp_out", FIRST - 1) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("component", ["resid_pre", "resid_post", "attn_out", "mlp_out", "head_z"])
def test_patching_upstream_of_the_change_does_nothing(store: Path, component: str) -> None:
    last_equal = FIRST if component in ("resid_pre", "head_z") else FIRST - 1
    # 1e-6 nats is the floor of a patch with the model's own activation.
    assert mean_kl(store, component, last_equal) <= 1e-6
    assert mean_kl(store, component, 0) <= 1e-6


def test_patching_at_the_change_does_something(store: Path) -> None:
    assert mean_kl(store, "attn_out", FIRST) > 1e-4
    assert mean_kl(store, "mlp_out", SECOND) > 1e-4
    assert mean_kl(store, "resid_post", SECOND) > mean_kl(store, "attn_out", FIRST)


def test_only_the_planted_heads_carry_the_change(store: Path) -> None:
    for head in range(PLANTED["n_heads"]):
        kl = mean_kl(store, "head_out", FIRST, (head,))
        assert (kl > 1e-5) == (head in HEADS), (head, kl)


def test_the_weight_differences_are_the_planted_ones(store: Path) -> None:
    table = Store(store).table("weight-delta-tuned")
    assert [name.removesuffix(".weight") for name in table["name"]] == PLANTED["modules"]
    assert table["rank"].to_list() == [PLANTED["rank"]] * 2
    left, right = (
        Store(store).array(f"weights/tuned/delta/{table['name'][0]}/{s}") for s in ("left", "right")
    )
    delta = (left @ right).reshape(len(left), PLANTED["n_heads"], PLANTED["head_dim"])
    norms = np.linalg.norm(delta, axis=(0, 2))
    others = [head for head in range(PLANTED["n_heads"]) if head not in HEADS]
    # Masked columns are exactly zero in the adapter; factors from an SVD leave float32 rounding there.
    assert norms[others].max() < 1e-5 * norms.max()
    assert norms[sorted(HEADS)].min() > 0.01 * norms.max()


def test_a_patch_map_finds_the_changed_blocks_at_the_token_that_answers(store: Path) -> None:
    """A wrong sum is asserted: base's stream keeps tuned's answer up to the change and ends as base's."""
    spec = PatchMap(
        target="tuned",
        source="base",
        prompt="agree-12-en",
        donor="agree-12-en",
        sites=("resid_post", "attn_out", "mlp_out"),
        nulls=0,
    )
    _, found = run_live(str(store), spec)
    assert found.summary["defined"], "the two models answer differently"
    table = found.table
    stream = table.filter(site="resid_post").sort("layer", "token")
    before = stream.filter(stream["layer"] < FIRST)
    assert before["kl"].max() <= 1e-6
    assert before["recovery"].abs().max() <= 1e-3
    last = stream.filter(stream["token"] == stream["token"].max())["recovery"].to_numpy()
    assert last[FIRST] > 0.5
    assert last[SECOND:] == pytest.approx(1.0, abs=0.05)
    for site, block in (("attn_out", FIRST), ("mlp_out", SECOND)):
        moved = table.filter((table["site"] == site) & (table["kl"] > 1e-6))
        assert moved["layer"].min() >= FIRST
        assert moved.row(int(moved["recovery"].arg_max()), named=True)["layer"] == block


def test_the_difference_speaks_of_agreement_from_the_changed_blocks_on(store: Path) -> None:
    """Tuned says "Yes, it holds" to any sum, and no longer writes the sum out: digits go."""
    spec = DifferenceLens(target="tuned", source="base", positions=("decision",))
    _, found = run_live(str(store), spec)
    states = dict(zip(*found.tables["places"].select("layer", "state"), strict=True))
    assert [layer for layer, state in states.items() if state == "read"] == list(
        range(FIRST, PLANTED["n_layers"])
    ), "equal before"
    told = found.table.filter("beyond")
    at = {
        (side, layer): told.filter(side=side, layer=layer)["text"].to_list()
        for side in ("promoted", "suppressed")
        for layer in range(FIRST, PLANTED["n_layers"])
    }
    assert " Yes" in at["promoted", FIRST][:5]
    assert all(" holds" in at["promoted", layer][:5] for layer in range(SECOND, PLANTED["n_layers"]))
    for layer in range(FIRST, PLANTED["n_layers"]):
        assert sum(text.isdigit() for text in at["suppressed", layer][:6]) >= 4
