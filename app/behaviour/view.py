"""Behaviour as a page needs it: experiments from the selection, stored runs side by side, and answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
import streamlit as st

from app import screen
from app.behaviour import panels as behaviour_panels
from app.behaviour.panels import Runs
from app.escape import plain
from app.frame import controls
from app.frame import running as live_view
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.frame.selection import Selection, listed, where_changes, where_of
from app.frame.words import label
from app.live.jobs import JobResult
from engine.behaviour.report import side_by_side
from engine.behaviour.spec import (
    FIGURES,
    SCORES,
    Behaviour,
    Figure,
    Intervention,
    Measure,
    Wording,
    figures,
    style_figures,
)

PAGE = "behaviour"
TEXT: tuple[Measure, ...] = ("text",)
MAX_NEW_TOKENS = 64
WHY_NO_FIGURE = (
    "No prompt has a value",
    "This figure needs prompts that these don't have: choices with an answer among them for multiple choice, "
    "a yes and a no as choices for agreement, an answer for accuracy.",
)


def offered_figures(wording: Wording) -> dict[str, Figure]:
    """All that can be measured with these lists, by name."""
    return {figure.name: figure for figure in (*FIGURES, *style_figures(wording.markers))}


def figure_of(selection: Selection, offered: Mapping[str, Figure]) -> Figure:
    """The figure a selection shows; agreement where the link names none of those offered."""
    return offered.get(selection.measure, offered["agreement"])


def experiment_of(
    selection: Selection,
    model: str | None = None,
    intervention: Intervention | None = None,
    lead: str = "",
    wording: Wording | None = None,
) -> Behaviour:
    """The run that gives the selected figure for a model of the pair, by default B.

    Scores come with the diagnostic on the tokens that the pair shares.
    """
    model = selection.b if model is None else model
    partner = selection.a if model == selection.b else selection.b
    wording = wording or Wording()
    text = figure_of(selection, offered_figures(wording)).measure == "text"
    return Behaviour(
        model=model,
        intervention=intervention,
        measures=TEXT if text else SCORES,
        split=selection.report,  # type: ignore[arg-type]
        where=where_of(selection),
        max_new_tokens=MAX_NEW_TOKENS,
        shared_with=None if partner == model else partner,
        lead=lead,
        wording=wording,
    )


def wording_of(opened: Opened) -> Wording:
    """The lists of the study, beside the built-in ones."""
    study: Mapping[str, Any] = opened.store.manifest.get("study", {})
    return Wording.beside(study.get("wording", {}))


def wording_table(opened: Opened) -> pl.DataFrame:
    """list, language, texts, from ("study" or "built in"); a row for each, and one for every language of the
    prompts without a list, which is read with all of them."""
    study = opened.store.manifest.get("study", {}).get("wording", {})
    lists = wording_of(opened).model_dump()
    styles = lists.pop("style")
    given = {name: study.get(name, {}) for name in lists}
    for language, markers in styles.items():
        for marker, patterns in markers.items():
            lists.setdefault(f"style: {marker}", {})[language] = patterns
            mine = marker in study.get("style", {}).get(language, {})
            given.setdefault(f"style: {marker}", {}).update({language: patterns} if mine else {})
    rows = [
        (name, language, ", ".join(texts), "study" if language in given[name] else "built in")
        for name, by in lists.items()
        for language, texts in by.items()
    ]
    rows += [
        (name, language, "all of these", "no list of its own")
        for name, by in lists.items()
        for language in opened.facts.languages
        if language not in by
    ]
    return pl.DataFrame(rows, schema=["list", "language", "texts", "from"], orient="row")


def show_wording(opened: Opened) -> None:
    """The lists that answers are read with."""
    with screen.expander("Words and patterns", icon=":material/translate:"):
        screen.dataframe(wording_table(opened), hide_index=True, width="stretch")
        screen.caption("`[wording]` in the study adds lists of any language, or replaces a language's own.")


def lead_of(opened: Opened) -> str:
    """What stands between a prompt and a choice: a space, unless a chat template ends with white space."""
    study: Mapping[str, Any] = opened.store.manifest.get("study", {})
    return "" if study.get("prompts", {}).get("template", "chat") == "chat" else " "


def selection_of(condition: Mapping[str, Any], selection: Selection) -> dict[str, Any]:
    """Changes to a selection under which the page shows this stored run."""
    model = condition["model"]
    pair = {"a": selection.a, "b": selection.b}
    partner = condition.get("shared_with")
    if partner is not None and {model, partner} != {selection.a, selection.b}:
        pair = {"a": partner, "b": model}
    elif model not in pair.values():
        pair["b"] = model
    experiment = Behaviour.from_json(condition)
    shown = [f.name for f in figures(experiment)]
    changes: dict[str, Any] = {
        **pair,
        "measure": selection.measure if selection.measure in shown else shown[0],
        "report": condition["split"],
        "answers": "corrected" if experiment.corrections else "read",
        "corrected": run_key(experiment) if experiment.corrections else "",
        **where_changes(condition),
    }
    if condition.get("intervention"):
        found = Intervention.model_validate(condition["intervention"])
        changes |= {"contrast": key_of(found), "alpha": found.alpha}
    return changes


def key_of(intervention: Intervention) -> str:
    """A short name of an intervention for links, the same at every amplitude."""
    return _short_hash([intervention.experiment, intervention.kind])


def run_key(experiment: Behaviour) -> str:
    """A short name of a run for links."""
    return _short_hash(experiment.to_json())


def _short_hash(found: Any) -> str:
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:8]


def offered_interventions(opened: Opened, selection: Selection) -> dict[str, Intervention]:
    """Stored patches of the pair's models at the selected amplitude, by key; newest first."""
    found: dict[str, Intervention] = {}
    for condition, _ in live_view.runs_of(opened, None):
        job = condition.get("job", "patch")
        if job in ("patch", "mapped"):
            one = Intervention(experiment=condition, alpha=selection.alpha)
        elif job == "behaviour" and condition.get("intervention"):
            one = Intervention.model_validate({**condition["intervention"], "alpha": selection.alpha})
        else:
            continue
        if one.patch().target in (selection.a, selection.b):
            found.setdefault(key_of(one), one)
    return found


def chosen_interventions(selection: Selection, offered: Mapping[str, Intervention]) -> list[Intervention]:
    """Those the link names, in its order."""
    return [offered[key] for key in listed(selection.contrast, offered, 4)]


def wanted(
    selection: Selection, chosen: Sequence[Intervention], lead: str, wording: Wording | None = None
) -> list[Behaviour]:
    """Everyone whose answers are compared: model A, model B, and each chosen intervention."""
    asked = [(name, None) for name in dict.fromkeys((selection.a, selection.b))]
    asked += [(one.patch().target, one) for one in chosen]  # type: ignore[misc]
    return [experiment_of(selection, name, one, lead, wording) for name, one in asked]


def found_runs(opened: Opened, experiments: Sequence[Behaviour]) -> dict[str, JobResult]:
    """Stored runs by who answered, in the order asked for."""
    runs = {name: live_view.stored(opened, one) for name, one in named(experiments).items()}
    return {name: run for name, run in runs.items() if run is not None}


def named(experiments: Sequence[Behaviour]) -> dict[str, Behaviour]:
    """Short names of who answers: "base", "tuned", "tuned + patch 1"."""
    names: dict[str, Behaviour] = {}
    for one in experiments:
        number = sum(other.intervention is not None for other in names.values()) + 1
        names[one.model if one.intervention is None else f"{one.model} + patch {number}"] = one
    return names


def run_panels(opened: Opened, result: JobResult, selection: Selection) -> list[Panel]:
    """The panels of one stored run: the selected figure where it has it, else its first."""
    name = next(iter(named([Behaviour.from_json(result.condition)])))
    return panels(opened, {name: result}, selection)


def panels(opened: Opened, runs: Runs, selection: Selection) -> list[Panel]:
    """Levels, differences and the diagnostic of a figure that at least one run has a value for."""
    figure = _shown(opened, runs, selection)
    if figure is None:
        return []
    made = [
        behaviour_panels.differences_panel(runs, figure, opened.path) if len(runs) > 1 else None,
        behaviour_panels.levels_panel(runs, figure, opened.path),
        behaviour_panels.shared_panel(runs, figure, opened.path),
    ]
    return [panel for panel in made if panel is not None]


def _shown(opened: Opened, runs: Runs, selection: Selection) -> Figure | None:
    of_runs = [figures(Behaviour.from_json(run.condition)) for run in runs.values()]
    offered = offered_figures(wording_of(opened)) | {f.name: f for found in of_runs for f in found}
    chosen = figure_of(selection, offered)
    have: list[Mapping[str, Any]] = [run.summary["figures"] for run in runs.values()]
    if any(chosen.name in own for own in have):
        return chosen
    return None if len(runs) > 1 else next((f for f in of_runs[0] if f.name in have[0]), None)


def figure_control(opened: Opened) -> None:
    """What is measured."""
    offered = offered_figures(wording_of(opened))
    controls.bound(
        "measure",
        "behaviour-measure",
        "Measure",
        list(offered),
        figure_of(controls.current(), offered).name,
        format_func=lambda name: offered[name].title,
        help="The first four score given texts; the others read generated answers, which take longer.",
    )


def intervention_control(offered: Mapping[str, Intervention]) -> None:
    """Which stored patches are put in beside the two models."""
    if not offered:
        screen.caption("Patches run on the Patching page can be put in here while the model answers.")
        return
    controls.several(
        "contrast",
        "behaviour-contrast",
        "Under stored patches",
        list(offered),
        listed(controls.current().contrast, offered, 4),
        format_func=lambda key: _short(offered[key]),
        placeholder="none",
        max_selections=4,
    )


def _short(intervention: Intervention) -> str:
    return f"{intervention.patch().target} ← {intervention.describe().partition(' ← ')[2]} at " + (
        f"{intervention.patch().site_text()}, {label(intervention.patch().position)}"
    )


def not_run(missing: Sequence[Behaviour]) -> tuple[str, str]:
    """Empty state: what a click will do."""
    names = ", ".join(f"**{plain(one.subject())}**" for one in missing)
    what = "generates an answer to" if missing[0].measures == TEXT else "scores given texts after"
    return (
        "Not run yet",
        f"There is no stored result for {names} over these prompts (split: {missing[0].split}). Run loads "
        f"the models in the worker process, {what} every prompt and keeps the result in the store.",
    )


def answers(runs: Runs) -> None:
    """Prompts with everyone's generated answers side by side."""
    with_text = {name: run.table for name, run in runs.items() if "generated" in run.table.columns}
    if not with_text:
        return
    table = side_by_side(with_text)
    names = list(with_text)
    differs = pl.any_horizontal([pl.col(names[0]) != pl.col(name) for name in names[1:]] or [pl.lit(False)])
    table = table.with_columns(differs.alias("differs")).sort("differs", descending=True, maintain_order=True)
    said = [f"{name}: what it says" for name in names]
    rest = [c for c in table.columns if c not in ("id", "text", *names, *said)]
    with st.container(border=True, key="panel-answers"):
        count = int(table["differs"].sum())
        text = f"{count} of {table.height} answers differ" if len(names) > 1 else f"{table.height} answers"
        screen.markdown(f"#### {text}" + (", those first" if 0 < count < table.height else ""))
        screen.dataframe(
            table.select("text", *names, *said, *rest).drop("differs"),
            hide_index=True,
            width="stretch",
            height=380,
            column_config={name: st.column_config.TextColumn(name, width="medium") for name in names},
        )
