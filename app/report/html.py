"""A report as one HTML file that needs nothing else: styles, figures and data are inside it."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping

import polars as pl

from app.frame import export
from app.frame.blocks import Attached, Block, Report, Section, Table, Text, keys
from app.frame.panel import Panel
from app.report.cells import cell, numeric, readable
from app.report.figures import inline

LONGEST = 200
"""Rows of a table that are shown; the file behind its link has all of them."""

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""What a browser may load for this file: nothing."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c2126; --soft: #5b6570; --line: #d9dde1; --page: #ffffff;
  --card: #f6f7f8; --link: #0060a0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ea; --soft: #a2abb4; --line: #363d44;
  --page: #14181c; --card: #1d2227; --link: #7cc0f2; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem 1rem 4rem; max-width: 80rem;
  background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "Noto Sans", "Noto Sans CJK SC", sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { margin: 2.6rem 0 .4rem; padding-top: .6rem; border-top: 2px solid var(--line); font-size: 1.4rem; }
h3 { font-size: 1.05rem; margin: 1.4rem 0 .5rem; overflow-wrap: anywhere; }
p, figcaption { max-width: 56rem; overflow-wrap: anywhere; }
p { margin: .4rem 0; }
.lead, figcaption, .caption, summary { color: var(--soft); font-size: .9rem; }
a { color: var(--link); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .9rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
nav ol { columns: 15rem; padding-left: 1.4rem; font-size: .95rem; }
figure { max-width: 56rem; margin: 1.2rem 0; padding: .2rem 1rem .8rem; background: var(--card);
  border-radius: .5rem; }
.plot { overflow-x: auto; background: #fff; border-radius: .3rem; padding: .3rem; }
.plot svg { display: block; width: 100%; min-width: 30rem; height: auto; }
figcaption { margin: .6rem 0; }
.scroll { overflow-x: auto; margin: .5rem 0; }
table { border-collapse: collapse; font-size: .8rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem .25rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; white-space: nowrap; max-width: 34rem; }
th { color: var(--soft); font-weight: 600; }
.n { text-align: right; }
.w { min-width: 14rem; white-space: pre-line; overflow-wrap: anywhere; }
pre { overflow-x: auto; background: var(--card); padding: .6rem .8rem; border-radius: .3rem;
  font-size: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
details { margin: .3rem 0; }
summary { cursor: pointer; }
.missing { padding: .6rem 1rem; border-left: 3px solid var(--line); color: var(--soft); }
@media print { body { max-width: none; padding: 0; font-size: 10.5pt; } details, nav { display: none; }
  figure, tr, .missing { break-inside: avoid; } h2, h3 { break-after: avoid; }
  .plot, .scroll { overflow: visible; } .plot svg { min-width: 0; } th, td { white-space: normal; } }
"""


def render(report: Report, figures: Mapping[str, str]) -> str:
    """The whole document.

    Args:
        figures: SVG of every panel by its key; see `app.report.figures`.
    """
    facts = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in report.facts)
    contents = "".join(f'<li><a href="#{s.name}">{_text(s.title)}</a></li>' for s in report.sections)
    sections = "\n".join(_section(section, figures) for section in report.sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(report.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f'<header>\n<h1>{_text(report.title)}</h1>\n<p class="lead">{_text(report.lead)}</p>\n'
        f'<dl>{facts}</dl>\n</header>\n<nav aria-label="Contents"><ol>{contents}</ol></nav>\n'
        f"<main>\n{sections}\n</main>\n</body>\n</html>\n"
    )


def _text(text: str) -> str:
    return html.escape(readable(text))


def _section(section: Section, figures: Mapping[str, str]) -> str:
    parts = [f'<section id="{section.name}">', f"<h2>{_text(section.title)}</h2>"]
    if section.intro:
        parts.append(f'<p class="lead">{_text(section.intro)}</p>')
    parts += [_block(key, block, figures) for key, block in keys(section)]
    if section.missing:
        parts.append(f'<p class="missing">{_text(section.missing)}</p>')
    return "\n".join([*parts, "</section>"])


def _block(key: str, block: Block, figures: Mapping[str, str]) -> str:
    if isinstance(block, Text):
        heading = f"<h3>{_text(block.title)}</h3>\n" if block.title else ""
        said = f"<p>{_text(block.text)}</p>\n" if block.text else ""
        return heading + said + (f"<pre>{_text(block.code)}</pre>" if block.code else "")
    if isinstance(block, Attached):
        return _file(block.name, block.data)
    if isinstance(block, Table):
        caption = f'<p class="caption">{_text(block.caption)}</p>\n' if block.caption else ""
        shown = f"{table(block.read)}\n{_link(key, block.frame)}"
        if block.folded:
            shown = f"<details><summary>{block.frame.height} rows</summary>\n{shown}</details>"
        return f"<h3>{_text(block.title)}</h3>\n{caption}{shown}"
    return _figure(key, block, figures[key])


def _figure(key: str, panel: Panel, svg: str) -> str:
    rows = panel.table.height
    data = f"<details><summary>Data, {rows} rows</summary>\n{table(panel.table)}\n"
    return (
        f'<figure id="{key}">\n<h3>{_text(panel.title)}</h3>\n'
        f'<div class="plot">{inline(svg, key, _text(panel.title))}</div>\n'
        f"<figcaption>{_text(panel.caption)}</figcaption>\n"
        f"{data}{_link(key, panel.table)}</details>\n"
        f"<details><summary>Code</summary>\n<pre>{_text(panel.code)}</pre></details>\n</figure>"
    )


def table(frame: pl.DataFrame) -> str:
    """A table as HTML; rows behind the longest one shown are counted in words."""
    classes = [' class="n"' if n else "" for n in numeric(frame)]
    head = "".join(f"<th{c}>{_text(name)}</th>" for c, name in zip(classes, frame.columns, strict=True))
    lines = []
    for row in frame.head(LONGEST).iter_rows():
        texts = [cell(value) for value in row]
        kinds = [c or (' class="w"' if len(t) > 40 else "") for c, t in zip(classes, texts, strict=True)]
        lines.append("".join(f"<td{c}>{_text(t)}</td>" for c, t in zip(kinds, texts, strict=True)))
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    head = f"<thead><tr>{head}</tr></thead>"
    shown = f'<div class="scroll"><table>\n{head}\n<tbody>\n{body}\n</tbody></table></div>'
    if frame.height > LONGEST:
        shown += f'\n<p class="caption">The first {LONGEST} of {frame.height} rows; the CSV has all.</p>'
    return shown


def _link(key: str, frame: pl.DataFrame) -> str:
    return _file(f"{key}.csv", export.csv_bytes(frame), "CSV")


def _file(name: str, data: bytes, said: str = "") -> str:
    kind = "text/csv" if name.endswith(".csv") else "application/json"
    address = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return f'<p class="caption"><a download="{_text(name)}" href="{address}">{_text(said or name)}</a></p>'
