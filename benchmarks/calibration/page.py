"""The table in docs/calibration.md: written, read back, and the sentence under it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from benchmarks.calibration.entry import PLANTED, Entry, Measured
from benchmarks.calibration.gate import LEVEL

START, END = "<!-- table -->\n", "<!-- end of table -->\n"
HEAD = (
    "| Conclusion | Said | Where it is false | False positives | Power |",
    "| --- | --- | --- | --- | --- |",
)
FAILS, OPEN = " **fails**", " *undecided*"
ROW = re.compile(
    r"^\| (?P<name>.+?) \| “.*” \| (?P<case>.+?) \| (?P<said>\d+) of (?P<repeats>\d+): .*? "
    r"\| (?P<found>\d+) of (?P<plants>\d+): ",
    re.MULTILINE,
)


def table(entries: Sequence[Entry], found: Sequence[Measured]) -> str:
    """Markdown: one line for each null that was measured, with the power of its entry."""
    by = {(one.name, one.case): one for one in found}
    lines = list(HEAD)
    for entry in entries:
        power = by.get((entry.name, PLANTED))
        for case in entry.nulls:
            one = by.get((entry.name, case))
            if one is None or power is None:
                continue
            mark = "" if one.passes else OPEN if one.passes is None else FAILS
            lines.append(
                f"| {one.name} | “{entry.sentence}” | {case} | {share(one)}{mark} | {share(power)} |"
            )
    return "\n".join(lines) + "\n"


def read(text: str) -> list[Measured]:
    """What a table tells, each power once."""
    found: dict[tuple[str, str], Measured] = {}
    for row in ROW.finditer(text):
        name = row["name"]
        for case, said, repeats in (
            (row["case"], row["said"], row["repeats"]),
            (PLANTED, row["found"], row["plants"]),
        ):
            found[name, case] = Measured(name, case, int(said), int(repeats))
    return list(found.values())


def share(one: Measured) -> str:
    """ "3 of 200: 1.5 % (0.5 to 4.3)"."""
    return f"{one.said} of {one.repeats}: {_percent(one)}"


def _percent(one: Measured) -> str:
    rate = one.rate
    return f"{100 * rate.estimate:.1f} % ({100 * rate.low:.1f} to {100 * rate.high:.1f})"


def footer(found: Sequence[Measured], day: str) -> str:
    """What the rows say together: how many, how many fail, and which intervals exclude `LEVEL`."""
    nulls = [one for one in found if one.case != PLANTED]
    counts = sorted(one.repeats for one in nulls)
    conclusions = len({one.name for one in nulls})
    many = f"{counts[0]} to {counts[-1]}" if counts[-1] > counts[0] else f"{counts[0]}"
    fails = [one for one in nulls if one.passes is False]
    undecided = [one for one in nulls if one.passes is None]
    above = [one for one in nulls if one.rate.low > LEVEL]
    passing = len(nulls) - len(fails) - len(undecided)
    text = [
        f"Last written {day}: {conclusions} conclusions on {len(nulls)} nulls, {many} repeats each.",
        f"{'All' if passing == len(nulls) else passing} pass the gate.",
    ]
    if fails:
        text.append(f"{len(fails)} fail: {_named(fails)}.")
    if undecided:
        text.append(f"Undecided after their repeats, as marked: {len(undecided)}.")
    if above:
        text.append(f"Intervals above {100 * LEVEL:.0f} %: {len(above)}, {_named(above)}.")
    else:
        text.append(f"No interval lies above {100 * LEVEL:.0f} %.")
    return " ".join(text) + "\n"


def _named(some: Sequence[Measured]) -> str:
    return "; ".join(f"{one.name} where {one.case}, {_percent(one)}" for one in some)


def written(page: str, entries: Sequence[Entry], found: Sequence[Measured], day: str) -> str:
    """A page with what was measured in its table; rows that weren't stay, those of no entry go."""
    before, rest = page.split(START)
    inside, after = rest.split(END)
    new = {(one.name, one.case) for one in found}
    rows = [*(one for one in read(inside) if (one.name, one.case) not in new), *found]
    known = {(entry.name, case) for entry in entries for case in entry.cases}
    rows = [one for one in rows if (one.name, one.case) in known]
    return f"{before}{START}\n{table(entries, rows)}\n{footer(rows, day)}\n{END}{after}"
