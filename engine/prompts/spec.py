"""The `[prompts]` part of a study: where prompts come from, which are kept, and how they become text."""

from __future__ import annotations

import datetime
import json
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from engine.names import check_hub_id
from engine.reading import parse_json
from engine.spec import LONGEST_TEXT, MOST_ENTRIES, Frozen, LocalPath
from engine.texts.patterns import usable

__all__ = [
    "GENERATED",
    "ROLES",
    "GeneratedAnswers",
    "PromptColumn",
    "PromptFilter",
    "PromptSource",
    "PromptsSpec",
]

Role = Literal["system", "prefill", "template", "token_ids"]
ROLES: tuple[Role, ...] = get_args(Role)
"""Columns that say how a prompt becomes tokens; a study uses one by naming it in `columns`."""
PromptColumn = Literal[
    "id", "text", "messages", "pair_id", "language", "category", "split", "answer", "choices", "label",
    "system", "prefill", "template", "token_ids",
]  # fmt: skip
GENERATED = "generated_answer"
"""The column of answers that a model gives while the store is built."""
Place = str | Annotated[int, Field(ge=1, le=100_000)]
"""A column of a file: its name in the header or, without a header, its position from 1."""
Columns = dict[PromptColumn, Place]


def _names(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _iso_date(value: Any) -> Any:
    if isinstance(value, datetime.datetime):
        raise ValueError("a day without a time, such as 2024-07-26")
    if isinstance(value, datetime.date):
        return value.isoformat()
    return datetime.date.fromisoformat(value).isoformat() if isinstance(value, str) else value


GIVEN = ("messages", "add_generation_prompt", "continue_final_message", "chat_template", "documents")
"""Arguments of a chat template that are Patchbay's to give."""


def _json_object(value: Any) -> Any:
    """JSON text of a table, in the order in which it was written: a template may print it."""
    try:
        found = parse_json(value) if isinstance(value, str) else value
        if value is None or not isinstance(found, dict):
            return value
        text = json.dumps(found, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise ValueError("a table of text, numbers, true or false, lists and tables") from None
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"{len(text):,} characters as JSON, more than {LONGEST_TEXT:,}")
    return text


def _one_way(columns: Columns) -> Columns:
    if len({type(place) for place in columns.values()}) > 1:
        raise ValueError("columns by name, or all by position (a file without a header), not both")
    return columns


class PromptSource(Frozen):
    """One file of prompts, or one split of a Hugging Face dataset.

    Exactly one of `path` (JSON lines, JSON, CSV, TSV, Parquet) and `dataset` ("owner/name", with `split`,
    and optionally `config` and a pinned `revision`). `key` names the list inside a JSON object. `language`
    and `category` hold for every row. `columns` takes the place of the study's for this source.
    """

    path: LocalPath | None = None
    dataset: str | None = None
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    key: str | None = None
    language: str | None = None
    category: str | None = None
    columns: Columns | None = None

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, (str, Path)) else value

    @field_validator("columns")
    @classmethod
    def _by_name_or_position(cls, value: Columns | None) -> Columns | None:
        return value if value is None else _one_way(value)

    @model_validator(mode="after")
    def _one_origin(self) -> PromptSource:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("exactly one of 'path' and 'dataset'")
        if self.dataset is None and (self.split or self.config or self.revision):
            raise ValueError("'split', 'config' and 'revision' need 'dataset': a file has none")
        if self.dataset is not None and self.split is None:
            raise ValueError("'dataset' needs the 'split' to read, such as \"train\"")
        if self.dataset is not None:
            check_hub_id(self.dataset)
        if self.key is not None and (self.path is None or self.path.suffix != ".json"):
            raise ValueError("'key' needs a 'path' to a .json file")
        return self

    @property
    def title(self) -> str:
        """Its name in messages and made ids: the file's stem and key, or the dataset and config."""
        if self.path is not None:
            return ".".join(filter(None, (self.path.stem, self.key)))
        return "/".join(filter(None, (self.dataset, self.config)))


class PromptFilter(Frozen):
    """Prompts by category, language, and a regular expression searched for in the text."""

    category: Annotated[tuple[str, ...], BeforeValidator(_names)] = ()
    language: Annotated[tuple[str, ...], BeforeValidator(_names)] = ()
    text: str | None = None

    @field_validator("category", "language")
    @classmethod
    def _in_order(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(set(value)))

    _pattern = field_validator("text")(usable)

    @model_validator(mode="after")
    def _says_something(self) -> PromptFilter:
        if not (self.category or self.language or self.text):
            raise ValueError("at least one of 'category', 'language' and 'text'")
        return self


class GeneratedAnswers(Frozen):
    """Answers that the model named `generate` gives: greedily, `max_tokens` tokens at most."""

    generate: str
    max_tokens: int = Field(ge=1, le=1_000_000)


Answers = Annotated[
    Annotated[str, Tag("given")] | Annotated[GeneratedAnswers, Tag("generated")],
    Discriminator(lambda value: "given" if isinstance(value, str) else "generated"),
]
"""Where answers come from: the column that has them, or a model of the study."""


class PromptsSpec(Frozen):
    """Which prompts are used and how they become text.

    `files` are paths, or tables with more to say of a file or a dataset (`PromptSource`).
    `columns` maps our column names to the files' own, e.g. {text = "prompt"}; positions from 1, e.g.
    {text = 1, answer = 2}, are for CSV and TSV files without a header.
    `ids` "given" takes them from the files; "row" makes them of file and row, e.g. "mgsm_en:17".
    `paired_by_row` makes one pair of row i of every file.
    `include` keeps the prompts that match all it names, `exclude` drops those that match any.
    `min_shared_ratio` keeps prompts with at least this share of tokens that all models' vocabularies have
    (`engine.prompts.overlap.shared_ratios`).
    `limit` keeps about that many prompts, whole groups, taken in turn from the categories.
    `template` "chat" renders through the tokenizer's chat template, "plain" uses the text as it is.
    `template_args` are handed to the chat template; kept as JSON text, since their order may be printed.
    `date` is given to templates that print today's date, so that a study renders the same every day.
    `prefill` begins the assistant's turn (or follows a plain text): the model continues it.
    `answers` names the column whose text follows, as what the assistant says, or the model that says it.
    `keep_eos` keeps the end-of-text token that a tokenizer appends to plain text.
    `too_long` "drop" leaves prompts out that are longer than a model's context, `unusable` "drop" those that
    a template refuses or that lack one of the study's positions.
    """

    files: tuple[PromptSource, ...] = Field(min_length=1, max_length=MOST_ENTRIES)
    columns: Columns = Field(default_factory=dict)
    ids: Literal["given", "row"] = "given"
    paired_by_row: bool = False
    include: PromptFilter | None = None
    exclude: PromptFilter | None = None
    min_shared_ratio: float | None = Field(default=None, ge=0.0, le=1.0)
    template: Literal["chat", "plain"] = "chat"
    system: str | None = None
    date: Annotated[str | None, BeforeValidator(_iso_date)] = None
    template_args: Annotated[str | None, BeforeValidator(_json_object)] = None
    prefill: str | None = Field(default=None, min_length=1)
    answers: Answers | None = None
    keep_eos: bool = False
    too_long: Literal["refuse", "drop"] = "refuse"
    unusable: Literal["refuse", "drop"] = "refuse"
    validation: float = Field(default=0.3, ge=0.0, lt=1.0)
    limit: int | None = Field(default=None, ge=1, le=1_000_000_000)

    @field_validator("columns")
    @classmethod
    def _by_name_or_position(cls, value: Columns) -> Columns:
        return _one_way(value)

    @field_validator("template_args")
    @classmethod
    def _theirs(cls, value: str | None) -> str | None:
        found = {} if value is None else json.loads(value)
        if not isinstance(found, dict):
            raise ValueError("a table of arguments")
        taken = [name for name in GIVEN if name in found]
        if taken:
            raise ValueError(f"no {taken[0]!r}: Patchbay gives it")
        if not isinstance(found.get("tools", []), list):
            raise ValueError("'tools' as a list of tables")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> PromptsSpec:
        if self.template == "plain" and "template" not in self.roles:
            self._check_plain()
        if self.answer_column in (*ROLES, "id", "text", "messages", "choices"):
            raise ValueError("'answers' names a column of text, such as \"answer\"")
        if "token_ids" in self.roles and (self.answers or self.prefill):
            raise ValueError("'answers' and 'prefill' can't follow token ids, which are used as they are")
        if self.date is not None and "date_string" in self.arguments():
            raise ValueError("'date' or 'template_args.date_string', not both")
        if self.paired_by_row and len(self.files) < 2:
            raise ValueError("'paired_by_row' needs at least two files: row i of every file is one pair")
        return self

    def _check_plain(self) -> None:
        if self.system is not None or "system" in self.roles:
            raise ValueError("'system' needs template = \"chat\": plain text has no system message")
        if self.template_args is not None:
            raise ValueError("'template_args' need template = \"chat\": plain text has no template")

    @property
    def answer_column(self) -> str | None:
        """The column of the answers, None where prompts have none."""
        return GENERATED if isinstance(self.answers, GeneratedAnswers) else self.answers

    @property
    def roles(self) -> frozenset[Role]:
        """The columns of `ROLES` that the study uses."""
        named = set(self.columns).union(*(source.columns or () for source in self.files))
        return frozenset(role for role in ROLES if role in named)

    def check_models(self, models: Collection[str]) -> None:
        """ValueError for answers of a model that isn't one of the study's."""
        if isinstance(self.answers, GeneratedAnswers) and self.answers.generate not in models:
            known = ", ".join(models)
            raise ValueError(f"prompts.answers.generate is one of {known}, unlike {self.answers.generate!r}")

    def arguments(self) -> dict[str, Any]:
        """`template_args` as a dict."""
        found: dict[str, Any] = {} if self.template_args is None else json.loads(self.template_args)
        return found

    def local_paths(self) -> dict[str, Path]:
        """The local files, by key."""
        return {f"files[{i}]": source.path for i, source in enumerate(self.files) if source.path is not None}
