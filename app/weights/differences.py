"""Where a fine-tune's weights differ from the first model's: read from the store, no model needed."""

from __future__ import annotations

import re

import polars as pl

from app.charts.matrix import matrix
from app.charts.palette import Palette
from app.charts.template import Chart
from app.frame import words
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.live.weight_tables import delta_table
from app.weights import words as weights_words

NAMED = 4
_IN_BLOCK = re.compile(r"\.(\d+)\.(.+?)(?:\.weight)?$")


def table(opened: Opened, model: str) -> pl.DataFrame | None:
    """Every differing weight: name, block, part, shape, norm, relative, rank, error, and what
    rounding did (`engine.weights.deltas.WeightDelta`); None where not compared.

    `block` is null for weights outside the blocks; `relative` is ‖W_model − W_first‖ / ‖W_first‖.
    """
    name = delta_table(model)
    if model == opened.facts.models[0] or name not in opened.store.table_names():
        return None
    found = opened.store.table(name).drop_nulls("norm")  # null: a tensor that one model lacks
    return found.select(
        "name",
        *_places(found["name"]),
        "shape",
        "norm",
        "relative",
        "rank",
        "error",
        *(column for column in ("rounding", "noise") if column in found.columns),
    )


def title(found: pl.DataFrame, model: str, first: str, lost: int = 0) -> str:
    """Which weights differ: named when they are few, else how many and where the most.

    Args:
        lost: tensors that can't be compared.
    """
    lacking = f"; {lost} can't be compared" if lost else ""
    if not found.height:
        return f"No weight of {model}{' that can be compared' * bool(lost)} differs from {first}{lacking}"
    below = weights_words.not_above_rounding(found)
    if below == found.height:
        return f"No difference of {model} from {first} is above the rounding of their weights{lacking}"
    more = (f"; {below} not above rounding" if below else "") + lacking
    few = found.sort("relative", descending=True).head(NAMED)
    named = [_said(row) for row in few.iter_rows(named=True)]
    if found.height <= NAMED:
        only = "" if lost else " only"
        count = f"{found.height} weight{'s' * (found.height > 1)}"
        return f"{model} differs from {first} in {count}{only}: {'; '.join(named)}{more}"
    return (
        f"{model} differs from {first} in {found.height} weights, relative to their norm most in "
        f"{named[0]}{more}"
    )


def _said(row: dict[str, object]) -> str:
    place = row["part"] if row["block"] is None else f"{row['part']} of block {row['block']}"
    rank = "" if row["rank"] is None else f", rank {row['rank']}"
    return f"{place} ({words.number(float(str(row['relative'])))} of its norm{rank})"


def panel(opened: Opened, model: str) -> Panel | None:
    """Relative difference of every weight, block by block; None where there is nothing to draw."""
    found = table(opened, model)
    if found is None or not found.height:
        return None
    first = opened.facts.models[0]
    lost = not_compared(opened, model)
    shown = grid(found, max(opened.facts.n_layers[name] for name in (first, model)), lost)

    def draw(palette: Palette) -> Chart:
        return matrix(
            shown,
            x="block",
            y="part",
            value="relative",
            x_title="Block ℓ",
            y_title="weight",
            value_title="‖difference‖ ÷ ‖first‖",
            palette=palette,
            labels=shown.height <= 100,
        )

    caption = (
        f"Frobenius norm of {model} − {first}, relative to {first}'s, of every weight that differs in any "
        "number; of the others that can be compared every number is equal. Null: 0, nothing is estimated. "
        "rank: where the difference is of low rank; error: of its stored factors, relative. "
        f"{weights_words.rounding(found)}"
    ).rstrip()
    return Panel(
        "weights",
        title(found, model, first, lost.height),
        found,
        draw,
        code(opened, model),
        caption,
        (first, model),
    )


def not_compared(opened: Opened, model: str) -> pl.DataFrame:
    """Weights that can't be compared: block, part; none in a store without differences."""
    name = delta_table(model)
    found = opened.store.table(name) if name in opened.store.table_names() else pl.DataFrame({"name": []})
    lost = found.drop_nulls("problem") if "problem" in found.columns else found.clear()
    return _places(lost["name"].cast(pl.String))


def _places(names: pl.Series) -> pl.DataFrame:
    found = [_IN_BLOCK.search(name) for name in names]
    return pl.DataFrame(
        {
            "block": [int(p[1]) if p else None for p in found],
            "part": [p[2] if p else n for p, n in zip(found, names, strict=True)],
        },
        schema={"block": pl.Int64, "part": pl.String},
    )


def grid(found: pl.DataFrame, n_layers: int, lost: pl.DataFrame | None = None) -> pl.DataFrame:
    """Relative difference of every weight that differs somewhere, in every block.

    0 where it is equal, null where it can't be compared: `lost`, of `not_compared`.

    Weights outside the blocks have no place in it, unless nothing else differs: they all are block 0's then.
    """
    inside = found.drop_nulls("block")
    if not inside.height:
        return found.with_columns(block=pl.lit(0))
    parts = inside.select(pl.col("part").unique(maintain_order=True))
    every = parts.join(pl.DataFrame({"block": range(n_layers)}), how="cross")
    joined = every.join(inside, on=["block", "part"], how="left", maintain_order="left")
    gone = set() if lost is None else set(lost.iter_rows())
    known = pl.Series(
        [place not in gone for place in joined.select("block", "part").iter_rows()], dtype=pl.Boolean
    )
    return joined.with_columns(relative=pl.when(known).then(pl.col("relative").fill_null(0.0)))


def code(opened: Opened, model: str) -> str:
    """Lines that read the same table."""
    return "\n".join(
        (
            "from store.reader import Store",
            "",
            f"table = Store({opened.path!r}).table({delta_table(model)!r})",
        )
    )
