"""Tables as calls: what is kept, for how long, and that the code makes the very same table elsewhere."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import polars as pl
import pytest

from app.bridge import panels as bridge
from app.bridge import spaces
from app.frame import call
from app.frame.call import Call, kept
from app.frame.opened import Opened, read_facts
from app.frame.panel import Panel
from app.frame.selection import Selection, changed, defaults
from app.geometry import separation
from app.geometry import weights as geometry
from app.principal_differences import panels as principal
from app.residual_updates import panels as updates
from app.similarity import panels as similarity
from app.transport import panels as transport
from store.reader import Store

ROOT = Path(__file__).resolve().parents[2]
asked: list[tuple[object, ...]] = []


@kept(most=2)
def counted(store: Store, name: str, many: int = 3, watch: Callable[[int], None] = print) -> pl.DataFrame:
    asked.append((name, many))
    return pl.DataFrame({"name": [name] * many})


@pytest.fixture(autouse=True)
def nothing_asked() -> None:
    asked.clear()


def test_a_question_is_answered_once_however_it_is_put(planted: Path) -> None:
    store = Store(planted)
    first = counted(store, "a")
    assert counted(store, many=3, name="a") is first
    assert counted(store, "a", watch=partial(print, "x")) is first, "who watches is no other question"
    assert asked == [("a", 3)]
    assert counted(store, "a", 2).height == 2
    counted(store, "a")
    counted(store, "b")  # the third: the one not looked at for longest goes
    assert counted(store, "a") is first
    counted(store, "a", 2)
    assert asked == [("a", 3), ("a", 2), ("b", 3), ("a", 2)]


def test_another_store_is_another_question_and_takes_its_answers_along(planted: Path) -> None:
    one, two = Store(planted), Store(planted)
    assert counted(one, "a") is not counted(two, "a")
    gone = weakref.ref(one)
    del one
    gc.collect()
    assert gone() is None


def test_a_slow_question_says_what_it_does(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    @contextmanager
    def saying(text: str) -> Iterator[None]:
        said.append(text)
        yield

    @kept("Thinking…")
    def slow(store: Store, fails: bool) -> int:
        if fails:
            raise ValueError("no answer")
        return 1

    monkeypatch.setattr(call, "busy", saying)
    store = Store(planted)
    assert [slow(store, False), slow(store, False)] == [1, 1]
    assert said == ["Thinking…"]
    for _ in range(2):
        with pytest.raises(ValueError, match="no answer"):
            slow(store, True)
    assert len(said) == 3, "an error is no answer to be kept"


def test_who_asks_at_the_same_time_waits_and_asks_again_after_an_error(planted: Path) -> None:
    begun, go, fails = threading.Event(), threading.Event(), [False, True]

    @kept()
    def slow(store: Store) -> str:
        asked.append(())
        begun.set()
        assert go.wait(20)
        if fails.pop():
            raise KeyboardInterrupt  # as of one who stopped looking
        return "answer"

    store = Store(planted)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(slow, store)
        assert begun.wait(20)
        second = pool.submit(slow, store)
        go.set()
        assert isinstance(first.exception(20), KeyboardInterrupt)
        assert second.result(20) == "answer"
    assert slow(store) == "answer"
    assert len(asked) == 2


def test_the_code_is_the_call(planted: Path) -> None:
    store = Store(planted)
    made = Call(counted, store, name="it's", many=2)
    assert made.code.splitlines() == [
        f"from {__name__} import counted",
        "from store.reader import Store",
        "",
        f"store = Store('{planted}')",
        "table = counted(",
        "    store,",
        '    name="it\'s",',
        "    many=2,",
        ")",
    ]
    assert made.table is counted(store, "it's", 2)
    assert f"other=Store('{planted}')," in Call(counted, store, other=Store(planted)).code


def panels(opened: Opened, chosen: Selection) -> list[Panel | None]:
    """Every panel whose code is its call, on the planted store."""
    zh = changed(chosen, language="zh", split="train", interval="jackknife", estimator="biased")
    found = [make(opened, at) for at in (chosen, zh) for make in similarity.panels(at)]
    scaled = updates.effective(opened, changed(chosen, scale="r_over_chance", k=2, ref=1))
    found += [make(opened, scaled) for make in updates.PANELS]
    every = geometry.effective(opened, changed(chosen, layers="every", k=2, ref=1, joined="kernels"))
    found += [make(opened, every) for make in geometry.WEIGHTS]
    found += [make(opened, every, "mean") for make in separation.makers(every)]
    found += [make() for make in principal.makers(opened, changed(chosen, layer=3))]
    ridge = changed(chosen, method="RidgeTransport", layer=3)
    found += [make(opened, ridge) for make in transport.PANELS]
    return [*found, *bridge.panels(opened, spaces.effective(opened, changed(chosen, k=2, layer=1)))]


def test_the_code_makes_the_same_tables_in_a_process_without_streamlit(planted: Path, tmp_path: Path) -> None:
    store = Store(planted)
    opened = Opened(str(planted), store, read_facts(store))
    made = [panel for panel in panels(opened, defaults(opened.facts)) if panel is not None]
    parts = [f"{one.code}\ntable.write_parquet({str(tmp_path / str(n))!r})" for n, one in enumerate(made)]
    script = "\n".join([*parts, "import sys", "assert 'streamlit' not in sys.modules"])
    (tmp_path / "page.py").write_text(script)
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "page.py")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for number, panel in enumerate(made):
        assert pl.read_parquet(tmp_path / str(number)).equals(panel.table), panel.name
