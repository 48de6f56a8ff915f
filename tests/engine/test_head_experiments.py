"""Heads as experiments: the demo's planted heads, a null, tiny models with one changed head, cancelling."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from memory_lab import MemoryLab
from tiny_models import random_tokens, tiny

from engine.errors import JobError, PatchError
from engine.heads.map_spec import HeadMap
from engine.heads.spec import HeadSubsets
from engine.kinds import experiment_from_json
from engine.lab.experiment import ExperimentResult, Where
from engine.models.loading import from_parts

LAYER, HEAD, PAIRS = 1, 3, 12


def prompts() -> pl.DataFrame:
    rows = [
        {
            "id": f"p{pair}-{language}",
            "pair_id": f"p{pair}",
            "language": language,
            "split": "train" if pair < 6 else "validation",
        }
        for pair in range(PAIRS)
        for language in ("en", "zh")
    ]
    return pl.DataFrame(rows)


def lab(changed: int | None = HEAD) -> MemoryLab:
    """Two Qwen3 models that differ in the output projection of one head of block 1, or in nothing."""
    base = tiny("qwen3")
    tuned = copy.deepcopy(base)
    if changed is not None:
        columns = slice(changed * 16, (changed + 1) * 16)
        with torch.no_grad():
            tuned.model.layers[LAYER].self_attn.o_proj.weight[:, columns] *= 1.8
    models = {name: from_parts(model, name=name) for name, model in (("base", base), ("tuned", tuned))}
    ids = [random_tokens(1, 6 + i % 5, seed=i)[0].tolist() for i in range(2 * PAIRS)]
    at = [len(row) - 1 for row in ids]
    return MemoryLab(models, dict.fromkeys(models, ids), dict.fromkeys(models, at), prompts())


def wanted(**more: object) -> HeadSubsets:
    settings = {"target": "tuned", "source": "base", "component": "head_out", "layer": LAYER, "n_boot": 200}
    return HeadSubsets.from_json({**settings, **more})


def every(**more: object) -> HeadMap:
    settings = {"target": "tuned", "source": "base", "component": "head_out", "n_boot": 200}
    return HeadMap.from_json({**settings, **more})


@pytest.fixture(scope="module")
def found() -> ExperimentResult:
    return wanted().run(lab())  # type: ignore[return-value]


def test_the_changed_head_carries_everything_and_the_others_nothing(found: ExperimentResult) -> None:
    table, summary = found.table, found.summary
    assert summary["effect"]["shown"]
    rest = table.filter(pl.col("head") != HEAD)
    # same z, same projection: nothing is put in; what is left is rounding of one batch
    assert rest["kl"].abs().max() <= summary["effect"]["floor"] + 1e-7  # type: ignore[operator]
    assert rest["coverage"].abs().max() < 1e-2  # type: ignore[operator]
    one = table.filter(pl.col("head") == HEAD).row(0, named=True)
    assert one["coverage"] == pytest.approx(100, abs=0.01)
    assert one["rank"] == 1
    assert one["without_coverage"] == pytest.approx(0, abs=0.01)
    assert summary["ranking"][0] == summary["greedy"][0] == HEAD
    assert summary["carrying"]["heads"] == [HEAD]
    assert summary["carrying"]["localised"]
    assert table.sort("gradient")["head"][-1] == table.sort("direct")["head"][-1] == HEAD


def test_the_tables_agree_with_the_per_prompt_kls(found: ExperimentResult) -> None:
    rows = found.tables["prompts"].filter(pl.col("split") == "validation")
    alone = np.array(rows["kl_heads"].to_list())
    np.testing.assert_allclose(found.table["kl"].to_numpy(), alone.mean(0), rtol=1e-12)
    expected = 100 * alone.sum(0) / rows["kl_all"].sum()
    np.testing.assert_allclose(found.table["coverage"].to_numpy(), expected, rtol=1e-9)
    assert found.summary["effect"]["kl"] == pytest.approx(rows["kl_all"].mean())
    train = found.tables["prompts"].filter(pl.col("split") == "train")
    order = np.argsort(-np.array(train["kl_heads"].to_list()).mean(0), kind="stable").tolist()
    assert found.summary["ranking"] == order
    assert (found.summary["n_train"], found.summary["n_validation"]) == (12, 12)
    assert found.summary["interval"]["unit"] == "pair"


def test_pairs_interact_as_their_kls_say(found: ExperimentResult) -> None:
    pairs, table = found.tables["pairs"], found.table
    assert pairs.height == 6
    alone = dict(zip(table["head"].to_list(), table["coverage"].to_list(), strict=True))
    for row in pairs.iter_rows(named=True):
        extra = row["coverage"] - alone[row["first"]] - alone[row["second"]]
        assert row["interaction"] == pytest.approx(extra, abs=1e-6)
        assert row["interaction_low"] <= row["interaction"] + 1e-9
        assert row["interaction"] <= row["interaction_high"] + 1e-9


def test_curves_are_of_sets_chosen_on_train(found: ExperimentResult) -> None:
    curve = found.tables["curve"]
    assert curve.filter(pl.col("kind") == "greedy")["k"].to_list() == [1, 2, 3]
    ranked = curve.filter(pl.col("kind") == "ranked")["heads"].to_list()
    assert ranked == [found.summary["ranking"][:k] for k in (1, 2, 3)]
    random = curve.filter((pl.col("kind") == "random") & (pl.col("k") == 1)).row(0, named=True)
    # four heads: all sets of one are drawn, so the mean over draws is the mean over heads
    assert random["coverage"] == pytest.approx(found.table["coverage"].mean(), rel=1e-9)


def test_equal_models_have_nothing_to_cover() -> None:
    for result in (wanted().run(lab(None)), wanted(source="tuned").run(lab())):
        effect = result.summary["effect"]
        assert not effect["shown"]
        assert "nothing to cover" in effect["reason"]
        assert effect["kl"] <= 1e-6
        assert set(result.tables) == {"table", "prompts"}
        assert "coverage" not in result.tables["table"].columns


def test_values_through_the_targets_own_projection_do_not_see_a_changed_projection() -> None:
    """The planted change is in W_O alone: z is the same in both models."""
    assert not wanted(component="head_z").run(lab()).summary["effect"]["shown"]


def test_moment_matching_brings_train_means_together() -> None:
    """A projection that is scaled by 1.8 is undone by matching every dimension's mean and spread."""
    matched = wanted(vectors="raw").run(lab())
    assert not matched.summary["effect"]["shown"]


def test_the_map_holds_every_block_and_says_where_nothing_is_to_cover() -> None:
    here = lab()
    result = every().run(here)
    blocks, table = result.tables["blocks"], result.tables["table"]
    assert table.height == 3 * 4
    assert blocks["shown"].to_list()[:2] == [False, True]
    assert table.filter(pl.col("layer") == 0)["coverage"].is_null().all()
    assert result.summary["top"][0] == {"layer": LAYER, "head": HEAD}
    partial = [told["partial"]["cells"] for told in here.reported if "partial" in told]
    assert [len(cells) for cells in partial] == [4, 8, 12]
    done = [told["done"] for told in here.reported if told.get("done") is not None]
    assert done == sorted(done)
    assert done[-1] == here.reported[-2].get("total", done[-1])


def test_the_map_equals_the_blocks_run_one_by_one() -> None:
    here = lab()
    table = every().run(here).tables["table"].filter(pl.col("layer") == LAYER)
    one = wanted().run(here).tables["table"]
    for name in ("kl", "coverage", "low", "high", "rank"):
        np.testing.assert_array_equal(table[name].to_numpy(), one[name].to_numpy())


def test_both_can_be_cancelled_between_batches() -> None:
    for experiment in (wanted(), every()):
        here = lab()
        here.stop_after = 3
        with pytest.raises(JobError, match=r"ancelled"):
            experiment.run(here)


def test_progress_never_goes_back() -> None:
    here = lab()
    wanted().run(here)
    shares = [t["done"] / t["total"] for t in here.reported if t.get("total")]
    assert len(shares) > 1
    assert shares == sorted(shares)
    # sets that were asked before are not run again, and among four heads most were
    assert 0.25 < shares[-1] <= 1


def test_specs_are_data() -> None:
    for experiment in (wanted(where={"language": "zh"}), every(vectors="raw")):
        assert experiment_from_json(json.loads(json.dumps(experiment.to_json()))) == experiment
        assert experiment.models() == ("tuned", "base")
    assert every().at(2).component == "head_out"
    assert every(where={"language": "zh"}).at(2).where == Where(language="zh")
    with pytest.raises(PatchError, match="cannot be patched"):
        every(position="mean")
    with pytest.raises(PatchError, match="component"):
        wanted(component="attn_out")


def test_heads_that_do_not_correspond_are_refused() -> None:
    here = lab()
    here.models["base"] = from_parts(tiny("qwen3", num_attention_heads=2, num_key_value_heads=2), name="base")
    with pytest.raises(PatchError, match="don't correspond"):
        wanted().run(here)
    with pytest.raises(PatchError, match="out of range"):
        wanted(layer=7).run(lab())


ROOT = Path(__file__).resolve().parents[2]
PLANTED = json.loads((ROOT / "demo/planted.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's base and tuned models on all its prompts, without activations but the heads'."""
    from app.build.build import build
    from engine.study.study import Study

    study = Study.load(ROOT / "studies/demo.toml").with_overrides(
        components=["head_z"], positions=["decision"], limit=140
    )
    pair = {name: study.models[name] for name in ("base", "tuned")}
    path = tmp_path_factory.mktemp("heads") / "store"
    build(study.model_copy(update={"models": pair, "contrasts": {}, "subspaces": None}), path, quiet=True)
    return path


def test_the_demos_planted_heads_come_out_on_top(store: Path) -> None:
    from app.live.run import run_live

    block, heads = PLANTED["attention"]["layer"], PLANTED["attention"]["heads"]
    settings = {"target": "tuned", "source": "base", "component": "head_out", "position": "decision"}
    _, result = run_live(str(store), experiment_from_json({"job": "heads", "layer": block, **settings}))
    table, summary = result.tables["table"], result.summary
    others = table.filter(~pl.col("head").is_in(heads))
    assert others.height == 6
    assert others["kl"].abs().max() <= summary["effect"]["floor"]
    assert others["high"].max() < 0.01
    assert set(summary["ranking"][:2]) == set(summary["greedy"][:2]) == set(heads)
    assert summary["carrying"]["heads"] == sorted(heads)
    assert summary["carrying"]["localised"]
    two = result.tables["curve"].filter((pl.col("kind") == "ranked") & (pl.col("k") == 2)).row(0, named=True)
    # only these two differ: what is left is rounding of KLs of 1e-7 nats among 0.1
    assert two["coverage"] == pytest.approx(100, abs=0.01)
    assert summary["correlations"]["gradient"]["p"] < 0.05
    _, mapped = run_live(str(store), experiment_from_json({"job": "head_map", **settings}))
    assert {(t["layer"], t["head"]) for t in mapped.summary["top"][:2]} == {(block, head) for head in heads}
    assert [b["shown"] for b in mapped.summary["blocks"]][: block + 1] == [False] * block + [True]


def test_one_head_has_no_sets_and_says_so() -> None:
    base = tiny("qwen3", num_attention_heads=1, num_key_value_heads=1)
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned.model.layers[LAYER].self_attn.o_proj.weight.mul_(1.8)
    single = lab()
    single.models = {name: from_parts(m, name=name) for name, m in (("base", base), ("tuned", tuned))}
    with pytest.raises(PatchError, match="one head"):
        wanted().run(single)
    assert every().run(single).summary["top"] == [{"layer": LAYER, "head": 0}, {"layer": 2, "head": 0}]


def test_a_moment_matched_bias_is_the_target_s_own() -> None:
    """Models that differ in nothing but the output bias: put in as it is it moves the next token."""
    base = tiny("llama")
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned.model.layers[LAYER].self_attn.o_proj.bias.add_(0.3)
    biased = lab()
    biased.models = {name: from_parts(m, name=name) for name, m in (("base", base), ("tuned", tuned))}
    literal, raw = (wanted(vectors=v).run(biased).summary for v in ("literal", "raw"))
    assert literal["effect"]["shown"]
    assert "biases differ" in literal["notes"][0]
    assert not raw["effect"]["shown"]
    assert raw["notes"] == []
