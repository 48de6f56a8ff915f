"""Parts of a two-language study, each by the rules of the page that it links to.

Nothing is concluded here: a part's words are those of its page, and two blocks agree when both say the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from app.ard import tables as ard_queries
from app.ard import view as ard_view
from app.ard import words as ard_words
from app.ard.fields import ArdFields
from app.bridge import spaces as bridge_spaces
from app.bridge import tables as bridge_queries
from app.frame import running as live_view
from app.frame import words
from app.frame.call import Progress
from app.frame.opened import Opened
from app.frame.prompts import rows
from app.frame.selection import Selection, changed
from app.geometry import tables as geometry_queries
from app.geometry import weights as geometry
from app.geometry import words as geometry_words
from app.residual_updates import panels as updates
from app.residual_updates import tables as update_queries
from app.z_patching import view as z_patching_view
from app.z_patching import words as z_words
from engine.ard import spectrum as ard_spectrum
from engine.errors import PatchbayError
from engine.residual_updates.numbers import ResidualUpdates

Level = Literal["minimum", "strong", "gold"]
LEVELS: dict[Level, str] = {
    "minimum": "Minimum: does patching Z change what the model answers?",
    "strong": "Strong: does a second way, from activations, lead to the same Z?",
    "gold": "Gold: does it hold at the next block, and what is it like?",
}
PROBLEMS = 15
"""Problems from which on a table of patched answers counts as filled."""
FEW = "too few problems in both languages under these filters"
NOT_FITTED = "not fitted at this block yet"
WHY_EMPTY = (
    "Nothing to sum up yet",
    "This page sums up a study of the same problems in two languages: Z's geometry, residual updates, "
    "answers under patches of Z, fitted lengthscales, the bridge. Its prompts need a `language` and a "
    "`pair_id`, and the store head kernels and the residual stream at every block.",
)


@dataclass(frozen=True)
class Finding:
    """What a page says at one block.

    Attributes:
        key: the conclusion without its figures; two blocks agree when their keys are equal.
        words: the page's own sentence. n: problems (or prompts) that it rests on.
    """

    key: str
    words: str
    n: int


@dataclass(frozen=True)
class Part:
    """One line of the checklist.

    Attributes:
        met: whether it is there (minimum and strong), or holds (gold).
        findings: by block. missing: what is missing, in words; empty where nothing is.
        page, changes: where it is found, and the selection there.
    """

    level: Level
    name: str
    met: bool
    findings: Mapping[int, Finding]
    missing: str
    page: str
    changes: Mapping[str, Any]

    @property
    def agree(self) -> bool | None:
        """Whether all blocks say the same; None with fewer than two."""
        keys = {finding.key for finding in self.findings.values()}
        return len(keys) == 1 if len(self.findings) > 1 else None


def available(opened: Opened) -> bool:
    """Whether the store is one of a two-language study."""
    return geometry.available(opened) and geometry.comparable(opened)


def effective(opened: Opened, selection: Selection) -> Selection:
    """The selection with a k and a block that every page can show; blocks have each their own Z."""
    layers = opened.store.layers(geometry.model_of(selection))
    near = min(layers, key=lambda block: abs(block - selection.layer))
    return dataclasses.replace(geometry.effective(opened, selection), layer=near, layers="one")


def blocks(opened: Opened, selection: Selection) -> list[int]:
    """The selected block and the next, where there is one."""
    layers = opened.store.layers(geometry.model_of(selection))
    return [block for block in (selection.layer, selection.layer + 1) if block in layers]


def each(opened: Opened, selection: Selection, read: Callable[[int], Finding | None]) -> dict[int, Finding]:
    """Findings of the blocks that have one; a block that can't be measured has none."""
    found = {}
    for block in blocks(opened, selection):
        try:
            one = read(block)
        except PatchbayError:
            continue
        if one is not None:
            found[block] = one
    return found


def prepare(opened: Opened, selection: Selection, progress: Progress) -> None:
    """Do what is slow and not there yet, behind progress bars."""
    for block in blocks(opened, selection):
        at = dataclasses.replace(selection, layer=block, ref=block)
        geometry.prepare(opened, at, progress)
        if updates.available(opened):
            updates.prepare(opened, updates.effective(opened, at), progress)


def geometry_part(opened: Opened, selection: Selection) -> Part:
    """Whether Z separates."""
    model, pooling = geometry.model_of(selection), geometry.poolings(opened, selection)[-1]

    def read(block: int) -> Finding:
        found = geometry_queries.measured(
            opened.store, **geometry.place(selection, pooling), layer=block
        ).separation
        at = found.ks.index(selection.k)
        words = geometry_words.separation_title(f"{model}, block {block}, {pooling}", found, selection.k)
        return Finding("separates" if found.separates[at] else "not shown", words, found.n)

    found = each(opened, selection, read)
    missing = "" if selection.layer in found else FEW
    return Part("minimum", "Z geometry", not missing, found, missing, "geometry", {})


def update_of(opened: Opened, selection: Selection, block: int) -> ResidualUpdates:
    chosen = updates.effective(opened, dataclasses.replace(selection, ref=block))
    return update_queries.result(opened.store, **updates.asked(chosen))


def _prompts(opened: Opened, selection: Selection) -> int:
    which = (selection.split, selection.language, selection.category)
    return len(rows(opened.store, which))


def updates_part(opened: Opened, selection: Selection) -> Part:
    """R(ℓ) with the Z of either block."""

    def read(block: int) -> Finding:
        found = update_of(opened, selection, block)
        key = next(
            start for start in ("Z-dominated", "Not shown", "Never") if found.verdict.startswith(start)
        )
        return Finding(key, f"Z of block {block}: {found.verdict.rstrip('.')}", _prompts(opened, selection))

    found = each(opened, selection, read) if updates.available(opened) else {}
    missing = "" if selection.layer in found else updates.WHY_EMPTY[0]
    return Part(
        "minimum", "Residual updates", bool(found), found, missing, "residual_updates", ref(selection)
    )


def ref(selection: Selection) -> dict[str, Any]:
    return {"ref": selection.layer}


Run = tuple[dict[str, Any], dict[str, Any]]


def z_run(opened: Opened, selection: Selection, *, transport: bool = False) -> Run | None:
    """The stored run of patched answers of this model that covers the selected block.

    That with both blocks before one of them, then with most problems, then the newest: never by its verdict.
    """
    wanted, model = blocks(opened, selection), geometry.model_of(selection)
    runs = [
        run
        for run in live_view.runs_of(opened, "z_patching")
        if run[0]["model"] == model
        and selection.layer in run[0]["layers"]
        and (run[0]["vectors"] == "transport") == transport
    ]
    return max(runs, key=lambda r: (sum(b in r[0]["layers"] for b in wanted), r[1]["n"]), default=None)


def verdicts(opened: Opened, selection: Selection, run: Run) -> dict[int, Finding]:
    condition, summary = run
    rates = live_view.opened_run(opened, summary["run_id"]).tables["rates"]
    k = nearest(condition, selection)
    how = f"Z by {condition['basis']}, {condition['mode']}, {condition['vectors']}"

    def read(block: int) -> Finding | None:
        cell = next((v for v in summary["verdicts"] if (v["layer"], v["k"]) == (block, k)), None)
        if cell is None:
            return None
        words = f"{z_words.verdict_title(cell)}. {rates_words(rates, block, k)} ({how})"
        return Finding(f"{cell['word']} {cell['outcome'] or ''}".strip(), words, summary["n"])

    return each(opened, selection, read)


def rates_words(rates: pl.DataFrame, block: int, k: int) -> str:
    """ "Z changes the answer in 60 % (39 to 78) and keeps the language in 95 % (76 to 99); Z⊥ …"."""
    said = []
    for part in ("Z", "Z⊥"):
        here = rates.filter(
            pl.col("layer") == block, pl.col("k") == k, pl.col("part") == part, pl.col("source") == "pair"
        )
        told = {row["metric"]: row for row in here.to_dicts()}
        changed, kept = (_rate(told[name]) for name in ("answer changed", "language preserved"))
        said.append(f"{part} changes the answer in {changed} and keeps the language in {kept}")
    return "; ".join(said)


def _rate(row: Mapping[str, Any]) -> str:
    return words.percent(*(100 * row[name] for name in ("value", "low", "high")))


def link(run: Run, selection: Selection) -> dict[str, Any]:
    """The selection under which the page shows a stored run, at the selected block."""
    changes = z_patching_view.selection_of(run[0], selection)
    return changes | {"z": f"{changes['z']};show:{selection.layer}@{nearest(run[0], selection)}"}


def nearest(condition: Mapping[str, Any], selection: Selection) -> int:
    """The dimension of a run that is closest to the selected one."""
    return int(min(condition["ks"], key=lambda k: abs(k - selection.k)))


def answers_part(opened: Opened, selection: Selection) -> Part:
    """Answers under patches of Z, with their verdict."""
    run = z_run(opened, selection)
    found = {} if run is None else verdicts(opened, selection, run)
    n = found[selection.layer].n if selection.layer in found else 0
    missing = "" if n >= PROBLEMS else f"{n} problems, of {PROBLEMS} or more" if n else "not run yet"
    changes = {} if run is None else link(run, selection)
    return Part("minimum", "Z-patched answers", not missing, found, missing, z_patching_view.PAGE, changes)


def ard_condition(opened: Opened, selection: Selection) -> dict[str, Any] | None:
    """The stored contrastive fit from a cold start that covers most of the blocks at the selected λ."""
    wanted, model = blocks(opened, selection), geometry.model_of(selection)
    runs = [
        condition
        for condition, _ in live_view.runs_of(opened, "ard")
        if (condition["model"], condition["objective"], condition["start"]) == (model, "contrastive", "cold")
        and condition["layer"] in wanted
    ]
    near = [c for c in runs if f"{c['penalty']:g}" == ArdFields.of(selection).penalty] or runs
    return max(near, key=lambda c: (c["component"] == selection.site, c["layer"] == wanted[0]), default=None)


def _fits(opened: Opened, selection: Selection, condition: Mapping[str, Any]) -> dict[int, ard_queries.Fit]:
    """Fits under one setting and λ, by block, as the page shows them together."""
    chosen = changed(selection, **ard_view.selection_of(condition, selection))
    every = ard_view.fits_of(opened, chosen)
    return {layer: fit for (layer, penalty), fit in every.items() if penalty == condition["penalty"]}


def ard_parts(opened: Opened, selection: Selection) -> list[Part]:
    """Fitted lengthscales, and their overlap with Z."""
    condition = ard_condition(opened, selection)
    lengths: dict[int, Finding] = {}
    shared: dict[int, Finding] = {}
    changes: dict[str, Any] = {}
    if condition is not None:
        chosen = changed(selection, rule=ArdFields.rule)
        changes = ard_view.selection_of(condition, chosen) | {
            "layer": chosen.layer,
            "rule": ArdFields.of(chosen).rule,
        }
        fits = _fits(opened, chosen, condition)
        said = dict(zip(fits, ard_queries.adjusted(list(fits.values())), strict=True))
        compared = {
            row["layer"]: row
            for row in ard_queries.overlap_table(opened, list(fits.values()), {}, chosen).to_dicts()
        }

        def length(block: int) -> Finding | None:
            return _length(fits[block], said[block], chosen) if block in fits else None

        def overlap(block: int) -> Finding | None:
            return _overlap(fits[block], compared[block], selection.k) if block in compared else None

        lengths, shared = each(opened, selection, length), each(opened, selection, overlap)
    first = selection.layer in lengths
    none = "no surviving dimensions to compare with Z" if first else NOT_FITTED
    gaps = ("" if first else NOT_FITTED, "" if selection.layer in shared else none)
    return [
        Part("strong", name, not gap, found, gap, ard_view.PAGE, changes)
        for name, found, gap in zip(("Lengthscales", "Overlap with Z"), (lengths, shared), gaps, strict=True)
    ]


def _length(fit: ard_queries.Fit, said: Any, selection: Selection) -> Finding:
    kept, _ = fit.surviving(selection)
    where = f"{fit.condition['model']}, block {fit.layer}, λ = {fit.penalty:g}"
    words = ard_words.spectrum_title(where, said, fit.row, int(kept.sum()), len(kept))
    return Finding(said, words, int(fit.result.summary["n_fitted"]))


def _overlap(fit: ard_queries.Fit, row: Mapping[str, Any], k: int) -> Finding:
    words = ard_words.overlap_title(f"block {fit.layer}", k, [row], str(fit.condition["start"]))
    beyond = row["p_adjusted"] is not None and row["p_adjusted"] < ard_spectrum.LEVEL
    return Finding("beyond chance" if beyond else "not shown", words, int(fit.result.summary["n_fitted"]))


def bridges(opened: Opened, selection: Selection) -> dict[int, Finding]:
    chosen = bridge_spaces.effective(opened, selection)

    def read(block: int) -> Finding:
        at = dataclasses.replace(chosen, layer=block)
        found = bridge_queries.fitted(opened.store, **bridge_spaces.at_block(opened, at))
        words = f"Block {block}, k = {at.k}: {found.words.rstrip('.')}"
        return Finding(found.words.split(":")[0].split(" (")[0], words, found.n)

    return each(opened, selection, read)


def bridge_part(opened: Opened, selection: Selection) -> Part:
    """Whether a linear map leads from one language to the other."""
    found = bridges(opened, selection)
    missing = "" if selection.layer in found else FEW
    return Part("strong", "Bridge", not missing, found, missing, "bridge", {})
