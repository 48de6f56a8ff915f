"""The sweep: every candidate at every layer, built once and scored at any k."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.analysis.subspace_scores.clean import clean_basis
from engine.analysis.subspace_scores.inputs import TENSORS, Inputs, Target
from engine.analysis.subspace_scores.layers import Frame, Projections, measures, specificity
from engine.analysis.subspace_scores.registry import REGISTRY, Candidate
from engine.analysis.subspace_scores.scores import AtRank, LeftOut, Scores
from engine.analysis.subspace_scores.workspace import MOMENTS, Workspace
from engine.errors import AnalysisError, JobError

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
    _at_k: dict[int, _Narrow] = field(default_factory=dict)

    def scores(self, k: int = 8, *, layers: Sequence[int] | None = None, clean: int | None = None) -> Scores:
        """Scores at rank k; see `sweep`."""
        clean = k if clean is None else clean
        return self.at(k, (clean,)).scores(clean, layers)

    def at(self, k: int, cleans: Sequence[int]) -> AtRank:
        """What is found at rank k, with each of these numbers of clean directions taken out."""
        if not 1 <= k <= self.widest or not all(0 <= clean <= self.widest for clean in cleans):
            raise AnalysisError(
                "This rank is not prepared.",
                expected=f"1 ≤ k ≤ {self.widest} and 0 ≤ clean ≤ {self.widest}",
                given=f"k = {k}, clean = {', '.join(map(str, cleans))}",
            )
        narrow, order = self._narrowed(k), sorted(self.frames)
        left_out = self.left_out | narrow.left_out
        there = [i for i, entry in enumerate(self.candidates) if entry.name not in left_out]
        each = [(self.frames[layer], narrow.projections[layer]) for layer in order]

        def stacked(found: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
            return {name: np.stack([one[name][there] for one in found], axis=1) for name in found[0]}

        return AtRank(
            candidates=tuple(self.candidates[i].described() for i in there),
            measures=stacked([measures(frame, at, k) for frame, at in each]),
            specific={
                clean: stacked([specificity(frame, at, clean) for frame, at in each]) for clean in cleans
            },
            layers=np.array(order),
            changed=tuple(layer for layer in order if self.frames[layer].spectra["combined"].size),
            ceilings={
                which: np.array([frame.ceiling(which, k)[k] for frame, _ in each]) for which in MOMENTS
            },
            details={name: np.array(rows) for name, rows in narrow.details.items() if name not in left_out},
            left_out=tuple(left_out.values()),
            k=k,
            broad=self.inputs.broad,
            d=self.inputs.d,
            target=self.inputs.target.name,
        )

    def forget(self, k: int) -> None:
        """Gives up what is kept of a rank in case that it is asked for again."""
        self._at_k.pop(k, None)
        self.inputs.cache.drop(None, "basis/")

    def _narrowed(self, k: int) -> _Narrow:
        """Rank k: columns of nested bases, and the others built anew."""
        if k not in self._at_k:
            narrow = _Narrow({layer: whole.narrowed(k) for layer, whole in self.projections.items()})
            for layer in sorted(self.frames, reverse=True):
                bases = {}
                for index, entry in enumerate(self.candidates):
                    if entry.nested or entry.name in self.left_out or entry.name in narrow.left_out:
                        continue
                    built = build(entry, self.inputs, layer, k, narrow.left_out)
                    if built is not None:
                        bases[index] = built
                        _add_details(narrow, entry, self.inputs, layer, k)
                if bases:
                    energy = tensor_energy(self.inputs, layer, np.concatenate(list(bases.values()), axis=1))
                    narrow.projections[layer].put(self.frames[layer], bases, energy)
            while len(self._at_k) > 3:  # a slider goes back and forth over a few ranks
                self._at_k.pop(next(iter(self._at_k)))
            self._at_k[k] = narrow
        return self._at_k[k]


@dataclass
class _Narrow:
    """One rank: projections, details (a row for each layer), and candidates that failed at this rank."""

    projections: dict[int, Projections]
    details: dict[str, list[Array]] = field(default_factory=dict)
    left_out: dict[str, LeftOut] = field(default_factory=dict)


def _add_details(narrow: _Narrow, entry: Candidate, inputs: Workspace, layer: int, k: int) -> None:
    """Puts a layer's row in front of those of later layers."""
    detail = entry.detail
    if detail is None:
        return
    space = visible(entry, inputs)
    found = _guarded(
        entry, layer, lambda: np.asarray(detail(space, layer, k), float).ravel(), narrow.left_out
    )
    if found is not None:
        shown = np.full(k, np.nan)
        shown[: len(found)] = found[:k]
        narrow.details.setdefault(entry.name, []).insert(0, shown)


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
    on_step: Callable[[int, int], None] | None = None,
) -> list[Prepared]:
    """`prepare` for several weight changes; what doesn't look at the change is built once.

    Args:
        on_step: told before each candidate is built at a layer how many steps are done, and of how many; what
            it raises ends the preparation.
    """
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
    total = inputs.n_layers * len(entries)
    for layer in reversed(range(inputs.n_layers)):  # sums over later layers grow from the last one
        built: dict[int, Array] | None = None
        before = total - (layer + 1) * len(entries)
        for prepared in out:
            built = _prepare_layer(prepared, layer, built, partial(_tell, on_step, before, total))
        first.cache.drop_above(layer)
    first.cache.drop_above(-1)
    _tell(on_step, total, total, 0)
    return out


def _tell(on_step: Callable[[int, int], None] | None, before: int, total: int, index: int) -> None:
    if on_step is not None:
        on_step(before + index, total)


def _prepare_layer(
    prepared: Prepared, layer: int, built: Mapping[int, Array] | None, on_entry: Callable[[int], None]
) -> dict[int, Array]:
    """Fills in one layer. `built`: bases by position, from a workspace with another target."""
    space, left_out = prepared.inputs, prepared.left_out
    clean = np.zeros((space.d, 0)) if space.raw.clean is None else clean_basis(space, layer, prepared.widest)
    frame, moments = Frame.of(space, layer, clean)
    bases: dict[int, Array] = {}
    for index, entry in enumerate(prepared.candidates):
        if entry.name in left_out or not entry.nested:
            continue
        on_entry(index)
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
    space = visible(entry, inputs)

    def compute() -> Array:
        if space is inputs:  # a ceiling, other for every weight change
            return entry.basis(space, layer, k)
        if entry.shared:
            return inputs.once(f"shared/{entry.name}/{k}", -1, lambda: entry.basis(space, 0, k), keep=True)
        if entry.nested:
            return entry.basis(space, layer, k)
        return inputs.once(f"basis/{entry.name}/{k}", layer, lambda: entry.basis(space, layer, k))

    return _guarded(entry, layer, compute, left_out)


def visible(entry: Candidate, inputs: Workspace) -> Workspace:
    """What a candidate may look at: ceilings at everything, others not at the weight change."""
    return inputs if entry.axis_kind == "ceiling" else inputs.blind


def _guarded(
    entry: Candidate, layer: int, compute: Callable[[], Array], left_out: dict[str, LeftOut]
) -> Array | None:
    try:
        return compute()
    except JobError:  # cancelled
        raise
    except (Exception, SystemExit) as error:
        reason = str(error) if isinstance(error, AnalysisError) else f"{type(error).__name__}: {error}"
        left_out[entry.name] = LeftOut(entry.name, layer, reason + _where(entry, error))
        return None


def _where(entry: Candidate, error: BaseException) -> str:
    """The line of the candidate's own file that an unforeseen error came from."""
    code = getattr(entry.build, "__code__", None)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if code is not None and frame.filename == code.co_filename]
    if isinstance(error, AnalysisError) or not own:
        return ""
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})"


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
