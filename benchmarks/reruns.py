"""CPU time on the server of a slider move on every page of a store: whole reruns, as a browser asks for them.

    python benchmarks/reruns.py STORE [--page NAME …] [--moves 15] [--profile]

Streamlit's own runtime runs the dashboard in this process, with the dashboard's configuration; the "browser"
keeps what it is sent and answers with the next value of a slider, its link and the messages it has cached.
Each slider of a page is moved over its values; a page without is run again as it is. Process CPU time until
the server is idle again, Streamlit's garbage collection after each run included.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import itertools
import os
import pstats
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from streamlit import config
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.proto.Slider_pb2 import Slider
from streamlit.proto.WidgetStates_pb2 import WidgetState
from streamlit.runtime import Runtime, RuntimeConfig
from streamlit.runtime.memory_media_file_storage import MemoryMediaFileStorage
from streamlit.runtime.memory_uploaded_file_manager import MemoryUploadedFileManager
from streamlit.runtime.runtime_util import serialize_forward_msg
from streamlit.runtime.scriptrunner import ScriptRunner

MAIN = Path(__file__).resolve().parents[1] / "app" / "main.py"
LIMIT_MS = 100.0
LISTED = 45
"""Functions in a profile."""
WAIT = 600.0


@dataclass
class Browser:
    """Stands in for a browser: what it was sent last, and what it sends back."""

    sliders: dict[str, Slider] = field(default_factory=dict)
    values: dict[str, WidgetState] = field(default_factory=dict)
    cached: set[str] = field(default_factory=set)
    query: str = ""
    page: str = ""
    errors: list[str] = field(default_factory=list)
    size: int = 0
    client_context: None = None

    def write_forward_msg(self, msg: ForwardMsg) -> None:
        """Takes a message of the server, as Streamlit's websocket does."""
        self.size += len(serialize_forward_msg(msg))
        if msg.metadata.cacheable and msg.hash:
            self.cached.add(msg.hash)
        kind = msg.WhichOneof("type")
        if kind == "delta" and msg.delta.new_element.HasField("slider"):
            self.sliders[msg.delta.new_element.slider.id] = msg.delta.new_element.slider
        elif kind == "delta" and msg.delta.new_element.HasField("exception"):
            self.errors.append(msg.delta.new_element.exception.message)
        elif kind == "page_info_changed":
            self.query = msg.page_info_changed.query_string
        elif kind == "navigation":
            self.page = msg.navigation.page_script_hash

    def asks(self, page: str = "") -> BackMsg:
        """The request for a run: of a page by its name, or of the open one."""
        self.sliders, self.size = {}, 0
        told = BackMsg()
        told.rerun_script.query_string = self.query
        told.rerun_script.page_name = page
        told.rerun_script.page_script_hash = "" if page else self.page
        told.rerun_script.widget_states.widgets.extend(self.values.values())
        told.rerun_script.cached_message_hashes.extend(self.cached)
        return told


@dataclass(frozen=True)
class Row:
    """Milliseconds of the moves of one control of a page."""

    page: str
    control: str
    spent: list[float]
    size: int


def states(slider: Slider) -> list[WidgetState]:
    """Every value of a slider, at most 24 of them, as a browser sends it."""
    if slider.options:
        return [state_of(slider, one) for one in slider.options]
    count = round((slider.max - slider.min) / slider.step)
    picked = range(0, count + 1, 1 + count // 24)
    return [state_of(slider, slider.min + slider.step * number) for number in picked]


def state_of(slider: Slider, value: str | float) -> WidgetState:
    """A value of a slider as a browser sends it: an option's name, or a number."""
    if isinstance(value, str):
        return WidgetState(id=slider.id, string_array_value={"data": [value]})
    return WidgetState(id=slider.id, double_array_value={"data": [value]})


class Dashboard:
    """The app on a store in this process, open in one browser."""

    def __init__(self, store: Path) -> None:
        config._main_script_path = str(MAIN)
        config.get_config_options(force_reparse=True)
        sys.argv = ["main.py", "--store", str(store)]
        self.runtime = Runtime(
            RuntimeConfig(
                script_path=str(MAIN),
                media_file_storage=MemoryMediaFileStorage("/media"),
                uploaded_file_manager=MemoryUploadedFileManager("/upload"),
            )
        )

    async def open(self) -> None:
        """Starts the runtime."""
        await self.runtime.start()

    async def visit(self, page: str, moves: int) -> list[Row]:
        """Opens a page in a new browser and moves each of its sliders."""
        browser = Browser()
        session = self.runtime.connect_session(browser, {})
        found = self.runtime.get_app_session(session)
        assert found is not None
        found.track_settling()
        try:
            for _ in range(3):  # first view, and what it leaves to the next ones
                await self._run(session, browser, page if not browser.page else "")
            rows = []
            for slider in [one for one in browser.sliders.values() if not one.disabled]:
                rows.append(await self._moved(session, browser, page, slider, moves))
                at = slider.raw_value if slider.options else slider.value  # back where it was
                browser.values[slider.id] = state_of(slider, at[0])
                await self._run(session, browser)
            return rows or [await self._moved(session, browser, page, None, moves)]
        finally:
            if browser.errors:
                print(f"{page}: {browser.errors[0]}")
            self.runtime.close_session(session)

    async def _moved(
        self, session: str, browser: Browser, page: str, slider: Slider | None, moves: int
    ) -> Row:
        sent: Iterator[WidgetState | None] = itertools.cycle(states(slider) if slider else [None])
        spent = []
        for state in itertools.islice(sent, moves):
            if state is not None:
                browser.values[state.id] = state
            begin = time.process_time()
            await self._run(session, browser)
            spent.append(1000 * (time.process_time() - begin))
        return Row(page, slider.label if slider else "(no slider: run again)", spent, browser.size)

    async def _run(self, session: str, browser: Browser, page: str = "") -> None:
        self.runtime.handle_backmsg(session, browser.asks(page))
        found = self.runtime.get_app_session(session)
        assert found is not None
        async with asyncio.timeout(WAIT):
            await found.wait_until_settled()


def profiled(profile: cProfile.Profile) -> None:
    """Lets the profile take what the script's thread does, page by page."""
    run: Callable[..., Any] = ScriptRunner._run_script_thread

    def wrapped(self: ScriptRunner) -> None:
        profile.enable()
        try:
            run(self)
        finally:
            profile.disable()

    ScriptRunner._run_script_thread = wrapped  # type: ignore[method-assign]


async def measure(store: Path, pages: list[str], moves: int, profile: bool) -> list[Row]:
    """Opens the dashboard and measures pages, all where none is named, one after the other."""
    dashboard = Dashboard(store)
    await dashboard.open()
    from app.main import PAGES  # as on a server: after the runtime that caches belong to

    pages = pages or [name for entries in PAGES.values() for name, *_ in entries]
    rows: list[Row] = []
    taken = cProfile.Profile()
    for page in pages:
        if profile:
            await dashboard.visit(page, 1)  # so that first views are not in the profile
            taken.clear()
            profiled(taken)
        new = await dashboard.visit(page, moves)
        rows += new
        for row in new:
            print(line(row), flush=True)
        if profile:
            pstats.Stats(taken).sort_stats("tottime").print_stats(LISTED // 3)
            pstats.Stats(taken).sort_stats("cumtime").print_stats(r"/(app|store|engine|pages)/", LISTED)
    return rows


def line(row: Row) -> str:
    """A row of the printed table."""
    times = f"{statistics.median(row.spent):7.1f} {max(row.spent):7.1f}"
    return f"{row.page:18s} {row.control[:30]:30s} {times} {row.size / 1000:8.0f}"


def main() -> int:
    """Measure and print; 1 when a move takes too long in the median."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("store", type=Path, help="folder of a finished store")
    parser.add_argument("--page", action="append", help="name of a page, as in its address; default: all")
    parser.add_argument("--moves", type=int, default=15, help="of each slider")
    parser.add_argument("--profile", action="store_true", help="list the functions that take the time")
    options = parser.parse_args()
    print(f"{'page':18s} {'control':30s}  median   worst  kB sent   (ms of CPU)")
    rows = asyncio.run(measure(options.store, options.page or [], options.moves, options.profile))
    slow = {row.page for row in rows if statistics.median(row.spent) > LIMIT_MS}
    print(f"pages with moves above {LIMIT_MS:.0f} ms: {', '.join(sorted(slow)) or 'none'}")
    return bool(slow)


if __name__ == "__main__":
    raise SystemExit(main())
