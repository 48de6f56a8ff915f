"""The report says what the pages say, in documents that are well-formed whatever the texts hold."""

from __future__ import annotations

import base64
import csv
import io
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
from live_results import live_result
from planted_store import CHANGED, CHECKS, build_store

import precompute
from app.escape import apart
from app.frame import export
from app.frame.blocks import Attached, Block, Report, Section, Table, Text
from app.frame.opened import Opened, open_at
from app.frame.panel import Panel
from app.frame.selection import defaults, update
from app.patching import replacement as patch_view
from app.prompts.analysis import counts
from app.report import html as page
from app.report import markdown, own
from app.report.build import CHAPTERS, build, documents, pair_selection
from app.report.cells import NOTHING, cell
from app.report.figures import draw
from app.report.write import HTML, write, zipped
from app.residual_updates import panels as updates
from app.similarity import panels as similarity
from app.similarity.analysis import chapter as similar
from app.weights import differences
from app.weights.analysis import chapter as weight_differences
from engine.errors import StoreError
from store.runs import RunLog

EVIL = (
    '<script>alert("x")</script> | a|b\n- **x** `y` [z](http://evil.example) &amp; <img src=//evil.example>'
)
FILES = ("data:text/csv;base64,", "data:application/json;base64,")
VOID = {"meta", "br", "img", "link", "input", "hr"}


@dataclass
class Parsed(HTMLParser):
    """A strict reading of a document: its tags nest, its ids are unique, and what it refers to is kept."""

    ids: list[str] = field(default_factory=list)
    refers: list[str] = field(default_factory=list)
    tables: list[list[list[str]]] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    _open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        HTMLParser.__init__(self, convert_charrefs=True)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self._open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), name
            if name == "id":
                self.ids.append(str(value))
            if name in ("src", "href", "xlink:href", "action", "srcset", "poster", "data"):
                self.refers.append(str(value))
            self.refers += re.findall(r"url\(([^)]*)\)", value or "")
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self._open and self._open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data


def parsed(document: str) -> Parsed:
    found = Parsed()
    found.feed(document)
    found.close()
    assert not found._open
    assert len(set(found.ids)) == len(found.ids)
    assert document.startswith("<!DOCTYPE html>")
    for reference in found.refers:
        assert reference.startswith(("#", '"#', "'#", *FILES)), reference[:80]
        if reference.startswith("#"):
            assert reference[1:] in found.ids
    assert "@import" not in document
    return found


@pytest.fixture(scope="module")
def opened(planted: Path) -> Opened:
    return open_at(str(planted))


@pytest.fixture(scope="module")
def made(opened: Opened) -> tuple[Report, str, dict[str, bytes]]:
    report = build(opened, defaults(opened.facts))
    return (report, *documents(report))


def is_text(block: Block) -> bool:
    return isinstance(block, Text | Attached)


def shown(frame: pl.DataFrame) -> list[list[str]]:
    return [list(frame.columns), *([cell(v) for v in row] for row in frame.head(page.LONGEST).iter_rows())]


def test_the_document_is_whole_and_needs_nothing(made: tuple[Report, str, dict[str, bytes]]) -> None:
    _, document, _ = made
    found = parsed(document)
    assert {"script", "link", "iframe", "object", "img"}.isdisjoint(found.tags)
    assert "default-src 'none'" in document
    assert re.findall(r"https?://[^\s\"'<]*", document) == []
    assert found.tags.count("svg") == found.tags.count("figure") > 5
    assert [s.name for s in made[0].sections] == [
        i for i in found.ids if i in {s.name for s in made[0].sections}
    ]


def test_every_table_is_the_panels(made: tuple[Report, str, dict[str, bytes]]) -> None:
    """What is read in the HTML, and what lies behind every link, is the panel's table, value by value."""
    report, document, journal = made
    found = parsed(document)
    frames = {
        key: block.table if isinstance(block, Panel) else block.frame
        for key, block in report.keyed()
        if isinstance(block, Panel | Table)
    }
    reads = [b.table if isinstance(b, Panel) else b.read for _, b in report.keyed() if not is_text(b)]
    assert len(frames) > 10
    assert found.tables == [shown(frame) for frame in reads]
    links = [r for r in found.refers if r.startswith(FILES[0])]
    for (key, frame), link in zip(frames.items(), links, strict=True):
        data = base64.b64decode(link.split(",", 1)[1])
        assert data == export.csv_bytes(frame) == journal[f"data/{key}.csv"]


def test_the_panels_are_the_pages(opened: Opened, made: tuple[Report, str, dict[str, bytes]]) -> None:
    chosen = defaults(opened.facts)
    by_title = {panel.title: panel for _, panel in made[0].panels()}
    wanted = [make(opened, chosen) for make in similarity.panels(chosen)]
    wanted.append(similarity.curve_panel(opened, replace(chosen, site="attn_out")))
    wanted.append(updates.curve_panel(opened, updates.effective(opened, chosen)))
    for panel in wanted:
        assert panel is not None
        same = by_title[panel.title]
        assert same.table.equals(panel.table, null_equal=True)
        assert same.caption == panel.caption
        assert draw(same) == draw(panel)


def test_the_journal_has_every_figure_and_table(made: tuple[Report, str, dict[str, bytes]]) -> None:
    report, _, journal = made
    text = journal[markdown.NAME].decode()
    named = re.findall(r"\]\(([^)#][^)]*)\)", text)
    assert set(named) == set(journal) - {markdown.NAME}
    assert len(named) == len(set(named))
    for key, panel in report.panels():
        lines = text.split(f"(figures/{key}.svg)")[1].split("[CSV]")[0].splitlines()
        rows = [line for line in lines if line.startswith("| ")]
        assert len(rows) == 2 + min(panel.table.height, markdown.LONGEST)
        assert all(len(cells(row)) == panel.table.width for row in rows)
    for anchor in re.findall(r"\]\(#([^)]+)\)", text):
        assert anchor in {markdown.anchor(section.title) for section in report.sections}
    for name in journal:
        if name.endswith(".svg"):
            assert journal[name].startswith(b"<svg ")


def cells(line: str) -> list[str]:
    """Cells of a line of a pipe table, by the rule that an escaped pipe does not part them."""
    assert line.startswith("| ")
    assert line.endswith(" |")
    return [re.sub(r"\\(\W|_)", r"\1", part.strip()) for part in re.split(r"(?<!\\)\|", line[1:-1])]


def evil_report() -> Report:
    frame = pl.DataFrame({"prompt|": [EVIL, None], "x": [0.5, float("nan")]})
    panel = similarity_like(frame)
    blocks = (Table("t", EVIL, frame, EVIL), Text(EVIL, EVIL, "```\n" + EVIL), panel)
    return Report(EVIL, EVIL, ((EVIL, EVIL),), (Section("s", EVIL, EVIL, blocks, EVIL),))


def similarity_like(frame: pl.DataFrame) -> Panel:
    """A panel whose every text is hostile, chart included."""
    from app.charts.grids import stacked_bars
    from app.charts.template import Chart

    table = pl.DataFrame({"name": [EVIL], "series": [EVIL], "value": [1]})

    def draw_it(palette: object) -> Chart:
        return stacked_bars(table, x_title="n", y_title=None, colors=["red"], series=[EVIL])

    return Panel("p", EVIL, frame, draw_it, EVIL, EVIL, (), False)


def test_texts_cannot_break_out_of_the_html() -> None:
    report = evil_report()
    document, _ = documents(report)
    found = parsed(document)
    assert {"script", "img"}.isdisjoint(found.tags)
    assert found.tables[0] == [["prompt|", "x"], [EVIL, "0.5"], [NOTHING, NOTHING]]
    assert EVIL in "".join(found.text)


def test_texts_cannot_break_out_of_a_pipe_table() -> None:
    report = evil_report()
    text = markdown.render(report)
    flat = apart(" ".join(EVIL.split()))  # an invisible mark keeps viewers from making a link of an address
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert [cells(row) for row in rows[:4]] == [
        ["prompt|", "x"],
        ["---", "---:"],
        [flat, "0.5"],
        [NOTHING, NOTHING],
    ]
    assert "````bash" in text  # a fence longer than the one inside
    text = re.sub(r"````bash\n.*?\n````\n", "", text, flags=re.S)
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert len(headings) == 5  # title, section, table, text and panel; none out of a text
    assert not [line for line in text.splitlines() if line.startswith("- **")]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456, "0.1235"),
        (1234567.0, "1.235e6"),
        (1.2e-8, "1.2e-8"),
        (-0.0, "0"),
        (12.0, "12"),
        (7, "7"),
        (True, "yes"),
        (None, NOTHING),
        (float("nan"), NOTHING),
        ([0.5, "a"], "0.5, a"),
        ("a\x00b\x1b[0m", "a\ufffdb\ufffd[0m"),
    ],
)
def test_values_are_written_one_way(value: object, text: str) -> None:
    assert cell(value) == text


def test_paragraphs_that_look_like_markup_stay_text() -> None:
    for text in ("1. one", "- item", "+ x", "= x", "> q", "# h"):
        assert markdown.escape(text).replace("\\", "") == text
        assert "\\" in markdown.escape(text)
    assert markdown.inline("resid_post at −0.5") == "resid_post at −0.5"


@pytest.fixture
def with_runs(own_store: Path) -> Opened:
    """Patches at three blocks, the strongest at the changed one; and a damaged run."""
    opened = open_at(str(own_store))
    for layer in (1, CHANGED, 3):
        chosen = update(defaults(opened.facts), opened.facts, layer=layer, alphas="curve")
        condition = patch_view.condition_of(chosen)
        result = live_result(condition, kl=2.0 if layer == CHANGED else 0.1, seed=layer)
        append(opened, condition, result)
    other = patch_view.condition_of(update(defaults(opened.facts), opened.facts, layer=0, site="mlp_out"))
    run_id = append(opened, other, live_result(other))
    (own_store / "runs" / run_id / "run.json").write_text("{}")
    return opened


def append(opened: Opened, condition: patch_view.Condition, result: patch_view.JobResult) -> str:
    key = condition.content_hash(opened.store.fingerprint)
    log = RunLog(opened.path)
    return log.append(result.condition, result.summary, result.table, content_hash=key)


def named(report: Report, name: str) -> Section:
    return next(section for section in report.sections if section.name == name)


def test_stored_patches_are_reported_as_the_runs_page_shows_them(with_runs: Opened) -> None:
    report = build(with_runs, defaults(with_runs.facts))
    patches = named(report, "patching")
    titles = [b.title for b in patches.blocks]
    assert any(t.startswith(f"The patch matters most at block {CHANGED}") for t in titles)
    runs = next(b.frame for b in patches.blocks if isinstance(b, Table))
    for row in runs.iter_rows(named=True):
        curve = RunLog(with_runs.path).open(row["run"]).summary["curve"]
        assert {k: row[k] for k in ("alpha", "kl", "low", "high", "n")} in curve
        assert row["alpha"] == 1.0
    assert runs.height == 3
    profile = next(b for b in patches.blocks if isinstance(b, Panel) and b.name == "patch-layers")
    assert profile.table["layer"].to_list() == [1, CHANGED, 3]
    runs = next(b for b in named(report, "provenance").blocks if isinstance(b, Table) and b.name == "runs")
    assert runs.frame.height == 4
    assert runs.frame["problem"].drop_nulls().len() == 1
    parsed(documents(report)[0])


def test_a_store_without_runs_says_what_is_missing(made: tuple[Report, str, dict[str, bytes]]) -> None:
    patches = named(made[0], "patching")
    assert not patches.blocks
    assert "No run of this kind is stored for base and tuned" in patches.missing
    assert "No run of this kind is stored for base and tuned" in made[1]
    assert "> No run of this kind is stored for base and tuned" in made[2][markdown.NAME].decode()


def test_too_few_prompts_say_so_in_the_place_of_a_panel(opened: Opened) -> None:
    chosen = replace(defaults(opened.facts), language="zh", category="add", split="validation")
    found = similar(opened, chosen)
    assert all(isinstance(block, Text) for block in found)
    assert "keep too few prompts" in found[0].text  # type: ignore[union-attr]


def test_counts_add_up(opened: Opened) -> None:
    prompts = opened.store.prompts
    for by in (["split", "language", "category"], ["split", "category"], ["category"], []):
        found = counts(prompts, by)
        total = found["total" if len(by) > 1 else "prompts"].sum()
        assert total == prompts.height
        if len(by) == 3:
            row = found.row(by_predicate=pl.col("category") == "add", named=True)
            wanted = prompts.filter(split="train", language="zh", category="add").height
            assert row["train zh"] == wanted


def test_a_model_against_itself_has_no_patches(opened: Opened) -> None:
    report = build(opened, pair_selection(opened, "base,base"))
    assert report.title == "planted: base"
    assert "Live experiments put one model into another" in named(report, "missing").missing
    assert [b.name for b in named(report, "similarity").blocks if isinstance(b, Panel)] == ["cka-grid"]


def test_every_chapter_has_its_own_name(made: tuple[Report, str, dict[str, bytes]]) -> None:
    names = [section.name for section in made[0].sections]
    assert len(set(names)) == len(names) == len(CHAPTERS)
    assert own.terms()["term"].is_unique().all()


def test_pairs_are_target_and_source(opened: Opened) -> None:
    turned = pair_selection(opened, "base, tuned")
    assert (turned.a, turned.b, turned.target) == ("tuned", "base", "b")
    assert pair_selection(opened, None) == defaults(opened.facts)
    assert pair_selection(opened, "tuned,base") == defaults(opened.facts)
    for nonsense in ("tuned", "tuned,other", "a,b,c"):
        with pytest.raises(StoreError, match="two of base, tuned, as target,source"):
            pair_selection(opened, nonsense)


def test_the_command_writes_a_folder_without_a_word_of_warning(
    planted: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert precompute.main(["report", str(planted), "--out", str(out)]) == 0
    told = capfd.readouterr()
    assert told.out.strip() == str(out / HTML)
    assert "WARNING" not in told.err
    assert "Warning" not in told.err
    assert {p.name for p in out.iterdir()} >= {"data", "figures", HTML, markdown.NAME}
    first = (out / HTML).read_bytes()
    stale = out / "figures" / "stale.svg"
    stale.write_text("x")
    assert precompute.main(["report", str(planted), "--out", str(out)]) == 0
    assert (out / HTML).read_bytes() == first  # the same store, the same bytes
    assert not stale.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_command_writes_one_file(planted: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "one.html"
    assert precompute.main(["report", str(planted), "--out", str(out), "--pair", "base,tuned"]) == 0
    assert [p.name for p in out.parent.iterdir()] == ["one.html"]
    assert "planted: tuned and base" in out.read_text()


def test_refusals_are_said(planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert precompute.main(["report", str(planted), "--out", str(tmp_path)]) == 1
    assert "holds a report, at" in capsys.readouterr().err
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert precompute.main(["report", str(tmp_path / "nowhere")]) == 1
    assert "does not exist" in capsys.readouterr().err
    assert precompute.main(["report", str(planted), "--pair", "x,y"]) == 1
    assert "--pair tuned,base" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("checks", "said"),
    [([], "has no self-checks"), ([{**CHECKS[0], "value": 0.25, "passed": False}], "self-patch KL = 0")],
)
def test_a_store_that_is_not_to_be_trusted_is_not_reported(
    checks: list[dict[str, object]], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = build_store(tmp_path / "store", checks=checks)
    assert precompute.main(["report", str(store)]) == 1
    assert said in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_a_failed_write_leaves_the_earlier_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "report"
    write(out, "<p>one", {markdown.NAME: b"one"})

    def full(*_: object, **__: object) -> None:
        raise StoreError("The disk is full.")

    monkeypatch.setattr("app.report.write.atomic_write", full)
    with pytest.raises(StoreError):
        write(out, "<p>two", {markdown.NAME: b"two"})
    assert (out / HTML).read_text() == "<p>one"
    assert [p.name for p in tmp_path.iterdir()] == ["report"]


def test_the_zip_holds_the_journal(made: tuple[Report, str, dict[str, bytes]]) -> None:
    data = zipped(made[2])
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert {n: archive.read(n) for n in archive.namelist()} == made[2]
    assert zipped(made[2]) == data


def test_the_csv_of_a_panel_reads_back(made: tuple[Report, str, dict[str, bytes]]) -> None:
    for key, panel in made[0].panels():
        rows = list(rows_of(made[2][f"data/{key}.csv"]))
        assert rows[0] == panel.table.columns
        assert len(rows) == panel.table.height + 1


def rows_of(data: bytes) -> Iterator[list[str]]:
    yield from csv.reader(io.StringIO(data.decode()))


WEIGHTS = pl.DataFrame(
    {
        "name": ["model.layers.2.self_attn.o_proj.weight", "model.layers.4.mlp.down_proj.weight"],
        "shape": [[24, 24], [24, 48]],
        "norm": [3.0, 1.5],
        "relative": [0.75, 0.25],
        "rank": [4, None],
        "error": [1e-7, float("nan")],
        "factors_stored": [True, False],
    }
)


def with_weights(opened: Opened, table: pl.DataFrame | None) -> Opened:
    """The store with this table of weight differences of tuned, or without any."""
    names = [] if table is None else ["weight-delta-tuned"]
    store = SimpleNamespace(table_names=lambda: names, table={"weight-delta-tuned": table}.__getitem__)
    return replace(opened, store=store)  # type: ignore[arg-type]


def test_weight_differences_are_the_stored_ones(opened: Opened) -> None:
    found = weight_differences(with_weights(opened, WEIGHTS), defaults(opened.facts))
    (panel,) = found
    assert isinstance(panel, Panel)
    assert panel.title == (
        "tuned differs from base in 2 weights only: self_attn.o_proj of block 2 (0.75 of its norm, rank 4); "
        "mlp.down_proj of block 4 (0.25 of its norm)"
    )
    assert panel.table["relative"].equals(WEIGHTS["relative"])
    assert panel.table["block"].to_list() == [2, 4]
    cells = differences.grid(panel.table, opened.facts.n_layers["tuned"])
    assert cells.height == 2 * opened.facts.n_layers["tuned"]
    assert cells.filter(pl.col("relative") > 0).select("block", "part").rows() == [
        (2, "self_attn.o_proj"),
        (4, "mlp.down_proj"),
    ]
    assert draw(panel).startswith("<svg")


@pytest.mark.parametrize(
    ("table", "said"),
    [(WEIGHTS.clear(), "No weight of tuned differs from base"), (None, "No weight differences of tuned")],
)
def test_equal_or_unknown_weights_are_said(opened: Opened, table: pl.DataFrame | None, said: str) -> None:
    found = weight_differences(with_weights(opened, table), defaults(opened.facts))
    assert said in found[0].text  # type: ignore[union-attr]


def test_many_weights_are_counted(opened: Opened) -> None:
    many = pl.concat([WEIGHTS.with_columns(name=pl.col("name") + f"{i}") for i in range(3)])
    found = differences.title(differences.table(with_weights(opened, many), "tuned"), "tuned", "base")
    assert found.startswith("tuned differs from base in 6 weights, relative to their norm most in")
