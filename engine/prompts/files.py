"""Reading prompts: JSON, JSON lines, CSV, TSV, Parquet and Hugging Face datasets into validated rows."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from engine.errors import PromptsError
from engine.prompts.messages import last_user_text, read_messages
from engine.prompts.read import read_source
from engine.prompts.roles import read_roles
from engine.prompts.spec import ROLES, PromptSource, PromptsSpec, Role
from engine.reading import parse_json

KNOWN = ("id", "text", "messages", "pair_id", "language", "category", "split", "answer", "choices", "label")
Row = dict[str, Any]


def read_rows(spec: PromptsSpec) -> list[tuple[Row, str]]:
    """The rows of every file and dataset in order, each with where it stands.

    Values are strings, `messages` and `choices` lists; ids and pairs are made where the study asks for it.

    Raises:
        PromptsError: missing or unreadable file, unknown format, a row that cannot be used, or files of
            different length that are to be paired by row; the message names the file and the row.
    """
    columns = [source.columns or spec.columns for source in spec.files]
    found = [list(read_source(source, names)) for source, names in zip(spec.files, columns, strict=True)]
    if spec.paired_by_row:
        _require_equal_lengths(spec.files, found)
    rows = []
    for source, title, names, raws in zip(spec.files, _titles(spec.files), columns, found, strict=True):
        _check_roles(source, names, raws)
        for number, (raw, where) in enumerate(raws, start=1):
            made: Row = {"id": f"{title}:{number}"} if spec.ids == "row" else {}
            if spec.paired_by_row:
                made["pair_id"] = str(number)
            given = _completed(_renamed(raw, names, where), made, source, where)
            rows.append((_row(given, where, spec.roles), where))
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


def _renamed(raw: Any, columns: Mapping[Any, str | int], where: str) -> Any:
    """A row under our names; the columns that the study maps are taken from where it says."""
    if not columns or not isinstance(raw, dict):
        return raw
    places = {
        str(ours): f"column_{place}" if isinstance(place, int) else place for ours, place in columns.items()
    }
    missing = [columns[ours] for ours, place in places.items() if place not in raw and ours not in ROLES]
    if missing:
        raise PromptsError(
            f"{where} has no {_said(missing[0])}, which the study's prompts.columns names.",
            expected=f"1 to {len(raw)}" if isinstance(missing[0], int) else "one of " + ", ".join(raw),
            given=repr(missing[0]),
            next_step="correct prompts.columns; in CSV and TSV files without a header, columns are named by "
            "position: {text = 1}.",
        )
    others = {key: value for key, value in raw.items() if key not in places and key not in places.values()}
    return {ours: raw.get(place) for ours, place in places.items()} | others


def _check_roles(source: PromptSource, columns: Mapping[Any, str | int], raws: Sequence[Any]) -> None:
    """PromptsError for a column of `ROLES` that no row of a source has; some rows may lack it."""
    for role, place in columns.items():
        named = f"column_{place}" if isinstance(place, int) else place
        if role in ROLES and raws and not any(isinstance(raw, dict) and named in raw for raw, _ in raws):
            raise PromptsError(
                f"{_name(source)} has no {_said(place)}, which the study's prompts.columns names.",
                expected=f"the column of {role!r} in at least one row",
                given="none",
                next_step="correct prompts.columns.",
            )


def _said(place: str | int) -> str:
    return f"column {place}" if isinstance(place, int) else repr(place)


def _row(raw: Any, where: str, roles: Collection[Role]) -> Row:
    if not isinstance(raw, dict):
        raise PromptsError(
            f"{where} is not an object.",
            expected="keys and values",
            given=repr(raw)[:80],
            next_step='write it as {"id": …, "text": …}.',
        )
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
    row |= read_messages(raw.get("messages"), f"{where} (id {row['id']!r})")
    row["choices"] = _choices(raw.get("choices"), f"{where} (id {row['id']!r})")
    row |= read_roles(row, roles, f"{where} (id {row['id']!r})")
    return _with_text(row, where, roles)


def _with_text(row: Row, where: str, roles: Collection[Role]) -> Row:
    if row["messages"] is None:
        if not row.get("text") and "token_ids" in roles and row["token_ids"] is not None:
            return row | {"text": ""}
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
    row["text"] = last_user_text(row["messages"])
    return row


def _choices(value: Any, where: str) -> list[str] | None:
    """A list, the values of an object, either of them as JSON, or "one|two|three"."""
    if value is None or value == "":
        return None
    if isinstance(value, str) and not value.lstrip().startswith(("[", "{")):
        return value.split("|")
    try:
        parsed = parse_json(value) if isinstance(value, str) else value
    except ValueError:
        parsed = None
    if isinstance(parsed, dict):
        parsed = list(parsed.values())
    if not isinstance(parsed, list):
        raise PromptsError(
            f"{where} has choices that cannot be read.",
            expected='a list, or text as "one|two|three"',
            given=repr(value)[:120],
            next_step="correct the row, or leave its choices out.",
        )
    return [str(item) for item in parsed]


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, (bool, dict, list)):
        return str(value)
    return json.dumps(value, ensure_ascii=False, default=str)  # Parquet has dates and bytes in its lists
