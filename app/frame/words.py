"""Sentences computed from data: every panel's title. Pure functions, each with its rule written down."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

SAME = 1e-6
"""A CKA closer to 1 than this is called the same: the Gram matrices are kept in float32."""
CLOSE = 0.98
"""Above this a CKA has as many digits as tell it from 1."""
DIGITS = 1e-6
"""A distance from 1 below this gets no digits of its own."""


LABELS = {
    "resid_pre": "residual stream, entering (resid_pre)",
    "resid_post": "residual stream, leaving (resid_post)",
    "attn_out": "attention output (attn_out)",
    "mlp_out": "MLP output (mlp_out)",
    "head_z": "head values (head_z)",
    "head_out": "head contributions (head_out)",
    "last_content": "last content token",
    "decision": "decision token",
    "last_nonspecial": "last non-special token",
    "mean": "mean over content",
    "mean_all": "mean over all tokens",
    "assistant_start": "first token of the assistant's header",
    "first_answer": "first token of the answer",
    "answer_mean": "mean over the answer",
    "all": "all",
}


def label(value: str) -> str:
    """Human name of a site, position or filter value."""
    return LABELS.get(value, value)


def position_said(name: str) -> str:
    """A position within a sentence: "the last content token"; one without a name for people as it is."""
    return f"the {LABELS[name]}" if name in LABELS else name


def limits_said(condition: Mapping[str, Any]) -> list[str]:
    """The languages and categories that a stored condition keeps to, "language zh" each."""
    return [f"{k} {v}" for k, v in (condition.get("where") or {}).items() if v is not None]


def read_said(condition: Mapping[str, Any]) -> str:
    """At which token a patch's effect is read, for a sentence that named the patched one."""
    return "there" if condition["read_at"] == "patched" else "at the decision token"


def number(value: float, digits: int = 2) -> str:
    """A number for a sentence: fixed digits near 1, scientific when tiny, never '−0.00'."""
    if math.isnan(value):
        return "undefined"
    if value == 0:
        return "0"
    if abs(value) < 0.5 * 10.0**-digits:
        return minus(f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e+"))
    return minus(f"{value:.{digits}f}")


def sentence(text: str) -> str:
    """A text with a capital at its start."""
    return text[:1].upper() + text[1:]


def minus(text: str) -> str:
    """A written number with a typographic minus sign; the sign of an exponent stays."""
    return "−" + text[1:] if text.startswith("-") else text


def size(count: float) -> str:
    """Bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def percent(value: float, low: float, high: float) -> str:
    """ "99.8 % (99.7 to 99.9)" with the digits that tell the ends apart, and the value from 0.

    Rule: no decimals where the ends are 5 or more apart, else the fewest that do it, 1 or 2. Ends that are
    the same in 2 decimals are told as that.
    """

    def written(digits: int) -> list[str]:
        return [minus(f"{round(end, digits) + 0.0:.{digits}f}") for end in (value, low, high)]

    if high - low >= 5:
        found = written(0)
    else:
        found = next(
            (w for n in range(1, 3) if (w := written(n))[1] != w[2] and (value == 0 or w[0].strip("−.0"))),
            written(2),
        )
    if found[1] == found[2]:
        return minus(f"{round(value, 4) + 0.0:g}") + " % (± less than 0.01)"
    return f"{found[0]} % ({found[1]} to {found[2]})"


def nats(value: float) -> str:
    """A KL for a sentence: three significant digits, 7e-7 rather than 0.0000007, 0 below 1e-9."""
    if abs(value) < 1e-9:
        return "0"
    text = f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.0e}"
    return minus(text.replace("e-0", "e-"))


def nats_span(row: Mapping[str, float]) -> str:
    """'0.83 nats (0.7 to 0.97)' from a row with kl, low, high."""
    return f"{nats(row['kl'])} nats ({nats(row['low'])} to {nats(row['high'])})"


def span(low: float | None, high: float | None, digits: int = 2) -> str:
    """An interval in parentheses, or nothing when it is not known."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return ""
    return f" ({number(low, digits)} to {number(high, digits)})"


def blocks(layers: Sequence[int]) -> str:
    """Block numbers in words: runs are joined, at most four runs are named."""
    if not layers:
        return "no block"
    runs: list[tuple[int, int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], layer)
        else:
            runs.append((layer, layer))
    names = [f"{a}" if a == b else f"{a}-{b}" for a, b in runs]
    text = ", ".join(names[:4]) + (" and others" if len(names) > 4 else "")
    return ("block " if len(layers) == 1 else "blocks ") + text


def cka_title(curve: pl.DataFrame, null: pl.DataFrame, a: str, b: str, site: str) -> str:
    """Where two models part, by how much, and whether anything reaches the null.

    Rule: they part at the first block whose value is more than 1e-6 and more than rounding below 1, and whose
    interval, where there is one, ends that far below 1; they are identical before when every block before is
    within 1e-6 of 1, and equal within rounding when every block is within that. A block is inside the null
    when its value is at most the null's upper end.

    Args:
        curve: columns layer, value, low, high of one estimator, and noise: 1 − CKA up to it is rounding.
        null: columns layer, high.
    """
    rows = curve.drop_nulls("value").drop_nans("value").sort("layer").to_dicts()
    if not rows:
        return f"CKA of {a} and {b} at {site} is undefined: the activations do not vary over these prompts"
    parted = [r for r in rows if r["value"] < 1 - SAME and not _reaches_one(r)]
    lowest = min(rows, key=lambda r: r["value"])
    worst = cka_value(lowest)
    if not parted:
        if lowest["value"] >= 1 - SAME:
            return f"{a} and {b} have the same geometry at {site} in every block"
        if all(_rounded(r) for r in rows):
            return f"{a} and {b} are equal within rounding at {site} in every block: {worst} at the least"
        return f"{a} and {b} cannot be told apart at {site}: every interval reaches 1, the lowest is {worst}"
    first = parted[0]
    before = [r for r in rows if r["layer"] < first["layer"]]
    if before:
        near = "equal within rounding before" if all(map(_rounded, before)) else "not told apart before"
        told = "identical before" if all(r["value"] >= 1 - SAME for r in before) else near
        text = f"{b} leaves {a} at block {first['layer']} ({site}): {told}, {cka_value(first)} there"
    else:
        text = f"{b} differs from {a} from block {first['layer']} on ({site}): {cka_value(first)}"
    if lowest["layer"] != first["layer"]:
        text += f"; lowest at block {lowest['layer']}, {cka_value(lowest)}"
    ends = dict(zip(null["layer"].to_list(), null["high"].to_list(), strict=True)) if null.height else {}
    lost = [r["layer"] for r in rows if r["layer"] in ends and r["value"] <= ends[r["layer"]]]
    if lost:
        return text + f"; {blocks(lost)} cannot be told from unrelated prompts"
    compared = all(_known(ends.get(r["layer"])) for r in rows)
    return text + "; above unrelated pairing everywhere" if compared else text


def cka_value(row: Mapping[str, float]) -> str:
    """'CKA 0.90 (0.88 to 0.92)', close to 1 'CKA 0.9998 (0.9997 to 0.9999)': digits that tell it from 1."""
    value, low, high = row["value"], row["low"], row["high"]
    known = _known(low) and _known(high)
    if value < CLOSE and not (known and high >= CLOSE):
        return f"CKA {number(value)}{span(low, high)}"
    least = _places(value)
    around = f" ({low:.{least}f} to {high:.{max(least, _places(high))}f})" if known else ""
    return f"CKA {value:.{least}f}{around}"


def _places(value: float) -> int:
    """Decimals that tell a CKA from 1, two at least."""
    return 2 if 1 - value < DIGITS else max(2, math.ceil(-math.log10(1 - value) - 1e-9))


def _rounded(row: Mapping[str, Any]) -> bool:
    """Whether a CKA is as far from 1 as rounding takes it."""
    return bool(row["value"] >= 1 - max(SAME, row.get("noise") or 0.0))


def _reaches_one(row: Mapping[str, Any]) -> bool:
    """Whether a CKA or the upper end of its interval is within rounding of 1."""
    least = 1 - max(SAME, row.get("noise") or 0.0)
    return _rounded(row) or (_known(row["high"]) and bool(row["high"] >= least))


def _known(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def heatmap_title(table: pl.DataFrame, a: str, b: str) -> str:
    """How often the most similar block is the block itself.

    Rule: for each block of `a`, the block of `b` with the largest value; ties count as the own block.
    Blocks without any defined value are left out.
    """
    own, shifts = 0, []
    defined = table.drop_nulls("value").drop_nans("value")
    layers = defined["layer"].unique().sort().to_list()
    if not layers:
        return f"CKA of {a} and {b} is undefined: the activations do not vary over these prompts"
    for layer in layers:
        row = defined.filter(pl.col("layer") == layer)
        best = float(row["value"].max())  # type: ignore[arg-type]
        winners = row.filter(pl.col("value") >= best - 1e-9)["other"].to_list()
        if layer in winners:
            own += 1
        else:
            shifts.append(abs(winners[0] - layer))
    if own == len(layers):
        return f"Each block of {a} is most similar to the same block of {b}"
    text = f"{own} of {len(layers)} blocks of {a} are most similar to the same block of {b}"
    return text + f"; the others point up to {max(shifts)} block{'s' if max(shifts) > 1 else ''} away"


def language_title(table: pl.DataFrame, a: str, b: str) -> str:
    """In which language two models differ most, and where.

    Rule: the block with the largest gap is told among those where the intervals of the two languages are
    further apart than rounding, unless no gap reaches a tenth of the largest distance from 1; where there is
    none, the largest difference that the intervals allow is told.

    Args:
        table: columns layer, series, value, low, high, and noise as in `cka_title`; blocks undefined in a
        language are left out.
    """
    names = table["series"].unique(maintain_order=True).to_list()
    if len(names) < 2:
        return f"Only one language: {names[0]}" if names else "No language column in the prompts"
    at: dict[int, list[dict[str, Any]]] = {}
    for row in table.drop_nulls("value").drop_nans("value").sort("value").to_dicts():
        at.setdefault(row["layer"], []).append(row)
    ends = [(rows[0], rows[-1]) for _, rows in sorted(at.items()) if len(rows) == len(names)]
    if not ends:
        return f"CKA of {a} and {b} is undefined: the activations do not vary over these prompts"
    both = " and ".join(names)
    deepest = 1 - min(low["value"] for low, _ in ends)
    if all(_rounded(low) for low, _ in ends):
        how = "have the same geometry" if deepest <= SAME else "are equal within rounding"
        return f"{a} and {b} {how} in {both}"
    widest = max(high["value"] - low["value"] for low, high in ends)
    most = max(max(two["high"] - one["low"], one["high"] - two["low"]) for one, two in ends)
    untold = f"{a} and {b} are not shown to differ more in one language"
    if widest <= max(0.1 * deepest, SAME):
        near = f"within {widest:.0e}".replace("e-0", "e-")
        return f"{untold}: the curves stay {near}; {unseen(most)}"
    apart = [(low, high) for low, high in ends if low["high"] + (low.get("noise") or 0.0) < high["low"]]
    if not apart:
        return f"{untold}: the intervals overlap at every block; {unseen(most)}"
    low, high = max(apart, key=lambda pair: pair[1]["value"] - pair[0]["value"])
    return (
        f"{a} and {b} differ more in {low['series']} than in {high['series']}; "
        f"at block {low['layer']} {cka_value(low)} against {cka_value(high)}"
    )


def unseen(most: float) -> str:
    """How large a difference may be that was not shown: the largest that its interval holds."""
    return f"differences up to {number(most)} are not ruled out"


def difference_title(table: pl.DataFrame, names: Sequence[str], model: str) -> str:
    """Where the updates of two languages differ, by the interval of their difference.

    Rule: they differ at a block when the limits of the difference, which hold for all blocks together,
    exclude 0; the largest such difference is told.

    Args:
        table: columns layer, value, low, high of the first language's R minus the second's.
    """
    rows = table.drop_nulls().drop_nans().filter((pl.col("low") > 0) | (pl.col("high") < 0))
    if not rows.height:
        known = table.drop_nulls().drop_nans()
        ends = [abs(end) for side in ("low", "high") for end in known[side].to_list()]
        most = f"; {unseen(max(ends))}" if ends else ""
        return f"{model}: no difference in R between {names[0]} and {names[1]} is shown at any block{most}"
    top = rows.sort(pl.col("value").abs(), descending=True).row(0, named=True)
    more, less = (names[0], names[1]) if top["value"] > 0 else (names[1], names[0])
    near, far = sorted((abs(top["low"]), abs(top["high"])))
    return (
        f"{model}: R is larger in {more} than in {less} by {number(abs(top['value']), 3)}{span(near, far, 3)}"
        f" at block {top['layer']}; the languages differ at {blocks(rows['layer'].to_list())}"
    )


def languages_title(table: pl.DataFrame, model: str, chance: float) -> str:
    """The range of R in each language, next to chance; it ranks nothing.

    Args:
        table: columns layer, series (the language), value.
    """
    parts = [
        f"{number(float(part['value'].min()))} to {number(float(part['value'].max()))} in {name}"  # type: ignore[arg-type]
        for (name,), part in table.drop_nans("value").group_by("series", maintain_order=True)
    ]
    return f"{model}: R is {' and '.join(parts)}; chance is {number(chance)}"


def lengths_title(table: pl.DataFrame, model: str) -> str:
    """How long updates are, and which block's is longest where the intervals tell.

    Rule: the longest is named when its lower limit is above every other block's upper limit. Blocks whose
    update is mostly rounding are not in the table.

    Args:
        table: columns update, series ("whole" among them), value, low, high.
    """
    whole = table.filter(pl.col("series") == "whole").sort("value", descending=True)
    if whole.is_empty():
        return f"{model}: every update is lost in rounding"
    ends = f"{number(float(whole['value'][-1]))} to {number(float(whole['value'][0]))}"
    text = f"{model}: updates are {ends} long on average"
    if whole.height > 1 and whole["low"][0] > float(whole["high"][1:].max()):  # type: ignore[arg-type]
        return f"{text}, the longest at {whole['update'][0]}"
    return f"{text}; the intervals don't tell which is longest" if whole.height > 1 else text


def split_title(table: pl.DataFrame, model: str, layer: int) -> str:
    """Which of a block's two parts lies more in Z, at the selected block.

    Rule: by the intervals of the two values of R, and by p: in a random subspace of Z's dimension they must
    rarely (5 %) be as far apart. R is a ratio, so this says nothing of which part is longer.

    Args:
        table: columns layer, series ("attention", "MLP"), value, low, high, p.
    """
    at = table.filter(pl.col("layer") == layer)
    if at.height < 2:
        return f"{model}: attention and MLP parts of every update"
    attn = at.filter(pl.col("series") == "attention").row(0, named=True)
    mlp = at.filter(pl.col("series") == "MLP").row(0, named=True)
    told = f"R {number(attn['value'])}{span(attn['low'], attn['high'])} against "
    told += f"{number(mlp['value'])}{span(mlp['low'], mlp['high'])}"
    apart = attn["low"] > mlp["high"] or attn["high"] < mlp["low"]
    if apart and not attn["p"] < 0.05:
        chance = "attention and MLP are not shown to be further apart in Z than by chance "
        chance += f"(p = {number(attn['p'])})"
        return f"{model}, block {layer}: {chance}; {told}"
    if attn["low"] > mlp["high"]:
        return f"{model}, block {layer}: attention's output lies more in Z than the MLP's; {told}"
    if attn["high"] < mlp["low"]:
        return f"{model}, block {layer}: the MLP's output lies more in Z than attention's; attention {told}"
    return f"{model}, block {layer}: attention and MLP are not told apart by how much lies in Z; {told}"


def verdict_title(model: str, verdict: str) -> str:
    """A verdict that starts a sentence of its own, as a statement about a model."""
    text = verdict.rstrip(".")
    for start in ("Never Z-dominated", "Z-dominated", "Not shown"):
        if text.startswith(start):
            return f"{model} is {text if start.startswith('Z') else text[0].lower() + text[1:]}"
    return f"{model}: {text}"
