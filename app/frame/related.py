"""Whether the models of a pair are a base and its fine-tune, from stored tables; and what to say if not."""

from __future__ import annotations

import math

import polars as pl

from app.frame.opened import Opened
from app.frame.words import number
from app.live.weight_tables import NORMS, delta_table
from engine.weights.relatedness import Matrix, Relatedness, Verdict, fixed_start, relatedness


def of_first(opened: Opened, model: str) -> Relatedness | None:
    """A model against the study's first one; None where the store has no weight differences."""
    tables = set(opened.store.table_names())
    if not {NORMS, delta_table(model)} <= tables:
        return None
    found = opened.store.table(delta_table(model))
    rows = {row["name"]: row for row in found.iter_rows(named=True)}
    own = opened.store.table(NORMS)
    told = pl.Series([not fixed_start(name) for name in own["name"]], dtype=pl.Boolean)
    whole = own.filter((pl.col("shape").list.len() >= 2) & told)
    embedding = _embedding(whole)
    matrices = [
        _matrix(row["name"] == embedding, float(row["norm"]), rows.get(row["name"]))
        for row in whole.iter_rows(named=True)
    ]
    blocks = opened.facts.n_layers
    per_block = whole["layer"].drop_nulls().len() / max(1, blocks[opened.facts.models[0]])
    more = max(0, blocks[model] - blocks[opened.facts.models[0]])
    return relatedness(matrices, round(per_block * more))


def _embedding(whole: pl.DataFrame) -> str | None:
    """Of the matrices outside the blocks the first one with the most rows."""
    outside = whole.filter(pl.col("layer").is_null()).with_columns(rows=pl.col("shape").list.first())
    return (
        None
        if outside.is_empty()
        else str(outside.sort("rows", descending=True, maintain_order=True)["name"][0])
    )


def _matrix(embedding: bool, size: float, row: dict[str, object] | None) -> Matrix:
    """From a row of the stored table; a tensor without one is equal in both models."""
    if row is None:
        return Matrix(size, 0.0, size, embedding)
    if row["norm"] is None:
        return Matrix(size, None, None, embedding)
    norm, relative, other = (row.get(key) for key in ("norm", "relative", "tuned"))
    compared = float(str(norm)) / float(str(relative)) if row.get("rows") is not None and relative else size
    return Matrix(compared, float(str(norm)), None if other is None else float(str(other)), embedding)


def of_pair(opened: Opened, a: str, b: str) -> Verdict:
    """Of two models of a store: directly where one is the first, else by way of it.

    Two models that are each related to the first are related; where only one of them is, the other's verdict
    is the pair's, since nothing shows more.
    """
    if a == b:
        return "related"
    first = opened.facts.models[0]
    sides = [of_first(opened, model) for model in (a, b) if model != first]
    found: list[Verdict] = ["unknown" if side is None else side.verdict for side in sides]
    others = [verdict for verdict in found if verdict != "related"]
    if len(others) == 2:
        return "unknown"  # they may be related to one another
    return others[0] if others else "related"


def tokens(opened: Opened, a: str, b: str) -> tuple[int, int] | None:
    """Token strings in both vocabularies, and those with one id in both; None in a store that doesn't say."""
    if "shared-vocabulary" not in opened.store.table_names():
        return None
    rows = opened.store.table("shared-vocabulary").filter(a=a, b=b)
    if rows.is_empty() or not {"shared", "same_id"} <= set(rows.columns):
        return None
    return int(rows["shared"][0]), int(rows["same_id"][0])


def sentence(opened: Opened, model: str) -> str:
    """One line on a model and the study's first one: a common origin or not, and the numbers behind it."""
    first = opened.facts.models[0]
    found = of_first(opened, model)
    if found is None:
        said = f"Whether {model} was made from {first} is not known: the store has no weight differences"
    else:
        said = {
            "related": f"{model} and {first} have a common origin",
            "partly": f"{model} and {first} have a common origin in part: {found.alike} of {found.matrices} "
            "weight matrices are alike",
            "unrelated": f"{model} and {first} are not shown to have a common origin ({found.alike} of "
            f"{found.matrices} weight matrices are alike)",
            "not comparable": f"{model} and {first} are not shown to have a common origin (no weight "
            "matrices have one shape)",
            "unknown": f"Whether {model} and {first} have a common origin can't be told from this store",
        }[found.verdict]
        said += _numbers(found)
    return f"{said}{_ids(tokens(opened, first, model))}."


def _numbers(found: Relatedness) -> str:
    if not found.compared:
        return ""
    some = "" if found.compared == found.matrices else f" over the {found.compared} that can be compared"
    told = f". ‖ΔW‖ ÷ ‖W‖ is {number(found.distance)}{some} (unrelated: √2 at equal norms)"
    if not math.isnan(found.cosine):
        told += f", cosine {'' if found.exact else 'at least '}{number(found.cosine)}"
    if not math.isnan(found.embedding):
        told += f", of the embeddings {number(found.embedding)}"
    return told


def _ids(found: tuple[int, int] | None) -> str:
    if found is None:
        return ""
    shared, same = found
    if not shared:
        return "; their vocabularies share no token"
    return f"; {100 * same / shared:.3g} % of the {shared:,} tokens in both vocabularies have the same id"


def notice(opened: Opened, a: str, b: str) -> str:
    """What a page that presupposes a fine-tune says of a pair that isn't shown to be one; "" where it is."""
    verdict = of_pair(opened, a, b)
    if verdict == "related":
        return ""
    first = opened.facts.models[0]
    if verdict == "unknown":
        said = f"It is not known whether {a} and {b} are a base and its fine-tune"
    elif first not in (a, b):
        near, far = (a, b) if of_pair(opened, first, a) == "related" else (b, a)
        part = f", {far} in part" if verdict == "partly" else ""
        said = f"Of {a} and {b} only {near} is shown to have a common origin with {first}{part}"
    elif verdict == "partly":
        said = f"{a} and {b} have a common origin in part only"
    else:
        said = f"{a} and {b} are not shown to have a common origin"
    return f"{said}. What is told of a change by training presupposes a base and its fine-tune; see Overview."
