"""Patching as an analysis, with a transport map and without."""

from __future__ import annotations

import polars as pl

from app.frame import running as live_view
from app.frame.analysis import Analysis, Chapter, Headline, Kind, Planned, Term
from app.frame.chapters import first_of, of_kind
from app.frame.opened import Opened
from app.frame.selection import Selection
from app.frame.stored import per_prompt
from app.live.jobs import JobResult
from app.patching import chapters, summary, view
from app.patching import replacement as patch_view
from app.patching import table as patch_table
from app.patching import words as say
from app.patching.fields import PatchFields
from engine.lab.beside import KEYS

TERMS = (
    Term(
        "KL",
        "How far a patch moves the target's next-token distribution, in nats, averaged over prompts. The "
        "model's own activation must give 0; the limit is in the captions.",
        "KL(patched ‖ unpatched) = Σ_v p̃_v ln(p̃_v / p_v)",
        "Kullback & Leibler 1951",
    ),
    Term(
        "KL_raw",
        "KL when the source's activation is put in after each dimension was brought to the target's mean "
        "and spread on the train split (moment matching).",
    ),
    Term(
        "KL_mapped",
        "KL when the source's activation is put in after it was carried over by a transport map.",
    ),
    Term(
        "ΔKL",
        "What the map saves; negative where it does worse than moment matching.",
        "KL_raw − KL_mapped",
    ),
    Term(
        "drop%",
        "The share of KL_raw that the map saves: a ratio of means over prompts, with a paired bootstrap "
        "interval. Undefined where KL_raw is not above the self-patch limit.",
        "100 · ΔKL / KL_raw",
    ),
    Term(
        "α",
        "Amplitude: multiplies the vector that is put in, or only its deviation from the target's train "
        "mean μ; the captions say which. α auto gives mapped vectors the target's typical length.",
        "α·ŷ, or μ + α(ŷ − μ);  α auto = median ‖y‖/‖ŷ‖ on train",
    ),
    Term(
        "best α",
        "The amplitude with the smallest mean KL_mapped on the train split. Everything said of it is "
        "measured on the validation split, which had no part in the choice.",
        "argmin_α mean_train KL_mapped(α)",
    ),
    Term(
        "controls",
        "bogus: the map of another block; shuffled: a map fitted on wrongly paired prompts; random: the "
        "map followed by a random rotation, same spectrum; mean: the target's train mean; self: its own "
        "activation, which must change nothing.",
    ),
)

FIGURES = {
    "kl_mapped": "KL mapped, nats",
    "kl_raw": "KL moment-matched, nats",
    "reduction": "ΔKL, nats",
    "cosine": "cosine of the mapped activation",
}


def amplitudes(run: JobResult) -> pl.DataFrame:
    """KL of every prompt at every amplitude that was run; runs of before had one, unnamed."""
    if "alpha" not in run.table.columns:
        return per_prompt(run.table, {"kl": "KL, nats"})
    wide = run.table.pivot("alpha", index=[k for k in KEYS if k in run.table.columns], values="kl")
    return wide.rename({c: f"KL at α = {float(c):g}, nats" for c in wide.columns if c not in KEYS})


MAPPED = Kind(
    "mapped",
    "Patching through a transport map",
    "Does a map make the source's activation usable in the target, and does it beat its controls?",
    {"mapped": 0.7},
    patch_table.PAGE,
    patch_table.selection_of,
    patch_table.run_panels,
    finding=lambda run: say.verdict(run.condition, run.summary),
    each=lambda run: per_prompt(run.tables["prompts"], FIGURES),
)
PATCHES = Kind(
    "patching",
    "Patching without a map",
    "What does one model's activation do in the other?",
    {"patch": 1.0},
    patch_view.PAGE,
    patch_view.selection_of,
    patch_view.run_panels,
    each=amplitudes,
)


def headline(opened: Opened, selection: Selection) -> Headline:
    """The mapped patch that saves most on the train split, else the newest patch without a map."""
    return first_of(MAPPED, summary.best_first(selection))(opened, selection) or first_of(PATCHES)(
        opened, selection
    )


PATCHING = Analysis(
    "patching",
    "Patching",
    "What happens to one model's next token when the activation at one site is replaced by the other's?",
    section="Live",
    icon="cable",
    answers=(
        "what does an activation of one model do in the other, raw and mapped? KL of the next token at any "
        "site × layer × position, α sweep, both directions, a ranking of everything run, per prompt"
    ),
    null="bogus, shuffled and random maps, the mean, self-patch; paired bootstrap",
    kinds=(MAPPED, PATCHES),
    planned=(
        Planned(
            "mapped",
            "Patching through the map at every site, block and direction",
            patch_table.experiments,
        ),
    ),
    chapters=(
        Chapter("summary", "Summary", summary.INTRO, summary.summary, part="opening"),
        of_kind(MAPPED, chapters.mapped),
        of_kind(PATCHES, chapters.patches),
    ),
    terms=TERMS,
    empty=live_view.no_token,
    body=view.show,
    deepest=summary.strongest,
    headline=headline,
    fields=PatchFields,
)
