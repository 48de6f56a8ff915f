"""Draws of a sample as positions: captured, compared, mapped and patched in a store of two tokenizers."""

from __future__ import annotations

import live_study
import numpy as np
import pytest

from app.build.build import build
from app.frame import prompts as queries
from app.frame.opened import Opened, read_facts
from app.frame.selection import defaults, update
from app.live.lab import StoreLab
from app.live.model_cache import ModelCache
from engine.errors import PatchError
from engine.kinds import experiment_from_json
from engine.patching.run_patch import run as run_patch
from engine.patching.spec import Condition

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
    curve = queries.cka_curve(opened, chosen, "resid_post").filter(series="debiased")
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


def test_the_sample_itself_is_refused_with_what_to_do(opened: Opened) -> None:
    with pytest.raises(PatchError, match=r"not one token.*sample\(k=4,draw=1\)"):
        Condition(target="tuned", source="base", component="resid_post", layer=2, position=MANY, kind="raw")
