"""Which prompt is read: one of the study's, or one that is typed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
import streamlit as st

from app import screen
from app.frame import controls
from app.frame.fields import LONGEST
from app.frame.opened import Opened
from app.tokenwise.fields import TokenwiseFields, broken, one_line

SHOWN = 70
"""Characters of a prompt in its list."""
REPLY = 512
"""Tokens of a continuation at the most."""
WRAPPED = {"study": "as the study's prompts", "chat": "the user's turn of a chat", "plain": "plain text"}


def default_prompt(opened: Opened) -> str:
    """The first prompt of validation, or of all."""
    prompts = opened.store.prompts
    held = prompts.filter(pl.col("split") == "validation") if "split" in prompts.columns else prompts.clear()
    return str((held if held.height else prompts)["id"][0])


def read_alike(opened: Opened, models: Sequence[str], prompts: Sequence[str]) -> bool:
    """Whether all these models read these prompts of the study as the same tokens."""
    at = opened.store.prompts["id"].is_in(list(prompts)).to_numpy()
    read = [opened.store.tokens(model)["token_ids"].filter(at).to_list() for model in dict.fromkeys(models)]
    return all(one == read[0] for one in read)


def of_the_study(opened: Opened, own: TokenwiseFields) -> str:
    """Id of the selected prompt, of the default one where the store has no such prompt."""
    return own.prompt if own.prompt in set(opened.store.prompts["id"]) else default_prompt(opened)


def is_plain(opened: Opened, wrapped: str) -> bool:
    """Whether a typed text stands as it is, without a chat template."""
    study: Mapping[str, Any] = opened.store.manifest["study"].get("prompts") or {}
    return (study.get("template", "chat") if wrapped == "study" else wrapped) == "plain"


def settings(opened: Opened) -> None:
    """The prompt, of the study or typed, and how long a continuation is wanted."""
    own = TokenwiseFields.of(controls.current())
    left, right = st.columns([4, 1], vertical_alignment="bottom")
    with left:
        if own.typed:
            screen.text_input("Typed prompt", _shortened(broken(own.typed)), disabled=True)
        else:
            _list(opened, own)
    with right:
        _reply(own)
    with screen.expander("Another prompt" if own.typed else "Type a prompt", icon=":material/edit:"):
        _form(own)


def _shortened(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= SHOWN else f"{words[: SHOWN - 1]}…"


def _list(opened: Opened, own: TokenwiseFields) -> None:
    texts = dict(zip(opened.store.prompts["id"], opened.store.prompts["text"], strict=True))
    controls.bound(
        "prompt",
        "tokenwise-prompt",
        "Prompt",
        list(texts),
        of_the_study(opened, own),
        format_func=lambda name: f"{name}: {_shortened(str(texts[name] or ''))}",
    )


def _reply(own: TokenwiseFields) -> None:
    st.session_state["tokenwise-reply"] = own.reply
    screen.number_input(
        "Reply, tokens",
        min_value=0,
        max_value=REPLY,
        step=16,
        key="tokenwise-reply",
        on_change=lambda: controls.change(reply=int(st.session_state["tokenwise-reply"])),
        help="How either model goes on, the likeliest token each time. 0: not asked for.",
    )


def _form(own: TokenwiseFields) -> None:
    """Text, system message, and what stands around them; and the way back to the study's prompts."""
    with st.form("tokenwise-form", border=False):
        text = screen.text_area("Text", broken(own.typed), max_chars=LONGEST, height=100)
        left, right = st.columns(2)
        with left:
            system = screen.text_input(
                "System message",
                broken(own.system),
                max_chars=LONGEST,
                help="Empty: that of the study, where it has one. Plain text takes none.",
            )
        with right:
            wrapped = screen.selectbox(
                "Written as", list(WRAPPED), list(WRAPPED).index(own.wrapped), format_func=WRAPPED.__getitem__
            )
        taken = screen.form_submit_button("Take this prompt")
    line, above = one_line(text), one_line(system)
    if taken and max(len(line), len(above)) > LONGEST:
        screen.error(f"Text and system message have at most {LONGEST} characters each, breaks counted twice.")
    elif taken and line.strip():
        _take(typed=line, system=above, wrapped=wrapped)
    elif taken:
        screen.error("Nothing is typed: write the text of a prompt first, then take it.")
    if own.typed and screen.button("Back to the study's prompts", key="tokenwise-back"):
        _take(typed="", system="", wrapped="study")


def _take(**changes: str) -> None:
    controls.change(**changes)
    st.rerun()
