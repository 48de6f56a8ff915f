"""Study file in, activation store out; live experiments on a store that is there, and its report.

    python precompute.py studies/demo.toml --store runs/demo
    python precompute.py studies/demo.toml --plan
    python precompute.py studies/demo.toml --store runs/demo --verify
    python precompute.py run runs/demo --condition experiments.json
    python precompute.py run runs/demo --condition experiments.json --engine ray --workers 4
    python precompute.py report runs/demo --out demo-report
    python precompute.py import runs/mine --model base=base.npz --model tuned=tuned.npz --prompts p.jsonl
    python precompute.py note runs/demo "block 4 looks right, asked again with 200 prompts"
    python precompute.py push runs/demo OWNER/NAME
    python precompute.py pull OWNER/NAME runs/theirs
    python precompute.py migrate runs/demo

Stopped at any moment (Ctrl-C, kill, power), the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.workers.asked import Workers, add_options
from engine.errors import PatchbayError
from engine.study.roots import allow_roots
from engine.study.study import Study


def parser() -> argparse.ArgumentParser:
    """The command line; every option that changes a number enters the store's fingerprint."""
    result = verify_parser("precompute.py", (__doc__ or "").split("\n", 1)[0])
    result.epilog = (
        "On a store that is there: "
        "precompute.py run | report | note | import | push | pull | migrate, each with --help."
    )
    result.add_argument(
        "--plan", action="store_true", help="print bytes, memory, passes and time; run nothing"
    )
    result.add_argument("--verify", action="store_true", help="check every checksum and recompute a sample")
    add_options(result, "capture")
    return result


def verify_parser(
    prog: str = "precompute.py --verify", description: str = "Check every checksum of a store."
) -> argparse.ArgumentParser:
    """The command line of a study and its store."""
    result = plan_parser(prog, description)
    result.add_argument("--store", type=place, help="folder of the activation store")
    return result


def plan_parser(
    prog: str = "precompute.py --plan", description: str = "Say what the store of a study will cost."
) -> argparse.ArgumentParser:
    """The command line of a study alone."""
    result = argparse.ArgumentParser(prog=prog, description=description)
    result.add_argument("study", type=Path, help="study file (TOML)")
    result.add_argument("--layers", type=parse_layers, help='blocks, as "0-3,7" or "all"')
    result.add_argument("--stride", type=int, help="each n-th block of all, from 0")
    result.add_argument("--sites", type=parse_names, help="of resid,attn_out,mlp_out,head_z")
    result.add_argument("--positions", type=parse_names, help="of last_content,decision,mean,…")
    result.add_argument("--limit", type=int, help="about this many prompts, whole groups")
    _trust(result)
    _log(result)
    return result


def run_parser() -> argparse.ArgumentParser:
    """The command line of live experiments."""
    result = argparse.ArgumentParser(
        prog="precompute.py run", description="Run live experiments on a store and keep their results in it."
    )
    result.add_argument("store", type=place, help="folder of the activation store")
    result.add_argument(
        "--condition",
        action="append",
        required=True,
        metavar="JSON",
        help="an experiment or a list of them, as JSON or as the name of a JSON file; may be given again",
    )
    result.add_argument("--device", default="auto", help="auto (the study's), cpu, cuda:0, …")
    result.add_argument(
        "--despite-failed-checks", action="store_true", help="run on a store that failed its own checks, too"
    )
    result.add_argument("--part", metavar="I/N", help="only every N-th experiment, from the I-th on")
    add_options(result, "run them")
    _trust(result)
    _log(result)
    return result


def _log(command: argparse.ArgumentParser) -> None:
    """Where what is said is kept as well."""
    command.add_argument(
        "--log", type=Path, metavar="FILE", help="keep what is said, with its time, in a file"
    )


def _trust(command: argparse.ArgumentParser) -> None:
    """What whoever types a command may allow, and no file can."""
    command.add_argument(
        "--allow-code",
        action="store_true",
        help="let code run that the study names: own candidates, and what comes with a model; read it first",
    )
    command.add_argument(
        "--root",
        action="append",
        default=[],
        metavar="DIR",
        help="a folder that the study's files may lie in, beside its own and this one; may be given again",
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


def migrate_parser() -> argparse.ArgumentParser:
    """The command line of migrations."""
    result = argparse.ArgumentParser(
        prog="precompute.py migrate",
        description="Bring a store that an earlier version wrote up to date, where it is.",
    )
    result.add_argument("store", type=place, help="folder of the activation store")
    return result


def push_parser() -> argparse.ArgumentParser:
    """The command line of stores sent to the Hub."""
    result = argparse.ArgumentParser(
        prog="precompute.py push",
        description="Send a finished store to a dataset repository of the Hugging Face Hub: prompts, "
        "activations, results, notes and the study's text. A new repository is private.",
    )
    result.add_argument("store", type=Path, help="folder of the activation store")
    result.add_argument("repository", metavar="OWNER/NAME", help="the repository, @BRANCH behind it or not")
    result.add_argument("--public", action="store_true", help="let everybody read a repository made now")
    return result


def pull_parser() -> argparse.ArgumentParser:
    """The command line of stores fetched from the Hub."""
    result = argparse.ArgumentParser(
        prog="precompute.py pull", description="Fetch a store from the Hugging Face Hub, and check it."
    )
    result.add_argument("repository", metavar="OWNER/NAME", help="the repository, @REVISION behind it or not")
    result.add_argument("store", type=Path, help="a new folder for it")
    return result


def note_parser() -> argparse.ArgumentParser:
    """The command line of notes."""
    result = argparse.ArgumentParser(
        prog="precompute.py note", description="Keep a dated note in a store, or print those that are there."
    )
    result.add_argument("store", type=place, help="folder of the activation store")
    result.add_argument("text", nargs="?", help="the note; without one, all notes are printed")
    result.add_argument("--author", default=None, help="who writes it (the name of the account)")
    result.add_argument("--run", default="", metavar="ID", help="the run that it is about")
    return result


def import_parser() -> argparse.ArgumentParser:
    """The command line of activations that were computed elsewhere."""
    result = argparse.ArgumentParser(
        prog="precompute.py import",
        description="Make a store of activations from elsewhere; pages that run no model read it.",
    )
    result.add_argument("store", type=place, help="folder of the new store")
    result.add_argument(
        "--model",
        action="append",
        required=True,
        metavar="NAME=FILE",
        help="a model's activations: .npz, .safetensors, .pt or a folder of .npy, each array named after its "
        "site (resid_pre.4, blocks.4.hook_mlp_out, model.layers.4.output.0, …); give one for each model",
    )
    result.add_argument(
        "--prompts",
        type=Path,
        required=True,
        help="a row for each row of the arrays: text, and what is known",
    )
    result.add_argument(
        "--token", help="which token to take of (prompt, token, width): a number, or a column of the prompts"
    )
    result.add_argument(
        "--position", default="last_content", help="what that is: last_content, decision, mean"
    )
    result.add_argument("--name", default="imported", help="of the study")
    result.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the store")
    _log(result)
    return result


def place(text: str) -> str | Path:
    """Where a store lies: a folder, or a URL."""
    from store.sources import as_place

    return as_place(text)


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
    name = given.pop(0) if given[:1] and given[0] in AFTER_THE_STORE else "precompute"
    command = COMMANDS[name]
    parser = command.parser()
    read = parser.parse_intermixed_args if name == "note" else parser.parse_args  # its text may come last
    return carry_out(command.run, read(given))


def carry_out(command: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """Runs a command with its options; its error becomes a message and 1, Ctrl-C 130."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    with _kept(getattr(options, "log", None)):
        return _carried_out(command, options)


@contextlib.contextmanager
def _kept(file: Path | None) -> Iterator[None]:
    """What is said meanwhile, warnings and errors too, is added to a file."""
    if file is None:
        yield
        return
    try:
        handler = logging.FileHandler(file, encoding="utf-8")
    except OSError as error:
        raise SystemExit(f"--log: {file} cannot be written: {error.strerror or error}") from None
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    said, root = logging.getLogger("patchbay"), logging.getLogger()
    level = said.level
    for other in root.handlers:
        other.setLevel(max(other.level, logging.WARNING))
    said.setLevel(logging.INFO)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
        said.setLevel(level)


def _carried_out(command: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    try:
        allow_roots(getattr(options, "root", ()))
        if getattr(options, "allow_code", False):
            from engine.models.trust import allow_code

            allow_code(True)
        return command(options)
    except PatchbayError as error:
        print(f"\n{type(error).__name__}: {error}", file=sys.stderr)
        logging.getLogger("patchbay.said").info("%s: %s", type(error).__name__, error)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. Nothing is lost: the same command goes on from here.", file=sys.stderr)
        return 130


def run(options: argparse.Namespace) -> int:
    """Computes a store, or plans or verifies one where an option says so."""
    if options.plan:
        return plan(options)
    if options.verify:
        return verify(options)
    workers, study = Workers.of(options), _study(options)
    # Imported late: a mistyped option or study file is answered without waiting for torch.
    from app.build import build

    build.build(study, _store(options, study), workers=workers, allow_code=options.allow_code)
    return 0


def plan(options: argparse.Namespace) -> int:
    """Says what the store of a study will cost."""
    study = _study(options)
    from app.build import prepare

    print(prepare.describe_plan(prepare.Prepared.of(study)))
    return 0


def verify(options: argparse.Namespace) -> int:
    """Checks a store; 1 when anything is damaged or a check failed."""
    study = _study(options)
    from app.build import verify as verification

    return verification.verify(study, _store(options, study))


def _study(options: argparse.Namespace) -> Study:
    study = Study.load(options.study)
    chosen = (options.layers, options.sites, options.positions, options.limit, options.stride)
    return study if all(choice is None for choice in chosen) else study.with_overrides(*chosen)


def _store(options: argparse.Namespace, study: Study) -> str | Path:
    return options.store or Path("runs") / study.name


def run_experiments(options: argparse.Namespace) -> int:
    """Runs live experiments; 1 when one of them failed."""
    workers = Workers.of(options)
    from app.live import headless

    wanted = headless.part_of(headless.read_experiments(options.condition), options.part)
    failed = headless.run_all(
        str(options.store),
        wanted,
        device=options.device,
        allow_code=options.allow_code,
        despite_failed_checks=options.despite_failed_checks,
        workers=workers,
    )
    for experiment, error in failed:
        print(f"\n{experiment.describe()}\n  {type(error).__name__}: {error}", file=sys.stderr)
    return 1 if failed else 0


def write_report(options: argparse.Namespace) -> int:
    """Writes the report of a store."""
    from app.report import command

    print(command.report(options.store, options.out, options.pair, fit=options.fit))
    return 0


def migrate_store(options: argparse.Namespace) -> int:
    """Brings a store of an earlier version up to date."""
    from store.migrate import migrate

    migrate(options.store, print)
    print(
        f"{options.store} is up to date. Its old checksums could not tell whether parts of equal layout had "
        "changed places before; --verify runs a sample of prompts again."
    )
    return 0


def push_store(options: argparse.Namespace) -> int:
    """Sends a store to the Hub."""
    from store.places import hub

    repository = hub.Repository.parse(options.repository)
    print(hub.push(options.store, repository, private=not options.public))
    return 0


def pull_store(options: argparse.Namespace) -> int:
    """Fetches a store from the Hub."""
    from store.places import hub

    print(hub.pull(hub.Repository.parse(options.repository), options.store))
    return 0


def keep_note(options: argparse.Namespace) -> int:
    """Keeps a note, or prints the notes of a store; 1 when one of them is damaged."""
    from store.journal.notes import NoteLog, readable
    from store.reader import Store
    from store.runs import RunLog

    Store(options.store)
    log = NoteLog(options.store)
    if options.text is not None:
        if options.run:
            RunLog(options.store).open(options.run)
        author = _account() if options.author is None else options.author
        print(log.append(options.text, author, options.run).note_id)
        return 0
    notes, problems = log.list()
    for one in notes:
        about = f" (run {one.run})" if one.run else ""
        print(f"{one.created[:16].replace('T', ' ')} {one.author}{about}\n{one.text}\n")
    for problem in problems:
        print(readable(problem), file=sys.stderr)
    return 1 if problems else 0


def _account() -> str:
    """The name of the account; "" where it has none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return ""


def import_activations(options: argparse.Namespace) -> int:
    """Makes a store of activations; 1 when a check of them failed."""
    from app.imported import command

    store = command.import_files(options)
    failed = [check for check in store.self_checks() if not check["passed"]]
    for check in failed:
        print(
            f"{check['name']} of {check['model']}: {check['value']:.3g}, limit {check['limit']:.3g}. "
            f"{check['detail']}",
            file=sys.stderr,
        )
    print(options.store)
    return 1 if failed else 0


@dataclass(frozen=True)
class Command:
    """One thing that can be done: its options, what does it, and a line for the list."""

    parser: Callable[[], argparse.ArgumentParser]
    run: Callable[[argparse.Namespace], int]
    help: str


COMMANDS = {
    "precompute": Command(parser, run, "compute the activation store of a study, or finish one"),
    "plan": Command(plan_parser, plan, "say bytes, memory, passes and time of a study; run nothing"),
    "verify": Command(verify_parser, verify, "check every checksum of a store and recompute a sample"),
    "run": Command(run_parser, run_experiments, "run live experiments on a store and keep their results"),
    "report": Command(report_parser, write_report, "write what a store holds as HTML and Markdown"),
    "note": Command(note_parser, keep_note, "keep a dated note in a store, or print its notes"),
    "import": Command(import_parser, import_activations, "make a store of activations from elsewhere"),
    "push": Command(push_parser, push_store, "send a store to a dataset repository of the Hugging Face Hub"),
    "pull": Command(pull_parser, pull_store, "fetch a store from the Hugging Face Hub"),
    "migrate": Command(migrate_parser, migrate_store, "bring a store of an earlier version up to date"),
}
"""By name; the command line of this file has plan and verify as options of the first one."""
AFTER_THE_STORE = ("run", "report", "note", "import", "push", "pull", "migrate")


if __name__ == "__main__":
    sys.exit(main())
