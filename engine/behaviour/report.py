"""Tables of behaviour runs beside each other: levels, paired differences, shared tokens, answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from engine.behaviour.numbers import difference
from engine.errors import AnalysisError
from engine.lab.units import resampling_units

PARTS = ("label", "language", "category")
WHOLE = "all prompts"


def corrected_note(entries: Sequence[Mapping[str, Any]]) -> str:
    """How many values of a run were corrected by hand, from "corrected" of its summary."""
    changed = sum(entry["was"] != entry["value"] for entry in entries)
    count = "1 value was" if len(entries) == 1 else f"{len(entries)} values were"
    return f"{count} corrected by hand, {changed} of them changed."


def levels(summaries: Mapping[str, Mapping[str, Any]], figure: str) -> pl.DataFrame:
    """A figure of several runs, over all prompts and in each part.

    Args:
        summaries: who answered -> summary of the run.

    Returns:
        part ("all prompts", "label wrong", "language en", "category add" …), series (who), value, low, high
        (null where a part has a single prompt or pair), n (prompts with a value).
    """
    rows = []
    for series, summary in summaries.items():
        cells = summary["figures"].get(figure)
        for part, cell in _parts(cells) if cells else ():
            rows.append(
                {"part": part, "series": series, **{k: cell[k] for k in ("value", "low", "high", "n")}}
            )
    numbers = dict.fromkeys(("value", "low", "high"), pl.Float64)
    return pl.DataFrame(rows, schema={"part": pl.String, "series": pl.String, **numbers, "n": pl.Int64})


def _parts(cells: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield WHOLE, cells
    for name in PARTS:
        for cell in cells.get(f"by_{name}", ()):
            yield f"{name} {cell[name]}", cell


def differences(
    tables: Mapping[str, pl.DataFrame],
    figure: str,
    *,
    binary: bool,
    n_boot: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> pl.DataFrame:
    """Every run minus the first one, on the prompts that both have a value for.

    Args:
        tables: who answered -> main table of the run.
        binary: whether the figure is 1 or 0 per prompt.

    Returns:
        part, series (who is compared with the first), value, low, high, p (exact, binary figures only),
        first_only, second_only (pairs, or prompts, where one side did it more often), n.
    """
    (_, first), *others = tables.items()
    rows: list[dict[str, Any]] = []
    for series, table in others:
        if figure not in first.columns or figure not in table.columns:
            continue
        both = first.join(table.select("id", pl.col(figure).alias("second")), on="id", maintain_order="left")
        both = both.rename({figure: "first"}).drop_nulls(["first", "second"])
        for part, own in _split(both):
            found = _difference(own, binary, n_boot, level, seed)
            rows.append({"part": part, "series": series, **found})
    floats = dict.fromkeys(("value", "low", "high", "p"), pl.Float64)
    counts = dict.fromkeys(("first_only", "second_only", "n"), pl.Int64)
    return pl.DataFrame(rows, schema={"part": pl.String, "series": pl.String, **floats, **counts})


def _split(table: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    if table.is_empty():
        return
    yield WHOLE, table
    for name in PARTS:
        if name in table.columns and table[name].n_unique() > 1:
            for value in table[name].drop_nulls().unique(maintain_order=True):
                yield f"{name} {value}", table.filter(pl.col(name) == value)


def _difference(own: pl.DataFrame, binary: bool, n_boot: int, level: float, seed: int) -> dict[str, Any]:
    a, b = (own[name].cast(pl.Float64).to_numpy() for name in ("first", "second"))
    found = difference(a, b, resampling_units(own), binary=binary, n_boot=n_boot, level=level, seed=seed)
    ends = {"low": found.interval.low, "high": found.interval.high}
    return {
        "value": found.interval.estimate,
        **{name: None if np.isnan(value) else value for name, value in ends.items()},
        "p": found.p,
        "first_only": found.first_only,
        "second_only": found.second_only,
        "n": found.n,
    }


def on_shared(summaries: Mapping[str, Mapping[str, Any]], figure: str) -> pl.DataFrame:
    """A scored figure beside the same one on the tokens that both tokenizers have.

    Returns:
        series (who), tokens ("all" or "shared"), value, low, high, n, coverage (mean probability of the
        shared tokens), left_out (share of continuations that hold another token); empty without one.
    """
    rows = []
    for series, summary in summaries.items():
        shared, whole = summary.get("shared"), summary["figures"].get(figure)
        if shared is None or whole is None or figure not in shared["figures"]:
            continue
        found = {"coverage": shared["coverage"], "left_out": shared["left_out"]}
        for tokens, cell in (("all", whole), ("shared", shared["figures"][figure])):
            kept = {name: cell[name] for name in ("value", "low", "high", "n")}
            rows.append({"series": series, "tokens": tokens, **kept, **found})
    floats = dict.fromkeys(("value", "low", "high"), pl.Float64)
    more = {"n": pl.Int64, "coverage": pl.Float64, "left_out": pl.Float64}
    return pl.DataFrame(rows, schema={"series": pl.String, "tokens": pl.String, **floats, **more})


def side_by_side(tables: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Generated answers of several runs in columns named after who answered, with what each says.

    Raises:
        AnalysisError: a run without generated answers.
    """
    found: pl.DataFrame | None = None
    for series, table in tables.items():
        if "generated" not in table.columns:
            raise AnalysisError("A run has no generated answers.", expected="measure 'text'", given=series)
        own = table.select(
            "id", pl.col("generated").alias(series), said(table).alias(f"{series}: what it says")
        )
        keep = [c for c in ("id", "text", "language", "category", "label", "answer") if c in table.columns]
        found = table.select(keep).join(own, on="id") if found is None else found.join(own, on="id")
    if found is None:
        raise AnalysisError("There are no runs.", expected="one or more", given="none")
    return found


def said(table: pl.DataFrame) -> pl.Series:
    """Flags of each generated answer in words: "right · agrees", "wrong · refuses", "cut off"."""
    words = []
    for row in table.iter_rows(named=True):
        flags = [{1.0: "right", 0.0: "wrong"}.get(row.get("right"), "")]  # type: ignore[arg-type]
        flags += [{1.0: "agrees", 0.0: "does not agree"}.get(row.get("agrees"), "")]  # type: ignore[arg-type]
        flags += ["refuses" if row.get("refused") else "", "" if row.get("ended") else "cut off"]
        words.append(" · ".join(filter(None, flags)))
    return pl.Series("said", words, dtype=pl.String)
