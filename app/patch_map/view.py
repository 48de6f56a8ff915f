"""The experiment of a selection and back, and the controls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl
import streamlit as st

from app import screen
from app.frame import controls
from app.frame.opened import Opened
from app.frame.selection import Selection, listed, pair_changes, pair_of, without
from app.frame.words import label
from app.patch_map.fields import PatchMapFields
from app.tokenwise.prompt import default_prompt, read_alike
from engine.errors import PatchError
from engine.patch_map.spec import MAPPED, PatchMap

__all__ = ["asked", "default_donor", "not_run", "planned", "selection_of", "settings"]

SHOWN = 60
"""Characters of a prompt in a list."""
GIVERS = {"auto": "what fits", "own": "the model itself", "other": "the other model"}
COLOURED = {"recovery": "recovery", "kl": "KL"}
DONOR_HELP = (
    "Its activations are put in. At first the prompt that this one was made from (or that was made of it), "
    "else the same problem in the other language, else the same prompt in the other model."
)
COMPARED_HELP = (
    "Two words of one token with a slash between: Yes / No. Empty: the likeliest next token of the prompt's "
    "own run, and of the donor's."
)


def default_donor(opened: Opened, prompt: str) -> str:
    """What belongs to a prompt: its origin or corruption, its pair in another language, else itself."""
    prompts = opened.store.prompts
    own = prompts.filter(pl.col("id") == prompt)
    if "corrupt_of" in prompts.columns:
        origin = own["corrupt_of"].cast(pl.String).drop_nulls().to_list()
        made = prompts.filter(pl.col("corrupt_of").cast(pl.String) == prompt)["id"].to_list()
        known = [one for one in (*origin, *made) if one in set(prompts["id"]) and one != prompt]
        if known:
            return str(known[0])
    if {"pair_id", "language"} <= set(prompts.columns) and own["pair_id"].null_count() == 0:
        other = prompts.filter(
            (pl.col("pair_id") == own["pair_id"][0]) & pl.col("language").ne_missing(own["language"][0])
        )
        if other.height:
            return str(other["id"][0])
    return prompt


def asked(opened: Opened, selection: Selection) -> PatchMap:
    """The map that a selection describes; PatchError for answers that can't be read."""
    own, known = PatchMapFields.of(selection), set(opened.store.prompts["id"])
    prompt = own.receiving if own.receiving in known else default_prompt(opened)
    donor = own.donor if own.donor in known else default_donor(opened, prompt)
    target, other = pair_of(selection)
    gives_other = own.giver == "other" or (own.giver == "auto" and donor == prompt)
    return PatchMap(
        target=target,
        source=other if gives_other else target,
        prompt=prompt,
        donor=donor,
        sites=tuple(listed(own.mapped, MAPPED, len(MAPPED))) or ("resid_post",),  # type: ignore[arg-type]
        answers=answers_of(own.compared),
        last=own.ending,
        nulls=own.unrelated,
    )


def answers_of(text: str) -> tuple[str, str] | None:
    """ "Yes / No" as two words, None for an empty text; PatchError for anything else."""
    if not text.strip():
        return None
    found = [part.strip() for part in text.split("/")]
    if len(found) != 2 or not all(found) or found[0] == found[1]:
        raise PatchError(
            "The two answers can't be read.",
            expected="two different words with a slash between: Yes / No",
            given=repr(text[:60]),
            next_step="write them again, or leave them out.",
        )
    return found[0], found[1]


def selection_of(condition: Mapping[str, Any], selection: Selection) -> dict[str, Any]:
    """Changes to a selection under which `asked` gives this stored condition again."""
    answers = condition.get("answers")
    return {
        **pair_changes(condition, selection),
        "receiving": condition["prompt"],
        "donor": condition["donor"],
        "giver": "own" if condition["source"] == condition["target"] else "other",
        "mapped": ",".join(condition["sites"]),
        "compared": " / ".join(answers) if answers else "",
        "unrelated": condition["nulls"],
        "ending": condition["last"],
    }


def planned(opened: Opened, selection: Selection) -> list[PatchMap]:
    """What a full study has of it: what the page opens with, where two models read the prompts alike."""
    wanted = asked(opened, without(selection, "receiving", "donor", "giver", "compared"))
    if (wanted.target, wanted.prompt) == (wanted.source, wanted.donor):
        return []
    return [wanted] if read_alike(opened, wanted.models(), (wanted.prompt, wanted.donor)) else []


def not_run(wanted: PatchMap) -> tuple[str, str]:
    """Empty state: what a click will do."""
    return (
        "This map has not been run",
        f"**Run** puts what {wanted.source} holds of {wanted.donor} into {wanted.target} on {wanted.prompt}, "
        f"at one block and token at a time, and the same of {wanted.nulls} unrelated prompts.",
    )


def settings(opened: Opened) -> None:
    """The two prompts, who gives, what cells show; behind "More" what is seldom changed."""
    texts = dict(zip(opened.store.prompts["id"], opened.store.prompts["text"], strict=True))
    now = asked(opened, _readable(controls.current()))
    controls.across(
        lambda: _prompt("receiving", "Prompt that is run", now.prompt, texts),
        lambda: _prompt("donor", "Prompt whose activations are put in", now.donor, texts, DONOR_HELP),
    )
    with st.container(horizontal=True, vertical_alignment="bottom"):
        if len(opened.facts.models) > 1:
            controls.switch("giver", "They come from", GIVERS)
        controls.switch("coloured", "Cells show", COLOURED)
        screen.button("Swap", icon=":material/swap_horiz:", key="patch-map-swap", on_click=_swap, args=(now,))
        with controls.more():
            controls.several("mapped", "patch-map-sites", "Sites", MAPPED, now.sites, format_func=label)
            controls.write("compared", "Answers", "the runs' own next tokens", COMPARED_HELP)
            controls.slide("unrelated", "Unrelated prompts")
            controls.slide("ending", "Last tokens, at most")


def _readable(selection: Selection) -> Selection:
    """The selection without answers: what can't be read of them is told where they are run."""
    return without(selection, "compared")


def _prompt(name: str, label: str, now: str, texts: Mapping[str, Any], help: str | None = None) -> None:
    def named(prompt: str) -> str:
        text = " ".join(str(texts[prompt] or "").split())
        return f"{prompt}: {text[:SHOWN]}{'…' if len(text) > SHOWN else ''}"

    controls.bound(name, f"patch-map-{name}", label, list(texts), now, format_func=named, help=help)


def _swap(now: PatchMap) -> None:
    """The other direction: what gave receives."""
    target = controls.current().target
    turned = {"a": "b", "b": "a"}[target] if now.source != now.target else target
    giver = "own" if now.source == now.target else "other"
    controls.change(receiving=now.donor, donor=now.prompt, target=turned, giver=giver)
