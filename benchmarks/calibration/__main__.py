"""How often every worded conclusion is said where it is false, and where it is true.

    python -m benchmarks.calibration [--only NAME ...] [--open] [--workers 2] [--write docs/calibration.md]

Arrays and simulated outcomes only, no model. Draws each null until the gate (`benchmarks.calibration.gate`)
passes or fails it. Prints the table that stands in docs/calibration.md, or writes its rows there between the
two markers; with --only, those of the named entries; with --open, those that aren't there or undecided.
Exit status 1 when a null fails.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from benchmarks.calibration import ENTRIES, PLANTED, Measured
from benchmarks.calibration.cases import measured, undecided
from benchmarks.calibration.page import footer, read, share, table, written


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=None, help="as many each, and no gate")
    parser.add_argument("--only", nargs="*", default=None, help="names of entries")
    parser.add_argument("--open", action="store_true", help="what the file of --write doesn't decide yet")
    parser.add_argument("--write", type=Path, default=None, help="Markdown file with the two markers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes")
    arguments = parser.parse_args()
    unknown = set(arguments.only or ()) - {e.name for e in ENTRIES}
    if unknown:
        parser.error(f"no entry is called {', '.join(sorted(unknown))}")
    if arguments.open and arguments.write is None:
        parser.error("--open needs --write, whose file says what is decided")
    chosen = [e for e in ENTRIES if arguments.only is None or e.name in arguments.only]
    asked = [(entry.name, case) for entry in chosen for case in entry.cases]
    if arguments.open:
        asked = undecided(chosen, read(arguments.write.read_text()))
    found: list[Measured] = []
    begin = time.perf_counter()
    for one in measured(asked, arguments.repeats, arguments.seed, arguments.workers):
        found.append(one)
        print(f"{one.name}: {one.case}: {share(one)}", file=sys.stderr, flush=True)
    day = datetime.date.today().isoformat()
    print(table(chosen, found), footer(found, day), sep="\n")
    print(f"{time.perf_counter() - begin:.0f} s", file=sys.stderr)
    if arguments.write is not None:
        arguments.write.write_text(written(arguments.write.read_text(), ENTRIES, found, day))
    return int(any(one.case != PLANTED and not one.holds for one in found))


if __name__ == "__main__":
    sys.exit(main())
