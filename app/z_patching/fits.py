"""Stored fits of lengthscales that can span Z for Z-patching, and which one a selection means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app import screen
from app.frame import running as live_view
from app.frame.opened import Opened
from engine.ard.spec import Ard
from engine.z_patching.spec import ZPatching


@dataclass(frozen=True)
class Family:
    """Fits that differ in their block alone.

    Attributes:
        first: one of them. runs: run id by block.
    """

    first: Ard
    runs: dict[int, str]

    @property
    def text(self) -> str:
        """ "contrastive, λ = 0.01, cold start; blocks 2, 4"."""
        fit = self.first
        parts = [fit.objective, f"λ = {fit.penalty:g}", fit.start_text()]
        parts += [] if fit.category is None else [f"category {fit.category}"]
        where = ", ".join(map(str, sorted(self.runs)))
        return f"{', '.join(parts)}; block{'s' if len(self.runs) > 1 else ''} {where}"


def key_of(fit: Ard) -> str:
    """Names a fit's settings, whatever its block, in a link."""
    return fit.model_copy(update={"layer": 0}).content_hash("")[:12]


def families(opened: Opened, model: str, site: str, languages: Sequence[str]) -> list[Family]:
    """Stored fits of a model at a site for two languages; of the most blocks first, then the newest."""
    found: dict[Ard, dict[int, str]] = {}
    for condition, summary in live_view.runs_of(opened, "ard"):
        fit = Ard.from_json(condition)
        about = fit.model == model and fit.component == site and set(fit.languages) == set(languages)
        if about and fit.start != "random":
            found.setdefault(fit.model_copy(update={"layer": 0}), {})[fit.layer] = str(summary["run_id"])
    made = [Family(fit.model_copy(update={"layer": min(runs)}), runs) for fit, runs in found.items()]
    return sorted(made, key=lambda family: -len(family.runs))


def chosen(known: Sequence[Family], key: str) -> Family | None:
    """The family of these settings; the first where there is none; None without any."""
    own = (family for family in known if key_of(family.first) == key)
    return next(own, known[0] if known else None)


def lengthscales(
    opened: Opened, model: str, site: str, languages: Sequence[str], layer: int, key: str
) -> Ard:
    """The fit that spans Z at a block: of the chosen family, or with a first fit's settings without any."""
    family = chosen(families(opened, model, site, languages), key)
    if family is None:
        both = (min(languages), max(languages))
        return Ard(model=model, component=site, layer=layer, languages=both)  # type: ignore[arg-type]
    return family.first.model_copy(update={"layer": layer})


def missing(opened: Opened, wanted: ZPatching) -> list[Ard]:
    """Fits that have to be run before Z is known."""
    return [fit for fit in wanted.fits() if live_view.stored(opened, fit) is None]


def ask_first(opened: Opened, left: Sequence[Ard]) -> None:
    """What is missing, and the button that fits it."""
    blocks = ", ".join(str(fit.layer) for fit in left)
    word = "blocks" if len(left) > 1 else "block"
    screen.info(
        f"Z is spanned by dimensions of smallest lengthscale, which are not fitted yet at {word} {blocks} "
        f"({left[0].objective}, λ = {left[0].penalty:g}, {left[0].start_text()}). Fit them here, or choose "
        "other settings on the page ARD-MMD.",
        icon=":material/straighten:",
    )
    live_view.run_button(opened, left, f"Fit lengthscales at {word} {blocks}", key="fits")


def offered(opened: Opened, wanted: ZPatching) -> dict[str, str]:
    """Stored fits that may span Z, in words, by key."""
    known = families(opened, wanted.model, wanted.site, (wanted.target_language, wanted.source_language))
    return {key_of(family.first): family.text for family in known}
