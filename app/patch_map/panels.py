"""Panels of a stored map: each site's blocks by tokens, and the stream's two kinds of tokens over blocks."""

from __future__ import annotations

import polars as pl

from app.charts.curves import Look, layer_curve
from app.charts.matrix import matrix
from app.charts.palette import Palette
from app.charts.template import Chart
from app.escape import given
from app.frame import noise
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.frame.selection import Selection
from app.frame.snippets import read_run
from app.live.jobs import JobResult
from app.patch_map import words
from app.patch_map.fields import PatchMapFields
from app.tokenwise.words import token
from engine.patch_map.spec import FEWEST_NULLS

__all__ = ["panels"]

LAST, EARLIER = "last token", "largest earlier token"
VALUES = {"recovery": "recovery", "kl": "KL, nats"}
LINEAR, FROM = 1.0, 0.1
"""Sizes up to which colours follow a recovery and a KL (nats); from there on their logarithm."""


def panels(opened: Opened, result: JobResult, selection: Selection) -> list[Panel]:
    """A map for each site; for the first of the stream, the last token beside the others."""
    chosen = PatchMapFields.of(selection).coloured
    value = chosen if result.summary["defined"] else "kl"
    sites = result.condition["sites"]
    made = [map_panel(opened, result, site, value) for site in sites]
    stream = next((site for site in reversed(sites) if site.startswith("resid")), None)
    if stream is None or value == "kl" or result.summary["patched"] < 2:
        return made
    return [*made, profile_panel(opened, result, stream)]


def map_panel(opened: Opened, result: JobResult, site: str, value: str) -> Panel:
    """Every block and token of a site."""
    summary, table = result.summary, result.table.filter(site=site)
    earlier = site.startswith("resid") and summary["patched"] > 1
    cells = table.with_columns(value=pl.col(value))
    compared = cells.filter(pl.col("token") > pl.col("token").max() - summary["compared"])
    compared = compared.filter(pl.col("token") < pl.col("token").max()) if earlier else compared
    part = "_before" if earlier else ""
    nulls = result.tables["nulls"].filter(site=site).select(value=pl.col(value + part))
    if value == "recovery":
        taken = _taken(result, site) if earlier else None
        title = words.recovery_title(site, compared, nulls, summary, earlier, taken)
    else:
        title = words.kl_title(site, compared, nulls, summary, earlier)
    drawn = table.select(place=_places(table), given=_given(table), layer="layer", value=value)

    def draw(palette: Palette) -> Chart:
        return matrix(
            drawn,
            x="place",
            y="layer",
            value="value",
            x_title="token of the prompt that is run",
            y_title="Block ℓ",
            value_title=VALUES[value],
            palette=palette,
            diverging=value == "recovery",
            compressed=LINEAR if value == "recovery" else FROM,
            told={"given": "put in"},
        )

    caption = f"{_meaning(result, value)} {_null(result, value, nulls)}{noise.log_note(summary)}"
    code = read_run(opened, result, f"table = run.table.filter(site={site!r})")
    return Panel(f"patch-map-{site}", title, table, draw, code, caption, result.models, False)


def profile_panel(opened: Opened, result: JobResult, site: str) -> Panel:
    """The last token and the largest of the others, block by block."""
    summary = result.summary
    code = read_run(
        opened,
        result,
        f"cells = run.table.filter(site={site!r})",
        'last = pl.col("token") == pl.col("token").max()',
        f'series = pl.when(last).then(pl.lit("{LAST}")).otherwise(pl.lit("{EARLIER}"))',
        'table = cells.group_by("layer", series=series, maintain_order=True).agg(',
        '    value=pl.col("recovery").max(), null=pl.col("null_recovery").max())',
    )
    cells = result.table.filter(site=site)
    last = pl.col("token") == pl.col("token").max()
    series = pl.when(last).then(pl.lit(LAST)).otherwise(pl.lit(EARLIER))
    table = cells.group_by("layer", series=series, maintain_order=True).agg(
        value=pl.col("recovery").max(), null=pl.col("null_recovery").max()
    )
    others = table.filter(series=EARLIER).drop_nulls("null")
    band = others.select("layer", low=pl.lit(0.0), high=pl.col("null"))

    def draw(palette: Palette) -> Chart:
        look = Look("recovery", {LAST: palette.b, EARLIER: palette.a})
        return layer_curve(table.select("layer", "series", "value"), look, palette, band)

    caption = (
        "The largest recovery of the tokens before the last one, and that of the last token, at each block. "
        f"Grey: up to the largest that {summary['n_nulls']} unrelated prompts give before the last token."
    )
    nulls = result.tables["nulls"].filter(site=site).select(value="recovery_last")
    title = words.profile_title(site, _taken(result, site), nulls, summary)
    return Panel("patch-map-profile", title, table, draw, code, caption, result.models, False)


def _taken(result: JobResult, site: str) -> tuple[int, float] | None:
    """From which block on the last token is told to bring the change; see `words.handed`."""
    cells = result.table.filter(site=site)
    last = cells.filter(token=cells["token"].max()).select("layer", value="recovery")
    nulls = result.tables["nulls"].filter(site=site)["recovery_last"].to_list()
    return words.handed(last, nulls, float(result.summary["recovery_floor"] or 0.0))


def _places(table: pl.DataFrame) -> pl.Series:
    """The name of each cell's token: "12 “␣apples”"."""
    return pl.Series(
        [f"{number} {token(text)}" for number, text in table.select("token", "text").rows()], dtype=pl.String
    )


def _given(table: pl.DataFrame) -> pl.Series:
    """The name of the donor's token of each cell."""
    return _places(table.select(token="donor_token", text="donor_text"))


def _meaning(result: JobResult, value: str) -> str:
    """What was put where, and what a cell shows."""
    said, summary = result.condition, result.summary
    own, other = (token(text) for text in summary["answers"])
    given([str(name) for name in (said["prompt"], said["donor"], own, other)])
    put = f"What {said['source']} holds of {said['donor']} put into {said['target']} on {said['prompt']}"
    if value == "recovery":
        ends = summary["difference"]
        shown = (
            f"0: log p of {own} less that of {other} stays {ends['receiving']:.3g} nats; "
            f"1: it becomes the donor's, {ends['donor']:.3g}."
        )
    else:
        shown = "KL(patched ‖ unpatched) of the next token behind the prompt."
        if not summary["defined"]:
            shown += f" The runs don't differ in {own} and {other} beyond rounding, so there is no recovery."
    return f"{put}, one block and token at a time. {shown}"


def _null(result: JobResult, value: str, nulls: pl.DataFrame) -> str:
    known = nulls["value"].drop_nulls()
    if known.is_empty():
        return "No unrelated prompt was put in: no cell is named."
    most = float(known.max())  # type: ignore[arg-type]
    shown = words.percent(most) if value == "recovery" else f"{most:.3g} nats"
    less = "" if len(known) >= FEWEST_NULLS else f"; {FEWEST_NULLS} are needed to name a cell"
    patched, compared = result.summary["patched"], result.summary["compared"]
    where = (
        "in these cells" if compared == patched else f"at the last {compared} tokens, which all of them have"
    )
    return f"Null: {len(known)} unrelated prompts put in instead give at most {shown} {where}{less}."
