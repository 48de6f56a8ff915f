"""Subsets of a block's heads in one sweep: what each head is replaced by, and the KL of every subset."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from engine.errors import PatchError
from engine.heads.numbers import Heads
from engine.heads.spec import HeadSubsets
from engine.lab.experiment import Lab, check_site, train_rows
from engine.models.sites import Site
from engine.models.taps import LayerTaps
from engine.passes.patch_engine import PatchEngine
from engine.stats.moments import fit_moments, match_moments

Parts = Float[np.ndarray, "n parts width"]


@dataclass
class HeadSwap:
    """One block's heads of the target on n prompts, each with what the source puts in its place.

    Attributes:
        engine: of the target, over the n prompts. site: all heads of the block.
        own, replacement: (n, parts, width) float32; part h is head h, of width d_h for head_z and d for
            head_out. Where the two models' output projections have different biases, literal head_out has one
            part more: the bias, which belongs to no head but to the whole.
        total: (n, width) what the site holds now; for head_out, the sum without the bias.
        n_heads: heads of the block.
        self_kl: largest |KL| of the own activation put back, once something was run.
    """

    engine: PatchEngine
    site: Site
    own: Parts
    replacement: Parts
    total: Float[np.ndarray, "n width"]
    n_heads: int
    self_kl: float = 0.0
    _known: dict[Heads, Float[np.ndarray, " n"]] = field(default_factory=dict)

    @property
    def everything(self) -> Heads:
        """All heads, with the bias where it differs: what the attention adds to the stream."""
        return Heads(range(self.own.shape[1]))

    @property
    def n_known(self) -> int:
        """Subsets run so far."""
        return len(self._known)

    def notes(self) -> list[str]:
        """Remarks that a reader of coverages needs."""
        if len(self.everything) == self.n_heads:
            return []
        return ["The output biases differ: their difference counts to all heads together, to no single one."]

    def vectors(
        self, subsets: Sequence[Heads], rows: Sequence[int]
    ) -> Float[np.ndarray, "subsets rows width"]:
        """What the site holds with each subset substituted."""
        mask = np.array([[part in subset for part in range(self.own.shape[1])] for subset in subsets])
        own, new = self.own[list(rows)], self.replacement[list(rows)]
        if self.site.component == "head_z":
            mixed = np.where(mask[:, None, :, None], new, own)
            return mixed.reshape(len(subsets), len(rows), -1)
        change = np.einsum("cp,npd->cnd", mask.astype(np.float32), new - own)
        return self.total[list(rows)] + change

    def kl(
        self,
        subsets: Iterable[Heads],
        *,
        reverse_kl: bool = False,
        on_progress: Callable[[int, int], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Float[np.ndarray, "subsets n"]:
        """KL per subset and prompt, nats; those that aren't known yet run in one sweep.

        Raises what `PatchEngine.sweep` raises.
        """
        asked = list(subsets)
        new = [subset for subset in dict.fromkeys(asked) if subset not in self._known]
        if new:
            swept = self.engine.sweep(
                self.site,
                lambda rows: self.vectors(new, rows),
                n_conditions=len(new),
                reverse_kl=reverse_kl,
                on_progress=on_progress,
                should_stop=should_stop,
            )
            self.self_kl = max(self.self_kl, float(swept.self_kl.max()))
            self._known.update(zip(new, swept.kl, strict=True))
        return np.stack([self._known[subset] for subset in asked])

    def output_changes(self) -> Tensor:
        """What each head's substitution changes in the output projection's result, float32 (n, heads, d)."""
        layer = self.engine.taps.layers[self.site.layer]
        change = torch.from_numpy(self.replacement - self.own)[:, : self.n_heads]
        if self.site.component == "head_out":
            return change / layer.multiplier
        return torch.einsum("nhf,hfd->nhd", change, layer.w_o().cpu())


def head_swap(lab: Lab, wanted: HeadSubsets, rows: np.ndarray) -> HeadSwap:
    """Captures what both models hold at the heads of a block, on the given prompts.

    Raises:
        PatchError: the models' heads don't fit each other, or the site doesn't exist in the target.
        SiteError: head_out where a norm follows the attention.
    """
    check_heads(lab, wanted)
    site, values = Site(wanted.component, wanted.layer), Site("head_z", wanted.layer)
    engine = lab.engine(wanted.target, rows, wanted.position, wanted.read_at)
    site.check(engine.taps)
    moments = train_rows(lab.prompts) if wanted.vectors == "raw" else rows[:0]
    union = np.union1d(rows, moments)
    found = _split(lab, wanted.source, lab.activations(wanted.source, values, wanted.position, union))
    own = _split(lab, wanted.target, engine.activations(values, lab.should_stop).numpy())
    target_train = own[:0]
    if moments.size:
        trained = lab.activations(wanted.target, values, wanted.position, moments)
        target_train = _split(lab, wanted.target, trained)
    total = own.reshape(len(own), -1)
    bias = np.zeros(0, dtype=np.float32)
    if wanted.component == "head_out":
        source, target = (_layer(lab, name, wanted.layer) for name in (wanted.source, wanted.target))
        Site("head_out", wanted.layer).check(lab.model(wanted.source).taps)
        found = _contributions(source, found)
        own, target_train = _contributions(target, own), _contributions(target, target_train)
        total = engine.activations(site, lab.should_stop).numpy()
        if wanted.vectors == "literal":  # moment-matched, a constant is the target's own
            bias = _bias(source) - _bias(target)
    new = found[np.searchsorted(union, rows)]
    if moments.size:
        new = _matched(new, found[np.searchsorted(union, moments)], target_train)
    if bias.any():
        own = np.concatenate([own, np.zeros_like(own[:, :1])], axis=1)
        new = np.concatenate([new, np.broadcast_to(bias, new[:, :1].shape)], axis=1)
    return HeadSwap(engine, site, own, new, total, int(lab.sizes(wanted.target)["n_heads"]))


def check_heads(lab: Lab, wanted: HeadSubsets) -> None:
    """PatchError where a head of one model has no counterpart in the other; loads nothing."""
    for name in wanted.models():
        check_site(lab, name, wanted.component, wanted.layer)
    width = "head_dim" if wanted.component == "head_z" else "d"
    target, source = ((int(sizes["n_heads"]), int(sizes[width])) for sizes in map(lab.sizes, wanted.models()))
    if target != source:
        raise PatchError(
            f"The heads of {wanted.source} and {wanted.target} don't correspond at {wanted.component}.",
            expected=f"{target[0]} heads of width {target[1]} ({wanted.target})",
            given=f"{source[0]} of width {source[1]} ({wanted.source})",
            next_step="choose two models of one architecture, or patch attn_out through a transport map.",
        )


def _split(lab: Lab, model: str, values: np.ndarray) -> Parts:
    """(n, heads x d_h) -> (n, heads, d_h)."""
    return np.asarray(values, dtype=np.float32).reshape(len(values), int(lab.sizes(model)["n_heads"]), -1)


def _layer(lab: Lab, model: str, layer: int) -> LayerTaps:
    return lab.model(model).taps.layers[layer]


def _contributions(layer: LayerTaps, z: Parts) -> Parts:
    """What each head adds to the stream, z_h W_O^h, float32 (n, heads, d)."""
    found = torch.einsum("nhf,hfd->nhd", torch.from_numpy(z), layer.w_o().cpu()) * layer.multiplier
    return found.numpy()


def _bias(layer: LayerTaps) -> Float[np.ndarray, " d"]:
    """What the output projection's bias adds to the stream, float32 (d,)."""
    bias = layer.o_bias()
    if bias is None:
        return np.zeros(layer.w_o().shape[-1], dtype=np.float32)
    return (bias.cpu() * layer.multiplier).numpy()


def _matched(x: Parts, source_train: Parts, target_train: Parts) -> Parts:
    """Each dimension of each head brought to the target's mean and spread on the train prompts."""
    flat = [part.reshape(len(part), -1) for part in (x, source_train, target_train)]
    matched = match_moments(flat[0], fit_moments(flat[1]), fit_moments(flat[2]))
    return matched.astype(np.float32).reshape(x.shape)
