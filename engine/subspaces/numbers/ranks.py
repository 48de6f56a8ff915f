"""Scores at several ranks, layer by layer: what a rank takes of a layer is given up before the next layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engine.errors import AnalysisError
from engine.subspaces.numbers.building import build, detail
from engine.subspaces.numbers.inputs import TENSORS
from engine.subspaces.numbers.layers import Projections, measures, scales_of, specificity
from engine.subspaces.numbers.scores import AtRank, LeftOut
from engine.subspaces.numbers.workspace import MOMENTS

if TYPE_CHECKING:
    from engine.subspaces.numbers.sweep import Prepared

Array = NDArray[np.float64]
Found = Mapping[str, Array]


def at_ranks(
    prepared: Sequence[Prepared],
    wanted: Mapping[int, Sequence[int]],
    on_layer: Callable[[int, int], None] | None = None,
) -> list[dict[int, AtRank]]:
    """What is found at each rank, for each weight change.

    Args:
        prepared: of the same model and candidates. wanted: rank k -> numbers of clean directions to take out.
        on_layer: told before each layer how many are done, and of how many; what it raises ends the work.

    Raises:
        AnalysisError: a rank or a number of clean directions above `Prepared.widest`.
    """
    for k, cleans in wanted.items():
        widest = prepared[0].widest
        if not 1 <= k <= widest or not all(0 <= clean <= widest for clean in cleans):
            raise AnalysisError(
                "This rank is not prepared.",
                expected=f"1 ≤ k ≤ {widest} and 0 ≤ clean ≤ {widest}",
                given=f"k = {k}, clean = {', '.join(map(str, cleans))}",
            )
    out = [{k: _Rank(one, k, tuple(cleans)) for k, cleans in wanted.items()} for one in prepared]
    order = sorted(prepared[0].frames, reverse=True)  # as when they were prepared
    for done, layer in enumerate(order):
        if on_layer is not None:
            on_layer(done, len(order))
        built = _Built({}, {})
        for one, ranks in zip(prepared, out, strict=True):
            _add_layer(one, ranks, layer, built)
        prepared[0].inputs.cache.drop_above(layer)
    prepared[0].inputs.cache.drop_above(-1)
    return [{k: rank.found() for k, rank in ranks.items()} for ranks in out]


@dataclass
class _Built:
    """What doesn't look at the weight change, by rank and candidate."""

    bases: dict[tuple[int, int], Array]
    details: dict[tuple[int, int], Array | None]


@dataclass
class _Rank:
    """One rank of one weight change; layers come in from the last to the first."""

    prepared: Prepared
    k: int
    cleans: tuple[int, ...]
    measures: list[Found] = field(default_factory=list)
    specific: list[dict[int, Found]] = field(default_factory=list)
    details: dict[str, list[Array]] = field(default_factory=dict)
    left_out: dict[str, LeftOut] = field(default_factory=dict)

    def bases(self, layer: int, built: _Built) -> dict[int, Array]:
        """Bases that are not nested, by candidate."""
        one, found = self.prepared, {}
        for index, entry in enumerate(one.candidates):
            if entry.nested or entry.name in one.left_out or entry.name in self.left_out:
                continue
            place = (self.k, index)
            basis = built.bases.get(place)
            if basis is None or entry.axis_kind == "ceiling":
                basis = build(entry, one.inputs, layer, self.k, self.left_out)
                if basis is None:
                    continue
                shown = detail(entry, one.inputs, layer, self.k, self.left_out)
                if entry.name in self.left_out:
                    continue
                built.bases[place], built.details[place] = basis, shown
            found[index] = basis
            shown = built.details[place]
            if shown is not None:
                self.details.setdefault(entry.name, []).insert(0, shown)
        return found

    def found(self) -> AtRank:
        one, k = self.prepared, self.k
        left_out = one.left_out | self.left_out
        there = [i for i, entry in enumerate(one.candidates) if entry.name not in left_out]
        order = sorted(one.frames)
        frames = [one.frames[layer] for layer in order]

        def stacked(found: Sequence[Found]) -> dict[str, Array]:
            return {name: np.stack([one[name][there] for one in found[::-1]], axis=1) for name in found[0]}

        return AtRank(
            candidates=tuple(one.candidates[i].described() for i in there),
            measures=stacked(self.measures),
            specific={clean: stacked([each[clean] for each in self.specific]) for clean in self.cleans},
            layers=np.array(order),
            changed=tuple(frame.layer for frame in frames if frame.spectra["combined"].size),
            ceilings={which: np.array([frame.ceiling(which, k)[k] for frame in frames]) for which in MOMENTS},
            details={name: np.array(rows) for name, rows in self.details.items() if name not in left_out},
            left_out=tuple(left_out.values()),
            k=k,
            broad=one.inputs.broad,
            d=one.inputs.d,
            target=one.inputs.target.name,
        )


def _add_layer(one: Prepared, ranks: Mapping[int, _Rank], layer: int, built: _Built) -> None:
    """Scores a layer at every rank; its weight change is read once.

    Each rank has its own products, so that no number depends on which others are asked for.
    """
    frame, whole = one.frames[layer], one.projections[layer]
    bases = {k: rank.bases(layer, built) for k, rank in ranks.items()}
    change = one.inputs.delta_columns(layer) if any(bases.values()) else {}
    scales = scales_of(frame.rows, change) if any(bases.values()) else {}
    for k, rank in ranks.items():
        narrow = whole.narrowed(k)
        wide = {index: basis for index, basis in bases[k].items() if basis.shape[1] > k}
        fitting = {index: basis for index, basis in bases[k].items() if index not in wide}
        if fitting:
            together = np.concatenate(list(fitting.values()), axis=1)
            narrow.put(frame, fitting, tensor_energy(change, together), scales)
        found = measures(frame, narrow, k)
        specific: dict[int, Found] = {clean: specificity(frame, narrow, clean) for clean in rank.cleans}
        for index, basis in wide.items():
            own = Projections.empty(frame, 1, basis.shape[1])
            own.put(frame, {0: basis}, tensor_energy(change, basis), scales)
            _replace(found, index, measures(frame, own, k))
            for clean, one_specific in specific.items():
                _replace(one_specific, index, specificity(frame, own, clean))
        rank.measures.append(found)
        rank.specific.append(specific)


def _replace(found: Found, index: int, own: Mapping[str, Array]) -> None:
    """Puts one candidate's values, each (1,), in its place among all."""
    for name, values in own.items():
        found[name][index] = values[0]


def tensor_energy(change: Mapping[str, Array], basis: Array) -> dict[str, Array]:
    """Share of each tensor's squared change along every column of a basis; 0 where it isn't changed."""
    energy = {name: np.zeros(basis.shape[1]) for name in TENSORS}
    for name, columns in change.items():
        energy[name] = ((columns.T @ basis) ** 2).sum(axis=0) / np.linalg.norm(columns) ** 2
    return energy
