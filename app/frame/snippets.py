"""Notebook lines that reproduce what a panel shows; tests run them and compare the tables."""

from __future__ import annotations

from app.frame import grams
from app.frame import prompts as queries
from app.frame.opened import Opened
from app.frame.selection import Selection
from app.live.jobs import JobResult
from engine.kinds import experiment_from_json


def prompts_lines(opened: Opened, which: queries.Filter) -> list[str]:
    """Lines that open the store and pick the filtered prompts as `keep`."""
    kept = [(c, v) for c, v in zip(("split", "language", "category"), which, strict=True) if v != "all"]
    condition = " & ".join(f"(pl.col({c!r}) == {v!r})" for c, v in kept)
    lines = [
        "import numpy as np",
        "import polars as pl",
        "",
        "from store.reader import Store",
        "",
        f"store = Store({opened.path!r})",
    ]
    if kept:
        lines.append(f"keep = store.prompts.select(({condition}).arg_true()).to_series().to_numpy()")
    else:
        lines.append("keep = np.arange(store.n_prompts)")
    return lines


def gram_lines(opened: Opened, selection: Selection, site: str, keep: str = "keep") -> list[str]:
    """Lines that read both models' Gram matrices as `a` and `b`, of a sample of `keep` where it is many."""
    store, names = opened.store, {"a": selection.a, "b": selection.b}
    most, seed = grams.sampling(store)
    lines, at = ["from engine.similarity import cka", ""], keep
    if store.gram_prompts() is not None:
        at = f"np.searchsorted(store.gram_prompts(), {keep})"
        lines.append(f"{keep} = np.intersect1d(store.gram_prompts(), {keep})")
    elif store.n_prompts > most:
        lines[1:1] = ["from engine.similarity.sampling import sample_prompts"]
        lines.append(f"{keep} = sample_prompts(store.prompts, {keep}, most={most}, seed={seed})")
    for name, model in names.items():
        if store.has_grams(model, site, selection.position):
            whole = f"store.grams({model!r}, {site!r}, {selection.position!r})"
            lines.append(f"{name} = cka.sub_gram({whole}, {at})")
        else:
            rows = f"store.activations({model!r}, {site!r}, block, {selection.position!r}, rows={keep})"
            lines += [f"{name} = np.stack([cka.gram({rows}, np.float32)", _EACH.format(model)]
    return lines


_EACH = "    for block in store.layers({!r})])"


def cka_curve(opened: Opened, selection: Selection, site: str) -> str:
    """Curve with its interval, and the null."""
    lines = prompts_lines(opened, queries.chosen_filter(selection)) + gram_lines(opened, selection, site)
    lines += _groups(opened)
    debiased = selection.estimator == "debiased"
    if selection.interval == "bootstrap":
        lines += [
            f"biased, debiased = cka.bootstrap_curves(a, b, groups=groups, n_boot={queries.RESAMPLES}, "
            f"level={queries.LEVEL}, seed={queries.SEED})",
            f"band = {selection.estimator}",
        ]
    else:
        lines.append(
            f"band = cka.jackknife_cka(a, b, debiased={debiased}, groups=groups, level={queries.LEVEL})"
        )
    lines += [
        f"layers = store.layers({selection.a!r})",
        "table = pl.DataFrame({'layer': layers, 'value': band.estimate, 'low': band.low, 'high': band.high})",
    ]
    return "\n".join(lines)


def cka_by_language(opened: Opened, selection: Selection, site: str) -> str:
    """One curve per language."""
    split, _, category = queries.chosen_filter(selection)
    lines = prompts_lines(opened, (split, "all", category))
    gram = gram_lines(opened, selection, site, "rows")
    top = 1 + gram.index("")
    lines += gram[:top]
    lines.append("tables = []")
    lines.append(f"for language in {list(opened.facts.languages)!r}:")
    lines.append("    rows = keep[store.prompts['language'].eq_missing(language).to_numpy()[keep]]")
    lines += ["    " + line for line in gram[top:]]
    lines += [
        f"    values = cka.cka_curve(a, b, debiased={selection.estimator == 'debiased'})",
        f"    layers = store.layers({selection.a!r})",
        "    values = [float(v) for v in values]",
        "    tables.append(pl.DataFrame({'layer': layers, 'series': language, 'value': values}))",
        "table = pl.concat(tables)",
    ]
    return "\n".join(lines)


def cka_grid(opened: Opened, selection: Selection, site: str) -> str:
    """All blocks against all blocks, as a matrix `table`."""
    lines = prompts_lines(opened, queries.chosen_filter(selection)) + gram_lines(opened, selection, site)
    lines.append(f"table = pl.DataFrame(cka.cross_layer_cka(a, b, {selection.estimator == 'debiased'}))")
    return "\n".join(lines)


def _basis_lines(model: str, selection: Selection) -> list[str]:
    return [
        "from engine.residual_updates.numbers import residual_updates, split_updates, update_norms",
        "from engine.geometry.z import multi_head_basis",
        "",
        f"right = store.array('weights/{model}/kernel_right', first={selection.ref})",
        f"sigma = store.array('weights/{model}/kernel_sigma', first={selection.ref})",
        f"basis = multi_head_basis(right, sigma, {selection.k})",
    ]


def _updates(opened: Opened, model: str, selection: Selection) -> list[str]:
    """Lengths of every block's update, with the share of each that is rounding."""
    return [
        "import dataclasses",
        "from app.frame.store_rounding import updates",
        "",
        f"deltas, rounding = zip(*updates(store, {model!r}, {selection.position!r}, keep))",
        f"norms = update_norms(deltas, {{{selection.k}: basis}})",
        "norms = dataclasses.replace(norms, rounding=np.array(rounding), "
        f"blocks=tuple(store.layers({model!r})))",
    ]


def _groups(opened: Opened) -> list[str]:
    """The unit of every kept prompt, where they aren't drawn one by one."""
    if "pair_id" not in opened.store.prompts.columns and "category" not in opened.store.prompts.columns:
        return ["groups = None"]
    return [
        "from engine.lab.units import resampling_units",
        "groups = resampling_units(store.prompts[keep])",
    ]


def _resampling(selection: Selection) -> str:
    return f"kind={selection.mean!r}, groups=groups, n_boot=500, level={queries.LEVEL}, seed={queries.SEED}"


def updates(opened: Opened, model: str, selection: Selection, languages: bool = False) -> str:
    """R of every block, or of every language."""
    lines = prompts_lines(opened, queries.chosen_filter(selection)) + _basis_lines(model, selection)
    lines += _groups(opened)
    lines += _updates(opened, model, selection)
    more = "languages=store.prompts['language'].to_numpy()[keep], " if languages else ""
    lines.append(f"found = residual_updates(norms, {selection.k}, {more}{_resampling(selection)})")
    over = " / found.chance" if selection.scale == "r_over_chance" else ""
    if languages:
        lines += [
            "table = pl.concat(pl.DataFrame({'layer': found.blocks, 'series': name,",
            f"    'value': band.estimate{over}, 'low': band.low{over}, 'high': band.high{over}}})",
            "    for name, band in found.languages.items())",
        ]
    else:
        lines += [
            "band = found.ratio",
            "table = pl.DataFrame({'layer': found.blocks, 'update': found.labels,",
            f"    'value': band.estimate{over}, 'low': band.low{over}, 'high': band.high{over}}})",
        ]
    return "\n".join(lines)


def _norms(opened: Opened, model: str, selection: Selection) -> list[str]:
    return [
        *prompts_lines(opened, queries.chosen_filter(selection)),
        *_basis_lines(model, selection),
        *_groups(opened),
        *_updates(opened, model, selection),
    ]


def asymmetry(opened: Opened, model: str, selection: Selection) -> str:
    """Difference of R between two languages, with limits that hold for all blocks together."""
    lines = [
        *_norms(opened, model, selection),
        "languages = store.prompts['language'].to_numpy()[keep]",
        f"found = residual_updates(norms, {selection.k}, languages=languages,",
        f"    {_resampling(selection)})",
        "(pair, apart), = list(found.differences.items())[:1]",
        "low, high = found.differences_all[pair]",
        "table = pl.DataFrame({'layer': found.blocks, 'value': apart.estimate, 'low': low, 'high': high})",
    ]
    return "\n".join(lines)


def lengths(opened: Opened, model: str, selection: Selection) -> str:
    """Mean lengths of updates: whole, outside Z, inside, and inside by chance."""
    resampling = _resampling(selection).split(", ", maxsplit=1)[1]
    lines = [
        *_norms(opened, model, selection),
        "from engine.residual_updates.numbers import chance_ratio, mean_norms",
        f"found = mean_norms(norms, {selection.k}, {resampling})",
        "chance = chance_ratio(*basis.shape)",
        "parts = [(found.total, 1), (found.outside, 1), (found.inside, 1), (found.outside, chance)]",
        "table = pl.concat(pl.DataFrame({'value': by * band.estimate, 'low': by * band.low, "
        "'high': by * band.high})",
        "    for band, by in parts)",
    ]
    return "\n".join(lines)


def split(opened: Opened, model: str, selection: Selection) -> str:
    """R of attention's and the MLP's contributions."""
    lines = prompts_lines(opened, queries.chosen_filter(selection)) + _basis_lines(model, selection)
    lines += _groups(opened)
    for name in ("attn_out", "mlp_out"):
        lines += [
            f"{name} = (store.activations({model!r}, {name!r}, block, {selection.position!r}, rows=keep)",
            f"    for block in store.layers({model!r}))",
        ]
    over = ""
    if selection.scale == "r_over_chance":
        lines.append("from engine.residual_updates.numbers import chance_ratio")
        lines.append(f"chance = chance_ratio(*basis.shape, {selection.mean!r})")
        over = " / chance"
    lines += [
        f"found = split_updates(attn_out, mlp_out, basis, {_resampling(selection)})",
        f"table = pl.concat(pl.DataFrame({{'layer': store.layers({model!r}), 'series': name,",
        f"    'value': band.estimate{over}, 'low': band.low{over}, 'high': band.high{over}}})",
        "    for name, band in (('attention', found.attn), ('MLP', found.mlp)))",
    ]
    return "\n".join(lines)


def read_run(opened: Opened, result: JobResult, *more: str) -> str:
    """Lines that open the result as `run`, followed by `more`, which end with `table`."""
    experiment = experiment_from_json(result.condition)
    asked = {"job": experiment.job, **experiment.model_dump(mode="json", exclude_defaults=True)}
    lines = (
        *(("import polars as pl", "") if any("pl." in line for line in more) else ()),
        "from engine.kinds import experiment_from_json",
        "from store.reader import Store",
        "from store.runs import RunLog",
        "",
        f"store, runs = Store({opened.path!r}), RunLog({opened.path!r})",
        f"experiment = experiment_from_json({asked!r})",
        "run = runs.open(runs.find(experiment.content_hash(store.fingerprint)))",
    )
    return "\n".join((*lines, *more))
