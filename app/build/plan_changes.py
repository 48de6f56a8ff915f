"""What a model changes of its study's first one, as far as files' headers tell without any weight."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.study.study import ModelSpec, Study
from engine.weights.names import Names, unmatched

__all__ = ["Change", "changes"]

LORA = {".lora_A.weight": 0, ".lora_B.weight": 1}
HEADER_BYTES = 1 << 26
"""A header longer than this is no adapter's."""


@dataclass(frozen=True)
class Change:
    """Tensors of a model that differ from the first model's.

    Attributes:
        ranks: of those that change in a low rank, which is known. dense: those that change otherwise.
        related: whether the models have the same tensors, so that differences are kept.
    """

    ranks: Mapping[str, int]
    dense: frozenset[str]
    related: bool = True

    def touches(self, *names: str | None) -> bool:
        """Whether one of these tensors changes."""
        return any(name in self.dense or name in self.ranks for name in names)


def changes(study: Study, names: Mapping[str, Names]) -> dict[str, Change]:
    """Every model but the first, and every contrast: what it changes. What no header tells is all tensors."""
    first, *others = study.models
    found = {
        name: _change(study.models[first], study.models[name], names[first], names[name]) for name in others
    }
    found[first] = Change({}, frozenset())
    for name, spec in study.contrasts.items():
        plus, minus = found[spec.plus], found[spec.minus]
        dense = plus.dense | minus.dense
        tensors = {*plus.ranks, *minus.ranks} - dense
        ranks = {tensor: plus.ranks.get(tensor, 0) + minus.ranks.get(tensor, 0) for tensor in tensors}
        found[name] = Change(ranks, dense, plus.related and minus.related)
    return {name: change for name, change in found.items() if name != first}


def _change(base: ModelSpec, spec: ModelSpec, ours: Names, theirs: Names) -> Change:
    parameters = list(theirs.shapes)
    every = Change({}, frozenset(parameters), not unmatched(ours, theirs))
    bare = {"adapter": None, "adapter_revision": None, "tokenizer": None}
    same = base.model_copy(update=bare) == spec.model_copy(update=bare) and base.adapter is None
    if not same:
        return every
    if spec.adapter is None:
        return Change({}, frozenset())
    header = _header(spec.adapter)
    return every if header is None else _adapted(header, parameters)


def _header(adapter: str | Path) -> dict[str, Any] | None:
    """The header of an adapter's safetensors file, None for one that isn't there to be read."""
    path = Path(adapter) / "adapter_model.safetensors"
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            found = json.loads(file.read(length)) if length <= HEADER_BYTES else None
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _adapted(header: Mapping[str, Any], parameters: list[str]) -> Change:
    """Parameters that an adapter's tensors name; those of LoRA's two factors alone in a known rank."""
    modules = {parameter.rpartition(".")[0] for parameter in parameters}
    kinds: dict[str, set[str]] = {}
    ranks: dict[str, int] = {}
    for key, about in header.items():
        if key == "__metadata__":
            continue
        path = key.removeprefix("base_model.model.")
        inside = [module for module in modules if path.startswith(f"{module}.")]
        if not inside:
            continue
        owner = f"{max(inside, key=len)}.weight"
        suffix = next((s for s in LORA if path.endswith(s)), path)
        kinds.setdefault(owner, set()).add(suffix)
        if suffix in LORA:
            ranks[owner] = int(about["shape"][LORA[suffix]])
    low = {owner for owner, found in kinds.items() if found == set(LORA)}
    return Change({owner: ranks[owner] for owner in sorted(low)}, frozenset(kinds) - low)
