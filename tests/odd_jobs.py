"""A worker whose tasks go well, are refused, fail, take their time, or kill their process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import PatchError


@dataclass
class Odd:
    folder: Path

    def do(self, task: Any, tell: Callable[..., None]) -> Any:
        """An int is squared; ("dies", k) kills its process the first k times."""
        if task == "refused":
            raise PatchError("No.", expected="a yes", given="a no", next_step="say yes.")
        if task == "fails":
            raise ValueError("a bug")
        if task == "slow":
            tell(done=1, total=2, message="half")
            time.sleep(3)
            return "slow"
        if isinstance(task, tuple):
            begun = self.folder / str(task[1])
            begun.write_text(begun.read_text() + "." if begun.exists() else ".")
            if len(begun.read_text()) <= task[1]:
                os.kill(os.getpid(), signal.SIGKILL)
            return len(begun.read_text())
        return task * task
