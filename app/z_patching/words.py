"""Sentences about Z-patching, computed from stored results; each with its rule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from app.ard import words as ard_words
from app.frame import noise
from engine.stats.uncertainty import holm

CERTAIN = 0.9
"""Probability from which a token counts as certain."""
OUTCOMES = {"answer": "the answer", "language": "the language"}
CELL = Mapping[str, Any]


def cell(found: CELL) -> str:
    """ "block 4, k = 16"."""
    return f"block {found['layer']}, k = {found['k']}"


def percent(value: float | None) -> str:
    """ "35 %"."""
    return "–" if value is None else f"{100 * value:.0f} %"


def p_value(p: float) -> str:
    """ "p = 0.031" or "p < 0.001"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def counts(test: CELL) -> str:
    """ "17 problems under Z alone, 1 under Z⊥ alone, p < 0.001"."""
    n = int(test["only_z"])
    told = f"{n} problem{'s' if n != 1 else ''} under Z alone, {test['only_rest']} under Z⊥ alone"
    return f"{told}, {p_value(test['p_holm'])}"


def verdict_title(found: CELL) -> str:
    """The verdict in words; the rule is `engine.z_patching.numbers.verdict`."""
    tests, where = found["tests"], cell(found)
    told = [name for name, test in tests.items() if test["told"]]
    by_part = {tests[name]["stronger"]: OUTCOMES[name] for name in told}
    partial, other = "", ""
    if found["outcome"] is not None:
        partial = f"{tests[found['outcome']]['stronger']} changes {OUTCOMES[found['outcome']]}"
        other = next(words for name, words in OUTCOMES.items() if name != found["outcome"])
    said = {
        "double dissociation": f"Double dissociation at {where}: patching Z changes {by_part.get('Z')}, "
        f"patching Z⊥ {by_part.get('Z⊥')}",
        "partial": f"Partial at {where}: {partial} beyond the other part and its controls; for {other} "
        "nothing of the kind stands",
        "one part does both": f"At {where} {' and '.join(by_part)} changes both the answer and the language",
        "not separable from broadcasting": f"At {where} the prompt's own mean does as much as the patch: not "
        "separable from broadcasting",
        "not specific": f"At {where} Z and Z⊥ differ, but random subspaces of their dimension do as much",
        "too few problems": f"{min(test['n'] for test in tests.values())} problems are too few: no outcome "
        "could reach p < 0.05",
        "null": f"Null at {where}: nothing tells patching Z from patching Z⊥",
    }
    return said[str(found["word"])]


def verdict_caption(found: CELL, condition: Mapping[str, Any]) -> str:
    """The tests behind the verdict."""
    parts = []
    for name, test in found["tests"].items():
        stronger = test["stronger"] or "neither"
        random, own = test["random"], test["own"]
        parts.append(
            f"{OUTCOMES[name].capitalize()} changed in {counts(test)} (exact McNemar, Holm over both "
            f"outcomes); the stronger part ({stronger}) against random subspaces of its dimension "
            f"{100 * random['difference']:+.0f} points, {p_value(random['p'])} (exact sign flips against "
            f"{condition['draws']} averaged draws; a further draw stays below "
            f"{percent(min(random['limit'], 1))}), against the own mean {p_value(own)}."
        )
    rest = [name for name, one in found["rest"].items() if not one["exceeds"]]
    if found["word"] == "double dissociation" and rest:
        does = " and ".join(OUTCOMES[name] for name in rest)
        parts.append(f"Random complements change {does} as much as Z⊥: that half is not special to Z⊥.")
    return " ".join(parts)


def transport_note(found: CELL, condition: Mapping[str, Any], other: str | None) -> str:
    """Beside a null by the mean vector: what each token's own mix of source tokens gave, if that was tried.

    Args:
        other: verdict of the same cell by optimal transport; "" where that isn't stored, None where it is
            not asked. Transport replaces at the prompt: beside another patch there is no note.
    """
    patch = (condition["vectors"], condition["mode"], condition["scope"])
    if found["word"] != "null" or patch != ("mean", "replace", "prompt") or other is None:
        return ""
    if not other:
        return "Optimal transport in the mean's place was not tried: this null is of the mean alone. "
    said = "null as well" if other == "null" else f"no null but “{other}”"
    return f"The same with optimal transport in the mean's place is stored: {said}. "


def baseline(summary: Mapping[str, Any]) -> str:
    """Accuracy per language unpatched, and whether it differs: exact McNemar, p < 0.05."""
    found = summary["baseline"]
    shares = [
        f"{name} {percent(one['value'])} ({percent(one['low'])} to {percent(one['high'])})"
        for name, one in found["accuracy"].items()
    ]
    first, second = found["only"]
    names = list(found["accuracy"])
    better = names[0] if first > second else names[1]
    said = f"the model is better in {better}" if found["p"] < 0.05 else "no asymmetry is told apart"
    return (
        f"Unpatched: {', '.join(shares)} right of {summary['n']} problems; {said} ({first} only in "
        f"{names[0]}, {second} only in {names[1]}, {p_value(found['p'])})."
    )


def compared_title(verdicts: Sequence[CELL], outcome: str) -> str:
    """Where Z changes an outcome beyond Z⊥ and its controls, where without being specific, and where not.

    Rule: cells where the parts are told apart, and where the stronger one stands beside its controls, by the
    verdict's own tests with their p Holm-adjusted over the cells.
    """
    tests = [v["tests"][outcome] for v in verdicts]
    apart = _over([t["p_holm"] for t in tests])
    beside = _over([max(t["own"], t["random"]["p"]) for t in tests])
    told = [(v, t, p) for v, t, q, p in zip(verdicts, tests, apart, beside, strict=True) if q < 0.05]
    standing = [v for v, t, p in told if t["stands"] and p < 0.05]
    mine, rest = ([v for v, t, _ in told if t["stronger"] == part] for part in ("Z", "Z⊥"))
    stands = [v for v in mine if v in standing]
    parts = []
    if stands:
        n = len(verdicts)
        count = f", {len(stands)} of {n} cells where up to {0.05 * n:g} would by chance" if n > 1 else ""
        parts.append(f"Z changes {OUTCOMES[outcome]} at {listed(stands)}{count}")
    if len(mine) > len(stands):
        parts.append(
            f"Z beyond Z⊥ but not beyond its controls at {listed([v for v in mine if v not in stands])}"
        )
    if rest:
        named = [v for v in rest if v in standing]
        does = "beyond" if len(named) == len(rest) else "not everywhere beyond" if named else "not beyond"
        parts.append(f"Z⊥ changes {OUTCOMES[outcome]} more at {listed(rest)}, {does} its controls")
    none = f"Z and Z⊥ are nowhere shown to differ in whether {OUTCOMES[outcome]} changes; {seen(tests)}"
    text = "; ".join(parts) or none
    return text[0].upper() + text[1:]


def seen(tests: Sequence[CELL]) -> str:
    """The smallest difference that the exact tests of all cells, for both outcomes, could have shown.

    So many problems of n, all of them under one part alone, that 2·½^count stays below 0.05 over the tests.
    """
    n, count = min(int(t["n"]) for t in tests), math.floor(math.log2(2 * 2 * len(tests) / 0.05)) + 1
    if n < count:
        return f"{n} problems are too few to show any difference"
    return f"less than {count} of {n} problems under one part alone would not have been seen"


def _over(p: Sequence[float]) -> list[float]:
    """Holm's p-values over cells."""
    return [float(q) for q in holm(np.array(p, dtype=np.float64))]


def listed(cells: Sequence[CELL]) -> str:
    """ "blocks 4 and 5 (k 8, 16)", in words short enough for a title."""
    by_layer: dict[int, list[int]] = {}
    for one in cells:
        by_layer.setdefault(int(one["layer"]), []).append(int(one["k"]))
    named = [f"block {layer} (k {', '.join(map(str, ks))})" for layer, ks in by_layer.items()]
    return " and ".join([", ".join(named[:-1]), named[-1]] if len(named) > 1 else named)


def controls_title(rates: Sequence[Mapping[str, Any]], found: CELL) -> str:
    """What the controls do where Z and Z⊥ differ most, in shares of problems."""
    outcome, test = max(found["tests"].items(), key=lambda one: abs(one[1]["only_z"] - one[1]["only_rest"]))
    part, metric = (
        test["stronger"] or "Z",
        {"answer": "answer changed", "language": "language disrupted"}[outcome],
    )
    share = {r["source"]: percent(r["value"]) for r in rates if (r["part"], r["metric"]) == (part, metric)}
    return (
        f"{metric[0].upper()}{metric[1:]} under {part} at {cell(found)}: {share['pair']}; random subspaces "
        f"{share['random']}, another problem's source {share['other']}, own mean {share['own']}"
    )


def setup(condition: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """What was run."""
    where = (condition.get("where") or {}).get("category")
    chosen = f"split: {condition['split']}" + (f", category {where}" if where else "")
    put = {
        ("replace", "mean"): "every token's part replaced by the source prompt's mean",
        ("replace", "transport"): "every token's part replaced by a mix of source tokens (optimal transport)",
        ("shift", "mean"): "the difference between the two prompts' means added to every token",
    }[condition["mode"], condition["vectors"]]
    scope = "prompt tokens" if condition["scope"] == "prompt" else "prompt and generated tokens"
    own = (
        " The own mean moves nothing in this mode: its control is the unpatched answer."
        if condition["mode"] == "shift"
        else ""
    )
    return (
        f"{summary['n']} problems ({chosen}), {condition['target_language']} ← "
        f"{condition['source_language']}, {condition['site']}, Z by {basis(condition, summary)}; "
        f"{put}; {scope}.{own}"
    )


def basis(condition: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """What spans Z; for lengthscales the stored fit of each block, and what it found."""
    name = str(condition["basis"])
    if condition.get("fold_norm"):
        return f"{name}, of kernels with the norms' gains"
    fits = summary.get("fits") or []
    if not fits:
        return name
    each = [
        f"block {fit['layer']}: run {fit['run_id'][:8]}, {fit['found']}, "
        f"{fit['under']} dimension{'s' * (fit['under'] != 1)} {_counted(fit)}"
        for fit in fits
    ]
    seen = max(fit["seen"] for fit in fits)
    told = f"{seen} of these problems" if seen else "none of these problems"
    return f"smallest lengthscale ({'; '.join(each)}; fitted to {told})"


def _counted(fit: Mapping[str, Any]) -> str:
    """By which rule a fit's dimensions were counted; runs of before don't say."""
    rule = fit.get("rule")
    return "under its threshold" if rule is None else f"under the threshold ({ard_words.RULES[rule]})"


def tokens_title(
    table: pl.DataFrame, shown: Sequence[str], pair_id: str, condition: Mapping[str, Any]
) -> str:
    """Where the generated token was least certain, over the conditions shown.

    Rule: the smallest probability of a generated token; from 90 % on, that all are as certain as that.
    """
    where = f"Problem {pair_id} at {cell(condition)}"
    kept = table.filter(pl.col("condition").is_in(list(shown)))
    least = kept.filter(pl.col("rank") == 0).sort("probability", maintain_order=True).row(0, named=True)
    if least["probability"] >= CERTAIN:
        least_percent = math.floor(1000 * least["probability"]) / 10  # never rounded up
        return f"{where}: every token is chosen with {least_percent:g} % or more"
    here = (pl.col("condition") == least["condition"]) & (pl.col("step") == least["step"])
    other = kept.filter(here, pl.col("rank") == 1).row(0, named=True)
    return (
        f"{where}: least certain under {least['condition']}, token {least['step'] + 1}: “{least['token']}” "
        f"{percent(least['probability'])} before “{other['token']}” {percent(other['probability'])}"
    )


def tokens_caption(condition: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """What was generated again, and whether it is the run's text."""
    count, differs = summary["conditions"], summary["differs"]
    again = f"{differs} of {count} texts differ from the run's: another batch rounds differently."
    if not differs:
        again = "Every text came out as in the run."
    if differs is None:
        again = "The run itself is not stored, so that its texts cannot be compared."
    return (
        f"Greedy generation again under {count} conditions, of which four are drawn; softmax over the whole "
        f"vocabulary, the {condition['top']} likeliest tokens of each step kept; a token that ends the text "
        f"counts. {again}{noise.log_note(summary)}"
    )
