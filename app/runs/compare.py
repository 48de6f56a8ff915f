"""Two or more stored runs of one kind beside each other: what they found, on the prompts that they share."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import polars as pl

from app import analyses as run_kinds
from app import screen
from app.charts.scatter import forest
from app.escape import plain
from app.frame import parts as components
from app.frame import words
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.frame.stored import describe
from app.live.jobs import JobResult
from engine.errors import PatchbayError
from engine.lab.beside import beside
from engine.lab.units import CLUSTER
from engine.stats.means import FEWEST

LEVEL = 0.95
UNITS = {CLUSTER: "the prompts of a category", "pair": "the prompts of a pair", "prompt": "prompts"}
SHOWN = 3
"""Fields in which runs differ that name them; of more, their numbers do."""


def show(opened: Opened, run_ids: Sequence[str], runs: Sequence[JobResult]) -> None:
    """What sets the runs apart, a figure of their prompts in each, and the differences from the first."""
    names = labels([run.condition for run in runs])
    for name, run in zip(names, runs, strict=True):
        screen.markdown(f"**{plain(name)}** &ensp; {plain(describe(run.condition))}")
    why = not_comparable([run.condition for run in runs])
    if why is not None:
        components.empty(*why)
        return
    try:
        table = _beside(*runs)
    except PatchbayError as error:
        components.problem(error, "runs: compare")
        return
    figures = table["figure"].unique(maintain_order=True).to_list()
    figure = screen.selectbox("Figure", figures, key="compare-figure") if len(figures) > 1 else figures[0]
    models = tuple(dict.fromkeys(model for run in runs for model in models_of(run.condition)))
    components.show(opened, panel(table, names, figure, opened.path, run_ids, models))


@lru_cache(maxsize=16)
def _beside(*runs: JobResult) -> pl.DataFrame:
    each = run_kinds.kind_of(runs[0].condition).each
    assert each is not None
    return beside([each(run) for run in runs], level=LEVEL)


def not_comparable(conditions: Sequence[Mapping[str, Any]]) -> tuple[str, str] | None:
    """Why numbers of prompts can't be put beside each other (title, text), or None."""
    try:
        kinds = {run_kinds.kind_of(condition).name: run_kinds.kind_of(condition) for condition in conditions}
    except PatchbayError as error:
        return "These runs can't be compared", error.what
    if len(kinds) > 1:
        told = ", ".join(kind.title for kind in kinds.values())
        return "Only runs of one kind can be compared", f"Selected are {told}."
    [kind] = kinds.values()
    if kind.each is None:
        return (
            "These runs keep no numbers of single prompts",
            f"{kind.title} can be opened one by one; a difference with an interval needs the same prompts.",
        )
    return None


def models_of(condition: Mapping[str, Any]) -> list[str]:
    """The models of a stored condition, the one that is run first."""
    found = (condition.get(role) for role in ("target", "source", "model"))
    return [str(model) for model in found if model]


def labels(conditions: Sequence[Mapping[str, Any]]) -> list[str]:
    """A short name for each run: its number, and the settings in which it differs from the others."""
    flat = [dict(_flat(condition)) for condition in conditions]
    keys = dict.fromkeys(key for one in flat for key in one)
    apart = [key for key in keys if len({json.dumps(one.get(key), default=str) for one in flat}) > 1]
    if not 0 < len(apart) <= SHOWN:
        return [f"Run {number}" for number in range(1, len(flat) + 1)]
    return [
        f"{number}: " + ", ".join(f"{key.replace('_', ' ')} {_value(one.get(key))}" for key in apart)
        for number, one in enumerate(flat, start=1)
    ]


def _flat(condition: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in condition.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key} ")
        else:
            yield before + key, value


def _value(value: Any) -> str:
    if isinstance(value, str):
        return words.label(value)
    return "–" if value is None else json.dumps(value, ensure_ascii=False)


def panel(
    table: pl.DataFrame,
    names: Sequence[str],
    figure: str,
    path: str,
    run_ids: Sequence[str],
    models: tuple[str, ...] = (),
) -> Panel:
    """A figure's mean in every run; the title tells the last run's difference from the first."""
    own = table.filter(pl.col("figure") == figure)
    last = own.row(-1, named=True)
    drawn = own.with_columns(name=pl.Series([names[run] for run in own["run"]]))
    wholes = f"{last['units']} units: {UNITS[last['unit']]} are drawn together"
    units = "" if last["units"] == last["n"] else f" ({wholes})"
    others = "all differences from run 1 hold together" if len(names) > 2 else "paired"
    return Panel(
        name="compare",
        title=title(last),
        table=table,
        draw=lambda palette: forest(drawn, x_title=figure, palette=palette),
        code=code(path, run_ids),
        caption=(
            f"Means over the prompts that all of these runs have{units}; validation prompts where there are "
            f"any. Bars: {LEVEL:.0%} intervals of each mean, studentised bootstrap. Two bars may overlap "
            f"where the difference is clear: prompts are the same in both, so what they share cancels "
            f"({others}). Rounding noise of the models isn't part of the interval."
        ),
        models=models,
        clickable=False,
    )


def title(last: Mapping[str, Any]) -> str:
    """The last run's difference from the first, with its interval where there are units enough for one."""
    gap, low, high = (
        None if last[c] is None else words.minus(f"{last[c]:+.3g}")
        for c in ("difference", "difference_low", "difference_high")
    )
    span = f"({low} to {high})" if low is not None else f"(an interval needs {FEWEST} units)"
    return f"{last['figure']}: run {last['run'] + 1} − run 1 is {gap} {span} on {last['n']} prompts"


def code(path: str, run_ids: Sequence[str]) -> str:
    """Notebook lines that end with `table`."""
    return "\n".join(
        [
            "from app.analyses import kind_of",
            "from app.live.jobs import JobResult",
            "from engine.lab.beside import beside",
            "from store.runs import RunLog",
            "",
            f"stored = [RunLog({path!r}).open(run) for run in {list(run_ids)!r}]",
            "runs = [JobResult(run.condition, run.summary, run.tables) for run in stored]",
            f"table = beside([kind_of(run.condition).each(run) for run in runs], level={LEVEL})",
        ]
    )
