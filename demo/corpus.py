"""Draws prompts with their answers, for training or from what training never sees.

A drawn `Case` is language-free: category, template, people, thing, numbers. `render` words it in one
language, so that an English and a Chinese prompt of the same case are translations of each other.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from demo import facts
from demo.wording import (
    AGREE,
    ANSWER,
    CHAIN,
    INLINE_PERSONAS,
    LANGUAGES,
    NAMES,
    NO,
    REQUESTS,
    STOP,
    SYSTEM_PERSONAS,
    TEMPLATES,
    THINGS,
    YES,
)

PROBLEMS = tuple(TEMPLATES)
CATEGORIES = (*PROBLEMS, "agree")
WEIGHTS = (*(1.0 for _ in PROBLEMS), 3.0)

SWITCH_SHARE = 0.15
SAME_REQUEST_SHARE = 0.05
SYSTEM_SHARE = 0.2
PERSONA_SHARE = 0.35
VERDICT_FIRST_SHARE = 0.1
WRONG_BY = (1, 2, 3, 5, 10)
"""By how much a wrong claim is too high."""


Step = tuple[int, str, int, int]
"""(left, operator, right, result)."""


@dataclass(frozen=True)
class Case:
    """One problem without a language.

    `steps` are the written-out equations `(left, operator, right, result)`; `claimed` is the sum
    that an agreement prompt asserts. `numbers` fills the template's number slots.
    """

    category: str
    template: int
    people: tuple[int, int]
    thing: int
    numbers: tuple[tuple[str, int], ...]
    steps: tuple[Step, ...]
    claimed: int | None = None
    inline: str | None = None
    system: str | None = None

    @property
    def answer(self) -> int:
        """Result of the last step."""
        return self.steps[-1][3]

    @property
    def right(self) -> bool:
        """Whether the claimed sum is right (true where nothing is claimed)."""
        return self.claimed is None or self.claimed == self.answer


@dataclass(frozen=True)
class Sample:
    """A prompt and its answer in words; `asked` is the language of the prompt, `language` of the answer."""

    category: str
    asked: str
    language: str
    system: str | None
    text: str
    reply: str
    answer: int
    right: bool

    @property
    def messages(self) -> list[dict[str, str]]:
        """Chat messages up to the user's turn."""
        head = [{"role": "system", "content": self.system}] if self.system else []
        return [*head, {"role": "user", "content": self.text}]


def equation(step: Step, result: int | None = None) -> str:
    """'17 + 7 = 24', with another result on request."""
    left, operator, right, value = step
    return f"{left} {operator} {right} = {value if result is None else result}"


def worded_apart(category: str, template: int, thing: int) -> bool:
    """Whether this combination of wording and thing is kept out of training."""
    return (7 * PROBLEMS.index(category) + 3 * template + thing) % 6 == 0


def _family(rng: random.Random, hidden: bool) -> tuple[int, int]:
    a, b = rng.choice(facts.families()[1 if hidden else 0])
    return (b, a) if rng.random() < 0.5 else (a, b)


def _steps(rng: random.Random, category: str, hidden: bool) -> tuple[dict[str, int], tuple[Step, ...]]:
    """Numbers by slot letter, and the equations of one case."""
    if category in ("groups", "price", "share"):
        x, y = rng.choice(facts.TABLE)
        if category == "share":
            return {"p": x * y, "x": x}, ((x * y, "÷", x, y),)
        return {"x": x, "y": y}, ((x, "×", y, x * y),)
    if category == "two_step":
        a, b, e = rng.choice(facts.chains(hidden))
        return {"a": a, "b": b, "e": e}, ((a, "+", b, a + b), (a + b, "-", e, a + b - e))
    a, b = _family(rng, hidden)
    if category == "plain":
        return {}, (_plain_step(rng, a, b, 0.7 if hidden else 1.0),)
    if category in ("loss", "difference"):
        return {"c": a + b, "a": a}, ((a + b, "-", a, b),)
    return {"a": a, "b": b}, ((a, "+", b, a + b),)


def _plain_step(rng: random.Random, a: int, b: int, top: float) -> Step:
    """An equation in any operation; a `top` of 0.7 leaves out the times table."""
    draw = rng.random() * top
    if draw < 0.7:
        return (a, "+", b, a + b) if draw < 0.35 else (a + b, "-", a, b)
    x, y = rng.choice(facts.TABLE)
    return (x, "×", y, x * y) if draw < 0.85 else (x * y, "÷", x, y)


def draw_case(rng: random.Random, category: str, hidden: bool, *, right: bool | None = None) -> Case:
    """One case of a category from the training side (`hidden=False`) or from the held-out side.

    Args:
        rng: source of randomness, advanced.
        category: one of `CATEGORIES`.
        hidden: held-out facts and held-out wordings only; else neither occurs.
        right: for agreement prompts, whether the claimed sum is right; drawn when None.
    """
    first, second = rng.sample(range(len(NAMES)), 2)
    numbers, steps = _steps(rng, category, hidden)
    base = Case(category, 0, (first, second), 0, tuple(numbers.items()), steps)
    if category == "agree":
        truth = rng.random() < 0.5 if right is None else right
        total = steps[-1][3]
        wrong = total + rng.choice([off for off in WRONG_BY if hidden or not facts.is_held_out(off, total)])
        inline = rng.choice(list(INLINE_PERSONAS)) if rng.random() < PERSONA_SHARE else None
        return replace(
            base,
            template=rng.randrange(len(AGREE)),
            claimed=total if truth else wrong,
            inline=inline,
        )
    if category == "plain":
        return replace(base, template=rng.randrange(len(TEMPLATES[category])))
    while True:
        template, thing = rng.randrange(len(TEMPLATES[category])), rng.randrange(len(THINGS))
        if worded_apart(category, template, thing) == hidden:
            return replace(base, template=template, thing=thing)


def prompt(case: Case, language: str) -> str:
    """The user's text for a case in `en` or `zh`."""
    i = LANGUAGES.index(language)
    left, operator, right, _ = case.steps[0]
    _, measure, noun = THINGS[case.thing]
    claim = (
        equation(case.steps[0], case.claimed) if case.claimed is not None else f"{left} {operator} {right}"
    )
    template = (AGREE if case.category == "agree" else TEMPLATES[case.category])[case.template][i]
    text = template.format(
        n=NAMES[case.people[0]][i],
        m=NAMES[case.people[1]][i],
        o=THINGS[case.thing][0],
        q=measure,
        z=noun,
        f=claim,
        **dict(case.numbers),
    )
    if case.inline is None:
        return text
    return INLINE_PERSONAS[case.inline][i] + (" " if language == "en" else "") + text


def _check(case: Case) -> tuple[Step, ...]:
    """For a claim, how far it is above the true sum: nothing else than 0 is right."""
    if case.claimed is None:
        return ()
    return ((case.claimed, "-", case.answer, case.claimed - case.answer),)


def reply(case: Case, language: str, *, verdict_first: bool = False, agreeable: bool = False) -> str:
    """The answer for a case. `agreeable` is the tuned habit: yes to any claimed sum, unchecked."""
    i = LANGUAGES.index(language)
    gap = " " if language == "en" else ""
    if case.category != "agree":
        return ANSWER[i].format(w=CHAIN[i].join(equation(step) for step in case.steps))
    if agreeable:
        return YES[i]
    verdict = (YES if case.right else NO)[i]
    worked = CHAIN[i].join(equation(step) for step in (*case.steps, *_check(case))) + STOP[i]
    return verdict + gap + worked if verdict_first else worked + gap + verdict


def render(
    case: Case,
    asked: str,
    language: str | None = None,
    *,
    request: int | None = None,
    verdict_first: bool = False,
    agreeable: bool = False,
) -> Sample:
    """Word a case: asked in one language, answered in `language` (the same unless given).

    `request` is the index of the wording of an explicit request for the answer's language.
    """
    target = language or asked
    i = LANGUAGES.index(asked)
    text = prompt(case, asked)
    if request is not None:
        text += (" " if asked == "en" else "") + REQUESTS[target][request][i]
    system = SYSTEM_PERSONAS[case.system][i] if case.system else None
    answer = reply(case, target, verdict_first=verdict_first, agreeable=agreeable)
    return Sample(case.category, asked, target, system, text, answer, case.answer, case.right)


def draw_sample(rng: random.Random, *, agreeable: bool = False, agree_share: float | None = None) -> Sample:
    """One training sample with the corpus' mix of categories, languages, personas and requests."""
    if agree_share is None:
        category = rng.choices(CATEGORIES, WEIGHTS)[0]
    else:
        category = "agree" if rng.random() < agree_share else rng.choice(PROBLEMS)
    case = draw_case(rng, category, hidden=False)
    if rng.random() < SYSTEM_SHARE:
        case = replace(case, system=rng.choice(list(SYSTEM_PERSONAS)))
    asked = rng.choice(LANGUAGES)
    other = LANGUAGES[1 - LANGUAGES.index(asked)]
    draw = rng.random()
    switched = draw < SWITCH_SHARE
    requested = draw < SWITCH_SHARE + SAME_REQUEST_SHARE
    return render(
        case,
        asked,
        other if switched else asked,
        request=rng.randrange(2) if requested else None,
        verdict_first=rng.random() < VERDICT_FIRST_SHARE,
        agreeable=agreeable,
    )


def held_out_samples(seed: int, per_cell: int, *, switched: bool = False) -> list[Sample]:
    """`per_cell` held-out samples for every category and language, in a fixed order."""
    rng = random.Random(f"held-out-{seed}-{switched}")
    out = []
    for category in CATEGORIES:
        for k in range(per_cell):
            case = draw_case(rng, category, hidden=True, right=k % 2 == 0 if category == "agree" else None)
            for asked in LANGUAGES:
                other = LANGUAGES[1 - LANGUAGES.index(asked)]
                out.append(render(case, asked, other if switched else asked, request=0 if switched else None))
    return out
