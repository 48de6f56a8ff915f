"""Reading prompt files: JSON lines, CSV, TSV and Parquet into validated rows."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from engine.errors import PromptsError

KNOWN = ("id", "text", "messages", "pair_id", "language", "category", "split", "answer", "choices", "label")
ROLES = ("system", "user", "assistant", "tool")
Row = dict[str, Any]


def read_rows(path: Path, columns: Mapping[str, str] | None = None) -> Iterator[tuple[Row, str]]:
    """Yields (row, where it stands) of one file; values are strings, `messages` and `choices` lists.

    Args:
        columns: our name -> the file's name, for files that call things differently.

    Raises:
        PromptsError: missing or unreadable file, unknown format, or a row that cannot be used; the
            message names the file and the row.
    """
    if not path.is_file():
        raise PromptsError("A prompt file isn't there.", expected="a file", given=str(path))
    readers = {".jsonl": _jsonl, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet}
    if path.suffix not in readers:
        raise PromptsError(
            f"The prompt file {path.name} has an unknown format.",
            expected=", ".join(readers),
            given=path.suffix or "no suffix",
        )
    for raw, where in readers[path.suffix](path):
        yield _row(_renamed(raw, columns or {}, where), where), where


def _jsonl(path: Path) -> Iterator[tuple[Any, str]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise _unreadable(path, error) from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path.name} line {number}"
        try:
            yield json.loads(line), where
        except json.JSONDecodeError as error:
            raise PromptsError(
                f"{where} is not JSON.", expected="one JSON object per line", given=str(error)
            ) from None


def _csv(path: Path) -> Iterator[tuple[Any, str]]:
    separator = "\t" if path.suffix == ".tsv" else ","
    try:
        table = pl.read_csv(path, separator=separator, infer_schema=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(path, error) from None
    for number, row in enumerate(table.iter_rows(named=True), start=1):
        yield row, f"{path.name} row {number}"


def _parquet(path: Path) -> Iterator[tuple[Any, str]]:
    try:
        table = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(path, error) from None
    for number, row in enumerate(table.iter_rows(named=True), start=1):
        yield row, f"{path.name} row {number}"


def _unreadable(path: Path, error: Exception) -> PromptsError:
    return PromptsError(
        f"The prompt file {path.name} cannot be read.",
        expected=f"UTF-8 text or Parquet as its suffix {path.suffix} says",
        given=" ".join(str(error).split())[:200],
        next_step="save it again in that format.",
    )


def _renamed(raw: Any, columns: Mapping[str, str], where: str) -> Any:
    """A row under our names; the columns that the study maps are taken from where it says."""
    if not columns or not isinstance(raw, dict):
        return raw
    missing = [source for source in columns.values() if source not in raw]
    if missing:
        raise PromptsError(
            f"{where} has no {missing[0]!r}, which the study's prompts.columns names.",
            expected="one of " + ", ".join(raw),
            given=repr(missing[0]),
            next_step="correct prompts.columns.",
        )
    others = {key: value for key, value in raw.items() if key not in columns and key not in columns.values()}
    return {name: raw[source] for name, source in columns.items()} | others


def _row(raw: Any, where: str) -> Row:
    if not isinstance(raw, dict):
        raise PromptsError(f"{where} is not an object.", expected="keys and values", given=repr(raw)[:80])
    for key in raw.keys() - set(KNOWN):
        close = difflib.get_close_matches(key, [known for known in KNOWN if known not in raw], 1, cutoff=0.8)
        if close:
            raise PromptsError(
                f"{where} has the unknown key {key!r}.",
                expected="one of " + ", ".join(KNOWN) + ", or a name unlike these",
                given=repr(key),
                next_step=f"did you mean {close[0]!r}?",
            )
    row: Row = {key: _text(value) for key, value in raw.items() if key not in ("messages", "choices")}
    if not row.get("id"):
        raise PromptsError(
            f"{where} has no id.",
            expected="an id that no other prompt has",
            given="the columns " + ", ".join(raw),
            next_step='add one, or name its column in the study: columns = { id = "…" } under [prompts].',
        )
    row["messages"] = _messages(raw.get("messages"), f"{where} (id {row['id']!r})")
    row["choices"] = _choices(raw.get("choices"), f"{where} (id {row['id']!r})")
    return _with_text(row, where)


def _with_text(row: Row, where: str) -> Row:
    if row["messages"] is None:
        if "text" not in row:
            raise PromptsError(
                f"{where} (id {row['id']!r}) has neither 'text' nor 'messages'.",
                expected="one of them",
                given="the columns " + ", ".join(key for key in row if row[key] is not None),
                next_step='name the column in the study: columns = { text = "…" } under [prompts].',
            )
        if not (row.get("text") or "").strip():
            raise PromptsError(
                f"{where} (id {row['id']!r}) has an empty text.",
                expected="'text' with at least one visible character, or 'messages'",
                given=repr(row.get("text")),
                next_step="fill it or remove the row.",
            )
        return row
    if row.get("text"):
        raise PromptsError(
            f"{where} (id {row['id']!r}) has both text and messages.",
            expected="one of them",
            given="both",
            next_step="put the text into the last user message.",
        )
    row["text"] = [m["content"] for m in row["messages"] if m["role"] == "user"][-1]
    return row


def _messages(value: Any, where: str) -> list[dict[str, str]] | None:
    if value is None or value in ("", []):
        return None
    try:
        messages = json.loads(value) if isinstance(value, str) else value
        out = [{"role": str(m["role"]), "content": str(m["content"])} for m in messages]
    except (json.JSONDecodeError, TypeError, KeyError):
        raise PromptsError(
            f"{where} has messages that cannot be read.",
            expected='a list of {"role": …, "content": …}',
            given=repr(value)[:120],
        ) from None
    problem = next((f"role {m['role']!r}" for m in out if m["role"] not in ROLES), None)
    if out[-1]["role"] != "user":
        problem = problem or f"a last message of the {out[-1]['role']}"
    elif not out[-1]["content"].strip():
        problem = problem or "an empty text in the last user message"
    if problem:
        raise PromptsError(
            f"{where} has messages that cannot be used.",
            expected="roles " + ", ".join(ROLES) + ", ending with a user message that isn't empty",
            given=problem,
        )
    return out


def _choices(value: Any, where: str) -> list[str] | None:
    """A list, a JSON list, or "one|two|three"."""
    if value is None or value == "":
        return None
    if isinstance(value, str) and not value.lstrip().startswith("["):
        return value.split("|")
    try:
        parsed = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        parsed = None
    if not isinstance(parsed, list):
        raise PromptsError(
            f"{where} has choices that cannot be read.",
            expected='a list, or text as "one|two|three"',
            given=repr(value)[:120],
        )
    return [str(item) for item in parsed]


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (bool, dict, list)) else str(value)
