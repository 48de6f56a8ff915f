"""The page that sums up a two-language study: the pages' own words, levels only when filled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import streamlit as st
from planted_store import LAYERS
from streamlit.testing.v1 import AppTest

from app.bridge import spaces as bridge_spaces
from app.bridge import tables as bridge_queries
from app.frame.opened import Opened, read_facts
from app.frame.selection import Selection, changed, defaults
from app.geometry import separation as geometry_separation
from app.geometry import weights as geometry
from app.synthesis import parts as synthesis_parts
from app.synthesis import view as synthesis
from app.synthesis.view import Finding, Part
from engine.z_patching.outcomes import METRICS
from engine.z_patching.spec import ZPatching
from store.reader import Store
from store.runs import RunLog

WORDS = ("null", "partial", "double dissociation")


@pytest.fixture
def opened(own_store: Path) -> Opened:
    st.cache_resource.clear()
    st.cache_data.clear()
    store = Store(own_store)
    return Opened(str(own_store), store, read_facts(store))


def view(opened: Opened, **changes: Any) -> Selection:
    start = dataclasses.replace(defaults(opened.facts), layer=1, k=4)
    return synthesis.effective(opened, changed(start, **changes))


def part(opened: Opened, name: str, selection: Selection | None = None) -> Part:
    found = synthesis.parts(opened, selection or view(opened))
    return next(one for one in found if one.name.startswith(name))


def one_test(n: int) -> dict[str, Any]:
    return {"n": n, "only_z": 9, "only_rest": 0, "p_holm": 0.01, "told": True, "stronger": "Z"}


def keep_run(opened: Opened, n: int, words: tuple[str, ...], **changes: Any) -> str:
    """A stored run of patched answers with these verdicts at its blocks, made up."""
    layers = tuple(range(1, 1 + len(words)))
    given = {"model": "base", "target_language": "en", "source_language": "zh", "layers": layers, "ks": (4,)}
    spec = ZPatching.model_validate(given | changes)
    verdicts = [
        {
            "layer": layer,
            "k": 4,
            "word": word,
            "outcome": "answer" if word == "partial" else None,
            "tests": {"answer": one_test(n), "language": one_test(n) | {"stronger": "Z⊥"}},
        }
        for layer, word in zip(layers, words, strict=True)
    ]
    rates = pl.DataFrame(
        [
            {"layer": layer, "k": 4, "part": p, "source": "pair", "metric": metric}
            | {"value": 0.25, "low": 0.1, "high": 0.5, "count": n / 4, "n": n}
            for layer in layers
            for p in ("Z", "Z⊥")
            for metric in METRICS
        ]
    )
    digest = spec.content_hash(opened.store.fingerprint)
    summary = {"n": n, "verdicts": verdicts}
    return RunLog(opened.path).append(spec.to_json(), summary, rates, {"rates": rates}, content_hash=digest)


def test_a_store_without_runs_has_what_the_store_alone_gives(opened: Opened) -> None:
    selection = view(opened)
    met = {one.name: one.met for one in synthesis.parts(opened, selection)}
    assert met["Z geometry"]
    assert met["Residual updates"]
    assert met["Bridge"]
    for name in ("Z-patched answers", "Lengthscales", "Overlap with Z", "The same at both blocks"):
        assert not met[name]
    assert part(opened, "Z-patched").missing == "not run yet"
    title = synthesis.title(synthesis.parts(opened, selection), "base", [1, 2])
    assert title.startswith("base, blocks 1-2: minimum 2 of 3, strong 1 of 3")
    assert title.endswith("no level is complete")


def test_findings_are_the_pages_own_words(opened: Opened) -> None:
    selection = view(opened)
    for block, found in part(opened, "Z geometry").findings.items():
        at = dataclasses.replace(selection, layer=block)
        own = geometry_separation.separation_panel(opened, geometry.effective(opened, at), "mean")
        assert own.title.split(": ", 1)[1] == found.words.split(": ", 1)[1]
        own = bridge_spaces.at_block(opened, bridge_spaces.effective(opened, at))
        bridge = bridge_queries.fitted(opened.store, **own)
        assert bridge.words.rstrip(".") in part(opened, "Bridge").findings[block].words
        assert found.n == 24


def test_answers_count_from_fifteen_problems_whatever_the_verdict(opened: Opened) -> None:
    keep_run(opened, 14, ("null", "null"))
    few = part(opened, "Z-patched")
    assert not few.met
    assert few.missing == "14 problems, of 15 or more"
    keep_run(opened, 15, ("null", "null"), problems=15)
    enough = part(opened, "Z-patched")
    assert enough.met
    assert enough.agree
    assert "Null at block 1, k = 4" in enough.findings[1].words
    assert "Z changes the answer in 25 % (10 to 50)" in enough.findings[1].words
    parts = synthesis.parts(opened, view(opened))
    assert synthesis.reached(parts) == "minimum"
    assert "show:1@4" in enough.changes["z"]


def test_a_run_is_chosen_by_its_problems_and_never_by_its_verdict(opened: Opened) -> None:
    keep_run(opened, 40, ("null", "null"), problems=40)
    keep_run(opened, 20, ("double dissociation", "double dissociation"))
    keep_run(opened, 99, ("double dissociation",), problems=99)  # does not cover the next block
    found = part(opened, "Z-patched")
    assert {one.n for one in found.findings.values()} == {40}
    assert {one.key for one in found.findings.values()} == {"null"}


def test_blocks_that_say_different_things_are_told(opened: Opened) -> None:
    keep_run(opened, 20, ("partial", "null"))
    found = part(opened, "Z-patched")
    assert found.agree is False
    assert synthesis.agreement(found) == "the two blocks do not say the same"
    both = part(opened, "The same")
    assert not both.met
    assert "Z-patched answers" in both.missing.split(";")[0]


def test_optimal_transport_is_asked_for_unless_the_mean_parts_z(opened: Opened) -> None:
    keep_run(opened, 20, ("null", "null"))
    assert not part(opened, "Optimal").met
    keep_run(opened, 20, ("null", "null"), vectors="transport")
    tried = part(opened, "Optimal")
    assert tried.met
    assert "vectors:transport" in tried.changes["z"]


def test_a_double_dissociation_needs_no_transport(opened: Opened) -> None:
    keep_run(opened, 20, ("double dissociation",) * 2)
    assert "not needed" in part(opened, "Optimal").name
    assert part(opened, "Optimal").met


def made(level: str, met: bool) -> Part:
    return Part(level, "x", met, {}, "", "", {})  # type: ignore[arg-type]


def test_a_level_needs_all_before_it() -> None:
    assert synthesis.reached([made("minimum", False), made("strong", True), made("gold", True)]) is None
    assert synthesis.reached([made("minimum", True), made("strong", False), made("gold", True)]) == "minimum"
    assert synthesis.reached([made("minimum", True), made("strong", True), made("gold", True)]) == "gold"


def test_agreement_is_of_conclusions_not_of_figures() -> None:
    one, two, other = Finding("a", "a 1", 9), Finding("a", "a 2", 9), Finding("b", "b", 9)
    lone = dataclasses.replace(made("strong", True), findings={1: one})
    assert lone.agree is None
    assert dataclasses.replace(lone, findings={1: one, 2: two}).agree
    assert dataclasses.replace(lone, findings={1: one, 2: other}).agree is False


def test_the_last_block_has_no_next_one(opened: Opened) -> None:
    selection = view(opened, layer=LAYERS - 1)
    assert synthesis_parts.blocks(opened, selection) == [LAYERS - 1]
    assert part(opened, "The same", selection).missing == "there is no next block"


def test_the_code_gives_the_table(opened: Opened) -> None:
    keep_run(opened, 20, ("partial", "null"))
    selection = view(opened)
    names: dict[str, Any] = {}
    exec(synthesis.code(opened, selection), names)
    assert names["table"].equals(synthesis.table(opened, selection))
    assert names["table"].height > 10


def test_the_page_draws_and_links(open_app: Callable[..., AppTest], opened: Opened) -> None:
    keep_run(opened, 20, ("partial", "null"))
    app = open_app(opened.path, "synthesis", layer="1", k="4")
    assert not app.exception
    text = " ".join(element.value for element in app.markdown)
    assert "base, blocks 1-2: minimum 3 of 3" in text
    assert "Partial at block 1" in text


def test_other_studies_get_an_empty_state(
    open_app: Callable[..., AppTest], opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.geometry.tables.languages", lambda _opened: None)
    app = open_app(opened.path, "synthesis")
    assert not app.exception
    assert any("Nothing to sum up yet" in element.value for element in app.markdown)
