"""Text of strangers on pages and in files: shown as it is, nothing in it is obeyed."""

from __future__ import annotations

import ast
import csv
import io
from pathlib import Path

import polars as pl
import pytest

from app.charts.spec import tip
from app.escape import FORMULA, csv_cell, given, inert, plain
from app.frame.export import csv_bytes
from app.report.markdown import inline
from app.screen import harmless

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = (
    "![](http://h/x)",
    "![a][b]",
    "[b]: http://h/x",
    "[a](javascript:x)",
    "[a]\\(javascript:x)",
    "\\[a](http://h)",
    "\\\\[a](http://h)",
    "<img src=//h/x>",
    "<http://h/x>",
    "http://h/x",
    "https://h/x",
    "www.h.com/x",
    "a@h.com",
    "$x$",
    "\\\\$x$",
    ":red[x]",
    ":smile:",
    ":material/delete:",
    "`\n\n![](http://h/x)`",
    "``x`![](http://h/x)",
    "# x",
    "- x",
    "1. x",
    "**x** _x_ ~~x~~ `x`",
    "a|b",
    "&lt;",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_plain_text_has_every_sign_that_markdown_reads_behind_a_backslash(text: str) -> None:
    said = plain(text)
    signs = [i for i, c in enumerate(said) if c in "`*_[]$<>~#|&"]
    assert all(said[i - 1] == "\\" and (said[:i].count("\\") or i) for i in signs)
    assert "://" not in said
    assert "www." not in said
    assert "\n" not in said
    assert said.replace("\\", "").replace("\u2060", "") == " ".join(text.replace("\\", "").split())


@pytest.mark.parametrize("text", HOSTILE[:19])
def test_words_of_our_own_with_anything_in_them_hold_no_link_image_or_tag(text: str) -> None:
    for said in (inert(text), inert(plain(text)), inert(f"**x** {text} `y`")):
        for live in ("](", "][", "]:", "<i", "<h", "://", "www.", "@h.com", ":red[", ":smile:"):
            assert live not in said


def test_words_of_our_own_stay_as_they_are() -> None:
    for said in (
        "#### :material/report: A **title** with `code[0](1)` &ensp; and *more*, p < 0.05, 12:30:45",
        "- resid_post@4: KL 0.3 [0.1, 0.5] ← base",
    ):
        assert inert(said) == said


@pytest.mark.parametrize("start", [*FORMULA, "  ="])
def test_a_file_holds_no_formula(start: str) -> None:
    text = f"{start}cmd|'/c calc'!A1"
    table = pl.DataFrame({"=name": [text, "x"], "n": [-1.5, 2.0], "l": [["a"], ["b"]], "b": [True, None]})
    rows = list(csv.reader(io.StringIO(csv_bytes(table).decode())))
    assert rows[0] == ["'=name", "n", "l", "b"]
    assert rows[1] == [f"'{text}", "-1.5", '["a"]', "true"]
    assert rows[2][:2] == ["x", "2.0"]
    tabs = csv_bytes(table, separator="\t").decode()
    assert f"'{start}" in tabs


@pytest.mark.parametrize("text", ["a=b", "x", "", " a", "−1", "→"])
def test_other_cells_are_written_as_they_are(text: str) -> None:
    assert csv_cell(text) == text


def test_a_table_on_a_page_gives_its_own_menu_no_formula() -> None:
    table = pl.DataFrame({"a": ["=1+1", "-0.5", None], "l": [["@x"], [], None], "n": [1, 2, 3]})
    shown = harmless(table)
    assert shown["a"].to_list() == ["\u2060=1+1", "-0.5", None]
    assert shown["l"].to_list() == [["\u2060@x"], [], None]
    assert shown["n"].to_list() == [1, 2, 3]


def test_a_tooltip_makes_no_picture_of_a_series_called_image() -> None:
    assert tip("s0", "nominal", "image").to_dict()["title"] != "image"
    assert tip("s0", "nominal", "images").to_dict()["title"] == "images"


def test_the_journal_has_no_addresses() -> None:
    said = inline("![](http://h/x) www.h.com a@h.com <b>")
    assert not any(live in said for live in ("](", "://", "www.", "@h.com")) or "\\](" in said
    assert "http:\u2060//" in said


TALKING = {
    *("markdown", "caption", "title", "header", "subheader", "write", "info", "success", "warning", "error"),
    *("toast", "metric", "expander", "popover", "button", "download_button", "link_button", "text_input"),
    *("text_area", "number_input", "file_uploader", "slider", "select_slider", "selectbox", "multiselect"),
    *(
        "segmented_control",
        "pills",
        "radio",
        "checkbox",
        "toggle",
        "progress",
        "page_link",
        "tabs",
        "dataframe",
    ),
    *(
        "data_editor",
        "table",
        "latex",
        "badge",
        "status",
        "spinner",
        "form_submit_button",
        "image",
        "exception",
    ),
}
"""Streamlit's functions that read Markdown, or offer a table as a file."""
LITERAL = "button", "page_link"


def calls() -> list[tuple[Path, ast.Call, str, str]]:
    """(file, call, object, method) of every method call in the app."""
    found = []
    for path in sorted([*(ROOT / "app").rglob("*.py"), *(ROOT / "pages").glob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                found.append((path, node, ast.unparse(node.func.value), node.func.attr))
    return found


def test_pages_say_everything_through_the_module_that_makes_it_inert() -> None:
    """Streamlit's own are left to `app/screen.py`, and to words that are written out in the code."""
    said = [
        f"{path.relative_to(ROOT)}:{call.lineno} {who}.{what}"
        for path, call, who, what in calls()
        if path.name != "screen.py"
        and ((who == "st" and what in TALKING) or (who in ("left", "right", "column") and what in TALKING))
        and not all(isinstance(value, ast.Constant) for value in call.args)
    ]
    assert said == []


def test_no_page_allows_html_of_its_own_making() -> None:
    """`st.html` is for a file of styles and two drawings of tokens that escape every token."""
    allowing = [
        path.name for path, call, *_ in calls() for k in call.keywords if k.arg == "unsafe_allow_html"
    ]
    html = sorted(
        {
            path
            for path, call, who, what in calls()
            if (who, what) == ("st", "html") and ast.unparse(call.args[0]) != "STYLE"
        }
    )
    assert allowing == []
    assert [path.relative_to(ROOT).as_posix() for path in html] == [
        "app/z_patching/tokens.py",
        "app/z_patching/view.py",
    ]
    for path in html:
        assert "html.escape(" in path.read_text()


def test_labels_of_a_study_are_no_emphasis_in_own_words() -> None:
    """Known labels show as they are; Patchbay's own emphasis and code stay; other text is untouched."""
    given(["**fr**", "~~zh~~", "`kk`", "en_US", "**"])
    said = inert("**Both** of **fr** and ~~zh~~, `kk` in `code`; en_US")
    assert said == f"**Both** of {plain('**fr**')} and {plain('~~zh~~')}, {plain('`kk`')} in `code`; en_US"


def test_no_csv_is_written_but_by_the_function_that_makes_it_harmless() -> None:
    writers = {path.name for path, _, _, what in calls() if what in ("write_csv", "to_csv")}
    assert writers == {"export.py"}


SAFE = ("plain", "len", "int", "round", "number", "words.number", "words.size")


def test_names_in_headings_are_made_plain() -> None:
    """What is put into a heading has a number's format, is counted, or goes through `plain`."""
    bad = []
    for path, call, who, what in calls():
        if who != "screen" or what not in ("markdown", "toast") or not call.args:
            continue
        for part in ast.walk(call.args[0]):
            if not isinstance(part, ast.FormattedValue) or part.format_spec is not None:
                continue
            text = ast.unparse(part.value)
            counted = text.endswith((".height", ".n_unique()", ".n_prompts"))
            if not counted and text.partition("(")[0] not in SAFE:
                bad.append(f"{path.relative_to(ROOT)}:{call.lineno} {text}")
    assert {line.split(" ", 1)[1] for line in bad} <= KNOWN, bad


KNOWN = {
    *("table['step'][-1]", "text", "ident", "title", "name", "what", "kind.title", "ICONS[part.met]"),
    *("part.name", "question", "name.capitalize()", "again", "stop.title", "stop.look", "at"),
}
"""Words of the code itself and numbers under names; a new one is looked at before it is added."""
