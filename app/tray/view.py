"""The tray in the sidebar of every page: where live work runs, its memory, what runs or waits."""

from __future__ import annotations

import psutil
import streamlit as st

from app import access, screen
from app.frame import parts as components
from app.frame import running as live_view
from app.frame.opened import Opened
from app.frame.words import size
from app.live.jobs import JobStatus

AUTO = "auto"
CHOICE = "tray-device"
SHOWN = 6
"""Jobs that are listed; of more, the number is told."""
POLL_SECONDS, IDLE_SECONDS = 1.0, 8.0
"""Between two looks at the server, while something runs or waits there and while nothing does."""


def show(opened: Opened) -> None:
    """The tray, redrawn by itself while anything runs; nothing where a store has no models."""
    if opened.can_run:
        busy = bool(_going())
        st.fragment(run_every=POLL_SECONDS if busy else IDLE_SECONDS)(_tray)(busy)


def _going() -> list[JobStatus]:
    """What runs or waits on this server, whoever asked, in the order in which it is served."""
    going = [job for job in live_view.worker().jobs() if not job.over]
    return sorted(going, key=lambda job: (job.state == "queued", job.ahead, job.submitted))


def _tray(busy: bool) -> None:
    """The tray; what it polls by is chosen anew when the server has become busy, or idle."""
    going = _going()
    if bool(going) != busy:
        st.rerun(scope="app")
    with components.guard("tray"):
        said = label(going, live_view.worker().device)
        tray = screen.expander(said, icon=":material/memory:", key="tray", on_change="rerun")
        if tray.open:
            with tray:
                _device(going)
                screen.caption(memory(live_view.worker().process_ids(), _on_gpus()))
                _jobs(going)


def label(going: list[JobStatus], chosen: str) -> str:
    """Where live work runs, as far as it is known, and how much of it there is."""
    device = next((job.device for job in going if job.device), "any device" if chosen == AUTO else chosen)
    many = f"{len(going)} experiment{'s' if len(going) > 1 else ''}"
    return f"{device} · {many if going else 'idle'}"


def memory(process_ids: list[int], on_gpus: tuple[int, int] | None) -> str:
    """What the worker's processes hold, of this machine's memory and of the GPUs they have something on."""
    held, running = 0, 0
    for pid in process_ids:
        try:
            held += psutil.Process(pid).memory_info().rss
            running += 1
        except psutil.NoSuchProcess:
            continue
    if not running:
        return "No worker process runs; the first experiment starts one."
    told = f"The worker holds {size(held)} of {size(psutil.virtual_memory().total)}"
    if on_gpus is not None:
        told += f"; {size(on_gpus[0])} of {size(on_gpus[1])} on its GPUs were in use after its last run"
    return f"{told}."


def _on_gpus() -> tuple[int, int] | None:
    return next((job.memory for job in live_view.worker().jobs() if job.memory), None)


def _device(going: list[JobStatus]) -> None:
    from engine.models.checkpoint import devices  # torch, which a server that is only read need not import

    options, now = [AUTO, *devices()], live_view.worker().device
    if st.session_state.get(CHOICE) != now:  # another session may have moved it
        st.session_state[CHOICE] = now
    screen.selectbox(
        "Device",
        options if now in options else [*options, now],
        key=CHOICE,
        on_change=_move,
        disabled=bool(going) or not access.may("run"),
        help="Where this server's experiments run from now on; auto leaves it to the study. It can be "
        "changed while nothing runs.",
    )


def _move() -> None:
    with components.guard("choose a device"):
        access.require("run")
        live_view.worker().move(st.session_state[CHOICE])


def _jobs(going: list[JobStatus]) -> None:
    for job in going[:SHOWN]:
        with st.container(key=f"tray-{job.job_id}", gap="small"):
            if job.state == "running":
                screen.progress(job.fraction, live_view.progress_text(job, [job]))
            else:
                screen.caption(live_view.progress_text(job, [job]))
            _cancel_button("Cancel", [job])
    if len(going) > SHOWN:
        screen.caption(f"and {len(going) - SHOWN} more, which wait")
    if len(going) > 1:
        _cancel_button("Cancel all", going)
    if not going:
        screen.caption("Nothing runs or waits.")


def _cancel_button(text: str, jobs: list[JobStatus]) -> None:
    screen.button(
        text,
        icon=":material/stop:",
        type="tertiary",
        key=f"tray-cancel-{'all' if len(jobs) > 1 else jobs[0].job_id}",
        on_click=_cancel,
        args=([job.job_id for job in jobs],),
    )


def _cancel(job_ids: list[str]) -> None:
    with components.guard("cancel an experiment"):
        access.require("run")
        for job_id in job_ids:
            live_view.worker().cancel(job_id)
