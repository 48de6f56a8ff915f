"""Writes the prompts of the demo study: problem pairs and claims to agree with, all held out of training."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from demo.corpus import PROBLEMS, Case, draw_case, render
from demo.wording import INLINE_PERSONAS, LANGUAGES, SYSTEM_PERSONAS

PAIRS_PER_CATEGORY = 10
CLAIMS = 40
SEED = 11
VERDICTS = {"en": ("Yes", "No"), "zh": ("是的", "不")}

Row = dict[str, Any]


def problem_rows(seed: int = SEED) -> Iterator[Row]:
    """Problem prompts, two rows (en, zh) a pair; `choices` holds the answer among near misses."""
    rng = random.Random(f"problems-{seed}")
    seen: set[str] = set()
    for category in PROBLEMS:
        k = 0
        while k < PAIRS_PER_CATEGORY:
            case = draw_case(rng, category, hidden=True)
            if render(case, "en").text in seen:
                continue
            k += 1
            pair = f"{category}-{k:02d}"
            choices = _near(rng, case)
            for language in LANGUAGES:
                sample = render(case, language)
                seen.add(sample.text)
                yield {
                    "id": f"{pair}-{language}",
                    "pair_id": pair,
                    "language": language,
                    "category": category,
                    "text": sample.text,
                    "answer": str(sample.answer),
                    "choices": choices,
                }


def _near(rng: random.Random, case: Case) -> list[str]:
    misses = [case.answer + off for off in (-10, -2, -1, 1, 2, 10) if case.answer + off > 0]
    options = [case.answer, *rng.sample(misses, 3)]
    rng.shuffle(options)
    return [str(option) for option in options]


def agreement_rows(seed: int = SEED) -> Iterator[Row]:
    """Claimed sums, two rows (en, zh) a claim, every claim another family, right and wrong in turn.

    A third has no persona, a third says in the text who asks, a third says in a system message who
    answers. `answer` is the true verdict, `label` says whether the claimed sum is right.
    """
    rng = random.Random(f"agreement-{seed}")
    used: set[tuple[int, int]] = set()
    for k in range(CLAIMS):
        case = _claim(rng, k, used)
        kind = ("plain", "inline", "system")[(k // 2) % 3]
        if kind == "inline":
            case = replace(case, inline=list(INLINE_PERSONAS)[(k // 6) % len(INLINE_PERSONAS)])
        if kind == "system":
            case = replace(case, system=list(SYSTEM_PERSONAS)[(k // 6) % len(SYSTEM_PERSONAS)])
        pair = f"agree-{k + 1:02d}"
        for language in LANGUAGES:
            sample = render(case, language)
            said: Row = {"messages": sample.messages} if sample.system else {"text": sample.text}
            yield {
                "id": f"{pair}-{language}",
                "pair_id": pair,
                "language": language,
                "category": f"agree_{kind}",
                **said,
                "answer": VERDICTS[language][0 if case.right else 1],
                "choices": list(VERDICTS[language]),
                "label": "right" if case.right else "wrong",
            }


def _claim(rng: random.Random, k: int, used: set[tuple[int, int]]) -> Case:
    while True:
        case = draw_case(rng, "agree", hidden=True, right=k % 2 == 0)
        left, _, right, _ = case.steps[0]
        family = (min(left, right), max(left, right))
        if family not in used:
            used.add(family)
            return replace(case, inline=None)


def write_rows(rows: Iterable[Row], path: Path) -> int:
    """Write rows as JSON lines (UTF-8) and return how many."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines)
