"""The sweep: every candidate at every layer, built once and scored at any k."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engine.analysis.subspace_scores.clean import clean_basis
from engine.analysis.subspace_scores.inputs import TENSORS, Inputs, Target
from engine.analysis.subspace_scores.layers import Frame, Projections, measures
from engine.analysis.subspace_scores.registry import REGISTRY, Candidate
from engine.analysis.subspace_scores.scores import LeftOut, Scores
from engine.analysis.subspace_scores.workspace import Workspace
from engine.errors import AnalysisError

Array = NDArray[np.float64]


def sweep(
    inputs: Inputs,
    candidates: Iterable[str] | Mapping[str, Candidate] | None = None,
    *,
    k: int = 8,
    broad: int = 64,
    layers: Sequence[int] | None = None,
    clean: int | None = None,
) -> Scores:
    """Scores candidates against the weight change of `inputs.target`.

    Args:
        candidates: names from the registry, or entries by name; all of the registry by default.
        k: rank of the subspaces. broad: rank of the subspaces that some are taken away from.
        layers: averaged in the summary; those with a weight change by default.
        clean: number of clean principal directions that specificity takes out; k by default.

    Raises:
        AnalysisError: ranks or layers that the model doesn't have, or unknown candidates. What goes wrong
            inside a candidate ends up in `Scores.left_out`.
    """
    prepared = prepare(inputs, candidates, widest=k if clean is None else max(k, clean), broad=broad)
    return prepared.scores(k, layers=layers, clean=clean)


@dataclass
class Prepared:
    """Bases of all candidates held against one weight change; `scores` is quick for every k up to `widest`.

    Attributes:
        inputs: shared intermediates. candidates: all that were asked for. frames, projections: per layer.
        left_out: candidates without scores, and why. widest: largest k.
    """

    inputs: Workspace
    candidates: tuple[Candidate, ...]
    frames: dict[int, Frame]
    projections: dict[int, Projections]
    left_out: dict[str, LeftOut]
    widest: int
    _at_k: dict[int, tuple[dict[int, Projections], dict[str, Array]]] = field(default_factory=dict)

    def scores(self, k: int = 8, *, layers: Sequence[int] | None = None, clean: int | None = None) -> Scores:
        """Scores at rank k; see `sweep`."""
        clean = k if clean is None else clean
        if not 1 <= k <= self.widest or not 0 <= clean <= self.widest:
            raise AnalysisError(
                "This rank is not prepared.",
                expected=f"1 ≤ k ≤ {self.widest} and 0 ≤ clean ≤ {self.widest}",
                given=f"k = {k}, clean = {clean}",
            )
        projections, details = self._narrowed(k)
        order = sorted(self.frames)
        by_layer = [measures(self.frames[layer], projections[layer], k, clean) for layer in order]
        there = [i for i, entry in enumerate(self.candidates) if entry.name not in self.left_out]
        tables = {name: np.stack([found[name][there] for found in by_layer], axis=1) for name in by_layer[0]}
        return Scores.of(
            candidates=tuple(self.candidates[i] for i in there),
            tables=tables,
            layers=np.array(order),
            averaged=self._averaged(layers),
            k=k,
            broad=self.inputs.broad,
            clean=clean,
            ceilings={
                which: np.array([self.frames[layer].ceiling(which, k)[k] for layer in order])
                for which in self.frames[order[0]].spectra
            },
            d=self.inputs.d,
            details=details,
            left_out=tuple(self.left_out.values()),
            target=self.inputs.target.name,
        )

    def _averaged(self, layers: Sequence[int] | None) -> NDArray[np.int64]:
        if layers is None:
            changed = [layer for layer, frame in self.frames.items() if frame.spectra["combined"].size]
            if not changed:
                raise AnalysisError(
                    "The weight change is zero.",
                    expected="o_proj or down_proj changed in some layer",
                    given="no change",
                    next_step="choose another diff, or pass the layers to average.",
                )
            return np.array(sorted(changed))
        unknown = sorted(set(layers) - set(self.frames))
        if unknown or not len(layers):
            raise AnalysisError(
                "These layers cannot be averaged.",
                expected=f"some of {sorted(self.frames)}",
                given=list(layers),
            )
        return np.array(sorted(set(layers)))

    def _narrowed(self, k: int) -> tuple[dict[int, Projections], dict[str, Array]]:
        """Projections at rank k: columns of nested bases, and the others built anew."""
        if k not in self._at_k:
            narrow = {layer: whole.narrowed(k) for layer, whole in self.projections.items()}
            details: dict[str, list[Array]] = {}
            for layer in sorted(self.frames, reverse=True):
                bases = {}
                for index, entry in enumerate(self.candidates):
                    if entry.nested or entry.name in self.left_out:
                        continue
                    built = build(entry, self.inputs, layer, k, self.left_out)
                    if built is None:
                        continue
                    bases[index] = built
                    if entry.detail is not None:
                        shown = np.full(k, np.nan)
                        found = entry.detail(self.inputs, layer, k)[:k]
                        shown[: len(found)] = found
                        details.setdefault(entry.name, []).insert(0, shown)
                if bases:
                    energy = tensor_energy(self.inputs, layer, np.concatenate(list(bases.values()), axis=1))
                    narrow[layer].put(self.frames[layer], bases, energy)
            while len(self._at_k) > 3:  # a slider goes back and forth over a few ranks
                self._at_k.pop(next(iter(self._at_k)))
            self._at_k[k] = narrow, {name: np.array(rows) for name, rows in details.items()}
        return self._at_k[k]


def prepare(
    inputs: Inputs,
    candidates: Iterable[str] | Mapping[str, Candidate] | None = None,
    *,
    widest: int = 64,
    broad: int = 64,
) -> Prepared:
    """Builds every candidate's basis at every layer for ranks up to `widest`; see `sweep`."""
    return prepare_all(inputs, [inputs.target], candidates, widest=widest, broad=broad)[0]


def prepare_all(
    inputs: Inputs,
    targets: Sequence[Target],
    candidates: Iterable[str] | Mapping[str, Candidate] | None = None,
    *,
    widest: int = 64,
    broad: int = 64,
) -> list[Prepared]:
    """`prepare` for several weight changes; what doesn't look at the change is built once."""
    entries = chosen(candidates)
    d = inputs.d
    if not (1 <= widest <= d and 0 <= broad <= d and inputs.n_layers >= 1):
        raise AnalysisError(
            "The model has no such subspaces.",
            expected=f"ranks up to the width {d}, at least one layer",
            given=f"widest = {widest}, broad = {broad}, {inputs.n_layers} layers",
        )
    first = Workspace(inputs, broad, widest, targets[0])
    spaces = [first, *(Workspace(inputs, broad, widest, target, first.cache) for target in targets[1:])]
    out = [Prepared(space, entries, {}, {}, {}, widest) for space in spaces]
    for entry in entries:
        missing = inputs.missing(entry.needs)
        if missing:
            reason = f"needs {', '.join(missing)}"
            for prepared in out:
                prepared.left_out[entry.name] = LeftOut(entry.name, None, reason)
    for layer in reversed(range(inputs.n_layers)):  # sums over later layers grow from the last one
        built = None
        for prepared in out:
            built = _prepare_layer(prepared, layer, built)
        first.cache.drop_above(layer)
    first.cache.drop_above(-1)
    return out


def _prepare_layer(prepared: Prepared, layer: int, built: Mapping[int, Array] | None) -> dict[int, Array]:
    """Fills in one layer. `built`: bases by position, from a workspace with another target."""
    space, left_out = prepared.inputs, prepared.left_out
    clean = np.zeros((space.d, 0)) if space.raw.clean is None else clean_basis(space, layer, prepared.widest)
    frame, moments = Frame.of(space, layer, clean)
    bases: dict[int, Array] = {}
    for index, entry in enumerate(prepared.candidates):
        if entry.name in left_out or not entry.nested:
            continue
        if built is not None and index in built and entry.axis_kind != "ceiling":
            bases[index] = built[index]
            continue
        basis = build(entry, space, layer, prepared.widest, left_out)
        if basis is not None:
            bases[index] = basis
    projections = Projections.empty(frame, len(prepared.candidates), prepared.widest)
    if bases:
        together = np.concatenate(list(bases.values()), axis=1)
        projections.put(frame, bases, {name: moments[name].inside(together) for name in TENSORS})
    prepared.frames[layer], prepared.projections[layer] = frame, projections
    return bases


def build(
    entry: Candidate, inputs: Workspace, layer: int, k: int, left_out: dict[str, LeftOut]
) -> Array | None:
    """A candidate's basis, or None and an entry in `left_out`: one bad candidate must not stop the sweep."""
    try:
        if entry.shared:
            return inputs.once(f"shared/{entry.name}/{k}", -1, lambda: entry.basis(inputs, 0, k), keep=True)
        return entry.basis(inputs, layer, k)
    except Exception as error:
        reason = str(error) if isinstance(error, AnalysisError) else f"{type(error).__name__}: {error}"
        left_out[entry.name] = LeftOut(entry.name, layer, reason)
        return None


def tensor_energy(inputs: Workspace, layer: int, basis: Array) -> dict[str, Array]:
    """Share of each tensor's squared change along every column of a basis."""
    energy = {name: np.zeros(basis.shape[1]) for name in TENSORS}
    for name, columns in inputs.delta_columns(layer).items():
        energy[name] = ((columns.T @ basis) ** 2).sum(axis=0) / np.linalg.norm(columns) ** 2
    return energy


def chosen(candidates: Iterable[str] | Mapping[str, Candidate] | None) -> tuple[Candidate, ...]:
    """Registry entries by name.

    Raises:
        AnalysisError: none, or a name that isn't registered.
    """
    if isinstance(candidates, Mapping):
        entries = tuple(candidates.values())
    else:
        names = tuple(REGISTRY) if candidates is None else tuple(candidates)
        unknown = [name for name in names if name not in REGISTRY]
        if unknown:
            raise AnalysisError("Unknown candidates.", expected=", ".join(REGISTRY), given=", ".join(unknown))
        entries = tuple(REGISTRY[name] for name in names)
    if not entries:
        raise AnalysisError("There is nothing to score.", expected="at least one candidate", given="none")
    return entries
