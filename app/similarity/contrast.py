"""Two pairs of models in one chart: 1 − CKA of the page's pair and of another one, and their difference.

The other pair is of the same store, or of one that the server was started with (`--beside`). Where the
prompts are the same, the difference has an interval of its own; else there is none to tell.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import polars as pl
import streamlit as st

from app import screen
from app.charts.curves import Look, layer_curve
from app.charts.palette import Palette
from app.charts.template import Chart
from app.escape import plain
from app.frame import controls, words
from app.frame import prompts as queries
from app.frame.opened import Key, Opened, failed_checks, open_at, other_stores
from app.frame.panel import Panel
from app.frame.prompts import Filter
from app.frame.selection import Selection, changed
from app.similarity.fields import SimilarityFields
from engine.errors import AnalysisError, PatchbayError
from engine.prompts.draws import sample_of
from engine.similarity import cka

DIFFERENCE = "difference"
NONE = "no other pair"


@dataclass(frozen=True)
class Other:
    """Another pair: its store, the selection that shows it, and what it is called."""

    opened: Opened
    selection: Selection
    name: str


def choose(opened: Opened) -> None:
    """The control: every other pair of this store, and all pairs of the stores beside it."""
    selection = controls.current()
    if selection.a == selection.b:
        return
    for why in beside(other_stores())[1].values():
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


def beside(paths: Sequence[str]) -> tuple[dict[int, Opened], dict[int, str]]:
    """Stores to contrast with, by their number from 1, and why others are none: unreadable or not trusted."""
    found: dict[int, Opened] = {}
    left_out: dict[int, str] = {}
    for number, path in enumerate(paths, 1):
        try:
            there = open_at(path)
        except PatchbayError as error:
            left_out[number] = f"{path} can't be opened: {error}"
            continue
        if failed_checks(there.store):
            left_out[number] = f"{path} failed its own checks; its numbers are not shown."
        elif not there.store.self_checks():
            left_out[number] = f"{path} has no self-checks; its numbers are not shown."
        else:
            found[number] = there
    return found, left_out


def pairs(opened: Opened, selection: Selection, paths: Sequence[str] | None = None) -> dict[str, str]:
    """Other pairs by what a link calls them, with their names for people; `paths` as `other` takes them."""
    here = {frozenset((selection.a, selection.b))}
    found = {
        f"{a}|{b}": _said(a, b)
        for a, b in itertools.combinations(opened.facts.models, 2)
        if frozenset((a, b)) not in here
    }
    for number, there in beside(other_stores() if paths is None else paths)[0].items():
        models = there.facts.models if there.facts.positions else ()
        study = str(there.store.manifest["study"].get("name", there.path))
        found |= {
            f"{number}:{a}|{b}": f"{study}: {_said(a, b)}" for a, b in itertools.combinations(models, 2)
        }
    return found


def _site(selection: Selection) -> str:
    return selection.site if selection.site != "head_out" else "head_z"


def _said(a: str, b: str) -> str:
    return f"{b} beside {a}"


def other(opened: Opened, selection: Selection, paths: Sequence[str] | None = None) -> Other | None:
    """The pair that a selection names; None where there is none, or none of that name.

    Args:
        paths: the other stores that its number counts; by default those that the server was started with.

    Raises:
        AnalysisError: its store is unreadable or not to be trusted, or lacks the position or the site.
    """
    asked, known = SimilarityFields.of(selection).against, other_stores() if paths is None else paths
    number, _, models = asked.rpartition(":")
    stores, left_out = beside(known)
    if number.isdecimal() and int(number) in left_out:
        raise AnalysisError(
            "There is no contrast with a pair of this store.",
            expected="a store that opens and whose self-checks hold",
            given=left_out[int(number)],
            next_step="choose another pair, or start the server with another store beside.",
        )
    name = pairs(opened, selection, known).get(asked)
    if name is None:
        return None
    there = stores[int(number)] if number else opened
    _captured(there, selection, name)
    if not same_place(opened, there, selection.position):
        raise AnalysisError(
            f"There is no contrast with {name} at {selection.position}: these are other tokens there.",
            expected="one seed of both studies for a draw, one definition of a span",
            given="two",
            next_step="choose another position.",
        )
    a, b = models.split("|")
    return Other(there, replace(changed(selection, against=""), a=a, b=b), name)


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


def same_prompts(opened: Opened, there: Opened, which: Filter) -> bool:
    """Whether similarity looks at the same prompts, in the same order, in two stores."""
    if opened is there:
        return True
    one, two = (
        at.store.prompts[queries.looked_at(at, which)].select(c for c in ("id", "text") if c in columns)
        for at, columns in ((o, o.store.prompts.columns) for o in (opened, there))
    )
    return one.equals(two)


def table(opened: Opened, selection: Selection, found: Other, site: str) -> tuple[pl.DataFrame, bool]:
    """Columns layer, series (a pair's name, or "difference"), value, low, high; and whether there is one.

    1 − CKA of either pair at the blocks that both have, and the first's minus the second's.

    Raises:
        AnalysisError: no block that both pairs have.
    """
    name = _said(selection.a, selection.b)
    curves = []
    for one, at, said in ((opened, selection, name), (found.opened, found.selection, found.name)):
        curve = queries.cka_curve(one, at, site).filter(series=selection.estimator)
        distance = {"value": 1 - pl.col("value"), "low": 1 - pl.col("high"), "high": 1 - pl.col("low")}
        curves.append(curve.select("layer", series=pl.lit(said), **distance))
    blocks = sorted(set(curves[0]["layer"]) & set(curves[1]["layer"]))
    if not blocks:
        raise AnalysisError(
            f"There is no contrast of {name} with {found.name}: no block was captured of both.",
            expected="at least one block in both",
            given=" and ".join(str(curve["layer"].to_list()) for curve in curves),
            next_step="choose another pair.",
        )
    kept = [curve.filter(pl.col("layer").is_in(blocks)) for curve in curves]
    which = queries.chosen_filter(selection)
    paired = same_prompts(opened, found.opened, which)
    if paired:
        keys = (opened.key, found.opened.key)
        debiased = selection.estimator == "debiased"
        kept.append(
            _difference(keys, (opened, found.opened), (selection, found.selection), site, which, debiased)
        )
    return pl.concat(kept), paired


def _relevant(selection: Selection) -> tuple[str, ...]:
    return selection.a, selection.b, selection.position


@st.cache_data(show_spinner="Leaving prompts out…", max_entries=32, hash_funcs={Selection: _relevant})
def _difference(
    keys: tuple[Key, Key],
    _opened: tuple[Opened, Opened],
    selections: tuple[Selection, Selection],
    site: str,
    which: Filter,
    debiased: bool,
) -> pl.DataFrame:
    blocks, sides = [], []
    for at, selection in zip(_opened, selections, strict=True):
        blocks.append(queries.shared_blocks(at, selection.a, selection.b))
        stacks = queries.stacks(at, selection, site, which)
        layers = [at.store.layers(model) for model in (selection.a, selection.b)]
        sides.append((stacks, layers))
    both = sorted(set(blocks[0]) & set(blocks[1]))
    first, second = (
        tuple(stack[[own.index(b) for b in both]] for stack, own in zip(*side, strict=True)) for side in sides
    )
    units = queries.units(_opened[0], queries.looked_at(_opened[0], which))
    found, low, high = cka.cka_difference(
        first,  # type: ignore[arg-type]
        second,  # type: ignore[arg-type]
        debiased=debiased,
        groups=units,
        level=queries.LEVEL,
    )
    distance = {"value": -found, "low": -high, "high": -low}  # of 1 − CKA
    return pl.DataFrame({"layer": both, "series": DIFFERENCE} | distance)


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
    site = _site(selection)
    shown, paired = table(opened, selection, found, site)
    names = _said(selection.a, selection.b), found.name

    def draw(palette: Palette) -> Chart:
        colors = {names[0]: palette.pair, names[1]: palette.series[2]}
        colors |= {DIFFERENCE: palette.text} if paired else {}
        look = Look("1 − CKA", colors, references={"alike": 0.0}, selected=selection.layer)
        return layer_curve(shown, look, palette)

    unit = queries.unit_said(opened, queries.chosen_filter(selection))
    how = (
        f"Difference: of the first less the second on the same prompts, jackknife over {unit}s, "
        f"{queries.LEVEL:.0%} at each block by itself."
        if paired
        else "The two stores don't hold the same prompts: intervals that don't overlap may come from that."
    )
    where = f"{site} at {words.position_said(selection.position)}"
    caption = f"{where}, {selection.estimator} CKA. Bands as above. {how}"
    paths = [] if found.opened is opened else [found.opened.path]
    code = "\n".join(
        (
            "from app.frame.opened import open_at",
            "from app.frame.selection import changed, defaults",
            "from app.similarity import contrast",
            "",
            f"opened = open_at({opened.path!r})",
            f"selection = changed(defaults(opened.facts), **{_settings(selection)!r})",
            f"other = contrast.other(opened, selection, {paths!r})",
            f"table, paired = contrast.table(opened, selection, other, {site!r})",
        )
    )
    title = contrast_title(shown, selection.layer, names, paired=paired)
    return Panel("cka-contrast", title, shown, draw, code, caption, (selection.a, selection.b))


def _settings(selection: Selection) -> dict[str, object]:
    names = ("a", "b", "site", "position", "layer", "split", "language", "category", "estimator", "interval")
    kept = {name: getattr(selection, name) for name in names}
    number, _, models = SimilarityFields.of(selection).against.rpartition(":")
    return kept | {"against": f"1:{models}" if number else models}
