"""What of a study changes a number, and what differs between two studies."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.similarity.sampling import MOST

__all__ = ["diff_studies", "portable"]

ADDED = ("gguf", "code_sha256", "subfolder", "variant", "quantised")
NOT_IN_FINGERPRINT = ("notes", "name", "folder")


LATER = {
    "template_args": None,
    "prefill": None,
    "answers": None,
    "keep_eos": False,
    "too_long": "refuse",
    "unusable": "refuse",
}
"""Settings of `[prompts]` that studies were once without, and what they were then."""


def diff_studies(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """What differs between two studies (`to_json` dicts), one line each: "key: a's value → b's value".

    Paths, name, notes and devices are left out: they change no number. A file whose content changed is
    named with both hashes.
    """
    left, right = _flat(portable(a)), _flat(portable(b))
    lines = []
    for key in sorted(left.keys() | right.keys()):
        one, two = left.get(key, "(absent)"), right.get(key, "(absent)")
        if one != two:
            lines.append(f"{key}: {_short(one)} → {_short(two)}")
    return lines


def portable(data: Mapping[str, Any]) -> dict[str, Any]:
    """`to_json` without what changes no number: name, notes, folder, device, and paths (their hash stays)."""
    if "imported" in data:  # no study: activations from elsewhere
        return dict(data)
    out = {key: value for key, value in data.items() if key not in NOT_IN_FINGERPRINT}
    content = out.get("content", {})
    out["models"] = {
        name: {
            key: "(local)" if f"models.{name}.{key}" in content else value
            for key, value in spec.items()
            if key not in ("device", "device_map")
            and (value is not None or key not in ADDED)  # as before they were known
        }
        for name, spec in out["models"].items()
    }
    out["model_order"] = list(out["models"])
    if not out.get("contrasts"):
        out.pop("contrasts", None)  # as studies were before contrasts could be named
    if out["capture"].get("similarity_prompts") == MOST:  # as studies were before it could be chosen
        out["capture"] = {k: v for k, v in out["capture"].items() if k != "similarity_prompts"}
    subspaces = out.pop("subspaces", None)
    if subspaces is not None:
        out["subspaces"] = subspaces | {"candidates": None}  # its content stays
    kept = {k: v for k, v in out["prompts"].items() if k not in LATER or v != LATER[k]}
    out["prompts"] = kept | {"files": _portable_sources(out["prompts"])}
    return out


def _portable_sources(prompts: Mapping[str, Any]) -> dict[str, Any]:
    """Prompt sources without their paths; a file's name stays where prompts are called after it."""
    found = {}
    for index, given in enumerate(prompts["files"]):
        source = {"path": given} if isinstance(given, str) else dict(given)
        named = source.get("path") and prompts.get("ids") == "row"
        found[str(index)] = source | {"path": Path(source["path"]).stem if named else None}
    return found


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        out: dict[str, Any] = {}
        for key, item in value.items():
            out |= _flat(item, f"{prefix}.{key}" if prefix else str(key))
        return out
    return {prefix: value}


def _short(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value):
        return f"content {value[:12]}…"
    return str(value)
