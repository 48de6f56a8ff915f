"""Parts of every page: guard, header with the trust badge, panels with exports, footer, empty states."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import streamlit as st

from app import controls, export
from app.charts.palette import LIGHT, Palette, palette
from app.overview import device, identity
from app.panel import Panel
from app.resources import Opened, failed_checks, is_expected, open_store, report
from engine.errors import PatchbayError

PAGES_DIR = Path(__file__).resolve().parents[1] / "pages"


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
            st.markdown(f"#### {plain(str(error))}")
            return
        st.markdown(f"#### :material/report: {plain(error.what)}")
        rows = (("Expected", error.expected), ("Given", error.given))
        for name, value in rows:
            if value is not None:
                st.markdown(f"**{name}** &ensp; {plain(str(value))}")
        if error.next_step:
            before, colon, command = error.next_step.partition(": ")
            runnable = colon and command.startswith(("python ", "streamlit ", "make "))
            st.markdown(f"**Next** &ensp; {plain(before if runnable else error.next_step)}")
            if runnable:
                st.code(command, language="bash")


def unexpected(ident: str, where: str) -> None:
    """An error nobody wrote a message for: say so, give the id under which the log has it."""
    with st.container(border=True, key=f"unexpected-{_slug(where)}"):
        st.markdown("#### :material/report: Something went wrong on this page")
        st.markdown(
            f"The details are in the server's log under **{ident}**. The other pages keep working; "
            "another choice, or loading the page again, tries again."
        )


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text.lower())


def plain(text: str) -> str:
    """Text as Markdown that shows exactly this text."""
    for mark in "\\`*_[]$<>~#|":
        text = text.replace(mark, "\\" + mark)
    return text


def is_dark() -> bool:
    """Whether the reader's browser shows the dark theme."""
    return st.context.theme.type == "dark"


def colors() -> Palette:
    """The palette of the reader's theme."""
    return palette(is_dark())


def begin(title: str, question: str, *, blocking: bool = True) -> Opened:
    """Start a page: the open store, title, trust badge; stops when the store is not to be trusted.

    Args:
        title, question: heading and the question the page answers.
        blocking: whether failed self-checks stop the page.

    Raises:
        StoreError: there is no readable store; the guard around the page shows why.
    """
    opened = open_store()
    header(opened, title, question)
    if blocking:
        block_if_untrusted(opened)
    return opened


def progress(text: str) -> Callable[[int, int], None]:
    """A progress bar for work that takes longer than a glance; it goes away when done = total."""
    bar = st.progress(0.0, text)

    def advance(done: int, total: int) -> None:
        if done >= total:
            bar.empty()
        else:
            bar.progress(done / total, text)

    return advance


def header(opened: Opened, title: str, question: str) -> None:
    """Page title, the question it answers, the trust badge, and notices about the link."""
    left, right = st.columns([4, 1.15], vertical_alignment="center")
    with left:
        st.title(title, anchor=False)
        st.caption(question)
    with right:
        trust_badge(opened)
    for notice in controls.notices():
        st.warning(notice, icon=":material/link_off:")


def trust_badge(opened: Opened) -> None:
    """How many self-checks of the precompute run hold; opens into the list."""
    checks, failed = opened.store.self_checks(), failed_checks(opened.store)
    if not checks:
        text, icon = "no self-checks", ":material/help:"
    elif failed:
        text, icon = f"{len(failed)} of {len(checks)} checks failed", ":material/error:"
    else:
        text, icon = f"{len(checks)} of {len(checks)} checks hold", ":material/verified:"
    with st.popover(text, icon=icon, width="stretch", key="trust-badge"):
        st.markdown("**Self-checks of the precompute run**")
        st.dataframe(checks_table(opened), hide_index=True, width="stretch")


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
            st.markdown("#### :material/gpp_bad: This store failed its own checks; its numbers are not shown")
            for check in failed:
                value, limit = float(check["value"]), float(check["limit"])  # type: ignore[arg-type]
                name = " ".join(
                    filter(None, (str(check["name"]).replace("_", " "), str(check.get("model", ""))))
                )
                st.markdown(
                    f"- **{plain(name)}**: {value:.3g}, limit {limit:.3g}. {plain(str(check['detail']))}"
                )
        else:
            st.markdown("#### :material/gpp_maybe: This store has no self-checks; its numbers are not shown")
        st.markdown(
            "**Next** &ensp; run precompute.py on the same study into a new folder; if the check "
            "fails again, "
            "try float32 or eager attention in the study file. Overview and About this study stay readable."
        )
    st.stop()


def show(opened: Opened, panel: Panel) -> None:
    """Draw a panel with its chart, exports and provenance."""
    with st.container(border=True, key=f"panel-{panel.name}"):
        st.markdown(f"#### {plain(panel.title)}")
        spec = panel.draw(colors())
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
        st.caption(panel.caption)
        exports(panel)
        st.caption(provenance(opened, panel.models))


def _on_click(key: str) -> Callable[[], None]:
    def callback() -> None:
        with guard("chart click"):
            controls.clicked(key)

    return callback


def exports(panel: Panel) -> None:
    """Data, image and code of a panel; files are made when they are asked for."""
    with st.container(horizontal=True, gap="small"):
        with st.popover("Data", icon=":material/table:", type="tertiary"):
            _file(panel, "CSV", "csv", "text/csv", lambda: export.csv_bytes(panel.table))
            _file(
                panel,
                "Parquet",
                "parquet",
                "application/octet-stream",
                lambda: export.parquet_bytes(panel.table),
            )
        with st.popover("Image", icon=":material/image:", type="tertiary"):
            _file(panel, "PNG", "png", "image/png", lambda: export.png_bytes(panel.draw(LIGHT), panel.title))
            _file(
                panel, "SVG", "svg", "image/svg+xml", lambda: export.svg_bytes(panel.draw(LIGHT), panel.title)
            )
        with st.popover("Code", icon=":material/code:", type="tertiary"):
            st.code(panel.code, language="python")


def _file(panel: Panel, text: str, suffix: str, mime: str, make: Callable[[], bytes]) -> None:
    st.download_button(
        text,
        make,
        file_name=f"patchbay-{panel.name}.{suffix}",
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
    with st.container(border=True, key=f"empty-{_slug(title)}"):
        st.markdown(f"#### {title}")
        st.markdown(text)


def page_link(name: str, text: str, params: dict[str, str]) -> None:
    """A link to another page that carries a selection."""
    st.page_link(PAGES_DIR / f"{name}.py", label=text, icon=":material/arrow_forward:", query_params=params)


def tokens(table: pl.DataFrame) -> None:
    """Per-prompt table: prompt, KL and the most likely next tokens before and after."""
    with st.container(border=True, key="panel-tokens"):
        st.markdown("#### Prompt by prompt, the most moved first")
        st.dataframe(
            table,
            hide_index=True,
            width="stretch",
            height=360,
            column_config={
                "kl": st.column_config.NumberColumn("KL, nats", format="%.3g"),
                "text": st.column_config.TextColumn("prompt", width="medium"),
                "before": st.column_config.TextColumn("next token before", width="medium"),
                "after": st.column_config.TextColumn("next token after", width="medium"),
            },
        )
