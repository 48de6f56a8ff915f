"""Tables of stored weight differences: per block, per tensor, spectra and heads. No model needed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import polars as pl

from app.frame.opened import Opened
from app.live.weight_tables import NORMS, delta_table, heads_table, kept_heads_table
from engine.stats.spectra import random_values
from engine.stats.uncertainty import holm

IN_BLOCK = re.compile(r"\.\d+\.(.+?)(?:\.weight)?$")
SHOWN_DIRECTIONS = 64


def part_of(name: str) -> str:
    """A tensor's place in its block: "self_attn.o_proj"; its whole name outside the blocks."""
    found = IN_BLOCK.search(name)
    return found[1] if found else name.removesuffix(".weight")


def compared(opened: Opened) -> tuple[str, ...]:
    """Models whose difference from the first one is stored, with everything that these pages need."""
    return _stored(opened, opened.facts.models[1:])


def contrasts(opened: Opened) -> dict[str, tuple[str, str]]:
    """Stored contrasts that the study names: name -> (plus, minus)."""
    named = opened.store.manifest.get("study", {}).get("contrasts", {})
    return {name: (named[name]["plus"], named[name]["minus"]) for name in _stored(opened, named)}


def differences(opened: Opened) -> tuple[str, ...]:
    """Every stored difference: models' own, then contrasts."""
    return (*compared(opened), *contrasts(opened))


def ends(opened: Opened, name: str) -> tuple[str, str]:
    """The two models whose weights a difference takes from each other: (of, from)."""
    return contrasts(opened).get(name, (name, opened.facts.models[0]))


def between(opened: Opened, a: str, b: str) -> str | None:
    """The stored difference of two models' weights, whichever way it is taken; None where there is none."""
    return next((name for name in differences(opened) if set(ends(opened, name)) == {a, b}), None)


def label(opened: Opened, name: str) -> str:
    """A difference in words: "tuned − base", "agreeable = tuned − critical"."""
    of, from_ = ends(opened, name)
    return f"{of} − {from_}" if name == of else f"{name} = {of} − {from_}"


def _stored(opened: Opened, names: Iterable[str]) -> tuple[str, ...]:
    tables = set(opened.store.table_names())
    if NORMS not in tables:
        return ()
    return tuple(name for name in names if delta_table(name) in tables and kept_heads_table(name, tables))


def tensors(opened: Opened, model: str) -> pl.DataFrame:
    """Every tensor that differs or can't be compared: the stored table with a column `part`."""
    found = opened.store.table(delta_table(model))
    return found.with_columns(pl.Series("part", list(map(part_of, found["name"])), dtype=pl.String))


def problems(opened: Opened, model: str) -> list[str]:
    """Tensors without a difference, each with the reason."""
    found = tensors(opened, model).drop_nulls("problem")
    return [f"{row['name']}: {row['problem']}" for row in found.iter_rows(named=True)]


def part_rows(opened: Opened, model: str) -> list[str]:
    """Tensors of which only the rows of shared token strings are compared, with how many these are."""
    found = tensors(opened, model)
    if "rows" not in found.columns:  # a store of an earlier version
        return []
    kept = found.drop_nulls("rows").iter_rows(named=True)
    return [f"{row['name']}: {row['rows']:,} of {row['shape'][0]:,}" for row in kept]


def places(opened: Opened, name: str) -> pl.DataFrame:
    """Every tensor of the blocks of either model of a difference: name, layer, part, size, norm, …

    `size` is ‖W‖ in the first model. `norm` is 0 where both models are equal bit by bit, and null where they
    can't be compared: all tensors of a contrast that some tensor keeps from being made.
    """
    found = tensors(opened, name)
    first = opened.store.table(NORMS).select("name", "layer", size="norm")
    lost = found.filter(pl.col("problem").is_not_null()) if "problem" in found.columns else found.clear()
    whole = not lost.is_empty() and name in contrasts(opened)
    every = first.join(found.drop("layer", "part"), on="name", how="left", maintain_order="left")
    every = pl.concat([every, lost.join(first, on="name", how="anti").drop("part")], how="diagonal")
    known = pl.lit(not whole) & ~pl.col("name").is_in(lost["name"].to_list())
    value = pl.when(known).then(pl.col("norm").fill_null(0.0))
    parts = pl.Series("part", list(map(part_of, every["name"])), dtype=pl.String)
    return every.with_columns(parts, norm=value).drop_nulls("layer").sort("layer", maintain_order=True)


def by_block(opened: Opened, models: tuple[str, ...]) -> pl.DataFrame:
    """Every block as a whole: layer, series (difference), norm, value = ‖ΔW‖/‖W‖, lost.

    Both norms are over the tensors of a block that can be compared; null where there are none. `lost`: how
    many can't be, which is all of a block that one of the models doesn't have.
    """
    parts = []
    for model in models:
        known = pl.col("norm").is_not_null()
        summed = (
            places(opened, model)
            .group_by("layer", maintain_order=True)
            .agg(
                norm=pl.when(known.any()).then((pl.col("norm") ** 2).sum().sqrt()),
                size=(pl.col("size").filter(known) ** 2).sum().sqrt(),
                lost=(~known).sum().cast(pl.Int64),
            )
        )
        parts.append(
            summed.select(
                "layer",
                pl.lit(model).alias("series"),
                "norm",
                (pl.col("norm") / pl.col("size")).alias("value"),
                "lost",
            )
        )
    return pl.concat(parts)


def grid(opened: Opened, model: str, measure: str) -> pl.DataFrame:
    """part × layer of one measure, of parts that differ somewhere.

    Tensors that are equal in both models have norm 0 and no rank; those that can't be compared have neither.
    """
    own = places(opened, model)
    differ = own.filter(pl.col("norm").is_not_null() & (pl.col("norm") > 0))
    parts = differ.select(pl.col("part").unique(maintain_order=True))
    every = blocks(opened, model).join(parts, how="cross")
    every = every.join(own, on=["layer", "part"], how="left", maintain_order="left")
    value = pl.col(measure)
    if measure != "effective_rank":
        value = pl.when(pl.col("norm").is_not_null()).then(value.fill_null(0.0))
    return every.select("layer", "part", value.alias("value"))


def blocks(opened: Opened, name: str) -> pl.DataFrame:
    """Column `layer`: every block of either model of a difference, or of the first one."""
    models = {opened.facts.models[0], *ends(opened, name)}
    count = max(opened.facts.n_layers[model] for model in models)
    return pl.DataFrame({"layer": range(count)}, schema={"layer": pl.Int64})


def parts_at(opened: Opened, model: str, layer: int) -> tuple[str, ...]:
    """Matrices of a block that differ, with a stored spectrum."""
    found = tensors(opened, model).filter(pl.col("layer") == layer).drop_nulls("effective_rank")
    return tuple(found["part"])


def name_at(opened: Opened, model: str, layer: int, part: str) -> str | None:
    """Full name of a tensor; None where it is equal in both models."""
    found = tensors(opened, model).filter((pl.col("layer") == layer) & (pl.col("part") == part))
    known = found.drop_nulls("effective_rank")
    return None if known.is_empty() else str(known["name"][0])


def spectra(opened: Opened, models: tuple[str, ...], layer: int, part: str) -> pl.DataFrame:
    """Leading singular values: x (from 1), series (difference), value, and random ones of its norm."""
    frames = []
    for model in models:
        name = name_at(opened, model, layer, part)
        if name is None:
            continue
        sigma = np.asarray(opened.store.array(f"weights/{model}/delta/{name}/spectrum"), dtype=np.float64)
        shape = tensors(opened, model).filter(pl.col("name") == name)["shape"][0].to_list()
        chance = random_values(shape[0], shape[1], float(np.linalg.norm(sigma)))
        count = min(len(chance), SHOWN_DIRECTIONS)
        padded = np.pad(sigma, (0, max(0, count - len(sigma))), constant_values=np.nan)[:count]
        columns = {"x": np.arange(1, count + 1), "value": padded, "random": chance[:count]}
        frames.append(pl.DataFrame(columns).insert_column(1, pl.Series("series", [model] * count)))
    schema = {"x": pl.Int64, "series": pl.String, "value": pl.Float64, "random": pl.Float64}
    return pl.concat(frames).cast(schema).fill_nan(None) if frames else pl.DataFrame(schema=schema)  # type: ignore[arg-type]


def standing_out(opened: Opened, model: str, layer: int, part: str) -> dict[str, Any] | None:
    """What a title tells of one tensor's directions; None where both models have the same.

    count above the edge of random ones (None in stores without it), directions in all, effective rank, rank
    (NaN: dense), noise: the norm that rounding gives by itself, as a share.
    """
    name = name_at(opened, model, layer, part)
    if name is None:
        return None
    row = tensors(opened, model).filter(pl.col("name") == name).row(0, named=True)
    sigma = opened.store.array(f"weights/{model}/delta/{name}/spectrum")
    return {
        "count": None if row.get("edge") is None else int((np.asarray(sigma) > row["edge"]).sum()),
        "noise": row.get("noise") or 0.0,
        "directions": min(row["shape"]),
        "effective_rank": row["effective_rank"],
        "rank": float("nan") if row["rank"] is None else row["rank"],
    }


def heads_told(opened: Opened, model: str) -> bool:
    """Whether no row of `heads` means no difference, not tensors or heads that can't be compared."""
    name = kept_heads_table(model, opened.store.table_names()) or heads_table(model)
    own = places(opened, model)
    split = opened.store.table(name)["name"].unique().to_list()
    attention = pl.col("part").str.contains("attn|attention") & (pl.col("shape").list.len() >= 2)
    other = own.filter(attention & (pl.col("norm") > 0) & ~pl.col("name").is_in(split))
    return own["norm"].null_count() == 0 and other.is_empty()


def heads(opened: Opened, model: str, part: str) -> pl.DataFrame:
    """Shares of all heads in one kind of projection: the stored rows with p_holm over heads and blocks."""
    name = kept_heads_table(model, opened.store.table_names()) or heads_table(model)
    found = opened.store.table(name).filter(pl.col("part") == part)
    adjusted = holm(found["p"].to_numpy()) if found.height else np.empty(0)
    return found.with_columns(pl.Series("p_holm", adjusted, dtype=pl.Float64))
