"""Answers generated with a subspace of one language's stream put into another's.

A problem comes in two languages. The model answers it in the target language while at one block the part of
its stream inside a subspace Z, outside of it (Z⊥), or all of it is taken from the source-language prompt.
One job runs several blocks and dimensions with all their controls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from engine.ard.spec import Ard
from engine.errors import PatchError
from engine.lab.experiment import EVERYWHERE, Experiment, Split, Where
from engine.texts.languages import EN_BELOW, ZH_ABOVE

Basis = Literal["blocks", "kernels", "ard", "pca", "random"]
BASES: dict[Basis, str] = {
    "blocks": "leading right singular vectors of the heads' stacked unit blocks (k up to the head width)",
    "kernels": "leading eigenvectors of the sum of the heads' kernels, by energy (nested in k)",
    "ard": "the dimensions of smallest lengthscale in a stored fit (ARD-MMD)",
    "pca": "principal components of unpatched token states",
    "random": "a random subspace",
}
Source = Literal["pair", "other", "own"]
"""pair: the same problem in the source language; other: another problem in it; own: the prompt's own mean."""
Which = Literal["Z", "Z⊥", "full"]


@dataclass(frozen=True)
class Patch:
    """One condition: which part of the stream is taken from where.

    Attributes:
        layer: block. k: dimension of Z; None where everything is patched.
        draw: number of the random subspace that stands for Z; None for Z itself.
    """

    layer: int
    k: int | None
    part: Which
    source: Source = "pair"
    draw: int | None = None


class ZPatching(Experiment):
    """One model, one direction (target language ← source language), several blocks and dimensions.

    Attributes:
        layers: blocks. ks: dimensions of Z.
        basis: what spans Z; "blocks" and "kernels" are of the block's own head kernels, key side.
        fold_norm: take those kernels with the gains of the norms in front of them.
        lengthscales: for "ard", the fit at the first block; the others' have the same settings. Read from
            the store, never fitted here.
        site: the stream leaving the block, or entering it.
        mode: "replace" puts the source's vector in every token's place; "shift" adds the difference between
            the source's mean and the prompt's own, so that the tokens keep what tells them apart.
        vectors: the mean over the source prompt's tokens, or for each token a mix by optimal transport.
        scope: the prompt's tokens, or generated ones too.
        problems: pairs drawn from the split, at most.
        draws: random subspaces of each dimension.
        en_below, zh_above: shares of Han that part English, mixed and Chinese texts.
    """

    runner: ClassVar[str] = "engine.z_patching.run:run"

    job: Literal["z_patching"] = "z_patching"
    model: str
    target_language: str
    source_language: str
    layers: tuple[int, ...]
    ks: tuple[int, ...]
    basis: Basis = "blocks"
    fold_norm: bool = False
    lengthscales: Ard | None = None
    site: Literal["resid_post", "resid_pre"] = "resid_post"
    mode: Literal["replace", "shift"] = "replace"
    vectors: Literal["mean", "transport"] = "mean"
    scope: Literal["prompt", "all"] = "prompt"
    split: Split = "all"
    where: Where = EVERYWHERE
    problems: int = Field(default=20, ge=2, le=1000)
    max_new_tokens: int = Field(default=100, ge=1, le=100)
    draws: int = Field(default=4, ge=2, le=20)
    en_below: float = Field(default=EN_BELOW, gt=0, lt=1)
    zh_above: float = Field(default=ZH_ABOVE, gt=0, lt=1)

    @field_validator("layers", "ks")
    @classmethod
    def _ascending(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        ordered = tuple(sorted(set(values)))
        if not ordered or ordered[0] < 0:
            raise PatchError(
                "No block or dimension is named.", expected="whole numbers", given=f"{list(values)}"
            )
        return ordered

    @model_validator(mode="after")
    def _fits_together(self) -> ZPatching:
        if self.ks[0] < 1:
            raise PatchError("A subspace has a dimension.", expected="k ≥ 1", given=f"k = {self.ks[0]}")
        if self.target_language == self.source_language:
            raise PatchError(
                "A patch goes from one language to another.",
                expected="two languages",
                given=f"{self.target_language} ← {self.source_language}",
            )
        if self.vectors == "transport" and (self.mode, self.scope) != ("replace", "prompt"):
            raise PatchError(
                "Optimal transport gives every prompt token its own vector, which replaces it.",
                expected="mode 'replace' and scope 'prompt'",
                given=f"mode {self.mode!r}, scope {self.scope!r}",
                next_step="use the mean to shift, or to go on patching generated tokens.",
            )
        if self.fold_norm and self.basis not in ("blocks", "kernels"):
            raise PatchError(
                "Only head kernels have norms in front of them.",
                expected="basis 'blocks' or 'kernels'",
                given=f"fold_norm with basis {self.basis!r}",
            )
        self._lengthscales_fit()
        return self

    def _lengthscales_fit(self) -> None:
        """The fit is given where it is used, and is about what is patched."""
        fit = self.lengthscales
        if (fit is None) != (self.basis != "ard"):
            raise PatchError(
                "Basis 'ard' is made of a fit of lengthscales.",
                expected="lengthscales with basis 'ard', none with another",
                given=f"basis {self.basis!r}, {'no lengthscales' if fit is None else fit.describe()}",
            )
        if fit is None:
            return
        both = {self.target_language, self.source_language}
        same = (fit.model, fit.component, fit.layer) == (self.model, self.site, self.layers[0])
        if not same or set(fit.languages) != both or fit.start == "random":
            raise PatchError(
                "The fit of lengthscales is not about what is patched.",
                expected=f"{self.model}, {self.site}@{self.layers[0]}, {' and '.join(sorted(both))}, "
                "a start that is not random",
                given=fit.describe(),
            )

    def models(self) -> tuple[str, ...]:
        """The one model."""
        return (self.model,)

    def describe(self) -> str:
        """ "base: en ← zh, Z (kernels) k 16, 32 at resid_post 4, 5, shift"."""
        ks, layers = (", ".join(map(str, values)) for values in (self.ks, self.layers))
        direction = f"{self.target_language} ← {self.source_language}"
        basis = f"{self.basis}, with gains" if self.fold_norm else self.basis
        return f"{self.model}: {direction}, Z ({basis}) k {ks} at {self.site} {layers}, {self.mode}"

    def fits(self) -> list[Ard]:
        """The fit of lengthscales that each block needs; none but for basis "ard"."""
        if self.lengthscales is None:
            return []
        return [self.lengthscales.model_copy(update={"layer": layer}) for layer in self.layers]

    def patches(self) -> list[Patch]:
        """Every condition besides the unpatched one.

        In "shift" mode the prompt's own mean moves nothing: that control is the unpatched answer, and is not
        run. A random subspace of full dimension is everything: "full" has no random control.
        """
        sources: list[Source] = ["pair", "other"] if self.mode == "shift" else ["pair", "other", "own"]
        parts: tuple[Which, Which] = ("Z", "Z⊥")
        found = []
        for layer in self.layers:
            found += [Patch(layer, None, "full", source) for source in sources]
            for k in self.ks:
                found += [Patch(layer, k, part, source) for source in sources for part in parts]
                found += [Patch(layer, k, part, "pair", draw) for draw in range(self.draws) for part in parts]
        return found
