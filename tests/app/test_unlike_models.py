"""Models of other depth, shapes or origin in one store: what can be compared is shown, the rest is said."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import polars as pl
import pytest
import torch
from drawn_panels import drawn
from live_study import write_prompts
from streamlit.testing.v1 import AppTest
from tiny_models import fresh_jamba, tiny
from tiny_tokenizers import chatml, llama3

from app.analyses import ANALYSES
from app.build.build import build
from app.frame import related
from app.frame.analysis import caution
from app.frame.opened import Opened, read_facts
from app.frame.selection import defaults, update
from app.report.build import build as report_of
from app.weights import analysis, differences, panels
from app.weights import tables as q
from engine.models.loading import load
from engine.study.study import Study
from engine.weights.origin import compare

Open = Callable[..., AppTest]
NAMES = ("base", "tuned", "shallow", "deep", "random", "narrow", "other")
BLOCKS = 4


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """base, a fine-tune, without its block 2, with one block more, and three that have nothing of it."""
    folder = tmp_path_factory.mktemp("unlike")
    qwen, llama = chatml(), llama3()
    size = {"vocab_size": len(qwen), "max_position_embeddings": 256}
    base = tiny("qwen3", seed=3, num_hidden_layers=BLOCKS, **size)
    tuned, shallow = copy.deepcopy(base), copy.deepcopy(base)
    with torch.no_grad():
        tuned.model.layers[1].mlp.down_proj.weight.mul_(1.5)
    del shallow.model.layers[2]
    shallow.config.num_hidden_layers = BLOCKS - 1
    for number, layer in enumerate(shallow.model.layers):
        layer.self_attn.layer_idx = number
    deep = tiny("qwen3", seed=3, num_hidden_layers=BLOCKS + 1, **size)
    deep.load_state_dict(base.state_dict(), strict=False)
    models = {
        "base": base,
        "tuned": tuned,
        "shallow": shallow,
        "deep": deep,
        "random": tiny("qwen3", seed=4, num_hidden_layers=BLOCKS, **size),
        "narrow": tiny("qwen3", seed=3, num_hidden_layers=BLOCKS, hidden_size=24, **size),
        "other": tiny(
            "llama", seed=5, num_hidden_layers=2, vocab_size=len(llama), max_position_embeddings=256
        ),
    }
    for name in NAMES:
        if hasattr(models[name].config, "layer_types"):
            models[name].config.layer_types = ["full_attention"] * models[name].config.num_hidden_layers
        models[name].save_pretrained(folder / "models" / name)
        (llama if name == "other" else qwen).save_pretrained(folder / "models" / name)
    write_prompts(folder / "prompts.jsonl")
    data = {
        "name": "unlike",
        "models": {name: {"path": f"models/{name}", "device": "cpu"} for name in NAMES},
        "prompts": {"files": ["prompts.jsonl"], "validation": 0.5, "date": "2024-07-26"},
        "capture": {"positions": ["last_content", "decision"], "unit_prompts": 8},
    }
    return Study.from_dict(json.loads(json.dumps(data)), folder)


@pytest.fixture(scope="module")
def opened(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    path = tmp_path_factory.mktemp("store") / "store"
    store = build(study, path, quiet=True)
    return Opened(str(path), store, read_facts(store))


VERDICTS = {
    "tuned": "related",
    "shallow": "partly",
    "deep": "partly",
    "random": "unrelated",
    "narrow": "not comparable",
    "other": "unrelated",
}


@pytest.mark.parametrize(("model", "verdict"), VERDICTS.items())
def test_a_store_tells_of_every_model_what_the_models_tell(
    study: Study, opened: Opened, model: str, verdict: str
) -> None:
    found = related.of_first(opened, model)
    assert found is not None
    assert found.verdict == verdict
    if (
        model != "other"
    ):  # the store compares other's embedding by token string, a loaded model has no tokenizer
        direct = compare(load(study.models["base"], "base").model, load(study.models[model], model).model)
        assert (found.verdict, found.alike, found.compared) == (direct.verdict, direct.alike, direct.compared)
        assert found.distance == pytest.approx(direct.distance, nan_ok=True)
        assert found.cosine == pytest.approx(direct.cosine, nan_ok=True)


def test_pairs_without_the_first_model_go_by_way_of_it(opened: Opened) -> None:
    said = {
        ("tuned", "tuned"): "related",
        ("tuned", "base"): "related",
        ("tuned", "shallow"): "partly",
        ("random", "tuned"): "unrelated",
        ("random", "other"): "unknown",
        ("shallow", "deep"): "unknown",
    }
    assert {pair: related.of_pair(opened, *pair) for pair in said} == said
    assert related.notice(opened, "base", "tuned") == ""
    said_of = {
        ("base", "random"): "base and random are not shown to have a common origin.",
        ("base", "narrow"): "base and narrow are not shown to have a common origin.",
        ("deep", "base"): "deep and base have a common origin in part only.",
        ("random", "tuned"): "Of random and tuned only tuned is shown to have a common origin with base.",
        (
            "tuned",
            "deep",
        ): "Of tuned and deep only tuned is shown to have a common origin with base, deep in part.",
        ("random", "other"): "It is not known whether random and other are a base and its fine-tune.",
    }
    for pair, text in said_of.items():
        assert related.notice(opened, *pair).startswith(text)


def test_a_fixed_start_in_a_store_shows_no_common_origin() -> None:
    """Two fresh recurrent models: a large A_log, the same in both, beside unrelated matrices."""
    one, other = fresh_jamba(0), fresh_jamba(1)
    pairs = [
        (name, value.detach().double(), other.get_parameter(name).detach().double())
        for name, value in one.named_parameters()
    ]
    assert any(name.endswith("A_log") and torch.equal(a, b) for name, a, b in pairs)
    norms = [
        {"name": name, "layer": int(name.split(".")[2]) if ".layers." in name else None,
         "shape": list(a.shape), "norm": a.norm().item()}
        for name, a, _ in pairs
    ]  # fmt: skip
    deltas = [
        {"name": name, "norm": (b - a).norm().item(), "relative": ((b - a).norm() / a.norm()).item(),
         "tuned": b.norm().item(), "rows": None}
        for name, a, b in pairs if not torch.equal(a, b)
    ]  # fmt: skip
    tables = {"weight-norms": pl.DataFrame(norms), "weight-delta-other": pl.DataFrame(deltas)}
    store = SimpleNamespace(table_names=lambda: list(tables), table=tables.__getitem__)
    facts = SimpleNamespace(models=("one", "other"), n_layers={"one": 3, "other": 3})
    found = related.of_first(cast(Opened, SimpleNamespace(store=store, facts=facts)), "other")
    direct = compare(one, other)
    assert found is not None
    assert (found.verdict, found.alike, found.compared) == ("unrelated", 0, direct.compared)
    assert found.cosine == pytest.approx(direct.cosine, abs=1e-6)


def test_a_store_of_before_tells_what_its_norms_allow(opened: Opened) -> None:
    """Without the second model's norms a small change is still related, and a large one unknown."""
    store = copy.copy(opened.store)
    kept = dict.fromkeys(())
    store._tables = kept | {
        f"weight-delta-{name}": opened.store.table(f"weight-delta-{name}").drop("tuned") for name in NAMES[1:]
    }
    older = replace(opened, store=store)
    tuned, random = related.of_first(older, "tuned"), related.of_first(older, "random")
    assert tuned is not None
    assert random is not None
    assert (tuned.verdict, tuned.exact, random.verdict) == ("related", False, "unknown")
    assert "cosine at least" in related.sentence(older, "tuned")
    assert "can't be told from this store" in related.sentence(older, "random")


def titles(opened: Opened, model: str, layer: int = 1) -> dict[str, str]:
    chosen = update(defaults(opened.facts), opened.facts, a="base", b=model, layer=layer)
    found = panels.panels(opened, chosen)
    for panel in found:
        drawn(panel)
    return {panel.name: panel.title for panel in found}


def test_what_can_not_be_compared_is_not_said_to_be_equal(opened: Opened) -> None:
    blocks = {name: titles(opened, name)["weight-blocks"] for name in NAMES[1:]}
    assert blocks["tuned"].startswith("tuned changes block 1 only by ")
    assert blocks["shallow"].startswith("shallow changes block 2 by ")
    assert blocks["shallow"].endswith("; block 3 can't be compared")
    assert blocks["deep"] == (
        "deep and base have the same weights in every block that can be compared; block 4 can't be compared"
    )
    assert blocks["random"].startswith("random changes every block, most ")
    assert blocks["other"].endswith("; blocks 2-3 can't be compared; blocks 0-1 in part only")
    assert "every block that can be compared" in blocks["other"]
    for name, part in (("shallow", "3"), ("narrow", "0"), ("other", "3")):
        assert "can't be told" in titles(opened, name, int(part))["weight-heads"]
        assert "only" not in blocks[name].replace("in part only", "")
    assert titles(opened, "tuned")["weight-heads"] == "tuned changes no output projection"


def test_tables_leave_empty_what_can_not_be_compared(opened: Opened) -> None:
    found = q.by_block(opened, ("shallow", "deep"))
    rows = {(series, layer): (value, lost) for layer, series, _, value, lost in found.iter_rows()}
    own = 11  # tensors of a block
    assert rows["shallow", 0] == rows["shallow", 1] == rows["deep", 3] == (0.0, 0)
    assert rows["shallow", 3] == rows["deep", 4] == (None, own)
    assert rows["shallow", 2][0] == pytest.approx(2**0.5, rel=0.2), "another block stands there"
    cells = q.grid(opened, "shallow", "relative")
    assert cells.filter(pl.col("layer") == 3)["value"].null_count() == cells["part"].n_unique()
    assert set(cells.filter(pl.col("layer") < 2)["value"]) == {0.0}
    assert q.grid(opened, "shallow", "norm").filter(pl.col("layer") == 3)["value"].is_null().all()


def test_the_report_says_the_same(opened: Opened) -> None:
    chosen = update(defaults(opened.facts), opened.facts, a="base", b="shallow")
    panel = differences.panel(opened, "shallow")
    assert panel is not None
    drawn(panel)
    assert panel.title.endswith("; 11 can't be compared")
    assert "only" not in panel.title
    (equal,) = analysis.chapter(opened, update(chosen, opened.facts, b="deep"))
    assert equal.text == "No weight of deep that can be compared differs from base; 11 can't be compared"  # type: ignore[union-attr]
    made = {section.name: section for section in report_of(opened, chosen).sections}
    first = made["weights"].blocks[0]
    assert first.text.startswith(
        "base and shallow have a common origin in part only."
    ) or first.text.startswith(  # type: ignore[union-attr]
        "shallow and base have a common origin in part only."
    )
    assert any(
        "have a common origin in part: 15 of 29" in getattr(b, "text", "") for b in made["compared"].blocks
    )


def said(app: AppTest) -> str:
    assert not app.exception
    return "\n".join(str(one.value) for one in (*app.markdown, *app.caption, *app.warning))


def test_overview_says_of_every_model_where_it_comes_from(opened: Opened, open_app: Open) -> None:
    pairs = {
        name: said(open_app(opened.path, "overview", a="base", b=name))
        for name in ("tuned", "random", "narrow")
    }
    assert "tuned and base have a common origin. ‖ΔW‖ ÷ ‖W‖ is 0.0" in pairs["tuned"]
    assert "100 % of the" in pairs["tuned"]
    apart = "random and base are not shown to have a common origin (0 of 29 weight matrices are alike). ‖ΔW‖"
    assert apart in pairs["random"]
    apart = "narrow and base are not shown to have a common origin (no weight matrices have one shape)"
    assert apart in pairs["narrow"]
    assert not any("neither is" in text for text in pairs.values())


def test_analyses_that_presuppose_a_fine_tune_are_marked(opened: Opened) -> None:
    names = {one.name for one in ANALYSES if one.tuned is not None}
    assert names == {"weights", "subspaces", "weight_steering", "residual_updates", "principal_differences"}
    for b, said in (("random", True), ("tuned", False)):
        chosen = update(defaults(opened.facts), opened.facts, a="base", b=b)
        assert {bool(caution(one, opened, chosen)) for one in ANALYSES if one.tuned is not None} == {said}


@pytest.mark.parametrize("page", ["weights", "weight_steering", "residual_updates"])
def test_pages_that_presuppose_a_fine_tune_say_so_of_other_pairs(
    opened: Opened, open_app: Open, page: str
) -> None:
    apart = said(open_app(opened.path, page, a="base", b="random"))
    assert "not shown to have a common origin" in apart
    assert "base and its fine-tune" not in said(open_app(opened.path, page, a="base", b="tuned"))


@pytest.mark.parametrize(
    "page", ["similarity", "transport", "patching", "heads", "geometry", "residual_updates"]
)
def test_pages_over_layers_open_on_models_of_other_depth(opened: Opened, open_app: Open, page: str) -> None:
    for model in ("shallow", "deep", "other"):
        said(open_app(opened.path, page, a="base", b=model))
