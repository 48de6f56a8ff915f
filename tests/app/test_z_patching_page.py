"""Z-patching on the page: settings in the link, words, panels and their code, and the page itself."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from demo_files import DEMO
from drawn_panels import drawn
from streamlit.testing.v1 import AppTest

from app import analyses as run_kinds
from app.build.build import build
from app.charts.palette import DARK
from app.frame import parts as components
from app.frame.opened import Opened, read_facts
from app.frame.selection import Selection, changed, defaults, update
from app.live.jobs import JobResult
from app.live.run import run_live
from app.z_patching import fits as z_patching_fits
from app.z_patching import panels as z_patching_panels
from app.z_patching import tokens as z_patching_tokens
from app.z_patching import view as z_patching_view
from app.z_patching import words as say
from app.z_patching.fields import ZFields
from engine.ard.spec import Ard
from engine.errors import PatchError
from engine.study.study import Study
from engine.z_patching.numbers import Changes, verdict
from engine.z_patching.spec import ZPatching
from engine.z_patching.tokens_spec import ZTokens
from store.reader import Store
from store.runs import RunLog


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """A store of the demo's base model on some of its problems."""
    folder = tmp_path_factory.mktemp("z")
    lines = (DEMO / "problems.jsonl").read_text().splitlines()[:20]
    (folder / "problems.jsonl").write_text("\n".join(lines) + "\n")
    data = {
        "name": "pairs",
        "models": {"base": {"path": str(DEMO / "base"), "device": "cpu"}},
        "prompts": {"files": ["problems.jsonl"], "template": "chat"},
        "capture": {"components": ["resid"], "positions": ["last_content"], "dtype": "float32"},
    }
    build(Study.from_dict(data, folder), folder / "store", quiet=True)
    store = Store(folder / "store")
    return Opened(str(folder / "store"), store, read_facts(store))


def settled(opened: Opened, **changes: Any) -> Selection:
    """A small job: two blocks, one k, few problems."""
    start = defaults(opened.facts)
    now = z_patching_view.settings_of(opened, start)
    small = {"problems": 8, "tokens": 24, "draws": 2, "ks": (8,)}
    link = z_patching_view.link_of(dataclasses.replace(now, **{**small, **changes}))
    return update(start, opened.facts, report="all", layer=4, z=link)


@pytest.fixture(scope="module")
def run(opened: Opened) -> tuple[Selection, JobResult]:
    chosen = settled(opened)
    experiment = z_patching_view.experiment_of(opened, chosen)
    _, found = run_live(opened.path, experiment, "cpu")
    return chosen, JobResult(experiment.to_json(), found.summary, found.tables)


def test_the_link_says_what_is_run(opened: Opened) -> None:
    chosen = settled(opened, basis="pca", mode="shift", scope="all", target="zh", source="en")
    run = z_patching_view.experiment_of(opened, chosen)
    assert (run.layers, run.ks, run.basis, run.mode, run.scope) == ((4, 5), (8,), "pca", "shift", "all")
    assert (run.target_language, run.source_language) == ("zh", "en")
    back = update(defaults(opened.facts), opened.facts, **z_patching_view.selection_of(run.to_json(), chosen))
    assert z_patching_view.experiment_of(opened, back) == run


def test_nonsense_in_a_link_is_left_out(opened: Opened) -> None:
    start = defaults(opened.facts)
    wanted = z_patching_view.settings_of(opened, start)
    spoilt = changed(start, z="ks:a,-3;basis:x;problems:0;target:fr;;:;draws:99;vectors")
    assert z_patching_view.settings_of(opened, spoilt) == wanted
    both = changed(start, z="target:en;source:en;vectors:transport;mode:shift;scope:all")
    found = z_patching_view.settings_of(opened, both)
    assert (found.target, found.source) == ("en", "zh")
    assert (found.mode, found.scope) == ("replace", "prompt"), "transport replaces prompt tokens only"


def test_panels_have_their_code_and_null(opened: Opened, run: tuple[Selection, JobResult]) -> None:
    chosen, result = run
    panels = z_patching_view.run_panels(opened, result, chosen)
    assert [p.name for p in panels] == ["z-verdict", "z-controls", "z-compared-answer", "z-compared-language"]
    for panel in panels:
        drawn(panel)
        drawn(panel, DARK)
        here: dict[str, Any] = {}
        exec(panel.code, here)
        assert here["table"].equals(panel.table), panel.name
        assert "Wilson" in panel.caption
    assert "McNemar" in panels[0].caption
    assert "Random subspaces" in panels[1].caption


def test_side_by_side_has_one_row_per_problem(run: tuple[Selection, JobResult]) -> None:
    _, result = run
    table = z_patching_panels.side_by_side(result.table, 4, 8)
    assert table.height == 8
    rows = result.table.filter(pl.col("layer") == 4, pl.col("part") == "Z", pl.col("source") == "pair")
    wanted = rows.filter(pl.col("draw").is_null()).sort("problem")["text"].to_list()
    assert table["Z"].to_list() == wanted
    styled = z_patching_view.styled(table)
    altered = any(change != "same" for p in z_patching_panels.PARTS for change in table[f"{p} change"])
    assert ("background-color" in styled.to_html()) == altered
    pieces = z_patching_panels.timeline(result.table, 0, 4, 8)
    assert "".join(pieces["unpatched"]) == table["unpatched"][0]
    assert len(pieces) == 1 + 3 + 6 + 4


def found(answer: tuple[int, int], language: tuple[int, int], n: int = 20) -> dict[str, Any]:
    """A cell in which the first problems changed under Z and under Z⊥."""

    def outcome(z: int, rest: int) -> Changes:
        still = np.zeros(n, dtype=bool)
        drawn = np.zeros((4, n), dtype=bool)
        return Changes(np.arange(n) < z, np.arange(n) < rest, still, still, drawn, drawn)

    one = verdict({"answer": outcome(*answer), "language": outcome(*language)})
    tests = {name: dataclasses.asdict(test) for name, test in one.tests.items()}
    return {"layer": 4, "k": 8, "word": one.word, "outcome": one.outcome, "tests": tests, "rest": {}}


@pytest.mark.parametrize(
    ("answer", "language", "said"),
    [
        (
            (18, 0),
            (0, 17),
            "Double dissociation at block 4, k = 8: patching Z changes the answer, patching Z⊥",
        ),
        ((0, 18), (17, 0), "patching Z changes the language, patching Z⊥ the answer"),
        ((18, 0), (0, 0), "Partial at block 4, k = 8: Z changes the answer"),
        ((0, 0), (0, 18), "Z⊥ changes the language"),
        ((18, 0), (18, 0), "Z changes both"),
        ((2, 2), (0, 1), "Null at block 4, k = 8"),
    ],
)
def test_titles_say_the_verdict(answer: tuple[int, int], language: tuple[int, int], said: str) -> None:
    assert said in say.verdict_title(found(answer, language))


def test_the_comparison_names_where_z_begins() -> None:
    cells = [found((0, 0), (0, 0)), {**found((18, 0), (0, 0)), "k": 16}]
    stands = "Z changes the answer at block 4 (k 16), 1 of 2 cells where up to 0.1 would by chance"
    assert say.compared_title(cells, "answer") == stands
    assert say.compared_title(cells, "language").startswith("Z and Z⊥ are nowhere shown to differ")


def test_cells_are_told_apart_over_all_of_them_together() -> None:
    """6 of 6 discordant problems: p = 0.031 for one cell, 0.19 after Holm over six."""
    one = found((18, 0), (0, 0))
    one["tests"]["answer"]["p_holm"] = 0.031
    nothing = [{**found((0, 0), (0, 0)), "k": k} for k in range(1, 6)]
    assert say.compared_title([one], "answer").startswith("Z changes the answer")
    assert say.compared_title([one, *nothing], "answer").startswith("Z and Z⊥ are nowhere shown to differ")


def test_the_page_shows_a_stored_run(
    open_app: Callable[..., AppTest], opened: Opened, run: tuple[Selection, JobResult]
) -> None:
    chosen, result = run
    params = {"report": "all", "layer": "4", "z": ZFields.of(chosen).z}
    app = open_app(opened.path, "z_patching", **params)
    assert not app.exception
    text = "\n".join(m.value for m in app.markdown)
    assert say.verdict_title(result.summary["verdicts"][0]).split(":")[0][:20] in text
    assert "token by token" in text
    assert "Something went wrong" not in text
    fresh = open_app(opened.path, "z_patching", report="all", layer="1")
    assert "Not run under these settings yet" in "\n".join(m.value for m in fresh.markdown)


def test_a_study_without_pairs_says_so(open_app: Callable[..., AppTest], planted: Path) -> None:
    app = open_app(planted, "z_patching")
    assert not app.exception
    said = "\n".join(m.value for m in app.markdown)
    assert z_patching_view.WHY_EMPTY[0] in said or "Not run under these settings yet" in said


def test_the_runs_page_knows_the_kind(opened: Opened, run: tuple[Selection, JobResult]) -> None:
    chosen, result = run
    kind = run_kinds.kind_of(result.condition)
    assert kind.page == z_patching_view.PAGE
    assert kind.panels(opened, result, chosen)[0].name == "z-verdict"


def test_z_of_stored_lengthscales_names_the_fits_it_is_made_of(
    opened: Opened, open_app: Callable[..., AppTest], tmp_path: Path
) -> None:
    copy = tmp_path / "store"
    shutil.copytree(opened.path, copy)
    own = Opened(str(copy), Store(copy), read_facts(Store(copy)))
    chosen = settled(own, basis="ard", problems=3, tokens=2)
    asked = z_patching_view.experiment_of(own, chosen)
    assert [fit.layer for fit in z_patching_fits.missing(own, asked)] == [4, 5]
    page = open_app(own.path, "z_patching", layer="4", report="all", z=ZFields.of(chosen).z)
    assert not page.exception
    assert "Fit lengthscales at blocks 4, 5" in {button.label for button in page.button}
    with pytest.raises(PatchError, match="not been fitted at block 4"):
        run_live(own.path, asked, "cpu")

    quick = Ard(model="base", layer=4, languages=("en", "zh"), steps=5, penalty=0.001)
    ids = [run_live(own.path, quick.model_copy(update={"layer": layer}), "cpu")[0] for layer in (4, 5)]
    run_live(own.path, quick.model_copy(update={"penalty": 0.01}), "cpu")  # of fewer blocks: comes second
    known = z_patching_fits.families(own, "base", "resid_post", ("zh", "en"))
    assert known[0].runs == dict(zip((4, 5), ids, strict=True))
    assert "λ = 0.001, cold start; blocks 4, 5" in known[0].text
    asked = z_patching_view.experiment_of(own, chosen)
    assert asked.lengthscales == quick
    other = settled(own, basis="ard", fit=z_patching_fits.key_of(known[1].first))
    assert z_patching_view.experiment_of(own, other).lengthscales == known[1].first
    _, found = run_live(own.path, asked, "cpu")
    assert [fit["run_id"] for fit in found.summary["fits"]] == ids
    result = JobResult(asked.to_json(), found.summary, found.tables)
    caption = z_patching_view.run_panels(own, result, chosen)[0].caption
    assert all(f"run {run_id[:8]}" in caption for run_id in ids)
    back = update(chosen, own.facts, **z_patching_view.selection_of(asked.to_json(), chosen))
    assert z_patching_view.experiment_of(own, back) == asked


def test_kernels_with_the_norms_gains_are_a_choice(opened: Opened) -> None:
    chosen = settled(opened, basis="blocks", fold="yes")
    asked = z_patching_view.experiment_of(opened, chosen)
    assert asked.fold_norm
    back = update(chosen, opened.facts, **z_patching_view.selection_of(asked.to_json(), chosen))
    assert z_patching_view.experiment_of(opened, back) == asked
    assert "norms' gains" in say.basis(asked.to_json(), {})
    assert not z_patching_view.experiment_of(opened, settled(opened, basis="pca", fold="yes")).fold_norm


def test_a_problem_is_read_token_by_token(
    opened: Opened, run: tuple[Selection, JobResult], open_app: Callable[..., AppTest]
) -> None:
    chosen, result = run
    page = open_app(opened.path, "z_patching", layer="4", report="all", z=ZFields.of(chosen).z)
    assert "Show the likeliest tokens of this problem" in {button.label for button in page.button}
    asked = ZTokens(of=ZPatching.from_json(result.condition), problem=0, layer=4, k=8)
    _, found = run_live(opened.path, asked, "cpu")
    stored = JobResult(asked.to_json(), found.summary, found.tables)
    kind = run_kinds.kind_of(stored.condition)
    (panel,) = kind.panels(opened, stored, chosen)
    drawn(panel)
    here: dict[str, Any] = {}
    exec(panel.code, here)
    assert here["table"].equals(panel.table)
    assert "Every text came out as in the run" in panel.caption
    back = update(chosen, opened.facts, **kind.selection_of(stored.condition, chosen))
    assert z_patching_view.experiment_of(opened, back) == asked.of
    assert z_patching_view.settings_of(opened, back).show == "4@8"
    page = open_app(opened.path, "z_patching", layer="4", report="all", z=ZFields.of(chosen).z)
    assert not page.exception
    assert components.plain(panel.title) in " ".join(m.value for m in page.markdown)
    assert "Z ← other problem" in page.selectbox(key="z-tokens-condition").options


def likely(rows: list[tuple[str, int, int, str, float]]) -> pl.DataFrame:
    names = ["condition", "step", "rank", "token", "probability"]
    return pl.DataFrame(rows, schema=names, orient="row")


def test_the_least_certain_token_is_named() -> None:
    sure = [("Z", 0, 0, "a", 0.97), ("Z", 0, 1, "b", 0.01), ("full", 0, 0, "c", 0.9999)]
    cell = {"layer": 4, "k": 8}
    title = say.tokens_title(likely(sure), ("Z", "full"), "p1", cell)
    assert title == "Problem p1 at block 4, k = 8: every token is chosen with 97 % or more"
    almost = say.tokens_title(likely(sure[2:]), ("full",), "p1", cell)
    assert almost.endswith("99.9 % or more"), "never rounded up to certainty"
    torn = [*sure, ("Z", 1, 0, "31", 0.52), ("Z", 1, 1, "22", 0.4), ("other", 0, 0, "x", 0.1)]
    title = say.tokens_title(likely(torn), ("Z", "full"), "p1", cell)
    assert title.endswith("least certain under Z, token 2: “31” 52 % before “22” 40 %")


def test_steps_stand_beside_each_other_with_what_was_nearly_said() -> None:
    rows = [("Z", 0, 0, "<b>", 0.6), ("Z", 0, 1, "答", 0.3), ("Z", 1, 0, "\n", 1.0)]
    text = z_patching_tokens.grid(likely(rows))
    assert "&lt;b&gt;" in text
    assert "<b>" not in text
    assert text.index("60 %") < text.index("30 %") < text.index("100 %")
    assert z_patching_view.COLOURS["zh"] in text.split("答")[0].rsplit("<span", 1)[1]
    assert "↵" in text


def test_a_null_by_the_mean_says_whether_transport_was_tried() -> None:
    null, told = {"word": "null"}, {"word": "partial"}
    mean = {"vectors": "mean", "mode": "replace", "scope": "prompt"}
    assert "was not tried: this null is of the mean alone" in say.transport_note(null, mean, "")
    assert say.transport_note(null, mean, "null").endswith("is stored: null as well. ")
    assert say.transport_note(null, mean, "partial").endswith("is stored: no null but “partial”. ")
    assert say.transport_note(told, mean, "") == ""
    for change in ({"vectors": "transport"}, {"mode": "shift"}, {"scope": "all"}):
        assert say.transport_note(null, mean | change, "null") == ""
    assert say.transport_note(null, mean, None) == ""


def test_what_transport_gave_is_read_from_its_own_run(tmp_path: Path) -> None:
    """Of the same cell: another block of the same run may say otherwise."""
    asked = ZPatching(model="base", target_language="en", source_language="zh", layers=(1, 2), ks=(4,))
    opened: Any = SimpleNamespace(path=str(tmp_path), store=SimpleNamespace(fingerprint="f"))
    result = JobResult(asked.to_json(), {}, {})
    cells = [{"layer": 1, "k": 4, "word": "null"}, {"layer": 2, "k": 4, "word": "partial"}]
    assert z_patching_view._transported(opened, result, cells[0]) == ""
    other = asked.model_copy(update={"vectors": "transport"})
    RunLog(tmp_path).append(
        other.to_json(),
        {"verdicts": cells},
        pl.DataFrame({"x": [1]}),
        {},
        content_hash=other.content_hash("f"),
    )
    assert [z_patching_view._transported(opened, result, cell) for cell in cells] == ["null", "partial"]
