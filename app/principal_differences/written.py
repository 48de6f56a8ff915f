"""How far a component lies in what the stored weight difference of two models writes, matrix by matrix."""

from __future__ import annotations

import re

import numpy as np
import polars as pl
from scipy import linalg

from app.frame.call import kept
from app.live.weight_tables import delta_table
from app.principal_differences.slices import Where
from app.principal_differences.tables import found
from engine.principal_differences import numbers
from engine.stats.uncertainty import holm
from store.layout import slug
from store.reader import Store

WRITES = ("o_proj", "out_proj", "dense", "c_proj", "down_proj", "fc2", "dense_4h_to_h", "wo", "w2")
"""What matrices that write into the stream are called."""
MOST = 32
"""Directions of a difference that is not of low rank."""
COLUMNS = {
    "layer": pl.Int64,
    "part": pl.String,
    "rank": pl.Int64,
    "cosine": pl.Float64,
    "null_high": pl.Float64,
    "p": pl.Float64,
    "p_holm": pl.Float64,
}
_PLACE = re.compile(r"\.\d+\.(.+?)(?:\.weight)?$")


def difference(store: Store, a: str, b: str) -> str | None:
    """The stored weight difference of two models, whichever way it is taken; None where there is none."""
    first = store.models[0]
    named = (store.manifest.get("study") or {}).get("contrasts") or {}
    ends = {model: {model, first} for model in store.models[1:]}
    ends |= {name: {one["plus"], one["minus"]} for name, one in named.items()}
    tables = set(store.table_names())
    return next((name for name, pair in ends.items() if pair == {a, b} and delta_table(name) in tables), None)


def written(
    store: Store,
    a: str,
    b: str,
    site: str,
    layer: int,
    position: str,
    which: Where,
    centred: bool,
    component: int,
) -> pl.DataFrame:
    """A component's cosine with the output side of ΔW of every matrix that writes up to a block.

    Returns:
        layer, part, rank (of the side), cosine, null_high (95 % of unrelated subspaces), p, and p_holm over
        the rows; the largest cosine first.
    """
    name = difference(store, a, b)
    direction = found(store, a, b, site, layer, position, which, centred).directions[component - 1]
    rows = []
    for block, part, basis in [] if name is None else sides(store, name):
        before = block == layer and site != "resid_pre" and (site != "attn_out" or "att" in part)
        if block < layer or before:
            one = numbers.written(direction, basis)
            rows.append((block, part, basis.shape[1], one.cosine, one.high, one.p))
    table = pl.DataFrame(rows, schema=list(COLUMNS)[:-1], orient="row")
    adjusted = holm(table["p"].to_numpy().astype(np.float64)) if rows else np.empty(0)
    table = table.with_columns(p_holm=adjusted).cast(COLUMNS)  # type: ignore[arg-type]
    return table.sort("cosine", descending=True)


@kept("Reading weight differences…", most=4)
def sides(store: Store, name: str) -> list[tuple[int, str, np.ndarray]]:
    """(block, part, basis (d, r)) of the output side of every writing matrix of a difference that is kept.

    Of a factored difference all of it; of a dense one the directions above the edge of random ones, at most
    `MOST`; none of one that is no larger than rounding.
    """
    d = int(store.model_info(store.models[0])["d"])
    stored, arrays = store.table(delta_table(name)), set(store.array_names())
    places = [(row, _PLACE.search(row["name"])) for row in stored.iter_rows(named=True)]
    held = [(row, place[1]) for row, place in places if place and place[1].split(".")[-1] in WRITES]
    turned = any(row["shape"][0] != d for row, part in held if part.endswith("c_proj"))  # input rows first
    found_: list[tuple[int, str, np.ndarray]] = []
    for row, part in held:
        folder = f"weights/{slug(name)}/delta/{row['name']}"
        side = "right" if turned else "left"
        if (row.get("noise") or 0.0) >= 1.0 or len(row["shape"]) != 2:
            continue
        if f"{folder}/{side}" in arrays:
            factor = store.array(f"{folder}/{side}").astype(np.float64)
            basis = np.linalg.qr(factor.T if turned else factor)[0]
        elif f"{folder}/dense" in arrays and row.get("edge") is not None:
            dense = store.array(f"{folder}/dense").astype(np.float64)
            square = dense.T @ dense if turned else dense @ dense.T
            last = len(square) - 1
            values, vectors = linalg.eigh(square, subset_by_index=[max(last - MOST + 1, 0), last])
            above = int((values > row["edge"] ** 2).sum())
            basis = vectors[:, ::-1][:, : min(above, MOST)]
        else:
            continue
        if basis.shape[0] == d and basis.shape[1]:
            found_.append((int(row["layer"]), part, basis))
    return found_
