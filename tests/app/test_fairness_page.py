"""The prompts page: its panels on a store of two tokenizers, and its answer to a store without tokens."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from drawn_panels import drawn
from streamlit.testing.v1 import AppTest
from tiny_models import tiny
from tiny_study import NOUNS
from tiny_tokenizers import chatml

from app.build.build import build
from app.build.prepare import Prepared
from app.frame.opened import Opened, read_facts
from app.frame.panel import Panel
from app.frame.selection import Selection, changed, defaults
from app.prompts import fairness, splits
from app.prompts import study_lines as prompt_filter
from app.prompts import tables as asked
from engine.errors import PromptsError
from engine.prompts.spec import PromptFilter, PromptsSpec
from engine.prompts.table import matches
from engine.study.study import Study
from store.reader import Store

PAIRS = 20
COPY = "Tom has 0 apples and buys 0. How many apples does Tom have now?"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of three models: base and twin with one tokenizer, small with a smaller one.

    Pair 1's English text is a copy of pair 0's, and the two are in different splits.
    """
    folder = tmp_path_factory.mktemp("fair")
    for seed, (name, tokenizer) in enumerate(
        (("base", chatml()), ("twin", chatml()), ("small", chatml(320)))
    ):
        tiny("qwen3", seed=seed, vocab_size=len(tokenizer)).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for language in ("en", "zh"):
        rows = ["text\tcategory\tsplit"]
        for i in range(PAIRS):
            noun = NOUNS[i % len(NOUNS)]
            english = (
                f"Tom has {i} {noun} and buys {i}. How many {noun} does Tom have now?" if i > 1 else COPY
            )
            text = english if language == "en" else f"小明有{i}个苹果，又买了{i}个。"
            rows.append(f"{text}\tc{i % 2}\t{'validation' if i % 4 == 1 else 'train'}")
        (folder / f"{language}.tsv").write_text("\n".join(rows), encoding="utf-8")
    (folder / "study.toml").write_text(
        'name = "fair"\n'
        + "".join(f'[models.{name}]\npath = "{name}"\n' for name in ("base", "twin", "small"))
        + '[prompts]\nids = "row"\npaired_by_row = true\nfiles = [{path = "en.tsv", language = "en"}, '
        '{path = "zh.tsv", language = "zh"}]\n[capture]\ncomponents = ["resid"]\npositions = ["decision"]\n',
        encoding="utf-8",
    )
    build(Study.load(folder / "study.toml"), folder / "store", quiet=True)
    return folder


@pytest.fixture(scope="module")
def opened(made: Path) -> Opened:
    store = Store(made / "store")
    return Opened(str(made / "store"), store, read_facts(store))


@pytest.fixture
def chosen(opened: Opened) -> Selection:
    """The pair of two tokenizers."""
    return dataclasses.replace(defaults(opened.facts), b="small")


def panels(opened: Opened, selection: Selection) -> dict[str, Panel]:
    made = (
        splits.balance_panel(opened),
        splits.leakage_panel(opened),
        fairness.shared_panel(opened, selection),
        fairness.unshared_panel(opened, selection),
        fairness.lengths_panel(opened, selection),
    )
    return {panel.name: panel for panel in made if panel is not None}


def run(code: str) -> pl.DataFrame:
    scope: dict[str, Any] = {}
    exec(code, scope)
    table = scope["table"]
    assert isinstance(table, pl.DataFrame)
    return table


@pytest.mark.parametrize("changes", [{}, {"language": "en", "threshold": 0.9}, {"category": "c1"}])
def test_the_code_gives_the_table_and_the_charts_are_valid(
    opened: Opened, chosen: Selection, changes: dict[str, Any]
) -> None:
    found = panels(opened, changed(chosen, **changes))
    assert list(found) == ["balance", "leakage", "shared", "unshared", "lengths"]
    for panel in found.values():
        assert run(panel.code).equals(panel.table), panel.name
        drawn(panel)


def test_the_curve_counts_prompts_by_the_definition(opened: Opened, chosen: Selection) -> None:
    table = fairness.shared_panel(opened, chosen).table
    store, known = opened.store, set(chatml(320).get_vocab())
    assert known < set(chatml().get_vocab()), "so only base can have tokens of its own"
    ratios = []
    for row in store.tokens("base").iter_rows(named=True):
        spans = zip(row["token_ids"], row["offsets"], strict=True)
        inside = [i for i, (s, e) in spans if s < row["content_end"] and e > row["content_start"] and e > s]
        ratios.append(np.mean([t in known for t in chatml().convert_ids_to_tokens(inside)]))
    for at in (0.0, 0.5, 0.75, 0.9, 1.0):
        row = table.row(by_predicate=(pl.col("at") == at) & (pl.col("series") == "all"), named=True)
        assert row["count"] == sum(ratio >= at for ratio in ratios)
        parts = table.filter((pl.col("at") == at) & (pl.col("series") != "all"))
        assert parts["count"].sum() == row["count"]
        assert parts["of"].sum() == row["of"] == 2 * PAIRS


def test_the_title_follows_the_threshold(opened: Opened, chosen: Selection) -> None:
    ratio = asked.ratios(opened.store, "base", "small")["ratio"]
    middle = round(float(ratio.median()) + 0.005, 2)  # type: ignore[arg-type]
    title = fairness.shared_panel(opened, changed(chosen, threshold=middle)).title
    kept = fairness.kept(opened, changed(chosen, threshold=middle))
    assert title.startswith(f"{kept.height} of {2 * PAIRS} prompts remain at {middle:.2f}; of c")
    assert 0 < kept.height < 2 * PAIRS
    assert (kept["ratio"] >= middle).all()
    assert "in the median" in fairness.shared_panel(opened, chosen).title


def test_one_vocabulary_is_said_to_be_one(opened: Opened, chosen: Selection) -> None:
    same = changed(chosen, b="twin", threshold=1.0)
    panel = fairness.shared_panel(opened, same)
    size = len(chatml().get_vocab())
    assert panel.title == f"base and twin have the same {size} tokens: the ratio is 1 for all 40 prompts"
    assert panel.table["value"].unique().to_list() == [1.0]
    assert fairness.unshared_panel(opened, same) is None
    assert fairness.lengths_panel(opened, same).title.startswith("Every prompt has as many tokens")
    renumbered = {"n_a": 5, "n_b": 5, "shared": 5, "same_id": 2}
    assert "under other ids" in fairness.shared_title(pl.Series([1.0]), None, same, renumbered)


def test_the_smaller_vocabulary_needs_more_tokens(opened: Opened, chosen: Selection) -> None:
    panel = fairness.lengths_panel(opened, chosen)
    assert panel.title.startswith("small needs 1.")
    turned = dataclasses.replace(chosen, a="small", b="base")
    assert fairness.lengths_panel(opened, turned).title == panel.title


def test_lost_tokens_are_named_with_the_model_that_lacks_them(opened: Opened, chosen: Selection) -> None:
    panel = fairness.unshared_panel(opened, chosen)
    assert panel is not None
    assert set(panel.table["missing_in"]) == {"small"}
    assert "0 of small are not in base's" in panel.title


def test_a_planted_copy_across_the_splits_is_found(opened: Opened) -> None:
    panel = splits.leakage_panel(opened)
    assert panel is not None
    assert panel.title.startswith("1 of 10 validation texts is in train, ")
    worst = splits.worst_pairs(opened).row(0, named=True)
    assert (worst["validation"], worst["train"], worst["overlap"]) == ("en:2", "en:1", 1.0)
    assert worst["validation text"] == worst["train text"] == COPY
    last = panel.table.filter((pl.col("at") == 1.0) & (pl.col("series") == "validation to train"))
    assert last["count"].to_list() == [1]


def test_leakage_is_ranked_only_as_far_as_intervals_show() -> None:
    across = pl.DataFrame({"same": [True] * 8 + [False] * 2, "overlap": [1.0] * 8 + [0.1] * 2})
    groups = pl.Series([str(i) for i in range(10)])
    much = asked.share(across["overlap"] >= asked.NEAR, groups)
    some = asked.share(pl.Series([True] * 5 + [False] * 5), groups)
    none = asked.share(pl.Series([False] * 10), groups)
    assert splits.leakage_title(across, {"across": much, "within": none}).endswith(
        "; more than train texts are among themselves"
    )
    assert "not shown to be more" in splits.leakage_title(across, {"across": much, "within": some})
    clean = pl.DataFrame({"same": [False] * 3, "overlap": [0.1, 0.2, 0.3]})
    title = splits.leakage_title(clean, {"across": none, "within": much})
    assert title == "None of 3 validation texts is in train, nor nearly so"


def test_balance_is_told_in_shares(opened: Opened) -> None:
    title = splits.balance_panel(opened).title
    # validation are the pairs 1, 5, 9, 13, 17: all odd, so half of c1 and nothing of c0
    assert title == "40 prompts, 25 % of them validation: 0 to 50 % of every category and language"


@pytest.mark.parametrize(
    ("changes", "search"),
    [
        ({"category": "c0", "threshold": 0.6}, ""),
        ({"language": "zh"}, "苹果"),
        ({"threshold": 0.6}, r"\b7\b|\x20(boats|coins)"),
    ],
)
def test_the_lines_for_the_study_keep_what_the_page_keeps(
    opened: Opened, made: Path, chosen: Selection, changes: dict[str, Any], search: str
) -> None:
    selection = changed(chosen, **changes)
    shown = prompt_filter.found(fairness.kept(opened, selection), search)
    assert 0 < shown.height < 2 * PAIRS
    lines = tomllib.loads(prompt_filter.study_lines(opened, selection, search))["prompts"]
    study = tomllib.loads((made / "study.toml").read_text(encoding="utf-8"))
    study["models"].pop("twin")
    study["prompts"] |= lines
    again = Prepared.of(Study.from_dict(study, made))
    assert sorted(again.table["id"]) == sorted(shown["id"])


def test_lines_for_the_study_keep_its_own_filters() -> None:
    spec = {"include": {"category": ["a", "b"], "language": [], "text": "x"}, "min_shared_ratio": 0.5}
    spec |= {"exclude": {"category": [], "language": ["fr"], "text": 'a "quoted" \\d'}}
    store = type("S", (), {"manifest": {"study": {"prompts": spec}}})
    opened = Opened("", store, None)  # type: ignore[arg-type]
    text = prompt_filter.study_lines(opened, changed(Selection(category="a"), threshold=0.3), "y")
    lines = tomllib.loads(text)["prompts"]
    assert lines["include"] == {"category": ["a"], "text": "y"}
    assert lines["exclude"] == {"language": ["fr"], "text": 'a "quoted" \\d'}
    assert lines["min_shared_ratio"] == 0.5
    assert '# the study includes text = "x" already' in text
    PromptsSpec(files=("p",), **lines)


def test_a_search_that_is_no_pattern_says_why() -> None:
    with pytest.raises(PromptsError, match=r"search cannot be read.*a regular expression.*backslash"):
        prompt_filter.search_filter("(")


def text(app: AppTest) -> str:
    assert not app.exception, [e.value for e in app.exception]
    return "\n".join([*(m.value for m in app.markdown), *(c.value for c in app.caption)])


def test_the_page_shows_everything_and_the_slider_is_live(
    open_app: Callable[..., AppTest], made: Path
) -> None:
    app = open_app(made / "store", "prompts", b="small", threshold="0.9")
    said = text(app)
    assert "Something went wrong" not in said
    assert "prompts remain at 0.90" in said
    before = next(m.value for m in app.markdown if "are kept by these choices" in m.value)
    assert "min_shared_ratio = 0.9" in app.code[-1].value
    app.slider(key="slide-threshold").set_value(0.0).run()
    after = next(m.value for m in app.markdown if "are kept by these choices" in m.value)
    assert after == "#### 40 of 40 prompts are kept by these choices"
    assert before != after
    app.text_input(key="prompt-search").set_value("apples").run()
    assert 'include = {text = "apples"}' in app.code[-1].value
    app.text_input(key="prompt-search").set_value("(").run()
    assert "This search cannot be read" in text(app)


def test_a_store_without_token_strings_has_a_designed_answer(
    open_app: Callable[..., AppTest], planted: Path
) -> None:
    said = text(open_app(planted, "prompts"))
    assert "Something went wrong" not in said
    assert fairness.WHY_EMPTY[0] in said
    assert "48 of 48 prompts are kept" in said
    assert "validation texts" in said


def test_matches_of_any_and_all() -> None:
    table = pl.DataFrame({"text": ["ab", "b"], "category": ["x", None], "language": [None, "en"]})
    wanted = PromptFilter(category=("x",), language=("en",))
    assert matches(table, wanted).to_list() == [False, False]
    assert matches(table, wanted, any_of=True).to_list() == [True, True]
