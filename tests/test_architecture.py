"""Who may import whom, module sizes, and page sizes: the structure that everything else relies on."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STANDARD = {"__future__", *__import__("sys").stdlib_module_names}
NUMERIC = {"numpy", "scipy", "sklearn", "ot", "jaxtyping"}


def modules(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Dotted names imported anywhere in a module, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.relative_to(ROOT)}: write absolute imports"
            module = node.module or ""
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def offending(path: Path, allowed: set[str]) -> set[str]:
    return {name for name in imports(path) if not any(name == a or name.startswith(a + ".") for a in allowed)}


def forbidden(path: Path, names: set[str]) -> set[str]:
    return {name for name in imports(path) if any(name == f or name.startswith(f + ".") for f in names)}


def test_analysis_is_pure_numerics() -> None:
    allowed = STANDARD | NUMERIC | {"engine.analysis", "engine.errors"}
    bad = {p.name: offending(p, allowed) for p in modules("engine/analysis") if p.name != "ard_mmd.py"}
    assert not {name: found for name, found in bad.items() if found}


def test_engine_knows_neither_store_nor_app() -> None:
    bad = {p.name: forbidden(p, {"store", "app", "pages", "streamlit", "zarr"}) for p in modules("engine")}
    assert not {name: found for name, found in bad.items() if found}


def test_store_knows_neither_torch_nor_streamlit() -> None:
    banned = {"torch", "transformers", "streamlit", "app", "pages"}
    bad = {p.name: forbidden(p, banned) for p in modules("store")}
    engine = {
        p.name: forbidden(p, {"engine"}) - {n for n in imports(p) if n.startswith("engine.errors")}
        for p in modules("store")
    }
    assert not {name: found for name, found in (bad | engine).items() if found}
    assert not {name: found for name, found in engine.items() if found}


def test_pages_import_the_app_only() -> None:
    allowed = STANDARD | {"app", "streamlit", "polars"}
    bad = {p.name: offending(p, allowed) for p in modules("pages")}
    assert not {name: found for name, found in bad.items() if found}


def test_charts_and_worker_run_without_streamlit() -> None:
    headless = [*modules("app/charts"), ROOT / "app/worker.py", ROOT / "app/live.py"]
    bad = {p.name: forbidden(p, {"streamlit"}) for p in headless}
    assert not {name: found for name, found in bad.items() if found}


@pytest.mark.parametrize(
    "path", modules("engine", "store", "app", "pages", "demo"), ids=lambda p: str(p.relative_to(ROOT))
)
def test_modules_stay_small(path: Path) -> None:
    text = path.read_text()
    limit = 100 if path.parent.name == "pages" else 400
    assert text.count("\n") <= limit, f"{path.name} has {text.count(chr(10))} lines; split it"
    long = [
        f"{node.name} ({node.end_lineno - node.lineno + 1} lines)"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno + 1 > 60
    ]
    assert not long, f"functions over 60 lines: {', '.join(long)}"
