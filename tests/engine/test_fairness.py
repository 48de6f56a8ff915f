from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tiny_tokenizers import chatml, gemma, llama3

from engine.errors import PromptsError
from engine.prompts.overlap import (
    NGRAM,
    content,
    nearest_texts,
    normalised,
    remaining,
    shared_ratios,
    split_overlaps,
    unshared_tokens,
    vocabularies,
    vocabulary_overlap,
)
from engine.prompts.positions import content_tokens
from engine.prompts.spec import PromptsSpec
from engine.prompts.table import read_prompts, shared_rows
from engine.prompts.tokens import encode

TEXTS = (
    "What is the capital of France?",
    "小明有三个苹果，又买了四个苹果。",
    "Zebras juggle quartz!",
    " 7 + 5 = 12 ",
    "What is the capital of Kazakhstan? Астана",
)
TOKENIZERS: dict[str, Callable[[], Any]] = {
    "chatml": chatml,
    "small": lambda: chatml(320),
    "llama3": llama3,
    "gemma": gemma,
}


def table(texts: tuple[str, ...] = TEXTS, **more: Any) -> pl.DataFrame:
    rows = {"id": [f"t{i}" for i in range(len(texts))], "text": list(texts), "messages": [None] * len(texts)}
    messages = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
    frame = pl.DataFrame(rows | more, schema_overrides={"messages": messages})
    absent = [c for c in ("pair_id", "category", "language") if c not in more]
    return frame.with_columns(pl.lit(None, pl.String).alias(c) for c in absent)


def encoded(tokenizer: Any, prompts: pl.DataFrame) -> pl.DataFrame:
    return encode(prompts, tokenizer, PromptsSpec(files=(Path("p"),), date="2024-07-26"), max_length=400)


def both(a: str, b: str, prompts: pl.DataFrame | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Encoded prompts and occurring vocabulary of two models."""
    tokenizers = {name: TOKENIZERS[name]() for name in (a, b)}
    tokens = {name: encoded(t, table() if prompts is None else prompts) for name, t in tokenizers.items()}
    return tokens, vocabularies(tokens, tokenizers)


def by_hand(a: str, b: str) -> list[float]:
    """The definition, prompt by prompt, from the tokenizers themselves."""
    shares = []
    for mine, other in ((a, b), (b, a)):
        one, two = TOKENIZERS[mine](), TOKENIZERS[other]()
        known, rows = two.get_vocab(), encoded(one, table()).iter_rows(named=True)
        inside = [
            [
                token
                for token, (s, e) in zip(row["token_ids"], row["offsets"], strict=True)
                if s < row["content_end"] and e > row["content_start"] and e > s
            ]
            for row in rows
        ]
        shares.append([np.mean([t in known for t in one.convert_ids_to_tokens(ids)]) for ids in inside])
    return [min(pair) for pair in zip(*shares, strict=True)]


@pytest.mark.parametrize(("a", "b"), [("chatml", "small"), ("chatml", "gemma"), ("llama3", "gemma")])
def test_the_shared_ratio_is_the_definition(a: str, b: str) -> None:
    tokens, known = both(a, b)
    found = shared_ratios(tokens, known, a, b)
    assert found["ratio"].to_list() == pytest.approx(by_hand(a, b), abs=1e-12)
    assert found["id"].to_list() == tokens[a]["id"].to_list()
    assert any(0.0 < ratio < 1.0 for ratio in found["ratio"])


def test_the_order_of_the_pair_changes_nothing_but_the_names() -> None:
    tokens, known = both("chatml", "gemma")
    one, two = (shared_ratios(tokens, known, *pair) for pair in (("chatml", "gemma"), ("gemma", "chatml")))
    assert one["ratio"].equals(two["ratio"])
    assert one["ratio_a"].to_list() == two["ratio_b"].to_list()


def test_renumbered_vocabularies_share_everything() -> None:
    """The same token strings under other ids: a comparison by id would find almost nothing shared."""
    prompts = table(TEXTS[:1])
    tokens, known = both("chatml", "llama3", prompts)
    inside = {name: content(frame)["token_id"].to_list() for name, frame in tokens.items()}
    assert inside["chatml"] != inside["llama3"]
    assert len(set(inside["chatml"]) & set(inside["llama3"])) < len(inside["chatml"]) / 2
    found = shared_ratios(tokens, known, "chatml", "llama3")
    assert found["ratio"].to_list() == [1.0]
    assert unshared_tokens(tokens, known, "chatml", "llama3").is_empty()
    overlap = vocabulary_overlap({name: TOKENIZERS[name]() for name in tokens})
    pair = overlap.row(by_predicate=(pl.col("a") == "chatml") & (pl.col("b") == "llama3"), named=True)
    assert pair["same_id"] < pair["shared"] <= min(pair["n_a"], pair["n_b"])


def test_a_vocabulary_against_itself_shares_all_ids() -> None:
    row = vocabulary_overlap({"x": chatml()}).row(0, named=True)
    assert row["n_a"] == row["n_b"] == row["shared"] == row["same_id"] == len(chatml().get_vocab())


def test_prompts_in_another_order_are_refused() -> None:
    tokens, known = both("chatml", "gemma")
    tokens["gemma"] = tokens["gemma"].reverse()
    with pytest.raises(PromptsError, match="same ids in the same order"):
        shared_ratios(tokens, known, "chatml", "gemma")


def test_a_prompt_without_content_tokens_has_no_ratio() -> None:
    tokens, known = both("chatml", "gemma")
    tokens = {
        name: frame.with_columns(content_start=pl.lit(0, pl.Int32), content_end=pl.lit(0, pl.Int32))
        for name, frame in tokens.items()
    }
    found = shared_ratios(tokens, known, "chatml", "gemma")
    assert found["ratio"].is_nan().all()
    assert found["n_a"].to_list() == [0] * len(TEXTS)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_content_is_what_positions_call_content(name: str) -> None:
    frame = encoded(TOKENIZERS[name](), table())
    wanted = [
        (i, row["token_ids"][k])
        for i, row in enumerate(frame.iter_rows(named=True))
        for k in content_tokens(row["offsets"], row["content_start"], row["content_end"])
    ]
    assert content(frame).rows() == wanted


def test_unshared_tokens_are_counted_in_tokens_and_prompts() -> None:
    prompts = table(("apples capital apples", "apples", "7"))
    tokens, known = both("chatml", "small", prompts)
    found = unshared_tokens(tokens, known, "chatml", "small")
    missing = chatml().get_vocab().keys() - chatml(320).get_vocab().keys()
    assert set(found["token"]) <= missing
    assert set(found["missing_in"]) == {"small"}, "the smaller vocabulary has nothing of its own"
    counts: dict[str, list[int]] = {}
    for i, row in enumerate(tokens["chatml"].iter_rows(named=True)):
        inside = content_tokens(row["offsets"], row["content_start"], row["content_end"])
        for token in chatml().convert_ids_to_tokens([row["token_ids"][k] for k in inside]):
            if token in missing:
                counts.setdefault(token, []).append(i)
    wanted = {token: (len(at), len(set(at))) for token, at in counts.items()}
    assert wanted
    assert {r["token"]: (r["occurrences"], r["prompts"]) for r in found.iter_rows(named=True)} == wanted
    assert found["occurrences"].is_sorted(descending=True)


def test_the_threshold_keeps_prompts_at_or_above_it() -> None:
    tokens, known = both("chatml", "gemma")
    ratio = shared_ratios(tokens, known, "chatml", "gemma")["ratio"].to_list()
    threshold = sorted(ratio)[2]
    spec = PromptsSpec(files=(Path("p"),), min_shared_ratio=threshold)
    wanted = [i for i, value in enumerate(ratio) if value >= threshold]
    assert shared_rows(table(), tokens, known, spec) == wanted
    assert len(wanted) == 3
    limited = spec.model_copy(update={"limit": 2})
    assert shared_rows(table(), tokens, known, limited) == wanted[:2], "the limit counts what is kept"
    none = PromptsSpec(files=(Path("p"),), min_shared_ratio=1.0)
    with pytest.raises(PromptsError, match="min_shared_ratio keep no prompt"):
        shared_rows(table(TEXTS[1:2]), *both("chatml", "small", table(TEXTS[1:2])), none)


def test_without_a_threshold_everything_stays(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("id,text\na,x\nb,y\n")
    spec = PromptsSpec(files=(tmp_path / "p.csv",))
    assert shared_rows(read_prompts(spec), {}, {}, spec) == [0, 1]


@pytest.mark.parametrize(
    ("one", "two"), [("Ｗhat  is\n2?", "what is 2?"), (" ﬁne ", "FINE"), ("Straße", "STRASSE")]
)
def test_texts_that_look_alike_are_normalised_alike(one: str, two: str) -> None:
    assert normalised(one) == normalised(two)


def test_normalisation_keeps_what_makes_another_prompt() -> None:
    assert len({normalised(t) for t in ("7 + 5", "7 - 5", "75", "7+5")}) == 4


def grams(text: str) -> set[str]:
    return {text[i : i + NGRAM] for i in range(max(1, len(text) - NGRAM + 1))}


def test_the_nearest_text_is_the_brute_force_one() -> None:
    rng = np.random.default_rng(0)
    words = ["tom", "has", "7", "apples", "and", "buys", "小明", "有", "x"]
    texts = [" ".join(rng.choice(words, size=rng.integers(1, 7))) for _ in range(300)]
    groups = [f"g{i // 2}" for i in range(300)]
    left, right = slice(0, 280), slice(100, 300)  # more than one block of rows, and groups on both sides
    found = nearest_texts(texts[left], texts[right], groups[left], groups[right])
    for i, row in enumerate(found.iter_rows(named=True)):
        mine = grams(normalised(texts[left][i]))
        overlaps = [
            -1.0
            if groups[right][j] == groups[left][i]
            else len(mine & (g := grams(normalised(other)))) / len(mine | g)
            for j, other in enumerate(texts[right])
        ]
        assert row["overlap"] == pytest.approx(max(overlaps), abs=1e-12)
        assert overlaps[row["nearest"]] == pytest.approx(max(overlaps), abs=1e-12)
        assert row["same"] == (normalised(texts[left][i]) == normalised(texts[right][row["nearest"]]))


def test_a_planted_copy_is_found_and_unrelated_text_is_far() -> None:
    train = ["How many apples does Tom have?", "二加三等于几？", "Name the capital of France."]
    copies = ["how many  APPLES does Tom have?", "How many apples does Tim have?", "Zzz qqq jjj"]
    found = nearest_texts(copies, train, list("abc"), list("xyz"))
    assert found["nearest"].to_list()[:2] == [0, 0]
    assert found["same"].to_list() == [True, False, False]
    assert found["overlap"][0] == 1.0
    assert 0.7 < found["overlap"][1] < 1.0
    assert found["overlap"][2] < 0.1


def test_prompts_of_the_own_group_do_not_count_as_copies() -> None:
    found = nearest_texts(["same", "same"], ["same"], ["a", "b"], ["a"])
    assert found["nearest"].to_list() == [None, 0]
    assert found["overlap"].to_list() == [None, 1.0]
    assert found["same"].to_list() == [False, True]
    alone = nearest_texts(["one"], [], ["a"], [])
    assert alone.rows() == [(None, None, False)]
    assert nearest_texts([], ["one"], [], ["a"]).is_empty()


def test_what_remains_is_counted_at_and_above_each_threshold() -> None:
    values = pl.Series([0.5, 1.0, float("nan"), None, 0.2])
    found = remaining(values, pl.Series(list("aaabb")), [0.0, 0.5, 0.6, 1.0])
    assert found.filter(series="a")["count"].to_list() == [2, 2, 1, 1]
    assert found.filter(series="a")["of"].to_list() == [3] * 4
    assert found.filter(series="b")["value"].to_list() == [0.5, 0.0, 0.0, 0.0]
    assert remaining(values.head(0), pl.Series([], dtype=pl.String), [0.0]).is_empty()


def split_table(n: int, copies: int, seed: int) -> pl.DataFrame:
    """Random texts in pairs, a third of the pairs validation, some of them copies of train texts."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("abcdefghij "))
    rows = [
        {
            "id": f"p{i}-{side}",
            "pair_id": f"p{i}",
            "split": "validation" if i % 3 == 0 else "train",
            "text": "".join(rng.choice(letters, size=60)),
        }
        for i in range(n)
        for side in "ab"
    ]
    for i in range(copies):
        rows[6 * i]["text"] = rows[6 * i + 2]["text"]
    return pl.DataFrame(rows)


def test_planted_leakage_is_found_and_unrelated_text_looks_like_the_null() -> None:
    found = split_overlaps(split_table(60, copies=4, seed=1))
    across = found.filter(series="validation to train")
    assert across.filter("same")["id"].sort().to_list() == sorted(f"p{3 * i}-a" for i in range(4))
    assert across.filter("same")["nearest"].sort().to_list() == sorted(f"p{3 * i + 1}-a" for i in range(4))
    null = split_overlaps(split_table(60, copies=0, seed=2))
    means = null.group_by("series").agg(pl.col("overlap").mean())
    # unrelated candidates on both sides, 40 and 80 maxima: their difference has sd 0.0023 over seeds
    assert abs(means["overlap"][0] - means["overlap"][1]) < 0.01
    assert not null["same"].any()
    own = null.join(split_table(60, 0, 2).select("pair_id", nearest="id"), on="nearest", how="left")
    assert (own["group"] != own["pair_id"]).all()


def test_only_some_train_groups_are_drawn_as_wholes() -> None:
    table = split_table(60, copies=0, seed=3)
    few = split_overlaps(table, drawn=5, seed=1).filter(series="within train")
    assert few["group"].n_unique() == 5
    assert few.height == 10
    assert not few.equals(split_overlaps(table, drawn=5, seed=2).filter(series="within train"))
    train = split_overlaps(table.filter(split="train"))
    assert set(train["series"]) == {"within train"}
    lone = split_overlaps(table.filter(pl.col("pair_id").is_in(["p0", "p1"])))
    assert lone.filter(series="within train")["nearest"].to_list() == [None, None]
