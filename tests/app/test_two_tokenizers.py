"""A pair of models with two tokenizers, through every page: nothing compares token ids."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from live_study import BLOCKS, make_study
from streamlit.testing.v1 import AppTest
from tiny_models import tiny
from tiny_tokenizers import llama3

from app import main
from app.behaviour import view as behaviour_view
from app.build.build import build
from app.frame.opened import Opened, read_facts
from app.frame.selection import defaults, update
from app.heads import view as heads_view
from app.live.headless import run_all
from app.patch_map import view as patch_map_view
from app.patching import table as patch_table
from app.rank import view as rank_view
from app.report.command import report
from app.steering import view as steering_view
from app.tokenwise import view as tokenwise_view
from app.tokenwise.prompt import read_alike
from store.reader import Store
from store.runs import RunLog

Open = Callable[..., AppTest]
PAIR = {"a": "base", "b": "other"}
PAGES = [name for entries in main.PAGES.values() for name, *_ in entries]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of one architecture with a tokenizer each, their store, and one run of every kind in it."""
    folder = tmp_path_factory.mktemp("tokenizers")
    make_study(folder)
    tokenizer = llama3()
    model = tiny(
        "qwen3", seed=8, num_hidden_layers=BLOCKS, vocab_size=len(tokenizer), max_position_embeddings=256
    )
    model.save_pretrained(folder / "models/other")
    tokenizer.save_pretrained(folder / "models/other")
    study = make_study(folder)
    pair = {name: study.models[name] for name in PAIR.values()}
    path = folder / "store"
    build(study.model_copy(update={"models": pair}), path, quiet=True)
    opened = opening(path)
    chosen = update(defaults(opened.facts), opened.facts, **PAIR, site="attn_out", layer=2)
    wanted = [
        patch_table.experiment_of(chosen),
        rank_view.experiment_of(chosen),
        steering_view.experiment_of(chosen),
        heads_view.experiment_of(chosen),
        *behaviour_view.wanted(chosen, [], ""),
    ]
    failed = run_all(str(path), wanted, device="cpu", quiet=True)
    assert not failed, [str(error) for _, error in failed]
    return path


def opening(path: Path) -> Opened:
    found = Store(path)
    return Opened(str(path), found, read_facts(found))


@pytest.mark.parametrize("page", PAGES)
def test_every_page_works(open_app: Open, store: Path, page: str) -> None:
    app = open_app(store, page, **PAIR, site="attn_out", layer="2")
    said = " ".join(str(block.value) for block in (*app.markdown, *app.title, *app.caption))
    assert not app.exception, [e.value for e in app.exception]
    assert "Something went wrong" not in said
    assert "Traceback" not in said


def test_what_reads_both_models_token_by_token_is_not_offered(store: Path) -> None:
    opened = opening(store)
    two = update(defaults(opened.facts), opened.facts, **PAIR)
    assert tokenwise_view.planned(opened, two) == []
    assert not read_alike(opened, ("base", "other"), opened.store.prompts["id"].to_list())
    assert read_alike(opened, ("base", "base"), opened.store.prompts["id"].to_list())
    within = patch_map_view.planned(opened, two)
    assert all(one.source == one.target for one in within)


def test_the_tokenizers_differ_and_tokens_are_matched_by_string(store: Path) -> None:
    """The same strings stand under other ids: matched by id, hardly any would be shared."""
    opened = Store(store)
    both = opened.table("vocabulary-base").join(opened.table("vocabulary-other"), on="token", suffix="_other")
    assert both.height > 20
    assert (both["token_id"] != both["token_id_other"]).mean() > 0.5  # type: ignore[operator]
    counts = opened.table("shared-vocabulary").filter((pl.col("a") == "base") & (pl.col("b") == "other"))
    assert counts["shared"][0] > counts["same_id"][0]


def test_every_run_was_kept_and_the_report_has_them(store: Path, tmp_path: Path) -> None:
    listed = RunLog(store).list()
    assert listed["problem"].null_count() == listed.height
    assert set(listed["job"]) == {"mapped", "rank", "steering", "heads", "behaviour"}
    page = report(str(store), tmp_path / "report", "other,base").read_text(encoding="utf-8")
    for run_id in listed["run_id"]:
        assert run_id in page
