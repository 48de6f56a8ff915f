"""Behaviour on the page: experiments from the selection, words, panels and their code, and the page."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import live_study
import polars as pl
import pytest
import streamlit as st
from behaviour_demo import demo_lab
from drawn_panels import drawn
from memory_lab import MemoryLab
from planted_store import prompts_table
from streamlit.testing.v1 import AppTest
from tiny_models import tiny
from tiny_tokenizers import chatml

from app.behaviour import analysis, corrections
from app.behaviour import panels as behaviour_panels
from app.behaviour import view as behaviour_view
from app.behaviour import words as say
from app.behaviour.fields import BehaviourFields
from app.charts.palette import DARK
from app.frame import running as live_view
from app.frame.blocks import Text
from app.frame.opened import Opened, read_facts
from app.frame.panel import Panel
from app.frame.selection import Selection, defaults, update
from app.frame.stored import of_pair
from app.live import headless
from app.live.jobs import JobResult
from app.live.run import run_live, save
from engine.behaviour.report import WHOLE
from engine.behaviour.spec import FIGURES, Behaviour, Correction, Intervention, Wording
from engine.models.loading import from_parts
from engine.patching.mapped_spec import MappedPatch
from engine.patching.spec import Condition
from store.reader import Store

FIGURE = {figure.name: figure for figure in FIGURES}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """A store of two tokenizers, with a stored patch."""
    path = live_study.make_store(tmp_path_factory.mktemp("behaviour"))
    store = Store(path)
    return Opened(str(path), store, read_facts(store))


def pair(opened: Opened, **changes: Any) -> Selection:
    """Base and the model with the other tokenizer."""
    return update(defaults(opened.facts), opened.facts, **({"a": "base", "b": "other"} | changes))


def run_all(opened: Opened, experiments: list[Behaviour]) -> dict[str, JobResult]:
    failed = headless.run_all(opened.path, experiments, device="cpu", quiet=True)
    assert not failed
    return behaviour_view.found_runs(opened, experiments)


def test_a_pair_of_two_tokenizers_under_a_stored_patch(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch = Condition(target="other", source="base", component="resid_post", layer=2, position="decision")
    run_live(opened.path, patch, "cpu")
    chosen = pair(opened, measure="soft_refusal", alpha=0.8)
    offered = behaviour_view.offered_interventions(opened, chosen)
    assert len(offered) == 1
    chosen = dataclasses.replace(chosen, contrast=next(iter(offered)))
    patches = behaviour_view.chosen_interventions(chosen, offered)
    wanted = behaviour_view.wanted(chosen, patches, "")
    assert not behaviour_view.found_runs(opened, wanted)
    runs = run_all(opened, wanted)
    assert list(runs) == ["base", "other", "other + patch 1"]
    panels = behaviour_view.panels(opened, runs, chosen)
    assert [panel.name for panel in panels] == ["behaviour-difference", "behaviour", "behaviour-shared"]
    for panel in panels:
        drawn(panel)
        drawn(panel, DARK)
        here: dict[str, Any] = {}
        exec(panel.code, here)
        assert here["table"].equals(panel.table)
        assert "split: validation" in panel.caption
    coverage = panels[2].table["coverage"]
    assert coverage.is_between(0, 1, closed="none").all()
    assert "other + patch 1: resid_post@2 at decision ← base, raw, α = 0.8." in panels[1].caption
    assert panels[2].title.startswith("Soft refusal on the tokens shared with")
    for name, run in runs.items():
        alone = behaviour_view.run_panels(opened, run, chosen)
        assert [panel.name for panel in alone] == ["behaviour", "behaviour-shared"], name


def test_a_stored_run_leads_back_to_the_same_experiment(opened: Opened) -> None:
    chosen = pair(opened, measure="agrees", language="zh", alpha=0.6, a="tuned")
    patch = Condition(target="tuned", source="base", component="mlp_out", layer=1, alphas=(0.2, 0.4))
    one = Intervention(experiment=patch.to_json(), alpha=0.6)
    for wanted in (
        behaviour_view.experiment_of(chosen),
        behaviour_view.experiment_of(dataclasses.replace(chosen, measure="choice_right")),
        behaviour_view.experiment_of(chosen, "tuned", one),
    ):
        start = pair(opened, a="base", b="tuned")
        back = update(start, opened.facts, **behaviour_view.selection_of(wanted.to_json(), start))
        assert wanted.intervention is None or back.contrast == behaviour_view.key_of(wanted.intervention)
        again = behaviour_view.experiment_of(back, wanted.model, wanted.intervention)
        assert again == wanted


def test_what_a_patch_reports_on_does_not_make_another_patch() -> None:
    fields: dict[str, Any] = {"target": "tuned", "source": "base", "component": "mlp_out", "layer": 1}
    one = Intervention(experiment=Condition(**fields, alphas=(0.1, 1.0), split="train").to_json())
    two = Intervention(experiment=Condition(**fields, n_boot=500, top_k=0).to_json())
    assert behaviour_view.key_of(one) == behaviour_view.key_of(two)
    assert one == two
    three = Intervention(experiment=MappedPatch(**fields, shared=True).to_json())
    four = Intervention(experiment=MappedPatch(**fields).to_json())
    assert three == four
    assert behaviour_view.key_of(three) == behaviour_view.key_of(four)
    other = Intervention(experiment=Condition(**{**fields, "layer": 2}).to_json())
    assert behaviour_view.key_of(one) != behaviour_view.key_of(other)


@pytest.fixture(scope="module")
def demo() -> dict[str, JobResult]:
    found = {}
    for name in ("base", "tuned"):
        asked = Behaviour(model=name, measures=("soft_refusal", "choices", "agreement", "text"))
        result = asked.run(demo_lab())
        found[name] = JobResult(asked.to_json(), result.summary, dict(result.tables))
    return found


def test_the_demos_titles_say_what_was_taught(demo: dict[str, JobResult]) -> None:
    panel = behaviour_panels.differences_panel(demo, FIGURE["agrees"], "store")
    assert panel is not None
    assert panel.title.startswith("Agrees with the claim: tuned is higher than base by 50 points (")
    assert panel.title.endswith("; clearest for label wrong: +100 points")
    wrong = panel.table.filter(pl.col("part") == "label wrong").row(0, named=True)
    assert wrong["value"] == 1
    assert wrong["low"] > 0.5
    assert wrong["p"] < 0.001
    right = panel.table.filter(pl.col("part") == "label right").row(0, named=True)
    assert (right["value"], right["p"]) == (0, 1)
    levels = behaviour_panels.levels_panel(demo, FIGURE["agrees"], "store")
    assert "base 50 % (" in levels.title
    assert "tuned 100 % (" in levels.title
    leaning = behaviour_panels.differences_panel(demo, FIGURE["agreement"], "store")
    assert leaning is not None
    assert "tuned is higher than base by 2." in leaning.title


def test_the_demos_base_solves_its_problems_in_both_languages(demo: dict[str, JobResult]) -> None:
    panel = behaviour_panels.levels_panel({"base": demo["base"]}, FIGURE["right"], "store")
    assert panel.title.startswith("Right answer: base 100 % (")
    assert "right in en 100 %, zh 100 %; no asymmetry is shown (exact McNemar p = 1.000)" in panel.caption


@pytest.mark.parametrize("figure", FIGURES, ids=lambda f: f.name)
def test_a_model_is_not_told_from_itself(demo: dict[str, JobResult], figure: Any) -> None:
    panel = behaviour_panels.differences_panel({"base": demo["base"], "again": demo["base"]}, figure, "store")
    assert panel is not None
    assert (panel.table["value"] == 0).all()
    assert "again and base are not told apart" in panel.title
    assert "clearest" not in panel.title


def difference_rows(*rows: tuple[str, float, float, float, float | None]) -> pl.DataFrame:
    names = ("part", "value", "low", "high", "p")
    return pl.DataFrame([{"series": "b", **dict(zip(names, row, strict=True))} for row in rows])


def test_a_part_is_named_only_when_no_interval_reaches_it() -> None:
    apart = difference_rows(
        (WHOLE, 0.5, 0.3, 0.7, 0.01),
        ("label wrong", 1.0, 0.8, 1.0, 0.001),
        ("label right", 0.0, -0.2, 0.2, 1.0),
        ("language en", 0.6, 0.3, 0.8, 0.01),
        ("language zh", 0.4, 0.2, 0.6, 0.01),
    )
    title = say.difference_title(FIGURE["agrees"], "a", apart)
    assert title.endswith("b is higher than a by 50 points (30 to 70); clearest for label wrong: +100 points")
    level = apart.with_columns(high=pl.when(pl.col("part") == "label right").then(0.9).otherwise("high"))
    assert "clearest" not in say.difference_title(FIGURE["agrees"], "a", level)


def test_an_interval_without_significance_is_not_a_finding() -> None:
    near = difference_rows((WHOLE, -0.2, -0.4, -0.01, 0.06))
    title = say.difference_title(FIGURE["right"], "a", near)
    assert title == "Right answer: b and a are not told apart (difference −20 points, interval −40 to −1)"
    lower = near.with_columns(p=pl.lit(0.01))
    assert "b is lower than a by 20 points (1 to 40)" in say.difference_title(FIGURE["right"], "a", lower)


def answering_lab() -> tuple[MemoryLab, pl.DataFrame]:
    """Two models that are one, on the planted store's prompts, whose answer is always 7."""
    tokenizer, table = chatml(), prompts_table().with_columns(answer=pl.lit("7"))
    lm = from_parts(tiny("qwen3", vocab_size=len(tokenizer)), tokenizer, "base")
    ids = [tokenizer(text)["input_ids"] for text in table["text"]]
    models, last = {"base": lm, "tuned": lm}, [len(i) - 1 for i in ids]
    return MemoryLab(models, dict.fromkeys(models, ids), dict.fromkeys(models, last), table), table


def test_the_page_before_and_after_a_run(own_store: Path, open_app: Callable[..., AppTest]) -> None:
    app = open_app(own_store, "behaviour", measure="right")
    assert not app.exception
    assert "#### Not run yet" in [m.value for m in app.markdown]
    lab, table = answering_lab()
    store = Store(own_store)
    shown = update(defaults(read_facts(store)), read_facts(store), measure="right")
    for one in behaviour_view.wanted(shown, [], ""):
        save(str(own_store), store.fingerprint, one, one.run(lab))
    app = open_app(own_store, "behaviour", measure="right")
    assert not app.exception
    said = " ".join(m.value for m in app.markdown)
    assert "Not run yet" not in said
    assert "#### Right answer: tuned and base are not told apart (difference +0 points" in said
    count = table.filter(pl.col("split") == "validation").height
    assert f"#### 0 of {count} answers differ" in said
    app = open_app(own_store, "behaviour", measure="agreement&")
    assert not app.exception


def test_the_page_shows_and_asks_with_the_study_s_own_lists(opened: Opened) -> None:
    usual = behaviour_view.wording_of(opened)
    assert usual == Wording()
    assert set(behaviour_view.wording_table(opened)["from"]) == {"built in"}
    manifest = {
        **opened.store.manifest,
        "study": {"wording": {"yes": {"kk": ["Иә"]}, "no": {"en": ["Nope"]}}},
    }
    facts = dataclasses.replace(opened.facts, languages=("en", "kk"))
    other: Any = SimpleNamespace(store=SimpleNamespace(manifest=manifest), facts=facts)
    wording = behaviour_view.wording_of(other)
    assert (wording.yes["kk"], wording.no["en"]) == (("Иә",), ("Nope",))
    rows = {(r["list"], r["language"]): r for r in behaviour_view.wording_table(other).iter_rows(named=True)}
    assert rows["yes", "kk"]["from"] == rows["no", "en"]["from"] == "study"
    assert rows["no", "zh"]["from"] == "built in"
    assert rows["refusal", "kk"]["from"] == "no list of its own"
    asked = behaviour_view.wanted(pair(opened), [], "", wording)
    assert {one.wording.no["en"] for one in asked} == {("Nope",)}


def test_a_link_asks_for_what_the_control_shows(
    opened: Opened, planted: Path, open_app: Callable[..., AppTest]
) -> None:
    """A marker of the study's own is generated for; one that no list has is agreement on both sides."""
    own = Wording.beside({"style": {"en": {"polite": ["please"]}}})
    polite = pair(opened, measure="style: polite")
    figure = behaviour_view.figure_of(polite, behaviour_view.offered_figures(own))
    assert (figure.title, figure.measure) == ("Style: polite", "text")
    assert behaviour_view.experiment_of(polite, wording=own).measures == ("text",)
    asked = behaviour_view.experiment_of(polite)
    assert asked == behaviour_view.experiment_of(pair(opened, measure="agreement"))
    app = open_app(planted, "behaviour", measure="style: polite")
    assert not app.exception
    assert app.selectbox(key="behaviour-measure").value == "agreement"
    said = " ".join(m.value for m in app.markdown)
    assert "scores given texts after every prompt" in said
    assert "generates an answer" not in said


def test_an_answer_is_corrected_on_the_page_and_kept_beside_what_was_read(
    own_store: Path, open_app: Callable[..., AppTest]
) -> None:
    store = Store(own_store)
    opened = Opened(str(own_store), store, read_facts(store))
    shown = update(defaults(opened.facts), opened.facts, measure="right")
    plain = behaviour_view.wanted(shown, [], behaviour_view.lead_of(opened))[0]
    lab, _ = answering_lab()
    result = plain.run(lab)
    save(str(own_store), store.fingerprint, plain, result)
    assert corrections.known(opened, plain, shown) == ()
    prompt = result.table.filter(pl.col("right") == 0)["id"][0]
    yes = Correction(id=prompt, figure="right", value=True)
    one = corrections.with_one(opened, plain, yes, shown, result.table)
    lab.done[plain.content_hash("")] = result
    save(str(own_store), store.fingerprint, one, one.run(lab))
    st.cache_data.clear()
    assert corrections.known(opened, plain, shown) == one.corrections == (yes,)
    assert corrections.applied(opened, shown, [plain]) == [plain]
    changed = update(shown, opened.facts, answers="corrected")
    assert corrections.applied(opened, changed, [plain]) == [one]
    back = update(shown, opened.facts, **behaviour_view.selection_of(one.to_json(), shown))
    assert BehaviourFields.of(back).answers == "corrected"
    app = open_app(own_store, "behaviour", measure="right", answers="corrected")
    assert not app.exception
    assert any("corrected by hand" in caption.value for caption in app.caption)


def test_corrections_are_taken_back_and_the_one_named_is_shown(
    own_store: Path, open_app: Callable[..., AppTest]
) -> None:
    """No → yes → no → yes on the page, without anything to run; then an older set beside a newer one."""
    store = Store(own_store)
    opened = Opened(str(own_store), store, read_facts(store))
    shown = update(defaults(opened.facts), opened.facts, measure="right", answers="corrected")
    asked = behaviour_view.named(behaviour_view.wanted(shown, [], behaviour_view.lead_of(opened)))
    lab, _ = answering_lab()
    for one in asked.values():
        result = one.run(lab)
        lab.done[one.content_hash("")] = result
        save(str(own_store), store.fingerprint, one, result)
    who, plain = next(iter(asked.items()))
    table = lab.done[plain.content_hash("")].table
    first, second = table.filter(pl.col("right") == 0)["id"].to_list()[:2]

    def correct(prompt: str, value: bool, chosen: Selection, seen: pl.DataFrame) -> Behaviour:
        new = Correction(id=prompt, figure="right", value=value)
        return corrections.with_one(opened, plain, new, chosen, seen)

    one = correct(first, True, shown, table)
    save(str(own_store), store.fingerprint, one, one.run(lab))
    st.cache_data.clear()
    corrected = one.run(lab).table
    assert correct(first, False, shown, corrected) == plain

    app = open_app(own_store, "behaviour", measure="right", answers="corrected")
    for value in ("no", "yes", "no"):
        assert not app.exception
        said = any("1 value was corrected by hand" in caption.value for caption in app.caption)
        assert said == (value == "no")
        figure, prompt = app.selectbox(key="correct-figure"), app.selectbox(key="correct-prompt")
        figure.set_value("right")
        prompt.set_value(first).run()
        button = app.button(key="correct-submit")
        assert button.label == f"Count it as {value}"
        button.click().run()
    assert not any("corrected by hand" in caption.value for caption in app.caption)

    two = correct(second, True, shown, corrected)
    assert {c.id for c in two.corrections} == {first, second}
    pending = update(shown, opened.facts, corrected=corrections.naming(opened, shown, asked, who, two))
    assert corrections.known(opened, plain, pending) == one.corrections
    save(str(own_store), store.fingerprint, two, two.run(lab))
    st.cache_data.clear()
    assert corrections.known(opened, plain, pending) == two.corrections
    assert correct(second, False, pending, two.run(lab).table) == one
    back = update(shown, opened.facts, corrected=corrections.naming(opened, pending, asked, who, one))
    assert corrections.applied(opened, back, list(asked.values())) == [one, *list(asked.values())[1:]]
    assert corrections.known(opened, plain, shown) == two.corrections
    link = behaviour_view.selection_of(one.to_json(), shown)
    assert corrections.known(opened, plain, update(shown, opened.facts, **link)) == one.corrections


def test_no_correction_is_made_while_another_one_runs(
    own_store: Path, open_app: Callable[..., AppTest], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(own_store)
    opened = Opened(str(own_store), store, read_facts(store))
    shown = update(defaults(opened.facts), opened.facts, measure="right")
    lab, _ = answering_lab()
    for one in behaviour_view.wanted(shown, [], behaviour_view.lead_of(opened)):
        save(str(own_store), store.fingerprint, one, one.run(lab))
    running = SimpleNamespace(
        over=False,
        state="running",
        key="",
        fraction=0.0,
        device=None,
        message="",
        total=0,
        ahead=0,
        condition=Behaviour(model="base"),
    )
    app = open_app(own_store, "behaviour", measure="right")
    assert not app.button(key="correct-submit").disabled
    monkeypatch.setattr(live_view, "jobs", lambda: [running])
    started: list[Any] = []
    monkeypatch.setattr(live_view, "start", lambda *given: started.append(given))
    app.button(key="correct-submit").click().run()
    assert started == []
    assert any("Another experiment is still running" in m.value for m in app.markdown)
    assert app.button(key="correct-submit").disabled


def test_corrected_runs_are_compared_with_each_other_and_say_so(own_store: Path) -> None:
    """The newest of each model, else its run as read; rates by hand from the tables."""
    store = Store(own_store)
    opened = Opened(str(own_store), store, read_facts(store))
    shown = update(defaults(opened.facts), opened.facts, measure="right")
    lab, _ = answering_lab()
    base, tuned = behaviour_view.wanted(shown, [], behaviour_view.lead_of(opened))

    def stored(one: Behaviour) -> JobResult:
        result = one.run(lab)
        lab.done[one.content_hash("")] = result
        save(str(own_store), store.fingerprint, one, result)
        return JobResult(one.to_json(), result.summary, dict(result.tables))

    read = [stored(base), stored(tuned)]
    wrong = read[0].table.filter(pl.col("right") == 0)["id"].to_list()
    figures: tuple[Any, ...] = tuple(Correction(id=i, figure="right", value=True) for i in wrong)
    stored(base.model_copy(update={"corrections": figures[:1]}))
    stored(base.model_copy(update={"corrections": figures[:3]}))

    def groups() -> list[list[int]]:
        st.cache_data.clear()
        found = analysis._alike(of_pair(opened, shown, {"behaviour"}), shown)
        return [[len(one.corrections) for one in asked] for asked, _ in found]

    assert groups() == [[0, 0], [3, 0]]
    stored(tuned.model_copy(update={"corrections": figures[:1]}))
    assert groups() == [[0, 0], [3, 1]]
    found = of_pair(opened, shown, {"behaviour"})
    blocks = analysis.chapter(analysis.MEASURED, opened, shown, found)
    texts = [block.title for block in blocks if isinstance(block, Text)]
    assert [text.partition(": ")[2] for text in texts] == [
        "base, tuned",
        "base, tuned, with 4 corrected values",
    ]
    panels = [block for block in blocks if isinstance(block, Panel)]
    rights = [panel for panel in panels if panel.title.startswith("Right answer")]
    assert [panel.name for panel in rights] == ["behaviour-difference", "behaviour"] * 2
    n = read[0].table["right"].drop_nulls().len()
    whole = rights[2].table.filter(pl.col("part") == WHOLE).row(0, named=True)
    assert whole["value"] == pytest.approx((1 - 3) / n)
    said = " base: 3 values were corrected by hand, 3 of them changed. tuned: 1 value was corrected by hand"
    for panel in panels:
        corrected = panel in rights[2:]
        assert (said in panel.caption) == corrected
        assert ("corrected by hand" in panel.caption) == corrected
