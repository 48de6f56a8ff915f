"""Contrasts of a study: named differences between the weight differences of two of its models."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from engine.names import check_apart, check_key, folded
from engine.spec import Frozen

__all__ = ["ContrastSpec", "check_contrasts"]


class ContrastSpec(Frozen):
    """ΔW of model `plus` − ΔW of model `minus`, both differences from the study's first model."""

    plus: str
    minus: str


def check_contrasts(contrasts: Mapping[str, ContrastSpec], models: Collection[str]) -> None:
    """ValueError, naming the contrast, for a name that can't be used or models that don't make a contrast.

    Args:
        models: the study's models, the first one first.
    """
    first, *others = models
    check_apart(contrasts, "contrast")
    for name, spec in contrasts.items():
        _check_name(name, models)
        for side in ("plus", "minus"):
            given = getattr(spec, side)
            if given not in others:
                raise ValueError(f"{side} of the contrast {name!r} is {_meant(given, first, others)}")
        if spec.plus == spec.minus:
            raise ValueError(f"the contrast {name!r} takes {spec.plus!r} from itself, which leaves nothing")


def _check_name(name: str, models: Collection[str]) -> None:
    check_key(name, "contrast")
    if folded(name) in {folded(model) for model in models}:
        raise ValueError(f"the contrast {name!r} has the name of a model")


def _meant(given: str, first: str, others: Sequence[str]) -> str:
    known = f"one of {', '.join(others)}" if others else "another model of the study, which has one only"
    if given == first:
        return f"{known}: the first model, {first!r}, has no difference from itself"
    return f"{known}: the study has no model {given!r}"
