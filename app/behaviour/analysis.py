"""Behaviour as an analysis."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from app.behaviour import corrections, view
from app.behaviour.fields import BehaviourFields
from app.frame import controls
from app.frame import parts as components
from app.frame import running as live_view
from app.frame.analysis import Analysis, Blocks, Headline, Kind, Planned, Term
from app.frame.blocks import Block, Text
from app.frame.chapters import of_kind
from app.frame.opened import Opened
from app.frame.selection import Selection
from app.frame.stored import Asked, of_pair, opened_run, per_prompt
from engine.behaviour.spec import Behaviour

TERMS = (
    Term(
        "soft refusal, multiple choice, agreement",
        "Differences of length-normalised log-probabilities of given continuations: refusal openings against "
        "neutral ones, the right choice against the wrong ones, Yes against No over all surface forms.",
        "mean log p per token, log-mean-exp over openings or forms",
    ),
)


def settings(opened: Opened) -> None:
    """Figure, patches that are put in, and prompts."""
    offered = view.offered_interventions(opened, controls.current())
    controls.across(lambda: view.figure_control(opened), lambda: view.intervention_control(offered))
    if view.chosen_interventions(controls.current(), offered):
        controls.slide("alpha", "Amplitude α of the patches", step=0.05)
    controls.filter_controls("report")


def show(opened: Opened, selection: Selection) -> None:
    """What runs both models and the patches, their stored results side by side, and answers to correct."""
    patches = view.chosen_interventions(selection, view.offered_interventions(opened, selection))
    wanted = view.wanted(selection, patches, view.lead_of(opened), view.wording_of(opened))
    wanted = corrections.applied(opened, selection, wanted)
    runs = view.found_runs(opened, wanted)
    missing = [one for name, one in view.named(wanted).items() if name not in runs]
    live_view.run_button(opened, missing, done=not missing)
    live_view.watch()
    if missing and not live_view.active():
        components.empty(*view.not_run(missing))
    if runs:
        shown = view.panels(opened, runs, selection)
        components.show_all(opened, shown)
        if not shown:
            components.empty(*view.WHY_NO_FIGURE)
        corrections.show(opened, runs, view.named(wanted))
        view.answers(runs)
        view.show_wording(opened)
        live_view.notes(*runs.values())


def chapter(_kind: Kind, opened: Opened, selection: Selection, found: Sequence[Asked]) -> Blocks:
    """Every figure of behaviour that was measured: both models and stored interventions side by side."""
    blocks: list[Block] = []
    for group in _alike(found, selection):
        runs = {
            name: opened_run(opened, summary["run_id"])
            for name, (_, summary) in zip(view.named(group[0]), group[1], strict=True)
        }
        first, count = group[0][0], sum(len(one.corrections) for one in group[0])
        told = f", with {count} corrected value{'s' if count > 1 else ''}" if count else ""
        text = f"Split {first.split}, {first.where.describe()}: {', '.join(runs)}{told}"
        blocks.append(Text("", text))
        names = dict.fromkeys(name for run in runs.values() for name in run.summary["figures"])
        for name in names:
            seen = dataclasses.replace(selection, measure=name)
            blocks += view.panels(opened, runs, seen)
    return blocks


def _alike(found: Sequence[Asked], selection: Selection) -> list[tuple[list[Behaviour], list[Asked]]]:
    """Runs that differ by who answers alone: model A, model B, interventions, oldest first.

    Corrected runs stand beside one another, the newest of each, and beside the runs as read of who has none.
    """
    groups: dict[tuple[str, bool], dict[str, tuple[Behaviour, Asked]]] = {}
    for run in reversed(found):
        one_run = Behaviour.from_json(run[0])
        written = one_run.to_json()
        same = {k: v for k, v in written.items() if k not in ("model", "intervention", "corrections")}
        same["shared_with"] = one_run.shared_with is not None
        key = json.dumps(same, sort_keys=True), bool(one_run.corrections)
        who = json.dumps([one_run.model, written["intervention"]], sort_keys=True)
        groups.setdefault(key, {})[who] = (one_run, run)
    ordered = []
    for (alike, corrected), own in groups.items():
        group = list(({**groups.get((alike, False), {}), **own} if corrected else own).values())
        group.sort(key=lambda pair: (pair[0].intervention is not None, pair[0].model != selection.a))
        ordered.append(([b for b, _ in group], [run for _, run in group]))
    return ordered


def planned(opened: Opened, selection: Selection) -> list[Behaviour]:
    """Both models, without interventions."""
    return view.wanted(selection, [], view.lead_of(opened), view.wording_of(opened))


MEASURED = Kind(
    "behaviour",
    "Behaviour",
    "Do the models refuse, choose, agree and answer differently, and does a patch change that?",
    {"behaviour": 1.0},
    view.PAGE,
    view.selection_of,
    view.run_panels,
    each=lambda run: per_prompt(run.table, {name: name for name in run.summary["figures"]}),
)


def headline(opened: Opened, selection: Selection) -> Headline:
    """The selected figure, else the first that there is, of two models without an intervention."""
    found: Headline = None
    offered = view.offered_figures(view.wording_of(opened))
    for asked, stored in _alike(of_pair(opened, selection, MEASURED.jobs), selection):
        whole = [(one, run) for one, run in zip(asked, stored, strict=True) if one.intervention is None]
        runs = {one.model: opened_run(opened, run[1]["run_id"]) for one, run in whole}
        measured = [set(run.summary["figures"]) for run in runs.values()]
        shared = [name for name in offered if all(name in figures for figures in measured)]
        if len(runs) == 2 and shared:
            chosen = view.figure_of(selection, offered).name in shared
            seen = selection if chosen else dataclasses.replace(selection, measure=shared[0])
            found = view.panels(opened, runs, seen)[0], seen
            if chosen:
                break
    return found


BEHAVIOUR = Analysis(
    "behaviour",
    "Behaviour",
    "Do the two models refuse, choose, agree and answer differently, and does a patch change that?",
    section="Live",
    icon="forum",
    answers="do the models refuse, choose, agree and answer differently, and does a patch change that?",
    null="paired intervals, exact tests",
    kinds=(MEASURED,),
    planned=(Planned("behaviour", "Behaviour", planned),),
    chapters=(of_kind(MEASURED, chapter),),
    terms=TERMS,
    headline=headline,
    controls=settings,
    body=show,
    fields=BehaviourFields,
)
