"""How much longer a patch takes where it runs whole prompts again, from a store alone. No Streamlit.

A model whose blocks run on packed tokens goes on from the patched token; another one runs every token of the
prompt again from the patched block on (`engine.passes.rerun`). The unpatched prompts are run once in both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from store.reader import Store

__all__ = ["slower", "whole"]

PATCHING = ("patch", "mapped", "rank", "steering", "heads", "head_map")
"""Jobs whose time goes into patched runs."""
ABOVE = 0.5
"""Share of a model's blocks that a patched run runs, in the mean over blocks."""
SAID = "can't be run on packed tokens"
"""In the notes of models of stores that don't say how patches are run."""


def whole(store: Store) -> frozenset[str]:
    """Models of a store whose patches run whole prompts again."""
    found = set()
    for name, info in (store.manifest.get("models") or {}).items():
        said = info.get("patches") or ("whole" if any(SAID in n for n in info.get("notes") or ()) else "")
        if said == "whole":
            found.add(name)
    return frozenset(found)


def slower(store: Store, condition: Mapping[str, Any]) -> float:
    """How many times the tokens of the same experiment on packed tokens it runs; 1 where it doesn't rerun.

    With n tokens a prompt up to the one that is read, m of them from the patched one on, and c patched runs
    of a prompt through a share s of the blocks: (n + c·s·n) / (n + c·s·m).

    Args:
        condition: of an experiment, as `to_json` gives it.
    """
    model = str(condition.get("target"))
    if condition.get("job", "patch") not in PATCHING or model not in whole(store):
        return 1.0
    tokens, tail = _tokens(store, model, condition)
    work = ABOVE * _runs(condition)
    return tokens / tail if math.isinf(work) else (1 + work) / (1 + work * tail / tokens)


def _runs(condition: Mapping[str, Any]) -> float:
    """Patched runs of a prompt: amplitudes × ranks; without end where an experiment makes many of its own."""
    if condition.get("job", "patch") not in ("patch", "mapped", "rank"):
        return math.inf
    return float(len(condition.get("alphas") or (1,)) * len(condition.get("ks") or (1,)))


def _tokens(store: Store, model: str, condition: Mapping[str, Any]) -> tuple[float, float]:
    """Tokens of all prompts up to the one that is read, and of these from the patched one on."""
    lengths = store.tokens(model)["token_ids"].list.len().to_numpy().astype(float)
    places = store.table(f"positions-{model}")
    position = condition.get("position")
    at = places[position].list.first().to_numpy() if position in places.columns else lengths - 1
    reads = at if condition.get("read_at") == "patched" else lengths - 1
    return float((reads + 1).sum()), float((reads - at + 1).sum())
