"""Renders chat templates in a process of their own, which is ended when a template takes too long."""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from engine.prompts.chat_process import SECONDS

__all__ = ["TemplateFault", "render_chat"]

PATIENCE = 60.0
"""Seconds after which a process that doesn't answer is ended, where the system can't bound its computing."""
LONGEST_TEMPLATE = 1_000_000


class TemplateFault(Exception):
    """A template that refuses its messages, is no template, or takes too much time or memory."""


class _Renderer:
    """The process, started when it is first needed and again after it was ended. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = 0
        atexit.register(self.close)

    def ask(self, asked: dict[str, Any]) -> dict[str, str]:
        line = json.dumps(asked).encode() + b"\n"
        with self._lock:
            child = self._running()
            until = time.monotonic() + PATIENCE
            try:
                found: dict[str, str] = json.loads(_exchange(child, line, until))
            except (OSError, EOFError) as error:
                late = isinstance(error, TimeoutError) or child.wait() == -signal.SIGXCPU
                self.close()
                said = f"it computes for more than {SECONDS} seconds" if late else "it ended its process"
                raise TemplateFault(said) from None
        return found

    def close(self) -> None:
        """Ends the process, if there is one that this process started."""
        child, self._child = self._child, None
        if child is None or self._owner != os.getpid():
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._owner != os.getpid() or self._child.poll() is not None:
            self.close()
            script = Path(__file__).with_name("chat_process.py")
            self._child = subprocess.Popen(
                [sys.executable, "-I", str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
            )
            self._owner = os.getpid()
            assert self._child.stdin is not None
            os.set_blocking(self._child.stdin.fileno(), False)
        return self._child


def _exchange(child: subprocess.Popen[bytes], line: bytes, until: float) -> bytes:
    """Writes a line and reads the answer's; TimeoutError, or EOFError when the process is gone."""
    assert child.stdin is not None
    assert child.stdout is not None
    given, taken = child.stdin.fileno(), child.stdout.fileno()
    answer, waiting = bytearray(), select.poll()
    waiting.register(taken, select.POLLIN)
    waiting.register(given, select.POLLOUT)
    while not answer.endswith(b"\n"):
        ready = dict(waiting.poll(1000 * max(0.0, until - time.monotonic())))
        if not ready:
            raise TimeoutError
        if given in ready and line:
            line = line[os.write(given, line) :]
            if not line:
                waiting.unregister(given)
        if taken in ready:
            piece = os.read(taken, 1 << 16)
            if not piece:
                raise EOFError
            answer += piece
    return bytes(answer)


_renderer = _Renderer()


def render_chat(template: str, context: dict[str, Any]) -> str:
    """The text of a template under a context of plain JSON values (`messages`, special tokens, …).

    Raises:
        TemplateFault: see there; its message completes "the template says".
    """
    if len(template) > LONGEST_TEMPLATE:
        raise TemplateFault(f"it has {len(template):,} characters, more than {LONGEST_TEMPLATE:,}")
    found = _renderer.ask({"template": template, "context": context})
    if "text" not in found:
        raise TemplateFault(found["error"])
    return found["text"]
