"""The shared selection in the browser session: synced with the URL, changed by widgets and chart clicks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app import screen
from app.charts.spec import PICK
from app.escape import plain
from app.frame import selection as sel
from app.frame.selection import Facts, Selection
from app.frame.words import label

_STATE, _SEEN, _NOTICES, _FACTS = "selection", "selection-url", "selection-notices", "selection-facts"
_STORE = "selection-store"


def sync(facts: Facts) -> Selection:
    """Bring session and URL to the same selection; called once at the start of every run.

    A URL that differs from the one this session wrote last was typed, pasted or reached by the back
    button: it wins. An empty one (a page change) keeps the session's selection.
    """
    state, before = st.session_state, st.session_state.get(_FACTS)
    notices: list[str] = []
    state[_FACTS] = facts
    if _linked():
        state[_STATE], notices = sel.parse(dict(st.query_params), facts)
    elif before is not None and before.store != facts.store:  # what the other store can show of it
        kept = sel.to_params(sel.changed(current(), run="", against=""), before)
        state[_STATE] = sel.parse(kept | {sel.STORE: facts.store}, facts)[0]
    state[_NOTICES] = notices
    _write(facts)
    return current()


def _linked() -> bool:
    """Whether this run shows what a link says, and not what this session chose."""
    state, params = st.session_state, dict(st.query_params)
    return _STATE not in state or bool(params and params != state.get(_SEEN))


def store(names: Sequence[str]) -> str:
    """The store of this run, of several: a link's, the one chosen before, or the first."""
    asked = st.query_params.get(sel.STORE) if _linked() else st.session_state.get(_STORE)
    st.session_state[_STORE] = asked if asked in names else names[0]
    return str(st.session_state[_STORE])


def store_now() -> str:
    """The name of the store of this run; "" before one was chosen."""
    return str(st.session_state.get(_STORE, ""))


def choose_store(names: Sequence[str]) -> None:
    """The control of several stores; stands there before one of them is opened, since that may fail."""
    key = "choose-store"
    st.session_state[key] = store(names)

    def picked() -> None:
        chosen = st.session_state[_STORE] = st.session_state[key]
        st.session_state[_SEEN] = {sel.STORE: chosen}
        st.query_params.from_dict(st.session_state[_SEEN])

    screen.selectbox("Store", names, key=key, format_func=plain, on_change=picked)


def _write(facts: Facts) -> None:
    wanted = sel.to_params(current(), facts)
    if wanted != dict(st.query_params):
        st.query_params.from_dict(wanted)
    st.session_state[_SEEN] = wanted


def current() -> Selection:
    """The selection of this session."""
    chosen: Selection = st.session_state[_STATE]
    return chosen


def setting(name: str) -> Any:
    """The value of a setting in this session's selection."""
    return sel.value(current(), name)


def notices() -> list[str]:
    """What could not be used of the last link, one sentence each."""
    found: list[str] = st.session_state.get(_NOTICES, [])
    return found


def change(**changes: object) -> None:
    """Change the selection; for callbacks, which run before the page."""
    facts: Facts = st.session_state[_FACTS]
    st.session_state[_STATE] = sel.update(current(), facts, **changes)


def link(**changes: object) -> dict[str, str]:
    """Query parameters of the present selection with `changes`."""
    facts: Facts = st.session_state[_FACTS]
    return sel.to_params(sel.update(current(), facts, **changes), facts)


def _changed(name: str, key: str) -> None:
    change(**{name: st.session_state[key]})


def choose(
    name: str,
    text: str,
    only: Sequence[str] | None = None,
    names: Callable[[str], str] = label,
    help: str | None = None,
) -> str:
    """A select box bound to a field of the selection; returns the value shown."""
    options = sel.offered(st.session_state[_FACTS], name, only)
    key, now = f"choose-{name}", setting(name)
    st.session_state[key] = now if now in options else options[0]
    screen.selectbox(
        text, options, key=key, format_func=names, on_change=_changed, args=(name, key), help=help
    )
    return str(st.session_state[key])


def switch(
    name: str, text: str, names: Mapping[str, str], only: Sequence[str] | None = None, help: str | None = None
) -> str:
    """A segmented control bound to a field of the selection; returns the value shown."""
    options = sel.offered(st.session_state[_FACTS], name, only)
    key, value = f"switch-{name}", setting(name)
    st.session_state[key] = value if value in options else options[0]
    screen.segmented_control(
        text,
        options,
        key=key,
        required=True,
        format_func=lambda v: names.get(v, v),
        on_change=_changed,
        args=(name, key),
        help=help,
    )
    return str(st.session_state[key])


def row() -> DeltaGenerator:
    """Small controls side by side, and close below one another where there is no room for that."""
    return st.container(horizontal=True, gap="small", vertical_alignment="bottom")


def slide(name: str, text: str, step: float | None = None, help: str | None = None) -> float | int:
    """A slider bound to a numeric field of the selection; returns the value shown."""
    low, high = sel.limits(st.session_state[_FACTS], name)
    key, value = f"slide-{name}", setting(name)
    whole = isinstance(value, int)
    st.session_state[key] = value
    if low == high:
        screen.caption(f"{text}: {value:g} (the only one)")
        return int(value) if whole else float(value)
    given: dict[str, Any] = {"key": key, "on_change": _changed, "args": (name, key), "help": help}
    if whole:
        screen.slider(text, int(low), int(high), step=1, **given)
    else:
        screen.slider(text, low, high, step=step or 0.05, **given)
    shown = st.session_state[key]
    return int(shown) if whole else float(shown)


def stride() -> None:
    """Which of all blocks are run where every one is asked for."""
    slide("stride", "Where every block is run: each n-th, n")


def write(name: str, text: str, placeholder: str = "", help: str | None = None) -> None:
    """A text bound to a field of the selection, without the white space around it."""
    key = f"write-{name}"
    st.session_state[key] = setting(name)

    def changed() -> None:
        change(**{name: str(st.session_state[key]).strip()})

    screen.text_input(text, key=key, placeholder=placeholder, help=help, on_change=changed)


def across(*draw: Callable[[], object], **look: Any) -> None:
    """Draws things side by side; `look` as of `st.columns`."""
    for place, one in zip(st.columns(len(draw), **look), draw, strict=True):
        with place:
            one()


def bound(name: str, key: str, text: str, options: Sequence[str], value: str | None, **more: Any) -> None:
    """A select box, showing `value`, bound to a field of the selection that is free text."""
    st.session_state[key] = value
    screen.selectbox(text, options, key=key, on_change=_changed, args=(name, key), **more)


def several(
    name: str, key: str, text: str, options: Sequence[Any], values: Iterable[Any], **more: Any
) -> None:
    """A choice of several, showing `values`, bound to a field that has them with commas; numbers ascend."""
    st.session_state[key] = list(values)

    def changed() -> None:
        found = st.session_state[key]
        change(**{name: ",".join(map(str, sorted(found) if isinstance(options, range) else found))})

    screen.multiselect(text, options, key=key, on_change=changed, **more)


def steps(
    name: str,
    text: str,
    values: Sequence[int],
    help: str | None = None,
    names: Callable[[int], str] = str,
) -> int:
    """A slider over given values bound to a field of the selection; the nearest one is shown."""
    key, value = f"steps-{name}", setting(name)
    nearest = min(values, key=lambda v: abs(v - value))
    if len(values) == 1:
        screen.caption(f"{text}: {names(nearest)} (the only one)")
        return nearest
    st.session_state[key] = nearest
    given: dict[str, Any] = {"key": key, "on_change": _changed, "args": (name, key), "help": help}
    screen.select_slider(text, list(values), format_func=names, **given)
    return int(st.session_state[key])


def clicked(key: str) -> None:
    """Callback of every clickable chart: the clicked layer, site, position or candidate is selected."""
    points = st.session_state[key]["selection"].get(PICK) or []
    facts: Facts = st.session_state[_FACTS]
    if points and "layer" in points[0]:
        change(layer=min(max(int(points[0]["layer"]), 0), facts.max_layer))
    for name, offered in (("site", facts.sites), ("position", facts.positions)):
        if points and points[0].get(name) in offered:
            change(**{name: points[0][name]})
    if points and "candidate" in points[0]:
        change(candidate=str(points[0]["candidate"]))


def more() -> DeltaGenerator:
    """Settings that are seldom changed, behind one button."""
    return screen.popover("More", icon=":material/tune:", key="more")


def read_at() -> None:
    """Where a patch's effect is read."""
    switch("read_at", "Read at", {"patched": "patched token", "decision": "decision token"})


def direction() -> None:
    """Which model of the pair is the target."""
    now = current()
    names = {"a": f"{now.a} ← {now.b}", "b": f"{now.b} ← {now.a}"}
    choose("target", "Direction (target ← source)", names=names.__getitem__)


def has_pairs() -> bool:
    """Whether there is a choice of two models."""
    facts: Facts = st.session_state[_FACTS]
    return len(facts.models) > 2


def filter_controls(split: str | None = "split", *, spoken: bool = True) -> None:
    """Split, language and category of the prompts shown; left out where there is one only.

    Args:
        split: the field that holds the split: "split", or "report" for live patches; None offers none.
        spoken: whether a language can be chosen; not where languages are compared.
    """
    facts: Facts = st.session_state[_FACTS]
    wanted = [
        (name, text)
        for name, text, values in (
            (split, "Split", facts.splits),
            ("language", "Language", facts.languages),
            ("category", "Category", facts.categories),
        )
        if name is not None and len(values) > 1 and (spoken or name != "language")
    ]
    if not wanted:
        return
    kept = [str(setting(name)) for name, _ in wanted if setting(name) != "all"]
    text = "Prompts: " + (" · ".join(map(plain, kept)) if kept else "all")
    with screen.popover(text, icon=":material/filter_alt:", key="filters"):
        for name, title in wanted:
            choose(name, title)
