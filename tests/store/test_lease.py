"""A hold is believed in for less time than another writer waits, counted from before it was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine.errors import StoreError
from store.places import client, lease

failures = pytest.importorskip("obstore.exceptions", reason="needs obstore (pip install '.[s3]')")


class Service:
    """An object store of one object; a put takes `late` seconds to answer, is lost, or isn't done at all."""

    def __init__(self) -> None:
        self.now, self.late, self.gone, self.lose = 1000.0, 0.0, False, False
        self.tag, self.data = 0, b""

    def put(self, path: str, data: bytes, mode: Any, use_multipart: bool) -> dict[str, str]:
        if self.gone:
            raise OSError("no route")
        if (mode == "create") == bool(self.data) or (self.data and mode["e_tag"] != str(self.tag)):
            raise (failures.AlreadyExistsError if mode == "create" else failures.PreconditionError)("no")
        self.tag, self.data = self.tag + 1, data
        self.now += self.late
        if self.lose:
            self.lose = False
            raise failures.PreconditionError("tried again")
        return {"e_tag": str(self.tag)}

    def get(self, path: str) -> SimpleNamespace:
        if not self.data:
            raise FileNotFoundError
        return SimpleNamespace(meta={"e_tag": str(self.tag)}, bytes=lambda: self.data)

    def delete(self, path: str) -> None:
        self.data = b""


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    made = Service()
    monkeypatch.setattr(lease, "_clock", lambda: made.now)
    monkeypatch.setattr(lease, "BEAT", 1000.0)  # signs of life are put by hand
    return made


@pytest.fixture
def hold(service: Service) -> Iterator[lease.Lease]:
    made = lease.Lease(service, "s3://bucket/x")
    yield made
    service.gone = False
    made.close()


def test_an_answer_that_comes_late_counts_from_before_it_was_asked_for(
    service: Service, hold: lease.Lease
) -> None:
    service.late = 15.0
    hold._beat(service)
    service.gone = True
    service.now += 0.7 * lease.PATIENCE - 15.0 - 0.1
    hold.check()
    service.now += 0.2
    with pytest.raises(StoreError, match="no longer holds the store"):
        hold.check()


def test_an_answer_that_got_lost_is_no_sign_of_life(service: Service, hold: lease.Lease) -> None:
    service.now += 15.0
    service.lose = True
    hold._beat(service)
    service.gone = True
    service.now += 10.0
    with pytest.raises(StoreError, match="no longer holds the store"):
        hold.check()
    service.gone = False
    hold.check()  # by the tag of what was put all the same


def test_one_that_was_cut_off_goes_on_where_nobody_took_over(service: Service, hold: lease.Lease) -> None:
    service.now += 1000.0
    hold.check()
    service.gone = True
    service.now += 0.7 * lease.PATIENCE - 0.1
    hold.check()


def test_one_that_was_taken_over_does_not(service: Service, hold: lease.Lease) -> None:
    service.tag, service.data = service.tag + 1, b'{"owner": "another"}'
    service.now += 1000.0
    with pytest.raises(StoreError, match=r"(?s)no longer holds the store.*another writer's hold"):
        hold.check()


def test_an_outage_of_half_a_minute_is_survived() -> None:
    """The pauses are drawn, so the time is what ends them: 100 pauses of 0.1 s to 5 s are more than 40 s."""
    rng, most, low, high, base = np.random.default_rng(0), *bounds()
    for _ in range(1000):
        pause, waited, tries = low, 0.0, 0
        while waited <= most and tries < client.RETRY["max_retries"]:
            waited, tries = waited + pause, tries + 1
            pause = min(high, rng.uniform(low, pause * base))
        assert most < waited <= most + high
        assert tries < 100, "not asked more often than a service bears"


def bounds() -> tuple[float, ...]:
    """Seconds in all, the first and the longest pause, and by how much one may be longer than the last."""
    backoff = client.RETRY["backoff"]
    times = client.RETRY["retry_timeout"], backoff["init_backoff"], backoff["max_backoff"]
    return *(time.total_seconds() for time in times), float(backoff["base"])


def test_the_clock_goes_on_while_the_machine_sleeps() -> None:
    import time

    if not hasattr(time, "CLOCK_BOOTTIME"):
        pytest.skip("this system has no such clock")
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before <= lease._clock() <= time.clock_gettime(time.CLOCK_BOOTTIME)
