"""A new analysis is two folders, a page and its lines in two lists: `tests/toy`. Everything else follows."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from live_study import make_store
from planted_store import CHECKS

from store.files import seal, unseal

ROOT = Path(__file__).resolve().parents[2]
TOY = ROOT / "tests" / "toy"
LISTS = {
    "app/analyses.py": (
        ("from app.synthesis.analysis", "from app.toy.analysis import TOY\nfrom app.synthesis.analysis"),
        ("    SIMILARITY,\n", "    SIMILARITY,\n    TOY,\n"),
    ),
    "engine/kinds.py": (
        ("from engine.weight_steering", "from engine.toy.spec import Toy\nfrom engine.weight_steering"),
        ("    DiffMining,\n)", "    DiffMining,\n    Toy,\n)"),
    ),
}
LINK = '{"job": "toy", "model": "base", "layer": 2, "grain": 2}'
RUN = f"""
import sys
import precompute
assert precompute.main(["run", sys.argv[1], "--condition", {LINK!r}]) == 0
"""
PROGRAM = """
import sys
import numpy as np
from pathlib import Path
from streamlit import config
from streamlit.testing.v1 import AppTest

config.set_option("server.address", "127.0.0.1")
store_path, ran = sys.argv[1], sys.argv[2] == "ran"
from app import main
from app.analyses import TOY, kind_of
from app.frame import durations
from app.frame.blocks import Text
from app.frame.opened import open_at
from app.frame.panel import Panel
from app.frame.selection import defaults, parse, to_params, update
from app.report.build import build
from app.report.own import terms
from engine.toy.spec import Toy
from store.runs import RunLog

opened = open_at(store_path)
asked = Toy(model="base", layer=2, grain=2)

# the menu, and settings of links with their bounds
assert [p[0] for p in main.PAGES["Compare"]][:2] == ["similarity", "toy"]
link = {"layer": "2", "grain": "2", "shade": "dark"}
chosen, notices = parse(link, opened.facts)
assert not notices and to_params(chosen, opened.facts) == {"grain": "2", "shade": "dark"} | (
    {} if defaults(opened.facts).layer == 2 else {"layer": "2"})
assert len(parse({"grain": "9", "shade": "odd"}, opened.facts)[1]) == 2

# duration, terms, kind
if not ran:
    assert durations.told([asked], []).startswith("About 9 s on the demo")
assert "toy distance" in terms()["term"]
assert kind_of(asked.to_json()).page == "toy"
assert update(chosen, opened.facts, **TOY.kinds[0].selection_of(asked.to_json(), chosen)) == chosen

# its page
def page(name, **fields):
    sys.argv = ["main.py", "--store", store_path]
    app = AppTest.from_file(str(Path(main.__file__)), default_timeout=120)
    app.run()
    app.switch_page(f"../pages/{name}.py")
    for key, value in fields.items():
        app.query_params[key] = value
    app.run()
    assert not app.exception, app.exception
    said = [text.value for text in app.markdown]
    assert not any("Something went wrong" in text for text in said), said
    return app, " ".join(said)

app, said = page("toy", **link)
assert {s.label: s.value for s in app.slider} == {"Block ℓ": 2, "Every prompt of": 2}
assert ("Prompts lie far" in said) == ran and ("Not run yet" in said) != ran, said

# the report: its chapter, or the command that fills it
report = {s.name: s for s in build(opened, chosen).sections}
panels = [b for b in report["toy"].blocks if isinstance(b, Panel)]
left = [b for b in report["missing"].blocks if isinstance(b, Text) and b.title == "Toy"]
if not ran:
    assert not panels and asked.describe() in left[0].text and "precompute.py run" in left[0].code
    sys.exit()
assert not left
run = RunLog(store_path).open(RunLog(store_path).find(asked.content_hash(opened.store.fingerprint)))
(panel,) = panels
rows = opened.store.activations("base", "resid_post", 2, "last_content").astype(np.float64)
wanted = np.linalg.norm(rows - rows.mean(axis=0), axis=1)[::2]
np.testing.assert_allclose(panel.table["distance"], wanted, rtol=1e-5)
scope = {}
exec(panel.code, scope)
assert scope["table"].equals(panel.table)
assert "Prompts lie far" in page("runs", run=run.run_id)[1]

# the register of what is said
from benchmarks.calibration import ENTRIES
from benchmarks.calibration.scan import speaking
from benchmarks.calibration.spoken import CONCLUDES, FIGURES, PHRASES

(entry,) = [one for one in ENTRIES if one.name == "Toy"]
rng = np.random.default_rng(0)
assert entry.rule(entry.planted(rng)) and not any(entry.rule(make(rng)) for make in entry.nulls.values())
assert "app.toy.words.toy_title" in CONCLUDES
assert not speaking() - {*CONCLUDES, *FIGURES, *PHRASES}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the program with the toy in it."""
    place = tmp_path / "project"
    for folder in ("app", "engine", "store", "pages", "benchmarks/calibration"):
        shutil.copytree(ROOT / folder, place / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "precompute.py", place)
    shutil.copytree(TOY, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name, changes in LISTS.items():
        text = (place / name).read_text()
        for old, new in changes:
            assert text.count(old) == 1
            text = text.replace(old, new)
        (place / name).write_text(text)
    return place


def test_it_is_short() -> None:
    assert sum(path.read_text().count("\n") for path in TOY.rglob("*.py")) <= 150


def test_it_has_all_that_the_others_have(project: Path, tmp_path: Path) -> None:
    store = make_store(tmp_path, "float32")
    manifest = unseal((store / "manifest.json").read_bytes(), "manifest")
    (store / "manifest.json").write_bytes(seal(manifest | {"self_checks": CHECKS}))

    def run(*arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=project,
            env={**os.environ, "PYTHONPATH": str(project)},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]

    run("-c", PROGRAM, str(store), "new")
    run("-c", RUN + PROGRAM, str(store), "ran")
