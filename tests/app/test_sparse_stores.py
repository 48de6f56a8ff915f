"""Stores that lack what most have: a language, or a position with one row a prompt; and failed ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest
from tiny_study import NOUNS, write_study

import precompute
from app import main
from app.build.verify import verify
from app.frame.opened import Opened, read_facts
from app.frame.selection import changed, defaults
from app.live.run import run_live
from app.residual_updates import panels as updates
from engine.errors import StoreError
from engine.kinds import experiment_from_json
from engine.study.study import Study
from store.files import seal
from store.reader import Store

Open = Callable[..., AppTest]
PAGES = [name for entries in main.PAGES.values() for name, *_ in entries]
NEED_A_ROW = ("similarity", "transport", "residual_updates", "geometry")
PATCH = {"job": "patch", "target": "tuned", "source": "base", "component": "resid_post", "layer": 1}
PATCH |= {"kind": "literal", "split": "all", "n_boot": 100}


def made(folder: Path, languages: Callable[[int], str | None], n: int = 16, **capture: Any) -> Path:
    """The study file of a store beside it, of prompts without pairs."""
    study = write_study(folder, **capture)
    rows = [
        {"id": f"q{i}", "text": f"Tom has {i} {NOUNS[i % 8]} and buys {3 * i} more", "language": languages(i)}
        for i in range(n)
    ]
    kept = [{k: v for k, v in row.items() if v is not None} for row in rows]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, kept)), encoding="utf-8")
    assert precompute.main([str(study), "--store", str(folder / "store")]) == 0
    return study


@pytest.fixture(scope="module")
def tokens_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    return made(folder, lambda _: "en", positions=["tokens"]).parent / "store"


def words(app: AppTest) -> str:
    assert not app.exception
    return "\n".join(m.value for m in app.markdown)


@pytest.mark.parametrize("page", PAGES)
def test_every_page_opens_a_store_of_tokens_alone(open_app: Open, tokens_only: Path, page: str) -> None:
    said = words(open_app(tokens_only, page))
    assert ":material/report:" not in said
    if page in NEED_A_ROW:
        assert "This page needs one row per prompt" in said
        assert "`tokens`" in said
        assert "Add a position such as `last_content`" in said


def test_a_report_of_tokens_alone_says_what_to_add(
    tokens_only: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert precompute.main(["report", str(tokens_only), "--out", str(tmp_path / "report")]) == 1
    assert "add one to capture.positions" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


@pytest.fixture(scope="module", params=["none", "some"])
def spoken(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def language(i: int) -> str | None:
        return None if request.param == "none" or i % 2 else ("en", "de")[i // 2 % 2]

    study = made(tmp_path_factory.mktemp(request.param), language, 64, positions=["last_content"])
    return study.parent / "store"


@pytest.mark.parametrize("page", ["similarity", "transport", "residual_updates", "prompts", "overview"])
def test_prompts_without_a_language_are_compared_like_others(open_app: Open, spoken: Path, page: str) -> None:
    assert ":material/report:" not in words(open_app(spoken, page))


def test_a_report_of_prompts_without_a_language_is_whole(spoken: Path, tmp_path: Path) -> None:
    assert precompute.main(["report", str(spoken), "--out", str(tmp_path / "report")]) == 0
    (written,) = (tmp_path / "report").glob("*.md")
    text = written.read_text(encoding="utf-8")
    assert "tuned differs from base from block 0 on (resid_post)" in text
    assert "not finite" not in text


@pytest.fixture
def failed(tmp_path: Path) -> Path:
    """The study of a store one of whose self-checks is marked as failed."""
    study = made(tmp_path, lambda _: "en", positions=["decision"])
    manifest = Store(study.parent / "store").manifest
    checks = [c | {"passed": c["name"] != "batched = single prompt"} for c in manifest["self_checks"]]
    data = {k: v for k, v in manifest.items() if k != "crc32c"} | {"self_checks": checks}
    (study.parent / "store" / "manifest.json").write_bytes(seal(data))
    return study


def test_a_store_that_failed_its_checks_is_run_on_only_when_told(
    failed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = failed.parent / "store"
    command = ["run", str(store), "--condition", json.dumps(PATCH)]
    assert precompute.main(command) == 1
    said = capsys.readouterr().err
    assert "failed its own checks: nothing is run on it" in said
    assert "base: batched = single prompt; tuned: batched = single prompt" in said
    assert not (store / "runs").exists()
    with pytest.raises(StoreError, match="nothing is run on it"):
        run_live(str(store), experiment_from_json(PATCH))
    assert precompute.main([*command, "--despite-failed-checks"]) == 0
    assert len(list((store / "runs").iterdir())) >= 1


def test_verify_tells_failed_checks(failed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(Study.load(failed), failed.parent / "store") == 1
    said = capsys.readouterr()
    assert "FAILED base: batched = single prompt" in said.out + said.err


def test_overview_of_a_failed_store_says_so(open_app: Open, failed: Path) -> None:
    app = open_app(failed.parent / "store")
    assert [error.value.split(":")[0] for error in app.error] == ["This store failed its own checks"]


@pytest.fixture(scope="module", params=["parts", "states"])
def strided(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store of blocks 0 and 2 of 3, and one of all: with what blocks add, or with the stream alone."""
    folder = tmp_path_factory.mktemp(request.param)
    parts = ["resid", "attn_out", "mlp_out"] if request.param == "parts" else ["resid"]
    study = made(folder, lambda i: ("en", "de")[i % 2], 32, positions=["decision", "mean"], components=parts)
    some = folder / "some"
    assert precompute.main([str(study), "--store", str(some), "--stride", "2"]) == 0
    return some, folder / "store"


def test_residual_updates_are_those_of_the_steps_that_a_store_has(strided: tuple[Path, Path]) -> None:
    tables = []
    for path in strided:
        st.cache_resource.clear()
        st.cache_data.clear()
        store = Store(path)
        opened = Opened(str(path), store, read_facts(store))
        selection = updates.effective(opened, changed(defaults(opened.facts), layer=1, ref=1))
        assert selection.layer == (1 if path == strided[1] else 0)
        panels = [made for make in updates.PANELS if (made := make(opened, selection)) is not None]
        for panel in panels:
            scope: dict[str, Any] = {}
            exec(panel.code, scope)
            assert panel.table.equals(scope["table"])
        tables.append({panel.name: panel for panel in panels})
    some, every = (one["updates"].table for one in tables)
    assert some["layer"].to_list() == [0, 2]
    assert some["update"].to_list() == ["−1→0", "1→2"]
    wanted = every.filter(pl.col("layer").is_in([0, 2]))
    np.testing.assert_allclose(some["value"], wanted["value"], rtol=1e-6)
    np.testing.assert_allclose(some["mean_length"], wanted["mean_length"], rtol=1e-6)
    assert "The store has 2 of 3 steps (−1→0, 1→2)" in tables[0]["updates"].caption
    assert "steps" not in tables[1]["updates"].caption
    found: Any = SimpleNamespace(blocks=(0, 1), labels=("−1→0", "0→1"))
    assert updates._steps(2, found) == ""  # of this model, whatever the depth of others
    assert updates._steps(6, found).startswith(" The store has 2 of 6 steps (−1→0, 0→1)")


@pytest.mark.parametrize("page", PAGES)
def test_every_page_opens_a_store_of_each_second_block(
    open_app: Open, strided: tuple[Path, Path], page: str
) -> None:
    assert ":material/report:" not in words(open_app(strided[0], page))
