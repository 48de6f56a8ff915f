"""Titles about similarity, residual updates and behaviour, by the titles' own functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from app.behaviour import words as behaviour_words
from app.frame import words
from app.heads import words as heads_words
from benchmarks.calibration import real
from benchmarks.calibration.clusters import TEMPLATES, many
from benchmarks.calibration.entry import Entry, Make
from engine.behaviour import numbers as behaviour
from engine.behaviour.report import WHOLE
from engine.behaviour.spec import FIGURES
from engine.heads.numbers import rank_correlation
from engine.residual_updates.numbers import residual_updates, update_norms
from engine.similarity import cka

Array = NDArray[np.float64]
Rng = np.random.Generator
LAYERS, PROMPTS = 8, 24
MARGIN = next(figure for figure in FIGURES if not figure.binary)


class Pair(NamedTuple):
    """Rows of two models, (layers, n, d) each, and the template of every prompt where there are several."""

    one: Array
    two: Array
    templates: NDArray[np.intp] | None = None


def models(noise: float, unrelated: int = 0, rotated: bool = False) -> Make:
    """A model and another one: the same up to noise, unrelated in the last blocks, or rotated only."""

    def make(rng: Rng) -> Pair:
        one = rng.normal(size=(LAYERS, PROMPTS, 12))
        two = one + noise * rng.normal(size=one.shape)
        if rotated:
            two = one @ np.linalg.qr(rng.normal(size=(12, 12)))[0]
        if unrelated:
            two[-unrelated:] = rng.normal(size=two[-unrelated:].shape)
        return Pair(one, two)

    return make


def templates_alone(rng: Rng) -> Pair:
    """Unrelated models; prompts of one template have much in common in either."""
    template = np.arange(PROMPTS) % 4
    one, two = (
        2 * rng.normal(size=(LAYERS, 4, 12))[:, template] + rng.normal(size=(LAYERS, PROMPTS, 12))
        for _ in range(2)
    )
    return Pair(one, two, template)


def real_templates(rng: Rng) -> Pair:
    """Two disjoint sets of a real model's prompts, whose categories stand beside each other."""
    found = real.halves(rng, 60, 12)
    sides = [[np.flatnonzero(kinds == kind)[:8] for kind in np.unique(kinds)] for kinds in found.categories]
    sizes = [min(len(a), len(b)) for a, b in zip(*sides, strict=True)]
    one, two = (np.concatenate([at[:n] for at, n in zip(side, sizes, strict=True)]) for side in sides)
    return Pair(found.one[:, one], found.two[:, two], np.repeat(np.arange(len(sizes)), sizes))


def similarity(pair: Pair) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The curve and the null that a title reads: pairings within a template, many templates drawn whole."""
    grams = [[cka.gram(x) for x in side] for side in pair[:2]]
    _, band = cka.bootstrap_curves(*grams, groups=many(pair.templates), n_boot=200)
    null = cka.permutation_null(*grams, roles=pair.templates, n_draws=199)
    layer = np.arange(len(null.high))
    curve = {"layer": layer, "value": band.estimate, "low": band.low, "high": band.high}
    return pl.DataFrame(curve), pl.DataFrame({"layer": layer, "high": null.high})


def cka_words(pair: Pair) -> str:
    return words.cka_title(*similarity(pair), "base", "tuned", "resid")


def said_to_differ(pair: Pair) -> bool:
    return " leaves " in cka_words(pair) or " differs from " in cka_words(pair)


def above_everywhere(pair: Pair) -> bool:
    return "above unrelated pairing everywhere" in cka_words(pair)


def two_languages(first: float, second: float, templates: int = 0) -> Make:
    """Models that differ by this much in either language; half of it is common to a template's prompts."""

    def make(rng: Rng) -> tuple[Pair, Pair]:
        if not templates:
            return models(first)(rng), models(second)(rng)
        return clustered(first, templates)(rng), clustered(second, templates)(rng)

    return make


def clustered(noise: float, templates: int) -> Make:
    """Two models of three prompts from each template, whose noise is as long for all prompts of one."""

    def make(rng: Rng) -> Pair:
        template = np.repeat(np.arange(templates), 3)
        one = rng.normal(size=(LAYERS, templates, 12))[:, template]
        one = one + 0.5 * rng.normal(size=(LAYERS, len(template), 12))
        size = rng.lognormal(0, 0.7, templates)[template][:, None]
        own, shared = rng.normal(size=one.shape), rng.normal(size=(LAYERS, templates, 12))[:, template]
        return Pair(one, one + noise * size * (own + shared), template)

    return make


def more_in_one_language(pairs: tuple[Pair, Pair]) -> bool:
    curves = [
        similarity(pair)[0].with_columns(series=pl.lit(name))
        for pair, name in zip(pairs, ("en", "zh"), strict=True)
    ]
    title = words.language_title(pl.concat(curves), "base", "tuned")
    return title.startswith("base and tuned differ more in")


class Spoken(NamedTuple):
    """Updates (blocks, n, d) of prompts in turn in two languages, and what intervals draw."""

    deltas: Array
    units: NDArray[np.intp]


def updates(stretch: float, templates: int = 0) -> Make:
    """Updates of six blocks in two languages, one of them with more in the first four dimensions.

    `templates`: so many of four pairs each, and in either language a part in Z that the pairs of one share.
    """

    def make(rng: Rng) -> Spoken:
        pairs = 4 * templates if templates else 20
        deltas = rng.normal(size=(6, 2 * pairs, 24))
        units = np.repeat(np.arange(pairs), 2)
        if templates:
            units = units // 4
            own = rng.lognormal(0, 0.5, (6, templates, 2))
            deltas[:, :, :4] *= own[:, units, np.arange(2 * pairs) % 2][:, :, None]
        deltas[3, ::2, :4] *= stretch
        return Spoken(deltas, units)

    return make


def r_differs(given: Spoken) -> bool:
    deltas, units = given
    z = np.eye(24)[:, :4]
    names = np.tile(["en", "zh"], deltas.shape[1] // 2)
    norms = update_norms(list(deltas), z, [4])
    found = residual_updates(norms, 4, languages=names, groups=units, n_boot=300)
    (pair, gap), (low, high) = next(iter(found.differences.items())), found.differences_all["en", "zh"]
    table = {"layer": np.arange(6), "value": gap.estimate, "low": low, "high": high}
    return "R is larger in" in words.difference_title(pl.DataFrame(table), pair, "base")


def lengths(last: float) -> Make:
    """Lengths of six updates at 30 prompts; the last is longer."""
    return lambda rng: rng.lognormal(0, 0.4, (6, 30)) * np.array([1, 1, 1, 1, 1, last])[:, None]


def longest_named(values: Array) -> bool:
    rng = np.random.default_rng(0)
    draws = values[:, rng.integers(0, 30, (300, 30))].mean(axis=2)
    low, high = np.quantile(draws, [0.025, 0.975], axis=1)
    names = [f"{i - 1}→{i}" for i in range(6)]
    table = {"update": names, "series": ["whole"] * 6, "value": values.mean(1), "low": low, "high": high}
    return "the longest at" in words.lengths_title(pl.DataFrame(table), "base")


class Sides(NamedTuple):
    """The same prompts answered by two models; pairs of prompts share their luck."""

    one: Array
    two: Array
    binary: bool


def rates(gap: float) -> Make:
    def make(rng: Rng) -> Sides:
        luck = 0.3 + 0.4 * np.repeat(rng.random(30), 2)
        one, two = (rng.random((2, 60)) < np.stack([luck, luck + gap])).astype(float)
        return Sides(one, two, True)

    return make


def margins(gap: float) -> Make:
    def make(rng: Rng) -> Sides:
        base = np.repeat(rng.normal(size=30), 2)
        one, two = base + 0.5 * rng.standard_t(5, (2, 60))
        return Sides(one, two + gap, False)

    return make


def real_margins(rng: Rng) -> Sides:
    raw, mapped = real.effects(rng, 30)
    return Sides(np.repeat(raw, 2), np.repeat(mapped, 2), False)


def row(sides: Sides) -> dict[str, Any]:
    found = behaviour.difference(sides.one, sides.two, np.arange(60) // 2, binary=sides.binary)
    return {"low": found.interval.low, "high": found.interval.high, "p": found.p}


def differs(sides: Sides) -> bool:
    return behaviour_words.excludes_zero(row(sides))


def ahead(sides: Sides) -> bool:
    """Outcomes of 60 problems in two languages."""
    both = np.stack([sides.one, sides.two], axis=1).ravel()
    pairs = [f"{i // 2}" for i in range(120)]
    found = behaviour.language_asymmetry(both, ["en", "zh"] * 60, pairs)
    one = found[0]
    line = {"languages": ("en", "zh"), "rates": (0.0, 1.0), "pairs": 60, "p": one.p}
    return "is ahead" in behaviour_words.asymmetry("base", [line])


def categories(gap: float, everywhere: bool = False) -> Make:
    """Margins of four categories of 15 pairs under two models; they differ in the first, or in all alike."""

    def make(rng: Rng) -> list[Sides]:
        return [margins(gap if everywhere or number == 0 else 0.0)(rng) for number in range(4)]

    return make


def clearest_named(given: list[Sides]) -> bool:
    def line(part: str, sides: Sequence[Sides]) -> dict[str, Any]:
        one, two = (np.concatenate([getattr(s, side) for s in sides]) for side in ("one", "two"))
        found = behaviour.difference(one, two, np.arange(len(one)) // 2)
        ends = {"value": found.interval.estimate, "low": found.interval.low, "high": found.interval.high}
        return {"part": part, "series": "tuned", **ends, "p": found.p}

    rows = [line(WHOLE, given), *(line(f"category {i}", [sides]) for i, sides in enumerate(given))]
    title = behaviour_words.difference_title(MARGIN, "base", pl.DataFrame(rows))
    return "; clearest for" in title


def predictors(own: float) -> Make:
    """What 16 heads cover, and two predictors of it."""

    def make(rng: Rng) -> tuple[Array, Array, Array]:
        covered = rng.lognormal(0, 1, 16)
        first, second = own * covered + rng.lognormal(0, 1, (2, 16))
        return covered, first, second

    return make


def order_heads(given: tuple[Array, Array, Array]) -> bool:
    found = {}
    for key, values in zip(heads_words.PREDICTORS, given[1:], strict=True):
        one = rank_correlation(values, given[0], n_permutations=999)
        found[key] = {"rho": one.rho, "p": one.p, "reason": one.reason}
    return not heads_words.predictors_title({"correlations": found}).startswith("Neither")


ENTRIES = (
    Entry(
        "CKA: models",
        "tuned leaves base at block …, differs from base",
        said_to_differ,
        {"the same geometry, rotated": models(0.0, rotated=True)},
        models(0.3),
    ),
    Entry(
        "CKA: pairing",
        "above unrelated pairing everywhere",
        above_everywhere,
        {
            "one block of eight is unrelated": models(0.3, 1),
            "all blocks are unrelated": models(0.3, LAYERS),
            real.HALVES: lambda rng: Pair(*real.halves(rng, PROMPTS)[:2]),
            "only means of four templates are shared": templates_alone,
            f"{real.HALVES} within categories": real_templates,
        },
        models(0.3),
    ),
    Entry(
        "CKA: languages",
        "the models differ more in one language",
        more_in_one_language,
        {
            "they differ alike": two_languages(0.5, 0.5),
            "they differ alike, much": two_languages(1.5, 1.5),
            f"alike, {TEMPLATES}": two_languages(0.5, 0.5, 24),
        },
        two_languages(0.3, 1.0),
    ),
    Entry(
        "R(ℓ): languages",
        "R is larger in one language",
        r_differs,
        {"alike": updates(1.0), f"alike, {TEMPLATES}": updates(1.0, 24)},
        updates(2.0),
    ),
    Entry("Lengths", "the longest update", longest_named, {"equally long": lengths(1.0)}, lengths(2.0)),
    Entry("Behaviour: rates", "is higher (lower) than", differs, {"equal rates": rates(0.0)}, rates(0.3)),
    Entry(
        "Behaviour: means",
        "is higher (lower) than",
        differs,
        {"equal means": margins(0.0), real.EFFECTS: real_margins},
        margins(0.5),
    ),
    Entry("Behaviour: languages", "is ahead", ahead, {"equal accuracy": rates(0.0)}, rates(0.3)),
    Entry(
        "Behaviour: clearest",
        "clearest for a category",
        clearest_named,
        {"no difference": categories(0.0), "alike in all categories": categories(0.5, everywhere=True)},
        categories(1.5),
    ),
    Entry(
        "Predictors",
        "a predictor orders the heads as coverage does",
        order_heads,
        {"predictors of nothing": predictors(0.0)},
        predictors(2.0),
    ),
)
