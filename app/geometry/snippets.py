"""Notebook lines behind the panels of Z's geometry; tests run them and compare the tables."""

from __future__ import annotations

import numpy as np

from app.frame.opened import Opened
from app.frame.prompts import LEVEL, SEED
from app.frame.selection import Selection
from app.geometry import tables as gq
from app.residual_updates import tables as update_queries
from store.layout import slug


def _store_lines(opened: Opened) -> list[str]:
    return [
        "import numpy as np",
        "import polars as pl",
        "",
        "from engine.geometry import separation as sep",
        "from engine.geometry import layers as subspace_layers",
        "from engine.geometry import z as subspace",
        "from engine.geometry.language_energy import language_energy",
        "from store.reader import Store",
        "",
        f"store = Store({opened.path!r})",
    ]


def _basis(opened: Opened, model: str, selection: Selection, layer: str) -> str:
    heads = update_queries.key_heads(opened, model)
    return (
        f"subspace.multi_head_bases(store.array('weights/{slug(model)}/kernel_right', first={layer}), "
        f"sigma[{layer}], [{selection.k}], {selection.joined!r}, kv_heads={heads})[{selection.k}]"
    )


def _all_bases(opened: Opened, model: str, selection: Selection) -> list[str]:
    return [
        *_store_lines(opened),
        f"sigma = store.array('weights/{slug(model)}/kernel_sigma')",
        f"bases = [{_basis(opened, model, selection, 'block')}",
        "         for block in range(len(sigma))]",
    ]


def ranks(opened: Opened, model: str) -> str:
    """Effective rank of every head kernel."""
    lines = [
        *_store_lines(opened),
        f"ranks = subspace.effective_rank(store.array('weights/{slug(model)}/kernel_sigma'))",
        "layer, head = np.indices(ranks.shape)",
        "table = pl.DataFrame({'layer': layer.ravel(), 'head': head.ravel(), 'value': ranks.ravel()})",
    ]
    return "\n".join(lines)


def structure(opened: Opened, model: str, selection: Selection) -> str:
    """Grassmann similarity of all blocks."""
    lines = [
        *_all_bases(opened, model, selection),
        "similarity = subspace.grassmann_matrix(np.stack(bases).astype(np.float32))",
        f"print(subspace_layers.layer_structure(similarity, *bases[0].shape, seed={SEED}))",
        "layer, other = np.indices(similarity.shape)",
        "table = pl.DataFrame({'layer': layer.ravel(), 'other': other.ravel(), 'value': similarity.ravel()})",
    ]
    return "\n".join(lines)


def convergence(opened: Opened, model: str, selection: Selection) -> str:
    """Similarity of every block's Z to the reference block's."""
    lines = [
        *_all_bases(opened, model, selection),
        f"values = [subspace.grassmann_similarity(bases[{selection.ref}], basis) for basis in bases]",
        "table = pl.DataFrame({'layer': range(len(values)), 'value': values})",
    ]
    return "\n".join(lines)


def gates(opened: Opened, model: str, selection: Selection) -> str:
    """Energy of every gate in the same block's Z, over k/d."""
    folder, heads = f"weights/{slug(model)}", update_queries.key_heads(opened, model)
    small = opened.store.attrs(f"{folder}/gate_gram")["shape"][-1] < gq.width(opened, model)
    frame = (
        f"subspace.key_frame(store.array('{folder}/kernel_right', first=block), {heads})" if small else "None"
    )
    lines = [
        *_all_bases(opened, model, selection),
        "energy = np.array([",
        f"    subspace_layers.energy_in(basis, store.array('{folder}/gate_gram', first=block), {frame})",
        "    .sum() for block, basis in enumerate(bases)])",
        f"total, total_of_square = store.array('{folder}/gate_moments').T",
        "found = subspace_layers.weight_alignment(energy, total, total_of_square, *bases[0].shape)",
        "table = pl.DataFrame({'layer': range(len(bases)), 'value': found.ratio, 'p': found.p})",
    ]
    return "\n".join(lines)


def _problems(
    opened: Opened, model: str, selection: Selection, pooling: str, layer: int | None = None
) -> list[str]:
    one, two = gq.problem_rows(opened, selection)
    block = selection.layer if layer is None else layer
    return [
        *_store_lines(opened),
        f"sigma = store.array('weights/{slug(model)}/kernel_sigma')",
        f"one, two = np.array({_listed(one)}), np.array({_listed(two)})  # rows of the same problems",
        f"both = store.activations({model!r}, {selection.site!r}, {block}, {pooling!r})",
        "problems = sep.Problems.of(both[one], both[two])",
        f"ks = {list(gq.ranks(opened))!r}",
        f"right = store.array('weights/{slug(model)}/kernel_right', first={block})",
        f"bases = subspace.multi_head_bases(right, sigma[{block}], ks, {selection.joined!r}, "
        f"kv_heads={update_queries.key_heads(opened, model)})",
    ]


def _listed(rows: np.ndarray) -> str:
    return "[" + ", ".join(map(str, rows.tolist())) + "]"


def _random() -> str:
    return f"random = sep.random_ratios(problems, tuple(ks), draws={gq.DRAWS}, seed={SEED})"


def separation(opened: Opened, model: str, selection: Selection, pooling: str) -> str:
    """Ratios in Z, outside it and in the whole space over k."""
    lines = [
        *_problems(opened, model, selection, pooling),
        _random(),
        f"found = sep.separation(problems, bases, random, n_boot={gq.RESAMPLES}, level={LEVEL}, seed={SEED})",
        "print(found.p_random, found.p_pairing, found.separates)",
        "whole = np.full(len(ks), found.full.estimate)",
        "values = {'Z': found.inside.estimate, 'outside Z': found.outside.estimate, 'whole space': whole}",
        "table = pl.concat(pl.DataFrame({'x': ks, 'series': name, 'value': value})",
        "                  for name, value in values.items())",
    ]
    return "\n".join(lines)


def energy(opened: Opened, model: str, selection: Selection, pooling: str) -> str:
    """Language energy in Z over k/d, for every k."""
    lines = [
        *_problems(opened, model, selection, pooling),
        f"found = language_energy(problems, bases, n_boot={gq.RESAMPLES}, level={LEVEL}, seed={SEED})",
        "table = pl.DataFrame({'x': found.ks, 'value': found.ratio.estimate, 'p': found.p})",
    ]
    return "\n".join(lines)


def heads(opened: Opened, model: str, selection: Selection, pooling: str) -> str:
    """Ratio of every head's own k directions."""
    k = selection.k
    lines = [
        *_problems(opened, model, selection, pooling),
        f"values = [sep.separation_ratios(problems, {{{k}: bases[{k}]}})[1][0]]",
        f"values += [sep.inside_ratios(problems, head[:, :{k}], ({k},))[0] for head in right]",
        "names = ['all heads', *(f'head {i}' for i in range(len(right)))]",
        "table = pl.DataFrame({'name': names, 'value': values})",
    ]
    return "\n".join(lines)


def _every(opened: Opened, model: str, selection: Selection, pooling: str) -> list[str]:
    one, two = gq.problem_rows(opened, selection)
    return [
        *_store_lines(opened),
        f"sigma = store.array('weights/{slug(model)}/kernel_sigma')",
        f"one, two = np.array({_listed(one)}), np.array({_listed(two)})  # rows of the same problems",
        "rows = []",
        f"for block in store.layers({model!r}):",
        f"    both = store.activations({model!r}, {selection.site!r}, block, {pooling!r})",
        "    problems = sep.Problems.of(both[one], both[two])",
        f"    bases = {{{selection.k}: {_basis(opened, model, selection, 'block')}}}",
    ]


def every_separation(opened: Opened, model: str, selection: Selection, pooling: str) -> str:
    """Ratios of every block at the selected k."""
    lines = [
        *_every(opened, model, selection, pooling),
        "    _, inside, outside = sep.separation_ratios(problems, bases)",
        "    rows += [(block, 'Z', inside[0]), (block, 'outside Z', outside[0]),",
        "             (block, 'whole space', float(problems.whole.ratio()))]",
        "table = pl.DataFrame(rows, schema=['layer', 'series', 'value'], orient='row')",
    ]
    return "\n".join(lines)


def configurations(opened: Opened, model: str, selection: Selection, pooling: str) -> str:
    """Ratios of every block at every k, of all heads and of each."""
    one, two = gq.problem_rows(opened, selection)
    heads = update_queries.key_heads(opened, model)
    lines = [
        *_store_lines(opened),
        f"sigma = store.array('weights/{slug(model)}/kernel_sigma')",
        f"one, two = np.array({_listed(one)}), np.array({_listed(two)})  # rows of the same problems",
        f"ks, rows = {tuple(gq.ranks(opened))!r}, []",
        f"for block in store.layers({model!r}):",
        f"    both = store.activations({model!r}, {selection.site!r}, block, {pooling!r})",
        "    problems = sep.Problems.of(both[one], both[two])",
        f"    right = store.array('weights/{slug(model)}/kernel_right', first=block)",
        f"    z = subspace.multi_head_bases(right, sigma[block], ks, {selection.joined!r}, kv_heads={heads})",
        "    found = {'all heads': sep.separation_ratios(problems, z)[1]}",
        "    for i, head in enumerate(right):",
        "        found[f'head {i}'] = sep.inside_ratios(problems, head[:, : max(ks)], ks)",
        "    rows += [(block, part, k, v) for part, own in found.items() for k, v in zip(ks, own)]",
        "table = pl.DataFrame(rows, schema=['layer', 'part', 'k', 'value'], orient='row')",
    ]
    return "\n".join(lines)


def every_energy(opened: Opened, model: str, selection: Selection, pooling: str) -> str:
    """Language energy of every block at the selected k."""
    lines = [
        *_every(opened, model, selection, pooling),
        "    rows.append((block, language_energy(problems, bases).ratio.estimate[0]))",
        "table = pl.DataFrame(rows, schema=['layer', 'value'], orient='row')",
    ]
    return "\n".join(lines)
