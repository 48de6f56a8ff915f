"""A sweep over subspaces as tables of a stored run, and scores made from such tables again.

Everything is kept as float64: what `scores_of` gives equals what the sweep gave, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from engine.errors import AnalysisError
from engine.subspaces.numbers import AtRank, Description, LeftOut, Prepared, Scores, at_ranks

MEASURES = tuple(
    f"{name}_{which}"
    for which in ("act", "o_proj", "down_proj", "combined")
    for name in ("fraction", "r", "z", "p", "most")
)
BESIDE = tuple(f"{name}_scales_{which}" for which in ("act", "combined") for name in ("r", "z", "p"))
"""Measures that runs by definitions before the third don't have."""
TABLE = ("rank", *MEASURES, "cosine", *BESIDE)
SPECIFIC = ("r", "z", "p", "rank", "taken")
KEYS: dict[str, Any] = {
    "delta": pl.String,
    "k": pl.Int32,
    "clean": pl.Int32,
    "candidate": pl.String,
    "layer": pl.Int32,
    "which": pl.String,
    "index": pl.Int32,
}
DESCRIBED = ("name", "family", "axis_kind", "source", "needs", "definition")

Tables = Mapping[str, pl.DataFrame]


def tables_of(
    prepared: Sequence[Prepared],
    ks: Sequence[int],
    cleans: Sequence[int],
    on_layer: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, Any], dict[str, pl.DataFrame]]:
    """Everything that a sweep says about its weight changes at these ranks.

    Args:
        prepared: one for each weight change, of the same model and candidates.
        ks, cleans: as prepared; k itself is always one of the numbers of clean directions.
        on_layer: see `engine.subspaces.numbers.at_ranks`.

    Returns:
        summary: "deltas", "broad", "ks", "cleans", "d", "n_layers", "changed" (delta -> layers), "left_out"
            (delta, k, name, layer, reason; k is None where a candidate fails at any k).
        tables: "table": delta, k, candidate, layer, then `TABLE`; "specificity": delta, k, clean, candidate,
            layer, then `SPECIFIC`; "ceilings": delta, k, layer, which, fraction; "details": delta, k,
            candidate, layer, index, value. What each measure is: `engine.subspaces.numbers.Scores`.
    """
    wanted = {k: sorted({*cleans, k}) for k in ks}
    parts: dict[str, list[pl.DataFrame]] = {"table": [], "specificity": [], "ceilings": [], "details": []}
    left_out: list[dict[str, Any]] = []
    changed: dict[str, list[int]] = {}
    for one, ranks in zip(prepared, at_ranks(prepared, wanted, on_layer), strict=True):
        for found in ranks.values():
            for name, frame in _frames(found).items():
                parts[name].append(frame)
        left_out += _left_out(one, ranks.values())
        changed[one.inputs.target.name] = list(map(int, next(iter(ranks.values())).changed))
    first = prepared[0].inputs
    summary = {
        "deltas": [one.inputs.target.name for one in prepared],
        "broad": first.broad,
        "ks": list(ks),
        "cleans": list(cleans),
        "d": first.d,
        "n_layers": first.n_layers,
        "changed": changed,
        "left_out": left_out,
    }
    return summary, {name: pl.concat(frames) for name, frames in parts.items()}


def _left_out(one: Prepared, ranks: Iterable[AtRank]) -> list[dict[str, Any]]:
    """Candidates without scores: at any rank, or at some."""
    found: dict[tuple[int | None, str], dict[str, Any]] = {}
    for at in ranks:
        for failed in at.left_out:
            k = None if failed.candidate in one.left_out else at.k
            row = {"delta": at.target, "k": k, "name": failed.candidate, "layer": failed.layer}
            found[k, failed.candidate] = row | {"reason": failed.reason}
    return list(found.values())


def _frames(found: AtRank) -> dict[str, pl.DataFrame]:
    """One rank of one weight change in every table."""
    count, at = len(found.layers), {"delta": found.target, "k": found.k}
    rows = {
        "candidate": [entry.name for entry in found.candidates for _ in range(count)],
        "layer": np.tile(found.layers, len(found.candidates)),
    }
    specificity = [
        _frame(at | {"clean": clean}, rows | {name: values[name].ravel() for name in SPECIFIC})
        for clean, values in found.specific.items()
    ]
    ceilings = {
        "layer": np.tile(found.layers, len(found.ceilings)),
        "which": [which for which in found.ceilings for _ in range(count)],
        "fraction": np.concatenate(list(found.ceilings.values())),
    }
    details = {
        "candidate": [name for name in found.details for _ in range(count * found.k)],
        "layer": np.tile(np.repeat(found.layers, found.k), len(found.details)),
        "index": np.tile(np.arange(found.k), count * len(found.details)),
        "value": np.concatenate([np.zeros(0), *(values.ravel() for values in found.details.values())]),
    }
    return {
        "table": _frame(at, rows | {name: found.measures[name].ravel() for name in TABLE}),
        "specificity": pl.concat(specificity),
        "ceilings": _frame(at, ceilings),
        "details": _frame(at, details),
    }


def _frame(same: Mapping[str, Any], columns: Mapping[str, Any]) -> pl.DataFrame:
    """Columns of one length behind those that have one value in all rows."""
    length = len(next(iter(columns.values())))
    filled = {name: [value] * length for name, value in same.items()} | dict(columns)
    return pl.DataFrame(filled, schema={name: KEYS.get(name, pl.Float64) for name in filled})


def scores_of(
    summary: Mapping[str, Any],
    tables: Tables,
    delta: str,
    k: int,
    clean: int | None = None,
    layers: Sequence[int] | None = None,
) -> Scores:
    """Scores of a stored sweep, as `Prepared.scores` gave them.

    Args:
        summary, tables: of the stored run. delta: name of a weight change.
        k, clean, layers: as for `Prepared.scores`.

    Raises:
        AnalysisError: a weight change, rank, number of clean directions or layer that the run doesn't have.
    """
    _check("weight change", delta, summary["deltas"])
    _check("rank k", k, summary["ks"])
    clean = k if clean is None else clean
    _check("number of clean directions", clean, sorted({*summary["cleans"], k}))
    here = (pl.col("delta") == delta) & (pl.col("k") == k)
    table, ceilings, details = (tables[name].filter(here) for name in ("table", "ceilings", "details"))
    specificity = tables["specificity"].filter(here & (pl.col("clean") == clean))
    count = int(summary["n_layers"])
    known = {entry["name"]: description(entry) for entry in summary["candidates"]}

    def grid(frame: pl.DataFrame, names: Iterable[str]) -> dict[str, np.ndarray]:
        return {name: frame[name].to_numpy().reshape(-1, count) for name in names}

    found = AtRank(
        candidates=tuple(known[name] for name in table["candidate"][::count]),
        measures=grid(table, [name for name in TABLE if name in table.columns]),
        specific={clean: grid(specificity, SPECIFIC)},
        layers=np.arange(count),
        changed=tuple(summary["changed"][delta]),
        ceilings=_each(ceilings, "which", "fraction", (count,)),
        details=_each(details, "candidate", "value", (count, k)),
        left_out=tuple(
            LeftOut(row["name"], row["layer"], row["reason"])
            for row in summary["left_out"]
            if row["delta"] in (None, delta) and row["k"] in (None, k)
        ),
        k=k,
        broad=int(summary["broad"]),
        d=int(summary["d"]),
        target=delta,
    )
    return found.scores(clean, layers)


def description(entry: Mapping[str, Any]) -> Description:
    """A candidate of a stored summary."""
    given = {name: entry[name] for name in DESCRIBED}
    return Description(**given | {"needs": tuple(entry["needs"])})


def _each(frame: pl.DataFrame, key: str, value: str, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """value by key, whose rows lie side by side."""
    names = frame[key].unique(maintain_order=True).to_list()
    return dict(zip(names, frame[value].to_numpy().reshape(len(names), *shape), strict=True))


def _check(what: str, given: object, known: Sequence[object]) -> None:
    if given not in known:
        raise AnalysisError(
            f"The stored sweep has no such {what}.",
            expected=", ".join(map(str, known)),
            given=given,
            next_step="choose one of these, or run the sweep with more.",
        )
