"""A patch condition checked against a store, before any model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from engine.condition import Condition
from engine.errors import PatchError
from store.reader import Store


@dataclass(frozen=True)
class Request:
    """A condition on a store, validated; needs no model to make.

    Attributes:
        rows: store rows of the reported prompts, ascending.
        train_rows: store rows of the train split (all languages and categories), empty where not needed.
        prompts: the reported rows of the prompts table, with their store row as `row`.
    """

    condition: Condition
    rows: np.ndarray
    train_rows: np.ndarray
    prompts: pl.DataFrame


def build_request(store: Store, condition: Condition) -> Request:
    """Checks a condition against a store and picks its prompts.

    Raises:
        PatchError: an unknown model, a layer out of range, or no prompt left; says what there is.
    """
    _check_models(store, condition)
    table = store.prompts.with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))
    train = table.filter(pl.col("split") == "train") if condition.needs_train else table.clear()
    chosen = table if condition.split == "all" else table.filter(pl.col("split") == condition.split)
    for column, wanted in condition.where.model_dump().items():
        if wanted is not None:
            chosen = chosen.filter(pl.col(column) == wanted) if column in chosen.columns else chosen.clear()
    if chosen.is_empty():
        raise PatchError(
            "No prompt fits this choice.",
            expected="prompts of the split, language and category asked for",
            given=f"split {condition.split}, {_where_text(condition)}",
            next_step="choose another split, language or category.",
        )
    pairs = pl.col("pair_id") if "pair_id" in chosen.columns else pl.lit(None, pl.String)
    if chosen.select(pl.coalesce(pairs, pl.col("id")).n_unique()).item() < 2:
        raise PatchError(
            "This choice leaves a single prompt or pair: its mean has no interval.",
            expected="at least 2 prompts that are not of one pair",
            given=f"{chosen.height} of split {condition.split}, {_where_text(condition)}",
            next_step="choose a wider split, language or category.",
        )
    return Request(condition, chosen["row"].to_numpy(), train["row"].to_numpy(), chosen)


def _where_text(condition: Condition) -> str:
    chosen = [f"{k} {v}" for k, v in condition.where.model_dump().items() if v is not None]
    return ", ".join(chosen) or "all languages and categories"


def _check_models(store: Store, condition: Condition) -> None:
    """The models exist, have the site, and fit each other, as far as their sizes tell."""
    names = [condition.target, *([condition.source] if condition.needs_source else [])]
    for name in names:
        if name not in store.models:
            raise PatchError(
                f"The store has no model {name!r}.", expected=" or ".join(store.models), given=repr(name)
            )
        sizes = store.model_info(name)
        for what, asked, count in (
            ("Layer", [condition.layer], int(sizes["n_layers"])),
            ("Head", list(condition.heads or ()), int(sizes["n_heads"])),
        ):
            if max(asked, default=0) >= count:
                raise PatchError(
                    f"{what} {max(asked)} is out of range for {name}.",
                    expected=f"0 to {count - 1}",
                    given=max(asked),
                )
    if condition.kind in ("raw", "literal"):
        wanted = ("d",) if condition.component != "head_z" else ("head_dim", "n_heads")
        if condition.heads is not None:
            wanted = wanted[:1]
        target, source = (
            {key: int(store.model_info(name)[key]) for key in wanted} for name in (names[0], names[1])
        )
        if target != source:
            raise PatchError(
                f"{names[1]} and {names[0]} have different widths at {condition.site_text()}: "
                f"a {condition.kind} patch needs the same one.",
                expected=f"{_sizes_text(target)} ({names[0]})",
                given=f"{_sizes_text(source)} ({names[1]})",
                next_step="models of different widths can only be patched through a transport map.",
            )


def _sizes_text(sizes: Mapping[str, int]) -> str:
    words = {"d": "width", "head_dim": "head width", "n_heads": "heads"}
    return ", ".join(f"{words[key]} {value}" for key, value in sizes.items())
