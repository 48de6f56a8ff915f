"""What Z-patched answers say: every output read, rates per condition, a verdict per block and dimension."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine.texts.languages import degenerate, language
from engine.texts.numbers import Extracted, extract
from engine.z_patching.numbers import Changes, Verdict, paired_p, rate, resemblance, verdict
from engine.z_patching.spec import Patch, ZPatching

Row = dict[str, Any]
Flags = NDArray[np.bool_]
KEYS = ("layer", "k", "part", "source", "draw")
SCHEMA: dict[str, Any] = {
    "problem": pl.Int64,
    "pair_id": pl.String,
    "layer": pl.Int64,
    "k": pl.Int64,
    "part": pl.String,
    "source": pl.String,
    "draw": pl.Int64,
    "text": pl.String,
    "answer": pl.String,
    "correct": pl.Boolean,
    "change": pl.String,
    "changed": pl.Boolean,
    "language": pl.String,
    "disrupted": pl.Boolean,
    "degenerate": pl.String,
    "says_other": pl.Boolean,
    "ended": pl.Boolean,
    "tokens": pl.List(pl.String),
}
"""Columns of the main table, one row per problem and condition; layer to draw are null where none applies.

change: "same", "different" (another number) or "none" (no number, or a degenerate text), against the
unpatched output. disrupted: its language is not the unpatched output's. says_other: it answers the other
problem.
"""
METRICS: dict[str, str] = {
    "answer changed": "the answer is not the unpatched one: another number, none, or a degenerate text",
    "different number": "the answer is another number",
    "no answer": "no number, or a degenerate text",
    "correct → wrong": "of problems answered right unpatched, those answered wrong",
    "other problem's answer": "the answer is that of the other problem",
    "language preserved": "the output's language is that of the unpatched one",
    "language disrupted": "the output is not in the unpatched one's language; no letters are none",
}


def read(
    text: str,
    tokens: list[str],
    ended: bool,
    experiment: ZPatching,
    answer: str,
    other: str,
    base: Row | None,
) -> Row:
    """One output, compared with the unpatched one of the same problem (None: it is that one).

    Args:
        answer, other: the right answer of this problem, and of the one whose source stands in.
    """
    numbers = {name: extract(value) for name, value in (("own", answer), ("other", other))}
    why = degenerate(text)
    found = None if why else extract(text)
    spoken = language(text, experiment.en_below, experiment.zh_above)
    row: Row = {
        "text": text,
        "answer": None if found is None else number(found),
        "correct": _same(found, numbers["own"]),
        "language": spoken,
        "degenerate": why,
        "says_other": _same(found, numbers["other"]),
        "ended": ended,
        "tokens": tokens,
    }
    start = row if base is None else base
    before = None if start["degenerate"] else extract(start["text"])
    same = found is None if before is None else _same(found, before)
    row["change"] = "same" if same else "none" if found is None else "different"
    row["changed"] = not same
    row["disrupted"] = spoken != start["language"]
    return row


def _same(found: Extracted | None, wanted: Extracted | None) -> bool:
    return found is not None and wanted is not None and found.equals(wanted)


def number(found: Extracted) -> str:
    """ "44", "3/4", "25%" ."""
    return f"{found.value}{'%' if found.percent else ''}"


def key_row(patch: Patch | None) -> Row:
    """The columns that name a condition."""
    if patch is None:
        return {"layer": None, "k": None, "part": "unpatched", "source": None, "draw": None}
    return {name: getattr(patch, name) for name in KEYS}


class Outcomes:
    """The main table by condition, problems in one order.

    Args:
        table: columns of `SCHEMA`. experiment: what it was run as.
    """

    def __init__(self, experiment: ZPatching, table: pl.DataFrame) -> None:
        self.experiment = experiment
        parts = table.sort("problem").partition_by(list(KEYS), as_dict=True)
        self._frames = parts
        self.unpatched = parts[None, None, "unpatched", None, None]
        self.n = self.unpatched.height

    def frame(self, patch: Patch) -> pl.DataFrame:
        """Rows of one condition; a "shift" by the own mean is the unpatched output."""
        key = (patch.layer, patch.k, patch.part, patch.source, patch.draw)
        if patch.source == "own" and key not in self._frames:
            return self.unpatched
        return self._frames[key]

    def flags(self, patch: Patch, column: str) -> Flags:
        """A flag per problem."""
        found: Flags = self.frame(patch)[column].to_numpy().astype(bool)
        return found

    def drawn(self, layer: int, k: int, part: str, column: str) -> Flags:
        """A flag per draw of the random subspaces and problem, (draws, n)."""
        return np.stack(
            [
                self.flags(Patch(layer, k, part, "pair", draw), column)  # type: ignore[arg-type]
                for draw in range(self.experiment.draws)
            ]
        )

    def changes(self, layer: int, k: int, column: str) -> Changes:
        """One outcome of a block and dimension under every patch that the verdict needs."""
        return Changes(
            z=self.flags(Patch(layer, k, "Z"), column),
            rest=self.flags(Patch(layer, k, "Z⊥"), column),
            own_z=self.flags(Patch(layer, k, "Z", "own"), column),
            own_rest=self.flags(Patch(layer, k, "Z⊥", "own"), column),
            random_z=self.drawn(layer, k, "Z", column),
            random_rest=self.drawn(layer, k, "Z⊥", column),
        )

    def verdict(self, layer: int, k: int) -> Verdict:
        """The verdict for a block and dimension, on changed answers and disrupted language."""
        outcomes = {
            "answer": self.changes(layer, k, "changed"),
            "language": self.changes(layer, k, "disrupted"),
        }
        return verdict(outcomes)


def rates(outcomes: Outcomes) -> pl.DataFrame:
    """Every rate of every condition: layer, k, part, source, metric, value, low, high, count, n.

    low and high are a Wilson interval over problems; for random subspaces (source "random") value is the
    mean over draws and low and high are the smallest and largest draw. "like Z" and "like Z⊥" (part full):
    the same answer and the same language.
    """
    experiment = outcomes.experiment
    rows: list[Row] = []
    for layer in experiment.layers:
        for source in ("pair", "other", "own"):
            rows += _rates_of(outcomes, Patch(layer, None, "full", source))
        for k in experiment.ks:
            for part in ("Z", "Z⊥"):
                for source in ("pair", "other", "own"):
                    rows += _rates_of(outcomes, Patch(layer, k, part, source))  # type: ignore[arg-type]
                rows += _random_rates(outcomes, layer, k, part)
            rows += _like(outcomes, layer, k)
    floats = dict.fromkeys(("value", "low", "high", "count"), pl.Float64)
    schema = {"layer": pl.Int64, "k": pl.Int64, "part": pl.String, "source": pl.String, "metric": pl.String}
    return pl.DataFrame(rows, schema={**schema, **floats, "n": pl.Int64})


def _metric_flags(frame: pl.DataFrame, unpatched: pl.DataFrame) -> dict[str, Flags]:
    def flag(name: str) -> Flags:
        found: Flags = frame[name].to_numpy().astype(bool)
        return found

    change = frame["change"].to_numpy()
    right = unpatched["correct"].to_numpy().astype(bool)
    return {
        "answer changed": flag("changed"),
        "different number": change == "different",
        "no answer": (frame["answer"].is_null()).to_numpy(),
        "correct → wrong": ~flag("correct")[right],
        "other problem's answer": flag("says_other"),
        "language preserved": ~flag("disrupted"),
        "language disrupted": flag("disrupted"),
    }


def _rates_of(outcomes: Outcomes, patch: Patch) -> list[Row]:
    named = {"layer": patch.layer, "k": patch.k, "part": patch.part, "source": patch.source}
    flags = _metric_flags(outcomes.frame(patch), outcomes.unpatched)
    return [{**named, "metric": metric, **_share(values)} for metric, values in flags.items()]


def _share(values: Flags) -> Row:
    found = rate(values)
    if found is None:
        return {"value": None, "low": None, "high": None, "count": 0.0, "n": 0}
    ends = {"value": found.estimate, "low": found.low, "high": found.high}
    return {**ends, "count": float(values.sum()), "n": len(values)}


def _random_rates(outcomes: Outcomes, layer: int, k: int, part: str) -> list[Row]:
    draws = [
        _metric_flags(outcomes.frame(Patch(layer, k, part, "pair", draw)), outcomes.unpatched)  # type: ignore[arg-type]
        for draw in range(outcomes.experiment.draws)
    ]
    rows = []
    for metric in METRICS:
        each = [float(one[metric].mean()) for one in draws if len(one[metric])]
        ends = {"value": np.mean(each), "low": min(each), "high": max(each)} if each else {}
        row: Row = {"layer": layer, "k": k, "part": part, "source": "random", "metric": metric}
        rows.append({**row, **ends, "count": None, "n": len(draws[0][metric])})
    return rows


def _like(outcomes: Outcomes, layer: int, k: int) -> list[Row]:
    def codes(patch: Patch) -> np.ndarray:
        frame = outcomes.frame(patch)
        columns = [frame["answer"].fill_null("none").to_numpy(), frame["language"].to_numpy()]
        found: np.ndarray = np.stack(columns, axis=1)
        return found

    full, z, rest = (
        codes(p) for p in (Patch(layer, None, "full"), Patch(layer, k, "Z"), Patch(layer, k, "Z⊥"))
    )
    like_z, like_rest = resemblance(full, z, rest)
    named: Row = {"layer": layer, "k": k, "part": "full", "source": "pair"}
    return [
        {**named, "metric": metric, **_share(values)}
        for metric, values in (("like Z", like_z), ("like Z⊥", like_rest))
    ]


def verdicts(outcomes: Outcomes) -> list[Row]:
    """Plain JSON: layer, k, word, outcome, tests by outcome, and McNemar of full against Z and Z⊥."""
    found = []
    for layer in outcomes.experiment.layers:
        for k in outcomes.experiment.ks:
            one = outcomes.verdict(layer, k)
            tests = {name: asdict(test) for name, test in one.tests.items()}
            rest = _rest_against_random(outcomes, layer, k)
            found.append(
                {
                    "layer": layer,
                    "k": k,
                    "word": one.word,
                    "outcome": one.outcome,
                    "tests": tests,
                    "rest": rest,
                }
            )
    return found


def _rest_against_random(outcomes: Outcomes, layer: int, k: int) -> Row:
    """Whether Z⊥ changes each outcome more than random complements do, a remark beside the verdict."""
    from engine.z_patching.numbers import against_random

    columns = {"answer": "changed", "language": "disrupted"}
    return {
        name: asdict(
            against_random(
                outcomes.flags(Patch(layer, k, "Z⊥"), column), outcomes.drawn(layer, k, "Z⊥", column)
            )
        )
        for name, column in columns.items()
    }


def baseline(target: pl.DataFrame, source: pl.DataFrame, names: Sequence[str]) -> Row:
    """Accuracy per language unpatched, and the exact test for an asymmetry, paired by problem."""
    right: Mapping[str, Flags] = {
        name: frame.sort("problem")["correct"].to_numpy().astype(bool)
        for name, frame in zip(names, (target, source), strict=True)
    }
    first, second = right.values()
    only: Callable[[Flags, Flags], int] = lambda a, b: int((a & ~b).sum())  # noqa: E731
    return {
        "accuracy": {name: _share(values) for name, values in right.items()},
        "only": [only(first, second), only(second, first)],
        "p": paired_p(first, second),
    }
