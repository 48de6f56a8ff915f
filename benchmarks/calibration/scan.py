"""Which functions word something that a page shows: found in the source, so that none is forgotten."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENGINE_NAMES = {"words", "describe", "verdict", "_verdict", "conclusion", "conclude", "headline"}
Function = ast.FunctionDef


TITLES = {"Panel": 1, "Panel.of": 2}
"""Where the title stands among what makes a panel."""


def speaking(root: Path = ROOT) -> set[str]:
    """Dotted names of all functions that word something.

    Public functions that return text in the modules `app/*words.py`; functions of the app that are named
    title, verdict, …_title or …_words; functions that make a `Panel` with a title of their own, or a
    `Finding`; and the functions of the engine's numbers that draw conclusions.
    """
    found = {name for path in _modules(root, "app") for name in _of_app(path, root)}
    return found | {name for path in _numbers(root) for name in _of_engine(path, root)}


def _modules(root: Path, folder: str) -> list[Path]:
    return sorted((root / folder).rglob("*.py"))


def _numbers(root: Path) -> list[Path]:
    """Modules of the engine that compute, without what describes an experiment or runs one."""
    return [
        path
        for path in _modules(root, "engine")
        if path.parts[-2] not in ("lab", "study", "models", "passes", "prompts")
        and not re.search(r"(^|_)(spec|run|repeat|named|report|vectors|outcomes)($|_)", path.stem)
    ]


def _dotted(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts)


def _functions(path: Path) -> Iterator[Function]:
    """Functions of a module, and methods of its classes."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, Function):
            yield node
        elif isinstance(node, ast.ClassDef):
            yield from (part for part in node.body if isinstance(part, Function))


def _text(function: Function) -> bool:
    return function.returns is not None and ast.unparse(function.returns) == "str"


def _named(name: str) -> bool:
    return name in ("title", "verdict") or name.endswith(("_title", "_words"))


def _of_app(path: Path, root: Path) -> Iterator[str]:
    for function in _functions(path):
        public = not function.name.startswith("_")
        worded = path.stem.endswith("words") and public and _text(function)
        if worded or (public and _named(function.name) and _text(function)) or _titles_itself(function):
            yield f"{_dotted(path, root)}.{function.name}"


def _of_engine(path: Path, root: Path) -> Iterator[str]:
    for function in _functions(path):
        if function.name in ENGINE_NAMES:
            yield f"{_dotted(path, root)}.{function.name}"


def _titles_itself(function: Function) -> bool:
    """Whether it makes a finding, or a panel whose title is put together on the spot."""
    for call in ast.walk(function):
        if isinstance(call, ast.Call) and _callee(call) == "Finding":
            return True
        at = TITLES.get(ast.unparse(call.func)) if isinstance(call, ast.Call) else None
        if isinstance(call, ast.Call) and at is not None and len(call.args) > at:
            title = call.args[at]
            values = _assigned(function, title.id) if isinstance(title, ast.Name) else [title]
            if not all(isinstance(v, ast.Call) and _named(_callee(v)) for v in values):
                return True
    return False


def _assigned(function: Function, name: str) -> list[ast.expr]:
    """Every value that a name gets; a name that is an argument, or one of several, gets an unknown one."""
    found: list[ast.expr] = []
    for node in ast.walk(function):
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AugAssign) else targets
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            found.append(node.value)  # type: ignore[attr-defined]
    return found or [ast.Constant(name)]


def _callee(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
