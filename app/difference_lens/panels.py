"""Panels of a stored difference lens: the tokens of a place, and how many stand out at which."""

from __future__ import annotations

from typing import Any

import polars as pl

from app.charts.matrix import matrix
from app.charts.palette import Palette
from app.charts.signed_bars import signed_bars
from app.charts.template import Chart
from app.difference_lens import words
from app.difference_lens.fields import DifferenceLensFields
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.frame.selection import Selection
from app.frame.snippets import read_run
from app.frame.words import number, position_said
from app.live.jobs import JobResult
from engine.difference_lens.numbers import FEWEST

__all__ = ["panels"]

PROMOTED, SUPPRESSED, CHANCE = "promoted", "suppressed", "within chance"


def panels(opened: Opened, result: JobResult, selection: Selection) -> list[Panel]:
    """The tokens of the selected place; the map of all places."""
    at = _shown(result, selection)
    return [bars_panel(opened, result, at), map_panel(opened, result, at)]


def _shown(result: JobResult, selection: Selection) -> dict[str, Any]:
    """The row of the selected place, or of the nearest that was read."""
    wanted = selection.position
    if result.condition["over"] == "texts":
        wanted = f"token {DifferenceLensFields.of(selection).at_token}"
    held = result.summary["positions"]
    position = wanted if wanted in held else held[-1]
    layer = min(result.summary["layers"], key=lambda block: abs(block - selection.layer))
    return _places(result).row(by_predicate=_at(position, layer), named=True)


def _places(result: JobResult) -> pl.DataFrame:
    """Every place; one that was read before beginnings were told apart has all units."""
    places = result.tables["places"]
    if "units" in places.columns:
        return places
    return places.with_columns(chance="beyond", units=pl.lit(result.summary["units"]))


def _limited(tokens: pl.DataFrame) -> bool:
    """Whether limits exist: not where there are too few draws for the level."""
    return tokens["low"].null_count() < tokens.height


def _measured(result: JobResult) -> bool:
    """Whether the rounding noise of both models was measured."""
    known = all(model in result.summary["rounding"] for model in result.models)
    return bool(result.summary.get("measured", known))


def _at(position: str, layer: int) -> pl.Expr:
    return (pl.col("position") == position) & (pl.col("layer") == layer)


def bars_panel(opened: Opened, result: JobResult, at: dict[str, Any]) -> Panel:
    """The largest promoted and suppressed tokens, with limits for all tokens and places at once."""
    position, layer = at["position"], at["layer"]
    table = result.table.filter(position=position, layer=layer)
    kind = pl.when("beyond").then("side").otherwise(pl.lit(CHANCE))
    drawn = table.select(
        name=pl.Series(words.names_of(table), dtype=pl.String),
        value="mean",
        low="low",
        high="high",
        series=kind,
    )

    def draw(palette: Palette) -> Chart:
        return signed_bars(
            drawn,
            x_title="mean change of the logit",
            name_title="token",
            colors={name: colour for name, colour in _hues(palette).items() if name in set(drawn["series"])},
            palette=palette,
            reach=at["random"],
        )

    code = read_run(opened, result, f"table = run.table.filter(position={position!r}, layer={layer})")
    title = words.bars_title(result.models, at, table, _units(result), _limited(table))
    return Panel("difference-lens", title, table, draw, code, _caption(result, at), result.models, False)


def _hues(palette: Palette) -> dict[str, str]:
    return {PROMOTED: palette.b, SUPPRESSED: palette.a, CHANCE: palette.null}


def _caption(result: JobResult, at: dict[str, Any]) -> str:
    """What a bar is; what its line and the dashed ones are; what of it is rounding."""
    summary, (target, source) = result.summary, result.models
    exact = result.condition["reading"] == "difference"
    how = "" if exact else " by the norm's derivative"
    count, name = _units(result)
    few = f" that differ up to here, of {count}" if at["units"] < count else ""
    what = "texts" if name == "text" else "prompts"
    noise = f"rounding {100 * at['noise']:.2g} %"
    if not _measured(result):
        noise = "the models' own rounding was not measured"
        noise += f", that of storing is {100 * at['noise']:.2g} %" if at["noise"] else ""
    if at["state"] != "read":
        where = f"{summary['n']} {what} at {position_said(at['position'])}, block {at['layer']}"
        return f"{where}. Of a state's length: {noise}."
    lead = (
        f"{target} less {source}, {summary['n']} {what}, through {source}'s final norm and unembedding{how}, "
        "from the mean of all tokens."
    )
    lines = (
        f" Lines: limits for all {summary['vocab']:,} tokens, blocks and positions at once, by sign flips "
        f"and a bootstrap of {words.counted(at['units'], name)}{few}."
    )
    compared = (
        f" Dashed: the foremost token of random directions of this length, {number(at['random'])}; of random "
        f"halves of {source}'s own {what} {number(at['halves'])}. These are comparisons, not tests."
    )
    size = (
        f" The mean difference has {100 * at['length']:.2g} % of a state's length, {noise}; "
        f"{at['beyond']:,} tokens are beyond {_bar(result)}."
    )
    return lead + lines + compared + size


def map_panel(opened: Opened, result: JobResult, at: dict[str, Any]) -> Panel:
    """How many tokens stand out, block by position."""
    places = _places(result)
    told = (pl.col("state") == "read") & (pl.col("units") >= FEWEST)
    shown = places.with_columns(
        count=pl.when(told).then("outstanding").otherwise(None),
        chance=pl.col("beyond").cast(pl.String).fill_null("–"),
        said=pl.col("state").replace_strict(STATES, return_dtype=pl.String),
        far=pl.col("largest").map_elements(number, return_dtype=pl.String).fill_null("–"),
        random=pl.col("random").map_elements(number, return_dtype=pl.String).fill_null("–"),
    )

    def draw(palette: Palette) -> Chart:
        return matrix(
            shown.select("position", "layer", "count", "chance", "said", "far", "random"),
            x="position",
            y="layer",
            value="count",
            x_title="token of the texts" if result.condition["over"] == "texts" else "position",
            y_title="Block ℓ",
            value_title="tokens that stand out",
            palette=palette,
            selected={"position": at["position"], "layer": at["layer"]},
            labels=True,
            format=",.0f",
            compressed=1.0,
            told={
                "said": "streams",
                "chance": "beyond chance",
                "far": "largest change",
                "random": "random directions",
            },
        )

    code = read_run(opened, result, 'table = run.tables["places"]')
    caption = (
        f"Tokens beyond {_bar(result)} that are moved further than 95 % of random directions of that length "
        "move their foremost token. Empty: equal in both models, no more than rounding apart, or too few "
        "different beginnings. A click shows a block's tokens. How many tokens exceed chance alone grows "
        "with the number of prompts: any mean difference moves most logits a little."
    )
    title = words.map_title(result.models, places, _units(result), result.summary["up"] is not None)
    return Panel("difference-lens-map", title, result.tables["places"], draw, code, caption, result.models)


STATES = {
    "read": "differ",
    "equal": "are equal",
    "rounding": "differ by no more than rounding",
    "alike": "of texts that are the same so far",
}


def _bar(result: JobResult) -> str:
    return "chance and rounding" if _measured(result) else "chance (the models' rounding was not measured)"


def _units(result: JobResult) -> tuple[int, str]:
    return result.summary["units"], result.summary["unit"]
