"""One worker process from the server's side: start, send, receive, notice its death, stop.

The interpreter is started with a socket pair instead of through `multiprocessing`, because that would import
the server's main script in the child, which under Streamlit is the dashboard itself.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from app.live.jobs import CancelMessage, ExitMessage, RunMessage, death_reason
from app.workers.asked import CHECKOUT
from engine.study.roots import declared_roots


class ProcessDied(Exception):
    """The worker process ended while a job ran; the message says how."""


class DiedBefore(ProcessDied):
    """It ended before it took the job up: whatever killed it, the job did not."""


class Process:
    """A worker process that is started when it is needed and started again when it died.

    Used by one bookkeeping thread at a time; `pid`, `alive` and `kill` are for any thread.
    """

    def __init__(
        self,
        device: str,
        runner: str,
        max_models: int,
        python_path: Sequence[str | Path] = (),
        allow_code: bool = False,
    ) -> None:
        self.device = device
        self._runner, self._max_models, self._allow_code = runner, max_models, allow_code
        self._python_path = [str(p) for p in python_path]
        self._child: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._taken_up = False

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        child = self._child
        return child is not None and child.poll() is None

    @property
    def pid(self) -> int | None:
        """Process id, or None when it does not run."""
        child = self._child
        return child.pid if child is not None and child.poll() is None else None

    def send_job(self, message: RunMessage) -> None:
        """Hands a job over, starting the process first where it does not run."""
        if not self.alive:
            self._start()
        self._taken_up = False
        try:
            self._send(message)
        except OSError:
            raise DiedBefore(self._death_text("before this job began")) from None

    def cancel(self, number: int) -> None:
        """Asks the process to stop an execution; nothing happens when the process is dead."""
        try:
            self._send(CancelMessage(number))
        except OSError:
            return

    def receive(self, timeout: float) -> Any:
        """The next message, or None after `timeout` seconds; raises ProcessDied at the connection's end."""
        assert self._connection is not None
        try:
            if not self._connection.poll(timeout):
                return None
            message = self._connection.recv()
        except (EOFError, OSError):
            if self._taken_up:
                raise ProcessDied(self._death_text("while this job ran")) from None
            raise DiedBefore(self._death_text("before this job began")) from None
        self._taken_up = True
        return message

    def kill(self) -> None:
        """Ends the process at once; may be called while another thread waits in `receive`."""
        child = self._child
        if child is not None:
            child.kill()

    def stop(self, patience: float = 5.0) -> None:
        """Ends the process: asks first, kills after `patience` seconds."""
        child = self._child
        if child is None:
            return
        try:
            self._send(ExitMessage())
        except OSError:
            patience = 0.5
        try:
            child.wait(patience)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        self._bury()

    def _death_text(self, when: str) -> str:
        return (
            f"The worker process for {self.device} {self._bury()} {when}. It is started again for the next "
            "job. Next: run the condition again, with fewer prompts or a smaller model if memory ran out."
        )

    def _send(self, message: Any) -> None:
        if self._connection is None:
            raise OSError("no connection")
        self._connection.send(message)

    def _start(self) -> None:
        self._bury()
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "app.live.worker_process", "--fd", str(theirs.fileno())]
        command += ["--runner", self._runner, "--device", self.device, "--max-models", str(self._max_models)]
        command += ["--allow-code"] if self._allow_code else []
        command += [f"--root={root}" for root in declared_roots()]
        path = [*self._python_path, *CHECKOUT, os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}
        with theirs:
            self._child = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL
            )
        self._connection = Connection(ours.detach())

    def _bury(self) -> str:
        """Closes the connection, reaps the process and returns how it ended."""
        connection, child = self._connection, self._child
        self._connection = self._child = None
        if connection is not None:
            connection.close()
        if child is None:
            return "was not running"
        try:
            child.wait(5.0)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        return death_reason(child.returncode)
