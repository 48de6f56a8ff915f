"""The section of saved maps: save the map in view, open, download, delete, and bring one in from a file."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import polars as pl
import streamlit as st

from app import access, screen
from app.escape import plain
from app.frame import parts as components
from app.frame import words
from app.frame.opened import Opened
from app.frame.selection import Selection
from app.transport import tables as tq
from app.transport.fields import MapFields
from engine.errors import AnalysisError, StoreError
from engine.transport import TransportMap, export_map, import_map, r2
from store.layout import slug
from store.maps import MapLog, SavedMap, from_bytes, to_bytes

Provenance = dict[str, Any]


def provenance(opened: Opened, selection: Selection) -> Provenance:
    """Where the map in view comes from and how it scores."""
    place, spec = tq.Place.of(selection), tq.spec_of(selection)
    scores = tq.scores(opened.store, place, spec).to_json()
    return {
        "fingerprint": opened.store.fingerprint,
        "study": components.study_name(opened),
        **place.__dict__,
        "widths": [tq.width(opened.store, model, place.site) for model in (place.source, place.target)],
        "fitted_on": "train",
        "spec": spec.model_dump(),
        "description": spec.describe(),
        "scores": {k: v for k, v in scores.items() if not isinstance(v, float) or math.isfinite(v)},
    }


def made(opened: Opened, selection: Selection) -> TransportMap:
    """The fitted map in view."""
    return tq.fitted(opened.store, tq.Place.of(selection), tq.spec_of(selection))


def suggested(selection: Selection) -> str:
    """A name for the map in view."""
    place = tq.Place.of(selection)
    parts = (
        place.source,
        place.target,
        place.site,
        str(place.layer),
        place.position,
        MapFields.of(selection).method,
    )
    return slug("-".join(parts))[:80].strip("-.")


def check_fits(saved: SavedMap, opened: Opened) -> tq.Place:
    """The place that a saved map belongs to, in this store.

    Raises:
        StoreError: this store has no such model, site, block or position, or activations of another width.
    """
    kept = saved.provenance
    try:
        place = tq.Place(
            str(kept["source"]),
            str(kept["target"]),
            str(kept["site"]),
            int(kept["layer"]),
            str(kept["position"]),
        )
        widths = [int(w) for w in kept["widths"]]
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"Map {saved.name!r} doesn't say where it belongs.",
            expected="source, target, site, layer, position and widths in its provenance",
            given=f"{type(error).__name__}: {error}",
            next_step="Save it again from the page that fitted it.",
        ) from error
    store, missing = opened.store, ""
    for model in (place.source, place.target):
        if model not in store.models:
            missing = f"model {model!r} among {', '.join(store.models)}"
        elif place.layer not in store.layers(model):
            missing = f"block {place.layer} of {model}"
    if place.site not in opened.facts.sites:
        missing = f"site {place.site!r} among {', '.join(opened.facts.sites)}"
    elif place.position not in opened.facts.positions:
        missing = f"position {place.position!r} among {', '.join(opened.facts.positions)}"
    if missing:
        raise StoreError(
            f"Map {saved.name!r} belongs to another study.",
            expected=f"{place.source} → {place.target}, {place.words}",
            given=f"this store has no {missing}",
            next_step="Open it on a store that captured that place.",
        )
    here = [tq.width(opened.store, model, place.site) for model in (place.source, place.target)]
    if here != widths:
        raise StoreError(
            f"Map {saved.name!r} is for activations of another width.",
            expected=f"{place.site} of width {widths[0]} → {widths[1]}",
            given=f"{here[0]} → {here[1]} in this store",
            next_step="Open it on the models that it was fitted on, or fit a new map here.",
        )
    return place


def opened_map(saved: SavedMap, opened: Opened) -> tuple[tq.Place, float]:
    """Where a saved map belongs, and its R² on this store's validation prompts.

    Raises:
        StoreError: see `check_fits`. AnalysisError: it is of an unknown kind.
    """
    place = check_fits(saved, opened)
    both = tq.pair(opened.store, place).validation
    try:
        predicted = import_map(saved.description, saved.arrays).predict(both.x.rows)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AnalysisError(
            f"Map {saved.name!r} can't be put together.",
            expected="the arrays and the description of one map",
            given=f"{type(error).__name__}: {error}",
            next_step="Take another copy, or fit and save the map again.",
        ) from error
    return place, r2(both.y.rows, np.asarray(predicted))


def listing(maps: list[SavedMap]) -> pl.DataFrame:
    """One line per saved map."""
    rows = [
        {
            "name": m.name,
            "map": str(m.provenance.get("description", m.description.get("map", ""))),
            "from": f"{m.provenance.get('source', '?')} → {m.provenance.get('target', '?')}",
            "place": f"{m.provenance.get('site', '?')} {m.provenance.get('layer', '?')}, "
            f"{m.provenance.get('position', '?')}",
            "r2_validation": (m.provenance.get("scores") or {}).get("r2_validation"),
            "saved": m.created[:16].replace("T", " "),
        }
        for m in maps
    ]
    schema = {**dict.fromkeys(("name", "map", "from", "place"), pl.String)}
    return pl.DataFrame(rows, schema={**schema, "r2_validation": pl.Float64, "saved": pl.String})


def section(opened: Opened, selection: Selection) -> None:
    """Draw the section."""
    log = MapLog(opened.path)
    with st.container(border=True, key="panel-saved-maps"):
        screen.markdown("#### Saved maps")
        with components.guard("saved maps: save"):
            _save(opened, selection, log)
        with components.guard("saved maps: list"):
            _browse(opened, log)
        with components.guard("saved maps: file"):
            _bring(opened, log)


def _save(opened: Opened, selection: Selection, log: MapLog) -> None:
    text, button, file = st.columns([3, 1, 1], vertical_alignment="bottom")
    wanted = suggested(selection)
    with text:
        name = screen.text_input("Name for the map in view", wanted, key=f"map-name-{wanted}")
    with button:
        if screen.button("Save to the study", icon=":material/save:", width="stretch", key="map-save"):
            access.require("import")
            log.save(name, *export_map(made(opened, selection)), provenance(opened, selection))
            screen.toast(f"Saved {plain(name)}.")
    with file:
        screen.download_button(
            "Download",
            lambda: to_bytes(name, *export_map(made(opened, selection)), provenance(opened, selection)),
            file_name=f"{name}.safetensors",
            mime="application/octet-stream",
            icon=":material/download:",
            on_click="ignore",
            width="stretch",
            key="map-download",
        )


def _browse(opened: Opened, log: MapLog) -> None:
    maps, problems = log.list()
    for name, problem in problems.items():
        screen.warning(plain(f"{name}: {problem}"))
    if not maps:
        screen.caption(
            "No map is saved yet. A map is one .safetensors file: its arrays, and JSON on where it is from."
        )
        return
    columns = {"r2_validation": st.column_config.NumberColumn("R² validation", format="%.3f")}
    screen.dataframe(listing(maps), hide_index=True, width="stretch", column_config=columns)
    pick, load, take, drop = st.columns([3, 1, 1, 1], vertical_alignment="bottom")
    with pick:
        name = screen.selectbox("Saved map", [m.name for m in maps], key="map-pick")
    with load:
        wanted = screen.button("Open", icon=":material/folder_open:", width="stretch", key="map-open")
    with take:
        screen.download_button(
            "Download",
            lambda: log.data(name),
            file_name=f"{name}.safetensors",
            mime="application/octet-stream",
            icon=":material/download:",
            on_click="ignore",
            width="stretch",
            key="map-take",
        )
    with drop:
        if screen.button("Delete", icon=":material/delete:", width="stretch", key="map-delete"):
            access.require("import")
            log.delete(name)
            st.rerun()
    if wanted:
        _tell(opened, log.open(name))


def _bring(opened: Opened, log: MapLog) -> None:
    given = screen.file_uploader("Bring a map in from a file", type=["safetensors"], key="map-file")
    if given is None:
        return
    saved = from_bytes(given.getvalue(), given.name)
    _tell(opened, saved)
    if saved.name in log.names():
        screen.caption("A map of this name is in the study already.")
    elif screen.button("Keep it in the study", icon=":material/save:", key="map-keep"):
        access.require("import")
        log.save(saved.name, saved.description, saved.arrays, saved.provenance)
        st.rerun()


def _tell(opened: Opened, saved: SavedMap) -> None:
    place, value = opened_map(saved, opened)
    then = (saved.provenance.get("scores") or {}).get("r2_validation")
    before = "" if then is None else f"; {words.number(float(then), 3)} when it was saved"
    screen.success(
        plain(
            f"{saved.name}: {place.source} → {place.target}, {place.words}. "
            f"R² on this store's validation prompts: {words.number(value, 3)}{before}."
        )
    )
    with screen.expander("Provenance"):
        st.code(json.dumps(saved.provenance, indent=1, ensure_ascii=False), language="json")
