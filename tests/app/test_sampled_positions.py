"""Draws of a sample as positions: captured, compared, mapped and patched in a store of two tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import live_study
import numpy as np
import pytest

from app.build.build import build
from app.frame.opened import Opened, read_facts
from app.frame.selection import defaults, update
from app.live.lab import StoreLab
from app.live.model_cache import ModelCache
from app.similarity.panels import place
from app.similarity.tables import cka_curve
from engine.errors import PatchError
from engine.kinds import experiment_from_json
from engine.lab.experiment import resampling_groups, train_rows
from engine.models.sites import Site
from engine.patching.mapped_spec import MappedPatch
from engine.patching.run_patch import run as run_patch
from engine.patching.spec import Condition
from engine.patching.vectors import fitted
from engine.transport.named import MapSpec

DRAW = "sample(k=3,skip_last=1,draw=2)"
MANY = "sample(k=3,skip_last=1)"


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    folder = tmp_path_factory.mktemp("sampled")
    study = live_study.make_study(folder, positions=(DRAW, MANY, "decision"))
    store = build(study, folder / "store", quiet=True)
    return Opened(str(folder / "store"), store, read_facts(store))


def test_a_draw_is_a_position_of_the_pages_and_the_sample_is_not(opened: Opened) -> None:
    assert opened.facts.positions == (DRAW, "decision")
    assert DRAW in opened.facts.tokens


def test_rows_of_two_tokenizers_are_pairs(opened: Opened) -> None:
    counts = [opened.store.row_index(m, MANY)["row_count"].to_list() for m in ("base", "other")]
    assert counts[0] == counts[1]
    for model in ("base", "other"):
        index = opened.store.row_index(model, MANY)
        second = index["row_start"].to_numpy() + 1
        drawn = opened.store.activations(model, "resid_post", 1, DRAW)
        np.testing.assert_array_equal(
            opened.store.activations(model, "resid_post", 1, MANY, rows=second), drawn
        )


def test_cka_maps_and_patches_take_a_draw(opened: Opened) -> None:
    chosen = update(defaults(opened.facts), opened.facts, a="base", b="other", position=DRAW, split="all")
    asked = place(chosen) | {"interval": chosen.interval}
    curve = cka_curve(opened.store, **asked).filter(series="debiased")
    assert curve["value"].is_finite().all()
    x, y = (opened.store.activations(m, "resid_post", 3, DRAW).astype(float) for m in ("base", "other"))
    assert x.shape == y.shape
    lab = StoreLab(opened.store, ModelCache("cpu"), lambda **_: None, lambda: False)
    wanted = Condition(
        target="tuned",
        source="base",
        component="resid_post",
        layer=2,
        position=DRAW,
        kind="literal",
        n_boot=100,
    )
    assert experiment_from_json(wanted.to_json()) == wanted
    made = run_patch(wanted, lab)
    assert made.self_check.value < 1e-5
    assert np.mean(made.kl) > 1e-4, "block 2 differs"
    for model in ("base", "other"):
        stored = opened.store.table(f"positions-{model}")[DRAW].list.first().to_numpy()
        np.testing.assert_array_equal(lab.places(model, DRAW, range(len(stored))), stored)
        unstored = DRAW.replace("draw=2", "draw=1")
        assert (lab.places(model, unstored, range(len(stored))) <= stored).all()


def test_a_map_is_fitted_on_every_draw_of_both_tokenizers(opened: Opened) -> None:
    """As on the stored rows of the whole sample, which are pairs; it is read from there."""
    lab = StoreLab(opened.store, ModelCache("cpu"), lambda **_: None, lambda: False)
    ridge = MapSpec(method="RidgeTransport")
    where = {"target": "other", "source": "base", "component": "resid_post", "layer": 2}
    wanted = MappedPatch(**where, position="decision", map=ridge, fitted_at=MANY)
    assert experiment_from_json(wanted.to_json()) == wanted
    assert "fitted_at" not in MappedPatch(**where, position="decision", map=ridge).to_json()
    found = fitted(lab, wanted, ridge)
    train = train_rows(opened.store.prompts)
    tokens = [opened.store.table(f"positions-{model}")[MANY].to_list() for model in ("base", "other")]
    starts = [opened.store.row_index(m, MANY)["row_start"].to_list() for m in ("base", "other")]
    rows: tuple[list[int], list[int]] = ([], [])
    groups = []
    for prompt, group in zip(train.tolist(), resampling_groups(opened.store.prompts[train]), strict=True):
        pairs = list(zip(tokens[0][prompt], tokens[1][prompt], strict=True))
        once = [i for i, pair in enumerate(pairs) if i == 0 or pair != pairs[i - 1]]
        texts = [opened.store.tokens(model).row(prompt, named=True) for model in ("base", "other")]
        own = [text["rendered"][text["content_start"] : text["content_end"]].strip() for text in texts]
        assert own[0] == own[1]

        def behind(at: int, texts: list[dict[str, Any]] = texts, pairs: list[Any] = pairs) -> set[str]:
            """What is left of the text behind the token that either model reads."""
            ends = [text["offsets"][token][1] for text, token in zip(texts, pairs[at], strict=True)]
            return {
                text["rendered"][end : text["content_end"]].rstrip()
                for text, end in zip(texts, ends, strict=True)
            }

        once = [i for i in once if len(behind(i)) == 1]
        for side in (0, 1):
            rows[side].extend(starts[side][prompt] + i for i in once)
        groups += [group] * len(once)
    assert len(groups) > train.size, "most prompts have several words"
    sides = [
        opened.store.activations(model, "resid_post", 2, MANY, rows=at)
        for model, at in zip(("base", "other"), rows, strict=True)
    ]
    plain = ridge.build(None, wanted.seed, None).fit(*sides, groups=np.array(groups))  # type: ignore[arg-type]
    at_decision = lab.activations("base", Site("resid_post", 2), "decision", train)
    np.testing.assert_allclose(found.map.predict(at_decision), plain.predict(at_decision), atol=1e-4)
    np.testing.assert_array_equal(found.x, at_decision)
    usual = fitted(lab, wanted.model_copy(update={"fitted_at": ""}), ridge)
    assert np.abs(usual.map.predict(at_decision) - found.map.predict(at_decision)).max() > 1e-3
    first = DRAW.replace("draw=2", "draw=1")
    index = opened.store.row_index("other", MANY)["row_start"].to_numpy()
    kept = opened.store.activations("other", "resid_post", 2, MANY, rows=index)
    np.testing.assert_array_equal(
        lab.activations("other", Site("resid_post", 2), first, range(len(kept))), kept
    )
    assert lab.origin("other", Site("resid_post", 2), first).startswith("stored")


def test_a_draw_of_a_rounded_sample_is_run_again(tmp_path: Path) -> None:
    """It is one token, which the model can be run for; only averages are taken as they were stored."""
    study = live_study.make_study(tmp_path, dtype="bfloat16", positions=(MANY, "mean"))
    store = build(study, tmp_path / "store", quiet=True)
    lab = StoreLab(store, ModelCache("cpu"), lambda **_: None, lambda: False)
    site, rows = Site("resid_post", 2), np.arange(4)
    index = store.row_index("other", MANY)["row_start"].to_numpy()[rows]
    stored = store.activations("other", "resid_post", 2, MANY, rows=index)
    exact = lab.activations("other", site, DRAW.replace("draw=2", "draw=1"), rows)
    assert 0 < np.abs(exact - stored).max() < 2**-7 * np.abs(stored).max(), "bfloat16 keeps eight bits"
    assert lab.notes == []
    assert lab.origin("other", site, DRAW.replace("draw=2", "draw=1")) == "recomputed with other"
    lab.activations("other", site, "mean", rows)
    assert "mean are the stored ones, rounded to bfloat16" in lab.notes[0]


@pytest.mark.parametrize("name", [DRAW, "decision", "nonsense", "sample(k=0)", "sample(k=65)"])
def test_maps_are_fitted_at_whole_samples_alone(name: str) -> None:
    with pytest.raises(PatchError, match=r"sample\(k=16,skip_last=4\)"):
        MappedPatch(
            target="other",
            source="base",
            component="resid_post",
            layer=2,
            position="decision",
            fitted_at=name,
        )


def test_the_sample_itself_is_refused_with_what_to_do(opened: Opened) -> None:
    with pytest.raises(PatchError, match=r"not one token.*sample\(k=4,draw=1\)"):
        Condition(target="tuned", source="base", component="resid_post", layer=2, position=MANY, kind="raw")
