"""Both directions of one site, prompt by prompt: how much more a patch disturbs one model than the other."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import polars as pl

from app.charts.palette import Palette
from app.charts.scatter import forest
from app.charts.template import Chart
from app.frame import noise
from app.frame import running as live_view
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.frame.snippets import read_run
from app.live.jobs import JobResult
from app.patching import words as say
from engine.lab.units import resampling_units
from engine.patching.mapped_spec import MappedPatch
from engine.patching.numbers import Resampling

NUMBERS = ("mean", "sd", "mean_back", "sd_back", "difference", "low", "high")


def reversed_run(opened: Opened, result: JobResult) -> JobResult | None:
    """The stored run of the other direction under the same settings, or None."""
    condition = result.condition
    turned = {"target": condition["source"], "source": condition["target"]}
    return live_view.stored(opened, MappedPatch.from_json({**condition, **turned}))


@lru_cache(maxsize=64)
def rows(result: JobResult, back: JobResult) -> pl.DataFrame:
    """One row per kind of replacement that both directions have, on the validation prompts of both.

    mean, sd (n − 1) over prompts of each direction's KL, in nats, each at the α that its own train prompts
    chose; difference: mean of this direction's KL minus the other's on the same prompt, with its interval.
    """
    one, other = (run.tables["prompts"].filter(pl.col("split") == "validation") for run in (result, back))
    kinds = [c for c in one.columns if c.startswith("kl_") and c in other.columns]
    both = one.join(other.select("row", *kinds), on="row", suffix="_back", maintain_order="left")
    condition = result.condition
    how = Resampling(resampling_units(both), condition["n_boot"], condition["level"], condition["seed"])
    found = []
    for kind in kinds:
        here, there = both[kind], both[f"{kind}_back"]
        paired = how.mean((here - there).to_numpy())
        numbers = (here.mean(), here.std(), there.mean(), there.std())
        numbers += (paired.estimate, paired.low, paired.high)  # type: ignore[assignment]
        found.append(
            {"kind": kind.removeprefix("kl_"), "n": both.height, **dict(zip(NUMBERS, numbers, strict=True))}
        )
    return pl.DataFrame(
        found, schema={"kind": pl.String, "n": pl.Int64, **dict.fromkeys(NUMBERS, pl.Float64)}
    )


def asymmetry_panel(opened: Opened, result: JobResult, back: JobResult) -> Panel:
    """KL of this direction minus that of the other, for every kind of replacement."""
    table = rows(result, back)
    drawn = table.select(name=pl.col("kind").replace(say.SAID), value="difference", low="low", high="high")
    condition = result.condition
    names = [say.direction(run.condition) for run in (result, back)]

    def draw(palette: Palette) -> Chart:
        return forest(drawn, x_title=f"KL of {names[0]} − KL of {names[1]}, nats", palette=palette)

    alphas = " and ".join(f"{run.summary['best']['alpha']:g}" for run in (result, back))
    caption = (
        f"{say.site(condition)}, {say.reading(condition)}; α = {alphas}, each chosen on train. The same "
        f"{table['n'][0]} validation prompts in both directions, paired. The models' next-token "
        "distributions differ, so that an equal disturbance need not be an equal change of what they hold. "
        f"{say.null_note(result.summary)} {noise.note(back.summary)}".rstrip()
    )
    ids = back.condition
    code = read_run(
        opened,
        result,
        "from app.live.jobs import JobResult",
        "from app.patching import asymmetry",
        f"turned = experiment_from_json(experiment.to_json() | {{'target': {ids['target']!r}, "
        f"'source': {ids['source']!r}}})",
        "back = runs.open(runs.find(turned.content_hash(store.fingerprint)))",
        "one, other = (JobResult(r.condition, r.summary, r.tables) for r in (run, back))",
        "table = asymmetry.rows(one, other)",
    )
    title = asymmetry_title(table, names)
    models = (str(condition["target"]), str(condition["source"]))
    return Panel("patch-asymmetry", title, table, draw, code, caption, models, False)


def asymmetry_title(table: pl.DataFrame, names: list[str]) -> str:
    """Differences of the two directions with their intervals, and the spread over prompts."""
    by: Mapping[str, dict[str, Any]] = {row["kind"]: row for row in table.iter_rows(named=True)}
    kinds = [kind for kind in ("raw", "mapped") if kind in by]
    parts = [
        f"{say.SAID.get(kind, kind)} "
        f"{say.span({'estimate': by[kind]['difference'], 'low': by[kind]['low'], 'high': by[kind]['high']})}"
        for kind in kinds
    ]
    return f"KL of {names[0]} less that of {names[1]} on the same prompts; nats: {', '.join(parts)}"
