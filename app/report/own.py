"""The chapters that the report makes itself: definitions, and what has not been run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import polars as pl

from app.analyses import ANALYSES
from app.frame.analysis import Blocks, Chapter, Planned, Term
from app.frame.blocks import Attached, Block, Table, Text
from app.frame.opened import Opened
from app.frame.running import WHY_NO_TOKEN
from app.frame.selection import Selection
from app.frame.stored import compact, described, missing_of
from engine.errors import PatchbayError
from engine.lab.experiment import Experiment
from store.journal.notes import NoteLog

TERMS = (
    Term(
        "site",
        "Where in block ℓ an activation is taken: resid_pre and resid_post are the residual stream "
        "entering and leaving the block, attn_out and mlp_out what the two sub-blocks add to it, head_z "
        "the heads' value mixes before the output projection, head_out their contributions behind it.",
        "resid_pre + attn_out + mlp_out = resid_post",
    ),
    Term(
        "position",
        "The token an activation belongs to. Decision token (decision): last of the rendered prompt; last "
        "content token (last_content): last of the user's own text, by character offsets; mean: average over "
        "the user's own text.",
    ),
    Term(
        "target ← source",
        "The target model runs; the source model gives the vector that is put in. Both directions are "
        "different experiments.",
    ),
    Term(
        "interval",
        "95 % unless said otherwise, by resampling prompts, or pairs of prompts where they come in pairs; "
        "never tokens. Two values are told apart only where their intervals are.",
        "means: studentised bootstrap; rates: Wilson; differences of paired rates: Newcombe",
        "Efron 1979; Wilson 1927; Newcombe 1998",
    ),
)
"""Terms of every analysis."""


@dataclass(frozen=True)
class Wanted:
    """Experiments that a full study of a pair has."""

    name: str
    title: str
    experiments: Sequence[Experiment]


def terms() -> pl.DataFrame:
    """Every term, in the order of the analyses: term, meaning, formula, source."""
    every = (*TERMS, *(term for one in ANALYSES for term in one.terms))
    rows = [astuple(term) for term in every]
    return pl.DataFrame(rows, schema=["term", "meaning", "formula", "source"], orient="row")


def definitions(_opened: Opened, _selection: Selection) -> Blocks:
    """Every term."""
    return (Table("terms", "Terms", terms()),)


def deepest(opened: Opened, selection: Selection) -> Selection:
    """The selection at the place where effects are largest."""
    for one in ANALYSES:
        if one.deepest is not None:
            selection = one.deepest(opened, selection)
    return selection


def wanted(opened: Opened, selection: Selection) -> list[Wanted]:
    """Everything that the analyses would run, each at the selection or where effects are largest."""
    at, found = deepest(opened, selection), []
    for planned in (planned for one in ANALYSES for planned in one.planned):
        try:
            asked = planned.experiments(opened, at if planned.deepest else selection)
        except PatchbayError:  # a place that this experiment does not know, or nothing to measure
            continue
        if asked and _alike(opened, selection, planned):
            found.append(Wanted(planned.name, planned.title, asked))
    return found


def not_stored(opened: Opened, selection: Selection) -> list[tuple[Wanted, list[Experiment]]]:
    """What has no stored result of everything that the analyses would run; none where none can run."""
    if not opened.can_run or not opened.facts.tokens or selection.a == selection.b:
        return []
    every = ((one, missing_of(opened, one.experiments)) for one in wanted(opened, selection))
    return [(one, missing) for one, missing in every if missing]


def _alike(opened: Opened, selection: Selection, planned: Planned) -> bool:
    """Whether the two models of a selection have the sizes in common that they must."""
    one, other = (opened.store.model_info(model) for model in (selection.a, selection.b))
    return all(one[size] == other[size] for size in planned.alike)


def not_run(opened: Opened, selection: Selection) -> Blocks:
    """What is missing, each with its command."""
    store = shlex.quote(opened.path)
    if not opened.can_run:
        return "Activations come from elsewhere: there is no model to run."
    if not opened.facts.tokens:
        return " ".join(WHY_NO_TOKEN).replace("`", "")
    if selection.a == selection.b:
        return "Live experiments put one model into another."
    blocks: list[Block] = []
    for fitted in (one.fitted for one in ANALYSES if one.fitted is not None):
        if said := fitted.missing(opened, selection):
            blocks.append(Text(said, fitted.title, f"python precompute.py report {store} --fit"))
    for one, missing in not_stored(opened, selection):
        data = [compact(experiment) for experiment in missing]
        said = f"{len(missing)} of {len(one.experiments)}, such as: {described(missing[0])}"
        if len(data) == 1:
            said = described(missing[0])
            text = shlex.quote(json.dumps(data[0], ensure_ascii=False))
            blocks.append(Text(said, one.title, f"python precompute.py run {store} --condition {text}"))
            continue
        file = f"not-run-{one.name}.json"
        blocks.append(Text(said, one.title, f"python precompute.py run {store} --condition {file}"))
        blocks.append(Attached(file, json.dumps(data, ensure_ascii=False, indent=1).encode()))
    return blocks or "Everything that the pages run under these settings is stored."


def notes(opened: Opened, _selection: Selection) -> Blocks:
    """What people wrote down, oldest first."""
    found, problems = NoteLog(opened.path).list()
    if not found and not problems:
        return "Nobody wrote a note, on the page Runs or with python precompute.py note."
    rows = [
        {"written": one.created[:16].replace("T", " "), "by": one.author, "note": one.text, "run": one.run}
        for one in found
    ]
    blocks: list[Block] = [Table("notes", "Notes", pl.DataFrame(rows))] if rows else []
    return [*blocks, *(Text(problem) for problem in problems)]


CHAPTERS = (
    Chapter("notes", "Notes", "What people wrote down beside these results; times are UTC.", notes),
    Chapter("definitions", "Definitions", "Logarithms are natural; KL is in nats.", definitions),
    Chapter(
        "missing",
        "Not run yet",
        "Each command keeps its results in the store; the next report has them.",
        not_run,
    ),
)
