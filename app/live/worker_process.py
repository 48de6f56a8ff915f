"""The process that owns the models of one device: takes jobs from the server, one at a time.

Started by `app.live.worker` as `python -m app.live.worker_process`. It ends when the server says so and also
when the server is gone: a thread reads the connection all the time and exits the process at its end, even
while a forward pass runs.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import logging
import os
import queue
import signal
import threading
import time
import uuid
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

from app.live.jobs import CancelMessage, EndMessage, ExitMessage, Outcome, ProgressMessage, RunMessage, Runner
from engine.errors import JobError, PatchbayError
from engine.study.roots import allow_roots

log = logging.getLogger("patchbay.worker")

PROGRESS_SECONDS = 0.1
"""Counts and partial results are sent at most this often; messages and the last batch always."""


class Channel:
    """The connection to the server: sends from any thread, reads on its own thread."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._send_lock = threading.Lock()
        self._cancelled: set[int] = set()
        self._leaving = threading.Event()
        self.inbox: queue.SimpleQueue[RunMessage | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="read-server", daemon=True).start()

    def send(self, message: Any) -> None:
        """Sends one message; when the server is gone, the process ends."""
        try:
            with self._send_lock:
                self._connection.send(message)
        except OSError:
            os._exit(0)

    def stop_wanted(self, number: int) -> bool:
        """Whether the execution was cancelled, or the process is asked to leave."""
        return number in self._cancelled or self._leaving.is_set()

    def _read(self) -> None:
        while True:
            try:
                message = self._connection.recv()
            except (EOFError, OSError):
                os._exit(0)
            except Exception:
                log.exception("a message from the server could not be read")
                os._exit(4)
            if isinstance(message, CancelMessage):
                self._cancelled.add(message.number)
            elif isinstance(message, ExitMessage):
                self._leaving.set()
                self.inbox.put(None)
            else:
                self.inbox.put(message)


class Reporter:
    """Sends what changed about one execution, progress counts not too often."""

    def __init__(self, channel: Channel, number: int) -> None:
        self._channel, self._number = channel, number
        self._last = 0.0

    def __call__(self, **changes: Any) -> None:
        kept = {key: value for key, value in changes.items() if value is not None}
        now = time.monotonic()
        counts_only = not kept.keys() - {"done", "total", "partial"}
        finished = kept.get("done") is not None and kept.get("done") == kept.get("total")
        first = self._last == 0.0
        if counts_only and not finished and not first and now - self._last < PROGRESS_SECONDS:
            return
        self._last = now
        self._channel.send(ProgressMessage(self._number, kept))


def load_runner(path: str, options: dict[str, Any]) -> Runner:
    """Imports "package.module:Class" and makes one."""
    module, _, name = path.partition(":")
    return cast(Runner, getattr(importlib.import_module(module), name)(**options))


def execute(runner: Runner, message: RunMessage, channel: Channel) -> EndMessage:
    """Runs one job and says how it ended; never raises."""
    number = message.number
    try:
        outcome: Outcome = runner.run(
            message.store_path,
            message.condition,
            Reporter(channel, number),
            lambda: channel.stop_wanted(number),
        )
    except PatchbayError as error:
        if isinstance(error, JobError) and channel.stop_wanted(number):
            return EndMessage(number, "cancelled")
        log.warning("job %d failed: %s", number, error)
        return EndMessage(number, "failed", error=str(error))
    except Exception as error:
        return EndMessage(number, "failed", error=describe_unexpected(error))
    return EndMessage(number, "done", outcome)


def describe_unexpected(error: BaseException) -> str:
    """Logs an unexpected error under a new id and returns what a person is told."""
    from engine.models.memory import out_of_memory  # imports torch, which only a failed job waits for here

    if out_of_memory(error):
        log.exception("out of memory")
        return (
            f"The device ran out of memory: {str(error).splitlines()[0] if str(error) else 'no details'}. "
            "Next: choose fewer alphas or prompts, a smaller dtype in the study, or free the device."
        )
    error_id = uuid.uuid4().hex[:8]
    log.exception("unexpected error %s", error_id)
    return (
        f"Something unexpected went wrong in the worker (error {error_id}). "
        f"Next: look for {error_id} in the server's log."
    )


def main() -> None:
    """Reads jobs until told to leave."""
    parser = argparse.ArgumentParser(description="Patchbay's worker process; started by the dashboard.")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--runner", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--max-models", type=int, required=True)
    parser.add_argument("--allow-code", action="store_true")
    parser.add_argument("--root", action="append", default=[])
    args = parser.parse_args()
    # Ctrl-C reaches the whole terminal group; the server decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    allow_roots(root for root in args.root if Path(root).is_dir())
    if args.allow_code:
        from engine.models.trust import allow_code

        allow_code(True)
    faulthandler.enable()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    channel = Channel(Connection(args.fd))
    runner: Runner | None = None
    while (message := channel.inbox.get()) is not None:
        channel.send(ProgressMessage(message.number))  # taken up: from here on a death is this job's
        if channel.stop_wanted(message.number):
            channel.send(EndMessage(message.number, "cancelled"))
            continue
        if runner is None:
            try:
                options: dict[str, Any] = {"device": args.device, "max_models": args.max_models}
                options |= {"allow_code": True} if args.allow_code else {}
                runner = load_runner(args.runner, options)
            except Exception as error:
                channel.send(EndMessage(message.number, "failed", error=describe_unexpected(error)))
                continue
        channel.send(execute(runner, message, channel))
    os._exit(0)


if __name__ == "__main__":
    main()
