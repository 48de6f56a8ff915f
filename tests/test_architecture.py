"""Who may import whom, module sizes, and page sizes: the structure that everything else relies on."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STANDARD = {"__future__", *__import__("sys").stdlib_module_names}
NUMERIC = {"numpy", "scipy", "sklearn", "ot", "jaxtyping"}
NUMBERS = ("stats", "similarity", "transport", "geometry", "residual_updates", "bridge", "texts")
"""Folders of engine that hold nothing but numbers; elsewhere they are in numbers.py or numbers/."""
NOT_ONLY_NUMBERS = {
    "engine/similarity/sampling.py": {"polars"},
    "engine/transport/named.py": {"pydantic", "engine.spec"},
    "engine/texts/patterns.py": {"regex"},
}
FILES = 25
"""Files that a folder shows at most."""


def modules(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def dotted(path: Path) -> str:
    return short(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Dotted names imported anywhere in a module, inside functions too."""
    names: set[str] = set()
    for node in _imported(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{short(path)}: write absolute imports"
            names |= {f"{node.module or ''}.{alias.name}" for alias in node.names}
    return names


def _imported(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes of a tree, without what is imported for annotations alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and getattr(child.test, "id", "") == "TYPE_CHECKING":
            continue
        yield child
        yield from _imported(child)


def within(names: set[str], some: set[str]) -> set[str]:
    return {name for name in names if any(name == one or name.startswith(one + ".") for one in some)}


def offending(path: Path, allowed: set[str]) -> set[str]:
    found = imports(path)
    return found - within(found, allowed)


def forbidden(path: Path, names: set[str]) -> set[str]:
    return within(imports(path), names)


def none_of(found: dict[str, set[str]]) -> None:
    assert not {name: names for name, names in found.items() if names}


def numbers() -> list[Path]:
    """Modules of numbers alone."""
    found = modules(*(f"engine/{name}" for name in NUMBERS), "engine/subspaces/numbers")
    found += [path for path in modules("engine") if path.name == "numbers.py"]
    return sorted(set(found))


def test_numbers_are_numerics_alone() -> None:
    own = {dotted(path) for path in numbers()}
    allowed = STANDARD | NUMERIC | {"engine.errors"} | own
    none_of({short(p): offending(p, allowed | NOT_ONLY_NUMBERS.get(short(p), set())) for p in numbers()})


def test_specs_need_no_torch() -> None:
    specs = [path for path in modules("engine") if path.stem.endswith("spec")]
    assert len(specs) >= 12
    none_of({short(p): forbidden(p, {"torch", "transformers"}) for p in specs})


def test_engine_knows_neither_store_nor_app() -> None:
    none_of(
        {short(p): forbidden(p, {"store", "app", "pages", "streamlit", "zarr"}) for p in modules("engine")}
    )


def test_store_knows_neither_torch_nor_streamlit() -> None:
    banned = {"torch", "transformers", "streamlit", "app", "pages", "engine"}
    none_of(
        {
            short(p): forbidden(p, banned) - forbidden(p, {"engine.errors", "engine.parquet_pages"})
            for p in modules("store")
        }
    )


def test_pages_import_the_app_only() -> None:
    allowed = STANDARD | {"app", "streamlit", "polars"}
    none_of({short(p): offending(p, allowed) for p in modules("pages")})


def test_charts_tables_and_worker_run_without_streamlit() -> None:
    some = ("live/worker", "live/run", "frame/call", "frame/prompts", "geometry/compared", "transport/scored")
    tables = [path for path in modules("app") if path.name == "tables.py" and path.parent.name != "ard"]
    assert len(tables) >= 8
    headless = [*modules("app/charts"), *(ROOT / f"app/{name}.py" for name in some), *tables]
    none_of({short(p): forbidden(p, {"streamlit"}) for p in headless})


def test_only_what_shows_all_analyses_knows_their_list() -> None:
    knowing = ("app/report", "app/runs", "app/main.py", "app/analyses.py")
    others = [path for path in modules("app") if not short(path).startswith(knowing)]
    none_of({short(p): forbidden(p, {"app.analyses"}) for p in others})


def test_only_the_list_knows_the_analyses() -> None:
    """The frame is below them; report and runs show them by what they declare."""
    analyses = {dotted(path) for path in (ROOT / "app").glob("*/analysis.py")} - {"app.frame.analysis"}
    rooms = {name.removesuffix(".analysis") for name in analyses}
    assert len(rooms) >= 18
    below = modules("app/frame", "app/live", "app/workers", "app/charts", "app/build")
    above = [*modules("app/report", "app/runs"), ROOT / "app/main.py"]
    none_of({short(p): forbidden(p, rooms | {"app.report", "app.runs"}) for p in below})
    none_of({short(p): forbidden(p, rooms) for p in above})
    others = [p for p in modules("app") if p != ROOT / "app/analyses.py"]
    none_of({short(p): forbidden(p, analyses) for p in others})


def test_every_analysis_is_in_the_list() -> None:
    named = {name.rpartition(".")[0] for name in imports(ROOT / "app/analyses.py")}
    assert {dotted(path) for path in (ROOT / "app").glob("*/analysis.py")} <= named


def test_scripts_write_nothing_by_chance() -> None:
    """Streamlit prints an expression that stands alone in a script: a text below a constant, too."""
    for path in [*modules("pages"), ROOT / "app/main.py"]:
        alone = [node for node in ast.parse(path.read_text()).body[1:] if isinstance(node, ast.Expr)]
        assert not [node for node in alone if isinstance(node.value, ast.Constant)], short(path)


def room(name: str) -> str:
    """The folder that a module lies in, two names deep; a module of its own beside folders stays one."""
    return ".".join(name.split(".")[:2])


def whole(name: str) -> str:
    return name


@pytest.mark.parametrize(
    ("folders", "of"),
    [(("engine", "store", "app"), whole), (("app",), room)],
    ids=["modules", "folders of app"],
)
def test_nothing_imports_in_a_circle(folders: tuple[str, ...], of: Callable[[str], str]) -> None:
    known = {dotted(path) for path in modules(*folders)}
    graph: dict[str, set[str]] = {}
    for path in modules(*folders):
        own = of(dotted(path))
        found = {name if name in known else name.rpartition(".")[0] for name in imports(path)} & known
        graph.setdefault(own, set()).update({of(name) for name in found} - {own})
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_no_folder_shows_more_than_a_reader_takes_in() -> None:
    """But for pages/, where every analysis has its file of six lines."""
    folders = {path.parent for path in modules("engine", "store", "app")}
    counts = {short(folder): sum(child.is_file() for child in folder.iterdir()) for folder in folders}
    assert not {folder: count for folder, count in counts.items() if count > FILES}


@pytest.mark.parametrize("path", modules("engine", "store", "app", "pages", "demo"), ids=short)
def test_modules_stay_small(path: Path) -> None:
    text = path.read_text()
    limit = 20 if path.parent.name == "pages" else 400
    assert text.count("\n") <= limit, f"{path.name} has {text.count(chr(10))} lines; split it"
    long = [
        f"{node.name} ({node.end_lineno - node.lineno + 1} lines)"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno + 1 > 60
    ]
    assert not long, f"functions over 60 lines: {', '.join(long)}"
