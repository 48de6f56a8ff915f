"""Conclusions about patched answers, behaviour and lengthscales."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.calibration.entry import Entry, Make
from benchmarks.calibration.geometry import basis
from benchmarks.calibration.real import PAIRED, repaired
from engine.ard.fit import Objective, fit_ard
from engine.ard.holdout import hold_out
from engine.ard.spectrum import conclusion, judged, overlap, spectrum, with_least_p
from engine.z_patching import numbers as dissociation
from engine.z_patching.numbers import Changes

Array = NDArray[np.float64]
Rng = np.random.Generator
Outcomes = dict[str, Changes]
Chances = Mapping[str, float]

PARTS = ("z", "rest", "own_z", "own_rest")
PROBLEMS, DRAWS = 20, 4
SMALL, LARGE = 0.05, 0.9


def simulated(rng: Rng, chances: Chances, between: float = 0.0) -> Changes:
    """Problems that differ in how easily they change; draws (and Z, if exchangeable) that differ too.

    Args:
        chances: of each part; "random" and "random_rest" of the draws.
        between: standard deviation over subspaces, on the logistic scale; Z is one of them.
    """
    ease = rng.normal(0, 1, PROBLEMS)

    def drawn(chance: float, moved: bool) -> NDArray[np.bool_]:
        mid = np.log(chance / (1 - chance)) + ease + (between * rng.normal() if moved else 0.0)
        return np.asarray(rng.random(PROBLEMS) < 1 / (1 + np.exp(-mid)))

    given = {part: drawn(chances[part], part in ("z", "rest")) for part in PARTS}
    random = np.stack([drawn(chances["random"], True) for _ in range(DRAWS)])
    rest = np.stack([drawn(chances["random_rest"], True) for _ in range(DRAWS)])
    return Changes(**given, random_z=random, random_rest=rest)


def same(chance: float) -> dict[str, float]:
    """Every part alike."""
    return dict.fromkeys((*PARTS, "random", "random_rest"), chance)


def answers(answer: Chances, language: Chances, between: float = 0.0) -> Make:
    """Simulated outcomes of both kinds."""
    return lambda rng: {
        "answer": simulated(rng, answer, between),
        "language": simulated(rng, language, between),
    }


RANDOM = {**same(SMALL), "rest": LARGE, "random_rest": LARGE}
BROADCAST = {**same(SMALL), "z": LARGE, "own_z": LARGE}
MIRRORED = {**same(SMALL), "rest": LARGE, "own_rest": LARGE}
CONTENT = {**same(SMALL), "z": LARGE}
SCAFFOLD = {**same(SMALL), "rest": LARGE, "random_rest": LARGE}
WEAK = {**same(SMALL), "z": 0.6}

NOTHING: dict[str, Make] = {
    "nothing changes more than chance": answers(same(0.1), same(0.1)),
    "every patch breaks half": answers(same(0.5), same(0.5)),
    "every patch breaks nearly all": answers(same(0.9), same(0.9)),
    "Z is a random subspace": answers(RANDOM, RANDOM),
    "Z is a random subspace, which differ": answers(RANDOM, RANDOM, 1.0),
    "halves that differ": answers(same(0.5), same(0.5), 1.5),
    "broadcasting": answers(BROADCAST, BROADCAST),
    "broadcasting, opposite parts": answers(BROADCAST, MIRRORED),
}
CLAIMS = ("double dissociation", "partial", "one part does both")


def word(outcomes: Outcomes) -> str:
    """The verdict's word."""
    return dissociation.verdict(outcomes).word


class Clouds(NamedTuple):
    """Token clouds of problems in two languages (fitted ones first), and how they are fitted."""

    source: list[Array]
    target: list[Array]
    objective: Objective = "contrastive"
    penalty: float = 0.01
    steps: int = 100
    kinds: list[int] | None = None
    older: bool = False


def clouds(shared: int, d: int = 16, problems: int = 12, tokens: int = 6) -> Make:
    """Means that depend on the problem alone in some dimensions, and on problem and language elsewhere."""

    def make(rng: Rng) -> Clouds:
        mask = np.arange(d) < shared
        common = 2.0 * rng.normal(size=(problems, d))
        both = []
        for _ in range(2):
            means = np.where(mask, common, 2.0 * rng.normal(size=(problems, d)) + rng.normal(size=d))
            both.append([mean + rng.normal(size=(tokens, d)) for mean in means])
        return Clouds(both[0], both[1])

    return make


def of_kinds(shared: int, problems: int = 24, kinds: int = 3) -> Make:
    """The same, where in other dimensions problems of one kind have one mean in both languages."""
    plain = clouds(shared, problems=problems)

    def make(rng: Rng) -> Clouds:
        given: Clouds = plain(rng)
        kind = np.arange(problems) % kinds
        centre = 3.0 * rng.normal(size=(kinds, 16)) * (np.arange(16) >= 10)
        sides = ([x + centre[k] for x, k in zip(one, kind, strict=True)] for one in given[:2])
        return given._replace(source=next(sides), target=next(sides), kinds=kind.tolist())

    return make


def older(make: Make, alone: bool = False) -> Make:
    """The same, from a run that doesn't say how small its p can be; `alone`: a kind has one problem."""

    def made(rng: Rng) -> Clouds:
        given: Clouds = make(rng)
        kinds = list(range(len(given.source))) if alone else given.kinds
        return given._replace(kinds=kinds, older=True)

    return made


def real_clouds(rng: Rng) -> Clouds:
    """A real model's prompts of one template beside others of it; a prompt's states stand for its tokens."""
    one, two = (np.swapaxes(side, 0, 1) for side in repaired(rng, 14, 16))
    return Clouds(list(one), list(two))


def paired(rng: Rng) -> Clouds:
    """The objective that rewards no finite lengthscale, whatever is there."""
    found: Clouds = clouds(6, problems=6)(rng)
    return found._replace(objective="paired", penalty=1.0, steps=250)


def said_bimodal(given: Clouds) -> bool:
    """Fitted on half of the problems, asked of the other half."""
    half = len(given.source) // 2
    fit = fit_ard(
        given.source[:half], given.target[:half], penalty=given.penalty, steps=given.steps, batch_pairs=128
    )
    kinds = given.kinds and given.kinds[half:]
    held = hold_out(fit, given.source[half:], given.target[half:], groups=kinds, draws=199)
    kept: Mapping[str, Any] | None = vars(held)
    if given.older:
        stored = {name: value for name, value in vars(held).items() if name != "least_p"}
        kept = with_least_p(stored, len(set(kinds or [0])))
    kind = spectrum(fit.log_lengthscales).kind
    return conclusion(kind, collapsed=fit.collapsed, p=judged(kept)) in ("bimodal", "graded")


def said_collapsed(given: Clouds) -> bool:
    fit = fit_ard(
        given.source, given.target, objective=given.objective, penalty=given.penalty, steps=given.steps
    )
    return fit.collapsed


def one_group(rng: Rng) -> Array:
    return rng.normal(3.0, 0.7, 64)


def two_groups(rng: Rng) -> Array:
    return np.concatenate([rng.normal(0.0, 0.5, 16), rng.normal(4.0, 0.5, 48)])


def survivors(among: bool) -> Make:
    """Ten of 64 dimensions; six of them where Z has its energy, if wanted."""

    def make(rng: Rng) -> tuple[NDArray[np.bool_], Array]:
        z = basis(rng, 64, 8)
        kept = np.zeros(64, dtype=bool)
        if among:
            kept[np.argsort(-(z**2).sum(axis=1))[:6]] = True
        kept[rng.choice(np.flatnonzero(~kept), 10 - int(kept.sum()), replace=False)] = True
        return kept, z

    return make


def overlap_told(given: tuple[NDArray[np.bool_], Array]) -> bool:
    return overlap(*given).p < 0.05


ENTRIES = (
    Entry(
        "Z-patching",
        "double dissociation, partial, one part does both",
        lambda given: word(given) in CLAIMS,
        NOTHING,
        answers(CONTENT, SCAFFOLD),
    ),
    Entry(
        "Z-patching: double",
        "double dissociation",
        lambda given: word(given) == "double dissociation",
        {
            "Z changes answers, nothing the language": answers(CONTENT, same(SMALL)),
            "Z changes both": answers(CONTENT, CONTENT),
            "Z⊥ changes both": answers(SCAFFOLD, SCAFFOLD),
            "opposite parts, the answer by broadcasting": answers(BROADCAST, SCAFFOLD),
            "opposite parts, the language by broadcasting": answers(CONTENT, MIRRORED),
        },
        answers(CONTENT, SCAFFOLD),
    ),
    Entry(
        "Z-patching: partial",
        "partial",
        lambda given: word(given) == "partial",
        {"nothing changes more than chance": NOTHING["nothing changes more than chance"]},
        answers(WEAK, same(SMALL)),
    ),
    Entry(
        "Z-patching: broadcasting",
        "not separable from broadcasting",
        lambda given: word(given) == "not separable from broadcasting",
        {"a double dissociation": answers(CONTENT, SCAFFOLD)},
        answers(BROADCAST, BROADCAST),
    ),
    Entry(
        "Lengthscales",
        "bimodal, graded (something was found)",
        said_bimodal,
        {
            "languages share nothing": clouds(0),
            "only means of categories are shared": of_kinds(0),
            PAIRED: real_clouds,
            "means of categories, an older run": older(of_kinds(0)),
            "means of twelve categories of one problem each, an older run": older(
                of_kinds(0, kinds=12), alone=True
            ),
        },
        of_kinds(6),
    ),
    Entry(
        "Spectrum", "bimodal", lambda v: spectrum(v).kind == "bimodal", {"one group": one_group}, two_groups
    ),
    Entry("Collapse", "collapsed", said_collapsed, {"shared dimensions": clouds(6, problems=6)}, paired),
    Entry(
        "Overlap",
        "surviving dimensions are those of Z beyond chance",
        overlap_told,
        {"ten random dimensions": survivors(False)},
        survivors(True),
    ),
)
