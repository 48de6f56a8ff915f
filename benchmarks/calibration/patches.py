"""Titles of mapped patches and of patches without a map: α is chosen on train, all else is validation's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from app.patching import drill as patch_drill
from app.patching import replacement as patch_view
from app.patching import table as patch_table
from app.patching import words as patch_words
from benchmarks.calibration import real
from benchmarks.calibration.entry import Entry, Make
from engine.lab.noise import kl_floor
from engine.patching.mapped_spec import CONTROLS, MappedPatch
from engine.patching.numbers import ROUNDING, Resampling, best_alpha, correlation, reduction
from engine.patching.spec import Condition
from engine.stats.uncertainty import Interval

Array = NDArray[np.float64]
Rng = np.random.Generator
ALPHAS = (0.5, 0.75, 1.0, 1.25, 1.5)
PROMPTS, PLACES, BOOT = 24, 6, 400


class Swept(NamedTuple):
    """KLs of one site on both splits (n,), and the map's at every amplitude (alphas, n), nats."""

    raw: Array
    mapped: Array
    controls: Mapping[str, Array]


def swept(factor: float, controls: float = 1.5, equal: str = "") -> Make:
    """Prompts that differ much in how far they can be moved.

    Args:
        factor: mean KL of the map over that of moment matching, at every amplitude.
        controls: of the controls, over the map. equal: the one that does as well as the map.
    """

    def make(rng: Rng) -> Swept:
        ease = rng.lognormal(0, 1, 2 * PROMPTS)

        def kl(size: float, *shape: int) -> Array:
            return size * ease * rng.lognormal(0, 0.4, (*shape, 2 * PROMPTS))

        held: dict[str, Array] = {
            kind: kl(factor * (1.0 if kind == equal else controls)) for kind in CONTROLS
        }
        return Swept(kl(1.0), kl(factor, len(ALPHAS)), held)

    return make


def fails_on_some(gain: float = 0.0) -> Make:
    """A map that saves a fifth of KL on most prompts, and on a fifth of them adds four times as much.

    Args:
        gain: share of KL that it saves everywhere beside that.
    """

    def make(rng: Rng) -> Swept:
        raw = rng.lognormal(0, 0.3, 2 * PROMPTS)
        change = np.where(rng.random((len(ALPHAS), 2 * PROMPTS)) < 0.2, 0.8, -0.2)
        mapped = (1 - gain + change) * rng.lognormal(0, 0.3, 2 * PROMPTS)
        return Swept(raw, mapped, dict.fromkeys(CONTROLS, 2 * raw))

    return make


def real_change(controls: float = 2.0) -> Make:
    """Real patches, whose map changes nothing on average.

    Args:
        controls: KL of the controls over moment matching's; at 1 the map does no better than they do.
    """

    def make(rng: Rng) -> Swept:
        raw, mapped = real.effects(rng, 2 * PROMPTS)
        return Swept(raw, np.stack([mapped] * len(ALPHAS)), dict.fromkeys(CONTROLS, controls * raw))

    return make


TRAIN, VALIDATION = slice(0, PROMPTS), slice(PROMPTS, None)


def _span(found: Interval | None) -> dict[str, float] | None:
    if found is None:
        return None
    return {"estimate": found.estimate, "low": found.low, "high": found.high}


def _split(given: Swept, at: int, part: slice, floor: float) -> dict[str, Any]:
    """What a run keeps of a split, by the functions that it uses."""
    how = Resampling(np.arange(PROMPTS), BOOT)
    kl = {"mapped": given.mapped[at], "raw": given.raw, **given.controls}
    worse = {kind: _span(how.mean((kl[kind] - kl["mapped"])[part])) or {} for kind in given.controls}
    less = reduction(given.raw[part], given.mapped[at, part], 1e-6, how, floor)
    return {
        "n_groups": PROMPTS,
        "kl": {kind: _span(how.mean(values[part])) for kind, values in kl.items()},
        "controls": {kind: {**row, "beaten": row["low"] > floor} for kind, row in worse.items()},
        "delta": _span(less.delta),
        "drop": _span(less.drop),
        "reason": less.reason,
    }


def run_of(
    given: Swept, layer: int = 0, rounding: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Condition and summary of a stored run; `rounding` is the models' measured noise."""
    floor = kl_floor(rounding or {})
    at = best_alpha(given.mapped[:, TRAIN], ALPHAS, max(ROUNDING, floor))
    condition = MappedPatch(
        target="tuned", source="base", component="mlp_out", layer=layer, position="decision"
    )
    splits = {"train": _split(given, at, TRAIN, floor), "validation": _split(given, at, VALIDATION, floor)}
    check = {"value": 0.0, "limit": 1e-6}
    interval = {"level": 0.95, "method": "studentised bootstrap", "unit": "prompt"}
    best = {"alpha": ALPHAS[at], "chosen_on": "train"}
    summary = {"splits": splits, "best": best, "self_check": check, "interval": interval}
    summary["rounding"] = dict(rounding or {})
    return condition.to_json(), summary


def said_to_change(given: Swept) -> bool:
    words = patch_words.verdict(*run_of(given))
    return "the map lowers KL" in words or "the map raises KL" in words


def all_beaten(given: Swept) -> bool:
    return "every control disturbs more" in patch_words.verdict(*run_of(given))


def at_places(spread: float, best: float = 1.0) -> Make:
    """Runs at several sites whose map saves as much everywhere; more at the last, if wanted."""

    def make(rng: Rng) -> list[Swept]:
        factors = [spread] * (PLACES - 1) + [spread * best]
        return [swept(factor)(rng) for factor in factors]

    return make


def _runs(given: list[Swept]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [run_of(one, layer) for layer, one in enumerate(given)]


def saves_somewhere(given: list[Swept]) -> bool:
    return "the map saves" in patch_table.top_words(patch_table.ranked(patch_table.table(_runs(given))))


def best_place(given: list[Swept]) -> bool:
    """The first on train is told without any other that is level with it, or above."""
    words = patch_table.top_words(patch_table.ranked(patch_table.table(_runs(given))))
    return words.endswith("the first on train")


def related(strength: float) -> Make:
    """How close prompts are mapped, and what each gains by it."""

    def make(rng: Rng) -> tuple[Array, Array]:
        closeness = rng.beta(8, 2, PROMPTS)
        return closeness, strength * (closeness - 0.8) + rng.lognormal(-1, 0.7, PROMPTS)

    return make


def closeness_tells(given: tuple[Array, Array]) -> bool:
    found = correlation(*given, Resampling(np.arange(PROMPTS), BOOT))
    said = {"spearman": _span(found.spearman), "pearson": _span(found.pearson), "reason": found.reason}
    return patch_drill.cosine_title({"cosine": said}).startswith("Prompts that are mapped closer")


def levels(top: float) -> Make:
    """Mean KLs with their intervals at several places (blocks or amplitudes); the last differs."""

    def make(rng: Rng) -> pl.DataFrame:
        ease = rng.lognormal(0, 0.7, PROMPTS)
        sizes = np.array([1.0] * (PLACES - 1) + [top])
        kl = sizes[:, None] * ease * rng.lognormal(0, 0.4, (PLACES, PROMPTS))
        found = Resampling(np.arange(PROMPTS), BOOT).means(kl)
        columns = {"kl": found.estimate, "low": found.low, "high": found.high, "n": PROMPTS}
        return pl.DataFrame({"layer": range(PLACES), "alpha": np.arange(PLACES) / 2, **columns})

    return make


CONDITION = Condition(
    target="tuned", source="base", component="mlp_out", layer=0, position="decision", alphas=(0.0, 1.0)
)


def one_block(rows: pl.DataFrame) -> bool:
    """A single block is said to be where a patch disturbs most, by either title."""
    rows = rows.with_columns(noise=0.0)
    named = rows.rename({"kl": "kl_raw", "low": "kl_raw_low", "high": "kl_raw_high"})
    panel = patch_view.layer_panel(rows.drop("n", "alpha"), CONDITION, 1.0, "")
    assert panel is not None
    titles = (patch_drill.profile_title(named, CONDITION.to_json()), panel.title)
    return any(f"most at block {layer}:" in title for title in titles for layer in range(PLACES))


ENTRIES = (
    Entry(
        "Mapped",
        "the map lowers (or raises) KL",
        said_to_change,
        {
            "the map disturbs as much as moment matching": swept(1.0),
            "as much on average, much more on a fifth of prompts": fails_on_some(),
            real.EFFECTS: real_change(),
        },
        swept(0.5),
    ),
    Entry(
        "Mapped: controls",
        "every control disturbs more",
        all_beaten,
        {
            **{f"{kind} does as well as the map": swept(0.5, equal=kind) for kind in ("bogus", "mean")},
            real.EFFECTS: real_change(1.0),
        },
        swept(0.5, controls=2.0),
    ),
    Entry(
        "Mapped: saves",
        "the map saves … at …, the first on train",
        saves_somewhere,
        {
            "it saves nothing at any of six sites": at_places(1.0),
            real.EFFECTS: lambda rng: [real_change()(rng) for _ in range(PLACES)],
        },
        at_places(0.5),
    ),
    Entry(
        "Mapped: best site",
        "the first on train, with no other level with it or above",
        best_place,
        {"it saves as much at all six": at_places(0.5), "nothing at all six": at_places(1.0)},
        at_places(2.0, 0.05),
    ),
    Entry(
        "Mapped: cosine",
        "prompts that are mapped closer gain more (or less)",
        closeness_tells,
        {"unrelated": related(0.0)},
        related(5.0),
    ),
    Entry(
        "Patch: blocks",
        "the patch matters most at block …",
        one_block,
        {"six blocks alike": levels(1.0)},
        levels(4.0),
    ),
)
