"""The command `patchbay`: everything that precompute.py does, a name each, and the dashboard."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from precompute import COMMANDS, carry_out

ROOT = Path(__file__).resolve().parent
HERE = ROOT if (ROOT / "app").is_dir() else ROOT.parent
"""The folder of app, studies and demo: this package's own in a wheel, the repository's in a checkout."""


def parser() -> argparse.ArgumentParser:
    """The command line, one sub-command for each thing that can be done."""
    result = argparse.ArgumentParser(
        prog="patchbay", description="Compare language models layer by layer: activation store and dashboard."
    )
    commands = result.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        given = command.parser()
        added = commands.add_parser(
            name, parents=[given], add_help=False, help=command.help, description=given.description
        )
        added.set_defaults(carry_out=lambda options, do=command.run: carry_out(do, options))
    serve = commands.add_parser("serve", help="open the dashboard on a store")
    serve.add_argument("store", help="folder or URL of the activation store, or a folder of stores")
    demo = commands.add_parser("demo", help="compute the demo's store and open the dashboard on it")
    demo.add_argument("--store", default="runs/demo", help="folder of the activation store")
    for opening in (serve, demo):
        opening.add_argument("--port", type=int, default=8501)
        opening.add_argument("--root", action="append", default=[], help="as for precompute")
        opening.add_argument(
            "--beside",
            action="append",
            default=[],
            help="another store, whose pairs are contrasted",
        )
    serve.set_defaults(carry_out=serve_store)
    demo.set_defaults(carry_out=open_demo)
    return result


def serve_store(options: argparse.Namespace) -> int:
    """The dashboard on 127.0.0.1 until it is stopped."""
    command = [sys.executable, "-m", "streamlit", "run", str(HERE / "app" / "main.py")]
    command += ["--server.address", "127.0.0.1", "--server.port", str(options.port)]
    command += ["--server.headless", "true", "--", "--store", options.store]
    command += [f"--root={root}" for root in options.root]
    command += [f"--beside={store}" for store in options.beside]
    print(f"Dashboard: http://127.0.0.1:{options.port}", flush=True)
    try:
        return subprocess.run(command, check=False).returncode
    except KeyboardInterrupt:
        return 0


def open_demo(options: argparse.Namespace) -> int:
    """Computes the demo's store where it isn't there, and serves it."""
    study = str(HERE / "studies" / "demo.toml")
    made = main(["precompute", study, "--store", options.store])
    return made or serve_store(options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a sub-command; 0 done, 1 refused or failed a check, 130 stopped by Ctrl-C."""
    options = parser().parse_args(arguments)
    code: int = options.carry_out(options)
    return code


if __name__ == "__main__":
    sys.exit(main())
