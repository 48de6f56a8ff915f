"""The tables that papers print: one line per layer and hook, the bogus-map control, the top results.

Everything comes from stored runs and from the tables of the pages; what is not stored stays empty.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl

from app.frame import noise, words
from app.frame.analysis import Blocks
from app.frame.blocks import Block, Table, Text
from app.frame.opened import Opened
from app.frame.selection import Selection
from app.frame.stored import Asked, of_pair, opened_run
from app.patching import table as patch_table
from app.patching import words as say
from app.similarity import panels as similarity
from app.similarity.tables import cka_curve
from app.transport import places as transport_table
from app.transport import tables as tq
from engine.errors import PatchbayError
from engine.lab.units import resampling_units
from engine.patching.numbers import Resampling, reduction

TOP = 12
CKAS = ("cka_raw_debiased", "cka_mapped_debiased")
INTRO = "α is chosen on the train split; everything else is measured on the validation split unless said."
NO_RUNS = (
    "No mapped patch of this pair is stored, so the columns from α on are empty; the last but one chapters "
    "say which commands fill them."
)


def summary(opened: Opened, selection: Selection) -> Blocks:
    """The one-shot table in both directions, the control, the top results."""
    runs = comparable(of_pair(opened, selection, ("mapped",)), selection)
    blocks: list[Block] = []
    for side in "ba" if selection.target == "b" else "ab":
        place = tq.Place.of(update_side(selection, side))
        mine = [run for run in runs if run[0]["target"] == place.target]
        if mine or side == selection.target:
            blocks.append(one_shot(opened, selection, place, mine))
    return [*blocks, *([control(opened, runs), top(runs)] if runs else [Text(NO_RUNS)])]


def update_side(selection: Selection, side: str) -> Selection:
    """The selection with its other or the same model as target."""
    return dataclasses.replace(selection, target=side)


def comparable(runs: Sequence[Asked], selection: Selection) -> list[Asked]:
    """Runs that differ by site, block and direction alone: under the selection's settings, else the most."""
    found = list(patch_table.alike(runs, selection))
    if found or not runs:
        return found
    settings = [patch_table.settings(condition) for condition, _ in runs]
    most = max(dict.fromkeys(settings), key=settings.count)
    return [run for run, its in zip(runs, settings, strict=True) if its == most]


def strongest(opened: Opened, selection: Selection) -> Selection:
    """The selection at the place where the map saves most; as it is where nothing was run."""
    if not opened.facts.tokens:  # nothing can be patched
        return selection
    runs = comparable(of_pair(opened, selection, ("mapped",)), selection)
    ranked = patch_table.ranked(patch_table.table(runs))
    if not ranked.height:
        return selection
    return dataclasses.replace(selection, site=ranked["hook"][0], layer=int(ranked["layer"][0]))


def best_first(selection: Selection) -> Callable[[Sequence[Asked]], list[Asked]]:
    """An order of mapped patches: comparable ones by what the map saves on train, then the others."""

    def order(runs: Sequence[Asked]) -> list[Asked]:
        ranked = patch_table.ranked(patch_table.table(comparable(runs, selection)))["run_id"].to_list()
        place = {run_id: number for number, run_id in enumerate(ranked)}
        return sorted(runs, key=lambda run: place.get(run[1]["run_id"], len(place)))

    return order


def one_shot(opened: Opened, selection: Selection, place: tq.Place, runs: Sequence[Asked]) -> Table:
    """One line per block and hook of one direction."""
    known = transport_table.known(opened.store, place, tq.spec_of(selection))
    rows = patch_table.table(runs).drop("direction", "settings", "controls")
    fits = [s["map"]["r2_validation"] for _, s in runs]
    rows = rows.with_columns(pl.Series("r2_validation", fits, dtype=pl.Float64))
    places = rows.select("layer", "hook")
    if known is not None:
        places = pl.concat([places, known.select("layer", hook="site")]).unique()
    frame = places.join(rows, on=["layer", "hook"], how="left", nulls_equal=True)
    if known is not None:
        scores = known.select("layer", pl.col("site").alias("hook"), *CKAS, fit=pl.col("r2_validation"))
        frame = frame.join(scores, on=["layer", "hook"], how="left")
        frame = frame.with_columns(r2_validation=pl.coalesce("r2_validation", "fit")).drop("fit")
    else:
        frame = _with_cka(opened, selection, frame)
    order = {site: number for number, site in enumerate((*similarity.SITES, "head_out"))}
    frame = frame.sort(pl.col("hook").replace_strict(order, default=9), "layer")
    cka = (
        "CKA raw and mapped: debiased, on validation prompts, from Transport maps."
        if known is not None
        else "CKA raw: debiased, over the prompts of Similarity; CKA mapped is known once the map was fitted "
        "at every place."
    )
    settings = patch_table.settings(runs[0][0]) if runs else tq.spec_of(selection).describe()
    caption = f"{settings}. {cka} Intervals: {_level(runs)}. "
    caption += "– where drop% has no meaning: KL_raw is within rounding."
    caption += noise.note(runs[0][1]) if runs else ""
    title = f"{place.target} ← {place.source}: one line per block and hook"
    return Table(f"one-shot-{place.target}", title, frame, caption, shown=paper(frame))


def _with_cka(opened: Opened, selection: Selection, frame: pl.DataFrame) -> pl.DataFrame:
    """The debiased CKA of the Similarity page beside every line; every place where there is no line."""
    parts = []
    wanted = set(frame["hook"]) if frame.height else set(similarity.SITES) - {"resid_pre"}
    for site in [s for s in similarity.SITES if s in opened.facts.sites and s in wanted]:
        try:
            asked = similarity.place(selection) | {"site": site, "interval": selection.interval}
            curve = cka_curve(opened.store, **asked).filter(series="debiased")
        except PatchbayError:
            continue
        parts.append(curve.select("layer", hook=pl.lit(site), cka_raw_debiased="value"))
    schema = {"layer": pl.Int64, "hook": pl.String, "cka_raw_debiased": pl.Float64}
    cka = pl.concat(parts).cast(schema) if parts else pl.DataFrame(schema=schema)  # type: ignore[arg-type]
    frame = frame.join(cka, on=["layer", "hook"], how="left" if frame.height else "full", coalesce=True)
    return frame.with_columns(cka_mapped_debiased=pl.lit(None, dtype=pl.Float64))


def paper(frame: pl.DataFrame) -> pl.DataFrame:
    """The one-shot table as it is printed: estimates with their intervals in one cell."""
    return frame.select(
        pl.col("layer").alias("Layer"),
        pl.col("hook").alias("Hook"),
        pl.col("alpha").alias("α"),
        pl.col("r2_validation").alias("R² val"),
        pl.col("cka_raw_debiased").alias("CKA raw"),
        pl.col("cka_mapped_debiased").alias("CKA mapped"),
        *(spans(frame, name).alias(text) for name, text in PRINTED.items()),
    )


PRINTED = {"kl_raw": "KL_raw", "kl_mapped": "KL_mapped", "gain": "ΔKL", "drop": "Drop %"}


def _level(runs: Sequence[Asked]) -> str:
    """The level of the runs' intervals: "95 %", "90 or 95 %"."""
    levels = sorted({float(condition.get("level", 0.95)) for condition, _ in runs}) or [0.95]
    return " or ".join(f"{100 * level:g}" for level in levels) + " %"


def spans(frame: pl.DataFrame, name: str) -> pl.Series:
    """ "0.442 (0.31 to 0.55)" of a column and its ends; null without a value."""
    tell = _percent if name == "drop" else words.nats
    rows = frame.select(name, f"{name}_low", f"{name}_high").iter_rows()
    texts = [None if v is None else f"{tell(v)} ({tell(low)} to {tell(high)})" for v, low, high in rows]
    return pl.Series(texts, dtype=pl.String)


def _percent(value: float) -> str:
    return f"{value + 0.0:.1f}"


def control(opened: Opened, runs: Sequence[Asked]) -> Table:
    """The bogus map beside the right one, on both splits, at the places where the map saves most.

    Only where there is something to save: drop% has a meaning.
    """
    best = patch_table.ranked(patch_table.table(runs)).drop_nulls("drop")["run_id"].to_list()[:TOP]
    rows = [line for run_id in best for line in _control_rows(opened, run_id)]
    frame = pl.DataFrame(rows, schema=CONTROL, orient="row")
    shown = frame.select(
        pl.col("split").alias("Split"),
        pl.col("target").alias("Target (hook@layer)"),
        pl.col("map").alias("Map used"),
        pl.col("alpha").alias("α"),
        *(spans(frame, name).alias(text) for name, text in PRINTED.items()),
    )
    told = sum(not row["gain_low"] > row["noise"] for row in frame.iter_rows(named=True) if row["bogus"])
    of = frame.filter(pl.col("bogus")).height
    title = f"Bogus-map control: another block's map is not shown to save anything in {told} of {of} cases"
    caption = (
        "The same source activation through the map of this site and through that of another block, at the α "
        "chosen on train for the right map. Saved is what exceeds rounding noise. Intervals: "
        f"{_level(runs)} bootstrap, paired."
    )
    return Table("bogus", title, frame, caption, shown=shown)


CONTROL = {
    "split": pl.String,
    "target": pl.String,
    "map": pl.String,
    "bogus": pl.Boolean,
    "alpha": pl.Float64,
    **{f"{name}{end}": pl.Float64 for name in PRINTED for end in ("", "_low", "_high")},
    "noise": pl.Float64,
    "run_id": pl.String,
}


def _control_rows(opened: Opened, run_id: str) -> list[tuple[Any, ...]]:
    """Right and bogus map on both splits; nothing where there is no raw or no bogus condition."""
    run = opened_run(opened, run_id)
    condition, found = run.condition, run.summary
    floor = noise.kl_floor(found)
    lines: list[tuple[Any, ...]] = []
    for split in ("validation", "train"):
        part = found["splits"][split]
        if part["delta"] is None or "bogus" not in part["kl"]:
            continue
        saved = bogus(run.tables["prompts"].filter(split=split), condition, found)
        values = {
            False: (part["kl"]["mapped"], part["delta"], part["drop"]),
            True: (part["kl"]["bogus"], *saved),
        }
        for wrong, (kl, delta, drop) in values.items():
            layer = found["bogus_layer"] if wrong else condition["layer"]
            ends = [_ends(v) for v in (part["kl"]["raw"], kl, delta, drop)]
            site = f"{condition['component']}@{condition['layer']}"
            name = f"{condition['component']}@{layer}" + (" (bogus)" if wrong else "")
            target = f"{site}, {say.direction(condition)}"
            numbers = [v for three in ends for v in three]
            lines.append((split, target, name, wrong, found["best"]["alpha"], *numbers, floor, run_id))
    return lines


def bogus(
    prompts: pl.DataFrame, condition: Mapping[str, Any], found: Mapping[str, Any]
) -> tuple[Mapping[str, float], Mapping[str, float] | None]:
    """ΔKL and drop% of the bogus map, by the function that the run itself uses for the right one."""
    how = Resampling(resampling_units(prompts), condition["n_boot"], condition["level"], condition["seed"])
    raw, wrong = prompts["kl_raw"].to_numpy(), prompts["kl_bogus"].to_numpy()
    less = reduction(raw, wrong, float(found["self_check"]["limit"]), how, noise.kl_floor(found))
    delta, drop = (
        None if v is None else {"estimate": v.estimate, "low": v.low, "high": v.high}
        for v in (less.delta, less.drop)
    )
    assert delta is not None
    return delta, drop


def _ends(value: Mapping[str, float] | None) -> tuple[float | None, float | None, float | None]:
    value = value or {}
    return value.get("estimate"), value.get("low"), value.get("high")


def top(runs: Sequence[Asked]) -> Table:
    """The runs in which the map saves most."""
    rows = patch_table.ranked(patch_table.table(runs)).head(TOP)
    shown = rows.select(
        pl.col("rank").alias("Rank"),
        pl.col("layer").alias("Layer"),
        pl.col("hook").alias("Hook"),
        pl.col("direction").alias("Direction"),
        pl.col("alpha").alias("α"),
        *(spans(rows, name).alias(text) for name, text in PRINTED.items()),
        pl.col("controls").alias("Controls beaten"),
        pl.col("run_id").alias("Run"),
    )
    caption = (
        "In the order of ΔKL on the train prompts; everything shown is of the validation prompts. Rank gives "
        "all ranks that the intervals there allow. Each interval is of one run by itself."
    )
    return Table("top", f"Top {rows.height} of {len(runs)} runs", rows, caption, shown=shown)
