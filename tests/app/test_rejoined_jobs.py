"""A page that is loaded again: its job is taken up, and cancelling it ends the work."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from streamlit.testing.v1 import AppTest

from app.frame import running as live_view
from engine.subspaces.spec import SubspaceScores


class Worker:
    """Submissions of one work; it goes on while one of them waits for it."""

    def __init__(self, key: str) -> None:
        self.key, self.waiting = key, ["first"]

    def jobs(self) -> list[SimpleNamespace]:
        return [self.status(name) for name in self.waiting]

    def status(self, name: str) -> SimpleNamespace:
        over = name not in self.waiting
        return SimpleNamespace(job_id=name, key=self.key, over=over, store_path="store")

    def submit(self, *_work: object) -> str:
        self.waiting.append(f"again {len(self.waiting)}")
        return self.waiting[-1]

    def cancel(self, name: str) -> None:
        self.waiting.remove(name)


def test_cancelling_after_a_reload_ends_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = SubspaceScores(broad=16)
    opened = SimpleNamespace(path="store", store=SimpleNamespace(fingerprint="f" * 64))
    worker = Worker(wanted.content_hash("f" * 64))
    monkeypatch.setattr(live_view, "worker", lambda: worker)
    monkeypatch.setattr(live_view.st, "session_state", {})
    live_view.rejoin(opened, wanted)  # type: ignore[arg-type]
    assert len(live_view.active()) == 1
    live_view.cancel()
    assert worker.waiting == []
    live_view.rejoin(opened, wanted)  # type: ignore[arg-type]
    assert live_view.active() == []
    live_view.rejoin(opened, SubspaceScores(broad=8))  # type: ignore[arg-type]
    assert live_view.active() == []


class Quick(Worker):
    """A worker that is done with its work just after a page has looked for the result."""

    def __init__(self) -> None:
        super().__init__("key")
        self.looked = 0

    def look(self) -> bool:
        """Whether the result is there; it is from the next moment on."""
        there = not self.waiting
        self.looked += 1
        self.waiting.clear()
        return there

    def status(self, name: str) -> SimpleNamespace:
        over = name not in self.waiting
        return SimpleNamespace(job_id=name, over=over, state="done", run_id="run", message="", error=None)


def _page() -> None:
    import streamlit as st

    from app.frame import running as live_view

    st.session_state.setdefault("live-jobs", ["first"])
    there = live_view.worker().look()  # type: ignore[attr-defined]
    live_view.watch()
    st.text("the result" if there else "not run")


def test_a_job_that_ends_while_its_page_is_drawn_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Quick()
    monkeypatch.setattr(live_view, "worker", lambda: worker)
    page = AppTest.from_function(_page).run()
    assert not page.exception
    assert [text.value for text in page.text] == ["the result"]
    assert worker.looked == 2
    page.run()
    assert worker.looked == 3, "an end that is drawn is drawn once"
