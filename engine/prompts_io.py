"""Reading prompts: JSON, JSON lines, CSV, TSV, Parquet and Hugging Face datasets into validated rows."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from engine.errors import PromptsError
from engine.prompts_spec import PromptSource, PromptsSpec

KNOWN = ("id", "text", "messages", "pair_id", "language", "category", "split", "answer", "choices", "label")
ROLES = ("system", "user", "assistant", "tool")
Row = dict[str, Any]
Raws = Iterator[tuple[Any, str]]


def read_rows(spec: PromptsSpec) -> list[tuple[Row, str]]:
    """The rows of every file and dataset in order, each with where it stands.

    Values are strings, `messages` and `choices` lists; ids and pairs are made where the study asks for it.

    Raises:
        PromptsError: missing or unreadable file, unknown format, a row that cannot be used, or files of
            different length that are to be paired by row; the message names the file and the row.
    """
    columns = [source.columns or spec.columns for source in spec.files]
    found = [list(_read(source, names)) for source, names in zip(spec.files, columns, strict=True)]
    if spec.paired_by_row:
        _require_equal_lengths(spec.files, found)
    rows = []
    for source, title, names, raws in zip(spec.files, _titles(spec.files), columns, found, strict=True):
        for number, (raw, where) in enumerate(raws, start=1):
            made: Row = {"id": f"{title}:{number}"} if spec.ids == "row" else {}
            if spec.paired_by_row:
                made["pair_id"] = str(number)
            rows.append((_row(_completed(_renamed(raw, names, where), made, source, where), where), where))
    return rows


def _titles(sources: Sequence[PromptSource]) -> list[str]:
    """One name for each source; further ones of the same name are numbered."""
    names = [source.title for source in sources]
    before = [names[:i].count(name) for i, name in enumerate(names)]
    return [name if not n else f"{name}#{n + 1}" for name, n in zip(names, before, strict=True)]


def _require_equal_lengths(sources: Sequence[PromptSource], found: Sequence[list[Any]]) -> None:
    for source, rows in zip(sources[1:], found[1:], strict=True):
        if len(rows) != len(found[0]):
            raise PromptsError(
                "Files that are paired by row have different numbers of rows.",
                expected="row i of every file to be the same prompt",
                given=f"{_name(sources[0])} with {len(found[0])} rows, {_name(source)} with {len(rows)}",
                next_step="make the files equally long, or pair prompts by a pair_id column.",
            )


def _name(source: PromptSource) -> str:
    return source.title if source.path is None else source.path.name


def _completed(raw: Any, made: Row, source: PromptSource, where: str) -> Any:
    """A row with what the study says of it: made id and pair, the source's language and category."""
    if not isinstance(raw, dict):
        return raw
    constant = {"language": source.language, "category": source.category}
    said = {name: value for name, value in constant.items() if value is not None}
    for name, value in (said | {key: made[key] for key in made if key == "pair_id"}).items():
        if raw.get(name) not in (None, "", value):
            raise PromptsError(
                f"{where} has a {name} of its own, and the study gives another.",
                expected=f"no {name} in the file, or {value!r}",
                given=repr(raw[name]),
                next_step="drop one of them"
                + (
                    "; paired_by_row makes pair_id."
                    if name == "pair_id"
                    else f": {name} of the file's entry."
                ),
            )
    return raw | said | made


def _read(source: PromptSource, columns: Mapping[Any, str | int]) -> Raws:
    """Raw rows of a source; the keys of a file without a header are positions from 1."""
    if source.path is None:
        yield from _dataset(source)
        return
    path, headless = source.path, any(isinstance(place, int) for place in columns.values())
    if not path.is_file():
        raise PromptsError("A prompt file isn't there.", expected="a file", given=str(path))
    readers: dict[str, Callable[[Path], Raws]] = {
        ".jsonl": _jsonl,
        ".json": lambda path: _json(path, source.key),
        ".csv": lambda path: _csv(path, ",", headless),
        ".tsv": lambda path: _csv(path, "\t", headless),
        ".parquet": _parquet,
    }
    if path.suffix not in readers:
        raise PromptsError(
            f"The prompt file {path.name} has an unknown format.",
            expected=", ".join(readers),
            given=path.suffix or "no suffix",
        )
    yield from readers[path.suffix](path)


def _jsonl(path: Path) -> Raws:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path.name} line {number}"
        try:
            yield json.loads(line), where
        except json.JSONDecodeError as error:
            raise PromptsError(
                f"{where} is not JSON.", expected="one JSON object per line", given=str(error)
            ) from None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise _unreadable(path, error) from None


def _json(path: Path, key: str | None) -> Raws:
    """A list of objects or of texts, by itself or under `key` of an object."""
    try:
        data = json.loads("\n".join(_lines(path)))
    except json.JSONDecodeError as error:
        raise _unreadable(path, error) from None
    lists = {name: value for name, value in data.items() if isinstance(value, list)} if _is_dict(data) else {}
    found = data if key is None else lists.get(key)
    if not isinstance(found, list):
        raise PromptsError(
            f"{path.name} holds no list of prompts" + ("." if key is None else f" under {key!r}."),
            expected="a JSON list, or an object with the list's key named in the study",
            given="an object with the lists " + ", ".join(lists) if lists else type(data).__name__,
            next_step=f'name it: {{path = "{path.name}", key = "{next(iter(lists))}"}}.' if lists else None,
        )
    for number, value in enumerate(found, start=1):
        yield {"text": value} if isinstance(value, str) else value, f"{path.name} entry {number}"


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _csv(path: Path, separator: str, headless: bool) -> Raws:
    try:
        table = pl.read_csv(path, separator=separator, infer_schema=False, has_header=not headless)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(path, error) from None
    if headless:
        table.columns = [f"column_{place}" for place in range(1, table.width + 1)]
    for number, row in enumerate(table.iter_rows(named=True), start=1):
        yield row, f"{path.name} row {number}"


def _parquet(path: Path) -> Raws:
    try:
        table = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(path, error) from None
    for number, row in enumerate(table.iter_rows(named=True), start=1):
        yield row, f"{path.name} row {number}"


def _dataset(source: PromptSource) -> Raws:
    """One split of a dataset on the Hugging Face Hub, or of its copy in the local cache."""
    try:
        import datasets
    except ImportError:
        raise PromptsError(
            f"The dataset {source.dataset!r} needs the library 'datasets'.",
            expected="the package datasets",
            given="not installed",
            next_step="pip install 'patchbay[datasets]', or save the prompts as Parquet or JSONL.",
        ) from None
    try:
        found = datasets.load_dataset(
            source.dataset, source.config, split=source.split, revision=source.revision
        )
    except (OSError, ValueError) as error:
        raise PromptsError(
            f"The dataset {source.dataset!r} cannot be loaded.",
            expected="an id, config, split and revision that the Hub or the local cache has",
            given=" ".join(str(error).split())[:300],
            next_step="check them and the connection; offline, name a downloaded file with 'path' instead.",
        ) from None
    for number, row in enumerate(found, start=1):
        yield dict(row), f"{source.title} row {number}"


def _unreadable(path: Path, error: Exception) -> PromptsError:
    return PromptsError(
        f"The prompt file {path.name} cannot be read.",
        expected=f"UTF-8 text or Parquet as its suffix {path.suffix} says",
        given=" ".join(str(error).split())[:200],
        next_step="save it again in that format.",
    )


def _renamed(raw: Any, columns: Mapping[Any, str | int], where: str) -> Any:
    """A row under our names; the columns that the study maps are taken from where it says."""
    if not columns or not isinstance(raw, dict):
        return raw
    places = {
        str(ours): f"column_{place}" if isinstance(place, int) else place for ours, place in columns.items()
    }
    missing = [columns[ours] for ours, place in places.items() if place not in raw]
    if missing:
        raise PromptsError(
            f"{where} has no {_said(missing[0])}, which the study's prompts.columns names.",
            expected=f"1 to {len(raw)}" if isinstance(missing[0], int) else "one of " + ", ".join(raw),
            given=repr(missing[0]),
            next_step="correct prompts.columns; in CSV and TSV files without a header, columns are named by "
            "position: {text = 1}.",
        )
    others = {key: value for key, value in raw.items() if key not in places and key not in places.values()}
    return {ours: raw[place] for ours, place in places.items()} | others


def _said(place: str | int) -> str:
    return f"column {place}" if isinstance(place, int) else repr(place)


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
            next_step='add one, name its column in the study: columns = { id = "…" } under [prompts], or let '
            'Patchbay make them: ids = "row".',
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
    """A list, the values of an object, either of them as JSON, or "one|two|three"."""
    if value is None or value == "":
        return None
    if isinstance(value, str) and not value.lstrip().startswith(("[", "{")):
        return value.split("|")
    try:
        parsed = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        parsed = None
    if isinstance(parsed, dict):
        parsed = list(parsed.values())
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
