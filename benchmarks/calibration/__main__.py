"""How often every worded conclusion is said where it is false, and where it is true.

    python -m benchmarks.calibration [--repeats 200] [--only NAME ...] [--write docs/calibration.md]

Arrays and simulated outcomes only, no model. Prints the table that stands in docs/calibration.md, or writes
it there between the two markers. Exit status 1 when a rule is wrong more often than 5 % (binomial error
aside).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from benchmarks.calibration import ENTRIES, PLANTED, Measured, measure, share, table

START, END = "<!-- table -->\n", "<!-- end of table -->\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--only", nargs="*", default=None, help="names of entries")
    parser.add_argument("--write", type=Path, default=None, help="Markdown file with the two markers")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chosen = [e for e in ENTRIES if arguments.only is None or e.name in arguments.only]
    found: list[Measured] = []
    begin = time.perf_counter()
    for entry in chosen:
        for one in measure(entry, arguments.repeats, arguments.seed):
            found.append(one)
            print(f"{one.name}: {one.case}: {share(one)}", file=sys.stderr, flush=True)
    text = table(chosen, found)
    print(text)
    print(f"{arguments.repeats} repeats each, {time.perf_counter() - begin:.0f} s", file=sys.stderr)
    if arguments.write is not None:
        before, rest = arguments.write.read_text().split(START)
        after = rest.split(END)[1]
        arguments.write.write_text(f"{before}{START}\n{text}\n{END}{after}")
    return int(any(one.case != PLANTED and not one.holds for one in found))


if __name__ == "__main__":
    sys.exit(main())
