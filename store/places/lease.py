"""A writer's hold on a store in an object store, which knows no locks.

The object `.writer.lock` is put where there is none, and put again every `BEAT` seconds while the writer
lives, each time only in the place of its own last one. Another writer watches it for `PATIENCE` seconds by
its own clock: one that changes meanwhile is alive, one that doesn't is taken over, in the place of exactly
the one that was watched. A writer that could not put it for 0.7 of that, or finds another's, writes no more;
its time counts from before it asked, since what another one sees may be as old as that.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from typing import Any

from engine.errors import StoreError
from store.places.client import object_errors, version_of

LOCK = ".writer.lock"
BEAT = 5.0
PATIENCE = 30.0
MOST = 0.7
"""Share of `PATIENCE` for which a holder believes in its last sign of life."""
log = logging.getLogger("patchbay.store")


class Lease:
    """The hold of this writer (`store.places.protocol.Lock`), which is always the only one.

    Args:
        client: tries long, as for what is written. brief: tries for a moment, as for signs of life, which
            come again; default the same.

    Raises:
        StoreError: another writer is at work.
    """

    alone = True

    def __init__(self, client: Any, url: str, brief: Any = None) -> None:
        self._client, self._brief, self._url = client, brief or client, url
        self._owner, self._here, self._beats = uuid.uuid4().hex, _here(), 0
        self._lost, self._end, self._one = False, threading.Event(), threading.Lock()
        self._seen = _clock()
        self._tag = self._take()
        self._thread = threading.Thread(target=self._keep, name="patchbay-lease", daemon=True)
        self._thread.start()

    def share(self) -> None:
        """Nobody else is let in."""

    def alone_now(self) -> bool:
        """Whoever holds a lease is alone."""
        return True

    def check(self) -> None:
        """StoreError where the hold was lost. After a time without a sign of life one is put first."""
        if not self._lost and self._is_late():
            with contextlib.suppress(Exception):
                self._beat(self._client)
        if self._lost or self._is_late():
            raise StoreError(
                f"This writer no longer holds the store at {self._url}.",
                expected=f"a sign of life in the store every {MOST * PATIENCE:.0f} s at least",
                given="another writer's hold" if self._lost else "none that could be put",
                next_step="Let one writer go on; when none is left, run the same command again.",
            )

    def close(self) -> None:
        """Lets go."""
        self._end.set()
        self._thread.join()
        with contextlib.suppress(StoreError), object_errors(self._url, "let go of the store"):
            if not self._lost and self._read()[0] == self._tag:
                self._brief.delete(LOCK)

    def _is_late(self) -> bool:
        return _clock() - self._seen > MOST * PATIENCE

    def _take(self) -> dict[str, str]:
        import obstore.exceptions as failures

        with object_errors(self._url, "begin to write"):
            with contextlib.suppress(failures.AlreadyExistsError):
                return self._put("create")
            tag, said = self._read()
            if said.get("owner") == self._owner:  # an answer that got lost was tried again
                return self._put(tag)
            if tag and not _is_dead(said):
                log.warning("%s: looking whether %s is still at work", self._url, _who(said))
                until = time.monotonic() + PATIENCE
                while time.monotonic() < until and self._read()[0] == tag:
                    time.sleep(min(1.0, PATIENCE / 10))
                now, other = self._read()
                if now and now != tag:
                    raise _busy(self._url, other)
                tag = now
            try:
                return self._put(tag or "create")
            except (failures.AlreadyExistsError, failures.PreconditionError):
                raise _busy(self._url, self._read()[1]) from None

    def _put(self, mode: Any, client: Any = None) -> dict[str, str]:
        """Puts a sign of life, which counts from before it is asked; its version."""
        self._beats += 1
        text, begun = {"owner": self._owner, "beat": self._beats, **self._here}, _clock()
        put = (client or self._client).put(LOCK, json.dumps(text).encode(), mode=mode, use_multipart=False)
        self._seen = begun
        return version_of(put)

    def _read(self) -> tuple[dict[str, str], dict[str, Any]]:
        """Version and text of what is there; none where nothing is."""
        try:
            found = self._brief.get(LOCK)
            tag, data = version_of(found.meta), bytes(found.bytes())
        except FileNotFoundError:
            return {}, {}
        try:
            said = json.loads(data[:4096])
        except ValueError:
            said = {}
        return tag, said if isinstance(said, dict) else {}

    def _keep(self) -> None:
        while not self._lost and not self._end.wait(BEAT):
            try:
                self._beat(self._brief)
            except Exception as error:  # tried again at the next beat; `check` counts the time
                log.info("%s: no sign of life could be put: %s", self._url, error)

    def _beat(self, client: Any) -> None:
        """Puts a sign of life in the place of the last one, or finds that the hold is lost."""
        import obstore.exceptions as failures

        with self._one:
            try:
                self._tag = self._put(self._tag, client)
            except (failures.PreconditionError, failures.AlreadyExistsError, FileNotFoundError):
                tag, said = self._read()
                if said.get("owner") == self._owner:  # an answer that got lost was tried again
                    self._tag = tag
                else:
                    self._lost = True


def _clock() -> float:
    """Seconds that go on while the machine sleeps, where it has such a clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _here() -> dict[str, Any]:
    """This process, by what tells on the same machine whether it is still there."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            machine = f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        machine = ""
    return {"host": socket.gethostname(), "pid": os.getpid(), "machine": machine}


def _is_dead(said: dict[str, Any]) -> bool:
    """Whether it was a process of this machine that is gone."""
    pid = said.get("pid")
    if not said.get("machine") or said["machine"] != _here()["machine"] or type(pid) is not int or pid < 1:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _who(said: dict[str, Any]) -> str:
    return f"process {str(said.get('pid'))[:20]} on {str(said.get('host'))[:80]!r}"


def _busy(url: str, said: dict[str, Any]) -> StoreError:
    return StoreError(
        f"Another writer is at work on the store at {url}.",
        expected="one writer at a time",
        given=_who(said),
        next_step="Wait until it has ended; the same command then goes on from there.",
    )
