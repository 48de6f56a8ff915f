"""Runs Z-patching: pairs problems, makes bases and edits, generates, reads the answers, tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from engine.ard.run import problem_rows
from engine.errors import PatchError
from engine.lab.experiment import ExperimentResult, Lab, check_site
from engine.lab.noise import measured
from engine.models.loading import LoadedModel
from engine.passes.edits import Edit
from engine.passes.generate import Generated, generate
from engine.texts.numbers import extract
from engine.z_patching.bases import PCA_PROMPTS, Bases, make_bases
from engine.z_patching.outcomes import SCHEMA, Outcomes, Row, baseline, key_row, rates, read, verdicts
from engine.z_patching.spec import Patch, ZPatching
from engine.z_patching.vectors import Put, edit_of, puts, token_states

ROWS_AT_ONCE = 320
"""Rows (problem × condition) decoded together: enough to fill a batch, few enough to show progress."""


@dataclass(frozen=True)
class Problems:
    """Problems in two languages, in the order drawn.

    Attributes:
        pair_ids, answers: per problem. target, source: rows of the prompts.
        others: for each the problem whose source stands in for its own; its answer differs.
    """

    pair_ids: tuple[str, ...]
    answers: tuple[str, ...]
    target: np.ndarray
    source: np.ndarray
    others: tuple[int, ...]


def run(experiment: ZPatching, lab: Lab) -> ExperimentResult:
    """Generates and reads every answer.

    Returns:
        summary: baseline accuracies with their asymmetry, verdicts per block and k, counts; table: one row
        per problem and condition; "source": the source-language prompts unpatched; "rates".

    Raises:
        PatchError, SiteError, ModelError, AnalysisError: the experiment or the model doesn't fit.
        JobCancelled: it was cancelled.
    """
    for layer in experiment.layers:
        check_site(lab, experiment.model, experiment.site, layer)
    problems = choose(experiment, lab.prompts)
    bases = make_bases(experiment, lab, lambda: train_ids(experiment, lab, problems))
    lm = lab.model(experiment.model)
    ids = {
        side: lab.token_ids(experiment.model, rows)
        for side, rows in (("target", problems.target), ("source", problems.source))
    }
    lab.report(message=f"Reading {2 * len(problems.answers)} prompts with {experiment.model}.")
    states = {
        side: token_states(lm, own, experiment.site, experiment.layers, lab.should_stop)
        for side, own in ids.items()
    }
    given = {
        layer: puts(experiment, states["target"][layer], states["source"][layer], problems.others)
        for layer in experiment.layers
    }
    unpatched = _unpatched(experiment, lab, lm, problems, ids["source"])
    table = _generate(experiment, lab, lm, problems, ids["target"], given, bases)
    return _result(experiment, lab, lm, problems, table, unpatched, bases)


def choose(experiment: ZPatching, prompts: pl.DataFrame) -> Problems:
    """Problems that exist in both languages and have a number as answer, drawn with the experiment's seed.

    Raises:
        PatchError: there are none, or their answers are all the same.
    """
    table = prompts.with_row_index("row_number")
    if experiment.split != "all":
        table = table.filter(pl.col("split") == experiment.split)
    if experiment.where.category is not None and "category" in table.columns:
        table = table.filter(pl.col("category") == experiment.where.category)
    sides: list[dict[str, tuple[int, str]]] = []
    for wanted in (experiment.target_language, experiment.source_language):
        own = _column(table, "language") == wanted
        lines = zip(
            table["row_number"], _column(table, "pair_id"), _column(table, "answer"), own, strict=True
        )
        sides.append(
            {str(p): (r, str(a)) for r, p, a, mine in lines if mine and p is not None and _numeric(a)}
        )
    both = [pair for pair in sides[0] if pair in sides[1]]
    order = np.random.default_rng(experiment.seed).permutation(len(both))[: experiment.problems]
    pairs = [both[i] for i in sorted(order)]
    answers = [sides[0][pair][1] for pair in pairs]
    if len(pairs) < 2:
        raise PatchError(
            "There are no problems in both languages to patch between.",
            expected="at least 2 pairs (pair_id) with a prompt in each language and a number as answer",
            given=f"{len(pairs)} pairs of {experiment.target_language} and {experiment.source_language}",
            next_step="choose other languages, another split or category, or a prompt set with pairs.",
        )
    target, source = (np.array([side[pair][0] for pair in pairs], dtype=np.int64) for side in sides)
    return Problems(tuple(pairs), tuple(answers), target, source, _others(answers, experiment.seed))


def _column(table: pl.DataFrame, name: str) -> Any:
    return table[name] if name in table.columns else pl.Series(name, [None] * table.height)


def _numeric(answer: Any) -> bool:
    return answer is not None and extract(str(answer)) is not None


def _others(answers: Sequence[str], seed: int) -> tuple[int, ...]:
    """For each problem another one with a different answer, spread over all of them."""
    numbers = [extract(answer) for answer in answers]
    order = np.random.default_rng([seed, 1]).permutation(len(answers)).tolist()
    found = [0] * len(answers)
    for place, mine in enumerate(order):
        rest = order[place + 1 :] + order[:place]
        own = numbers[mine]
        usable = [
            i for i in rest if own is not None and numbers[i] is not None and not own.equals(numbers[i])
        ]
        if not usable:
            raise PatchError(
                "Every problem has the same answer, so that none can stand in for another.",
                expected="problems with different answers",
                given=answers[mine],
                next_step="take more problems, or of several categories.",
            )
        found[mine] = usable[0]
    return tuple(found)


def train_ids(experiment: ZPatching, lab: Lab, problems: Problems) -> list[list[int]]:
    """Prompts of both languages that are not among the problems, of the train split where there is one."""
    table = lab.prompts.with_row_index("row_number")
    used = [*problems.target.tolist(), *problems.source.tolist()]
    languages = [experiment.target_language, experiment.source_language]
    free = table.filter(~pl.col("row_number").is_in(used), pl.col("language").is_in(languages))
    train = free.filter(pl.col("split") == "train") if "split" in free.columns else free
    rows = (free if train.is_empty() else train)["row_number"].to_numpy().astype(np.int64)
    if not len(rows):
        raise PatchError(
            "No prompts are left to take principal components from.",
            expected="prompts of the two languages besides the problems",
            given="none",
            next_step="take fewer problems, or another basis.",
        )
    drawn = np.random.default_rng([experiment.seed, 2]).permutation(len(rows))[:PCA_PROMPTS]
    return lab.token_ids(experiment.model, rows[np.sort(drawn)])


def _unpatched(
    experiment: ZPatching, lab: Lab, lm: LoadedModel, problems: Problems, ids: list[list[int]]
) -> pl.DataFrame:
    """The source-language prompts answered unpatched."""
    lab.report(message=f"Answering {len(ids)} problems in {experiment.source_language}, unpatched.")
    made = generate(lm, ids, max_new_tokens=experiment.max_new_tokens, should_stop=lab.should_stop)
    tokenizer = lab.tokenizer(experiment.model)
    rows = []
    for i, (tokens, ended) in enumerate(zip(made.tokens[0], made.ended[0], strict=True)):
        rows.append(_row(experiment, problems, tokenizer, i, None, (tokens, ended), None))
    return pl.DataFrame(rows, schema=SCHEMA)


def _generate(
    experiment: ZPatching,
    lab: Lab,
    lm: LoadedModel,
    problems: Problems,
    ids: list[list[int]],
    given: dict[int, dict[str, Put]],
    bases: Bases,
) -> pl.DataFrame:
    """Every condition of every problem, some problems at a time; rows are reported as they finish."""
    patches = experiment.patches()
    tokenizer = lab.tokenizer(experiment.model)
    total, rows = len(ids), []  # type: int, list[Row]
    message = f"Generating {total} × {len(patches) + 1} answers in {experiment.target_language}."
    lab.report(done=0, total=total, message=message)
    for chunk, made in every_answer(experiment, lm, ids, given, bases, lab.should_stop):
        for place, problem in enumerate(chunk):
            base: Row | None = None
            for number, patch in enumerate([None, *patches]):
                said = made.tokens[number][place], made.ended[number][place]
                row = _row(experiment, problems, tokenizer, problem, patch, said, base)
                base = row if patch is None else base
                rows.append(row)
        lab.report(done=chunk[-1] + 1, total=total, partial={"rows": main_rows(rows)})
    return pl.DataFrame(rows, schema=SCHEMA)


def every_answer(
    experiment: ZPatching,
    lm: LoadedModel,
    ids: Sequence[Sequence[int]],
    given: Mapping[int, Mapping[str, Put]],
    bases: Bases,
    should_stop: Callable[[], bool] | None = None,
) -> Iterator[tuple[list[int], Generated]]:
    """Some problems at a time, and what is generated for them: unpatched, then `experiment.patches()`."""
    patches = experiment.patches()
    for chunk in _chunks(len(ids), len(patches) + 1):
        edits: list[Edit | None] = [None]
        edits += [edit_of(experiment, p, given[p.layer][p.source], bases.of(p), chunk) for p in patches]
        prompts = [ids[i] for i in chunk]
        longest = max(map(len, prompts)) + experiment.max_new_tokens
        made = generate(
            lm,
            prompts,
            edits,
            max_new_tokens=experiment.max_new_tokens,
            batch_tokens=ROWS_AT_ONCE * longest,
            should_stop=should_stop,
        )
        yield chunk, made


def _chunks(n: int, conditions: int) -> Iterator[list[int]]:
    size = max(1, ROWS_AT_ONCE // conditions)
    for start in range(0, n, size):
        yield list(range(start, min(start + size, n)))


def main_rows(rows: Sequence[Row]) -> list[Row]:
    """The outputs that a reader looks at first: unpatched and under the pair's own source; without tokens."""
    return [
        {name: value for name, value in row.items() if name != "tokens"}
        for row in rows
        if row["draw"] is None and row["source"] in (None, "pair")
    ]


def _row(
    experiment: ZPatching,
    problems: Problems,
    tokenizer: Any,
    problem: int,
    patch: Patch | None,
    said: tuple[list[int], bool],
    base: Row | None,
) -> Row:
    tokens, ended = said
    text = str(tokenizer.decode(tokens, skip_special_tokens=True))
    answer, other = problems.answers[problem], problems.answers[problems.others[problem]]
    found = read(text, pieces(tokenizer, tokens), ended, experiment, answer, other, base)
    return {"problem": problem, "pair_id": problems.pair_ids[problem], **key_row(patch), **found}


def pieces(tokenizer: Any, tokens: Sequence[int]) -> list[str]:
    """What each token adds to the text; a character made of several tokens comes with its last one."""
    found, done = [], ""
    for end in range(1, len(tokens) + 1):
        text = str(tokenizer.decode(list(tokens[:end]), skip_special_tokens=True))
        whole = text.rstrip("\ufffd")
        found.append(whole[len(done) :] if whole.startswith(done) else "")
        done = whole if whole.startswith(done) else done
    return found


def _result(
    experiment: ZPatching,
    lab: Lab,
    lm: LoadedModel,
    problems: Problems,
    table: pl.DataFrame,
    unpatched: pl.DataFrame,
    bases: Bases,
) -> ExperimentResult:
    outcomes = Outcomes(experiment, table)
    names = (experiment.target_language, experiment.source_language)
    said = outcomes.unpatched
    summary = {
        "n": outcomes.n,
        "conditions": len(experiment.patches()) + 1,
        "baseline": baseline(said, unpatched, names),
        "degenerate_unpatched": int(said["degenerate"].is_not_null().sum()),
        "languages_unpatched": dict(said["language"].value_counts().iter_rows()),
        "verdicts": verdicts(outcomes),
        "others": list(problems.others),
        "fits": [_fit_of(experiment, lab, problems, about) for about in bases.fits],
        "prompts": {"target": problems.target.tolist(), "source": problems.source.tolist()},
        "device": str(lm.device),
        "dtype": str(lm.dtype).removeprefix("torch."),
        "rounding": measured(lab, [experiment.model]),
        "notes": list(lab.notes),
    }
    return ExperimentResult(summary, {"table": table, "source": unpatched, "rates": rates(outcomes)})


def _fit_of(experiment: ZPatching, lab: Lab, problems: Problems, about: dict[str, Any]) -> dict[str, Any]:
    """What a fit of lengthscales is, and how many of these problems it was fitted to."""
    fit = next(fit for fit in experiment.fits() if fit.layer == about["layer"])
    seen = problem_rows(lab.prompts, fit, "train")
    return {**about, "seen": int(np.isin(problems.target, seen).sum())}
