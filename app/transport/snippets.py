"""Notebook lines that reproduce the transport page; tests run them and compare the tables."""

from __future__ import annotations

from app.frame.opened import Opened
from app.frame.prompts import paired
from app.transport import tables as tq
from engine.transport import DEFAULT_ALPHAS
from engine.transport.named import USES, MapSpec
from store.layout import slug


def _pairs(opened: Opened, place: tq.Place) -> list[str]:
    """Lines that define `pairs(split, site, layer)`."""
    columns = opened.store.prompts.columns
    groups = (
        "chosen.select(pl.coalesce('pair_id', 'id')).to_series().to_numpy()" if paired(opened) else "None"
    )
    roles = "chosen['language'].fill_null('').to_numpy()" if "language" in columns else "None"
    return [
        "import numpy as np",
        "import polars as pl",
        "",
        "from engine import transport",
        "from store.reader import Store",
        "",
        f"store = Store({opened.path!r})",
        "",
        "",
        "def pairs(split, site, layer):",
        "    rows = store.prompts.select((pl.col('split') == split).arg_true()).to_series().to_numpy()",
        f"    x, y = (store.activations(model, site, layer, {place.position!r}, rows=rows)",
        f"            for model in ({place.source!r}, {place.target!r}))",
        "    chosen = store.prompts[rows]",
        f"    return transport.Paired.of(x, y, {groups}, {roles})",
        "",
        "",
    ]


def _here(opened: Opened, place: tq.Place, spec: MapSpec) -> list[str]:
    """Lines up to `train`, `validation` and an unfitted `estimator`."""
    where = f"{place.site!r}, {place.layer}"
    return [
        *_pairs(opened, place),
        f"train, validation = pairs('train', {where}), pairs('validation', {where})",
        f"estimator = {estimator(opened, place, spec)}",
    ]


def estimator(opened: Opened, place: tq.Place, spec: MapSpec) -> str:
    """The expression that makes the estimator of a spec."""
    given = []
    if "shrinkage" in USES[spec.method]:
        given.append(f"shrinkage={spec.shrinkage!r}")
    if "rank" in USES[spec.method]:
        given.append(f"n_components={spec.rank or None}")
    if spec.scale != "fit":
        given.append(f"scale={spec.scale!r}")
    if "directions" in USES[spec.method]:
        folder = f"weights/{slug(place.target)}"
        size = min(spec.directions, tq.most_directions(opened, place))
        given += [
            f"store.array('{folder}/unembedding')",
            f"n_components={size}",
            f"gain=store.array('{folder}/final_norm_gain')",
        ]
        source = f"weights/{slug(place.source)}"
        given += [
            f"source_unembedding=store.array('{source}/unembedding')",
            f"source_gain=store.array('{source}/final_norm_gain')",
        ] * spec.joint
    if spec.joint:
        given.append("joint=True")
    if "penalty" in USES[spec.method] and spec.penalty is not None:
        given.append(f"alphas=({spec.penalty!r},)")
    elif spec.penalties != DEFAULT_ALPHAS:
        given.append(f"alphas=transport.penalty_path({spec.penalty_from!r})")
    single = f"transport.{spec.method}({', '.join(given)})"
    if spec.clusters == 1:
        return single
    return f"transport.ClusteredTransport({single}, n_clusters={spec.clusters}, seed={tq.SEED})"


def _evaluate(train: str, validation: str) -> str:
    return (
        f"transport.evaluate_pairs(estimator, {train}, {validation}, n_shuffles={tq.SHUFFLES}, "
        f"n_pairings={tq.PAIRINGS}, seed={tq.SEED})"
    )


def scores(opened: Opened, place: tq.Place, spec: MapSpec) -> str:
    """Every score of one map."""
    lines = [
        *_here(opened, place, spec),
        f"found = {_evaluate('train', 'validation')}",
        "print(found.words)",
        "names = ['r2_train', 'r2_validation', 'cka_raw_debiased', 'cka_mapped_debiased', 'cka_mapped',",
        "         'cosine_deviation', 'cosine']",
        "table = pl.DataFrame({'name': names, 'value': [getattr(found, name) for name in names]})",
    ]
    return "\n".join(lines)


def path(opened: Opened, place: tq.Place, spec: MapSpec, grid: list[float]) -> str:
    """R² over λ or k."""
    penalty = "penalty" in USES[spec.method]
    free = spec.model_copy(update={"penalty": None, "rank": 0})
    lines = [*_here(opened, place, free), "fitted = estimator.fit_sides(train.x, train.y, train.groups)"]
    if penalty:
        extra = [v for v in grid if v not in DEFAULT_ALPHAS]
        lines.append(f"grid = sorted([*transport.DEFAULT_ALPHAS, *{extra!r}])")
    else:
        lines.append(f"grid = {[int(v) for v in grid]!r}")
    lines += ["lines = {}", "for name, part in (('train', train), ('validation', validation)):"]
    if tq.paths(opened, place, spec) is not None:
        lines.append("    lines[name] = list(fitted.scorer(part.x.rows, part.y.rows).r2(grid))")
    else:
        move = "m.at(value)" if penalty else "m.at_rank(value)"
        moved = (
            f"fitted.remapped(lambda m: {move})" if spec.clusters > 1 else move.replace("m.", "fitted.", 1)
        )
        lines.append(f"    lines[name] = [{moved}.score(part.x.rows, part.y.rows) for value in grid]")
    lines += [
        "table = pl.concat(pl.DataFrame({'x': [float(v) for v in grid], 'series': name, 'value': line})",
        "                  for name, line in lines.items())",
    ]
    return "\n".join(lines)


def spectrum(opened: Opened, place: tq.Place, spec: MapSpec) -> str:
    """The singular values of a map."""
    free = spec.model_copy(update={"rank": 0})
    values = "fitted.global_" if spec.clusters > 1 else "fitted"
    values += ".ridge_" if spec.method == "LogitSubspaceRidge" else ""
    values += ".sigma_" if "penalty" in USES[spec.method] else ".singular_values_"
    lines = [
        *_here(opened, place, free),
        "fitted = estimator.fit_sides(train.x, train.y, train.groups)",
        f"table = pl.DataFrame({{'value': {values}}})",
    ]
    return "\n".join(lines)


def table(opened: Opened, place: tq.Place, spec: MapSpec) -> str:
    """One map at every site and block."""
    every = [(p.site, p.layer) for p in tq.places(opened, place) if not tq.unusable(opened, p, spec)]
    sites = {site: [layer for s, layer in every if s == site] for site, _ in every}
    lines = [
        *_pairs(opened, place),
        f"estimator = {estimator(opened, place, spec)}",
        "rows = []",
        f"for site, layers in {sites!r}.items():",
        "    for layer in layers:",
        "        train, validation = pairs('train', site, layer), pairs('validation', site, layer)",
        f"        found = {_evaluate('train', 'validation')}",
        "        rows.append({'site': site, 'layer': layer, **found.to_json()})",
        "table = pl.DataFrame(rows)",
    ]
    return "\n".join(lines)
