"""KL of a mapped patch on the tokens that two tokenizers share, beside that of all tokens."""

from __future__ import annotations

import polars as pl

from app.charts.palette import Palette
from app.charts.scatter import forest
from app.charts.template import Chart
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.frame.snippets import read_run
from app.live.jobs import JobResult
from app.patching import words as say

SCHEMA = {"kind": pl.String, "tokens": pl.String, **dict.fromkeys(("value", "low", "high"), pl.Float64)}


def rows(result: JobResult) -> pl.DataFrame:
    """Mean KL of every kind on validation prompts, nats, over all tokens and over the shared ones alone."""
    parts = {"all": result.summary["splits"]["validation"], "shared": result.summary["shared"]["validation"]}
    found = [
        (kind, tokens, span["estimate"], span["low"], span["high"])
        for kind in parts["all"]["kl"]
        for tokens, part in parts.items()
        for span in (part["kl"][kind],)
    ]
    return pl.DataFrame(found, schema=SCHEMA, orient="row")


def shared_panel(opened: Opened, result: JobResult) -> Panel | None:
    """The diagnostic; None where it was not asked for."""
    if "shared" not in result.summary:
        return None
    table, condition = rows(result), result.condition
    drawn = table.with_columns(name=pl.format("{}, {} tokens", "kind", "tokens"))

    def draw(palette: Palette) -> Chart:
        return forest(drawn, x_title="mean KL, nats (validation)", palette=palette)

    caption = (
        "Over shared tokens: both distributions cut to the tokens whose string both tokenizers have, and "
        "renormalised. A diagnostic: what happens on other tokens is left out of it, and a renormalised KL "
        f"can be larger or smaller than the whole one. {say.null_note(result.summary)}"
    )
    code = read_run(
        opened,
        result,
        "from app.live.jobs import JobResult",
        "from app.patching import shared_tokens",
        "table = shared_tokens.rows(JobResult(run.condition, run.summary, run.tables))",
    )
    models = (str(condition["target"]), str(condition["source"]))
    return Panel("patch-shared", shared_title(result), table, draw, code, caption, models, False)


def shared_title(result: JobResult) -> str:
    """ΔKL over all tokens and over shared ones with their intervals, and how likely the shared ones are."""
    whole, shared = result.summary["splits"]["validation"], result.summary["shared"]["validation"]
    start = f"{say.direction(result.condition)}, {say.site(result.condition)}: shared tokens have "
    start += f"{100 * shared['coverage']:.1f} % of the unpatched probability"
    if whole["delta"] is None:
        return start
    return f"{start}; ΔKL is {say.span(shared['delta'])} nats over them, {say.span(whole['delta'])} over all"
