"""The streamlit side of live patches: the worker of this server, one session's jobs, their progress."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import polars as pl
import streamlit as st

from app import components, patch_view
from app.jobs import JobResult, JobStatus
from app.resources import Opened
from app.selection import Selection
from app.worker import Worker
from engine.condition import Condition
from engine.errors import JobError
from store.runs import RunLog

_JOBS = "live-jobs"
POLL_SECONDS = 0.4


@st.cache_resource(show_spinner=False)
def worker() -> Worker:
    """The one worker of this server; its processes start at the first job."""
    return Worker()


def conditions(opened: Opened, selection: Selection) -> list[Condition]:
    """What one click runs: the selected block, or every block."""
    if selection.layers == "one":
        return [patch_view.condition_of(selection)]
    count = min(opened.facts.n_layers[m] for m in (selection.a, selection.b))
    return [patch_view.condition_of(selection, layer) for layer in range(count)]


def start(opened: Opened, wanted: Sequence[Condition]) -> None:
    """Submit conditions and remember them in this session."""
    st.session_state[_JOBS] = [worker().submit(opened.path, condition) for condition in wanted]


def jobs() -> list[JobStatus]:
    """This session's latest jobs; those a restarted server forgot are left out."""
    found = []
    for job_id in st.session_state.get(_JOBS, []):
        try:
            found.append(worker().status(job_id))
        except JobError:
            continue
    return found


def active() -> list[JobStatus]:
    """This session's jobs that are not over."""
    return [job for job in jobs() if not job.over]


def forget() -> None:
    """Stop showing this session's jobs."""
    st.session_state[_JOBS] = []


def cancel() -> None:
    """Cancel this session's submissions; another session's submission of the same work goes on."""
    for job in active():
        worker().cancel(job.job_id)


def stored(opened: Opened, condition: Condition) -> JobResult | None:
    """The result of a condition if it was run before: from the store, or kept because unsaved."""
    log = RunLog(opened.path)
    run_id = log.find(condition.content_hash(opened.store.fingerprint))
    if run_id is not None:
        run = log.open(run_id)
        return JobResult(run.condition, run.summary, run.table)
    key = condition.content_hash(opened.store.fingerprint)
    for job in jobs():
        if job.key == key and job.state == "done":
            return worker().result(job.job_id)
    return None


def run_button(opened: Opened, selection: Selection, wanted: list[Condition], done: bool) -> None:
    """Run, or cancel while something of this session runs."""

    def submit() -> None:
        with components.guard("submit a patch"):
            start(opened, wanted)

    if active():
        st.button("Cancel", icon=":material/stop:", on_click=cancel, key="cancel", width="stretch")
    else:
        text = "Run every block" if selection.layers == "every" else "Run"
        text = "Already run; the stored result is below" if done else text
        st.button(
            text,
            icon=":material/play_arrow:",
            type="primary",
            on_click=submit,
            disabled=done,
            key="run",
            width="stretch",
        )


def watch() -> None:
    """Progress of this session's jobs, polled without rerunning the page, which reruns when all are over."""
    if not jobs():
        return
    every = POLL_SECONDS if active() else None
    st.fragment(run_every=every)(_progress)(bool(active()))


def _progress(was_active: bool) -> None:
    with components.guard("live progress"):
        now = jobs()
        running = [job for job in now if not job.over]
        if not running:
            if was_active:
                st.rerun(scope="app")
            _outcome(now)
            return
        job = next((j for j in running if j.state == "running"), running[0])
        share = sum(j.fraction if not j.over else 1.0 for j in now) / len(now)
        st.progress(share, _progress_text(job, now))


def _progress_text(job: JobStatus, now: Sequence[JobStatus]) -> str:
    parts = [job.condition.describe()]
    if len(now) > 1:
        parts.append(f"{sum(j.over for j in now)} of {len(now)} blocks done")
    if job.state == "queued":
        parts.append("waiting" + (f" behind {job.ahead}" if job.ahead else ""))
    if job.device:
        parts.append(f"on {job.device}")
    if job.message:
        parts.append(job.message)
    elif job.total:
        parts.append(f"{job.done} of {job.total} patches")
    return components.plain(" · ".join(parts))


def _outcome(now: Sequence[JobStatus]) -> None:
    for job in now:
        if job.state == "failed":
            with st.container(border=True, key=f"failed-{job.job_id}"):
                st.markdown("#### The patch did not run")
                st.markdown(components.plain(job.error or "No reason was given."))
        elif job.state == "cancelled":
            st.info(f"Cancelled: {components.plain(job.condition.describe())}. Nothing was stored.")
        elif job.message and job.run_id is None:
            st.warning(components.plain(job.message))


def runs_of(opened: Opened) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(condition, summary) of every intact stored run, newest first, with its id under `run_id`."""
    listed = RunLog(opened.path).list()
    found = []
    for line in listed.filter(pl.col("problem").is_null()).iter_rows(named=True):
        condition, summary = json.loads(line["condition"]), json.loads(line["summary"])
        found.append((condition, {**summary, "run_id": line["run_id"], "created": line["created"]}))
    return found
