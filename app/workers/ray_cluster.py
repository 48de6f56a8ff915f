"""Joins the Ray cluster at an address, or starts one on this machine for as long as it is needed."""

from __future__ import annotations

import importlib.util
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from app.workers.asked import CHECKOUT, ROOT
from engine.errors import JobError

__all__ = ["check_ray", "cluster"]

SECONDS = 5.0
"""So long a cluster's head has to answer a connection."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
SETTINGS = 4
"""How HTTP/2 begins (RFC 9113, 3.4), which Ray's heads speak: both sides send a frame of this type."""


def check_ray(address: str | None) -> None:
    """Before anything is computed: whether Ray is installed, and something like it answers at an address.

    Ray itself waits for minutes where nothing answers, and ends the process then.

    Raises:
        JobError: it isn't; it doesn't.
    """
    if importlib.util.find_spec("ray") is None:
        raise JobError(
            "Several workers need Ray.",
            expected="the extra 'ray'",
            given="a Python without it",
            next_step="pip install -e '.[ray]', or leave --engine and --workers out.",
        )
    if address in (None, "auto", "local"):
        return
    found = re.fullmatch(r"(?:ray://)?\[?([^\[\]/]+?)\]?:(\d{1,5})", str(address))
    if found is None or int(found[2]) > 65535:
        raise _none_at(address, "no such address")
    try:
        with socket.create_connection((found[1], int(found[2])), SECONDS) as head:
            if "RAY_USE_TLS" not in os.environ:
                head.sendall(PREFACE)
                head.settimeout(SECONDS)
                if head.recv(9)[3:4] != bytes([SETTINGS]):
                    raise _none_at(address, "something else answers there")
    except OSError as error:
        raise _none_at(address, error.strerror or str(error)) from error


@contextmanager
def cluster(address: str | None, cpus: int | None) -> Iterator[Any]:
    """The module `ray`, connected, until the block is left.

    A cluster at an address is left as it was; one that was started here ends. Where this process is connected
    already, that is kept.

    Args:
        cpus: of a cluster that is started here; None for the machine's.

    Raises:
        JobError: Ray is missing, none is at the address, it is of another version, or none can be started.
    """
    check_ray(address)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    path = os.pathsep.join(filter(None, [*CHECKOUT, os.environ.get("PYTHONPATH", "")]))
    try:
        if address in (None, "local"):
            code = {"env_vars": {"PYTHONPATH": path}} if path else {}
            ray.init("local", num_cpus=cpus, include_dashboard=False, runtime_env=code, **quiet)
        else:
            ray.init(address, runtime_env={"py_modules": _code(), "excludes": ["__pycache__"]}, **quiet)
    except Exception as error:
        raise _refused(address, error) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _code() -> list[str]:
    """The folders that the actors' Python imports: those of this program, whatever is installed there."""
    return [str(ROOT / name) for name in ("app", "engine", "store")]


def _none_at(address: str | None, given: str) -> JobError:
    return JobError(
        f"There is no Ray cluster at {address}.",
        expected="the address of a running cluster's head: HOST:6379, ray://HOST:10001 or auto",
        given=given,
        next_step="correct --address (or RAY_ADDRESS); `ray start --head` starts one, and without an address "
        "Ray runs on this machine.",
    )


def _refused(address: str | None, error: Exception) -> JobError:
    """What Ray says about why it can't be had, in words."""
    told = " ".join(str(error).split())
    if address in (None, "local"):
        return JobError(
            "Ray could not be started on this machine.",
            given=told,
            next_step="leave --engine and --workers out, or see Ray's log in /tmp/ray/session_latest/logs.",
        )
    if "ersion mismatch" in told:
        return JobError(
            f"The Ray cluster at {address} is of another version.",
            expected="the same versions of Ray and Python here and there",
            given=told,
            next_step="start this program in the environment that the cluster runs in.",
        )
    if "not find any running" in told:
        return _none_at(address, told)
    return JobError(
        f"The Ray cluster at {address} can't be joined.",
        given=told,
        next_step="see that `ray status` answers in this environment; a cluster that asks for a token needs "
        "RAY_AUTH_MODE=token and that token here.",
    )
