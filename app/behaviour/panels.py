"""Panels of stored behaviour runs: levels, differences and the diagnostic on shared tokens; no Streamlit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from app.behaviour import words as say
from app.charts.intervals import interval_dots
from app.charts.palette import Palette
from app.charts.template import Chart
from app.frame import noise, words
from app.frame.panel import Panel
from app.live.jobs import JobResult
from engine.behaviour.report import corrected_note, differences, levels, on_shared
from engine.behaviour.spec import Behaviour, Figure
from engine.kinds import experiment_from_json

Runs = Mapping[str, JobResult]
"""Who answered -> the stored run, the first one being what the others are compared with."""

MEANINGS = {
    "soft_refusal": "Log of the mean probability of refusal openings minus the same for neutral openings, "
    "each opening per token. Above 0 the model would rather open with a refusal.",
    "choice_margin": "log p(correct choice) minus the mean log p of the wrong ones, per token, of the choice "
    "written right after the prompt.",
    "choice_right": "The correct choice, written right after the prompt, has the highest log p per token.",
    "agreement": "Probabilities summed over the surface forms of each word, written right after the prompt.",
    "agrees": "The generated answer's first word of agreement or disagreement agrees; an answer without "
    "either does not.",
    "right": "The number that the generated text answers with is the answer by value, or its verdict is.",
    "refused": "The generated answer holds a refusal by pattern.",
}
STYLE = "Matches of the marker's patterns per 100 generated tokens, counted in the model's own tokens."
WHOLE_COVERAGE = 1e-6
"""A coverage closer to 1 than float32 sums can tell."""
NULL = "Null: the same model on both sides gives 0."


def colours(runs: Runs, palette: Palette) -> dict[str, str]:
    """The first two have the colours of the pair, interventions others."""
    more = [palette.pair, *palette.series[2:], palette.pair2]
    return dict(zip(runs, [palette.a, palette.b, *more], strict=False))


def levels_panel(runs: Runs, figure: Figure, path: str) -> Panel:
    """The figure of everyone, over all prompts and by label, language and category."""
    table = levels({name: run.summary for name, run in runs.items()}, figure.name)

    def draw(palette: Palette) -> Chart:
        return interval_dots(
            table.rename({"part": "name"}),
            x_title=f"{figure.title}, {figure.unit}",
            colors=colours(runs, palette),
            palette=palette,
            percent=figure.binary,
            limits=(0.0, 1.0) if figure.binary else None,
        )

    meaning = MEANINGS.get(figure.name, STYLE)
    caption = f"{meaning} {prompts(runs, table)} {intervals(runs, figure)}"
    caption += noise.log_note(_noise(runs, figure)) + corrected(runs, figure)
    if any("shared" in run.summary for run in runs.values()) and all_shared(runs):
        caption += " Both tokenizers have the same tokens: on shared tokens the figure is the same."
    if figure.name == "right":
        sentences = (say.asymmetry(name, run.summary.get("asymmetry", [])) for name, run in runs.items())
        caption = " ".join([caption, *filter(None, sentences)])
    code = _code(
        path,
        runs,
        "levels",
        f"table = levels({{name: run.summary for name, run in found.items()}}, {figure.name!r})",
    )
    title = say.level_title(figure, table)
    return Panel("behaviour", title, table, draw, code, caption, models(runs), False)


def differences_panel(runs: Runs, figure: Figure, path: str) -> Panel | None:
    """Everyone else minus the first, prompt by prompt; None without anything to compare."""
    options = _options(runs, figure)
    table = differences({name: run.table for name, run in runs.items()}, figure.name, **options)
    if table.is_empty():
        return None
    first = next(iter(runs))

    def draw(palette: Palette) -> Chart:
        hues = colours(runs, palette)
        return interval_dots(
            table.rename({"part": "name"}),
            x_title=f"difference from {first}, {figure.unit}",
            colors={name: hue for name, hue in hues.items() if name != first},
            palette=palette,
            percent=figure.binary,
            reference=("no difference", 0.0),
        )

    noisy = _noise(runs, figure)
    test = (
        " p: exact McNemar (sign test over pairs). Interval: Newcombe's for paired rates."
        if figure.binary
        else " Interval: paired bootstrap."
    )
    several = " Parts are many: one interval in twenty excludes 0 by chance."
    caption = (
        f"Same prompts on both sides; what is shared cancels. {prompts(runs, table)}{test} {NULL}{several}"
        f"{noise.log_note(noisy)}{corrected(runs, figure)}"
    )
    given = ", ".join(f"{key}={value!r}" for key, value in options.items())
    code = _code(
        path,
        runs,
        "differences",
        f"table = differences({{name: run.table for name, run in found.items()}}, {figure.name!r}, {given})",
    )
    title = say.difference_title(figure, first, table, noise.log_floor(noisy))
    return Panel("behaviour-difference", title, table, draw, code, caption, models(runs), False)


def shared_panel(runs: Runs, figure: Figure, path: str) -> Panel | None:
    """The figure on shared tokens beside the whole one; None where all are shared, or it wasn't measured."""
    table = on_shared({name: run.summary for name, run in runs.items()}, figure.name)
    if table.is_empty() or all_shared(runs):
        return None
    others = dict.fromkeys(str(r.summary["shared"]["with"]) for r in runs.values() if "shared" in r.summary)

    def draw(palette: Palette) -> Chart:
        return interval_dots(
            table.rename({"series": "name", "tokens": "series"}),
            x_title=f"{figure.title}, {figure.unit}",
            colors={"all": palette.null, "shared": palette.pair},
            palette=palette,
            percent=figure.binary,
        )

    left_out = ", ".join(
        f"{row['series']} {100 * row['left_out']:.0f} %"
        for row in table.filter(pl.col("tokens") == "shared").to_dicts()
    )
    caption = (
        "A diagnostic beside the unrestricted figure, never in its place: the next-token distribution is "
        "restricted to tokens whose string both tokenizers have, and renormalised. Coverage: mean "
        f"probability of those tokens. Continuations left out because they hold another token: {left_out}. "
        f"{prompts(runs, table)} {intervals(runs, figure)}"
    )
    code = _code(
        path,
        runs,
        "on_shared",
        f"table = on_shared({{name: run.summary for name, run in found.items()}}, {figure.name!r})",
    )
    title = say.shared_title(figure, table, " and ".join(others))
    return Panel("behaviour-shared", title, table, draw, code, caption, models(runs), False)


def prompts(runs: Runs, table: pl.DataFrame) -> str:
    """How many prompts have a value, of how many, and which they are."""
    run = next(iter(runs.values()))
    where = words.limits_said(run.condition)
    chosen = ", ".join([f"split: {run.condition['split']}", *where])
    known, every = max(table["n"].to_list(), default=0), int(run.summary["n_prompts"])
    count = f"{known} of {every} prompts have a value" if known < every else f"{every} prompts"
    return " ".join([f"{count} ({chosen}).", *patches(runs)])


def patches(runs: Runs) -> list[str]:
    """What each patch is: "tuned + patch 1: resid_post@4 at decision ← base, raw, α = 1." """
    asked = {name: Behaviour.from_json(run.condition).intervention for name, run in runs.items()}
    return [f"{name}: {one.describe()}." for name, one in asked.items() if one is not None]


def corrected(runs: Runs, figure: Figure) -> str:
    """Whose values of this figure were corrected by hand: " base: 1 value was corrected …"; else nothing."""
    found = {
        name: [entry for entry in run.summary.get("corrected", ()) if entry["figure"] == figure.name]
        for name, run in runs.items()
    }
    return "".join(f" {name}: {corrected_note(entries)}" for name, entries in found.items() if entries)


def all_shared(runs: Runs) -> bool:
    """Whether the diagnostic on shared tokens has nothing to say: every token is."""
    found = [run.summary["shared"] for run in runs.values() if "shared" in run.summary]
    return all(one["left_out"] == 0 and one["coverage"] > 1 - WHOLE_COVERAGE for one in found)


def intervals(runs: Runs, figure: Figure) -> str:
    """The method of the levels' intervals."""
    found = next(iter(runs.values())).summary["interval"]
    unit = f"{found['unit']}s"
    method = f"Wilson score over {unit}" if figure.binary else f"bootstrap of the mean over {unit}"
    return f"Intervals: {found['level']:.0%} {method}, each by itself."


def models(runs: Runs) -> tuple[str, ...]:
    """Whose provenance the footer names."""
    names = [name for run in runs.values() for name in experiment_from_json(run.condition).models()]
    return tuple(dict.fromkeys(names))


def _noise(runs: Runs, figure: Figure) -> dict[str, Any]:
    """Rounding noise of everyone who answered, for figures in nats; nothing for others."""
    if not figure.unit.startswith("nats"):
        return {}
    return {
        "rounding": {m: one for run in runs.values() for m, one in run.summary.get("rounding", {}).items()}
    }


def _options(runs: Runs, figure: Figure) -> dict[str, Any]:
    condition = next(iter(runs.values())).condition
    return {"binary": figure.binary, **{name: condition[name] for name in ("n_boot", "level", "seed")}}


def _code(path: str, runs: Runs, function: str, last: str) -> str:
    """Notebook lines that open these runs and make a panel's table."""
    lines: Sequence[str] = (
        f"from engine.behaviour.report import {function}",
        "from engine.kinds import experiment_from_json",
        "from store.reader import Store",
        "from store.runs import RunLog",
        "",
        f"store, runs = Store({path!r}), RunLog({path!r})",
        "found = {}",
    )
    opened = []
    for name, run in runs.items():
        spec = experiment_from_json(run.condition)
        asked = {"job": spec.job, **spec.model_dump(mode="json", exclude_defaults=True)}
        opened += [
            f"experiment = experiment_from_json({asked!r})",
            f"found[{name!r}] = runs.open(runs.find(experiment.content_hash(store.fingerprint)))",
        ]
    return "\n".join((*lines, *opened, last))
