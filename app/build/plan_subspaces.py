"""What subspace scores and weight differences take on the disk, before any weight is loaded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from app.frame.words import size
from engine.errors import StudyError
from engine.passes.cost import BYTES
from engine.study.study import Study
from engine.subspaces.prompts import PERSONAS
from engine.subspaces.weights import weight_shapes
from engine.weights.names import Names, unmatched

if TYPE_CHECKING:
    from app.build.prepare import Prepared

__all__ = ["check_deltas", "delta_bytes", "describe", "subspace_bytes"]


def check_deltas(study: Study, names: Mapping[str, Names]) -> None:
    """StudyError for a weight change of a model that has other tensors than the first one."""
    assert study.subspaces is not None
    first = next(iter(study.models))
    for name in study.subspaces.deltas:
        found = {} if name in study.contrasts else unmatched(names[first], names[name])
        if found:
            some = [f"{tensor} ({problem})" for tensor, problem in list(found.items())[:3]]
            raise StudyError(
                f"subspaces.deltas names {name!r}, which has other tensors than {first!r}.",
                expected=f"models that were made from {first!r}, or contrasts",
                given=", ".join(some) + (f" and {len(found) - 3} more" if len(found) > 3 else ""),
                next_step="leave it out of subspaces.deltas.",
            )


def describe(prepared: Prepared) -> Iterator[str]:
    """A line for each of the two, where the study has any."""
    most = delta_bytes(prepared)
    if most:
        yield f"weight differences, at most: {size(most)} (where every tensor changes in full rank)"
    chosen = prepared.subspaces
    if chosen is not None:
        n, m = len(chosen.fit), len(chosen.evaluate)
        count = len(_deltas(prepared))
        changes = f"{count} weight change{'s' if count != 1 else ''}"
        taken = size(subspace_bytes(prepared))
        yield f"subspace scores: {n} fit and {m} evaluate prompts, {changes}: {taken} before compression"


def delta_bytes(prepared: Prepared) -> int:
    """An upper bound: what every model's difference takes when nothing of it has a low rank.

    Adapters are far below it. Models with other tensors than the first one keep no difference.
    """
    models = prepared.study.models
    first, *others = models
    total = 0
    for name in (*others, *prepared.study.contrasts):
        made_of = prepared.study.contrasts.get(name)
        sides = (name,) if made_of is None else (made_of.plus, made_of.minus)
        if any(unmatched(prepared.names[first], prepared.names[side]) for side in sides):
            continue
        half = all(models[side].dtype == "bfloat16" for side in (first, *sides))
        parameters = sum(p.numel() for p in prepared.shapes[first].model.parameters() if p.ndim <= 2)
        total += parameters * (2 if half else 4)
    return total


def subspace_bytes(prepared: Prepared) -> int:
    """Bytes of all arrays of subspace scores before compression; 0 for a study without [subspaces]."""
    chosen = prepared.subspaces
    if chosen is None:
        return 0
    name = next(iter(prepared.study.models))
    shape, spec = prepared.shapes[name], prepared.study.models[name]
    weights = sum(map(math.prod, weight_shapes(shape, chosen.start is not None).values()))
    rows = 2 * len(chosen.fit) * (1 + len(PERSONAS))
    tokens = sum(len(ids) for persona in PERSONAS for ids in chosen.token_ids(persona))
    labels = len(_deltas(prepared)) * (len(chosen.fit) + len(chosen.evaluate))
    streams = shape.n_layers * ((rows + tokens + labels) * shape.d + tokens)
    return weights * (2 if spec.dtype == "bfloat16" else BYTES["float32"]) + 4 * streams


def _deltas(prepared: Prepared) -> tuple[str, ...]:
    """The weight changes that the study names, or all that will be defined as far as shapes tell."""
    study = prepared.study
    assert study.subspaces is not None
    first, *others = study.models
    own = [m for m in others if not unmatched(prepared.names[first], prepared.names[m])]
    return study.subspaces.deltas or (*own, *study.contrasts)
