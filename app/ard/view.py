"""Fits of lengthscales as a page needs them: experiments from the selection, stored results as panels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
import streamlit as st

from app import screen
from app.ard import panels as ard_panels
from app.ard.fields import PENALTIES as LINKED
from app.ard.fields import USUAL_RATE, ArdFields
from app.ard.tables import Fit, fit_of, key_of, opened_fit, stored
from app.escape import plain
from app.frame import controls
from app.frame import parts as components
from app.frame import running as live_view
from app.frame.fields import exponent
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.frame.selection import Selection, changed
from app.geometry import tables as geometry_queries
from app.geometry import weights as geometry
from app.live.jobs import JobResult, JobStatus
from engine.ard.spec import PENALTIES, RANDOM_DRAWS, Ard
from engine.errors import PatchError

PAGE = "ard"
SITES = ("resid_pre", "resid_post", "attn_out", "mlp_out")
OBJECTIVES = {"contrastive": "contrastive", "paired": "paired"}
STARTS = {"cold": "cold", "svd": "Z of the block", "random": f"{RANDOM_DRAWS} random subspaces"}
RULES = {"outlier": "outliers", "mixture": "mixture", "fixed": "by hand", "median": "median"}
PENALTY_NAMES = {text: f"λ = {text}" for text in LINKED}
LAYERS = {"one": "this block", "every": "every block"}
OBJECTIVE_HELP = (
    "contrastive: MMD² of the same problem in two languages minus that of different problems in one "
    "language, plus λ Σ 1/ℓ. paired: without the second part; nothing in it rewards a finite lengthscale, so "
    "that it runs off: kept to be seen."
)
START_HELP = (
    "Where the descent begins. From Z of the block its overlap with Z is circular; the random subspaces are "
    "the null of that: how much any fit keeps of what it was started with."
)
FITTED = {"train": "train problems", "all": "all problems"}
FITTED_HELP = "Fitted on all problems, nothing is held out: whether anything was found is then not tested."
WHY_EMPTY = (
    "These prompts do not come in two languages",
    "Lengthscales are fitted to the same problems in two languages. Give the prompts a `pair_id` and a "
    "`language`, with train problems among them, and run precompute.py again.",
)


def available(opened: Opened) -> bool:
    """Whether problems come in two languages and a site as wide as the stream is known."""
    return geometry_queries.languages(opened.store) is not None and bool(sites(opened))


def empty(opened: Opened) -> tuple[str, str] | None:
    """Why there is nothing to fit; None where there is."""
    return None if available(opened) else WHY_EMPTY


def sites(opened: Opened) -> tuple[str, ...]:
    """Sites offered."""
    return tuple(site for site in SITES if site in opened.facts.sites)


def ranks(opened: Opened) -> tuple[int, ...]:
    """Ranks of Z offered; none without head kernels."""
    return geometry_queries.ranks(opened.store) if geometry.available(opened) else ()


def effective(opened: Opened, selection: Selection) -> Selection:
    """The selection with a site, a start and a k that this page can show."""
    own = ArdFields.of(selection)
    offered, ks = sites(opened), ranks(opened)
    return changed(
        selection,
        site=selection.site if selection.site in offered else offered[-1],
        start=own.start if ks or own.start == "cold" else "cold",
        k=min(ks, key=lambda k: abs(k - selection.k)) if ks else selection.k,
    )


def experiment_of(
    opened: Opened,
    selection: Selection,
    *,
    layer: int | None = None,
    penalty: float | None = None,
    start: str | None = None,
) -> Ard:
    """The fit that a selection describes, or one at another layer, λ or start.

    Raises:
        PatchError: the prompts don't come in two languages.
    """
    own = ArdFields.of(selection)
    pair = geometry_queries.languages(opened.store)
    if pair is None:
        raise PatchError(WHY_EMPTY[0] + ".", expected="pair_id and language", given="one language")
    begin = own.start if start is None else start
    return Ard(
        model=geometry.model_of(selection),
        component=selection.site,  # type: ignore[arg-type]
        layer=selection.layer if layer is None else layer,
        languages=pair,
        category=None if selection.category == "all" else selection.category,
        objective=own.objective,  # type: ignore[arg-type]
        penalty=float(own.penalty) if penalty is None else penalty,
        start=begin,  # type: ignore[arg-type]
        k=None if begin == "cold" else selection.k,
        joined=selection.joined if begin == "svd" else "blocks",  # type: ignore[arg-type]
        draws=RANDOM_DRAWS if begin == "random" else 1,
        steps=own.steps,
        max_tokens=own.cloud,
        problems=own.most,
        rate=0.05 if own.rate == USUAL_RATE else float(f"{10**own.rate:.6g}"),
        fitted=own.fitted,  # type: ignore[arg-type]
    )


def selection_of(condition: Mapping[str, Any], selection: Selection) -> dict[str, Any]:
    """Changes to a selection under which `experiment_of` gives this stored condition again."""
    model = condition["model"]
    side = {"model": "b"} if model == selection.b != selection.a else {"model": "a", "a": model}
    warm = {} if condition["k"] is None else {"k": condition["k"]}
    rate = condition.get("rate", 0.05)
    joined = {"joined": condition["joined"]} if condition["start"] == "svd" else {}
    return {
        **side,
        "site": condition["component"],
        "layer": condition["layer"],
        "category": condition["category"] or "all",
        "objective": condition["objective"],
        "penalty": f"{condition['penalty']:g}",
        "start": condition["start"],
        "steps": condition["steps"],
        "cloud": condition["max_tokens"],
        "most": condition["problems"],
        "rate": USUAL_RATE if rate == 0.05 else exponent(rate),
        "fitted": condition.get("fitted", "train"),
        **warm,
        **joined,
    }


def grid(opened: Opened, selection: Selection) -> list[Ard]:
    """Fits that one click asks for: every λ at the selected block, or at every block."""
    n_layers = opened.facts.n_layers[geometry.model_of(selection)]
    layers = range(0, n_layers, selection.stride) if selection.layers == "every" else [selection.layer]
    return [
        experiment_of(opened, selection, layer=layer, penalty=penalty)
        for layer in layers
        for penalty in PENALTIES
    ]


def missing(opened: Opened, wanted: Sequence[Ard]) -> list[Ard]:
    """Those that have no stored result yet: an interrupted grid goes on where it stopped."""
    known = stored(opened)
    return [spec for spec in wanted if key_of(spec.to_json()) not in known]


def run_text(wanted: Sequence[Ard], left: Sequence[Ard]) -> str:
    """Text of the button."""
    if len(left) < len(wanted):
        return f"Go on: {len(left)} of {len(wanted)} fits are left"
    blocks = len({spec.layer for spec in wanted})
    at = f"block {wanted[0].layer}" if blocks == 1 else f"{blocks} blocks"
    return f"Fit {len(wanted)} lengthscale sets: λ = {', '.join(f'{p:g}' for p in PENALTIES)} at {at}"


def not_run(selection: Selection) -> tuple[str, str]:
    """Empty state: what a click will do."""
    return (
        f"Block {selection.layer} has not been fitted under these settings",
        "**Fit** runs the train problems of both languages through the model, fits one lengthscale per "
        f"dimension of {selection.site} for every λ, and asks validation problems whether anything was "
        "found. Each (block, λ) is kept as it ends, so that a stopped grid goes on where it was.",
    )


def fits_of(opened: Opened, selection: Selection, start: str | None = None) -> dict[tuple[int, float], Fit]:
    """Stored fits under the selection's settings, by (block, λ)."""
    known, found = stored(opened), {}
    for layer in range(opened.facts.n_layers[geometry.model_of(selection)]):
        for penalty in PENALTIES:
            spec = experiment_of(opened, selection, layer=layer, penalty=penalty, start=start)
            run_id = known.get(key_of(spec.to_json()))
            if run_id is not None:
                found[layer, penalty] = opened_fit(opened.path, run_id)
    return found


def panels(opened: Opened, selection: Selection, fits: Mapping[tuple[int, float], Fit]) -> list[Panel]:
    """What is stored under the selection's settings: the block's panels, then those over blocks."""
    own = ArdFields.of(selection)
    penalty = float(own.penalty)
    made: list[Panel] = []
    here = [fit for (layer, _), fit in fits.items() if layer == selection.layer]
    if here:
        made.append(ard_panels.loss_panel(opened, here))
    one = fits.get((selection.layer, penalty))
    if one is not None:
        made += [
            ard_panels.spectrum_panel(opened, one, selection),
            ard_panels.sorted_panel(opened, one, selection),
        ]
    every = list(fits.values())
    if every:
        made.append(ard_panels.layers_panel(opened, every, penalty, selection))
    same = [fit for fit in every if fit.penalty == penalty]
    if same and ard_panels.has_z(opened, same[0]):
        nulls: dict[int, Fit] = {}
        if own.start == "svd":
            random = fits_of(opened, selection, "random")
            nulls = {layer: fit for (layer, at), fit in random.items() if at == penalty}
        made.append(ard_panels.overlap_panel(opened, same, nulls, selection))
    return made


def run_panels(opened: Opened, result: JobResult, selection: Selection) -> list[Panel]:
    """The panels of one stored fit."""
    ks = ranks(opened)
    near = dataclasses.replace(
        selection, k=min(ks, key=lambda k: abs(k - selection.k)) if ks else selection.k
    )
    return ard_panels.run_panels(opened, result, fit_of(result, opened.store.prompts), near)


def growing(jobs: Sequence[JobStatus]) -> tuple[str, pl.DataFrame] | None:
    """(which fit, its loss curve so far) of the job that runs; None before its first step."""
    for job in jobs:
        if isinstance(job.condition, Ard) and job.state == "running" and job.partial:
            table = pl.DataFrame(job.partial["trace"], schema={"step": pl.Int64, "objective": pl.Float64})
            return f"block {job.condition.layer}, λ = {job.condition.penalty:g}", table
    return None


def _so_far() -> None:
    """The loss curve of the running fit."""
    found = growing(live_view.active())
    if found is None or not found[1].height:
        return
    name, table = found
    drawn = table.select(pl.col("step").alias("x"), series=pl.lit("objective"), value=pl.col("objective"))
    with st.container(border=True, key="ard-so-far"):
        screen.markdown(f"#### {plain(name)}: {table['objective'][-1]:.4g} at step {table['step'][-1]}")
        spec = ard_panels.loss_chart(drawn, ["objective"], components.colors()).spec()
        st.vega_lite_chart(spec=spec, width="stretch", key="chart-ard-so-far", alt="objective over steps")


def settings(opened: Opened) -> None:
    """Place and model, what is minimised from where, and at which blocks."""
    controls.across(
        lambda: controls.slide("layer", "Block ℓ"),
        lambda: controls.choose("site", "Site", only=sites(opened)),
        _rare,
        vertical_alignment="bottom",
    )
    with controls.row():
        controls.switch("model", "Model", geometry.model_names(controls.current()))
        controls.switch("objective", "Objective", OBJECTIVES, help=OBJECTIVE_HELP)
        starts = list(STARTS) if ranks(opened) else ["cold"]
        controls.switch("start", "Start", STARTS, only=starts, help=START_HELP)
        controls.switch("layers", "Fit", LAYERS)


def show(opened: Opened, selection: Selection) -> None:
    """What runs the fits, the one that runs, and stored ones under controls of what is shown of them."""
    chosen = effective(opened, selection)
    wanted = grid(opened, chosen)
    left = missing(opened, wanted)
    live_view.run_button(opened, left, run_text(wanted, left), done=not left)
    live_view.watch()
    live_view.watch_partial(Ard, _so_far, 1.0)
    fits = fits_of(opened, chosen)
    if not any(layer == chosen.layer for layer, _ in fits) and not live_view.active():
        components.empty(*not_run(chosen))
    if not fits:
        return
    with controls.row():
        controls.switch("penalty", "Penalty shown", PENALTY_NAMES)
        controls.switch("rule", "Threshold", RULES)
    if ArdFields.of(chosen).rule == "fixed":
        controls.slide("cut", "Threshold, log₁₀ ℓ", step=0.05)
    if ranks(opened):
        controls.steps("k", "Rank k of Z", ranks(opened))
    for panel in panels(opened, chosen, fits):
        with components.guard(f"ard: {panel.name}"):
            components.show(opened, panel)


def _rare() -> None:
    """Steps and tokens: what is rarely changed."""
    with screen.popover("Fit settings", icon=":material/settings:", key="ard-settings"):
        controls.slide("steps", "Steps at most")
        controls.slide("cloud", "Tokens of a prompt at most")
        controls.switch("fitted", "Fitted on", FITTED, help=FITTED_HELP)
        controls.slide("most", "Problems at most")
        controls.slide("rate", "log₁₀ of the learning rate", step=0.1)
        controls.stride()
