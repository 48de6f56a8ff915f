"""Weight steering on the page: experiments from the selection, words, panels and their code, the page."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import live_study
import polars as pl
import pytest
from drawn_panels import drawn
from streamlit.testing.v1 import AppTest

from app.analyses import kind_of
from app.build.build import build
from app.charts.palette import DARK, LIGHT
from app.frame import running
from app.frame.opened import Opened, read_facts
from app.frame.selection import Selection, defaults, update
from app.live import headless
from app.live.jobs import JobResult
from app.live.run import run_live
from app.weight_steering import panels, view
from app.weight_steering import words as say
from engine.errors import PatchError
from engine.weight_steering import sizing
from engine.weight_steering.spec import FIGURES, Contrast, WeightSteering
from store.runs import RunLog

Open = Callable[..., AppTest]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    path = tmp_path_factory.mktemp("steered") / "store"
    store = build(live_study.make_study(tmp_path_factory.mktemp("study")), path, quiet=True)
    return Opened(str(path), store, read_facts(store))


def chosen(opened: Opened, **changes: Any) -> Selection:
    return update(defaults(opened.facts), opened.facts, **({"a": "base", "b": "tuned"} | changes))


@pytest.fixture(scope="module")
def stored(opened: Opened) -> JobResult:
    """The page's own experiment on tuned − base, run and opened again."""
    run_id, _ = run_live(opened.path, view.experiment_of(chosen(opened), view.lead(opened)), "cpu")
    found = RunLog(opened.path).open(run_id)
    return JobResult(found.condition, found.summary, found.tables)


@pytest.mark.parametrize("alpha", [1.0, -2.0, 0.0])
def test_panels_draw_and_their_code_gives_their_tables(
    opened: Opened, stored: JobResult, alpha: float
) -> None:
    made = view.run_panels(opened, stored, chosen(opened, strength=alpha))
    assert {panel.name for panel in made} >= {f"weights-{figure.name}" for figure in FIGURES}
    for panel in made:
        drawn(panel)
        assert panel.draw(DARK) != panel.draw(LIGHT)
        assert "None" not in panel.title + panel.caption
        assert "nan" not in panel.title + panel.caption
        assert "Null" in panel.caption
        assert "Intervals" in panel.caption
        names: dict[str, Any] = {}
        exec(panel.code, names)
        assert names["table"].equals(panel.table)


def test_answers_stand_side_by_side(stored: JobResult) -> None:
    table = panels.samples(stored, 0.9)
    assert table.columns == ["text", "α = 0", "tuned − base", "random 1"]
    assert table.height == stored.summary["counts"]["answered"]["validation"]
    assert panels.samples(stored, 0.1).columns == ["text", "α = 0"]
    wanted = stored.tables["samples"].filter((pl.col("series") == "tuned − base") & (pl.col("alpha") == 1.0))
    assert table["tuned − base"].to_list() == wanted["generated"].to_list()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"deltas": "tuned"},
        {"a": "tuned", "b": "base", "deltas": "base,base/tuned"},
        {"steered": "language:en", "neutral": "category:buy"},
    ],
    ids=str,
)
def test_a_stored_run_leads_back_to_the_same_experiment(opened: Opened, changes: dict[str, Any]) -> None:
    spec = view.experiment_of(chosen(opened, **changes))
    elsewhere = chosen(opened, b="other", deltas="other", steered="language:zh")
    back = update(elsewhere, opened.facts, **view.selection_of(spec.to_json(), elsewhere))
    assert view.experiment_of(back) == spec
    assert kind_of(spec.to_json()).page == "weight_steering"


def test_the_pages_run_fits_a_time_and_all_of_it_is_on_request(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a model too large for the usual time; the demo-sized one is run in full."""
    full = view.experiment_of(chosen(opened), view.lead(opened))
    work = view.work_of(opened, full)
    assert work is not None
    lengths = opened.store.tokens("base")["token_ids"].list.len().to_list()
    assert work.tokens == pytest.approx(sum(lengths) / len(lengths))
    assert sum(work.prompts.values()) == 2 * opened.store.n_prompts
    assert view.asked(opened, chosen(opened)) == full
    monkeypatch.setattr(view, "sized", partial(sizing.sized, budget=1e-9))
    monkeypatch.setattr(running, "find", lambda *_: None)
    short = view.asked(opened, chosen(opened))
    assert (len(short.alphas), short.prompts, short.answers, short.max_new_tokens) == (3, 24, 12, 12)
    assert view.asked(opened, chosen(opened, extent="all")) == full
    for spec in (short, full):
        back = update(chosen(opened), opened.facts, **view.selection_of(spec.to_json(), chosen(opened)))
        assert view.asked(opened, back) == spec
    assert view.told(short, work).endswith(
        "on one CPU core: 3 α, at most 24 prompts of each split, 12 answers of up to 12 tokens"
    )
    assert "on at most 24 prompts of each split" in view.not_run(short)[1]
    monkeypatch.setattr(running, "find", lambda *_: "stored")
    assert view.asked(opened, chosen(opened)) == full, "a full run that is stored is shown"


def test_differences_on_offer_are_those_that_exist(opened: Opened) -> None:
    assert view.offered(opened, chosen(opened)) == {"tuned": "tuned − base"}
    assert view.offered(opened, chosen(opened, a="tuned")) == {"base": "base − tuned"}
    assert view.contrasts_of(chosen(opened, deltas="tuned,a/b")) == (
        Contrast(plus="tuned"),
        Contrast(plus="a", minus="b"),
    )
    with pytest.raises(PatchError, match="weight difference that can't be read"):
        view.contrasts_of(chosen(opened, deltas="tuned/"))
    with pytest.raises(PatchError, match="a model that the study doesn't have"):
        view.asked(opened, chosen(opened, deltas="nobody"))
    assert view.asked(opened, chosen(opened)).deltas == (Contrast(plus="tuned"),)


def rows(**changes: tuple[float, float, float]) -> pl.DataFrame:
    """α = 0 at 1, and paired changes (value, low, high) at other α, keys like "plus" and "minus"."""
    names = {"plus": 1.0, "minus": -1.0}
    made = [{"series": "", "alpha": 0.0, "value": 1.0, "low": 0.9, "high": 1.1}]
    made[0] |= {"change": 0.0, "change_low": 0.0, "change_high": 0.0}
    for name, (change, low, high) in changes.items():
        row = {"series": "x − y", "alpha": names[name], "value": 1 + change, "low": 1 + low, "high": 1 + high}
        made.append(row | {"change": change, "change_low": low, "change_high": high})
    return pl.DataFrame(made).with_columns(split=pl.lit("validation"), figure=pl.lit("agreement"))


def test_titles_tell_only_what_intervals_separate() -> None:
    figure = say.BY_NAME["agreement"]
    both = rows(plus=(2.0, 1.5, 2.5), minus=(-1.0, -1.2, -0.8))
    assert say.curve_title(both, figure, "x − y", 1.0) == (
        "x − y raises log p(Yes) − log p(No) from 1.00 to 3.00 (2.50 to 3.50) at α = 1; "
        "α = −1 lowers it to 0.00"
    )
    assert "α = −1" not in say.curve_title(
        rows(plus=(2.0, 1.5, 2.5), minus=(-1.0, -2.2, 0.1)), figure, "x − y", 1.0
    )
    unsure = say.curve_title(rows(plus=(2.0, -0.1, 2.5)), figure, "x − y", 1.0)
    assert unsure.startswith("x − y at α = 1 is not shown to change log p(Yes) − log p(No)")
    assert say.curve_title(both, figure, "x − y", -1.4).startswith("x − y lowers log p(Yes) − log p(No)")
    assert (
        say.curve_title(both, figure, "x − y", 0.2)
        == "Unsteered, log p(Yes) − log p(No) is 1.00 (0.90 to 1.10)"
    )


def test_equal_kl_ranks_only_what_is_told_apart() -> None:
    figure, table = say.BY_NAME["agreement"], rows(plus=(2.0, 1.5, 2.5))
    at = {"x − y": 1.0, "b": 0.5, "c": 0.4, "d": None, "e": 0.3}
    ends = {"b": (0.1, 0.3), "c": (-0.1, 0.3), "e": (-0.4, -0.3)}
    apart = [
        {"series": name, "figure": "agreement", "value": 0.2, "low": low, "high": high}
        for name, (low, high) in ends.items()
    ]
    title = say.equal_title(
        {"equal": {"level": 0.5, "alpha": at, "apart": apart}}, table, figure, "x − y", ["b", "c", "d", "e"]
    )
    assert title == (
        "At equal KL (0.5 nats on train), x − y brings log p(Yes) − log p(No) to 3.00 (2.50 to 3.50); "
        "b more, c not told apart, d doesn't reach it at any α that was run, e less"
    )
    none: dict[str, Any] = {"equal": {"level": None, "alpha": at, "apart": []}}
    assert "no KL to compare at" in say.equal_title(none, table, figure, "x − y", [])


def test_a_terminal_runs_the_same_experiment(opened: Opened, stored: JobResult) -> None:
    wanted = view.experiment_of(chosen(opened), view.lead(opened))
    command = headless.command(opened.path, [wanted])
    assert "precompute.py run" in command
    assert json.loads(json.dumps(wanted.to_json())) == stored.condition
    assert WeightSteering.from_json(stored.condition) == wanted


def text(app: AppTest) -> str:
    return "\n".join(str(block.value) for block in (*app.markdown, *app.caption))


def test_a_stored_result_opens_without_a_model(
    opened: Opened, stored: JobResult, open_app: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.models.loading.load", lambda *_: pytest.fail("no model is needed"))
    app = open_app(opened.path, "weight_steering", b="tuned")
    assert not app.exception
    assert any("Run before" in caption.value for caption in app.caption)
    said = text(app)
    assert "the perplexity of the prompts" in said
    slider = app.slider(key="slide-strength")
    assert (slider.min, slider.max, slider.value) == (-2.0, 2.0, 1.0)
    slider.set_value(-2.0).run()
    assert not app.exception
    assert "At α = −2" in text(app)
    app.selectbox(key="weights-steered").set_value("language:en").run()
    assert "These differences have not been run over α" in text(app)
    runs = open_app(opened.path, "runs")
    assert not runs.exception


def test_a_store_without_differences_says_so(own_store: Path, open_app: Open) -> None:
    app = open_app(own_store, "weight_steering")
    assert not app.exception
    assert "There is no weight difference to steer by" in text(app)
