"""Which site an array holds, by the names that other tools give their activations."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from engine.errors import StoreError

__all__ = ["KNOWN", "Place", "places"]

Place = tuple[str, int]
"""Component (resid, attn_out, mlp_out, head_z) and block, or state of the residual stream for resid."""

_NUMBER = r"(?P<n>\d+)"
_OWN = re.compile(rf"(?P<site>resid|resid_pre|resid_post|attn_out|mlp_out|head_z)[._/-]?{_NUMBER}")
_HOOK = re.compile(rf"blocks\.{_NUMBER}\.(?:attn\.)?hook_(?P<site>resid_pre|resid_post|attn_out|mlp_out|z)")
_STATES = re.compile(rf"hidden_states[._/-]?{_NUMBER}")
_MODULE = re.compile(
    rf"(?:\w+\.)*(?:layers|h|blocks)\.{_NUMBER}"
    r"(?:\.(?P<part>self_attn|self_attention|attn|attention|mlp|feed_forward))?"
    r"\.(?P<side>input|output)(?:\.0)?"
)
KNOWN = (
    "resid.4 (state), resid_pre.4, resid_post.4, attn_out.4, mlp_out.4, head_z.4; TransformerLens' "
    "blocks.4.hook_resid_pre; nnsight's model.layers.4.output.0; hidden_states.4 of transformers"
)


def places(names: Iterable[str]) -> tuple[dict[str, Place], list[str]]:
    """Where each array belongs, and what was left out and why, in sentences.

    The last of transformers' `hidden_states` has the model's final norm applied and is no state of the
    residual stream: it is left out. `mlp.input` and the like are no site either.

    Raises:
        StoreError: two arrays for one site, or no array with a known name.
    """
    given = list(names)
    found = {name: place for name in given if (place := _place(name)) is not None}
    remarks = []
    states = [name for name in found if _STATES.fullmatch(name)]
    if states:
        last = max(states, key=lambda name: found[name][1])
        del found[last]
        remarks.append(f"{last} was left out: transformers applies the model's final norm to the last state.")
    left = remarks[0] if remarks else ""
    unknown = [name for name in given if _place(name) is None]
    if unknown:
        remarks.append(f"Not sites of a store, left out: {_listed(unknown)}.")
    if not found:
        raise StoreError(
            "None of the arrays is named after a site.",
            expected=KNOWN,
            given=left or _listed(given) or "no arrays",
            next_step="name each array after what it holds.",
        )
    _once(found)
    return found, remarks


def _place(name: str) -> Place | None:
    if match := _OWN.fullmatch(name) or _HOOK.fullmatch(name):
        site, number = match["site"], int(match["n"])
        if site in ("resid", "resid_pre", "resid_post"):
            return "resid", number + (site == "resid_post")
        return ("head_z" if site == "z" else site), number
    if match := _STATES.fullmatch(name):
        return "resid", int(match["n"])
    if match := _MODULE.fullmatch(name):
        part, number = match["part"], int(match["n"])
        if part is None:
            return "resid", number + (match["side"] == "output")
        if match["side"] == "output":
            return ("mlp_out" if part in ("mlp", "feed_forward") else "attn_out"), number
    return None


def _once(found: Mapping[str, Place]) -> None:
    seen: dict[Place, str] = {}
    for name, place in found.items():
        other = seen.setdefault(place, name)
        if other != name and not _same_state(other, name):
            raise StoreError(
                "Two arrays hold the same site.",
                expected="one array for each site",
                given=f"{other} and {name}: {place[0]} {place[1]}",
                next_step="leave one of them out.",
            )


def _same_state(one: str, other: str) -> bool:
    """Whether both are caches of one state, as the output of a block and the input of the next one are."""
    return _place(one) == _place(other) and (_place(one) or ("", 0))[0] == "resid"


def _listed(names: list[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
