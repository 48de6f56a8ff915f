"""Fits of lengthscales as an experiment: problems, clouds, starts, what is kept, how it is watched."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import live_study
import numpy as np
import polars as pl
import pytest
from behaviour_demo import demo_lab
from memory_lab import MemoryLab
from planted_clouds import planted
from tiny_models import tiny
from tiny_tokenizers import chatml

from app.live.lab import StoreLab
from app.live.model_cache import ModelCache
from engine.ard.fit import fit_ard, warm_start
from engine.ard.holdout import hold_out
from engine.ard.run import problem_rows, run
from engine.ard.spec import Ard
from engine.errors import JobError, PatchError
from engine.geometry import z as subspace
from engine.kinds import experiment_from_json
from engine.models.loading import from_parts
from engine.models.sites import Site
from engine.passes.batching import batches
from engine.passes.capture import token_clouds
from engine.prompts.positions import positions
from store.reader import Store


class CloudLab(MemoryLab):
    """A lab that hands out made-up clouds: row → (tokens, d)."""

    made: list[np.ndarray]

    def clouds(self, model: str, site: Site, rows: Any) -> tuple[list[np.ndarray], str]:
        return [self.made[row] for row in rows], "made up"


def lab_of(seed: int = 0, problems: int = 18, d: int = 32) -> tuple[CloudLab, np.ndarray]:
    """Planted clouds as prompts: pair i has rows 2i (en) and 2i + 1 (zh); the first two thirds are train."""
    source, target, mask = planted(seed, problems=problems, tokens=8, d=d, shared=5)
    rows = [
        {
            "id": f"{i}-{language}",
            "pair_id": f"{i}",
            "language": language,
            "category": "ab"[i % 2],
            "split": "train" if i < 2 * problems // 3 else "validation",
        }
        for i in range(problems)
        for language in ("en", "zh")
    ]
    model = from_parts(tiny("qwen3", seed=1, hidden_size=d), chatml(), "base")
    lab = CloudLab({"base": model}, {"base": []}, {"base": []}, pl.DataFrame(rows))
    lab.made = [cloud for both in zip(source, target, strict=True) for cloud in both]
    rng = np.random.default_rng(2)
    layers, heads, width = model.taps.n_layers, 3, 6
    lab.arrays["weights/base/kernel_right"] = np.linalg.qr(rng.normal(size=(layers, heads, d, width)))[0]
    lab.arrays["weights/base/kernel_sigma"] = np.sort(rng.uniform(1, 2, (layers, heads, width)))[..., ::-1]
    return lab, mask


def experiment(**changes: Any) -> Ard:
    return Ard(**{"model": "base", "layer": 1, "languages": ("en", "zh"), "steps": 30, **changes})


def test_a_run_is_the_fit_of_the_train_problems_judged_on_validation() -> None:
    lab, mask = lab_of()
    found = run(experiment(), lab)
    train, held = lab.made[:24], lab.made[24:]
    fit = fit_ard(train[::2], train[1::2], steps=30)
    table = found.table
    np.testing.assert_array_equal(table["log10_lengthscale"], fit.log_lengthscales / np.log(10.0))
    np.testing.assert_array_equal(found.tables["trace"]["objective"], fit.trace)
    wanted = hold_out(fit, held[::2], held[1::2], groups=["a", "b"] * 3)
    row = found.summary["fits"][0]
    assert row["held_out"]["p"] == wanted.p < 0.05
    assert row["held_out"]["p_within"] == wanted.p_within
    assert (found.summary["n_fitted"], found.summary["n_held_out"]) == (12, 6)
    assert mask[np.argsort(fit.log_lengthscales)[:5]].mean() >= 0.8
    assert table["energy"].null_count() == len(mask)
    assert found.summary["origin"] == "made up"


def test_all_problems_may_be_fitted_at_another_rate_and_then_nothing_is_tested() -> None:
    lab, _ = lab_of()
    usual = experiment(rate=0.05, fitted="train")
    assert usual == experiment()
    assert not {"rate", "fitted"} & set(usual.to_json())
    asked = experiment(rate=0.01, fitted="all")
    assert experiment_from_json(asked.to_json()) == asked
    found = run(asked, lab)
    fit = fit_ard(lab.made[::2], lab.made[1::2], steps=30, rate=0.01)
    np.testing.assert_array_equal(found.table["log10_lengthscale"], fit.log_lengthscales / np.log(10.0))
    slow = fit.log_lengthscales - fit_ard(lab.made[::2], lab.made[1::2], steps=30).log_lengthscales
    assert np.abs(slow).max() > 0.1
    assert (found.summary["n_fitted"], found.summary["n_held_out"]) == (18, 0)
    assert found.summary["fits"][0]["held_out"] is None


def test_starts_by_z_and_by_random_subspaces() -> None:
    lab, _ = lab_of()
    warm = run(experiment(start="svd", k=4, steps=3), lab)
    right, sigma = (lab.arrays[f"weights/base/kernel_{name}"][1] for name in ("right", "sigma"))
    energy = (subspace.multi_head_basis(right, sigma, 4) ** 2).sum(axis=1)
    np.testing.assert_allclose(warm.table["energy"], energy)
    np.testing.assert_allclose(warm.table["start"] * np.log(10.0), warm_start(energy))
    drawn = run(experiment(start="random", k=4, draws=3, steps=3), lab)
    assert drawn.table["draw"].unique().sort().to_list() == [0, 1, 2]
    assert drawn.tables["draws"].height == 3
    first, second = (drawn.table.filter(pl.col("draw") == i)["energy"].to_numpy() for i in (0, 1))
    assert first.sum() == pytest.approx(4)
    assert np.abs(first - second).max() > 0.01


def test_the_curve_is_told_while_it_falls_and_a_cancelled_fit_stops() -> None:
    lab, _ = lab_of()
    run(experiment(), lab)
    told = [r for r in lab.reported if "partial" in r]
    last = told[-1]
    assert (last["done"], last["total"]) == (30, 30)
    assert last["partial"]["trace"][0]["step"] == 0
    assert {"layer", "penalty", "trace"} == set(last["partial"])
    lab.stop_after = len(lab.reported)
    with pytest.raises(JobError, match="Cancelled after"):
        run(experiment(seed=1), lab)


def test_problems_are_those_with_one_prompt_in_each_language() -> None:
    lab, _ = lab_of()
    spec = experiment()
    np.testing.assert_array_equal(problem_rows(lab.prompts, spec, "train")[:2], [[0, 1], [2, 3]])
    swapped = problem_rows(lab.prompts, experiment(languages=("zh", "en")), "train")
    np.testing.assert_array_equal(swapped[0], [1, 0])
    one_kind = problem_rows(lab.prompts, experiment(category="b"), "validation")
    np.testing.assert_array_equal(one_kind, [[26, 27], [30, 31], [34, 35]])
    assert len(problem_rows(lab.prompts, experiment(problems=5), "train")) == 5
    doubled = pl.concat([lab.prompts, lab.prompts.head(1)])
    assert problem_rows(doubled, spec, "train")[0].tolist() == [2, 3]
    alone = lab.prompts.filter(pl.col("language") == "en")
    assert problem_rows(alone, spec, "train").shape == (0, 2)
    assert problem_rows(lab.prompts.drop("pair_id"), spec, "train").shape == (0, 2)
    lab.prompts = alone
    with pytest.raises(PatchError, match="Too few problems"):
        run(spec, lab)


def test_without_held_out_problems_nothing_is_tested() -> None:
    lab, _ = lab_of()
    lab.prompts = lab.prompts.with_columns(split=pl.lit("train"))
    assert run(experiment(steps=3), lab).summary["fits"][0]["held_out"] is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"languages": ("en", "en")}, "two different ones"),
        ({"start": "svd"}, "needs its dimension k"),
        ({"k": 3}, "needs its dimension k"),
        ({"start": "svd", "k": 3, "draws": 2}, "Only random starts"),
    ],
)
def test_unusable_experiments_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(PatchError, match=said):
        experiment(**changes)
    with pytest.raises(PatchError, match="Layer 9 is out of range"):
        run(experiment(layer=9), lab_of()[0])


def test_an_experiment_survives_json_and_says_what_it_is() -> None:
    spec = experiment(start="random", k=4, draws=20, penalty=0.1)
    assert experiment_from_json(spec.to_json()) == spec
    assert spec.models() == ("base",)
    assert "20 warm starts by random subspaces (k = 4)" in spec.describe()
    assert "λ = 0.1" in spec.describe()
    assert "warm start by Z" in experiment(start="svd", k=2).start_text()


def test_clouds_are_the_tokens_of_single_passes_in_any_order(tmp_path: Path) -> None:
    """Run by the model in mixed order and batches, or read from stored tokens: the same."""
    path = live_study.make_store(tmp_path, positions=("last_content", "tokens"))
    store = Store(path)
    lab = StoreLab(store, ModelCache("cpu"), lambda **_: None, lambda: False)
    rows, site = np.array([7, 2, 19, 4]), Site("resid_post", 2)
    stored, origin = lab.clouds("base", site, rows)
    assert origin == "stored float32"
    encoded = store.tokens("base")[rows]
    where = positions(encoded, "mean", None).indices
    lm, ids = lab.model("base"), lab.token_ids("base", rows)
    made = token_clouds(lm, ids, where, site, batch_tokens=64)
    assert len(batches([len(i) for i in ids], 64)) > 1
    for cloud, own, tokens, at in zip(stored, made, ids, where, strict=True):
        alone = token_clouds(lm, [tokens], [at], site, batch_tokens=64)[0]
        assert cloud.shape == own.shape == (len(at), lm.taps.d)
        # batches of other sizes sum in another order, float32
        np.testing.assert_allclose(own, alone, atol=1e-5)
        np.testing.assert_allclose(cloud, alone, atol=1e-5)
    with pytest.raises(JobError):
        token_clouds(lm, ids, where, site, batch_tokens=64, should_stop=lambda: True)


def test_the_demo_model_shares_something_across_languages() -> None:
    """A model that computes the same sum in two languages: held-out problems are paired."""
    whole = demo_lab()
    pairs = whole.prompts["pair_id"].unique(maintain_order=True).to_list()
    half = pl.col("pair_id").is_in(pairs[::2])
    lab = dataclasses.replace(
        whole,
        prompts=whole.prompts.with_columns(split=pl.when(half).then(pl.lit("train")).otherwise("split")),
    )
    found = run(experiment(layer=5, steps=40, problems=10, penalty=0.001), lab)
    row = found.summary["fits"][0]
    assert row["held_out"]["p"] < 0.01
    assert not row["collapsed"]
