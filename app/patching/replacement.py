"""Live patches as a page needs them: a condition from the selection, and a result as words and panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from app.charts.curves import Look, layer_curve
from app.charts.grids import histogram
from app.charts.palette import Palette
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
    whole,
)
from app.live.jobs import JobResult
from app.patching import amplitudes, categories, literal
from app.patching.fields import PatchFields
from app.patching.words import MATCHED, alpha_title, amplitude, level_with, reading, reported, tokens
from engine.errors import PatchError
from engine.patching.spec import Condition

PAGE = "patching"
ALPHAS = tuple(round(0.2 * i, 1) for i in range(11))
"""Amplitudes of a whole α curve, 0 to 2."""
EXACT = 1e-5
"""A KL in nats that counts as nothing whatever the dtype."""
KIND_NAMES = {"raw": MATCHED, "literal": "literal", "self": "own (check)", "mean": "own mean"}
KIND_HELP = (
    "moment-matched: the source's activation, each dimension brought to the target's mean and spread on the "
    "train split. literal: as it is. own: the target's own activation, must change nothing. "
    "own mean: the target's mean over the train split."
)


def condition_of(selection: Selection, layer: int | None = None) -> Condition:
    """The condition a selection describes, at another layer where one is given.

    Raises:
        PatchError: the selection's position is not one token, or its heads are no numbers.
    """
    own = PatchFields.of(selection)
    everything = own.kind == "self"
    at = selection if layer is None else changed(selection, layer=layer)
    return Condition(
        **place_of(at),
        heads=chosen_heads(selection),
        kind=own.kind,  # type: ignore[arg-type]
        alphas=(1.0,) if everything else _curve(own) if own.alphas == "curve" else (selection.alpha,),
        scale=selection.amplitude,  # type: ignore[arg-type]
        split=selection.report,  # type: ignore[arg-type]
        where=where_of(selection),
    )


experiment_of = condition_of


def _curve(own: PatchFields) -> tuple[float, ...]:
    return amplitudes.read(own.grid) or ALPHAS


def chosen_heads(selection: Selection) -> tuple[int, ...] | None:
    """The heads that a patch of a head site is restricted to; None is all of them, or no head site."""
    own = PatchFields.of(selection)
    if not selection.site.startswith("head") or not own.heads.strip():
        return None
    numbers = own.heads.replace(",", " ").split()
    if any(whole(number) is None for number in numbers):
        raise PatchError(
            "The heads of the link cannot be used.",
            expected="numbers with commas between, e.g. 0,2",
            given=repr(own.heads),
            next_step="choose heads on the page.",
        )
    return tuple(sorted({whole(number) or 0 for number in numbers}))


def conditions(opened: Opened, selection: Selection) -> list[Condition]:
    """What one click runs: the selected block, or every block; PatchError for heads that a model lacks."""
    heads = min(int(opened.store.model_info(model)["n_heads"]) for model in (selection.a, selection.b))
    if max(chosen_heads(selection) or (0,)) >= heads:
        raise PatchError(
            "The heads of the link cannot be used.",
            expected=f"0 to {heads - 1}",
            given=PatchFields.of(selection).heads,
            next_step="choose heads on the page.",
        )
    if selection.layers == "one":
        return [condition_of(selection)]
    count = min(opened.facts.n_layers[m] for m in (selection.a, selection.b))
    return [condition_of(selection, layer) for layer in range(0, count, selection.stride)]


def selection_of(condition: Mapping[str, Any], selection: Selection) -> dict[str, Any]:
    """Changes to a selection under which `condition_of` gives this stored condition again."""
    alphas = [float(a) for a in condition["alphas"]]
    return {
        **place_changes(condition, selection),
        "heads": ",".join(map(str, condition.get("heads") or ())),
        "patch": "one",
        "kind": condition["kind"],
        "alphas": "curve" if len(alphas) > 1 else "one",
        "grid": amplitudes.written(alphas, ALPHAS) if len(alphas) > 1 else "",
        "alpha": alphas[0] if len(alphas) == 1 else selection.alpha,
        "amplitude": condition["scale"],
        "report": condition["split"],
        **where_changes(condition),
    }


def point(result: JobResult, alpha: float) -> dict[str, Any]:
    """The summary row of the amplitude nearest to `alpha`."""
    rows: list[dict[str, Any]] = result.summary["curve"]
    return min(rows, key=lambda row: abs(float(row["alpha"]) - alpha))


def limit(result: JobResult) -> float:
    """KL below which a patch cannot be told from no patch: the self-check's limit, or rounding noise."""
    noisy = noise.kl_floor(result.summary)
    return max(float(result.summary["self_check"]["limit"]), noisy)


def result_title(result: JobResult, alpha: float, also: str = "") -> str:
    """What the patch did to the next-token distribution, and `also`, of the literal patch.

    Rule: 'changes nothing' when the mean KL is at most the self-check's limit or the model's rounding
    noise, or its interval reaches that noise; where these are not small by themselves (half-precision
    models), the KL is told beside them.
    """
    condition, row = result.condition, point(result, alpha)
    heads = ",".join(map(str, condition.get("heads") or ()))
    which = f" (heads {heads})" if heads else ""
    site = f"{condition['component']}{which} of block {condition['layer']}"
    matched = f"{MATCHED} " if condition["kind"] == "raw" else ""
    what = {"mean": "its own mean", "self": "its own activation"}.get(
        condition["kind"], f"{condition['source']}'s {matched}activation"
    )
    start = f"{what[0].upper()}{what[1:]} at {site}" if what.startswith("its") else f"{what} at {site}"
    if float(row["alpha"]) != 1.0:
        start += f", α = {row['alpha']:g},"
    kl = words.nats_span(row)
    noisy = noise.kl_floor(result.summary)
    if abs(float(row["kl"])) <= limit(result) or float(row["low"]) <= noisy:
        if limit(result) > EXACT:
            bound = words.nats(limit(result))
            return f"{start} is not told from rounding in {condition['target']}: {kl}, limit {bound}{also}"
        return f"{start} changes nothing in {condition['target']}: KL is 0 within rounding{also}"
    text = f"{start} moves {condition['target']}'s next token by {kl}{also}"
    shown = at_alpha(result.table, float(row["alpha"]))
    if "top1_changed" in shown.columns and shown.height:
        share = 100 * float(shown["top1_changed"].mean())  # type: ignore[arg-type]
        text += f"; the most likely token changes in {share:.0f} % of {shown.height} prompts"
    return text


def at_alpha(table: pl.DataFrame, alpha: float) -> pl.DataFrame:
    """Rows of one amplitude."""
    return table.filter((pl.col("alpha") - alpha).abs() < 1e-9) if "alpha" in table.columns else table


def kl_histogram(kl: np.ndarray, floor: float = 1e-9, bins: int = 24) -> pl.DataFrame:
    """Counts of per-prompt KL in log-spaced bins; values at or under `floor` fall into the first bin.

    Args:
        kl: (n,) nats.

    Returns:
        Columns low, high, count.
    """
    kept = np.maximum(np.asarray(kl, dtype=float), floor)
    low, high = float(kept.min()), float(kept.max())
    if high <= low * 1.001:
        low, high = low / 2, high * 2
    edges = np.geomspace(low, high * (1 + 1e-9), bins + 1)
    counts, _ = np.histogram(kept, edges)
    return pl.DataFrame({"low": edges[:-1], "high": edges[1:], "count": counts})


def histogram_panel(result: JobResult, alpha: float, code: str, also: str = "") -> Panel:
    """Per-prompt KL at one amplitude; `also` is said behind the finding."""
    row = point(result, alpha)
    shown = at_alpha(result.table, float(row["alpha"]))
    bins = kl_histogram(shown["kl"].to_numpy())
    mean = float(row["kl"])

    def draw(palette: Palette) -> Chart:
        return histogram(
            bins, x_title="KL(patched ‖ unpatched), nats", y_title="prompts", mean=mean, palette=palette
        )

    check = result.summary["self_check"]
    rounding = f"{words.nats(check['value'])} (limit {words.nats(check['limit'])})"
    interval = result.summary["interval"]
    caption = (
        f"α = {row['alpha']:g} {amplitude(result.condition)}; {reading(result.condition)}. {row['n']} "
        f"prompts ({reported(result.condition)}). Dashed: mean; interval: {interval['level']:.0%} "
        f"{_method(interval)} over {interval['unit']}s. Null: patching the model's own activation in the "
        f"same batches gives a KL of {rounding} nats.{noise.note(result.summary)}"
    )
    models = (str(result.condition["target"]), str(result.condition["source"]))
    keep = [c for c in ("id", "pair_id", "language", "category", "alpha", "kl") if c in shown.columns]
    title = result_title(result, alpha, also)
    return Panel("patch", title, shown.select(keep), draw, code, caption, models, False)


def _method(interval: Mapping[str, Any]) -> str:
    """Name of an interval's method without what is resampled, which the caption says itself."""
    return str(interval["method"]).split(" over ")[0]


def alpha_panel(result: JobResult, alpha: float, code: str) -> Panel | None:
    """Mean KL against the amplitude; None when only one was run."""
    rows = pl.DataFrame(result.summary["curve"])
    if rows.height < 2:
        return None
    steps = rows.with_columns(layer=pl.int_range(rows.height), value=pl.col("kl"), series=pl.lit("mean KL"))
    chosen = rows["alpha"].to_list().index(point(result, alpha)["alpha"])

    def draw(palette: Palette) -> Chart:
        look = Look(
            "mean KL, nats",
            {"mean KL": palette.b},
            x_title=f"α ({amplitude(result.condition)})",
            selected=chosen,
            labels={i: f"{a:g}" for i, a in enumerate(rows["alpha"].to_list())},
            references=noise.lines(result.summary),
            height=240,
        )
        return layer_curve(steps, look, palette)

    models = (str(result.condition["target"]), str(result.condition["source"]))
    caption = (
        f"{rows['n'][0]} prompts ({reported(result.condition)}). Band: bootstrap interval of the mean, for "
        "each α by itself. Every α ran in the same batches, so they share the null."
        f"{noise.note(result.summary)}"
    )
    title = alpha_title(rows, noise.kl_floor(result.summary))
    return Panel("patch-alpha", title, rows, draw, code, caption, models, False)


def layer_panel(runs: pl.DataFrame, condition: Condition, alpha: float, code: str) -> Panel | None:
    """Mean KL over layers, from stored runs that differ from `condition` by nothing but the layer.

    Args:
        runs: columns layer, kl, low, high, noise; see `profile`.
    """
    if runs.height < 2:
        return None
    top = runs.sort("kl").row(-1, named=True)
    quiet = (pl.col("kl").abs() <= 1e-6) | noise.hidden_rows()
    still = runs.filter(quiet)["layer"].to_list()
    level = level_with(runs, top)["layer"].to_list()
    title = f"The patch matters most at {words.blocks(level)}: {words.nats_span(top)}"
    if len(level) > 1:
        title += f" at block {top['layer']}, the others level within the intervals"
    if len(level) == runs.height:
        title = f"No block is told apart by what the patch does; {words.nats_span(top)} "
        title += f"at block {top['layer']}, the largest"
    if len(still) == runs.height:
        title = f"The patch changes nothing at any of {words.blocks(still)}: KL is 0 within rounding"
    elif still:
        title += f"; it changes nothing at {words.blocks(still)}"
    table = runs.with_columns(value=pl.col("kl"), series=pl.lit("mean KL"))
    floor = float(runs["noise"].max())  # type: ignore[arg-type]
    summary = {"rounding": {condition.target: {"kl": floor}} if floor else {}}

    def draw(palette: Palette) -> Chart:
        look = Look(
            "mean KL, nats",
            {"mean KL": palette.b},
            references=noise.lines(summary),
            selected=condition.layer,
            height=260,
        )
        return layer_curve(table, look, palette)

    shown, plain = min(condition.alphas, key=lambda a: abs(a - alpha)), condition.to_json()
    caption = (
        f"{condition.component}, {KIND_NAMES[condition.kind]}, α = {shown:g} {amplitude(plain)}; "
        f"{reading(plain)} ({reported(plain)}). Band: bootstrap interval of each block by itself. "
        "Null: 0, the KL of the model's own activation. Only blocks that have been run are shown."
        f"{noise.note(summary)}"
    )
    return Panel("patch-layers", title, runs, draw, code, caption, (condition.target, condition.source))


def profile(
    stored: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], condition: Condition, alpha: float
) -> pl.DataFrame:
    """Results of stored runs that are `condition` at any layer, at one amplitude.

    Args:
        stored: (condition, summary) of every stored run.

    Returns:
        Columns layer, kl, low, high and noise (of the target, nats), sorted by layer.
    """
    wanted = _without_layer(condition.to_json())
    rows = {}
    for other, summary in stored:
        if "alphas" not in other or _without_layer(dict(other)) != wanted:
            continue
        row = min(summary["curve"], key=lambda r: abs(r["alpha"] - alpha))
        ends = {k: float(row[k]) for k in ("kl", "low", "high")}
        rows[int(other["layer"])] = ends | {"noise": noise.kl_floor(summary)}
    schema = {"layer": pl.Int64, **dict.fromkeys(("kl", "low", "high", "noise"), pl.Float64)}
    return pl.DataFrame([{"layer": layer, **row} for layer, row in sorted(rows.items())], schema=schema)


def _without_layer(condition: dict[str, Any]) -> dict[str, Any]:
    return {k: (tuple(v) if isinstance(v, list) else v) for k, v in condition.items() if k != "layer"}


def token_table(table: pl.DataFrame, alpha: float) -> pl.DataFrame:
    """Per-prompt table for reading: KL and the top next tokens before and after, as text.

    The prompts whose distribution moved most come first.
    """
    shown = at_alpha(table, alpha).sort("kl", descending=True)
    keep = [c for c in ("text",) if c in shown.columns]
    columns: list[Any] = [pl.col(c) for c in keep] + [pl.col("kl")]
    for side in ("before", "after"):
        if f"top_{side}" in shown.columns:
            lines = [
                tokens(t, p)
                for t, p in zip(shown[f"top_{side}"].to_list(), shown[f"p_{side}"].to_list(), strict=True)
            ]
            columns.append(pl.Series(side, lines))
    columns += [pl.col(c) for c in ("language", "category", "id") if c in shown.columns]
    return shown.select(columns)


def code(store_path: str, condition: Condition) -> str:
    """Notebook lines that read this run from the store again."""
    return "\n".join(
        (
            "from engine.patching.spec import Condition",
            "from store.reader import Store",
            "from store.runs import RunLog",
            "",
            f"store = Store({store_path!r})",
            f"condition = Condition.from_json({condition.model_dump(mode='json', exclude_defaults=True)!r})",
            "runs = RunLog(store.path)",
            "run = runs.open(runs.find(condition.content_hash(store.fingerprint)))",
            "curve, table = run.summary['curve'], run.table",
        )
    )


def run_panels(opened: Opened, result: JobResult, selection: Selection) -> list[Panel]:
    """The panels of a stored result: per-prompt KL, and the amplitudes where several were run."""
    lines = code(opened.path, Condition.from_json(result.condition))
    alpha = selection.alpha
    curve, row = alpha_panel(result, alpha, lines), point(result, alpha)
    first = histogram_panel(result, alpha, lines, literal.beside(opened, result.condition, alpha))
    split = categories.categories_panel(
        opened,
        result,
        "table",
        {"alpha": row["alpha"]} if "alpha" in result.table.columns else {},
        "kl",
        f"KL of the patch at α = {row['alpha']:g}",
        f"{row['n']} prompts ({reported(result.condition)}). ",
    )
    return [panel for panel in (first, split, curve) if panel is not None]


def not_run(condition: Condition, manifest: Mapping[str, Any]) -> tuple[str, str]:
    """Title and text of the page before a condition was run."""
    device = manifest.get("device", "the attached device")
    prompts = "all prompts" if condition.split == "all" else f"the {condition.split} prompts"
    return (
        "Not run yet",
        f"**{condition.describe()}** over {prompts} has no stored result. Run loads {condition.target} in "
        f"the worker process (the store was made on {device}), patches every prompt and keeps the result in "
        "the store, so that this link shows it from then on.",
    )
