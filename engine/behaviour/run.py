"""Runs a behaviour experiment: scores openings, choices and forms, generates answers and reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from engine.behaviour import numbers as behaviour
from engine.behaviour.claims import claim_prompts, column
from engine.behaviour.report import corrected_note
from engine.behaviour.spec import Behaviour, Lists
from engine.behaviour.summary import figures_of, summary_of
from engine.errors import PatchError
from engine.lab.experiment import ExperimentResult, Lab, chosen_rows
from engine.lab.unknown import tell_unknown
from engine.models.loading import LoadedModel
from engine.passes.continuations import Scored, score, shared_ids, spelled, surface_forms
from engine.passes.edits import Edit, replace_at
from engine.passes.generate import Generated, generate
from engine.patching.vectors import intervention
from engine.texts import answers

Columns = dict[str, list[Any]]
Progress = Callable[[int, int], None]


def run(experiment: Behaviour, lab: Lab) -> ExperimentResult:
    """Measures one model, or one model under one intervention, on the prompts of a lab.

    Returns:
        summary: figures (mean, interval, by category, language and label), the asymmetry between languages,
        and the diagnostics on shared tokens; table: one row per prompt.

    Raises:
        PatchError, SiteError, ModelError: the experiment or a model fails. JobError: cancelled.
    """
    if experiment.corrections:
        return corrected(experiment, lab)
    experiment.wording.check()
    rows = chosen_rows(lab.prompts, experiment.split, experiment.where)
    for name in experiment.models():
        lab.sizes(name)
    prompts = lab.prompts[rows].drop("messages", strict=False)
    edit = _edit(experiment, lab, rows)
    lm = lab.model(experiment.model)
    ids = lab.token_ids(experiment.model, rows)
    tell_unknown(lab, experiment.model, ids)
    columns: Columns = {}
    if set(experiment.measures) - {"text"}:
        columns |= scored_columns(experiment, lab, lm, prompts, ids, edit)
    if "text" in experiment.measures:
        columns |= text_columns(experiment, lab, lm, prompts, ids, edit)
    table = prompts.insert_column(0, pl.Series("row", rows, dtype=pl.Int64)).with_columns(
        [_series(name, values) for name, values in columns.items()]
    )
    return ExperimentResult(summary_of(experiment, lab, lm, table), {"table": table})


def corrected(experiment: Behaviour, lab: Lab) -> ExperimentResult:
    """The run without corrections, stored or made now, with the corrected values in the place of those read.

    Returns:
        as `run`; the table also has "<figure> as read" for every figure that was corrected, and "corrected",
        the figures of a prompt that were; the summary "corrected", one entry each.

    Raises:
        PatchError: a prompt that has no such answer.
    """
    plain = experiment.model_copy(update={"corrections": ()})
    known = lab.stored(plain)
    found = run(plain, lab) if known is None else known[1]
    table, entries = found.tables["table"], []
    touched: dict[str, list[str]] = {}
    for figure in dict.fromkeys(one.figure for one in experiment.corrections):
        values, ids = table[figure].to_list(), table["id"].to_list()
        for one in (c for c in experiment.corrections if c.figure == figure):
            at = ids.index(one.id) if one.id in ids else None
            if at is None or values[at] is None:
                raise PatchError(
                    "There is no such answer to correct.",
                    expected=f"a prompt of this run with a value of {figure!r}",
                    given=one.id if at is None else f"{one.id}, which has none",
                    next_step="correct the id, or leave it out.",
                )
            entries.append({"id": one.id, "figure": figure, "was": bool(values[at]), "value": one.value})
            values[at] = float(one.value)
            touched.setdefault(one.id, []).append(figure)
        table = table.with_columns(
            pl.col(figure).alias(f"{figure} as read"), pl.Series(figure, values, dtype=pl.Float64)
        )
    told = [", ".join(touched.get(name, [])) or None for name in table["id"].to_list()]
    table = table.with_columns(pl.Series("corrected", told, dtype=pl.String))
    notes = [*found.summary["notes"], corrected_note(entries)]
    summary = {**found.summary, **figures_of(experiment, table), "corrected": entries, "notes": notes}
    return ExperimentResult(summary, {"table": table})


def _edit(experiment: Behaviour, lab: Lab, rows: np.ndarray) -> Edit | None:
    if experiment.intervention is None:
        return None
    chosen = experiment.intervention
    site, vectors, places = intervention(lab, chosen.patch(), rows, chosen.alpha, chosen.kind)
    return replace_at(site, places.tolist(), vectors)


def _series(name: str, values: list[Any]) -> pl.Series:
    if values and isinstance(values[0], float):
        return pl.Series(name, values, dtype=pl.Float64).fill_nan(None)
    return pl.Series(name, values)


@dataclass(frozen=True)
class Asked:
    """The continuations of one prompt.

    Attributes:
        ids: token sequences. parts: name of a list -> its part of `ids`. correct: index among the choices.
    """

    ids: list[list[int]]
    parts: dict[str, slice]
    correct: int | None


def scored_columns(
    experiment: Behaviour,
    lab: Lab,
    lm: LoadedModel,
    prompts: pl.DataFrame,
    ids: list[list[int]],
    edit: Edit | None,
    on_progress: Progress | None = None,
) -> Columns:
    """Figures from log-probabilities; with the same on shared tokens and their coverage where asked for."""
    on_progress = on_progress or _telling(lab, f"Scoring {len(ids)} prompts with {experiment.model}.")
    asked, other = questions(experiment, lab, prompts), experiment.shared_with
    shared = None if other is None else shared_ids(lab.tokenizer(experiment.model), lab.tokenizer(other))
    scored = score(
        lm,
        ids,
        [one.ids for one in asked],
        [edit],
        shared=None if shared is None else [i for i in shared if i < lm.taps.vocab],
        on_progress=on_progress,
        should_stop=lab.should_stop,
    )
    columns = score_columns(asked, scored.log_probs[0])
    if shared is not None:
        for row in _shared_rows(asked, scored, frozenset(shared)):
            _append(columns, row)
    return columns


def questions(experiment: Behaviour, lab: Lab, prompts: pl.DataFrame) -> list[Asked]:
    """What each prompt is asked; a note tells of answers that can't be spelled."""
    asked, lost = _questions(experiment, lab.tokenizer(experiment.model), prompts)
    _tell_lost(lab, experiment.model, lost)
    return asked


def score_columns(asked: Sequence[Asked], log_probs: Sequence[Sequence[np.ndarray]]) -> Columns:
    """Figures of each prompt from its continuations' log-probabilities, per token."""
    columns: Columns = {}
    for one, own in zip(asked, log_probs, strict=True):
        _append(columns, _figures_of(one, own))
    return columns


def _telling(lab: Lab, message: str) -> Progress:
    lab.report(message=message)
    return lambda done, total: lab.report(done=done, total=total)


def _append(columns: Columns, row: Mapping[str, float]) -> None:
    for name, value in row.items():
        columns.setdefault(name, []).append(float(value))


def _questions(experiment: Behaviour, tokenizer: Any, prompts: pl.DataFrame) -> tuple[list[Asked], list[str]]:
    """What each prompt is asked, and the answers that can't be spelled.

    Forms and openings are tokenised once per language.
    """
    words, measures = experiment.wording, experiment.measures
    languages = column(prompts, "language")
    choices, right = column(prompts, "choices"), column(prompts, "answer")
    claims = claim_prompts(experiment.wording, prompts)
    cache: dict[tuple[int, str | None], list[list[int]]] = {}
    lost: dict[str, None] = {}

    def of(lists: Lists, language: str | None, forms: bool = False) -> list[list[int]]:
        key = (id(lists), language)
        if key not in cache:
            lead = "" if forms else experiment.lead
            texts = [lead + text for text in answers.of_language(lists, language)]
            known = [(text, spelled(tokenizer, text)) for text in texts]
            lost.update(dict.fromkeys(text for text, ids in known if ids is None))
            led = [ids for _, ids in known if ids is not None]
            cache[key] = surface_forms(tokenizer, texts) if forms else led
        return cache[key]

    found = []
    for i, language in enumerate(languages):
        lists: dict[str, list[list[int]]] = {}
        correct = None
        if "soft_refusal" in measures:
            lists |= _both(refusal=of(words.refusal, language), neutral=of(words.neutral, language))
        if "choices" in measures and right[i] in (choices[i] or []) and len(choices[i]) > 1:
            offered = {text: spelled(tokenizer, experiment.lead + text) for text in choices[i]}
            unknown = [text for text, ids in offered.items() if ids is None]
            lost.update(dict.fromkeys(unknown))
            if not unknown:
                lists["choices"] = [ids for text in choices[i] if (ids := offered[text]) is not None]
                correct = list(choices[i]).index(right[i])
        if "agreement" in measures and claims[i]:
            lists |= _both(yes=of(words.yes, language, True), no=of(words.no, language, True))
        found.append(asked_of(lists, correct))
    return found, list(lost)


def _both(**sides: list[list[int]]) -> dict[str, list[list[int]]]:
    """Two sides of a figure; none where one of them has nothing to score."""
    return sides if all(sides.values()) else {}


def _tell_lost(lab: Lab, model: str, lost: Sequence[str]) -> None:
    if lost:
        some = ", ".join(map(repr, lost[:4])) + (" …" if len(lost) > 4 else "")
        note = (
            f"{model}'s vocabulary can't spell {len(lost)} of the given answers ({some}): they are left out, "
            "and so is what needs a choice or a side of which nothing is left."
        )
        lab.notes.extend([] if note in lab.notes else [note])


def asked_of(lists: dict[str, list[list[int]]], correct: int | None) -> Asked:
    ids: list[list[int]] = []
    parts = {}
    for name, own in lists.items():
        parts[name] = slice(len(ids), len(ids) + len(own))
        ids += own
    return Asked(ids, parts, correct)


def _figures_of(asked: Asked, log_probs: Sequence[np.ndarray]) -> dict[str, float]:
    """The figures of one prompt from its continuations' log-probabilities; NaN where one doesn't apply."""
    means = behaviour.mean_log_probs(log_probs)
    totals = behaviour.total_log_probs(log_probs)
    found: dict[str, float] = dict.fromkeys(
        ("soft_refusal", "choice_margin", "choice_right", "agreement"), float("nan")
    )
    if "refusal" in asked.parts:
        refusal, neutral = means[asked.parts["refusal"]], means[asked.parts["neutral"]]
        found["soft_refusal"] = behaviour.soft_refusal(refusal, neutral)
    if asked.correct is not None:
        scores = means[asked.parts["choices"]]
        found["choice_margin"], found["choice_right"] = behaviour.choice_margin(scores, asked.correct)
    if "yes" in asked.parts:
        found["agreement"] = behaviour.agreement(totals[asked.parts["yes"]], totals[asked.parts["no"]])
    return found


def _shared_rows(asked: Sequence[Asked], scored: Scored, shared: frozenset[int]) -> list[dict[str, float]]:
    """The same figures on shared tokens, "<figure> on shared", "coverage" and "left out"."""
    found = []
    masses = scored.log_mass[0] if scored.log_mass is not None else []
    for one, log_probs, log_mass in zip(asked, scored.log_probs[0], masses, strict=True):
        known = [np.array([token in shared for token in ids]) for ids in one.ids]
        masked = [behaviour.restricted(*three) for three in zip(log_probs, log_mass, known, strict=True)]
        row = {f"{name} on shared": value for name, value in _figures_of(one, masked).items()}
        every = np.concatenate(log_mass) if log_mass else np.full(1, np.nan)
        row["coverage"] = float(np.exp(every).mean())
        row["left out"] = float(np.mean([not own.all() for own in known])) if known else float("nan")
        found.append(row)
    return found


def text_columns(
    experiment: Behaviour,
    lab: Lab,
    lm: LoadedModel,
    prompts: pl.DataFrame,
    ids: list[list[int]],
    edit: Edit | None,
    on_progress: Progress | None = None,
) -> Columns:
    """Generated answers and what they say."""
    on_progress = on_progress or _telling(lab, f"Generating {len(ids)} answers with {experiment.model}.")
    made = generate(
        lm,
        ids,
        [edit],
        max_new_tokens=experiment.max_new_tokens,
        on_progress=on_progress,
        should_stop=lab.should_stop,
    )
    return answer_columns(experiment, lab, prompts, made)


def answer_columns(experiment: Behaviour, lab: Lab, prompts: pl.DataFrame, made: Generated) -> Columns:
    """Answers that were generated under one condition, and what they say."""
    texts = made.texts(lab.tokenizer(experiment.model))[0]
    lengths = [len(tokens) for tokens in made.tokens[0]]
    columns: Columns = {"generated": texts, "tokens": lengths, "ended": made.ended[0]}
    return columns | read_answers(experiment, prompts, texts, lengths)


def read_answers(
    experiment: Behaviour, prompts: pl.DataFrame, texts: Sequence[str], lengths: Sequence[int]
) -> Columns:
    """What generated answers say: agrees, right, refused (1, 0, NaN where it doesn't apply), and style."""
    words, claims = experiment.wording, claim_prompts(experiment.wording, prompts)
    columns: Columns = {}
    rows = zip(texts, lengths, column(prompts, "language"), column(prompts, "answer"), claims, strict=True)
    for text, length, language, answer, claim in rows:
        agrees, disagrees, refuses = (
            answers.of_language(lists, language) for lists in (words.agrees, words.disagrees, words.refuses)
        )
        right = None if answer is None else answers.is_right(text, str(answer), agrees, disagrees)
        row = {
            "agrees": float(answers.verdict(text, agrees, disagrees) is True) if claim else float("nan"),
            "right": float("nan") if right is None else float(right),
            "refused": float(answers.refuses(text, refuses)),
        }
        for marker in words.markers:
            lists = {lang: own[marker] for lang, own in words.style.items() if marker in own}
            patterns = answers.of_language(lists, language)
            row[f"style: {marker}"] = answers.per_hundred(text, length, patterns)
        _append(columns, row)
    return columns
