"""Stored runs are opened once while their files stay the same, and anew when they don't."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from live_results import live_result

from app.analyses import ANALYSES
from app.frame import running
from app.frame.opened import Opened, read_facts
from app.frame.selection import Selection, defaults
from app.live.jobs import JobResult
from app.overview import findings
from app.patching.replacement import condition_of
from engine.errors import StoreError
from store.reader import Store
from store.runs import RunLog

seen: list[JobResult] = []


def height(result: JobResult) -> int:
    seen.append(result)
    return result.table.height


def test_a_run_is_opened_once_and_again_when_a_file_of_it_changes(own_store: Path) -> None:
    store = Store(own_store)
    opened = Opened(str(own_store), store, read_facts(store))
    wanted = condition_of(defaults(opened.facts))
    assert running.find(opened, wanted) is None
    assert running.stored(opened, wanted) is None
    made, key = live_result(wanted), wanted.content_hash(store.fingerprint)
    run_id = RunLog(own_store).append(made.condition, made.summary, made.table, content_hash=key)
    assert running.find(opened, wanted) == run_id
    found = running.stored(opened, wanted)
    assert found is not None
    assert found.table.equals(made.table)
    assert running.stored(opened, wanted) is found
    assert [summary["run_id"] for _, summary in running.runs_of(opened, None)] == [run_id]
    tall = running.of_run(opened, run_id, height)
    assert tall == made.table.height
    assert seen == [found], "made once of the very result that is kept"
    assert running.of_run(opened, run_id, height) == tall
    assert len(seen) == 1
    file = own_store / "runs" / run_id / "table.parquet"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(bytes(data))
    assert running.find(opened, wanted) is None
    with pytest.raises(StoreError, match="damaged"):
        running.opened_run(opened, run_id)


def test_no_path_is_taken_for_a_run(own_store: Path) -> None:
    store = Store(own_store)
    opened = Opened(str(own_store), store, read_facts(store))
    with pytest.raises(StoreError, match="no run"):
        running.opened_run(opened, "../tables")


def test_findings_are_made_anew_for_other_runs(own_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(own_store)
    opened = Opened(str(own_store), store, read_facts(store))
    chosen = defaults(opened.facts)
    first = findings.kept(opened, chosen, ())
    assert first
    assert findings.kept(opened, chosen, ()) is first
    assert findings.kept(opened, chosen, (("0123456789abcdef", 1),)) is not first

    def broken(_opened: Opened, _selection: Selection) -> None:
        raise OSError("a file is being replaced")

    fails = replace(ANALYSES[0], headline=broken)
    with monkeypatch.context() as patched:
        patched.setattr(findings, "known", lambda: (fails,))
        other = (("fedcba9876543210", 1),)
        assert findings.kept(opened, chosen, other) == ()
    assert findings.kept(opened, chosen, other) != (), "what failed once is tried again"
    again = Opened(str(own_store), store, opened.facts)  # the store was written again
    assert findings.kept(again, chosen, ()) is not first
