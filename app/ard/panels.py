"""Panels of stored fits of lengthscales: chart, computed title, null and what was tested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from app.ard import words
from app.ard.fields import ArdFields
from app.ard.tables import READ_OFF, Fit, layers_table, overlap_table
from app.charts.bins import counts, histogram
from app.charts.curves import Look, layer_curve
from app.charts.lines import numeric_lines
from app.charts.palette import Palette
from app.charts.template import Chart
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.frame.selection import Selection
from app.frame.snippets import read_run
from app.live.jobs import JobResult
from app.residual_updates import tables as update_queries
from engine.ard.spectrum import surviving
from engine.kinds import experiment_from_json

MOST_POINTS = 400
"""Points of a loss curve that are drawn."""
KINDS = ("under the threshold", "others")


def where(fit: Fit, block: bool = True) -> str:
    """ "base, resid_post of block 4"."""
    condition = fit.condition
    at = f" of block {condition['layer']}" if block else ""
    return f"{condition['model']}, {condition['component']}{at}"


def penalty_name(penalty: float) -> str:
    """λ as a series' name."""
    return f"λ = {penalty:g}"


def _hues(names: Sequence[str], palette: Palette) -> dict[str, str]:
    return {name: palette.series[i % len(palette.series)] for i, name in enumerate(names)}


def setting(fit: Fit) -> str:
    """What was fitted on what, from which start, and what the kernel does on held-out problems."""
    condition, summary, row = fit.condition, fit.result.summary, fit.row
    experiment = experiment_from_json(condition)
    tokens, held = summary["tokens"], row["held_out"]
    text = (
        f"{summary['n_fitted']} {'train ' * (condition.get('fitted', 'train') == 'train')}problems in "
        f"{' and '.join(condition['languages'])}, every token of the prompts' own text ({tokens['least']} to "
        f"{tokens['most']}; {tokens['cut']} clouds cut to {condition['max_tokens']}), "
        f"{condition['objective']} objective, learning rate {condition.get('rate', 0.05):g}, "
        f"{experiment.start_text()}. "  # type: ignore[attr-defined]
    )
    if held is None:
        return text + "No held-out problems: nothing is tested. "
    return text + (
        f"Held out: {held['n']} validation problems, p by permuting which belong together"
        f"{'' if held['p_within'] is None else ', within their categories'}; "
        f"MMD² {held['same']:.3f} between languages, {held['different']:.3f} between problems. "
    )


def loss_panel(opened: Opened, fits: Sequence[Fit]) -> Panel:
    """Loss curves of the fits of one block, one line a λ."""
    fits = sorted(fits, key=lambda fit: fit.penalty)
    parts = [
        fit.result.tables["trace"]
        .filter(pl.col("draw") == 0)
        .select("step", series=pl.lit(penalty_name(fit.penalty)), value=pl.col("objective"))
        for fit in fits
    ]
    table = pl.concat(parts)
    every = max(1, max(part.height for part in parts) // MOST_POINTS)
    drawn = table.filter(pl.col("step") % every == 0).rename({"step": "x"})
    names = [penalty_name(fit.penalty) for fit in fits]

    def draw(palette: Palette) -> Chart:
        return loss_chart(drawn, names, palette)

    title = words.loss_title(where(fits[0]), [{**fit.row, "penalty": fit.penalty} for fit in fits])
    first = fits[0]
    caption = (
        "The objective with its penalty λ Σ 1/ℓ; values of different λ can't be compared. Collapsed: the "
        "median exponent between tokens fell below 0.05, so that the kernel sees one point. "
        f"{setting(first)}The curve has no interval; what it found is judged on held-out problems below."
    )
    return Panel("ard-loss", title, table, draw, _trace_code(opened, fits), caption, _models(first), False)


def loss_chart(table: pl.DataFrame, names: Sequence[str], palette: Palette) -> Chart:
    """Objective over steps, one line a series."""
    return numeric_lines(
        table,
        x_title="step",
        y_title="objective",
        colors=_hues(names, palette),
        palette=palette,
        x_format="d",
        height=260,
    )


def _models(fit: Fit) -> tuple[str, ...]:
    return (str(fit.condition["model"]),)


def spectrum_panel(opened: Opened, fit: Fit, selection: Selection) -> Panel:
    """Histogram of the lengthscales with the threshold."""
    kept, limit = fit.surviving(selection)
    values = fit.log_lengthscales / np.log(10.0)
    least, most = float(values.min()), float(values.max())
    table = pl.concat(
        counts(values[mask], least, most, 36).with_columns(series=pl.lit(name))
        for mask, name in zip((kept, ~kept), KINDS, strict=True)
    )
    marks = {f"threshold, {words.RULES[ArdFields.of(selection).rule]}": limit} if np.isfinite(limit) else {}

    def draw(palette: Palette) -> Chart:
        colors = dict(zip(KINDS, (palette.b, palette.null), strict=True))
        return histogram(
            table.filter(pl.col("count") > 0),
            x_title="log₁₀ ℓ, in pooled sds",
            y_title="dimensions",
            colors=colors,
            palette=palette,
            marks=marks,
        )

    shape = fit.spectrum
    one, two = shape.bic
    told = f"BIC {one:.0f} with one Gaussian, {two:.0f} with two, Ashman's D {shape.ashman_d:.1f}"
    caption = (
        "A small ℓ: the objective needs the dimension. Bimodal: BIC prefers two Gaussians and D > 2 "
        f"({told if np.isfinite(one) else 'all alike'}). Fits of noise are bimodal too, for a few dimensions "
        "lower the objective of any sample: the null is the pairing of held-out problems. The title counts "
        f"dimensions {words.RULES['outlier']}, whatever threshold is drawn. {setting(fit)}"
    )
    apart = int(surviving(fit.log_lengthscales)[0].sum())
    title = words.spectrum_title(where(fit), fit.found(), fit.row, apart, len(values))
    more = (
        "from app.charts.bins import counts",
        *_kept_lines(fit, selection),
        "ends = float(values.min()), float(values.max())",
        f"parts = zip((kept, ~kept), {KINDS!r})",
        "table = pl.concat(counts(values[mask], *ends, 36).with_columns(series=pl.lit(name))",
        "                  for mask, name in parts)",
    )
    code = read_run(opened, fit.result, *more)
    return Panel("ard-spectrum", title, table, draw, code, caption, _models(fit), False)


def _kept_lines(fit: Fit, selection: Selection) -> tuple[str, ...]:
    own = ArdFields.of(selection)
    cut = f", {own.cut}" if own.rule == "fixed" else ""
    called = f"surviving(values * np.log(10), {own.rule!r}{cut})"
    if fit.row["collapsed"] and own.rule in READ_OFF:
        called = "np.zeros(len(values), dtype=bool), -np.inf  # the fit collapsed"
    return (
        "import numpy as np",
        "from engine.ard.spectrum import surviving",
        "",
        "first = run.table.filter(pl.col('draw') == 0)",
        "values = first['log10_lengthscale'].to_numpy()",
        f"kept, limit = {called}",
    )


def sorted_panel(opened: Opened, fit: Fit, selection: Selection) -> Panel:
    """The sorted lengthscales with the threshold."""
    kept, limit = fit.surviving(selection)
    values = fit.log_lengthscales / np.log(10.0)
    order = np.argsort(values, kind="stable")
    table = pl.DataFrame(
        {
            "number": np.arange(1, len(values) + 1),
            "dimension": order,
            "log10_lengthscale": values[order],
            "under": kept[order],
        }
    )
    line = table.select(
        pl.col("number").alias("x"), pl.col("log10_lengthscale").alias("value"), series=pl.lit("ℓ")
    )
    flat = pl.DataFrame({"x": [1, len(values)], "value": [limit] * 2, "series": ["threshold"] * 2})
    drawn = pl.concat([line, flat], how="vertical_relaxed") if np.isfinite(limit) else line

    def draw(palette: Palette) -> Chart:
        return numeric_lines(
            drawn,
            x_title="dimensions, by lengthscale",
            y_title="log₁₀ ℓ",
            colors={"ℓ": palette.pair, "threshold": palette.b},
            palette=palette,
            x_format="d",
            height=260,
        )

    caption = (
        "The order is the finding; a count under a threshold is rough: where a few dimensions tell all "
        "problems apart, the penalty drops the others, and a few that aren't needed can lie apart too. "
        f"{setting(fit)}The count has no interval."
    )
    title = words.sorted_title(
        int(kept.sum()), len(values), limit, ArdFields.of(selection).rule, collapsed=fit.row["collapsed"]
    )
    more = (
        *_kept_lines(fit, selection),
        "order = np.argsort(values, kind='stable')",
        "table = pl.DataFrame({'number': np.arange(1, len(values) + 1), 'dimension': order,",
        "    'log10_lengthscale': values[order], 'under': kept[order]})",
    )
    code = read_run(opened, fit.result, *more)
    return Panel("ard-sorted", title, table, draw, code, caption, _models(fit), False)


def layers_panel(opened: Opened, fits: Sequence[Fit], penalty: float, selection: Selection) -> Panel:
    """|Z| of every fitted block, one line a λ; blocks where nothing was found have no point."""
    own = ArdFields.of(selection)
    table = layers_table(fits, selection)
    names = [penalty_name(p) for p in table["penalty"].unique().sort().to_list()]
    series = pl.col("penalty").map_elements(penalty_name, pl.String)
    curve = table.select("layer", "value", series=series).drop_nulls("value")
    frame = table.select("layer", "value", series=series)
    mine = table.filter(pl.col("penalty") == penalty).to_dicts()

    def draw(palette: Palette) -> Chart:
        look = Look("|Z|, dimensions", _hues(names, palette), selected=selection.layer, height=280)
        return layer_curve(curve if curve.height else frame, look, palette)

    caption = (
        f"Dimensions under the threshold ({words.RULES[own.rule]}). A point stands only where the fitted "
        "kernel pairs held-out problems (p < 0.05, Holm-adjusted over the blocks of one λ) and did not "
        "collapse; without held-out problems nothing is tested. The null is that pairing; |Z| itself has no "
        f"interval. A click selects a block. {setting(fits[0])}"
    )
    title = words.layers_title(f"{where(fits[0], block=False)}, λ = {penalty:g}", mine, own.rule)
    code = _layers_code(opened, fits, selection)
    return Panel("ard-layers", title, table, draw, code, caption, _models(fits[0]))


def overlap_panel(
    opened: Opened, fits: Sequence[Fit], nulls: Mapping[int, Fit], selection: Selection
) -> Panel:
    """Surviving dimensions that are among the k of Z with most energy, block by block."""
    table = overlap_table(opened, fits, nulls, selection)
    start = str(fits[0].condition["start"])
    curve = table.select("layer", pl.col("shared").alias("value"), series=pl.lit("shared with Z"))
    null = table.select("layer", "low", "high").drop_nulls()

    def draw(palette: Palette) -> Chart:
        look = Look(
            "dimensions shared with Z", {"shared with Z": palette.pair}, selected=selection.layer, height=260
        )
        return layer_curve(curve, look, palette, null)

    chance = {
        "cold": "Grey: 95 % of random sets of the same sizes (hypergeometric).",
        "random": "Grey: 95 % of random sets of the same sizes (hypergeometric). Of the first random start.",
        "svd": "Started from Z itself: circular. Grey, once they are run: what fits keep of random subspaces "
        "that they were started from.",
    }[start]
    caption = (
        f"Of each block's k = {selection.k} dimensions with most energy in its Z, those among the "
        f"survivors. {chance} "
        f"p in the data, Holm-adjusted over blocks. Blocks without a finding are left out. {setting(fits[0])}"
    )
    title = words.overlap_title(where(fits[0], block=False), selection.k, table.to_dicts(), start)
    code = _overlap_code(opened, fits, nulls, selection)
    return Panel("ard-overlap", title, table, draw, code, caption, _models(fits[0]))


def _listed(fits: Sequence[Fit]) -> list[dict[str, object]]:
    return [
        {"job": "ard", **experiment_from_json(fit.condition).model_dump(mode="json", exclude_defaults=True)}
        for fit in fits
    ]


def _runs_lines(opened: Opened, fits: Sequence[Fit]) -> list[str]:
    """Lines that open several fits as `fits`."""
    return [
        "import polars as pl",
        "",
        "from engine.kinds import experiment_from_json",
        "from store.reader import Store",
        "from store.runs import RunLog",
        "",
        f"store, runs = Store({opened.path!r}), RunLog({opened.path!r})",
        f"wanted = [experiment_from_json(asked) for asked in {_listed(fits)!r}]",
        "found = [runs.open(runs.find(e.content_hash(store.fingerprint))) for e in wanted]",
    ]


def _trace_code(opened: Opened, fits: Sequence[Fit]) -> str:
    lines = _runs_lines(opened, fits)
    return "\n".join(
        [
            *lines,
            "table = pl.concat(run.tables['trace'].filter(pl.col('draw') == 0).select(",
            "    'step', series=pl.lit(f'λ = {e.penalty:g}'), value=pl.col('objective'))",
            "    for e, run in zip(wanted, found))",
        ]
    )


def _queries_lines(opened: Opened, fits: Sequence[Fit], selection: Selection) -> list[str]:
    own = ArdFields.of(selection)
    return [
        "from app.ard import tables as ard_queries",
        "from app.live.jobs import JobResult",
        "from app.frame.opened import open_at",
        "from app.frame.selection import changed, defaults",
        *_runs_lines(opened, fits),
        "fits = [ard_queries.fit_of(JobResult(r.condition, r.summary, r.tables), store.prompts)",
        "        for r in found]",
        f"opened = open_at({opened.path!r})",
        f"chosen = changed(defaults(opened.facts), rule={own.rule!r}, cut={own.cut}, "
        f"k={selection.k}, joined={selection.joined!r})",
    ]


def _layers_code(opened: Opened, fits: Sequence[Fit], selection: Selection) -> str:
    return "\n".join(
        [*_queries_lines(opened, fits, selection), "table = ard_queries.layers_table(fits, chosen)"]
    )


def _overlap_code(opened: Opened, fits: Sequence[Fit], nulls: Mapping[int, Fit], selection: Selection) -> str:
    both = [*fits, *(nulls[layer] for layer in sorted(nulls))]
    return "\n".join(
        [
            *_queries_lines(opened, both, selection),
            f"nulls = {{fit.layer: fit for fit in fits[{len(fits)}:]}}",
            f"table = ard_queries.overlap_table(opened, fits[:{len(fits)}], nulls, chosen)",
        ]
    )


def run_panels(opened: Opened, result: JobResult, fit: Fit, selection: Selection) -> list[Panel]:
    """The panels of one stored fit by itself."""
    made = [
        loss_panel(opened, [fit]),
        spectrum_panel(opened, fit, selection),
        sorted_panel(opened, fit, selection),
    ]
    if has_z(opened, fit):
        made.append(overlap_panel(opened, [fit], {}, selection))
    return made


def has_z(opened: Opened, fit: Fit) -> bool:
    """Whether the store holds the head kernels that Z is made of."""
    return update_queries.kernel_name(str(fit.condition["model"])) in opened.store.array_names()
