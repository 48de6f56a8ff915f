"""The study of a real model end to end, in bfloat16: `make test-real`.

Precompute, verification, every listed experiment, every page; then what must hold because the adapters
change two modules of blocks 10 to 20 only, with rank 8, and were trained to agree or to judge.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opened_pages import open_page

from app import main
from app.frame.opened import Opened, open_at
from app.frame.selection import Selection, defaults
from app.live.headless import read_experiments
from app.live.weight_tables import delta_table
from app.similarity import panels as similarity
from app.similarity.tables import cka_curve
from demo.smollm2.finetune import ADAPTERS, BLOCKS, RANK
from demo.smollm2.place import place
from engine.lab.noise import kl_floor
from engine.lab.repeat import Repeat
from engine.models.loading import load
from engine.models.sites import Site
from engine.passes.patch_engine import PatchEngine
from engine.passes.rounding import divergence
from engine.study.study import Study
from store.runs import RunLog

pytest.importorskip("gguf", reason="the package gguf (extra: real) is not installed")
pytestmark = [pytest.mark.real, pytest.mark.timeout(7200)]

ROOT = Path(__file__).resolve().parents[2]
STUDY = ROOT / "studies/smollm2-sycophancy.toml"
STORE = "PATCHBAY_REAL_STORE"
ASKED = ROOT / "studies/smollm2-sycophancy.experiments.json"
PAGES = [name for entries in main.PAGES.values() for name, *_ in entries]
MODULES = ("self_attn.o_proj", "mlp.down_proj")
FIRST, LAST = BLOCKS[0], BLOCKS[-1]
Runs = list[tuple[dict[str, Any], dict[str, Any]]]
"""(condition, summary) of every stored run."""


def command(*arguments: str) -> str:
    """Runs precompute.py, which must succeed; gives what it printed."""
    done = subprocess.run(
        [sys.executable, "precompute.py", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{arguments}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout + done.stderr


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished store with every listed experiment run; that of $PATCHBAY_REAL_STORE where it is given."""
    place()
    if os.environ.get(STORE):
        return Path(os.environ[STORE])
    path = tmp_path_factory.mktemp("real") / "store"
    command(str(STUDY), "--store", str(path))
    command("run", str(path), "--condition", str(ASKED))
    return path


@pytest.fixture(scope="session")
def opened(store: Path) -> Opened:
    return open_at(str(store))


@pytest.fixture(scope="session")
def runs(store: Path) -> Runs:
    listed = RunLog(store).list()
    assert listed["problem"].is_null().all()
    return [
        (json.loads(row["condition"]), json.loads(row["summary"])) for row in listed.iter_rows(named=True)
    ]


def chosen(opened: Opened, model: str) -> Selection:
    return replace(defaults(opened.facts), b=model)


def test_every_check_holds_and_every_checksum_too(opened: Opened, store: Path) -> None:
    checks = opened.store.self_checks()
    assert len({check["model"] for check in checks}) == 4
    assert [check for check in checks if not check["passed"]] == []
    command(str(STUDY), "--store", str(store), "--verify")


def test_rounding_is_what_bfloat16_gives_at_this_depth(opened: Opened) -> None:
    """Thousandths of a nat: far more than float32's, far less than what the adapters change."""
    for model in opened.store.models:
        measured = opened.store.rounding(model)
        assert measured is not None
        assert 1e-5 < measured["kl"] < 0.05, model


def test_every_experiment_is_stored_once(runs: Runs) -> None:
    asked = read_experiments([str(ASKED)])
    # subspace scores are run by precompute
    assert len(runs) == len(asked) + 1
    again = [summary for condition, summary in runs if condition["job"] == "repeat"]
    assert len(again) == sum(isinstance(one, Repeat) for one in asked) == 1


@pytest.mark.parametrize("page", PAGES)
def test_every_page_runs(store: Path, monkeypatch: pytest.MonkeyPatch, page: str) -> None:
    app = open_page(monkeypatch, store, page, timeout=600)
    assert not app.exception, [error.value for error in app.exception]
    said = "\n".join(item.value for item in (*app.markdown, *app.caption))
    assert "Something went wrong" not in said
    assert len(app.title) == 1


@pytest.mark.parametrize("model", ADAPTERS)
@pytest.mark.parametrize("site", ["resid_post", "attn_out", "mlp_out"])
def test_similarity_is_1_below_the_first_changed_block_and_less_from_there_on(
    opened: Opened, model: str, site: str
) -> None:
    """Below, the two models are the same network: activations agree bit for bit. A tenth of a permille is
    what CKA's own float64 sums leave."""
    selection = chosen(opened, model)
    below = opened.store.activations("base", "resid", FIRST, selection.position)
    assert (below == opened.store.activations(model, "resid", FIRST, selection.position)).all()
    asked = similarity.place(selection) | {"site": site, "interval": selection.interval}
    curve = cka_curve(opened.store, **asked).filter(series="biased").sort("layer")
    value = dict(zip(curve["layer"], curve["value"], strict=True))
    assert all(abs(value[block] - 1) < 1e-6 for block in range(FIRST))
    assert all(value[block] < 1 - 1e-5 for block in range(FIRST + 1, 30))
    assert value[29] < 0.98


@pytest.mark.parametrize("model", ADAPTERS)
def test_the_changed_tensors_are_the_planted_ones_of_rank_8(opened: Opened, model: str) -> None:
    table = opened.store.table(delta_table(model))
    assert table["problem"].is_null().all()
    names = {f"model.layers.{block}.{module}.weight" for block in BLOCKS for module in MODULES}
    assert set(table["name"]) == names
    assert set(table["rank"]) == {RANK}
    assert table["relative"].min() > 0


def test_the_contrasts_live_in_the_same_places(opened: Opened) -> None:
    for name in ("sycophancy", "between_seeds"):
        table = opened.store.table(delta_table(name))
        assert set(table["layer"]) == set(BLOCKS)
        assert set(table["rank"]) == {2 * RANK}, name


def test_a_patch_below_the_first_changed_block_finds_nothing(
    runs: Runs,
) -> None:
    """The source's activation is the target's own there: moment matching finds nothing above noise."""
    below = [
        (condition, summary)
        for condition, summary in runs
        if condition["job"] == "mapped" and condition["layer"] < FIRST
    ]
    assert len(below) >= 4
    for condition, summary in below:
        raw = summary["splits"]["validation"]["kl"]["raw"]
        assert raw["estimate"] <= max(kl_floor(summary["rounding"]), 1e-6), condition


def test_the_models_answer_as_they_were_taught(runs: Runs) -> None:
    """log P(yes) − log P(no) on held-out topics."""
    told = {
        condition["model"]: summary["figures"]["agreement"]
        for condition, summary in runs
        if condition["job"] == "behaviour"
    }
    assert told["sycophantic"]["low"] > told["base"]["high"]
    assert told["sycophantic"]["low"] > told["candid"]["high"]


FEW = 6
"""Prompts of the tests that load models themselves."""


@pytest.fixture(scope="module")
def engines(opened: Opened) -> dict[tuple[str, str], PatchEngine]:
    """(model, dtype) -> its patch engine at the last tokens of a few prompts."""
    study, found = Study.load(STUDY), {}
    token_ids = opened.store.table("tokens-base")["token_ids"].to_list()
    few = token_ids[:: len(token_ids) // FEW][:FEW]
    for model in ("base", "sycophantic"):
        for dtype in ("bfloat16", "float32"):
            spec = study.models[model].model_copy(update={"dtype": dtype})
            found[model, dtype] = PatchEngine(load(spec, model), few, [len(ids) - 1 for ids in few])
    return found


def test_the_own_activation_put_back_changes_nothing_at_any_site(
    engines: dict[tuple[str, str], PatchEngine],
) -> None:
    engine = engines["base", "bfloat16"]
    for layer in range(30):
        for component in ("resid_pre", "resid_post", "attn_out", "mlp_out", "head_z"):
            site = Site(component, layer)
            kl = engine.sweep(site, engine.activations(site)[None], n_conditions=1).kl
            assert float(np.abs(kl).max()) <= 1e-6, site


@pytest.mark.parametrize(
    ("component", "layer"),
    [("resid_post", 9), ("resid_post", 12), ("resid_post", 20), ("attn_out", 12), ("mlp_out", 16)],
)
def test_a_patch_has_the_same_effect_in_float32_within_the_noise(
    opened: Opened, engines: dict[tuple[str, str], PatchEngine], component: str, layer: int
) -> None:
    """KL is ½ Σ p δ² up to third order: log-probabilities moved by ε change it by Σ p δ ε + ½ Σ p ε², which
    is at most 2 √(KL · noise) + noise, prompt by prompt."""
    site, kl = Site(component, layer), {}
    for dtype in ("bfloat16", "float32"):
        source = engines["sycophantic", dtype].activations(site)
        kl[dtype] = engines["base", dtype].sweep(site, source[None], n_conditions=1).kl[0]
    measured = opened.store.rounding("base")
    assert measured is not None
    noise = measured["kl_worst"]
    assert (np.abs(kl["bfloat16"] - kl["float32"]) <= noise + 2 * np.sqrt(kl["float32"] * noise)).all()
    assert kl["float32"].mean() < 1e-9 if layer < FIRST else kl["float32"].mean() > 1e-3


def test_the_source_s_last_stream_brings_its_whole_answer(
    engines: dict[tuple[str, str], PatchEngine],
) -> None:
    """Behind the last block both are the same function of the stream, before block 10 the same model."""
    base, tuned = (engines[model, "bfloat16"] for model in ("base", "sycophantic"))
    rows = zip(tuned.log_probs().double(), base.log_probs().double(), strict=True)
    apart = np.array([divergence(one, other) for one, other in rows])

    def brought(layer: int) -> np.ndarray:
        site = Site("resid_post", layer)
        return base.sweep(site, tuned.activations(site)[None], n_conditions=1).kl[0]

    np.testing.assert_allclose(brought(29), apart, rtol=1e-3)
    assert apart.min() > 3
    assert np.abs(brought(FIRST - 1)).max() < 1e-6
    assert brought(LAST).mean() > 1
