"""The sweep: every candidate at every layer, built once and scored at any k."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from engine.errors import AnalysisError
from engine.stats.scales import Scales
from engine.subspaces.numbers.building import build
from engine.subspaces.numbers.clean import clean_basis
from engine.subspaces.numbers.inputs import TENSORS, Inputs, Target
from engine.subspaces.numbers.layers import TESTED, Frame, Projections
from engine.subspaces.numbers.ranks import at_ranks
from engine.subspaces.numbers.registry import REGISTRY, Candidate
from engine.subspaces.numbers.scores import AtRank, LeftOut, Scores
from engine.subspaces.numbers.workspace import Workspace

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
    _kept: dict[tuple[int, int], AtRank] = field(default_factory=dict)

    def scores(self, k: int = 8, *, layers: Sequence[int] | None = None, clean: int | None = None) -> Scores:
        """Scores at rank k; see `sweep`."""
        clean = k if clean is None else clean
        if (k, clean) not in self._kept:
            found = at_ranks([self], {k: (clean,)})[0][k]
            while len(self._kept) > 3:  # a slider goes back and forth over a few ranks
                self._kept.pop(next(iter(self._kept)))
            self._kept[k, clean] = found
        return self._kept[k, clean].scores(clean, layers)


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
        on_step: told before each candidate of each weight change is built at a layer how many such steps are
            done, and of how many; what it raises ends the preparation.
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
    done, total = 0, inputs.n_layers * len(out) * len(entries)
    for layer in reversed(range(inputs.n_layers)):  # sums over later layers grow from the last one
        built: dict[int, Array] | None = None
        for prepared in out:
            built = _prepare_layer(prepared, layer, built, partial(_tell, on_step, done, total))
            done += len(entries)
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
        energy = {name: moments[name].inside(together) for name in TENSORS}
        known = {name: moments[name].columns for name in TESTED if moments[name].energy.size}
        scales = {name: Scales.of(columns, np.float32) for name, columns in known.items()}
        projections.put(frame, bases, energy, scales)
    prepared.frames[layer], prepared.projections[layer] = frame, projections
    return bases


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
