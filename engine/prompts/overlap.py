"""Whether a comparison is fair: vocabulary that two models share, and text that two splits share.

Tokens of two vocabularies are the same when their strings are: the same token has another id elsewhere.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from scipy import sparse

from engine.errors import PromptsError

__all__ = [
    "nearest_texts",
    "remaining",
    "shared_ratios",
    "split_overlaps",
    "unshared_tokens",
    "vocabularies",
    "vocabulary_overlap",
]

VOCABULARY: dict[str, Any] = {
    "token_id": pl.Int32,
    "token": pl.String,
    "text": pl.String,
    "missing_in": pl.List(pl.String),
}
OVERLAP: dict[str, Any] = {
    "a": pl.String,
    "b": pl.String,
    "n_a": pl.Int64,
    "n_b": pl.Int64,
    "shared": pl.Int64,
    "same_id": pl.Int64,
}
NGRAM = 3
"""Characters per shingle: short enough that Chinese sentences have some, long enough to carry order."""
BLOCK = 256


def vocabularies(
    encoded: Mapping[str, pl.DataFrame], tokenizers: Mapping[str, Any]
) -> dict[str, pl.DataFrame]:
    """The tokens that occur in the prompts, by model.

    Args:
        encoded: per model, from `engine.prompts.tokens.encode`.
        tokenizers: per model, its Hugging Face tokenizer.

    Returns:
        Per model the columns of `VOCABULARY`, ascending by token_id: the token's string in the
        vocabulary, the text it stands for, and the models whose vocabulary lacks that string.
    """
    known = {model: frozenset(tokenizers[model].get_vocab()) for model in encoded}
    found = {}
    for model, frame in encoded.items():
        ids = frame["token_ids"].explode().drop_nulls().unique().sort().to_list()
        names: list[str] = tokenizers[model].convert_ids_to_tokens(ids)
        texts = [tokenizers[model].decode([i], clean_up_tokenization_spaces=False) for i in ids]
        missing = [[other for other in known if name not in known[other]] for name in names]
        found[model] = pl.DataFrame([ids, names, texts, missing], schema=VOCABULARY)
    return found


def vocabulary_overlap(tokenizers: Mapping[str, Any]) -> pl.DataFrame:
    """For each ordered pair of models: sizes, token strings in both, and how many of them have one id.

    Returns:
        Columns of `OVERLAP`, counts over the whole vocabularies.
    """
    known: dict[str, dict[str, int]] = {model: dict(t.get_vocab()) for model, t in tokenizers.items()}
    rows = []
    for a, first in known.items():
        for b, second in known.items():
            same_id = len(first.items() & second.items())
            rows.append((a, b, len(first), len(second), len(first.keys() & second.keys()), same_id))
    return pl.DataFrame(rows, schema=OVERLAP, orient="row")


def content(tokens: pl.DataFrame) -> pl.DataFrame:
    """One row per content token: `prompt` (row number) and `token_id`.

    Content tokens cover at least one character of the user's own text, as in
    `engine.prompts.positions.content_tokens`.
    """
    start, end = pl.col("offsets").list.get(0), pl.col("offsets").list.get(1)
    return (
        tokens.select("token_ids", "offsets", "content_start", "content_end")
        .with_row_index("prompt")
        .explode("token_ids", "offsets")
        .filter((start < pl.col("content_end")) & (end > pl.col("content_start")) & (end > start))
        .select("prompt", token_id="token_ids")
    )


def shared_ratios(
    tokens: Mapping[str, pl.DataFrame], known: Mapping[str, pl.DataFrame], a: str, b: str
) -> pl.DataFrame:
    """Each prompt's share of content tokens whose string both vocabularies have.

    Args:
        tokens: per model, from `engine.prompts.tokens.encode`; the same prompts in the same order.
        known: per model, from `vocabularies`.
        a, b: the pair.

    Returns:
        One row per prompt: id, ratio_a and ratio_b (content tokens of that model's own tokens that are
        shared / its content tokens), ratio (the smaller of the two), n_a and n_b (content tokens). A
        prompt without content tokens has NaN.

    Raises:
        PromptsError: the two tables don't hold the same prompts in the same order.
    """
    if tokens[a]["id"].to_list() != tokens[b]["id"].to_list():
        raise PromptsError("The two models' prompts differ.", expected="the same ids in the same order")
    out = tokens[a].select("id")
    for name, model, other in (("a", a, b), ("b", b, a)):
        marked = _marked(tokens[model], known[model], other)
        per_prompt = marked.group_by("prompt").agg(share=pl.col("shared").mean(), n=pl.len().cast(pl.Int64))
        every = out.select(prompt=pl.int_range(pl.len(), dtype=pl.UInt32))
        joined = every.join(per_prompt, on="prompt", how="left", maintain_order="left")
        out = out.with_columns(
            joined["share"].fill_null(float("nan")).alias(f"ratio_{name}"),
            joined["n"].fill_null(0).alias(f"n_{name}"),
        )
    smaller = pl.min_horizontal("ratio_a", "ratio_b")
    either = pl.col("ratio_a").is_nan() | pl.col("ratio_b").is_nan()
    ratio = pl.when(either).then(float("nan")).otherwise(smaller)
    return out.select("id", "ratio_a", "ratio_b", ratio.alias("ratio"), "n_a", "n_b")


def _marked(tokens: pl.DataFrame, known: pl.DataFrame, other: str) -> pl.DataFrame:
    """Content tokens with their string and whether the other model's vocabulary has it."""
    shared = known.with_columns(shared=~pl.col("missing_in").list.contains(other))
    return content(tokens).join(shared.drop("missing_in"), on="token_id", how="left")


def unshared_tokens(
    tokens: Mapping[str, pl.DataFrame], known: Mapping[str, pl.DataFrame], a: str, b: str
) -> pl.DataFrame:
    """The content tokens that one vocabulary of the pair lacks, the most frequent first.

    Returns:
        Columns token, text, model (that uses it), missing_in (that lacks it), occurrences, prompts.
    """
    parts = []
    for model, other in ((a, b), (b, a)):
        lost = _marked(tokens[model], known[model], other).filter(~pl.col("shared"))
        parts.append(
            lost.group_by("token", "text")
            .agg(occurrences=pl.len().cast(pl.Int64), prompts=pl.col("prompt").n_unique().cast(pl.Int64))
            .select(
                "token",
                "text",
                pl.lit(model).alias("model"),
                pl.lit(other).alias("missing_in"),
                "occurrences",
                "prompts",
            )
        )
    return pl.concat(parts).sort("occurrences", "model", "token", descending=[True, False, False])


def remaining(values: pl.Series, series: pl.Series, thresholds: Sequence[float]) -> pl.DataFrame:
    """How many values of each series are at or above each threshold.

    Args:
        values, series: (n,), one value and the name of its series each; NaN and null are never kept.

    Returns:
        Columns at (threshold), series, value (share of the series), count, of (its size).
    """
    frame = pl.DataFrame({"value": values.fill_nan(None), "series": series})
    parts = []
    for name, part in frame.group_by("series", maintain_order=True):
        ordered = part["value"].drop_nulls().sort().to_numpy()
        counts = ordered.size - np.searchsorted(ordered, np.asarray(thresholds, dtype=ordered.dtype))
        columns = {"at": list(thresholds), "count": counts, "series": str(name[0]), "of": part.height}
        parts.append(pl.DataFrame(columns, schema_overrides=_REMAINING))
    out = pl.concat(parts) if parts else pl.DataFrame(schema=_REMAINING)
    share = (pl.col("count") / pl.col("of")).alias("value")
    return out.select("at", "series", share, "count", "of")


_REMAINING: dict[str, Any] = {"at": pl.Float64, "series": pl.String, "count": pl.Int64, "of": pl.Int64}


def split_overlaps(prompts: pl.DataFrame, *, drawn: int = 500, seed: int = 0) -> pl.DataFrame:
    """How near every validation prompt's text is to a train prompt, and how near train prompts are.

    The second is what the first is compared with: texts of one study that no split separates, of
    different groups (`pair_id`, else `id`).

    Args:
        prompts: columns id, text, split, and pair_id if there are pairs.
        drawn: the prompts of at most this many train groups, drawn with `seed`, are compared with the others.

    Returns:
        Columns series ("validation to train" or "within train"), id, group, nearest (an id of a train
        prompt, null when there is no other group), overlap and same, as in `nearest_texts`; the largest
        overlaps first.
    """
    pair = [pl.col("pair_id")] if "pair_id" in prompts.columns else []
    whole = prompts.select("id", "text", "split", group=pl.coalesce(*pair, "id"))
    train, validation = (whole.filter(split=name) for name in ("train", "validation"))
    names = train["group"].unique().sort()
    few = train.filter(pl.col("group").is_in(names.sample(min(drawn, len(names)), seed=seed).implode()))
    parts = []
    for series, part in (("validation to train", validation), ("within train", few)):
        texts, groups = part["text"].to_list(), part["group"].to_list()
        near = nearest_texts(texts, train["text"].to_list(), groups, train["group"].to_list())
        found = part.select(pl.lit(series).alias("series"), "id", "group").hstack(near)
        parts.append(found.with_columns(train["id"].gather(found["nearest"]).alias("nearest")))
    return pl.concat(parts).sort("overlap", "id", descending=[True, False], nulls_last=True)


def normalised(text: str) -> str:
    """Text without what makes no other prompt of it: compatibility forms (NFKC), case, white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def nearest_texts(
    texts: Sequence[str], others: Sequence[str], groups: Sequence[str], other_groups: Sequence[str]
) -> pl.DataFrame:
    """For each text the most similar one among `others` of another group.

    Similarity is the Jaccard overlap of the sets of character trigrams of the normalised texts, 1 for
    equal texts  [Broder 1997, "On the resemblance and containment of documents"].

    Returns:
        One row per text: nearest (index into `others`, null when there is none of another group),
        overlap (0 to 1) and same (equal after normalisation).
    """
    ours, theirs = [normalised(t) for t in texts], [normalised(t) for t in others]
    left, right = _shingles(ours, theirs)
    left_size, right_size = np.diff(left.indptr), np.diff(right.indptr)
    names = {name: i for i, name in enumerate(dict.fromkeys([*groups, *other_groups]))}
    left_group = np.array([names[g] for g in groups], dtype=np.int64)
    right_group = np.array([names[g] for g in other_groups], dtype=np.int64)
    turned = right.T.tocsr()
    nearest, overlap = np.full(len(ours), -1), np.zeros(len(ours))
    for first in range(0, len(ours) if theirs else 0, BLOCK):
        rows = slice(first, first + BLOCK)
        both = (left[rows] @ turned).toarray().astype(np.float64)
        jaccard = both / (left_size[rows, None] + right_size[None, :] - both)
        jaccard[left_group[rows, None] == right_group[None, :]] = -1.0
        nearest[rows] = jaccard.argmax(axis=1)
        overlap[rows] = jaccard.max(axis=1)
    none = overlap < 0 if theirs else np.ones(len(ours), dtype=bool)
    same = [not n and ours[i] == theirs[nearest[i]] for i, n in enumerate(none)]
    frame = pl.DataFrame({"nearest": nearest, "overlap": overlap, "same": same}, schema_overrides=_NEAREST)
    lone = pl.Series(none)
    return frame.with_columns(
        pl.when(lone).then(None).otherwise("nearest").alias("nearest"),
        pl.when(lone).then(None).otherwise("overlap").alias("overlap"),
    )


_NEAREST: dict[str, Any] = {"nearest": pl.Int64, "overlap": pl.Float64, "same": pl.Boolean}


def _shingles(ours: Sequence[str], theirs: Sequence[str]) -> tuple[Any, Any]:
    """Rows of zeros and ones: which character n-grams each text has (a shorter text is its own)."""
    index: dict[str, int] = {}
    columns, ends = [], [0]
    for text in (*ours, *theirs):
        grams = {text[i : i + NGRAM] for i in range(max(1, len(text) - NGRAM + 1))}
        columns += [index.setdefault(gram, len(index)) for gram in sorted(grams)]
        ends.append(len(columns))
    shape = (len(ends) - 1, max(1, len(index)))
    whole = sparse.csr_array((np.ones(len(columns), np.int32), columns, ends), shape=shape)
    return whole[: len(ours)], whole[len(ours) :]
