"""One raw-against-mapped run in detail: amplitudes, cosine and KL, blocks beside it, prompt by prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from app.charts.lines import numeric_lines
from app.charts.palette import Palette
from app.charts.scatter import scatter
from app.charts.template import Chart
from app.frame import noise, words
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.frame.snippets import read_run
from app.live.jobs import JobResult
from app.patching import categories
from app.patching import words as say
from engine.patching.mapped_spec import CONTROLS

FLOOR = 1e-6
"""Nats: curves are drawn down to here, where rounding begins."""


def panels(opened: Opened, result: JobResult) -> list[Panel]:
    """The amplitude curve, and cosine against KL where there is a raw condition."""
    found = [alpha_panel(opened, result), categories_panel(opened, result), cosine_panel(opened, result)]
    return [panel for panel in found if panel is not None]


def categories_panel(opened: Opened, result: JobResult) -> Panel | None:
    """What the raw activation does by category, or the mapped one where there is no raw."""
    kind = "raw" if "kl_raw" in result.tables["prompts"].columns else "mapped"
    about = f"Validation prompts ({say.reported(result.condition)}). "
    what, chosen = f"KL of the {say.SAID.get(kind, kind)} activation", {"split": "validation"}
    return categories.categories_panel(opened, result, "prompts", chosen, f"kl_{kind}", what, about)


def colours(palette: Palette) -> dict[str, str]:
    """A colour for each curve; in this order four names fit side by side on a phone."""
    controls: dict[str, str] = dict(zip(CONTROLS, palette.series[2:6], strict=True))
    bogus = {"bogus": controls.pop("bogus")}
    return {"mapped": palette.pair, "train": palette.pair2, **bogus, say.MATCHED: palette.mark, **controls}


def alpha_panel(opened: Opened, result: JobResult) -> Panel:
    """KL of every kind against α, with the α chosen on train marked."""
    condition, summary = result.condition, result.summary
    best = float(summary["best"]["alpha"])
    curve = result.tables["curve"]
    kept = curve.filter((pl.col("split") == "validation") | (pl.col("kind") == "mapped"))
    drawn = _across(kept, summary).with_columns(
        x=pl.col("alpha"),
        series=pl.when(pl.col("split") == "train")
        .then(pl.lit("train"))
        .otherwise(pl.col("kind").replace(say.SAID)),
        value=pl.col("kl").clip(FLOOR),
        low=pl.when(pl.col("split") == "validation").then(pl.col("low").clip(FLOOR)),
        high=pl.when(pl.col("split") == "validation").then(pl.col("high").clip(FLOOR)),
    )
    present = drawn["series"].unique().to_list()

    def draw(palette: Palette) -> Chart:
        return numeric_lines(
            drawn,
            x_title=f"α, {say.amplitude(condition)}",
            y_title="mean KL, nats (log scale)",
            colors={name: c for name, c in colours(palette).items() if name in present},
            palette=palette,
            log_y=True,
            marks={"best α (train)": best},
            null=noise.band(summary, drawn["x"], FLOOR),
            floor=FLOOR,
            height=340,
        )

    train, found = (summary["splits"][split]["n"] for split in ("train", "validation"))
    caption = (
        f"{found} validation prompts ({say.reported(condition)}; {say.reading(condition)}), bands: "
        f"their intervals; “train” is the mapped curve that α was chosen by ({train} "
        f"prompts). {say.map_note(summary)} {say.controls_note(condition, summary)} {say.null_note(summary)} "
        f"Values under 1e-6 nats are drawn at 1e-6.{say.edge_note(summary)}"
    )
    lines = read_run(opened, result, "table = run.tables['curve']")
    return Panel(
        "patch-alphas", say.verdict(condition, summary), curve, draw, lines, caption, result.models, False
    )


def _across(curve: pl.DataFrame, summary: Mapping[str, Any]) -> pl.DataFrame:
    """Kinds that ran at one amplitude only as level lines over the whole grid."""
    grid = [float(a) for a in summary["alphas"]]
    parts = []
    for (_,), rows in curve.group_by("kind", maintain_order=True):
        if rows["alpha"].n_unique() == 1 and len(grid) > 1:
            ends = pl.DataFrame({"alpha": [grid[0], grid[-1]]})
            parts.append(rows.drop("alpha").join(ends, how="cross").select(curve.columns))
        else:
            parts.append(rows)
    return pl.concat(parts)


def cosine_panel(opened: Opened, result: JobResult) -> Panel | None:
    """Per-prompt cosine of the mapped and the own activation against how much KL the map saves."""
    summary, found = result.summary, result.summary["splits"]["validation"]["correlation"]
    if found is None:
        return None
    prompts = result.tables["prompts"].filter(pl.col("split") == "validation")
    has_language = "language" in prompts.columns and prompts["language"].null_count() == 0
    drawn = prompts.with_columns(
        x=pl.col("cosine"),
        y=pl.col("reduction"),
        series=pl.col("language") if has_language else pl.lit("prompt"),
    )
    names = drawn["series"].unique(maintain_order=True).sort().to_list()
    target, source = result.models

    def draw(palette: Palette) -> Chart:
        return scatter(
            drawn,
            x_title=f"cosine of mapped and {target}'s own activation",
            y_title="KL_raw − KL_mapped, nats",
            colors={name: palette.series[i % len(palette.series)] for i, name in enumerate(names)},
            palette=palette,
            text="id" if "id" in drawn.columns else None,
        )

    around = found["cosine_deviation"]
    caption = (
        f"Each point is a validation prompt at the α chosen on train (α = {summary['best']['alpha']:g}); "
        f"the cosine is of the map's output before α. Pearson {_correlation(found['cosine'], 'pearson')}. "
        f"With the train mean taken off both sides: Spearman {_correlation(around, 'spearman')}, Pearson "
        f"{_correlation(around, 'pearson')}. Null: 0. {say.null_note(summary)}"
    )
    title = cosine_title(found, summary["splits"]["validation"]["kl"]["raw"], noise.kl_floor(summary))
    keep = "table = run.tables['prompts'].filter(pl.col('split') == 'validation')"
    lines = read_run(opened, result, keep)
    return Panel("patch-cosine", title, prompts, draw, lines, caption, (target, source), False)


def cosine_title(found: Mapping[str, Any], raw: Mapping[str, Any] | None = None, floor: float = 0.0) -> str:
    """Whether prompts that are mapped closer gain more.

    Rule: by Spearman's interval: it says so when it excludes 0, unless KL_raw (`raw`) reaches rounding noise
    (`floor`), so that there is nothing to gain.
    """
    if raw is not None and noise.hidden(raw, floor):
        return f"KL_raw is {noise.untold(floor)}: whether a closer map gains is not told"
    value = found["cosine"]["spearman"]
    if value is None:
        return f"Cosine and KL reduction cannot be correlated: {found['cosine']['reason']}"
    told = f"Spearman {_correlation(found['cosine'], 'spearman')}"
    if value["low"] > 0:
        return f"Prompts that are mapped closer to the target's own activation gain more: {told}"
    if value["high"] < 0:
        return f"Prompts that are mapped closer to the target's own activation gain less: {told}"
    return f"How close a prompt is mapped is not shown to tell how much it gains: {told} includes 0"


def _correlation(found: Mapping[str, Any], name: str) -> str:
    value = found[name]
    if value is None:
        return "undefined"
    return f"{value['estimate']:.2f} ({value['low']:.2f} to {value['high']:.2f})"


def profile_panel(rows: pl.DataFrame, condition: Mapping[str, Any], code: str) -> Panel | None:
    """KL_raw and KL_mapped over blocks, of runs that differ by the block alone.

    Args:
        rows: as `patch_table.table` gives them, of one site and direction.
    """
    if rows.height < 2:
        return None
    rows = rows.sort("layer")
    kinds = [kind for kind in ("raw", "mapped") if rows[f"kl_{kind}"].null_count() < rows.height]
    drawn = pl.concat(
        rows.select(
            x=pl.col("layer").cast(pl.Float64),
            series=pl.lit(say.SAID.get(kind, kind)),
            value=pl.col(f"kl_{kind}").clip(FLOOR),
            low=pl.col(f"kl_{kind}_low").clip(FLOOR),
            high=pl.col(f"kl_{kind}_high").clip(FLOOR),
        )
        for kind in kinds
    )

    noisy = float(rows["noise"].max() or 0.0)  # type: ignore[arg-type]
    summary = {"rounding": {condition["target"]: {"kl": noisy}} if noisy else {}}

    def draw(palette: Palette) -> Chart:
        return numeric_lines(
            drawn,
            x_title="Block ℓ",
            y_title="mean KL, nats (log scale)",
            colors={name: colours(palette)[name] for name in (say.SAID.get(kind, kind) for kind in kinds)},
            palette=palette,
            log_y=True,
            marks={"selected": float(condition["layer"])},
            null=noise.band(summary, drawn["x"], FLOOR),
            floor=FLOOR,
        )

    caption = (
        f"{condition['component']}, {say.direction(condition)}, validation prompts; α of each block chosen "
        f"on train. Band: bootstrap interval of each block by itself. Null: 0, the own activation put back; "
        "values under 1e-6 nats are drawn at 1e-6. Only blocks that have been run are shown."
        f"{noise.note(summary)}"
    )
    models = (str(condition["target"]), str(condition["source"]))
    return Panel("patch-profile", profile_title(rows, condition), rows, draw, code, caption, models, False)


def profile_title(rows: pl.DataFrame, condition: Mapping[str, Any]) -> str:
    """Where the moment-matched activation disturbs most.

    Rule: the block with the largest KL_raw (KL_mapped without a raw condition), with all whose interval
    overlaps its own; blocks within 1e-6 nats, or whose interval reaches rounding noise, change nothing.
    """
    kind = "raw" if rows["kl_raw"].null_count() < rows.height else "mapped"
    ends = {"kl": f"kl_{kind}", "low": f"kl_{kind}_low", "high": f"kl_{kind}_high"}
    named = rows.select("layer", "noise", **ends).drop_nulls()
    start = f"{condition['component']}, {say.direction(condition)}: "
    what = f"the {say.SAID.get(kind, kind)} activation"
    quiet = (pl.col("kl").abs() <= FLOOR) | noise.hidden_rows()
    still = named.filter(quiet)["layer"].to_list()
    if len(still) == named.height:
        return start + f"{what} changes nothing at any of {words.blocks(still)}"
    top = named.sort("kl").row(-1, named=True)
    level = say.level_with(named, top)["layer"].to_list()
    span, at = words.nats_span(top), f"block {top['layer']}"
    if len(level) == 1:
        text = f"{start}{what} disturbs most at {at}: {span}"
    elif len(level) < named.height:
        text = f"{start}{what} disturbs most at {words.blocks(level)}; {span} at {at}, the others are level "
        text += "within the intervals"
    else:
        text = f"{start}no block is told apart by what {what} disturbs; {span} at {at}, the largest"
    return text + (f"; it changes nothing at {words.blocks(still)}" if still else "")


def drill_table(table: pl.DataFrame, kind: str) -> pl.DataFrame:
    """One kind's prompts for reading, the most moved validation prompt first.

    Columns: text, kl, before, after (top 5 next tokens), target_token, source_token, split and what the
    prompts table has.
    """
    rows = table.filter(pl.col("kind") == kind)
    rows = rows.sort(["split", "kl"], descending=[True, True])

    def tokens(side: str) -> pl.Series:
        pairs = zip(rows[f"top_{side}"].to_list(), rows[f"p_{side}"].to_list(), strict=True)
        return pl.Series(side, [say.tokens(t, p, 5) for t, p in pairs], dtype=pl.String)

    patched = [
        pl.Series(f"{side}_token", [say.visible(t) for t in rows[f"{side}_token"].to_list()], dtype=pl.String)
        for side in ("target", "source")
    ]
    keep: Sequence[str] = [c for c in ("split", "language", "category", "id") if c in rows.columns]
    text = [c for c in ("text",) if c in rows.columns]
    return rows.select(*text, "kl", tokens("before"), tokens("after"), *patched, *keep)
