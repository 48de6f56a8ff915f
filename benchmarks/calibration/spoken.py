"""The register of everything that is said: each function that words something, with its entries or none.

An analysis may keep its part in a module of its own here: `ROOM`, the folder it speaks of ("app.subspaces"),
`ENTRIES`, and its part of the tables below by the functions' names inside that folder ("words.map_title"). A
function that is found in the source (`scan.speaking`) and stands in no table fails a test.
"""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).parent
ROOMS = [path.stem for path in sorted(HERE.glob("*.py")) if re.search(r"^ROOM = ", path.read_text(), re.M)]
MODULES = [import_module(f"{__package__}.{name}") for name in ROOMS]
OWN: dict[str, ModuleType] = {module.ROOM: module for module in MODULES}
"""The registers that analyses keep themselves, by folder."""


def _own(table: str) -> dict[str, Any]:
    """The analyses' own parts of a table, by the functions' dotted names."""
    parts = ((room, getattr(module, table, ())) for room, module in OWN.items())
    return {
        f"{room}.{name}": part[name] if isinstance(part, dict) else ""
        for room, part in parts
        for name in part
    }


CONCLUDES: dict[str, tuple[str, ...]] = {
    "app.ard.words.held_out_text": ("Lengthscales",),
    "app.ard.words.layers_title": ("Lengthscales: blocks",),
    "app.ard.words.loss_title": ("Collapse",),
    "app.ard.words.overlap_title": ("Overlap: blocks", "Overlap: warm start"),
    "app.ard.words.spectrum_title": ("Lengthscales", "Spectrum", "Collapse"),
    "app.behaviour.words.asymmetry": ("Behaviour: languages",),
    "app.behaviour.words.difference_title": (
        "Behaviour: rates",
        "Behaviour: means",
        "Behaviour: clearest",
        "Rounding: log odds",
    ),
    "app.bridge.words.null_title": ("Bridge",),
    "app.bridge.words.profile_title": ("Bridge: blocks",),
    "app.bridge.words.scores_title": ("Bridge", "Bridge: thin", "Bridge: bound", "Bridge: rotation"),
    "app.prompts.fairness.lengths_title": ("Token counts",),
    "app.geometry.words.convergence_title": ("Convergence",),
    "app.geometry.words.energy_every_title": ("Language energy: blocks",),
    "app.geometry.words.energy_title": ("Language energy",),
    "app.geometry.words.every_title": ("Separation",),
    "app.geometry.words.gates_title": ("Gates",),
    "app.geometry.words.separation_title": ("Separation",),
    "app.geometry.words.structure_title": ("Phases",),
    "app.heads.words.both_title": ("Heads: pairs",),
    "app.heads.words.cells_title": ("Heads: map", "Rounding: heads"),
    "app.heads.words.curve_title": ("Heads",),
    "app.heads.words.kl_title": ("Heads: blocks",),
    "engine.weights.relatedness.verdict": ("Common origin",),
    "app.heads.words.pairs_title": ("Heads: interaction",),
    "app.heads.words.predictors_title": ("Predictors",),
    "app.heads.words.singles_title": ("Heads: alone",),
    "app.heads.words.without_title": ("Heads: needed",),
    "app.patching.drill.cosine_title": ("Mapped: cosine",),
    "app.patching.drill.profile_title": ("Patch: blocks",),
    "app.patching.table.grid_panel": ("Mapped: saves", "Mapped: best site"),
    "app.patching.table.ranking_panel": ("Mapped: saves", "Mapped: best site"),
    "app.patching.table.top_words": ("Mapped: saves", "Mapped: best site"),
    "app.patching.replacement.layer_panel": ("Patch: blocks",),
    "app.patching.replacement.result_title": ("Rounding: patch",),
    "app.patching.words.losers": ("Mapped: controls", "Rounding: map"),
    "app.patching.words.verdict": ("Mapped", "Rounding: map"),
    "app.rank.words.map_title": ("Rounding: rank",),
    "app.rank.words.path_title": ("Rank", "Rank: map", "Rounding: rank"),
    "app.rank.words.projector_title": ("Rank: swap", "Rounding: rank"),
    "app.rank.words.spectrum_title": ("Rank: spectrum",),
    "app.prompts.splits.leakage_title": ("Leakage",),
    "app.steering.words.ablation_title": ("Steering: ablation",),
    "app.steering.words.equal_title": ("Steering: beyond random", "Steering: below random"),
    "app.steering.words.shift_title": (
        "Steering: shift",
        "Steering: beyond random",
        "Steering: below random",
        "Rounding: log odds",
    ),
    "app.synthesis.view.phases_part": ("R(ℓ): phases",),
    "app.synthesis.parts._length": ("Lengthscales", "Spectrum", "Collapse"),
    "app.synthesis.parts._overlap": ("Overlap", "Overlap: blocks"),
    "app.synthesis.parts.bridges": ("Bridge", "Bridge: thin", "Bridge: bound", "Bridge: rotation"),
    "app.synthesis.parts.geometry_part": ("Separation",),
    "app.synthesis.parts.updates_part": ("R(ℓ) against 1", "R(ℓ) against chance"),
    "app.synthesis.parts.verdicts": ("Z-patching", "Z-patching: double", "Z-patching: partial"),
    "app.transport.panels.path_panel": ("Transport",),
    "app.transport.panels.scores_panel": ("Transport",),
    "app.transport.words.map_title": ("Transport",),
    "app.transport.words.table_title": ("Transport: places", "Transport: best place", "Rounding: places"),
    "app.weight_steering.words.curve_title": (
        "Weight steering: rate",
        "Weight steering: mean",
        "Weight steering: opposite",
        "Rounding: log odds",
    ),
    "app.weight_steering.words.equal_title": ("Weight steering: equal KL",),
    "app.weights.words.heads_title": ("Weights: heads",),
    "app.weights.words.spectrum_title": ("Weights: directions",),
    "app.frame.words.cka_title": ("CKA: models", "CKA: pairing", "Rounding: CKA"),
    "app.frame.words.difference_title": ("R(ℓ): languages",),
    "app.frame.words.heatmap_title": ("CKA: blocks",),
    "app.frame.words.language_title": ("CKA: languages",),
    "app.frame.words.lengths_title": ("Lengths",),
    "app.frame.words.split_title": ("R(ℓ): attention and MLP",),
    "app.frame.words.verdict_title": ("R(ℓ) against 1", "R(ℓ) against chance", "Rounding: R(ℓ)"),
    "app.z_patching.words.baseline": ("Z-patching: baseline",),
    "app.z_patching.words.compared_title": ("Z-patching: cells", "Z-patching: differ"),
    "app.z_patching.words.verdict_title": (
        "Z-patching",
        "Z-patching: double",
        "Z-patching: partial",
        "Z-patching: broadcasting",
    ),
    "engine.ard.fit.words": ("Collapse",),
    "engine.ard.spectrum.conclusion": ("Lengthscales", "Lengthscales: blocks"),
    "engine.bridge.numbers.describe": ("Bridge", "Bridge: thin", "Bridge: bound", "Bridge: rotation"),
    "engine.bridge.numbers.words": ("Bridge", "Bridge: thin", "Bridge: bound", "Bridge: rotation"),
    "engine.z_patching.numbers.verdict": (
        "Z-patching",
        "Z-patching: double",
        "Z-patching: partial",
        "Z-patching: broadcasting",
    ),
    "engine.residual_updates.numbers._verdict": ("R(ℓ) against 1", "R(ℓ) against chance", "Rounding: R(ℓ)"),
    "engine.subspaces.numbers.words.conclude": ("Subspace scores", "Subspace scores: mlp_write"),
    "engine.subspaces.numbers.words.headline": ("Subspace scores", "Subspace scores: mlp_write"),
    "engine.transport.evaluate.describe": ("Transport", "Transport: amplitude", "Transport: rotated"),
    **_own("CONCLUDES"),
}
"""What draws a conclusion: the names of its entries."""

RULES: dict[str, str] = {
    "app.ard.words.held_out_text": "engine.ard.spectrum.conclusion",
    "app.ard.words.loss_title": "engine.ard.fit.fit_ard",
    "app.ard.words.spectrum_title": "engine.ard.spectrum.spectrum",
    "app.behaviour.words.difference_title": "app.behaviour.words.excludes_zero",
    "app.bridge.words.null_title": "engine.bridge.numbers.fit_bridge",
    "app.bridge.words.profile_title": "engine.bridge.numbers.profile",
    "app.bridge.words.scores_title": "engine.bridge.numbers.describe",
    "app.geometry.words.convergence_title": "engine.geometry.layers.grassmann_p",
    "app.geometry.words.energy_title": "engine.geometry.language_energy.language_energy",
    "app.geometry.words.every_title": "engine.geometry.separation.separates",
    "app.geometry.words.gates_title": "engine.geometry.layers.weight_alignment",
    "app.geometry.words.separation_title": "engine.geometry.separation.separates",
    "app.geometry.words.structure_title": "engine.geometry.layers.layer_structure",
    "app.heads.words.curve_title": "engine.heads.numbers.is_localised",
    "app.patching.table.grid_panel": "app.patching.table.top_words",
    "app.patching.table.ranking_panel": "app.patching.table.top_words",
    "app.rank.words.path_title": "engine.rank.numbers.smallest_sufficient",
    "app.synthesis.view.phases_part": "app.synthesis.view.told_apart",
    "app.synthesis.parts._length": "engine.ard.spectrum.spectrum",
    "app.synthesis.parts._overlap": "engine.ard.spectrum.overlap",
    "app.synthesis.parts.bridges": "engine.bridge.numbers.describe",
    "app.synthesis.parts.geometry_part": "engine.geometry.separation.separates",
    "app.synthesis.parts.updates_part": "engine.residual_updates.numbers._verdict",
    "app.synthesis.parts.verdicts": "engine.z_patching.numbers.verdict",
    "app.transport.panels.path_panel": "engine.transport.evaluate.describe",
    "app.transport.panels.scores_panel": "engine.transport.evaluate.describe",
    "app.transport.words.map_title": "engine.transport.evaluate.describe",
    "app.frame.words.verdict_title": "engine.residual_updates.numbers._verdict",
    "app.z_patching.words.verdict_title": "engine.z_patching.numbers.verdict",
    "engine.ard.fit.words": "engine.ard.fit.fit_ard",
    **_own("RULES"),
}
"""Where entries ask another function than the one that words its answer: the function that decides."""

FIGURES: dict[str, str] = {
    "app.behaviour.words.level_title": "rates or means with their intervals",
    "app.behaviour.words.shared_title": "two values of one figure",
    "app.bridge.words.map_title": "a share beside that of a matrix without order",
    "app.bridge.words.path_title": "the λ in use, and that it is at an end of the path",
    "app.bridge.words.spectrum_title": "an error beside that of W = 0 and of a random W",
    "app.ard.words.sorted_title": "a count under a threshold",
    "app.prompts.fairness.shared_title": "counts",
    "app.prompts.fairness.unshared_panel": "counts",
    "app.geometry.configurations.configurations_title": "counts beside their expectation by chance",
    "app.geometry.words.heads_title": "a count beside its expectation by chance",
    "app.geometry.words.ranks_title": "a count beside its expectation by chance",
    "app.heads.words.map_title": "the first on train with its value on validation; a floor that is measured",
    "app.overview.panels.disk_panel": "sizes of files",
    "app.overview.panels.prompts_panel": "counts",
    "app.patching.amplitudes.amplitudes_title": "differences with their intervals; none is called the best",
    "app.patching.shared_tokens.shared_title": "differences with their intervals, and a share",
    "app.patching.asymmetry.asymmetry_title": "differences with their intervals",
    "app.patching.words.alpha_title": "the values at both ends with their intervals; none is called the best",
    "app.similarity.contrast.contrast_title": "values at one block, and their difference with its interval",
    "app.weights.differences.title": "exact differences of weights",
    "app.frame.again.verdict": "exact differences of two runs",
    "app.runs.view.kind_title": "a name",
    "app.runs.compare.title": "a difference with its interval",
    "app.prompts.splits.balance_title": "counts",
    "app.steering.spans.spans_title": "values at both ends with their intervals",
    "app.steering.words.cost_title": "a KL with its interval",
    "app.synthesis.view.title": "a count of parts",
    "app.synthesis.parts.rates_words": "rates with their intervals",
    "app.transport.words.penalty_title": "the λ in use",
    "app.transport.words.rank_title": "two values of R²",
    "app.transport.words.spectrum_title": "counts of singular values",
    "app.residual_updates.panels.language_panel": "ranges of R",
    "app.weights.words.blocks_title": "exact differences of weights",
    "app.weights.words.grid_title": "exact differences of weights",
    "app.frame.words.languages_title": "ranges of R",
    "app.z_patching.words.controls_title": "rates",
    "app.z_patching.words.tokens_title": "a probability that the model computes",
    "app.z_patching.words.verdict_caption": "the tests behind the verdict",
    "engine.texts.answers.verdict": "what an answer's text says",
    "app.tokenwise.words.kl_title": "the largest KL of one prompt's tokens, beyond measured rounding noise",
    "app.tokenwise.words.lens_title": "the likeliest tokens of one prompt",
    "app.tokenwise.words.replies_title": "whether two continuations of one prompt are the same words",
    "app.tokenwise.words.states_title": "distances of one prompt's states, beyond measured rounding noise",
    **_own("FIGURES"),
}
"""What tells figures, counts or exact differences only, and why nothing can be wrong by chance."""

PHRASES = frozenset(
    (
        *_own("PHRASES"),
        *("app.tokenwise.view._panel", "app.tokenwise.words.token"),
        *("app.frame.words.label", "app.frame.words.position_said", "app.frame.words.read_said"),
        *("app.ard.words.reason", "app.behaviour.words.amount"),
        *("app.behaviour.words.interval", "app.bridge.words.signed", "app.bridge.words.underdetermined"),
        *("app.geometry.words.p_text", "app.heads.words.heads", "app.heads.words.percent"),
        *("app.heads.words.whole", "app.patching.words.amplitude", "app.patching.words.controls_note"),
        *("app.patching.words.direction", "app.patching.words.edge_note", "app.patching.words.map_note"),
        *("app.patching.words.null_note", "app.patching.words.percent", "app.patching.words.reading"),
        *("app.patching.words.reported", "app.patching.words.site", "app.patching.words.span"),
        *("app.patching.words.tokens", "app.patching.words.unseen", "app.patching.words.visible"),
        "app.rank.words.against",
        "app.weights.words.rounding",
        "app.z_patching.words.seen",
        *("app.rank.words.percent", "app.rank.words.undefined", "app.steering.words.named"),
        *("app.steering.words.odds", "app.steering.words.signed"),
        "app.frame.words.blocks",
        *("app.weight_steering.words.value_of", "app.weight_steering.words.with_span"),
        *(
            "app.frame.words.cka_value",
            "app.frame.words.minus",
            "app.frame.words.nats",
            "app.frame.words.nats_span",
            "app.frame.words.sentence",
            "app.frame.words.unseen",
        ),
        *(
            "app.frame.words.number",
            "app.frame.words.percent",
            "app.frame.words.size",
            "app.frame.words.span",
        ),
        *("app.z_patching.words.basis", "app.z_patching.words.cell", "app.z_patching.words.counts"),
        *("app.z_patching.words.listed", "app.z_patching.words.p_value", "app.z_patching.words.percent"),
        *("app.z_patching.words.setup", "app.z_patching.words.tokens_caption"),
        *("app.z_patching.words.transport_note", "app.transport.words.constant_note"),
    )
)
"""Parts of sentences: numbers, names and settings as text."""
