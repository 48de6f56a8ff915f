"""Two pairs of models in one chart: 1 − CKA of the page's pair and of another one, and their difference.

The other pair is of the same store, or of one that the server was started with (`--beside`). Where the
prompts are the same, the difference has an interval of its own; else there is none to tell.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl
import streamlit as st

from app import screen
from app.charts.curves import Look, layer_curve
from app.charts.palette import Palette
from app.charts.template import Chart
from app.escape import plain
from app.frame import controls, words
from app.frame.call import Call
from app.frame.opened import Opened, failed_checks, open_at, other_stores
from app.frame.panel import Panel
from app.frame.prompts import LEVEL, chosen_filter, unit_said
from app.frame.selection import Selection
from app.similarity import tables
from app.similarity.fields import SimilarityFields
from app.similarity.tables import DIFFERENCE
from engine.errors import AnalysisError, PatchbayError
from engine.prompts.draws import sample_of

NONE = "no other pair"


@dataclass(frozen=True)
class Other:
    """Another pair: its store, its models, and what it is called."""

    opened: Opened
    models: tuple[str, str]
    name: str


def choose(opened: Opened) -> None:
    """The control: every other pair of this store, and all pairs of the stores beside it."""
    selection = controls.current()
    if selection.a == selection.b:
        return
    for why in beside(other_stores(opened))[1].values():
        screen.caption(plain(f"Not offered to contrast with: {why}"))
    known = pairs(opened, selection)
    if not known:
        return
    now = SimilarityFields.of(selection).against
    st.session_state["contrast"] = now if now in known else ""

    def picked() -> None:
        controls.change(against=st.session_state["contrast"])

    screen.selectbox(
        "Contrast with",
        ["", *known],
        key="contrast",
        format_func=lambda one: known.get(one, NONE),
        on_change=picked,
        help="1 − CKA of another pair in one chart, with the difference where prompts are the same.",
    )


def beside(places: Mapping[str, str]) -> tuple[dict[str, Opened], dict[str, str]]:
    """Stores to contrast with, by name, and why others are none: unreadable or not trusted."""
    found: dict[str, Opened] = {}
    left_out: dict[str, str] = {}
    for name, place in places.items():
        try:
            there = open_at(place)
        except PatchbayError as error:
            left_out[name] = f"{name} can't be opened: {error}"
            continue
        if failed_checks(there.store):
            left_out[name] = f"{name} failed its own checks; its numbers are not shown."
        elif not there.store.self_checks():
            left_out[name] = f"{name} has no self-checks; its numbers are not shown."
        else:
            found[name] = there
    return found, left_out


def pairs(opened: Opened, selection: Selection) -> dict[str, str]:
    """Other pairs by what a link calls them, with their names for people."""
    here = {frozenset((selection.a, selection.b))}
    found = {
        f"{a}|{b}": _said(a, b)
        for a, b in itertools.combinations(opened.facts.models, 2)
        if frozenset((a, b)) not in here
    }
    for name, there in beside(other_stores(opened))[0].items():
        models = there.facts.models if there.facts.positions else ()
        found |= {f"{name}:{a}|{b}": f"{name}: {_said(a, b)}" for a, b in itertools.combinations(models, 2)}
    return found


def _site(selection: Selection) -> str:
    return selection.site if selection.site != "head_out" else "head_z"


def _said(a: str, b: str) -> str:
    return f"{b} beside {a}"


def other(opened: Opened, selection: Selection) -> Other | None:
    """The pair that a selection names; None where there is none, or none of that name.

    Raises:
        AnalysisError: its store is unreadable or not to be trusted, or lacks the position or the site.
    """
    asked = SimilarityFields.of(selection).against
    store, _, models = asked.rpartition(":")
    stores, left_out = beside(other_stores(opened))
    if store in left_out:
        raise AnalysisError(
            "There is no contrast with a pair of this store.",
            expected="a store that opens and whose self-checks hold",
            given=left_out[store],
            next_step="choose another pair, or start the server with another store beside.",
        )
    name = pairs(opened, selection).get(asked)
    if name is None:
        return None
    there = stores[store] if store else opened
    _captured(there, selection, name)
    if not same_place(opened, there, selection.position):
        raise AnalysisError(
            f"There is no contrast with {name} at {selection.position}: these are other tokens there.",
            expected="one seed of both studies for a draw, one definition of a span",
            given="two",
            next_step="choose another position.",
        )
    a, b = models.split("|")
    return Other(there, (a, b), name)


def _captured(there: Opened, selection: Selection, name: str) -> None:
    """AnalysisError where another pair wasn't captured at the selection's position and site."""
    site = _site(selection)
    for kind, wanted, has in (
        ("position", selection.position, there.facts.positions),
        ("site", site, [one for one in there.facts.sites if one != "head_out"]),
    ):
        if wanted not in has:
            raise AnalysisError(
                f"There is no contrast with {name}: its store lacks the {kind} {wanted}.",
                expected=f"the same {kind} of both pairs",
                given=f"a store with {', '.join(has)}",
                next_step=f"choose a {kind} that both stores have.",
            )


def same_place(opened: Opened, there: Opened, position: str) -> bool:
    """Whether a position is the same tokens' in two stores: draws depend on the seed, spans on the study."""
    one, two = (at.store.manifest["study"] for at in (opened, there))
    if sample_of(position)[1] and one.get("seed", 0) != two.get("seed", 0):
        return False
    spans = (
        [p for p in study.get("capture", {}).get("positions", ()) if isinstance(p, dict)]
        for study in (one, two)
    )
    first, second = ([span for span in own if span.get("name") == position] for own in spans)
    return first == second


def contrast_title(shown: pl.DataFrame, layer: int, names: tuple[str, str], *, paired: bool) -> str:
    """1 − CKA of two pairs at one block, and their difference where the prompts are the same."""
    at = min(shown["layer"].unique().to_list(), key=lambda block: abs(block - layer))
    by: Mapping[str, dict[str, float]] = {
        row["series"]: row for row in shown.filter(layer=at).iter_rows(named=True)
    }
    told = " and ".join(f"{words.number(by[name]['value'])} of {name}" for name in names)
    text = f"1 − CKA at block {at}: {told}"
    if not paired:
        return f"{text}; not the same prompts, so no difference is told"
    row = by[DIFFERENCE]
    return f"{text}; difference {words.number(row['value'])}{words.span(row['low'], row['high'])}"


def panel(opened: Opened, selection: Selection) -> Panel | None:
    """Both curves, and the difference where it can be told; None without another pair."""
    found = other(opened, selection)
    if found is None:
        return None
    names, pair = (_said(selection.a, selection.b), found.name), (selection.a, selection.b)
    call = Call(
        tables.contrast,
        opened.store,
        other=found.opened.store,
        pair=pair,
        other_pair=found.models,
        names=names,
        site=_site(selection),
        position=selection.position,
        which=chosen_filter(selection),
        estimator=selection.estimator,
        interval=selection.interval,
    )
    shown, paired = call.table, DIFFERENCE in call.table["series"]

    def draw(palette: Palette) -> Chart:
        colors = {names[0]: palette.pair, names[1]: palette.series[2]}
        colors |= {DIFFERENCE: palette.text} if paired else {}
        look = Look("1 − CKA", colors, references={"alike": 0.0}, selected=selection.layer)
        return layer_curve(shown, look, palette)

    unit = unit_said(opened.store, chosen_filter(selection))
    how = (
        f"Difference: of the first less the second on the same prompts, jackknife over {unit}s, "
        f"{LEVEL:.0%} at each block by itself."
        if paired
        else "The two stores don't hold the same prompts: intervals that don't overlap may come from that."
    )
    where = f"{_site(selection)} at {words.position_said(selection.position)}"
    caption = f"{where}, {selection.estimator} CKA. Bands as above. {how}"
    title = contrast_title(shown, selection.layer, names, paired=paired)
    return Panel.of(call, "cka-contrast", title, draw, caption, pair)
