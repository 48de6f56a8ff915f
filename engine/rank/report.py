"""Numbers of a rank sweep: drop% and coverage per (k, α) and split, the choice on train, spectra.

drop% = 100 (KL_raw − KL) / KL_raw: what a map of rank k saves. coverage = 100 KL_k / KL_mapped: how much of
what the whole swap does is done by swapping k dimensions. Both are ratios of means with a paired bootstrap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int

from engine.rank import numbers as ranks
from engine.rank.spec import RankSweep
from engine.rank.vectors import Cell
from engine.stats.means import bootstrap_ratios, exceed
from engine.stats.uncertainty import Band

SPLITS = ("train", "validation")
RANKED = ("truncated", "projector", "random")
MOST = 90.0
"""Percent of the whole swap that counts as most of it."""


@dataclass(frozen=True)
class RankData:
    """Per-prompt KLs of a sweep.

    Attributes:
        spec: the experiment. cells: the conditions. kl: (c, n) nats.
        groups: (n,) resampling group of each prompt.
        in_train: (n,) whether a prompt is of the train split. floor: nats that can't be told from no patch.
    """

    spec: RankSweep
    cells: list[Cell]
    kl: Float[np.ndarray, "c n"]
    groups: Int[np.ndarray, " n"]
    in_train: Bool[np.ndarray, " n"]
    floor: float

    @cached_property
    def alphas(self) -> tuple[float, ...]:
        """Amplitudes, ascending."""
        return tuple(sorted({c.alpha for c in self.cells if c.kind == "mapped"}))

    def ks(self, kind: str) -> tuple[int, ...]:
        """Ranks of a kind, ascending."""
        return tuple(sorted({c.k for c in self.cells if c.kind == kind}))

    def of(self, kind: str, split: str) -> Float[np.ndarray, "k a n"]:
        """KLs of a kind on a split; random bases are averaged per prompt, raw is repeated over α."""
        prompts = self.in_train if split == "train" else ~self.in_train
        index = [i for i, cell in enumerate(self.cells) if cell.kind == kind]
        found = self.kl[index][:, prompts]
        draws = max((self.cells[i].draw for i in index), default=0) if kind == "random" else 1
        shape = (draws, max(1, len(self.ks(kind))), -1, found.shape[1])
        mean = found.reshape(shape).mean(axis=0)
        return np.asarray(np.broadcast_to(mean, (mean.shape[0], len(self.alphas), mean.shape[2])))

    def resampling(self, split: str) -> dict[str, Any]:
        """Options of the bootstrap over a split's prompts."""
        groups = self.groups[self.in_train if split == "train" else ~self.in_train]
        return {"groups": groups, "n_boot": self.spec.n_boot, "seed": self.spec.seed}

    def reason(self, split: str, kind: str, alpha: float) -> str:
        """Why a ratio to the raw or the whole mapped patch has no meaning; empty where it has one."""
        against = "mapped" if kind in ("projector", "random") else "raw"
        kl = self.of(against, split)[:1, [self.alphas.index(alpha)]]
        if self.beyond(kl, split)[0, 0]:
            return ""
        size = max(float(kl.mean()), 0.0)
        return f"the {against} patch changes nothing: KL {size:.1g} nats, floor {self.floor:.0e}"

    def beyond(self, kl: Float[np.ndarray, "k a n"], split: str) -> Bool[np.ndarray, "k a"]:
        """Whether each mean KL is shown to exceed the floor."""
        return exceed(kl, self.floor, groups=self.resampling(split)["groups"], level=self.spec.level)


def _ratio(data: RankData, kind: str, split: str) -> Band:
    """drop% or coverage of every (k, α) of a kind, in percent; NaN where it has no meaning."""
    kl = data.of(kind, split)
    if kind in ("projector", "random"):
        top, bottom = kl, data.of("mapped", split)
    else:
        bottom = data.of("raw", split)
        top = bottom - kl
    known = data.beyond(bottom, split)[..., None]
    found = bootstrap_ratios(
        100 * top, np.where(known, bottom, 1.0), level=data.spec.level, **data.resampling(split)
    )
    lost = np.broadcast_to(~known[..., 0], found.estimate.shape)

    def kept(values: np.ndarray) -> np.ndarray:
        return np.where(lost, np.nan, values)

    return replace(
        found,
        estimate=kept(found.estimate),
        low=kept(found.low),
        high=kept(found.high),
        se=kept(found.se),
    )


def table(data: RankData) -> pl.DataFrame:
    """One row per kind, k, α and split.

    Columns kind, split, k (0 without a rank), alpha, kl (mean, nats), kl_low, kl_high, value (percent: drop
    of mapped and truncated, coverage of projector and random; null where undefined), low, high, se, n.
    """
    parts = []
    kinds = [k for k in ("raw", "mapped", *RANKED) if any(c.kind == k for c in data.cells)]
    for kind in kinds:
        for split in SPLITS:
            kl, ratio = data.of(kind, split), _ratio(data, kind, split)
            ones, options = np.ones_like(kl), data.resampling(split)
            size = bootstrap_ratios(kl, ones, level=data.spec.level, **options)
            ks, alphas = np.meshgrid(data.ks(kind), data.alphas, indexing="ij")
            columns = {"k": ks, "alpha": alphas, "kl": size.estimate, "kl_low": size.low}
            columns |= {"kl_high": size.high, "value": ratio.estimate, "low": ratio.low}
            columns |= {"high": ratio.high, "se": ratio.se}
            flat = pl.DataFrame({name: values.ravel() for name, values in columns.items()})
            parts.append(
                flat.with_columns(
                    kind=pl.lit(kind),
                    split=pl.lit(split),
                    n=pl.lit(kl.shape[-1]),
                    k=pl.col("k").cast(pl.Int64),
                )
            )
    order = ["kind", "split", "k", "alpha", "kl", "kl_low", "kl_high", "value", "low", "high", "se", "n"]
    return pl.concat(parts).select(order).fill_nan(None)


def choice(data: RankData) -> tuple[pl.DataFrame, dict[str, Any]]:
    """What is chosen on the train prompts.

    Returns:
        a table with one row per (kind, k, α): behind the best by `gap` percent, standard error `gap_se`; for
        truncated only the best α of each k. And a dict: `truncated` {best, smallest: {k, alpha} or None,
        reason}, `projector` [{alpha, smallest: k or None, most: first k with 90 % or None, reason}].
    """
    rows: list[dict[str, Any]] = []
    found: dict[str, Any] = {"truncated": None, "projector": []}
    alphas, options = data.alphas, data.resampling("train")
    if data.ks("truncated"):
        kl, raw = data.of("truncated", "train"), data.of("raw", "train")[0]
        at = ranks.best_amplitudes(kl)
        loss = np.take_along_axis(kl, at[:, None, None], axis=1)[:, 0]
        best = int(loss.mean(axis=-1).argmin())
        reason = data.reason("train", "truncated", alphas[at[best]])
        ks = data.ks("truncated")
        found["truncated"] = {"best": {"k": ks[best], "alpha": alphas[at[best]]}, "reason": reason}
        found["truncated"]["smallest"] = None
        if not reason:
            unit = raw[at[best]]
            rule = ranks.smallest_sufficient(
                loss, loss[best], unit, floor=data.floor / unit.mean(), **options
            )
            rows += _gaps("truncated", ks, [alphas[i] for i in at], rule)
            index = rule.index
            if index is not None:
                found["truncated"]["smallest"] = {"k": ks[index], "alpha": alphas[at[index]]}
    ks = data.ks("projector")
    whole, parts = data.of("mapped", "train")[0], data.of("projector", "train")
    for i, alpha in enumerate(alphas):
        reason, smallest, most = data.reason("train", "projector", alpha), None, None
        if not reason:
            floor = data.floor / whole[i].mean()
            rule = ranks.smallest_sufficient(-parts[:, i], -whole[i], whole[i], floor=floor, **options)
            rows += _gaps("projector", ks, [alpha] * len(ks), rule)
            smallest = None if rule.index is None else ks[rule.index]
            most = next((k for k, gap in zip(ks, rule.gap, strict=True) if 100 * (1 - gap) >= MOST), None)
        found["projector"].append({"alpha": alpha, "smallest": smallest, "most": most, "reason": reason})
    schema = {"kind": pl.String, "k": pl.Int64, "alpha": pl.Float64, "gap": pl.Float64, "gap_se": pl.Float64}
    return pl.DataFrame(rows, schema=schema), found


def _gaps(
    kind: str, ks: tuple[int, ...], alphas: list[float], rule: ranks.Sufficient
) -> list[dict[str, Any]]:
    return [
        {"kind": kind, "k": k, "alpha": alpha, "gap": 100 * float(gap), "gap_se": 100 * float(se)}
        for k, alpha, gap, se in zip(ks, alphas, rule.gap, rule.se, strict=True)
    ]


def describe_spectra(
    spectra: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Spectra with their null as a table, and per spectrum how many values hold 99 % of the squares.

    Args:
        spectra: name -> singular values (r,) and those of the null (draws, r).

    Returns:
        columns series, index (from 1), value, null_low, null_high (95 % of the null's draws); and
        {name: {needed, needed_null, total}}.
    """
    parts, counts = [], {}
    for name, (values, null) in spectra.items():
        parts.append(
            pl.DataFrame(
                {
                    "series": [name] * values.size,
                    "index": np.arange(1, values.size + 1),
                    "value": values,
                    "null_low": np.quantile(null, 0.025, axis=0),
                    "null_high": np.quantile(null, 0.975, axis=0),
                }
            )
        )
        by_chance = [ranks.needed_for(draw) for draw in null]
        counts[name] = {
            "needed": ranks.needed_for(values),
            "needed_null": int(np.median(by_chance)),
            "total": int(values.size),
        }
    return pl.concat(parts), counts


def prompt_kls(data: RankData, rows: Int[np.ndarray, " n"]) -> pl.DataFrame:
    """Every prompt's KL: columns row, split, kind, k, alpha, kl; random bases averaged."""
    parts = []
    for split in SPLITS:
        mine = rows[data.in_train if split == "train" else ~data.in_train]
        for kind in dict.fromkeys(cell.kind for cell in data.cells):
            kl, ks = data.of(kind, split), data.ks(kind)
            k, alpha, row = (grid.ravel() for grid in np.meshgrid(ks, data.alphas, mine, indexing="ij"))
            part = {"row": row, "k": k, "alpha": alpha, "kl": kl.ravel().astype(np.float32)}
            parts.append(pl.DataFrame(part).with_columns(kind=pl.lit(kind), split=pl.lit(split)))
    return pl.concat(parts).select("row", "split", "kind", "k", "alpha", "kl")


def path(tables: Mapping[str, pl.DataFrame], kind: str, alpha: float) -> pl.DataFrame:
    """Validation values over k, as `table` has them, with a column `series`.

    Args:
        tables: of a stored result. kind: truncated or projector.
        alpha: one that was run.

    Returns:
        "truncated": the best α of each k on train ("best α"), and the one given ("this α"). "projector": the
        one given, with the random bases of that size ("random").
    """
    cells = tables["table"].filter(pl.col("split") == "validation")
    here = cells.filter((pl.col("alpha") - alpha).abs() < 1e-9)
    if kind == "projector":
        parts = [("this α", here.filter(pl.col("kind") == kind))]
        parts.append(("random", here.filter(pl.col("kind") == "random")))
    else:
        best = tables["choice"].filter(pl.col("kind") == kind).select("kind", "k", "alpha")
        parts = [("best α", best.join(cells, on=["kind", "k", "alpha"]).select(cells.columns))]
        parts.append(("this α", here.filter(pl.col("kind") == kind)))
    return pl.concat([part.with_columns(series=pl.lit(name)) for name, part in parts]).sort("series", "k")
