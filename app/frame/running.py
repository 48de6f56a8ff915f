"""The streamlit side of live patches: the worker of this server, one session's jobs, their progress."""

from __future__ import annotations

import json
import os
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import polars as pl
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app import access, screen
from app.escape import plain
from app.frame import controls, durations, reruns
from app.frame import parts as components
from app.frame.opened import Opened, code_allowed, stores
from app.live import headless
from app.live.jobs import JobResult, JobStatus
from app.live.worker import Worker
from engine.errors import JobError, StoreError
from engine.lab.experiment import Experiment
from store.places.client import UnreachableError
from store.runs import ID_LENGTH, RECORD, RUNS, RunLog, stamps_of

T = TypeVar("T")

_JOBS, _OWNER, _DRAWN = "live-jobs", "live-owner", "live-drawn"
POLL_SECONDS = 0.4
WHY_NO_TOKEN = (
    "No one-token position was captured",
    "A patch replaces the activation of one token, and this store has only averages. Add `last_content` or "
    "`decision` to `capture.positions` of the study file and run precompute.py again.",
)


def no_token(opened: Opened) -> tuple[str, str] | None:
    """Why a page that patches one token has nothing to patch; None where it has."""
    return None if opened.facts.tokens else WHY_NO_TOKEN


def notes(*results: JobResult) -> None:
    """What runs note about themselves, each note once."""
    for note in dict.fromkeys(note for one in results for note in one.summary.get("notes", [])):
        screen.caption(plain(note))


@st.cache_resource(show_spinner=False)
def worker() -> Worker:
    """The one worker of this server; its processes start at the first job."""
    return Worker(allow_code=code_allowed())


def start(opened: Opened, wanted: Sequence[Experiment]) -> None:
    """Submit experiments and remember them in this session."""
    owner = st.session_state.setdefault(_OWNER, uuid.uuid4().hex)
    st.session_state[_JOBS] = [worker().submit(opened.path, condition, owner) for condition in wanted]


def jobs() -> list[JobStatus]:
    """This session's latest jobs on the open store; those a restarted server forgot are left out."""
    found = []
    for job_id in st.session_state.get(_JOBS, []):
        with suppress(JobError):
            found.append(worker().status(job_id))
    return _here(found)


def _here(found: Sequence[JobStatus]) -> list[JobStatus]:
    place = stores().get(controls.store_now())
    return [job for job in found if place is None or job.store_path == place]


def active() -> list[JobStatus]:
    """This session's jobs that are not over."""
    return [job for job in jobs() if not job.over]


def others() -> list[JobStatus]:
    """Jobs on the open store that go on and that this session does not follow, the first asked first."""
    own = set(st.session_state.get(_JOBS, []))
    return [job for job in reversed(_here(worker().jobs())) if not job.over and job.job_id not in own]


def follow() -> None:
    """Make the jobs that other sessions asked for this session's: their progress, and their cancelling."""
    st.session_state[_JOBS] = [job.job_id for job in others()]


def rejoin(opened: Opened, wanted: Experiment) -> None:
    """Take up a job again that the worker is at and that this session forgot, as after a reload.

    It is the same submission, not another one of the same work: that would outlive its own cancelling.
    """
    if active():
        return
    key = wanted.content_hash(opened.store.fingerprint)
    going = [job for job in worker().jobs() if job.key == key and not job.over]
    mine = [job.job_id for job in going if job.store_path == str(opened.path)]
    if mine:
        st.session_state[_JOBS] = mine


def forget() -> None:
    """Stop showing this session's jobs."""
    st.session_state[_JOBS] = []


def cancel() -> None:
    """Cancel this session's submissions; another session's submission of the same work goes on."""
    with components.guard("cancel a live experiment"):
        access.require("run")
        for job in active():
            worker().cancel(job.job_id)


def stored(opened: Opened, condition: Experiment) -> JobResult | None:
    """The result of an experiment if it was run before: from the store, or kept because unsaved."""
    run_id = find(opened, condition)
    if run_id is not None:
        return opened_run(opened, run_id)
    key = condition.content_hash(opened.store.fingerprint)
    for job in jobs():
        if job.key == key and job.state == "done":
            return worker().result(job.job_id)
    return None


def run_button(
    opened: Opened,
    wanted: Sequence[Experiment],
    text: str = "Run",
    *,
    done: bool = False,
    key: str = "run",
    kind: Literal["primary", "secondary"] = "primary",
) -> None:
    """Run; off while something of this session runs, which is cancelled beside its progress.

    Args:
        wanted: what one click submits.
        done: whether everything has a stored result already; a line then says so in the button's place.
        key: of the button, where a page has several. kind: how much it stands out.
    """

    def submit() -> None:
        with components.guard("submit a live experiment"):
            access.require("run")
            start(opened, wanted)

    if not opened.can_run:
        screen.caption(
            ":material/block: This store holds activations from elsewhere: there is no model to run"
        )
        return
    if done:
        with row():
            screen.caption(":material/check: Run before; the stored result is shown")
            if wanted:
                as_command(opened, wanted, key)
        return
    if active():
        screen.button(
            "Running…", icon=":material/hourglass:", disabled=True, key=f"busy-{key}", width="stretch"
        )
    else:
        screen.button(
            text,
            icon=":material/play_arrow:",
            type=kind,
            on_click=submit,
            disabled=not wanted,
            key=key,
            width="stretch",
        )
        if wanted:
            with row():
                as_command(opened, wanted, key)
                if said := _told(opened, wanted):
                    screen.caption(said)


def row() -> DeltaGenerator:
    """A line of small things."""
    return st.container(horizontal=True, vertical_alignment="center", gap="small")


def _told(opened: Opened, wanted: Sequence[Experiment]) -> str:
    return durations.told(wanted, runs_of(opened, None), partial(reruns.slower, opened.store))


def as_command(opened: Opened, wanted: Sequence[Experiment], key: str) -> None:
    """The same experiments for a terminal: a command, and a file of them where there are several."""
    with screen.popover("As a command", icon=":material/terminal:", type="tertiary", key=f"command-{key}"):
        if len(wanted) == 1:
            st.code(headless.command(opened.path, wanted), language="bash", wrap_lines=True)
            return
        st.code(f"python precompute.py run {opened.path} --condition experiments.json", language="bash")
        screen.caption("On a cluster, add `--part 1/8`, `--part 2/8`, … for one of eight jobs.")
        screen.download_button(
            "experiments.json",
            lambda: json.dumps([e.to_json() for e in wanted], ensure_ascii=False, indent=1),
            file_name="experiments.json",
            mime="application/json",
            key=f"experiments-{key}",
            on_click="ignore",
        )


def watch() -> None:
    """Progress of this session's jobs, polled without rerunning the page, which reruns when all are over."""
    if not active() and (running := others()):
        text = f"{len(running)} experiment{'s' if len(running) > 1 else ''} of this study"
        screen.info(
            f"{text} {'are' if len(running) > 1 else 'is'} running, started in another window or before "
            "this page was loaded again.",
            icon=":material/hourglass:",
        )
        screen.button("Follow or cancel", on_click=follow, key="follow")
    now = jobs()
    if not now:
        return
    _draw_ends(now)
    st.fragment(run_every=None if all(job.over for job in now) else POLL_SECONDS)(_progress)()


def watch_partial(kind: type, draw: Callable[..., None], every: float, *given: Any) -> None:
    """While this session runs a kind of experiment: what it has so far, drawn each `every` seconds."""
    if any(isinstance(job.condition, kind) for job in active()):
        st.fragment(run_every=every)(draw)(*given)


def _draw_ends(now: Sequence[JobStatus]) -> None:
    """Rerun the page once all jobs are over, unless a run of it began after that.

    A job can end between a page's look for its result and its look at the jobs; nothing would be polled then.
    """
    if not all(job.over for job in now):
        return
    ids = [job.job_id for job in now]
    if st.session_state.get(_DRAWN) != ids:
        st.session_state[_DRAWN] = ids
        st.rerun(scope="app")


def _progress() -> None:
    with components.guard("live progress"):
        now = jobs()
        _draw_ends(now)
        running = [job for job in now if not job.over]
        if not running:
            _outcome(now)
            return
        job = next((j for j in running if j.state == "running"), running[0])
        share = sum(j.fraction if not j.over else 1.0 for j in now) / len(now)
        screen.progress(share, progress_text(job, now))
        screen.button("Cancel", icon=":material/stop:", on_click=cancel, key="cancel")


def progress_text(job: JobStatus, now: Sequence[JobStatus]) -> str:
    """What a job is, how many of those asked for with it are done, where it waits or runs, and how far."""
    parts = [job.condition.describe()]
    if len(now) > 1:
        parts.append(f"{sum(j.over for j in now)} of {len(now)} done")
    if job.state == "queued":
        parts.append("waiting" + (f" behind {job.ahead}" if job.ahead else ""))
    if job.device:
        parts.append(f"on {job.device}")
    if job.message:
        parts.append(job.message)
    elif job.total:
        parts.append(f"{job.done} of {job.total} steps")
    return plain(" · ".join(parts))


def _outcome(now: Sequence[JobStatus]) -> None:
    """What became of the jobs that gave no result; many with one fate are told once."""
    failed = Counter(job.error or "No reason was given." for job in now if job.state == "failed")
    for number, (error, count) in enumerate(failed.items()):
        with st.container(border=True, key=f"failed-{number}"):
            what = "The experiment did" if count == 1 else f"{count} experiments did"
            screen.markdown(f"#### {what} not run")
            screen.markdown(plain(error))
    stopped = [job.condition.describe() for job in now if job.state == "cancelled"]
    if len(stopped) == 1:
        screen.info(f"Cancelled: {plain(stopped[0])}. Nothing was stored.")
    elif stopped:
        screen.info(f"Cancelled: {len(stopped)} of {len(now)} experiments. Those that were done are kept.")
    unsaved = (job.message for job in now if job.state == "done" and job.message and job.run_id is None)
    for message in dict.fromkeys(unsaved):
        screen.warning(plain(message))


def find(opened: Opened, wanted: Experiment) -> str | None:
    """The id of the intact run of an experiment, or None."""
    key = wanted.content_hash(opened.store.fingerprint)
    run_id = key[:ID_LENGTH]
    written = _files(opened.path, run_id)
    if not written:
        return None
    try:
        return run_id if _content_hash(_study(opened), run_id, written) == key else None
    except UnreachableError:
        raise
    except StoreError:
        return None


def opened_run(opened: Opened, run_id: str) -> JobResult:
    """A stored run with its tables, which nobody may change; raises StoreError when it is damaged."""
    return _opened_run(_study(opened), run_id, _files(opened.path, run_id))[1]


def of_run(opened: Opened, run_id: str, make: Callable[[JobResult], T]) -> T:
    """What a function makes of a stored run, kept while the run's files stay; nobody may change it."""
    found: T = _made(make, _study(opened), run_id, _files(opened.path, run_id))
    return found


@lru_cache(maxsize=1024)
def _made(
    make: Callable[[JobResult], Any], study: tuple[str, str], run_id: str, written: tuple[Any, ...]
) -> Any:
    return make(_opened_run(study, run_id, written)[1])


def _study(opened: Opened) -> tuple[str, str]:
    """Whose runs they are: path and fingerprint."""
    return opened.path, opened.store.fingerprint


def _files(path: str, run_id: str) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of a run's files, by which one that was written again or damaged is noticed."""
    if not run_id.isalnum():
        return ()
    if "://" in path:
        return tuple(
            (name, *stamp) for name, stamp in stamps_of(path) if name.startswith(f"{RUNS}/{run_id}/")
        )
    try:
        found = [(entry.name, entry.stat()) for entry in os.scandir(Path(path, RUNS, run_id))]
    except OSError:  # no such run
        return ()
    return tuple(sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in found))


@lru_cache(maxsize=64)
def _opened_run(study: tuple[str, str], run_id: str, _written: tuple[Any, ...]) -> tuple[str, JobResult]:
    run = RunLog(study[0]).open(run_id)
    return run.content_hash, JobResult(run.condition, run.summary, run.tables)


@lru_cache(maxsize=4096)
def _content_hash(study: tuple[str, str], run_id: str, written: tuple[Any, ...]) -> str:
    """What an intact run is found by."""
    return _opened_run(study, run_id, written)[0]


def runs_of(opened: Opened, job: str | None = "patch") -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(condition, summary) of every intact stored run of a job (None: of all), newest first; nobody may
    change them.

    The summary has the run's id under `run_id`, its time under `created`, how long it took under
    `seconds`.
    """
    every = _runs(_study(opened), written_runs(opened.path))
    return [run for run in every if job is None or run[0].get("job", "patch") == job]


def written_runs(path: str) -> tuple[tuple[str, int], ...]:
    """Every run with the time it was written, by which a changed list is noticed."""
    if "://" in path:
        return tuple((name, stamp[1]) for name, stamp in stamps_of(path) if name.endswith(f"/{RECORD}"))
    found = []
    with suppress(OSError):  # none yet
        for run_id in os.listdir(os.path.join(path, RUNS)):
            with suppress(OSError):
                found.append((run_id, os.stat(os.path.join(path, RUNS, run_id, RECORD)).st_mtime_ns))
    return tuple(sorted(found))


@lru_cache(maxsize=4)
def _runs(study: tuple[str, str], _written: tuple[Any, ...]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(condition, summary) of every intact run."""
    listed = RunLog(study[0]).list()
    found = []
    for line in listed.filter(pl.col("problem").is_null()).iter_rows(named=True):
        condition, summary = json.loads(line["condition"]), json.loads(line["summary"])
        kept = {key: line[key] for key in ("run_id", "created", "seconds")}
        found.append((condition, {**summary, **kept}))
    return found
