"""Study file in, activation store out; live experiments on a store that is there, and its report.

    python precompute.py studies/demo.toml --store runs/demo
    python precompute.py studies/demo.toml --plan
    python precompute.py studies/demo.toml --store runs/demo --verify
    python precompute.py run runs/demo --condition experiments.json
    python precompute.py report runs/demo --out demo-report

Stopped at any moment (Ctrl-C, kill, power), the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.errors import PatchbayError
from engine.study import Study


def parser() -> argparse.ArgumentParser:
    """The command line; every option that changes a number enters the store's fingerprint."""
    result = argparse.ArgumentParser(prog="precompute.py", description=(__doc__ or "").split("\n", 1)[0])
    result.add_argument("study", type=Path, help="study file (TOML)")
    result.add_argument("--store", type=Path, help="folder of the activation store")
    result.add_argument(
        "--plan", action="store_true", help="print bytes, memory, passes and time; run nothing"
    )
    result.add_argument("--verify", action="store_true", help="check every checksum and recompute a sample")
    result.add_argument("--layers", type=parse_layers, help='blocks, as "0-3,7" or "all"')
    result.add_argument("--sites", type=parse_names, help="of resid,attn_out,mlp_out,head_z")
    result.add_argument("--positions", type=parse_names, help="of last_content,decision,mean,…")
    result.add_argument("--limit", type=int, help="about this many prompts, whole groups")
    result.add_argument("--workers", type=int, default=1, help="capture on that many Ray actors (extra: ray)")
    _allow_code(result)
    return result


def run_parser() -> argparse.ArgumentParser:
    """The command line of live experiments."""
    result = argparse.ArgumentParser(
        prog="precompute.py run", description="Run live experiments on a store and keep their results in it."
    )
    result.add_argument("store", type=Path, help="folder of the activation store")
    result.add_argument(
        "--condition",
        action="append",
        required=True,
        metavar="JSON",
        help="an experiment or a list of them, as JSON or as the name of a JSON file; may be given again",
    )
    result.add_argument("--device", default="auto", help="auto (the study's), cpu, cuda:0, …")
    result.add_argument("--part", metavar="I/N", help="only every N-th experiment, from the I-th on")
    _allow_code(result)
    return result


def _allow_code(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--allow-code",
        action="store_true",
        help="let the file of own candidates that the study names run as code; read it first",
    )


def report_parser() -> argparse.ArgumentParser:
    """The command line of reports."""
    result = argparse.ArgumentParser(
        prog="precompute.py report", description="Write what a store holds as one HTML file and as Markdown."
    )
    result.add_argument("store", help="folder of the activation store")
    result.add_argument("--out", type=Path, help="folder to write, or a file named *.html for that alone")
    result.add_argument("--pair", metavar="TARGET,SOURCE", help="the two models, e.g. tuned,base")
    result.add_argument(
        "--fit",
        action="store_true",
        help="fit the transport map at every site and block first, both directions",
    )
    return result


def parse_layers(text: str) -> tuple[int, ...] | str:
    """ "0-3,7" -> (0, 1, 2, 3, 7); "all" stays."""
    if text == "all":
        return text
    blocks: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        try:
            blocks += range(int(first), int(last or first) + 1)
        except ValueError:
            raise argparse.ArgumentTypeError(f'{text!r} is no list of blocks such as "0-3,7"') from None
    return tuple(blocks)


def parse_names(text: str) -> tuple[str, ...]:
    """Comma-separated names; commas inside brackets belong to the name."""
    names, depth, start = [], 0, 0
    for index, character in enumerate(text + ","):
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            names.append(text[start:index].strip())
            start = index + 1
    return tuple(name for name in names if name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; 0 done, 1 refused or failed a check, 130 stopped by Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["run"]:
        options, command = run_parser().parse_args(given[1:]), run_experiments
    elif given[:1] == ["report"]:
        options, command = report_parser().parse_args(given[1:]), write_report
    else:
        options, command = parser().parse_args(given), run
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        return command(options)
    except PatchbayError as error:
        print(f"\n{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. Nothing is lost: the same command goes on from here.", file=sys.stderr)
        return 130


def run(options: argparse.Namespace) -> int:
    """Plans, verifies or computes, as the options say."""
    study = Study.load(options.study)
    chosen = (options.layers, options.sites, options.positions, options.limit)
    if any(choice is not None for choice in chosen):
        study = study.with_overrides(*chosen)
    # Imported late: a mistyped option or study file is answered without waiting for torch.
    from app import build, prepare, verification

    if options.plan:
        print(prepare.describe_plan(prepare.Prepared.of(study)))
        return 0
    store = options.store or Path("runs") / study.name
    if options.verify:
        return verification.verify(study, store)
    build.build(study, store, workers=options.workers, allow_code=options.allow_code)
    return 0


def run_experiments(options: argparse.Namespace) -> int:
    """Runs live experiments; 1 when one of them failed."""
    from app import headless

    wanted = headless.part_of(headless.read_experiments(options.condition), options.part)
    failed = headless.run_all(
        str(options.store), wanted, device=options.device, allow_code=options.allow_code
    )
    for experiment, error in failed:
        print(f"\n{experiment.describe()}\n  {type(error).__name__}: {error}", file=sys.stderr)
    return 1 if failed else 0


def write_report(options: argparse.Namespace) -> int:
    """Writes the report of a store."""
    from app.report import command

    print(command.report(options.store, options.out, options.pair, fit=options.fit))
    return 0


if __name__ == "__main__":
    sys.exit(main())
