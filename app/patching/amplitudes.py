"""What a map saves at every amplitude that was run: fixed, automatic, and the one that train chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from app.charts.palette import Palette
from app.charts.scatter import forest
from app.charts.template import Chart
from app.frame import noise
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.frame.snippets import read_run
from app.live.jobs import JobResult
from app.patching import words as say
from engine.errors import PatchError
from engine.lab import grids
from engine.lab.units import resampling_units
from engine.patching.numbers import Reduction, Resampling, reductions

SPLITS = ("validation", "train")
SPANS = ("kl_raw", "kl_mapped", "gain", "drop")
SCHEMA = {
    "layer": pl.Int64,
    "hook": pl.String,
    "direction": pl.String,
    "alpha": pl.Float64,
    "which": pl.String,
    "split": pl.String,
    **{f"{name}{end}": pl.Float64 for name in SPANS for end in ("", "_low", "_high")},
    **dict.fromkeys(("kl_raw_sd", "kl_mapped_sd"), pl.Float64),
}


def read(text: str) -> tuple[float, ...]:
    """ "0.3, 0.5" as amplitudes, ascending; none for an empty text.

    Raises:
        PatchError: no finite numbers with commas between, or too many of them.
    """
    try:
        found = tuple(sorted({float(part) for part in text.split(",")} if text.strip() else ()))
    except ValueError:
        found = (float("nan"),)
    if not all(np.isfinite(found)):
        raise PatchError(
            "The amplitudes α cannot be read.",
            expected="numbers with commas between, e.g. 0.3, 0.5, 0.7, 1",
            given=repr(text[:60]),
            next_step="write them again.",
        )
    grids.check(found)
    return found


def written(alphas: Sequence[float], usual: Sequence[float]) -> str:
    """Amplitudes as a link has them; "" for the usual ones."""
    every = (repr(float(alpha)).removesuffix(".0") for alpha in alphas)
    return "" if tuple(alphas) == tuple(usual) else ",".join(every)


@lru_cache(maxsize=64)
def rows(result: JobResult) -> pl.DataFrame:
    """One row per amplitude and split: KL_raw, KL_mapped, ΔKL (`gain`) and drop%, with intervals, in nats.

    `kl_raw_sd` and `kl_mapped_sd`: standard deviations (n − 1) over prompts.

    `which` says "auto" of the amplitude that gives mapped train vectors the target's length, and "best" of
    the one that train chose ("auto, best"). Nothing is run: a stored run has every prompt's KL at every α.
    """
    condition, summary, prompts = result.condition, result.summary, result.tables["prompts"]
    units = resampling_units(prompts)
    alphas = sorted(float(a) for a in summary["alphas"])
    kl = {kind: _kl(result.tables["kl"], kind, alphas) for kind in ("raw", "mapped")}
    best, auto = float(summary["best"]["alpha"]), summary["alpha_auto"]
    found = []
    for split in SPLITS:
        where = (prompts["split"] == split).to_numpy()
        how = Resampling(units[where], condition["n_boot"], condition["level"], condition["seed"])
        own = {kind: None if values is None else values[:, where] for kind, values in kl.items()}
        spans = _spans(own, len(alphas), float(summary["self_check"]["limit"]), how, noise.kl_floor(summary))
        for alpha, span in zip(alphas, spans, strict=True):
            marks = [name for name, at in (("auto", auto), ("best", best)) if alpha == at]
            row = {
                "layer": int(condition["layer"]),
                "hook": str(condition["component"]),
                "direction": say.direction(condition),
                "alpha": alpha,
                "which": ", ".join(marks),
                "split": split,
            }
            found.append(row | span)
    return pl.DataFrame(found, schema=SCHEMA)


def _kl(every: pl.DataFrame, kind: str, alphas: Sequence[float]) -> np.ndarray | None:
    """KLs (alphas, prompts) of a kind, at its only amplitude where it has one; None where it was not run."""
    mine = {
        key[0]: part["kl"].to_numpy() for key, part in every.filter(pl.col("kind") == kind).group_by("alpha")
    }
    if not mine:
        return None
    [*values] = mine.values()
    return np.stack([values[0] if len(values) == 1 else mine[alpha] for alpha in alphas])


def _spans(
    kl: Mapping[str, np.ndarray | None], count: int, limit: float, how: Resampling, floor: float
) -> list[dict[str, float | None]]:
    """Every figure of `SPANS` at every amplitude."""
    bands = {f"kl_{kind}": how.means(values) for kind, values in kl.items() if values is not None}
    spread = {
        f"kl_{kind}_sd": values.std(axis=1, ddof=1) for kind, values in kl.items() if values is not None
    }
    less: Sequence[Reduction | None] = [None] * count
    if kl["raw"] is not None and kl["mapped"] is not None:
        less = reductions(kl["raw"], kl["mapped"], limit, how, floor, bands["kl_raw"])
    found = []
    for at, one in enumerate(less):
        spans: dict[str, Any] = {name: band.at((at,)) for name, band in bands.items()}
        spans |= {"gain": one.delta, "drop": one.drop} if one is not None else {}
        row: dict[str, float | None] = {name: float(values[at]) for name, values in spread.items()}
        for name in SPANS:
            for key, end in (("estimate", ""), ("low", "_low"), ("high", "_high")):
                row[name + end] = None if spans.get(name) is None else float(getattr(spans[name], key))
        found.append(row)
    return found


def label(row: Mapping[str, Any]) -> str:
    """ "α = 0.7", "α = 0.94 (auto)"."""
    return f"α = {row['alpha']:g}" + (f" ({row['which']})" if row["which"] else "")


def amplitudes_panel(opened: Opened, result: JobResult, alpha: float) -> Panel | None:
    """ΔKL at every amplitude of one run; None without a raw condition.

    Args:
        alpha: the amplitude that the title tells of: the nearest one that was run.
    """
    table, condition = rows(result), result.condition
    shown = table.filter(pl.col("split") == "validation").drop_nulls("gain")
    if shown.is_empty():
        return None
    drawn = shown.select(
        pl.struct("alpha", "which").map_elements(label, return_dtype=pl.String).alias("name"),
        value="gain",
        low="gain_low",
        high="gain_high",
    )

    def draw(palette: Palette) -> Chart:
        return forest(drawn, x_title="KL_raw − KL_mapped, nats (validation)", palette=palette)

    raw = "stays at α = 1" if condition["raw_alpha"] == "fixed" else "has the same α"
    caption = (
        f"α, {say.amplitude(condition)}; raw {raw}. {say.reading(condition)}. “auto” gives mapped train "
        "vectors the target's median length, “best” is the α with the smallest KL on train; the others are "
        "as they were asked for. Each interval is of one α by itself: the α with the largest value here is "
        f"no choice made on other prompts. {say.null_note(result.summary)}"
    )
    models = (str(condition["target"]), str(condition["source"]))
    code = read_run(
        opened,
        result,
        "from app.live.jobs import JobResult",
        "from app.patching import amplitudes",
        "table = amplitudes.rows(JobResult(run.condition, run.summary, run.tables))",
    )
    title = amplitudes_title(shown, condition, alpha)
    return Panel("patch-amplitudes", title, table, draw, code, caption, models, False)


def amplitudes_title(shown: pl.DataFrame, condition: Mapping[str, Any], alpha: float) -> str:
    """ΔKL at the amplitude nearest to `alpha`, and at the one that train chose, with their intervals."""
    near = shown.sort((pl.col("alpha") - alpha).abs(), "alpha").row(0, named=True)
    best = shown.filter(pl.col("which").str.contains("best")).row(0, named=True)
    told = [near] if near["alpha"] == best["alpha"] else [near, best]
    values = [f"{say.span({k: row[f'gain{end}'] for k, end in _ENDS})} at {label(row)}" for row in told]
    return f"{say.direction(condition)}, {say.site(condition)}: ΔKL in nats is {', '.join(values)}"


_ENDS = (("estimate", ""), ("low", "_low"), ("high", "_high"))
