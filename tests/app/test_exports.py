"""Tables to be printed, and a page as a notebook that runs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from streamlit.testing.v1 import AppTest

from app.frame import export

TABLE = pl.DataFrame(
    {
        "token_id": [1, -20],
        "text|": ["a | b\n*c* \\|", "50 % & <x> {y} ~^_#$"],
        "value": [-0.123456, None],
        "list": [["x", "y"], []],
    }
)


def test_markdown_has_a_cell_for_every_value() -> None:
    lines = export.markdown_bytes(TABLE).decode().splitlines()
    assert len(lines) == 4
    for line in lines:
        assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 5, line
    assert "−0.1235" in lines[2]
    assert "*c*" not in lines[2]
    assert lines[3].split(" | ")[2] == "–"
    assert lines[1] == "| ---: | --- | ---: | --- |"


def test_a_first_cell_is_no_argument_of_the_rule_before_it() -> None:
    text = export.latex_bytes(pl.DataFrame({"token": ["[", "*a", "[INST]"]})).decode()
    assert not [line for line in text.splitlines() if line.startswith(("[", "*"))]
    assert "{}[INST]" in text


def test_latex_is_escaped_and_compiles_where_latex_is(tmp_path: Path) -> None:
    text = export.latex_bytes(TABLE).decode()
    assert r"50 \% \& \textless{}x\textgreater{} \{y\} \textasciitilde{}\textasciicircum{}\_\#\$" in text
    assert "$-$0.1235" in text
    assert text.count(r"\\" + "\n") == 3
    assert r"\begin{tabular}{rlrl}" in text
    if shutil.which("pdflatex"):
        whole = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n" + text + "\\end{document}"
        (tmp_path / "table.tex").write_text(whole)
        subprocess.run(["pdflatex", "-halt-on-error", "table.tex"], cwd=tmp_path, check=True)


@pytest.mark.parametrize("write", [export.markdown_bytes, export.latex_bytes])
def test_a_long_table_is_cut_and_says_so(write: Callable[[pl.DataFrame], bytes]) -> None:
    long = pl.DataFrame({"n": range(export.MOST_ROWS + 5)})
    text = write(long).decode()
    assert f"The first {export.MOST_ROWS} of {export.MOST_ROWS + 5} rows." in text
    assert f"{export.MOST_ROWS - 1}" in text
    assert "The first" not in write(long.head(3)).decode()


def test_a_page_is_a_notebook_that_runs(open_app: Callable[..., AppTest], planted: Path) -> None:
    app = open_app(planted, "similarity")
    assert app.session_state["panels-shown"]
    shown = list(app.session_state["panels-shown"].values())
    assert [b.label for b in app.get("download_button") if b.key == "notebook"] == ["Page as notebook"]
    book = json.loads(export.notebook_bytes("Similarity", shown))
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert len(cells) == len(shown) >= 2
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
    scope: dict[str, Any] = {}
    for cell in cells:
        scope.pop("table", None)
        exec("".join(cell["source"]), scope)
        assert scope["table"].height


def test_a_page_without_panels_offers_no_notebook(open_app: Callable[..., AppTest], planted: Path) -> None:
    app = open_app(planted, "runs")
    assert not [b for b in app.get("download_button") if b.key == "notebook"]
