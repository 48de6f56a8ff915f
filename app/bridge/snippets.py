"""Notebook lines behind the panels of the bridge; tests run them and compare the tables."""

from __future__ import annotations

from app.bridge import spaces
from app.bridge import tables as bridge_queries
from app.bridge.fields import BridgeFields
from app.frame import grams
from app.frame.opened import Opened
from app.frame.prompts import SEED
from app.frame.selection import Selection
from app.geometry import tables as geometry_queries
from app.geometry import weights as geometry
from app.residual_updates import tables as update_queries
from store.layout import slug


def _pairs(opened: Opened, selection: Selection) -> list[str]:
    pair = geometry_queries.languages(opened)
    start, end = bridge_queries.spoken(opened, selection)
    lines = [
        "import numpy as np",
        "import polars as pl",
        "",
        "from engine.bridge import numbers as bridge",
        "from engine.geometry import z as subspace",
        "from store.reader import Store",
        "",
        f"store = Store({opened.path!r})",
        "prompts = store.prompts.with_row_index('row').drop_nulls('pair_id')",
    ]
    kept = [(c, v) for c, v in (("split", selection.split), ("category", selection.category)) if v != "all"]
    lines += [f"prompts = prompts.filter(pl.col({column!r}) == {value!r})" for column, value in kept]
    sampled = []
    if opened.store.n_prompts > 2 * bridge_queries.MOST:
        seed = grams.sampling(opened.store)[1]
        sampled = [
            "",
            "from engine.similarity.sampling import sample_prompts",
            "",
            "every = np.sort(np.concatenate([one, two]))",
            f"kept = sample_prompts(store.prompts, every, {2 * bridge_queries.MOST}, {seed})",
            "one, two = one[np.isin(one, kept)], two[np.isin(one, kept)]",
        ]
    return [
        *lines,
        f"prompts = prompts.filter(pl.col('language').is_in({list(pair or ())!r}))",
        "rows = [pl.col('row').filter(pl.col('language') == spoken).alias(spoken)",
        f"        for spoken in {[start, end]!r}]",
        "both = prompts.group_by('pair_id', maintain_order=True).agg(rows)",
        f"both = both.filter(*(pl.col(spoken).list.len() == 1 for spoken in {[start, end]!r}))",
        f"one, two = (both[spoken].list.first().to_numpy() for spoken in {[start, end]!r})",
        *sampled,
    ]


def _sides(opened: Opened, selection: Selection) -> list[str]:
    own = BridgeFields.of(selection)
    model = geometry.model_of(selection)
    heads = update_queries.key_heads(opened, model)
    weights = f"weights/{slug(model)}"
    groups = "None"
    if bridge_queries.within(opened, selection):
        groups = "store.prompts['category'].gather(one).fill_null('None').to_list()"
    options = {"method": own.fit, "center": own.intercept == "yes"}
    options_line = f"options = {{**{options!r}, 'groups': {groups}, 'seed': {SEED}}}"
    if own.space == "ard":
        return [
            *_pairs(opened, selection),
            "",
            "from store.runs import RunLog",
            "",
            f"fits = {spaces.fits(opened, selection)!r}",
            "",
            "def coordinates(block):",
            "    fit = RunLog(store.path).open(fits[block]).table.filter(pl.col('draw') == 0)",
            f"    order = np.argsort(fit['log10_lengthscale'].to_numpy(), kind='stable')[:{selection.k}]",
            f"    return [store.activations({model!r}, {selection.site!r}, block, {selection.position!r}, "
            "rows=rows)[:, order]",
            "            for rows in (one, two)]",
            "",
            options_line,
        ]
    return [
        *_pairs(opened, selection),
        "",
        "def coordinates(block):",
        f"    right = store.array('{weights}/kernel_right', first=block)",
        f"    sigma = store.array('{weights}/kernel_sigma', first=block)",
        f"    z = subspace.multi_head_bases(right, sigma, [{selection.k}], {selection.joined!r}, "
        f"kv_heads={heads})[{selection.k}]",
        f"    return [store.activations({model!r}, {selection.site!r}, block, {selection.position!r}, "
        "rows=rows) @ z",
        "            for rows in (one, two)]",
        "",
        options_line,
    ]


def _fit(opened: Opened, selection: Selection) -> list[str]:
    return [
        *_sides(opened, selection),
        f"x, y = coordinates({selection.layer})",
        f"found = bridge.fit_bridge(x, y, draws={bridge_queries.DRAWS}, **options)",
        "print(found.words)",
    ]


def scores(opened: Opened, selection: Selection) -> str:
    """R² of fitted and of left-out problems."""
    lines = [
        *_fit(opened, selection),
        "low, high = np.quantile(found.null, [0.025, 0.975])",
        "table = pl.DataFrame([",
        "    {'name': 'fitted problems', 'value': found.r2_train},",
        "    {'name': 'left-out problems', 'value': found.r2_loo, 'null_low': low, 'null_high': high, "
        "'p': found.p},",
        "    {'name': 'left out, best rotation', 'value': found.r2_procrustes},",
        "], schema=['name', 'value', 'null_low', 'null_high', 'p'])",
    ]
    return "\n".join(lines)


def null(opened: Opened, selection: Selection) -> str:
    """Left-out R² of permuted pairs."""
    return "\n".join([*_fit(opened, selection), "table = pl.DataFrame({'r2': found.null})"])


def path(opened: Opened, selection: Selection) -> str:
    """Left-out R² over λ."""
    line = "table = pl.DataFrame({'penalty': found.alphas, 'r2': found.r2_path})"
    return "\n".join([*_fit(opened, selection), line])


def spectrum(opened: Opened, selection: Selection) -> str:
    """Singular values of W, beside those of random matrices as large."""
    lines = [
        *_fit(opened, selection),
        f"low, high = np.linalg.norm(found.w) * np.array(bridge.random_spectrum(found.k, seed={SEED}))",
        "table = pl.DataFrame({'number': np.arange(1, found.k + 1), 'value': found.spectrum, "
        "'random_low': low, 'random_high': high})",
    ]
    return "\n".join(lines)


def matrix(opened: Opened, selection: Selection, most: int) -> str:
    """The leading entries of W."""
    lines = [
        *_fit(opened, selection),
        f"w = found.w[:{most}, :{most}]",
        "start, end = np.indices(w.shape) + 1",
        "table = pl.DataFrame({'start': start.ravel(), 'end': end.ravel(), 'weight': w.ravel()})",
    ]
    return "\n".join(lines)


def profile(opened: Opened, selection: Selection) -> str:
    """Left-out R² of every block in its own Z."""
    lines = [
        *_sides(opened, selection),
        f"blocks = {spaces.blocks(opened, selection)!r}",
        "found = bridge.profile((coordinates(block) for block in blocks), "
        f"draws={bridge_queries.PROFILE_DRAWS}, **options)",
        "table = pl.DataFrame({'layer': blocks, 'value': found.r2_loo, 'null_low': found.null_low,",
        "                      'null_high': found.null_high, 'p': found.p})",
    ]
    return "\n".join(lines)
