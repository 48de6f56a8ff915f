"""Raw against mapped over the whole study: experiments from the selection, stored runs as panels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from app.charts.matrix import matrix
from app.charts.palette import Palette
from app.charts.scatter import forest
from app.charts.template import Chart
from app.frame import noise, words
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.frame.selection import (
    Selection,
    changed,
    place_changes,
    place_of,
    where_changes,
    where_of,
)
from app.live.jobs import JobResult
from app.patching import amplitudes, asymmetry, shared_tokens
from app.patching import drill as patch_drill
from app.patching import words as say
from app.patching.fields import PatchFields
from app.transport.fields import map_changes
from app.transport.tables import spec_of
from engine.lab import grids
from engine.patching.mapped_spec import ALPHAS, MappedPatch
from engine.prompts.draws import spelled

PAGE = "patching"
SITES = ("resid_pre", "resid_post", "attn_out", "mlp_out", "head_z")
"""Sites of the whole table. What enters a block is what leaves the one before, so `resid_pre` is run at block
0 alone; all heads' contributions (`head_out`) together are attn_out."""
TOP = 12
"""Runs that the ranking draws; the table below it has all."""

Run = tuple[Mapping[str, Any], Mapping[str, Any]]
"""(condition, summary) of a stored run, its id under `run_id`."""


def experiment_of(
    selection: Selection, component: str | None = None, layer: int | None = None, target: str | None = None
) -> MappedPatch:
    """The mapped patch a selection describes, at another site, block or in another direction.

    Raises:
        PatchError: the selection's position is not one token, or its amplitudes can't be read.
    """
    at = changed(
        selection,
        site=component or selection.site,
        layer=selection.layer if layer is None else layer,
        target=target or selection.target,
    )
    alphas = amplitudes.read(PatchFields.of(selection).grid) or ALPHAS
    grids.check({*alphas, 1.0})
    return MappedPatch(
        **place_of(at),
        map=spec_of(selection),
        alphas=alphas,
        scale=selection.amplitude,  # type: ignore[arg-type]
        raw_alpha=selection.raw_alpha,  # type: ignore[arg-type]
        shared=PatchFields.of(selection).vocabulary == "shared",
        fitted_at=spelled(PatchFields.of(selection).fitted_at),
        where=where_of(selection),
    )


def experiments(opened: Opened, selection: Selection) -> list[MappedPatch]:
    """The whole table: every site that the map is defined at, every block of both models (or each n-th), both
    directions."""
    count = min(opened.facts.n_layers[model] for model in (selection.a, selection.b))
    blocks = range(0, count, selection.stride)
    sites = [site for site in SITES if site in opened.facts.sites and spec_of(selection).fits(site)]
    return [
        experiment_of(selection, site, block, side)
        for side in "ba"
        for site in sites
        for block in (blocks if site != "resid_pre" else blocks[:1])
    ]


def selection_of(condition: Mapping[str, Any], selection: Selection) -> dict[str, Any]:
    """Changes to a selection under which `experiment_of` gives this stored condition again."""
    return {
        **place_changes(condition, selection),
        "patch": "table",
        "grid": amplitudes.written(condition["alphas"], ALPHAS),
        "amplitude": condition["scale"],
        "raw_alpha": condition["raw_alpha"],
        "vocabulary": "shared" if condition.get("shared") else "whole",
        "fitted_at": condition.get("fitted_at", ""),
        **map_changes(condition["map"]),
        **where_changes(condition),
    }


def alike(runs: Sequence[Run], selection: Selection) -> list[Run]:
    """Stored runs that differ from the selection by site, block and direction alone."""
    wanted = {_settings(experiment_of(selection, "resid_post", target=side).to_json()) for side in "ab"}
    pair = {selection.a, selection.b}
    return [
        run for run in runs if _settings(run[0]) in wanted and {run[0]["target"], run[0]["source"]} == pair
    ]


def _settings(condition: Mapping[str, Any]) -> str:
    free = ("target", "source", "component", "layer")
    return json.dumps({k: v for k, v in condition.items() if k not in free}, sort_keys=True)


def gain(split: Mapping[str, Any]) -> tuple[Mapping[str, float] | None, str]:
    """What a map saves, and over what: ΔKL over raw, or over the mean where widths allow no raw condition."""
    if split["delta"] is not None:
        return split["delta"], "raw"
    return split["controls"].get("mean"), "mean"


SPANS = ("kl_raw", "kl_mapped", "gain", "drop")


def table(runs: Sequence[Run]) -> pl.DataFrame:
    """One row per run: layer, hook, direction, best α (train); KL_raw, KL_mapped, ΔKL, drop% on validation.

    The last four with _low and _high. `gain_train` is ΔKL on train, by which runs are ranked. `over` says
    what `gain` is measured against; `controls` how many the map beats; `reason` why there is no drop; `noise`
    the target's rounding noise in nats; `few` whether there are too few prompts to judge a mean.
    """
    rows = []
    for condition, summary in runs:
        found = summary["splits"]["validation"]
        saved, over = gain(found)
        on_train = gain(summary["splits"]["train"])[0]
        values = {
            "kl_raw": found["kl"].get("raw"),
            "kl_mapped": found["kl"]["mapped"],
            "gain": saved,
            "drop": found["drop"],
        }
        beaten = [kind for kind, row in found["controls"].items() if row["beaten"]]
        rows.append(
            {
                "layer": int(condition["layer"]),
                "hook": str(condition["component"]),
                "direction": say.direction(condition),
                "alpha": float(summary["best"]["alpha"]),
                **{k: v for name in SPANS for k, v in _ends(name, values[name]).items()},
                "gain_train": None if on_train is None else float(on_train["estimate"]),
                "noise": noise.kl_floor(summary),
                "few": say.few(found),
                "over": over,
                "controls": f"{len(beaten)} of {len(found['controls'])}",
                "reason": found["reason"],
                "settings": settings(condition),
                "run_id": str(summary.get("run_id", "")),
            }
        )
    numbers = [*(f"{name}{end}" for name in SPANS for end in ("", "_low", "_high")), "gain_train", "noise"]
    schema = {"layer": pl.Int64, "hook": pl.String, "direction": pl.String, "alpha": pl.Float64}
    schema |= dict.fromkeys(numbers, pl.Float64)
    schema |= {"few": pl.Boolean}
    schema |= dict.fromkeys(("over", "controls", "reason", "settings", "run_id"), pl.String)
    return pl.DataFrame(rows, schema=schema)


def _ends(name: str, value: Mapping[str, float] | None) -> dict[str, float | None]:
    value = value or {}
    keys = (("estimate", ""), ("low", "_low"), ("high", "_high"))
    return {name + end: value.get(key) for key, end in keys}


def settings(condition: Mapping[str, Any]) -> str:
    """What else a run was made with, in one line."""
    chosen = words.limits_said(condition)
    parts = [_map_words(condition["map"]), condition["position"], f"read {condition['read_at']}"]
    parts += [f"α × {condition['scale']}", f"raw α {condition['raw_alpha']}", *chosen]
    parts += [f"fitted at {condition['fitted_at']}"] if condition.get("fitted_at") else []
    return " · ".join(parts)


def _map_words(spec: Mapping[str, Any]) -> str:
    from engine.transport.named import MapSpec

    return MapSpec.model_validate(dict(spec)).describe()


def ranked(rows: pl.DataFrame) -> pl.DataFrame:
    """Runs by what the map saves on train, the largest first, with the ranks that validation allows.

    A run's rank lies between 1 + the number of runs whose interval on validation lies wholly above its own
    and n − the number of those wholly below. Runs without a raw condition are ranked only where none has one.
    """
    over = "raw" if (rows["over"] == "raw").any() else "mean"
    kept = rows.filter((pl.col("over") == over) & pl.col("gain").is_not_null())
    kept = kept.sort("gain_train", descending=True, nulls_last=True)
    low, high = kept["gain_low"].to_list(), kept["gain_high"].to_list()
    ranks = []
    for own_low, own_high in zip(low, high, strict=True):
        first = 1 + sum(other > own_high for other in low)
        last = kept.height - sum(other < own_low for other in high)
        ranks.append(f"{first}" if first == last else f"{first}–{last}")
    return kept.with_columns(pl.Series("rank", ranks, dtype=pl.String))


def name_of(row: Mapping[str, Any], short: bool = False) -> str:
    """ "mlp_out 5 · tuned ← base", or "mlp_out of block 5"."""
    if short:
        return f"{row['hook']} of block {row['layer']}"
    return f"{row['hook']} {row['layer']} · {row['direction']}"


def top_words(rows: pl.DataFrame, short: bool = False) -> str:
    """What the run ranked first on train saves on validation, and which others its interval leaves level or
    above; rows are `ranked`.

    Rule: it saves when its interval on validation, of 12 prompts (or pairs) or more, lies above the target's
    rounding noise.
    """
    top = rows.row(0, named=True)
    value = {"estimate": top["gain"], "low": top["gain_low"], "high": top["gain_high"]}
    shown = top["gain_low"] > top["noise"] and not top.get("few")
    where = f"{say.span(value)} nats at {name_of(top, short)}"
    text = f"the map saves {where}" if shown else f"the map is not shown to save anything; {where}"
    if rows.height == 1:
        return text
    beyond = pl.col("gain_low") > top["gain_high"] + pl.max_horizontal("noise", pl.lit(top["noise"]))
    behind = pl.col("gain_high") < top["gain_low"] - pl.max_horizontal("noise", pl.lit(top["noise"]))
    above = rows.filter(beyond).height
    level = rows.height - rows.filter(behind).height - 1 - above
    text += ", the first on train"
    if level:
        text += f"; {level} other{'s are' if level > 1 else ' is'} level within the intervals"
    return text + (f", {above} above" if above else "")


def grid_panel(runs: Sequence[Run], selection: Selection, path: str) -> Panel | None:
    """What the map saves at every block and site, in the selected direction; None without a run."""
    side = experiment_of(selection)
    mine = [run for run in runs if run[0]["target"] == side.target]
    rows = table(mine).sort("layer", "hook")
    best = ranked(rows)
    if best.is_empty():
        return None
    over = "KL_raw" if best["over"][0] == "raw" else "KL of the target's mean"
    named = {site: i for i, site in enumerate(reversed((*SITES, "head_out")))}
    shown = rows.filter(pl.col("over") == best["over"][0]).rename({"hook": "site"})
    shown = shown.sort(pl.col("site").replace_strict(named), "layer")
    zero = rows.filter((pl.col("kl_raw").abs() <= 1e-6) | noise.hidden_rows("kl_raw_low"))
    title = f"{say.direction(side.to_json())}: {top_words(best, True)}"
    if (best["gain_low"] <= best["noise"]).all():
        title = (
            f"{say.direction(side.to_json())}: the map is not shown to save anything at any site that was run"
        )
    if zero.height:
        nothing = f"the {say.MATCHED} activation is not shown to change anything"
        title += f"; {nothing} at {zero.height} of {rows.height} sites"

    def draw(palette: Palette) -> Chart:
        return matrix(
            shown,
            x="layer",
            y="site",
            value="gain",
            x_title="Block ℓ",
            y_title="Site",
            value_title=f"{over} − KL_mapped, nats",
            palette=palette,
            selected={"layer": selection.layer, "site": selection.site},
        )

    first, summary = mine[0]
    caption = (
        f"Validation prompts; the α of each site and the first site are chosen on train "
        f"({say.reading(first)}; α multiplies {say.amplitude(first).removeprefix('times ')}). "
        f"{say.null_note(summary)} The null of a cell is 0: a map that saves nothing over what it is "
        "compared with. The table has every interval."
    )
    return Panel("patch-grid", title, rows, draw, code(path, selection), caption, side.models())


def ranking_panel(runs: Sequence[Run], path: str) -> Panel | None:
    """Top results over everything that was run so far, whatever the settings."""
    rows = ranked(table(runs))
    if rows.height < 2:
        return None
    title = f"Top results of {rows.height} runs: {top_words(rows)}"
    drawn = rows.head(TOP).with_columns(
        name=pl.concat_str(
            pl.lit("#"), pl.int_range(1, 1 + min(TOP, rows.height)).cast(pl.String), pl.lit(" ")
        )
        + pl.struct("hook", "layer", "direction").map_elements(name_of, return_dtype=pl.String),
        value=pl.col("gain"),
        low=pl.col("gain_low"),
        high=pl.col("gain_high"),
    )
    over = "ΔKL = KL_raw − KL_mapped" if rows["over"][0] == "raw" else "KL of the target's mean − KL_mapped"

    def draw(palette: Palette) -> Chart:
        return forest(drawn, x_title=f"{over}, nats (validation)", palette=palette)

    summary = runs[0][1]
    caption = (
        f"Every stored raw-against-mapped run of this study, ranked by {over} on train, where α was chosen "
        f"too, and shown on validation prompts. {say.null_note(summary)} A map that saves nothing is at 0. "
        "The column rank of the table gives all ranks that the intervals allow; each interval is of one run "
        "by itself; all share their prompts."
    )
    models = tuple(dict.fromkeys(m for c, _ in runs for m in (str(c["target"]), str(c["source"]))))
    return Panel("patch-top", title, rows, draw, ranking_code(path), caption, models, False)


_READ = (
    "import json",
    "",
    "from app.patching import table as patch_table",
    "from store.runs import RunLog",
    "",
)


def _stored_lines(path: str) -> list[str]:
    return [
        *_READ,
        f"listed = RunLog({path!r}).list()",
        "runs = [(json.loads(c), json.loads(s) | {'run_id': r}) for c, s, r in",
        "        listed.select('condition', 'summary', 'run_id').rows() if json.loads(c)['job'] == 'mapped']",
    ]


def ranking_code(path: str) -> str:
    """Notebook lines that rank every stored run."""
    return "\n".join((*_stored_lines(path), "table = patch_table.ranked(patch_table.table(runs))"))


def code(path: str, selection: Selection) -> str:
    """Notebook lines that read the runs of one table from the store."""
    asked = experiment_of(selection)
    settings_of = {k: v for k, v in asked.to_json().items() if k not in ("component", "layer")}
    return "\n".join(
        (
            *_stored_lines(path),
            f"asked = {settings_of!r}",
            "runs = [run for run in runs if {k: v for k, v in run[0].items() if k in asked} == asked]",
            "table = patch_table.table(runs).sort('layer', 'hook')",
        )
    )


def run_panels(opened: Opened, result: JobResult, selection: Selection) -> list[Panel]:
    """The panels of one stored run."""
    back = asymmetry.reversed_run(opened, result)
    made = [
        *patch_drill.panels(opened, result),
        amplitudes.amplitudes_panel(opened, result, selection.alpha),
        None if back is None else asymmetry.asymmetry_panel(opened, result, back),
        shared_tokens.shared_panel(opened, result),
    ]
    return [panel for panel in made if panel is not None]


def not_run(selection: Selection, count: int) -> tuple[str, str]:
    """Title and text of the page before the selected site was run."""
    return (
        "This site has not been run under these settings",
        f"**{words.number(count, 0)} experiments** make the whole table: every site and block in both "
        "directions, each with its map, moment matching and four controls at every α, on train and "
        "validation prompts. **Run this site** runs the selected one alone. Results are kept in the store.",
    )
