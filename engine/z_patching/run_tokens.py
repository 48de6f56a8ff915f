"""Runs one problem of a Z-patching run again and keeps the likeliest tokens of every step."""

from __future__ import annotations

from typing import Any

import polars as pl

from engine.errors import PatchError
from engine.lab.experiment import ExperimentResult, Lab
from engine.lab.noise import measured
from engine.passes.generate import Generated, generate
from engine.z_patching.bases import make_bases
from engine.z_patching.outcomes import KEYS, key_row
from engine.z_patching.run import choose, train_ids
from engine.z_patching.spec import ZPatching
from engine.z_patching.tokens_spec import ZTokens
from engine.z_patching.vectors import edit_of, puts, token_states

SCHEMA: dict[str, Any] = {
    "layer": pl.Int64,
    "k": pl.Int64,
    "part": pl.String,
    "source": pl.String,
    "draw": pl.Int64,
    "step": pl.Int64,
    "rank": pl.Int64,
    "id": pl.Int64,
    "token": pl.String,
    "probability": pl.Float64,
}
"""One row per condition, step and rank; rank 0 is the token that was generated, or ended the text."""


def run(experiment: ZTokens, lab: Lab) -> ExperimentResult:
    """Generates one problem's answers again.

    Returns:
        summary: pair_id, conditions, and "differs": conditions whose text is not the stored run's, null
        where that run is not stored; table: columns of `SCHEMA`.

    Raises:
        PatchError: the run has fewer problems. What the run itself raises.
    """
    cell = experiment.cell()
    problems = choose(experiment.of, lab.prompts)
    if experiment.problem >= len(problems.answers):
        raise PatchError(
            "The run has no such problem.",
            expected=f"0 to {len(problems.answers) - 1}",
            given=experiment.problem,
        )
    bases = make_bases(cell, lab, lambda: train_ids(experiment.of, lab, problems))
    lm = lab.model(cell.model)
    both = [experiment.problem, problems.others[experiment.problem]]
    lab.report(message=f"Answering problem {experiment.problem} of {cell.model} again.")
    ids = [lab.token_ids(cell.model, rows[both]) for rows in (problems.target, problems.source)]
    own, source = (
        token_states(lm, side, cell.site, cell.layers, lab.should_stop)[experiment.layer] for side in ids
    )
    given = puts(cell, own, source, (1, 0))
    patches = cell.patches()
    edits = [None, *(edit_of(cell, patch, given[patch.source], bases.of(patch), [0]) for patch in patches)]
    made = generate(
        lm,
        ids[0][:1],
        edits,
        max_new_tokens=cell.max_new_tokens,
        top=experiment.top,
        should_stop=lab.should_stop,
    )
    tokenizer = lab.tokenizer(cell.model)
    rows: list[dict[str, Any]] = []
    for number, patch in enumerate([None, *patches]):
        for step, best in enumerate(made.top[number][0]):
            rows += [
                {**key_row(patch), "step": step, "rank": rank, "id": token, "probability": p}
                | {"token": str(tokenizer.decode([token]))}
                for rank, (token, p) in enumerate(best)
            ]
    summary = {
        "pair_id": problems.pair_ids[experiment.problem],
        "conditions": len(edits),
        "differs": _differing(experiment, cell, lab, made),
        "rounding": measured(lab, [cell.model]),
        "notes": list(lab.notes),
    }
    return ExperimentResult(summary, {"table": pl.DataFrame(rows, schema=SCHEMA)})


def _differing(experiment: ZTokens, cell: ZPatching, lab: Lab, made: Generated) -> int | None:
    """Conditions whose text is not that of the stored run: batches of another shape round differently."""
    stored = lab.stored(experiment.of)
    if stored is None:
        return None
    table = stored[1].tables["table"].filter(pl.col("problem") == experiment.problem)
    texts = {tuple(row[key] for key in KEYS): row["text"] for row in table.iter_rows(named=True)}
    again = [one[0] for one in made.texts(lab.tokenizer(cell.model))]
    keys = [tuple(key_row(patch).values()) for patch in [None, *cell.patches()]]
    return sum(texts[key] != text for key, text in zip(keys, again, strict=True))
