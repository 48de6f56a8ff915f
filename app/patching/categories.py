"""What a patch does by category of prompts: a bar for each, and for which of them it is clearest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import polars as pl

from app.charts.bars import interval_bars
from app.charts.palette import Palette
from app.charts.template import Chart
from app.frame import noise, words
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.frame.snippets import read_run
from app.live.jobs import JobResult
from engine.lab.experiment import resampling_groups
from engine.stats.parts import FEWEST_UNITS, Part, by_part, larger

NAMED = 3


def parts_of(
    prompts: pl.DataFrame, column: str, condition: Mapping[str, object], floor: float = 0.0
) -> list[Part]:
    """The categories of some prompts with a KL each, in order of appearance; none where none is named."""
    if "category" not in prompts.columns:
        return []
    how = {key: condition[key] for key in ("n_boot", "level", "seed") if key in condition}
    keys = prompts["category"].cast(pl.String).to_list()
    values = prompts[column].to_numpy()
    return by_part(values, keys, resampling_groups(prompts), floor=floor, **how)  # type: ignore[arg-type]


def table(parts: Sequence[Part]) -> pl.DataFrame:
    """A row for each category: name, value, low, high, n, units, rest (mean elsewhere), p; largest first."""
    rows = [
        (o.key, o.interval.estimate, o.interval.low, o.interval.high, o.n, o.units, o.rest.estimate, o.p)
        for o in parts
    ]
    names = ("name", "value", "low", "high", "n", "units", "rest", "p")
    schema = dict.fromkeys(names, pl.Float64) | {"name": pl.String, "n": pl.Int64, "units": pl.Int64}
    found = pl.DataFrame(rows, schema=schema, orient="row").fill_nan(None)
    return found.sort("value", descending=True, maintain_order=True)


def categories_title(parts: Sequence[Part], what: str) -> str:
    """For which categories a patch does more than for all other prompts.

    Rule: `engine.stats.parts.larger`, p for all categories at once.
    """
    clear = larger(parts)
    if not clear:
        judged = sum(one.p == one.p for one in parts)
        if not judged:
            return f"{what}: too few prompts of each category to tell them apart"
        return f"{what}: not shown to be larger for one category than for the others"
    named = ", ".join(
        f"{one.key} ({words.nats(one.interval.estimate)} nats against {words.nats(one.rest.estimate)} on all "
        "other prompts)"
        for one in clear[:NAMED]
    )
    more = f" and {len(clear) - NAMED} more" if len(clear) > NAMED else ""
    return f"{what}: clearest for {'category' if len(clear) == 1 else 'categories'} {named}{more}"


@lru_cache(maxsize=64)
def _parts(
    result: JobResult, prompts: str, chosen: tuple[tuple[str, object], ...], column: str
) -> list[Part]:
    kept = result.tables[prompts].filter(**dict(chosen))
    return parts_of(kept, column, result.condition, noise.kl_floor(result.summary))


def categories_panel(
    opened: Opened,
    result: JobResult,
    prompts: str,
    chosen: Mapping[str, object],
    column: str,
    what: str,
    about: str = "",
) -> Panel | None:
    """Mean KL of every category of the reported prompts; None where fewer than two are named.

    Args:
        prompts: the result's table of prompts. chosen: values of its columns that the rows must have.
        column: the KL. what: of what it is, for the title. about: what the prompts are, for the caption.
    """
    kept, condition = result.tables[prompts].filter(**chosen), dict(result.condition)
    parts = _parts(result, prompts, tuple(chosen.items()), column)
    if len(parts) < 2:
        return None
    found = table(parts)
    bars = found.with_columns(series=pl.lit("mean KL"))

    def draw(palette: Palette) -> Chart:
        return interval_bars(
            bars,
            x_title="category",
            y_title="mean KL, nats",
            colors={"mean KL": palette.b},
            palette=palette,
            references=noise.lines(result.summary),
            height=260,
        )

    lost = kept["category"].null_count()
    caption = (
        f"{about}Mean KL of each category's prompts with its {condition.get('level', 0.95):.0%} interval "
        "(studentised bootstrap over prompts, or pairs). Null: values dealt to prompts (or pairs) anew; p of "
        "the largest t over all categories, each against all other prompts. Clearest: p < 0.05 and the "
        "mean shown to lie above the interval of all others. Categories of fewer than "
        f"{FEWEST_UNITS} prompts (or pairs) aren't judged."
        + (f" {lost} prompts without a category are left out." if lost else "")
        + noise.note(result.summary)
    )
    code = read_run(
        opened,
        result,
        "from app.patching import categories",
        f"table = run.tables[{prompts!r}].filter(**{dict(chosen)!r})",
        f"parts = categories.parts_of(table, {column!r}, run.condition)",
        "table = categories.table(parts)",
    )
    models = (str(condition["target"]), str(condition["source"]))
    title = categories_title(parts, what)
    return Panel(f"{result.condition['job']}-categories", title, found, draw, code, caption, models, False)
