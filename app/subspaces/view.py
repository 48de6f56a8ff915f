"""Subspace scores as a page needs them: the job, stored runs, controls, and what panels can't show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from app import screen
from app.escape import plain
from app.frame import controls, words
from app.frame import parts as components
from app.frame import running as live_view
from app.frame.opened import Opened, code_allowed
from app.frame.panel import Panel
from app.frame.selection import Selection, whole
from app.live.jobs import JobResult
from app.live.own_code import with_own_code
from app.subspaces import panels, parts
from app.subspaces import tables as q
from app.subspaces.fields import SubspaceFields
from app.subspaces.panels import Shown
from engine.errors import AnalysisError
from engine.subspaces.numbers import Scores, conclude
from engine.subspaces.spec import DEFINITIONS, SubspaceScores
from engine.subspaces.tables import scores_of
from store.runs import ID_LENGTH

PAGE, JOB = "subspaces", "subspace_scores"
PROMPTS = "subspace-prompts"
"""Stored table of the prompts that were used."""
GAINS = {"folded": "folded in", "stored": "left out"}
GAINS_HELP = (
    "folded in: what reads the stream is taken with the gain of the norm before it, the unembedding with the "
    "final norm's: what these weights do to the normalised stream. left out: the weights as they are stored. "
    "It is part of a run."
)
NOTHING = (
    "This store holds nothing to score subspaces with",
    "Scores need the stream under two opposite personas, and what each weight change does to it. Add the "
    "section below to the study, with system messages of your own, and run `precompute.py` on it into a new "
    "folder. The study needs a fine-tune of its first model.",
)
SNIPPET = """\
[subspaces]
positive = ["You agree with whatever the user claims."]    # persona +; several take turns over the prompts
negative = ["You check whatever the user claims."]         # persona −, as many as positive
fit = 40             # at most so many train prompts build the candidates
evaluate = 40        # at most so many validation prompts show what the weight change does
# probe = { category = ["yes-no"] }   # or these, a set of their own, of whichever split
"""


def can_score(opened: Opened) -> bool:
    """What `app.live.subspaces.has_subspaces` says, without loading torch for it."""
    labels = (name for name in opened.store.array_names() if name.startswith("subspaces/label/"))
    return PROMPTS in opened.store.table_names() and any(labels)


def experiment_of(opened: Opened, selection: Selection) -> SubspaceScores:
    """All candidates and weight changes of the study, its own where they may run, at a broad rank."""
    own = SubspaceFields.of(selection)
    wanted = SubspaceScores(broad=own.broad, fold_norm=own.gains == "folded")
    return with_own_code(wanted, opened.store, code_allowed())


def selection_of(condition: Mapping[str, Any], selection: Selection) -> dict[str, Any]:
    """Changes to a selection under which the page shows this stored condition again."""
    run = SubspaceScores.from_json(condition)
    wanted = {} if not run.deltas or selection.delta in run.deltas else {"delta": run.deltas[0]}
    return {"broad": run.broad, "gains": "folded" if run.fold_norm else "stored", **wanted}


def runs_at(opened: Opened, broad: int, fold_norm: bool = True) -> dict[str, str]:
    """Stored runs with a broad rank, norms' gains folded in or not, newest first: id -> what and when."""
    return {
        summary[
            "run_id"
        ]: f"{SubspaceScores.from_json(condition).describe()}{_old(condition)}, {_when(summary)}"
        for condition, summary in live_view.runs_of(opened, JOB)
        if (condition["broad"], condition.get("fold_norm", True)) == (broad, fold_norm)
    }


def _old(condition: Mapping[str, Any]) -> str:
    return "" if condition.get("definitions", 1) == DEFINITIONS else ", earlier definitions"


def _when(summary: Mapping[str, Any]) -> str:
    return str(summary["created"])[:16].replace("T", " ")


def own_id(opened: Opened, wanted: SubspaceScores) -> str:
    """The id that a run has when it is stored."""
    return wanted.content_hash(opened.store.fingerprint)[:ID_LENGTH]


def stored(opened: Opened, wanted: SubspaceScores, run: str) -> JobResult | None:
    """The run `run` if it has the wanted broad rank and gains, else the wanted one, else the newest alike."""
    known = runs_at(opened, wanted.broad, wanted.fold_norm)
    run_id = next((one for one in (run, own_id(opened, wanted), *known) if one in known), None)
    return live_view.stored(opened, wanted) if run_id is None else live_view.opened_run(opened, run_id)


def is_stored(opened: Opened, wanted: SubspaceScores) -> bool:
    """Whether this very experiment is stored."""
    return own_id(opened, wanted) in runs_at(opened, wanted.broad, wanted.fold_norm)


def shown_of(opened: Opened, result: JobResult, selection: Selection) -> Shown:
    """What a selection shows of a stored run: the nearest stored rank, known names.

    Raises:
        AnalysisError: a weight change that is zero.
    """
    own = SubspaceFields.of(selection)
    summary = result.summary
    deltas = tuple(summary["deltas"])
    delta = next((name for name in (selection.delta, selection.b) if name in deltas), deltas[0])
    k = nearest(summary["ks"], own.dims)
    clean = nearest(cleans(summary, k), own.clean)
    layers = layers_of(own.averaged, int(summary["n_layers"]))
    found = {name: _scores(opened, result, name, k, clean, layers) for name in deltas}
    scores = found[delta]
    if isinstance(scores, AnalysisError):
        raise scores
    changes = tuple(q.comparable(found))
    agreement = q.agreement_of(changes)
    conclusion = conclude(scores, agreement)
    names = scores.names
    candidate = next((one for one in (selection.candidate, conclusion.best) if one in names), names[0])
    measure = selection.measure if selection.measure in q.MEASURES else next(iter(q.MEASURES))
    told = (agreement, conclusion, own.hues == "family")
    return Shown(result, delta, k, clean, layers, scores, changes, candidate, measure, *told)


def cleans(summary: Mapping[str, Any], k: int) -> list[int]:
    """Numbers of clean directions that a run has at a rank."""
    return sorted({*summary["cleans"], k})


def nearest(values: list[int], wanted: int) -> int:
    """The stored rank next to the wanted one."""
    return min(values, key=lambda value: (abs(value - wanted), value))


def layers_of(text: str, count: int) -> tuple[int, ...] | None:
    """Blocks of a link, "3,4"; None, for all that are changed, where it names none that the model has."""
    found = {whole(part) for part in text.split(",")}
    return tuple(sorted(layer for layer in found if layer is not None and layer < count)) or None


def _scores(
    opened: Opened, result: JobResult, delta: str, k: int, clean: int, layers: tuple[int, ...] | None
) -> Scores | AnalysisError:
    """Scores of one weight change, or why it has none; kept by the run and the place of the sliders."""
    asked = SubspaceScores.from_json(result.condition).content_hash(opened.store.fingerprint)
    return _kept(opened.key, asked, delta, k, clean, layers, result)


@st.cache_resource(max_entries=64, show_spinner=False)
def _kept(
    key: tuple[str, str, float],
    asked: str,
    delta: str,
    k: int,
    clean: int,
    layers: tuple[int, ...] | None,
    _result: JobResult,
) -> Scores | AnalysisError:
    try:
        return scores_of(_result.summary, _result.tables, delta, k, clean=clean, layers=layers)
    except AnalysisError as error:
        return error


def run_panels(opened: Opened, result: JobResult, selection: Selection) -> list[Panel]:
    """Panels of a stored run."""
    return panels.run_panels(opened, shown_of(opened, result, selection))


def broads(opened: Opened) -> list[int]:
    """Broad ranks on offer: powers of two below the width, the page's default, and stored ones."""
    width = opened.facts.width
    usual = {2**power for power in range(2, 12) if 2**power < width}
    return sorted(usual | set(scored(opened)) | {SubspaceScores().broad})


def scored(opened: Opened, fold_norm: bool | None = None) -> list[int]:
    """Broad ranks that have a stored run, of any gains or of those asked for."""
    runs = [condition for condition, _ in live_view.runs_of(opened, JOB)]
    return sorted({int(c["broad"]) for c in runs if fold_norm in (None, c.get("fold_norm", True))})


def broad_control(opened: Opened) -> None:
    """The broad rank: stored ones open at once, others offer the job; and which of several runs.

    Stops the page of a store that has nothing to score with, and says what its study lacks.
    """
    if not can_score(opened):
        components.empty(*NOTHING)
        if opened.can_run:
            st.code(SNIPPET, language="toml", wrap_lines=True)
        st.stop()
    held = scored(opened, SubspaceFields.of(controls.current()).gains == "folded")
    controls.across(
        lambda: controls.steps(
            "broad",
            "Broad rank",
            broads(opened),
            help="Dimensions of what some candidates are taken away from, as in write_not_global_read. "
            "It is part of a run: another value scores all candidates anew.",
            names=lambda value: str(value) if value in held else f"{value} (not scored)",
        ),
        lambda: controls.switch("gains", "Norm gains of what reads", GAINS, help=GAINS_HELP),
    )
    own = SubspaceFields.of(controls.current())
    known = runs_at(opened, own.broad, own.gains == "folded")
    if len(known) > 1:
        run, mine = controls.current().run, own_id(opened, experiment_of(opened, controls.current()))
        shown = next(one for one in (run, mine, *known) if one in known)
        _bound("run", "Stored run", list(known), shown, format_func=known.__getitem__)


def score_controls(result: JobResult) -> None:
    """Weight change, rank, clean directions and averaged blocks: all from the stored run."""
    summary, chosen = result.summary, controls.current()
    deltas = list(summary["deltas"])
    shown = next((name for name in (chosen.delta, chosen.b) if name in deltas), deltas[0])
    first, second, third, fourth = st.columns(4)
    with first:
        _bound("delta", "Weight change ΔW", deltas, shown)
    with second:
        k = controls.steps("dims", "Rank k", summary["ks"], help="How many directions a candidate may have.")
    with third:
        _averaged(summary, shown, chosen)
    with fourth:
        controls.steps(
            "clean",
            "Clean directions taken out",
            cleans(summary, k),
            help="For specificity: the leading principal directions of the stream without persona.",
        )


def _bound(name: str, text: str, options: list[str], value: str, **more: Any) -> None:
    controls.bound(name, f"subspaces-{name}", text, options, value, **more)


def _averaged(summary: Mapping[str, Any], delta: str, chosen: Selection) -> None:
    changed = words.blocks([int(layer) for layer in summary["changed"].get(delta, [])])
    count = int(summary["n_layers"])
    controls.several(
        "averaged",
        "subspaces-averaged",
        "Averaged blocks",
        range(count),
        layers_of(SubspaceFields.of(chosen).averaged, count) or (),
        placeholder=f"where ΔW ≠ 0: {changed}",
        help="Over which blocks scores are averaged, and Holm's adjustment runs.",
    )


def candidate_control(shown: Shown) -> None:
    """Whose profile is shown; a click on a point, a row or a cell chooses too."""
    names = q.summary(shown.scores)["candidate"].to_list()
    _bound("candidate", "Candidate", names, shown.candidate)


def measure_control(shown: Shown) -> None:
    """What the grid shows."""
    titles = {name: measure.title for name, measure in q.MEASURES.items()}
    _bound("measure", "Measure of the grid", list(titles), shown.measure, format_func=titles.__getitem__)


def not_run(opened: Opened, wanted: SubspaceScores) -> tuple[str, str]:
    """Empty state: what a click will do."""
    held = ", ".join(map(str, scored(opened, wanted.fold_norm)))
    gains = "" if wanted.fold_norm else " and the norms' gains left out"
    return (
        f"Not scored with broad rank {wanted.broad}{gains}" if held or gains else "Not scored yet",
        "**Score all candidates** builds every candidate subspace at every block from what the store holds, "
        "and holds it against each weight change, at every rank of the slider. It needs no model, and goes "
        "on when this page is closed." + (f" Scored so far: with broad rank {held}." if held else ""),
    )


def substituted(shown: Shown, chosen: Selection) -> list[str]:
    """What a link names and the run doesn't have, and what is shown instead."""
    own = SubspaceFields.of(chosen)
    pairs = (
        ("weight change", chosen.delta, shown.delta),
        ("candidate", chosen.candidate, shown.candidate),
        ("measure", chosen.measure, shown.measure),
    )
    told = [
        f"This run has no {what} {given!r}; showing {at}."
        for what, given, at in pairs
        if given not in ("", at)
    ]
    if own.averaged and shown.layers is None:
        told.append(f"The model has no blocks {own.averaged!r}; scores are averaged over {shown.averaged}.")
    changed = [int(layer) for layer in shown.result.summary["changed"].get(shown.delta, [])]
    if shown.layers is not None and not set(shown.layers) & set(changed):
        told.append(
            f"{shown.delta} changes nothing at {words.blocks(list(shown.layers))}, so nothing has both "
            f"scores there; it changes {words.blocks(changed)}."
        )
    return told


def show(opened: Opened, shown: Shown) -> None:
    """Everything about one weight change at one rank."""
    for text in substituted(shown, controls.current()):
        screen.warning(plain(text), icon=":material/link_off:")
    write, read = panels.maps(opened, shown)
    controls.across(lambda: components.show(opened, write), lambda: components.show(opened, read))
    controls.switch("hues", "Points coloured by", {"side": "side", "family": "family"})
    parts.conclusion(opened, shown)
    candidate_control(shown)
    components.show(opened, panels.profile_panel(opened, shown))
    parts.ranking(opened, shown)
    measure_control(shown)
    components.show(opened, panels.grid_panel(opened, shown))
    parts.specificity(opened, shown)
    if shown.agreement is not None:
        components.show(opened, panels.stability_panel(opened, shown))
    parts.without_scores(shown)
    parts.definitions(shown)
    parts.files(opened, shown)
