"""Parts of every page: guard, header with the trust badge, panels with exports, footer, empty states."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import polars as pl
import streamlit as st

from app import screen
from app.charts.palette import LIGHT, Palette, palette
from app.charts.template import Chart, Spec
from app.escape import plain
from app.frame import controls, export, pins
from app.frame.opened import Opened, device, failed_checks, identity, is_expected, open_store, report
from app.frame.panel import Panel
from engine.errors import PatchbayError

IMAGES = (
    ("PNG", "png", "image/png", export.png_bytes),
    ("SVG", "svg", "image/svg+xml", export.svg_bytes),
    ("PDF", "pdf", "application/pdf", export.pdf_bytes),
    ("Vega-Lite", export.LITE, "application/json", export.json_bytes),
)
"""Files of a chart: what their buttons say, how their names end, media types and who makes them."""
TABLES = (
    ("CSV", "csv", "text/csv", export.csv_bytes),
    ("Parquet", "parquet", "application/octet-stream", export.parquet_bytes),
    ("Markdown", "md", "text/markdown", export.markdown_bytes),
    ("LaTeX", "tex", "application/x-tex", export.latex_bytes),
)
"""Files of a table, in the same way."""
_SHOWN = "panels-shown"
LEAD = 140
"""Characters of a caption that stand below a chart; a first sentence may be longer."""
_SENTENCES = re.compile(r"(?<=\.)\s+(?=[^\W\d_a-z])")
LACKS = (
    "This store holds imported activations: it has no study, and no models to take weights, tokens or "
    "answers from. What it lacks has to be imported along with them, or computed from a study."
)
"""Of a store that `precompute.py import` made."""
_ADVICE = re.compile(r"(?i)precompute|\bstudy\b|\bcapture\b|earlier version")
PAGES_DIR = Path(__file__).resolve().parents[2] / "pages"


@contextmanager
def guard(where: str) -> Iterator[None]:
    """Whatever goes wrong inside becomes a message; tracebacks go to the log under an id."""
    try:
        yield
    except Exception as error:
        if is_expected(error):
            report(error, where)
            problem(error, where)
        else:
            unexpected(report(error, where), where)


def problem(error: BaseException, where: str) -> None:
    """A message written for the reader, laid out as what, expected, given, next."""
    with st.container(border=True, key=f"problem-{_slug(where)}"):
        if not isinstance(error, PatchbayError):
            screen.markdown(f"#### {plain(str(error))}")
            return
        screen.markdown(f"#### :material/report: {plain(error.what)}")
        rows = (("Expected", error.expected), ("Given", error.given))
        for name, value in rows:
            if value is not None:
                screen.markdown(f"**{name}** &ensp; {plain(str(value))}")
        if error.next_step:
            before, colon, command = error.next_step.partition(": ")
            runnable = colon and command.startswith(("python ", "streamlit ", "make "))
            screen.markdown(f"**Next** &ensp; {plain(before if runnable else error.next_step)}")
            if runnable:
                st.code(command, language="bash")


def unexpected(ident: str, where: str) -> None:
    """An error nobody wrote a message for: say so, give the id under which the log has it."""
    with st.container(border=True, key=f"unexpected-{_slug(where)}"):
        screen.markdown("#### :material/report: Something went wrong on this page")
        screen.markdown(
            f"The details are in the server's log under **{ident}**. The other pages keep working; "
            "another choice, or loading the page again, tries again."
        )


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text.lower())


def is_dark() -> bool:
    """Whether the reader's browser shows the dark theme."""
    return st.context.theme.type == "dark"


def colors() -> Palette:
    """The palette of the reader's theme."""
    return palette(is_dark())


def begin(title: str, question: str, *, blocking: bool = True, pair: bool = True) -> Opened:
    """Start a page: the open store, title, trust badge; stops when the store is not to be trusted.

    Args:
        title, question: heading and the question the page answers.
        blocking: whether failed self-checks stop the page.
        pair: whether it is about models A and B, which are then chosen beside the title.

    Raises:
        StoreError: there is no readable store; the guard around the page shows why.
    """
    opened = open_store()
    header(opened, title, question, pair=pair)
    if blocking:
        block_if_untrusted(opened)
    elif failed_checks(opened.store):
        st.error(
            "This store failed its own checks: its numbers are not shown, and nothing is run on it.",
            icon=":material/gpp_bad:",
        )
    return opened


def progress(text: str) -> Callable[[int, int], None]:
    """A progress bar for work that takes longer than a glance; it goes away when done = total."""
    bar = screen.progress(0.0, text)

    def advance(done: int, total: int) -> None:
        if done >= total:
            bar.empty()
        else:
            bar.progress(done / total, text)

    return advance


def forget_shown() -> None:
    """Before a page runs: none of its panels is shown yet."""
    st.session_state[_SHOWN] = {}


def take_page(title: str) -> None:
    """After a page has run: its panels as a notebook."""
    shown = list(st.session_state.get(_SHOWN, {}).values())
    if shown:
        screen.download_button(
            "Page as notebook",
            lambda: export.notebook_bytes(title, shown),
            file_name=export.file_name(_slug(title), "ipynb"),
            mime="application/x-ipynb+json",
            icon=":material/download:",
            type="tertiary",
            key="notebook",
            on_click="ignore",
        )


def header(opened: Opened, title: str, question: str, *, pair: bool = False) -> None:
    """Page title, the question it answers, the two models, the trust badge, and notices about the link."""
    with st.container(key="heading"):
        left, *models, right = st.columns(
            [2.4, 0.95, 0.95, 1.1] if pair and controls.has_pairs() else [4, 1.1], vertical_alignment="bottom"
        )
    with left:
        screen.title(title, anchor=False)
        screen.caption(question)
    for place, (name, text) in zip(models, (("a", "Model A"), ("b", "Model B")), strict=False):
        with place:
            controls.choose(name, text)
    with right:
        trust_badge(opened)
    for notice in controls.notices():
        screen.warning(plain(notice), icon=":material/link_off:")


def trust_badge(opened: Opened) -> None:
    """How many self-checks of the precompute run hold; opens into the list."""
    checks, failed = opened.store.self_checks(), failed_checks(opened.store)
    if not checks:
        text, icon = "no self-checks", ":material/help:"
    elif failed:
        text, icon = f"{len(failed)} of {len(checks)} checks failed", ":material/error:"
    else:
        text, icon = f"{len(checks)} checks hold", ":material/verified:"
    with screen.popover(text, icon=icon, width="stretch", key="trust-badge"):
        screen.markdown("**Self-checks of the precompute run**")
        screen.dataframe(checks_table(opened), hide_index=True, width="stretch")


def checks_table(opened: Opened) -> pl.DataFrame:
    """Name, measured value, limit and verdict of every self-check."""
    rows = [
        {
            "check": str(c["name"]).replace("_", " "),
            "model": str(c.get("model", "")),
            "value": f"{float(c['value']):.3g}",
            "limit": f"{float(c['limit']):.3g}",
            "holds": "yes" if c["passed"] else "NO",
            "detail": str(c.get("detail", "")),
        }
        for c in opened.store.self_checks()
    ]
    schema = dict.fromkeys(("check", "model", "value", "limit", "holds", "detail"), pl.String)
    return pl.DataFrame(rows, schema=schema)


def block_if_untrusted(opened: Opened) -> None:
    """Stop the page, saying why, when a self-check of the store failed or none was recorded."""
    failed = failed_checks(opened.store)
    if opened.store.self_checks() and not failed:
        return
    with st.container(border=True, key="untrusted"):
        if failed:
            screen.markdown(
                "#### :material/gpp_bad: This store failed its own checks; its numbers are not shown"
            )
            for check in failed:
                value, limit = float(check["value"]), float(check["limit"])  # type: ignore[arg-type]
                name = " ".join(
                    filter(None, (str(check["name"]).replace("_", " "), str(check.get("model", ""))))
                )
                screen.markdown(
                    f"- **{plain(name)}**: {value:.3g}, limit {limit:.3g}. {plain(str(check['detail']))}"
                )
        else:
            screen.markdown(
                "#### :material/gpp_maybe: This store has no self-checks; its numbers are not shown"
            )
        again = (
            "run precompute.py on the same study into a new folder; if the check fails again, try float32 or "
            "eager attention in the study file."
            if opened.can_run
            else "import the activations again into a new folder: of the same prompts in the same order, and "
            "in float32 where they were rounded."
        )
        screen.markdown(f"**Next** &ensp; {again} Overview and About this study stay readable.")
    st.stop()


def show(opened: Opened, panel: Panel) -> None:
    """Draw a panel with its chart, exports and provenance."""
    with st.container(border=True, key=f"panel-{panel.name}"):
        screen.markdown(f"#### {plain(panel.heading)}")
        own = panel.draw(colors()).spec()
        shown = pins.added(opened, panel)
        spec = own if shown is panel else shown.draw(colors()).spec()
        # A new key for each layer and candidate: a chart that is drawn again forgets its click, so that the
        # same one can be clicked once more after another control moved the selection elsewhere.
        chosen = controls.current()
        key = f"chart-{panel.name}-{chosen.layer}" + (f"-{chosen.candidate}" if chosen.candidate else "")
        if panel.clickable:
            st.vega_lite_chart(
                spec=spec,
                width="stretch",
                key=key,
                on_select=_on_click(key),
                selection_mode="pick",
                alt=panel.title,
            )
        else:
            st.vega_lite_chart(spec=spec, width="stretch", key=key, alt=panel.title)
        pins.listed(opened, panel, own)
        reading(opened, shown, own)


def show_all(opened: Opened, panels: Iterable[Panel | None]) -> None:
    """Draw those panels that there are."""
    for panel in panels:
        if panel is not None:
            show(opened, panel)


def reading(opened: Opened, panel: Panel, spec: Spec | None = None) -> None:
    """Below a chart or a table: its caption's beginning, the whole on request, exports, a chart's pin."""
    st.session_state.setdefault(_SHOWN, {})[panel.name] = (panel.title, panel.caption, panel.code)
    screen.caption(led(panel.said))
    with st.container(horizontal=True, gap="small"):
        with screen.popover("How to read it", icon=":material/help:", type="tertiary"):
            screen.caption(panel.said)
            screen.caption(provenance(opened, panel.models))
        exports(panel)
        if spec is not None:
            pins.button(opened, panel, spec)


def led(caption: str) -> str:
    """What of a caption stands below the chart: two lines, of which a narrow window cuts what is longer."""
    lead, *more = _SENTENCES.split(caption)
    while more and len(lead) + 1 + len(more[0]) <= LEAD:
        lead = f"{lead} {more.pop(0)}"
    return lead


def _on_click(key: str) -> Callable[[], None]:
    def callback() -> None:
        with guard("chart click"):
            controls.clicked(key)

    return callback


def exports(panel: Panel) -> None:
    """Data, image and code of a panel; files are made when they are asked for."""
    with screen.popover("Data", icon=":material/table:", type="tertiary"):
        for text, suffix, mime, write in TABLES:
            _file(panel, text, suffix, mime, functools.partial(write, panel.table))
    with screen.popover("Image", icon=":material/image:", type="tertiary"):
        for text, suffix, mime, make in IMAGES:
            _file(panel, text, suffix, mime, functools.partial(_drawn, panel, make))
    with screen.popover("Code", icon=":material/code:", type="tertiary"):
        st.code(panel.code, language="python")
        screen.caption("The chart in Altair, from the Vega-Lite file under Image:")
        st.code(export.chart_code(panel.name), language="python")


def _drawn(panel: Panel, make: Callable[[Chart, str], bytes]) -> bytes:
    return make(panel.draw(LIGHT), panel.title)


def _file(panel: Panel, text: str, suffix: str, mime: str, make: Callable[[], bytes]) -> None:
    screen.download_button(
        text,
        make,
        file_name=export.file_name(panel.name, suffix),
        mime=mime,
        key=f"file-{panel.name}-{suffix}",
        on_click="ignore",
        width="stretch",
    )


def provenance(opened: Opened, models: tuple[str, ...]) -> str:
    """One line: study, fingerprint, models with revision, dtype, device and date."""
    parts = [f"study {study_name(opened)}", f"fingerprint {opened.store.fingerprint[:10]}"]
    for name in dict.fromkeys(models):
        info = opened.store.model_info(name)
        parts.append(" ".join(filter(None, (name, identity(info), str(info.get("dtype", ""))))))
    parts.append(device(opened))
    created = str(opened.store.manifest.get("created", ""))
    return plain(" · ".join([*parts, created[:16].replace("T", " ")]))


def study_name(opened: Opened) -> str:
    """Name of the study as its file gives it."""
    return str(opened.store.manifest.get("study", {}).get("name", "unnamed"))


def empty(title: str, text: str) -> None:
    """A designed empty state: why there is nothing here and what would put something here."""
    with suppress(PatchbayError):
        text = text if open_store().can_run else of_imported(text)
    with st.container(border=True, key=f"empty-{_slug(title)}"):
        screen.markdown(f"#### {title}")
        screen.markdown(text)


def of_imported(text: str) -> str:
    """An empty state's text for a store of imported activations: no advice to run what isn't there."""
    kept = [one for one in _SENTENCES.split(text) if not _ADVICE.search(one)]
    return text if _ADVICE.search(text) is None else " ".join([*kept, LACKS])


def no_position(opened: Opened) -> tuple[str, str] | None:
    """Why a page that compares prompts by one row each has nothing to show; None where it has."""
    if opened.facts.positions:
        return None
    kept = ", ".join(f"`{name}`" for name in opened.store.positions(opened.facts.models[0]))
    return (
        "This page needs one row per prompt",
        f"The store keeps {kept}, many rows per prompt. Add a position such as `last_content`, `decision` or "
        "`mean`, or one draw of a sample such as `sample(k=4,draw=1)`, to `positions` under `[capture]` in "
        "the study, and precompute a new store.",
    )


def page_link(name: str, text: str, params: dict[str, str]) -> None:
    """A link to another page that carries a selection."""
    screen.page_link(
        PAGES_DIR / f"{name}.py", label=text, icon=":material/arrow_forward:", query_params=params
    )
