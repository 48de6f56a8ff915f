"""Every page in every state a store can be in: there is always a designed answer, never a traceback."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from live_results import live_result
from planted_store import CHECKS, build_store, remove_arrays
from streamlit.testing.v1 import AppTest

from app import main
from app.frame import export
from app.frame.opened import read_facts
from app.frame.panel import parted
from app.frame.selection import defaults, update
from app.live.jobs import JobResult
from app.patching import replacement as patch_view
from store.reader import Store
from store.runs import RunLog

Open = Callable[..., AppTest]
PAGES = [name for entries in main.PAGES.values() for name, *_ in entries]
ANALYSES = [name for name in PAGES if name not in {name for name, *_ in main.PAGES["Study"]}]


def text(app: AppTest) -> str:
    """Everything a reader can read."""
    assert not app.exception, [e.value for e in app.exception]
    return "\n".join(
        [*(t.value for t in app.title), *(m.value for m in app.markdown), *(c.value for c in app.caption)]
    )


def went_well(app: AppTest) -> bool:
    said = text(app)
    return "Something went wrong" not in said and ":material/report:" not in said


@pytest.mark.parametrize("page", PAGES)
def test_a_finished_store_shows_every_page(open_app: Open, planted: Path, page: str) -> None:
    app = open_app(planted, page)
    assert went_well(app), text(app)
    assert len(app.title) == 1


@pytest.mark.parametrize("page", PAGES)
def test_without_a_store_the_page_says_how_to_name_one(open_app: Open, page: str) -> None:
    app = open_app(None, page)
    assert "No activation store was named" in text(app)
    assert "streamlit run app/main.py -- --store runs/demo" in [c.value for c in app.code]


def test_a_wrong_path_says_which_and_how_to_make_it(open_app: Open, tmp_path: Path) -> None:
    app = open_app(tmp_path / "nowhere")
    assert "does not exist" in text(app)
    assert "nowhere" in text(app)
    place = shlex.quote(str(tmp_path / "nowhere"))
    assert [c.value for c in app.code] == [f"python precompute.py studies/demo.toml --store {place}"]


def test_a_folder_that_is_no_store(open_app: Open, tmp_path: Path) -> None:
    app = open_app(tmp_path)
    assert "There is no store at" in text(app)


def test_an_unfinished_store_says_how_to_go_on(open_app: Open, tmp_path: Path) -> None:
    store = build_store(tmp_path / "half", finish=False)
    app = open_app(store, "similarity")
    assert "not finished" in text(app)
    assert "goes on where it stopped" in text(app)


def test_a_damaged_manifest_is_named(open_app: Open, own_store: Path) -> None:
    (own_store / "manifest.json").write_text('{"format": "patch')
    said = text(open_app(own_store))
    assert "manifest" in said
    assert "Traceback" not in said


def test_a_flipped_byte_is_named_with_its_array_and_chunk(open_app: Open, own_store: Path) -> None:
    shard = max((own_store / "grams/base/last_content/resid").glob("c*"), key=lambda p: p.stat().st_size)
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 0xFF
    shard.write_bytes(bytes(data))
    app = open_app(own_store, "similarity")
    assert "grams/base/last\\_content/resid" in text(app)
    assert "chunk" in text(app)
    assert "Similarity" in app.title[0].value  # the frame around it still stands


@pytest.mark.parametrize("page", ANALYSES)
def test_failed_self_checks_block_the_analyses(open_app: Open, tmp_path: Path, page: str) -> None:
    failed = {**CHECKS[0], "value": 0.25, "passed": False}
    store = build_store(tmp_path / "failed", checks=[failed, CHECKS[1]])
    app = open_app(store, page)
    said = text(app)
    assert "failed its own checks" in said
    assert "**self-patch KL = 0**: 0.25, limit 1e-06" in said
    assert not app.slider


def test_failed_self_checks_leave_the_overview(open_app: Open, tmp_path: Path) -> None:
    failed = {**CHECKS[0], "value": 0.25, "passed": False}
    app = open_app(build_store(tmp_path / "failed", checks=[failed]))
    assert went_well(app)
    assert app.metric


def test_no_self_checks_block_too(open_app: Open, tmp_path: Path) -> None:
    app = open_app(build_store(tmp_path / "unchecked", checks=[]), "similarity")
    assert "has no self-checks" in text(app)


def test_an_unexpected_error_gets_an_id_that_the_log_has(
    open_app: Open, planted: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("hidden detail")

    monkeypatch.setattr("app.overview.panels.facts", broken)
    said = text(open_app(planted))
    assert "Something went wrong on this page" in said
    assert "hidden detail" not in said
    ident = said.split("under **")[1][:8]
    assert ident in caplog.text
    assert "ZeroDivisionError: hidden detail" in caplog.text


def test_garbage_in_the_link_is_reported_and_replaced(open_app: Open, planted: Path) -> None:
    app = open_app(planted, "similarity", layer="banana", site="nowhere", split="train")
    warnings = [w.value for w in app.warning]
    assert len(warnings) == 2
    assert any("layer = 'banana' is not a number" in w for w in warnings)
    assert app.query_params == {"split": "train"}
    assert went_well(app)


def test_a_link_opens_exactly_what_it_says(open_app: Open, planted: Path) -> None:
    app = open_app(planted, "similarity", layer="4", site="mlp_out", language="zh")
    assert app.slider[0].value == 4
    assert [s.value for s in app.selectbox if s.label == "Site"] == ["mlp_out"]
    assert [s.value for s in app.selectbox if s.label == "Language"] == ["zh"]


def test_a_control_changes_the_link_and_the_next_page_keeps_it(open_app: Open, planted: Path) -> None:
    app = open_app(planted, "similarity")
    app.slider[0].set_value(4).run()
    assert app.query_params["layer"] == "4"
    app.switch_page("../pages/patching.py")
    app.query_params.clear()  # the browser drops the query string when the page changes
    app.run()
    assert [s.value for s in app.slider if "Block" in s.label] == [4]
    assert app.query_params["layer"] == "4"


def test_too_narrow_a_filter_says_so(open_app: Open, tmp_path: Path, own_store: Path) -> None:
    app = open_app(own_store, "similarity", language="zh", category="add", split="validation")
    assert "keep too few prompts" in text(app)
    assert app.selectbox  # the controls stay, to widen the filter


def test_provenance_names_study_models_and_device(open_app: Open, planted: Path) -> None:
    app = open_app(planted, "similarity")
    footers = [c.value for c in app.caption if "fingerprint" in c.value]
    assert footers
    for part in (
        "planted",
        "ffffffffff",
        "base abc1234 float32",
        "tuned abc1234 float32",
        "cpu",
        "2026-01-02",
    ):
        assert part in footers[0]


def test_the_manifest_is_shown_on_about(open_app: Open, planted: Path) -> None:
    app = open_app(planted, "about")
    tables = [frame.value for frame in app.dataframe]
    provenance = next(table for table in tables if "what" in table.columns)
    shown = dict(zip(provenance["what"], provenance["value"], strict=True))
    assert shown["device"] == "cpu"
    assert shown["base: attention"] == "sdpa"
    assert json.loads(app.code[0].value)["name"] == "planted"


def test_the_reading_snippet_runs(open_app: Open, planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app = open_app(planted, "about")
    exec(app.code[1].value, {})
    assert "feature" in capsys.readouterr().out


def test_a_store_that_changes_is_opened_again(open_app: Open, own_store: Path) -> None:
    assert went_well(open_app(own_store))
    shutil.rmtree(own_store)
    assert "does not exist" in text(open_app(own_store))


def stored_run(store: Path, **changes: object) -> tuple[str, JobResult]:
    """A live result in a store, as the worker appends it."""
    opened = Store(store)
    facts = read_facts(opened)
    condition = patch_view.condition_of(update(defaults(facts), facts, **changes))
    made = live_result(condition)
    key = condition.content_hash(opened.fingerprint)
    run_id = RunLog(store).append(made.condition, made.summary, made.table, content_hash=key)
    return run_id, made


def test_without_runs_the_page_says_how_to_get_some(open_app: Open, planted: Path) -> None:
    assert "No live results yet" in text(open_app(planted, "runs"))


def test_a_stored_run_opens_without_a_model(open_app: Open, own_store: Path) -> None:
    run_id, made = stored_run(own_store, layer=3, alphas="curve")
    app = open_app(own_store, "runs", run=run_id)
    assert went_well(app), text(app)
    said = text(app).replace("\\", "")
    assert parted(patch_view.result_title(made, 1.0))[0] in said
    assert "the effect goes from" in said


def test_the_patching_page_shows_the_stored_result_of_its_selection(open_app: Open, own_store: Path) -> None:
    _, made = stored_run(own_store, layer=3)
    app = open_app(own_store, "patching", patch="one", layer="3")
    assert parted(patch_view.result_title(made, 1.0))[0] in text(app).replace("\\", "")
    assert any("Run before" in caption.value for caption in app.caption)
    other = open_app(own_store, "patching", patch="one", layer="1")
    assert "Not run yet" in text(other)
    assert [b.disabled for b in other.button if b.key == "run"] == [False]


def test_the_code_of_a_run_reads_it_again(open_app: Open, own_store: Path) -> None:
    _, made = stored_run(own_store, layer=3, site="head_z", language="zh")
    app = open_app(own_store, "patching", patch="one", layer="3", site="head_z", language="zh")
    snippet = next(c.value for c in app.code if "RunLog" in c.value)
    scope: dict[str, Any] = {}
    exec(snippet, scope)
    assert made.table.equals(scope["table"])
    assert scope["curve"] == made.summary["curve"]


def test_every_panel_says_how_its_chart_opens_in_altair(open_app: Open, planted: Path) -> None:
    shown = [c.value for c in open_app(planted, "similarity").code]
    charts = [number for number, code in enumerate(shown) if "alt.Chart.from_json" in code]
    assert export.chart_code("cka") in shown
    assert len(charts) >= 2
    assert all("table" in shown[number - 1] for number in charts)  # the table's code stands above


def test_an_unknown_run_is_said_to_be_unknown(open_app: Open, own_store: Path) -> None:
    stored_run(own_store)
    said = text(open_app(own_store, "runs", run="0123456789abcdef"))
    assert "There is no run" in said
    assert "Traceback" not in said


def test_a_store_without_kernels_explains_why_there_are_no_updates(open_app: Open, own_store: Path) -> None:
    remove_arrays(own_store, "weights")
    app = open_app(own_store, "residual_updates")
    assert "This store has no residual updates" in text(app)
    assert went_well(app)


def test_a_model_against_itself_shows_the_grid_of_its_blocks(open_app: Open, planted: Path) -> None:
    app = open_app(planted, "similarity", b="base")
    said = text(app)
    assert went_well(app)
    assert "Each block of base is most similar to the same block of base" in said
    assert "in every block" not in said


def test_heads_of_a_link_that_no_model_has_are_refused_before_a_run(open_app: Open, own_store: Path) -> None:
    app = open_app(own_store, "patching", patch="one", site="head_z", heads="0,99")
    assert "The heads of the link cannot be used" in text(app)
    assert not any(button.label == "Run" for button in app.button)
