"""The page of fitted lengthscales: panels and their code, thresholds, resumed grids, words, states."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from drawn_panels import drawn
from live_study import make_store
from memory_lab import MemoryLab
from planted_clouds import planted
from planted_store import CHECKS, HEAD_DIM, HEADS, LAYERS, PAIRS, WIDTH
from polars.testing import assert_frame_equal
from streamlit.testing.v1 import AppTest

from app import analyses as run_kinds
from app.ard import panels as ard_panels
from app.ard import tables as ard_queries
from app.ard import view as ard_view
from app.ard import words as ard_words
from app.ard.fields import ArdFields
from app.charts.palette import DARK, LIGHT
from app.frame import export
from app.frame.opened import Opened, read_facts
from app.frame.panel import Panel
from app.frame.selection import Selection, defaults, parse, to_params, update
from app.live.jobs import JobResult, JobStatus
from app.live.run import run_live, save
from engine.ard.run import run
from engine.ard.spec import PENALTIES, RANDOM_DRAWS
from engine.ard.spectrum import energy_overlap, surviving
from engine.geometry.z import multi_head_basis
from store.reader import Store
from store.runs import RunLog

Open = Callable[..., AppTest]
LAYER = 1


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """Tiny models with two of three λ fitted at one block from a cold start."""
    path = make_store(tmp_path_factory.mktemp("ard"))
    store = Store(path)
    found = Opened(str(path), store, read_facts(store))
    for penalty in PENALTIES[:2]:
        run_live(str(path), ard_view.experiment_of(found, view(found), penalty=penalty), "cpu")
    return found


def view(opened: Opened, **changes: Any) -> Selection:
    usual: dict[str, Any] = {"layer": LAYER, "steps": 50, "penalty": "0.001"}
    return ard_view.effective(opened, update(defaults(opened.facts), opened.facts, **usual | changes))


def stored(opened: Opened, spec: Any) -> JobResult:
    log = RunLog(opened.path)
    run_id = log.find(spec.content_hash(opened.store.fingerprint))
    assert run_id is not None
    run = log.open(run_id)
    return JobResult(run.condition, run.summary, run.tables)


def check(panels: list[Panel]) -> None:
    for panel in panels:
        scope: dict[str, Any] = {}
        exec(panel.code, scope)
        assert_frame_equal(scope["table"], panel.table)
        for palette in (LIGHT, DARK):
            drawn(panel, palette)
        assert panel.title in export.svg_bytes(panel.draw(LIGHT), panel.title).decode().replace("&apos;", "'")
        assert "nan" not in (panel.title + panel.caption).replace("finan", "")
        assert "eld-out" in panel.caption or "Held out" in panel.caption


@pytest.mark.parametrize("rule", ["outlier", "mixture", "fixed", "median"])
def test_panels_draw_and_their_code_gives_their_tables(opened: Opened, rule: str) -> None:
    selection = view(opened, rule=rule, cut=0.1)
    panels = ard_view.panels(opened, selection, ard_view.fits_of(opened, selection))
    assert [panel.name for panel in panels][:4] == ["ard-loss", "ard-spectrum", "ard-sorted", "ard-layers"]
    check(panels)
    if rule == "median":
        assert "by construction" in panels[2].title
        assert panels[2].table["under"].sum() == panels[2].table.height // 2


def test_a_stored_run_opens_by_itself(opened: Opened) -> None:
    spec = ard_view.experiment_of(opened, view(opened))
    kind = run_kinds.kind_of(spec.to_json())
    assert kind.page == "ard"
    panels = list(kind.panels(opened, stored(opened, spec), defaults(opened.facts)))
    assert len(panels) >= 3
    check(panels)


def test_counts_are_those_of_the_engine(opened: Opened) -> None:
    selection = view(opened, rule="fixed", cut=0.2)
    fit = ard_queries.fit_of(stored(opened, ard_view.experiment_of(opened, selection)), opened.store.prompts)
    kept, limit = surviving(fit.log_lengthscales, "fixed", 0.2)
    table = ard_queries.layers_table([fit], selection)
    assert table["under"].item() == kept.sum()
    assert limit == table["threshold"].item() == 0.2
    for rule in ("outlier", "mixture"):
        mask, limit = surviving(fit.log_lengthscales, rule)
        own, at = fit.surviving(view(opened, rule=rule))
        np.testing.assert_array_equal(own, mask)
        assert at == limit
    assert ArdFields.of(view(opened)).rule == "outlier"
    bimodal = dataclasses.replace(fit.spectrum, kind="bimodal")
    row = {
        **fit.row,
        "collapsed": False,
        "held_out": {**fit.row["held_out"], "p": 0.01, "p_within": 0.01, "least_p": 0.01},
    }
    panel = ard_panels.spectrum_panel(
        opened, dataclasses.replace(fit, row=row, spectrum=bimodal), view(opened, rule="median")
    )
    assert f"bimodal, {surviving(fit.log_lengthscales)[0].sum()} of " in panel.title


@pytest.mark.parametrize("rule", ["outlier", "mixture", "median"])
def test_no_threshold_is_read_off_a_collapsed_fit(opened: Opened, rule: str) -> None:
    selection = view(opened, rule=rule)
    fit = ard_queries.fit_of(stored(opened, ard_view.experiment_of(opened, selection)), opened.store.prompts)
    gone = dataclasses.replace(fit, row={**fit.row, "collapsed": True})
    panel = ard_panels.sorted_panel(opened, gone, selection)
    check([panel])
    assert panel.title.startswith("No threshold: the fit collapsed") == (rule != "median")
    assert panel.table["under"].any() == (rule == "median")


def test_an_interrupted_grid_goes_on_where_it_stopped(opened: Opened) -> None:
    selection = view(opened)
    wanted = ard_view.grid(opened, selection)
    left = ard_view.missing(opened, wanted)
    assert [spec.penalty for spec in left] == [PENALTIES[2]]
    assert ard_view.run_text(wanted, left) == "Go on: 1 of 3 fits are left"
    every = ard_view.grid(opened, dataclasses.replace(selection, layers="every"))
    assert len(every) == 3 * opened.facts.n_layers["base"]
    assert len(ard_view.missing(opened, every)) == len(every) - 2
    some = ard_view.grid(opened, dataclasses.replace(selection, layers="every", stride=3))
    assert sorted({spec.layer for spec in some}) == [*range(0, opened.facts.n_layers["base"], 3)]
    elsewhere = ard_view.grid(opened, view(opened, layer=0))
    assert ard_view.run_text(elsewhere, elsewhere).endswith("at block 0")


EDGES: dict[str, Any] = {"steps": 1, "max_tokens": 4000, "problems": 1000}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": "b", "objective": "paired", "penalty": "0.1", "category": "add", "cloud": 20},
        {"site": "mlp_out", "layer": 3, "steps": 900},
        {"fitted": "all", "most": 250, "rate": -2.0},
    ],
    ids=str,
)
def test_a_stored_run_leads_back_to_the_same_experiment(opened: Opened, changes: dict[str, Any]) -> None:
    spec = ard_view.experiment_of(opened, view(opened, **changes))
    start = defaults(opened.facts)
    back = update(start, opened.facts, **ard_view.selection_of(spec.to_json(), start))
    assert ard_view.experiment_of(opened, back) == spec


@pytest.mark.parametrize("changes", [{"rate": r} for r in (1e-5, 0.03, 0.05, 0.0123, 1.0)] + [EDGES], ids=str)
def test_what_the_engine_allows_is_shown_as_it_was_run(opened: Opened, changes: dict[str, Any]) -> None:
    spec = ard_view.experiment_of(opened, view(opened)).model_copy(update=changes)
    start = defaults(opened.facts)
    back = update(start, opened.facts, **ard_view.selection_of(spec.to_json(), start))
    again, notices = parse(to_params(back, opened.facts), opened.facts)
    assert notices == []
    assert ard_view.experiment_of(opened, again) == spec


def test_the_growing_curve_is_read_from_the_running_job(opened: Opened) -> None:
    spec = ard_view.experiment_of(opened, view(opened))
    partial = {"trace": [{"step": 0, "objective": 1.5}, {"step": 4, "objective": 0.5}]}
    job = JobStatus("1", "k", "s", spec, "running", partial=partial)
    found = ard_view.growing([job])
    assert found is not None
    assert found[0] == "block 1, λ = 0.001"
    assert found[1]["objective"].to_list() == [1.5, 0.5]
    assert ard_view.growing([dataclasses.replace(job, partial=None)]) is None


NO_CATEGORIES = pl.DataFrame({"id": ["a"]})


def made(
    found_kind: str,
    layer: int = 0,
    p: float | None = 0.001,
    prompts: pl.DataFrame = NO_CATEGORIES,
    **changes: Any,
) -> ard_queries.Fit:
    """A fit of 64 dimensions as it would be stored: 12 small lengthscales, or all alike."""
    rng = np.random.default_rng(layer)
    logs = np.where(np.arange(64) < 12, rng.normal(0.2, 0.1, 64), rng.normal(2.5, 0.2, 64))
    logs = logs if found_kind == "bimodal" else 2.5 + 0.001 * rng.normal(size=64)
    held = None if p is None else {"p": p, "p_within": None, "same": 0.0, "different": 0.1, "n": 9}
    words = "Collapsed: every lengthscale grew until all tokens look alike; λ outweighs."
    row = {"collapsed": False, "words": words, "held_out": held, "steps": 9, "stopped": "steps", **changes}
    condition = {"layer": layer, "penalty": 0.01, "start": "cold", "model": "base", "component": "resid_post"}
    table = pl.DataFrame(
        {"draw": 0, "dimension": range(64), "log10_lengthscale": logs, "energy": pl.Series([0.1] * 64)}
    )
    return ard_queries.fit_of(JobResult(condition, {"fits": [row]}, {"table": table}), prompts)


def title(fit: ard_queries.Fit) -> str:
    return ard_words.spectrum_title("base", fit.found(), fit.row, 12, 64)


def test_titles_follow_what_was_tested() -> None:
    assert "bimodal, 12 of 64 dimensions" in title(made("bimodal"))
    assert "is not shown to pair held-out problems (p = 0.3)" in title(made("bimodal", p=0.3))
    assert "nothing found: all lengthscales are alike" in title(made("flat"))
    assert "noise looks alike" in title(made("bimodal", p=None))
    gone = made("bimodal", collapsed=True)
    assert "collapsed: every lengthscale grew" in title(gone)
    kinds = {"p": 0.001, "p_within": 0.2, "n": 9, "least_p": 0.01}
    assert ard_words.held_out_text(kinds) == (
        "its kernel is not shown to pair held-out problems of one category (p = 0.2): across categories it "
        "does (p = 0.001), and may tell no more than these apart"
    )
    only_kinds = made("bimodal", held_out=kinds)
    assert only_kinds.found() == "nothing found"
    assert title(only_kinds).startswith("base: nothing found; its kernel is not shown to pair")
    within = made("bimodal", held_out={**kinds, "p_within": 0.003})
    assert within.found() == "bimodal"
    assert title(within).endswith("its kernel pairs held-out problems of one category (p = 0.003)")
    both = [{**made("bimodal").row, "penalty": 0.01}, {**gone.row, "penalty": 0.1}]
    said = ard_words.loss_title("base", both)
    assert said.startswith("base: λ = 0.01 (9 steps) does not collapse; λ = 0.1 collapsed: every")


def test_too_few_problems_are_not_tested_rather_than_not_found() -> None:
    """Four problems give p = 1/24 at the least: enough for one block, never for two."""
    four = {"p": 1 / 24, "p_within": None, "same": 0.0, "different": 0.1, "n": 4}
    alone, other = (made("bimodal", i, held_out=four) for i in range(2))
    assert ard_queries.adjusted([alone]) == ["bimodal"]
    assert ard_queries.adjusted([alone, other]) == ["not tested", "not tested"]
    rows = [{"layer": i, "found": "not tested", "under": 12} for i in range(2)]
    assert ard_words.layers_title("base", rows, "outlier") == (
        "base: nothing is tested: held-out problems or their random pairings are none, "
        "or too few for 2 blocks"
    )
    single = made("bimodal", held_out={**four, "n": 9, "p": 0.001, "least_p": 1.0})
    assert single.found() == "not tested"
    assert "of one category, where there are several) are too few to test it on: noise" in title(single)


def test_older_runs_of_single_problems_of_a_category_are_not_tested() -> None:
    """They keep no least p: problems that can't be permuted within their categories tell nothing."""
    two = pl.DataFrame({"category": ["sum", "area"]})
    assert made("bimodal").found() == "bimodal"
    assert made("bimodal", prompts=two).found() == "not tested"
    assert made("bimodal", prompts=two[:1]).found() == "bimodal"
    within = {**made("bimodal").row["held_out"], "p_within": 0.003}
    within.pop("least_p")
    assert made("bimodal", prompts=two, held_out=within).found() == "bimodal"


def test_blocks_looked_at_together_are_adjusted_together() -> None:
    """One held-out p of 0.03 stands alone and not beside another of 0.5."""
    alone, other = made("bimodal", 0, p=0.03), made("bimodal", 1, p=0.5)
    assert ard_queries.adjusted([alone]) == ["bimodal"]
    assert ard_queries.adjusted([alone, other]) == ["nothing found", "nothing found"]
    alarms = 0
    fits = [made("bimodal", i) for i in range(6)]
    for seed in range(200):
        p = np.random.default_rng(seed).uniform(size=6)
        rows = [
            {**fit.row, "held_out": {**fit.row["held_out"], "p": v}} for fit, v in zip(fits, p, strict=True)
        ]
        drawn = [dataclasses.replace(fit, row=row) for fit, row in zip(fits, rows, strict=True)]
        alarms += "bimodal" in ard_queries.adjusted(drawn)
    # 200 trials at 5 %: more than 19 have a probability of 0.3 %
    assert alarms <= 19


def test_overlap_titles_say_when_they_are_circular() -> None:
    row = {"layer": 2, "survivors": 5, "p_adjusted": None, "starts": 20}
    assert "proves nothing" in ard_words.overlap_title("base", 8, [row], "svd")
    better = [{**row, "p_adjusted": 0.01}]
    assert "more of itself than random starts do at block 2" in ard_words.overlap_title("b", 8, better, "svd")
    assert "more often than by chance at block 2" in ard_words.overlap_title("b", 8, better, "cold")
    level = [{**row, "p_adjusted": 0.05}]
    assert "not shown" in ard_words.overlap_title("b", 8, level, "cold")
    assert "not shown" in ard_words.overlap_title("b", 8, level, "svd")
    two = [
        {**row, "layer": layer, "p_adjusted": 2 / 21} for layer in (1, 2)
    ]  # the least that 20 starts allow
    assert "20 random starts are too few to tell" in ard_words.overlap_title("b", 8, two, "svd")
    many = [{**one, "starts": 40} for one in two]
    assert "is not shown to keep" in ard_words.overlap_title("b", 8, many, "svd")
    assert "no surviving" in ard_words.overlap_title("b", 8, [], "cold")
    assert ard_words.layers_title("b", [], "mixture").endswith("no block has been fitted at this λ")
    assert 1 / (1 + RANDOM_DRAWS) < 0.05


def text(app: AppTest) -> str:
    assert not app.exception, [e.value for e in app.exception]
    said = "\n".join([*(m.value for m in app.markdown), *(c.value for c in app.caption)])
    assert "Something went wrong" not in said
    assert ":material/report:" not in said
    return said


def test_the_page_shows_stored_fits_without_a_model_and_says_what_is_missing(
    opened: Opened, open_app: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "self_checks", lambda _store: CHECKS)
    params = {"steps": "50", "penalty": "0.001"}
    app = open_app(opened.path, "ard", layer=str(LAYER), **params)
    assert "λ = 0.001" in text(app)
    assert "Go on: 1 of 3 fits are left" in {button.label for button in app.button}
    empty = open_app(opened.path, "ard", layer="0", **params)
    assert "Block 0 has not been fitted under these settings" in text(empty)
    by_hand = open_app(opened.path, "ard", layer=str(LAYER), rule="fixed", cut="0.3", **params)
    assert "log₁₀ ℓ = 0.30, chosen by hand" in text(by_hand)
    alone = opened.store.prompts.with_columns(language=pl.lit("en"))
    monkeypatch.setattr(Store, "prompts", property(lambda _store: alone))
    assert ard_view.WHY_EMPTY[0] in text(open_app(opened.path, "ard"))


class Clouds(MemoryLab):
    """Made-up clouds of the planted store's width, with its kernels."""

    store: Store
    made: list[np.ndarray]

    def sizes(self, model: str) -> dict[str, int]:
        return {"n_layers": LAYERS, "n_heads": HEADS, "head_dim": HEAD_DIM, "d": WIDTH}

    def array(self, name: str, first: int | None = None) -> np.ndarray:
        return self.store.array(name, first=first)

    def clouds(self, model: str, site: Any, rows: Any) -> tuple[list[np.ndarray], str]:
        return [self.made[row] for row in rows], "made up"


def test_overlap_with_z_from_cold_starts_and_from_z_itself(own_store: Path) -> None:
    store = Store(own_store)
    opened = Opened(str(own_store), store, read_facts(store))
    lab = Clouds({}, {}, {}, store.prompts)
    source, target, _ = planted(0, problems=PAIRS, tokens=6, d=WIDTH, shared=4)
    lab.store, lab.made = store, [cloud for both in zip(source, target, strict=True) for cloud in both]

    def overlap(start: str, *also: str) -> Panel:
        chosen = view(opened, k=4, start=start, penalty="0.01")
        for one in (start, *also):
            spec = ard_view.experiment_of(opened, chosen, start=one)
            save(opened.path, store.fingerprint, spec, run(spec, lab))
        found = ard_view.panels(opened, chosen, ard_view.fits_of(opened, chosen))
        check(found)
        return next(panel for panel in found if panel.name == "ard-overlap")

    cold = overlap("cold")
    row = cold.table.row(0, named=True)
    basis = multi_head_basis(*(store.array(f"weights/base/kernel_{n}")[LAYER] for n in ("right", "sigma")), 4)
    fit = ard_queries.fit_of(
        stored(opened, ard_view.experiment_of(opened, view(opened, k=4, penalty="0.01"))), store.prompts
    )
    kept, _ = fit.surviving(view(opened))
    wanted = energy_overlap(kept, (basis**2).sum(axis=1), 4)
    assert (row["shared"], row["p"]) == (wanted.shared, pytest.approx(wanted.p))
    circular = overlap("svd")
    assert "proves nothing" in circular.title
    assert circular.table["p"].is_null().all()
    against = overlap("svd", "random")
    assert "of itself than random starts do" in against.title
    assert 1 / (1 + RANDOM_DRAWS) <= against.table["p"].item() <= 1


def test_a_loss_chart_is_thinned_and_whole_in_the_data(opened: Opened) -> None:
    fits = list(ard_view.fits_of(opened, view(opened)).values())
    panel = ard_panels.loss_panel(opened, fits)
    assert panel.table.height == sum(fit.result.tables["trace"].height for fit in fits)
