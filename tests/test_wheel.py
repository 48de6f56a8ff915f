"""The wheel, installed into an empty environment and used from another folder: commands, notebook, a page."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import pytest
from loopback import assert_on_loopback, free_port

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
PACKED = ("app", "engine", "store", "pages", "patchbay", "demo", "studies")
FILES = ("precompute.py", "setup.py", "pyproject.toml", "README.md", "LICENSE")

NOTEBOOK = """
import numpy as np, torch
import patchbay as pb
from patchbay.engine.heads.spec import HeadSubsets

store = pb.open("store")
x, y = (store.activations(m, "resid_post", 5, "decision") for m in ("base", "tuned"))
value = pb.cka(x, y)
assert 0 < value < 1, value
assert pb.cka(torch.tensor(x), torch.tensor(y)) == value
assert abs(pb.cka(x, x) - 1) < 1e-9
half = len(x) // 2
scores = pb.evaluate(pb.ScaledProcrustes(), (x[:half], y[:half]), (x[half:], y[half:]))
assert scores.r2_validation > 0.5, scores
asked = dict(target="tuned", source="base", component="mlp_out", layer=5, position="decision", n_boot=100)
assert pb.patch("store", **asked).table["kl"].mean() > 0
assert pb.patch("store", map="MeanShift", **asked).summary
import sys
assert not {"engine", "store", "app"} & set(sys.modules), "a name that is anybody's"
print("notebook works")
"""
PAGE = """
import sys
from pathlib import Path
import patchbay
from streamlit import config
from streamlit.testing.v1 import AppTest

config.set_option("server.address", "127.0.0.1")  # the page is drawn without a server that would say so
here = Path(patchbay.__file__).parent
sys.argv = ["main.py", "--store", "store"]
app = AppTest.from_file(str(here / "app" / "main.py"), default_timeout=60).run()
assert not app.exception, app.exception
app.switch_page("../pages/similarity.py").run()
assert not app.exception, app.exception
said = " ".join(m.value for m in app.markdown)
assert ":material/report:" not in said, said
code = "\\n".join(c.value for c in app.code)
assert "from patchbay.store.reader import Store" in code, code
assert not {"engine", "store", "app"} & set(sys.modules), "a name that is anybody's"
print("page works")
"""


class Installed:
    """An environment that holds the wheel and what it needs, and a folder to work in."""

    def __init__(self, python: Path, folder: Path) -> None:
        self.python, self.folder = python, folder

    def run(self, *arguments: str) -> str:
        command = [str(self.python), *arguments]
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=ELSEWHERE,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    def patchbay(self, *arguments: str) -> str:
        return self.run(str(self.python.with_name("patchbay")), *arguments)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Its dependencies are those of this environment, without the editable Patchbay in it."""
    folder = tmp_path_factory.mktemp("wheel")
    source, work = folder / "source", folder / "elsewhere"
    for name in PACKED:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, source / name)
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    _pip("--python", str(python), "install", "--no-deps", *map(str, folder.glob("*.whl")))
    site = next((folder / "venv" / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    work.mkdir()
    for name in ("app", "engine", "store", "pages"):  # what a folder of one's own may hold
        (work / f"{name}.py").write_text("raise SystemExit('the wrong module')\n")
    return Installed(python, work)


def _pip(*arguments: str) -> None:
    command: Sequence[str] = [
        sys.executable,
        "-m",
        "pip",
        "--quiet",
        "--disable-pip-version-check",
        *arguments,
    ]
    done = subprocess.run(command, env=ELSEWHERE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_wheel_does_the_main_job(installed: Installed, tmp_path: Path) -> None:
    """Commands, the dashboard, notebook and a page, one after the other on one store."""
    said = installed.patchbay("--help")
    assert all(
        f"\n    {name} " in said for name in ("plan", "verify", "run", "report", "migrate", "serve", "demo")
    )
    where = installed.run("-c", "import patchbay; print(patchbay.__path__[0])").strip()
    study = f"{where}/studies/demo.toml"
    small = ("--limit", "120", "--sites", "resid,attn_out,mlp_out", "--positions", "decision,last_content")
    installed.patchbay("precompute", study, "--store", "store", *small)
    assert "notebook works" in installed.run("-c", NOTEBOOK)
    assert "page works" in installed.run("-c", PAGE)
    port = free_port()
    command = [str(installed.python.with_name("patchbay")), "serve", "store", "--port", str(port)]
    assert_on_loopback(command, port, installed.folder, tmp_path)
    condition = '{"job": "patch", "target": "tuned", "source": "base", "component": "attn_out", "layer": 4}'
    installed.patchbay("run", "store", "--condition", condition)


def test_nothing_lies_beside_the_package(installed: Installed) -> None:
    site = next((installed.python.parents[1] / "lib").glob("python*/site-packages"))
    ours = {path.name for path in site.iterdir()} - {"dependencies.pth"}
    assert ours == {"patchbay", next(site.glob("patchbay-*.dist-info")).name}
