"""Steering as a page needs it: controls, an experiment from the selection, a stored result as panels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from app import screen
from app.frame import controls
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.frame.selection import Selection, pair_of, place_changes, place_of
from app.live.jobs import JobResult
from app.steering import panels as steering_panels
from app.steering import spans
from app.steering.fields import SteeringFields
from engine.errors import PatchError
from engine.steering.spec import Group, Steering

PAGE = "rank"
WORDS = "Yes / No"
SPANS = range(1, 9)
SPAN_HELP = (
    "1: one direction is added and taken away. More: the part of the activation inside all k is taken away, "
    "beside random spans of k; what is added is the mean difference's part inside them."
)
COLUMNS = ("language", "category", "label")
MOST_CONTRASTS = 6
"""Values of a column up to which every two of them are offered as a contrast."""


def group_of(code: str) -> Group:
    """ "label:wrong" as a group of prompts; empty is all of them."""
    column, _, value = code.partition(":")
    if not code:
        return Group()
    if column not in COLUMNS or not value:
        raise PatchError(
            "The link names a group of prompts that can't be read.",
            expected="language:…, category:… or label:…",
            given=repr(code),
            next_step="choose the prompts again.",
        )
    return Group(**{column: value})


def code_of(group: Mapping[str, Any]) -> str:
    """A group by one column as text; the first column where it names several."""
    return next((f"{c}:{group[c]}" for c in COLUMNS if group.get(c) is not None), "")


def direction_of(code: str) -> dict[str, Any]:
    """ "leading:2", "unembedding" or "language:zh/en" as fields of an experiment; empty is "difference"."""
    kind, _, rest = code.partition(":")
    if code in ("", "difference", "unembedding"):
        return {"direction": code or "difference"}
    if kind == "leading" and rest.isdigit():
        return {"direction": "leading", "leading": int(rest)}
    plus, slash, minus = rest.partition("/")
    if not slash:
        raise PatchError(
            "The link names a direction that can't be read.",
            expected="difference, leading:2, unembedding or language:zh/en",
            given=repr(code),
            next_step="choose a direction again.",
        )
    groups = {"plus": group_of(f"{kind}:{plus}"), "minus": group_of(f"{kind}:{minus}")}
    return {"direction": "contrast", **groups}


def words_of(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """ "Yes, 是 / No" as two sets of words."""
    sides = [[w.strip() for w in side.split(",") if w.strip()] for side in (text or WORDS).split("/")]
    if len(sides) != 2 or not all(sides):
        raise PatchError(
            "The words of the shift can't be read.",
            expected="words, a slash, other words: Yes, 是 / No",
            given=repr(text),
            next_step="write them again.",
        )
    return tuple(sides[0]), tuple(sides[1])


def experiment_of(selection: Selection) -> Steering:
    """The steering that a selection describes; PatchError for a part that can't be read."""
    own = SteeringFields.of(selection)
    wanted, against = words_of(own.words)
    return Steering(
        **place_of(selection),
        wanted=wanted,
        against=against,
        where=group_of(own.steered),
        neutral=group_of(own.neutral),
        dims=own.span,
        **direction_of(selection.contrast),
    )


def selection_of(condition: Mapping[str, Any], selection: Selection) -> dict[str, Any]:
    """Changes to a selection under which `experiment_of` gives this stored condition again."""
    direction = condition["direction"]
    if direction == "leading":
        direction = f"leading:{condition['leading']}"
    elif direction == "contrast":
        minus = code_of(condition["minus"]).partition(":")[2]
        direction = f"{code_of(condition['plus'])}/{minus}"
    text = " / ".join(", ".join(condition[side]) for side in ("wanted", "against"))
    return {
        **place_changes(condition, selection),
        "part": "steering",
        "contrast": "" if direction == "difference" else direction,
        "words": "" if text == WORDS else text,
        "steered": code_of(condition["where"]),
        "neutral": code_of(condition["neutral"]),
        "span": condition.get("dims", 1),
    }


def groups(opened: Opened) -> dict[str, str]:
    """Groups of prompts on offer: code -> name."""
    found = {"": "all prompts"}
    for column in COLUMNS:
        if column in opened.store.prompts.columns:
            values = opened.store.prompts[column].drop_nulls().unique().sort().to_list()
            found |= {f"{column}:{value}": f"{column} {value}" for value in values if len(values) > 1}
    return found


def directions(opened: Opened, selection: Selection) -> dict[str, str]:
    """Directions on offer: code -> name."""
    target, source = pair_of(selection)
    found = {"": f"mean of {source} − {target}"}
    found |= {f"leading:{i}": f"direction {i} of {source} − {target}" for i in (1, 2, 3, 4)}
    for column in COLUMNS:
        if column not in opened.store.prompts.columns:
            continue
        values = opened.store.prompts[column].drop_nulls().unique().sort().to_list()
        pairs = [(a, b) for a in values for b in values if a != b and len(values) <= MOST_CONTRASTS]
        found |= {f"{column}:{a}/{b}": f"{column} {a} − {b}" for a, b in pairs}
    return {**found, "unembedding": "unembedding of the words"}


def steering_controls(opened: Opened) -> None:
    """Direction, words, and the two groups of prompts."""
    chosen = controls.current()
    left, right = st.columns(2)
    with left:
        _pick("contrast", "Direction v", directions(opened, chosen))
        _pick("steered", "Shift wanted on", groups(opened))
    with right:
        st.session_state["steer-words"] = SteeringFields.of(chosen).words or WORDS
        screen.text_input(
            "Words wanted / others",
            key="steer-words",
            on_change=_said,
            help="Words parted by commas, a slash, other words. Each stands for all its forms that are one "
            "token of the target's tokenizer; the result lists them.",
        )
        _pick("neutral", "Should stay as they are", groups(opened))
    with controls.more():
        controls.read_at()
    if chosen.contrast.startswith("leading"):
        controls.slide("span", "Leading directions together, k", help=SPAN_HELP)
        controls.switch("spans", "Run", {"one": "this k", "every": f"k = 1 to {SPANS[-1]}"})


def _pick(name: str, text: str, options: Mapping[str, str]) -> None:
    value = controls.setting(name)
    shown = value if value in options else ""
    controls.bound(name, f"steer-{name}", text, list(options), shown, format_func=options.__getitem__)


def _said() -> None:
    value = str(st.session_state["steer-words"]).strip()
    controls.change(words="" if value == WORDS else value)


def not_run(selection: Selection) -> tuple[str, str]:
    """Empty state: what a click will do."""
    spec = experiment_of(selection)
    wanted, against = ("/".join(side) for side in (spec.wanted, spec.against))
    return (
        "This direction has not been steered along",
        f"**Run** adds the {spec.direction_text()} to {spec.target}'s {spec.component} of block {spec.layer} "
        f"at growing amplitudes and takes it away, and reads how far log p({wanted}) − log p({against}) "
        "moves and what it costs elsewhere, beside random directions as long and as costly.",
    )


def run_panels(opened: Opened, result: JobResult, selection: Selection) -> list[Panel]:
    """The panels of a stored steering run."""
    over = spans.spans_panel(opened, result)
    return [*steering_panels.all_panels(opened, result), *([over] if over is not None else [])]


def experiments(selection: Selection) -> list[Steering]:
    """What one click runs: the selected number of directions, or 1 to 8."""
    one = experiment_of(selection)
    every = one.direction == "leading" and SteeringFields.of(selection).spans == "every"
    return [one.model_copy(update={"dims": k}) for k in SPANS] if every else [one]
