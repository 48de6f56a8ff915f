"""The study file: a frozen, validated description of one experiment, and its fingerprint.

TOML in, `Study` out. Everything that changes a number is in it and enters `fingerprint()`; prompt files
and local model files enter by the hash of their content, never by their path. Relative paths are
resolved against the study file's folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from engine.names import check_apart, check_hub_id, check_key, check_title
from engine.prompts.positions import DRAW, parse_position
from engine.prompts.spec import PromptsSpec
from engine.spec import MOST_ENTRIES, Frozen, LocalPath, later, resolved
from engine.study.capture_spec import CaptureSpec, name_of
from engine.study.contrasts import ContrastSpec, check_contrasts
from engine.study.file_hashes import content_hash
from engine.study.files import must_exist, read_toml
from engine.study.fingerprints import portable
from engine.study.refusals import to_study_error
from engine.study.roots import confine_all
from engine.study.subspaces import SubspacesSpec, check_deltas
from engine.study.wording import WordingSpec


def _folder_or_hub(value: Any, info: ValidationInfo) -> Any:
    """A local path when one is there or is clearly meant ("./x", "/x", "~x"), else a Hub id."""
    if isinstance(value, str) and not value.startswith((".", "/", "~")):
        local = resolved(value, info)
        return local if isinstance(local, Path) and local.exists() else value
    return resolved(value, info)


def _file_or_hub(value: Any, info: ValidationInfo) -> Any:
    """A local path, unless the model names a repository on the Hub: then a file's name in it."""
    return value if info.data.get("hub") is not None else resolved(value, info)


PathOrHub = Annotated[str | Path, BeforeValidator(_folder_or_hub)]
FileOrHub = Annotated[str | Path, BeforeValidator(_file_or_hub)]


class ModelSpec(Frozen):
    """Where one model comes from and how it is run.

    Exactly one of `hub` (with an optional `revision`), `path` (a local folder) and `gguf` (a local GGUF
    file; with `hub`, the name of a file there). `subfolder` is the folder of the `hub` repository that holds
    the model, `variant` the middle of its weights' names ("fp16" for model.fp16.safetensors). `adapter` is a
    PEFT adapter, local or on the Hub, merged into it; `weight_diff` a file of named deltas added to it.
    `tokenizer` is a folder, a Hub id, or the name of another model of the study, whose tokenizer is taken.
    `trust_remote_code` asks for Python code that comes with the model: `engine.models.trust` says when it
    runs. `quantised` "live" runs a quantised checkpoint as it is; without, its weights are unpacked.
    """

    hub: str | None = None
    revision: str | None = None
    subfolder: str | None = None
    variant: str | None = None
    path: LocalPath | None = None
    gguf: FileOrHub | None = None
    adapter: PathOrHub | None = None
    adapter_revision: str | None = None
    weight_diff: LocalPath | None = None
    tokenizer: PathOrHub | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    device_map: Literal["auto"] | None = None
    attention: Literal["sdpa", "eager"] = "sdpa"
    trust_remote_code: bool = False
    code_sha256: str | None = None
    quantised: Literal["live"] | None = None
    _tokenizer_of: ModelSpec | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _one_source(self) -> ModelSpec:
        if isinstance(self.gguf, str) and (".." in self.gguf or self.gguf.startswith("/")):
            raise ValueError("'gguf' beside 'hub' is the name of a file there")
        local = [given for given in (self.path, self.gguf) if isinstance(given, Path)]
        if len(local) != (self.hub is None):
            raise ValueError(
                "a model needs exactly one of 'hub', 'path' and 'gguf' (beside 'hub', 'gguf' is a file there)"
            )
        if self.revision is not None and self.hub is None:
            raise ValueError("'revision' needs 'hub': a local folder has no revisions")
        if self.subfolder is not None and self.hub is None:
            raise ValueError("'subfolder' needs 'hub': of a local model, name the folder itself as 'path'")
        if self.gguf is not None and (self.subfolder or self.variant):
            raise ValueError("a GGUF file has no 'subfolder' or 'variant': name the file in its folder")
        if self.adapter_revision is not None and not isinstance(self.adapter, str):
            raise ValueError("'adapter_revision' needs an 'adapter' on the Hub")
        if self.code_sha256 is not None and not self.trust_remote_code:
            raise ValueError("'code_sha256' needs 'trust_remote_code = true'")
        return self

    @field_validator("hub", "adapter", "tokenizer")
    @classmethod
    def _hub_id(cls, value: str | Path | None) -> str | Path | None:
        return check_hub_id(value) if isinstance(value, str) else value

    @field_validator("revision", "adapter_revision")
    @classmethod
    def _revision(cls, value: str | None) -> str | None:
        if value is not None and (not re.fullmatch(r"[A-Za-z0-9][\w./-]{0,199}", value) or ".." in value):
            raise ValueError("a revision is a commit, a branch or a tag")
        return value

    @field_validator("subfolder", "variant")
    @classmethod
    def _part(cls, value: str | None) -> str | None:
        if value is not None and (not re.fullmatch(r"[A-Za-z0-9_][\w./-]{0,199}", value) or ".." in value):
            raise ValueError("a subfolder or a variant is a plain name")
        return value

    @field_validator("device")
    @classmethod
    def _device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,3})?", value):
            raise ValueError("a device is 'auto', 'cpu', 'mps', 'cuda' or 'cuda:0'")
        return value

    @property
    def tokenizer_of(self) -> ModelSpec | None:
        """The model of the study whose tokenizer this one takes, where `tokenizer` is its name."""
        return self._tokenizer_of

    def local_paths(self) -> dict[str, Path]:
        """The local files and folders this model is made of, by key."""
        named = {key: getattr(self, key) for key in ("path", "gguf", "adapter", "weight_diff", "tokenizer")}
        return {key: value for key, value in named.items() if isinstance(value, Path)}


class Study(Frozen):
    """One experiment: models, prompts and what to capture.

    The first two models are the default pair (base, tuned). `contrasts` are further weight differences by
    name, of models that were made from the first one. `subspaces` is what subspace scores need, None without.
    `wording` are lists for measures of behaviour, beside the built-in English and Chinese ones.
    """

    name: str
    seed: int = Field(default=0, ge=0, lt=2**63)
    notes: str = ""
    models: dict[str, ModelSpec] = Field(min_length=1, max_length=MOST_ENTRIES)
    prompts: PromptsSpec
    contrasts: dict[str, ContrastSpec] = Field(default_factory=dict, max_length=MOST_ENTRIES)
    capture: CaptureSpec = CaptureSpec()
    subspaces: SubspacesSpec | None = None
    wording: WordingSpec = later(WordingSpec())
    _folder: Path = PrivateAttr(default_factory=Path.cwd)
    folder = property(lambda self: self._folder, doc="Where the study file lies: its paths start there.")

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        return check_title(value, "study")

    @field_validator("models")
    @classmethod
    def _model_names(cls, value: dict[str, ModelSpec]) -> dict[str, ModelSpec]:
        for name in value:
            check_key(name, "model")
        check_apart(value, "model")
        return value

    @field_validator("contrasts")
    @classmethod
    def _contrasts_of_models(
        cls, value: dict[str, ContrastSpec], info: ValidationInfo
    ) -> dict[str, ContrastSpec]:
        if "models" in info.data:
            check_contrasts(value, info.data["models"])
        return value

    @model_validator(mode="after")
    def _tokenizers_of_others(self) -> Study:
        for name, spec in self.models.items():
            other = self.models.get(spec.tokenizer) if isinstance(spec.tokenizer, str) else None
            if other is None:
                continue
            if isinstance(other.tokenizer, str) and other.tokenizer in self.models:
                raise ValueError(
                    f"models.{name}.tokenizer is the name of a model that has a tokenizer itself, "
                    f"unlike {spec.tokenizer!r}"
                )
            spec._tokenizer_of = other
        return self

    @model_validator(mode="after")
    def _names_are_there(self) -> Study:
        self.prompts.check_models(self.models)
        if self.subspaces is not None:
            check_deltas(self.subspaces, tuple(self.models), self.contrasts)
        return self

    @staticmethod
    def load(path: str | Path) -> Study:
        """Reads and validates a study file.

        Raises:
            StudyError: missing or corrupt file, unknown key (with the closest known one), impossible
                value, or a file that the study names and that isn't there.
        """
        path = Path(path)
        study = Study.from_dict(read_toml(path), path.resolve().parent, source=str(path))
        study.check_files()
        return study

    @staticmethod
    def from_dict(
        data: Mapping[str, Any], folder: str | Path, source: str = "study", stored: bool = False
    ) -> Study:
        """Validates a plain dict, resolving relative paths against `folder`; StudyError as in `load`."""
        try:
            study = Study.model_validate(dict(data), context={"folder": Path(folder), "stored": stored})
        except ValidationError as error:
            raise to_study_error(error, Study, source) from None
        study._folder = Path(folder)
        return study

    @staticmethod
    def from_json(data: Mapping[str, Any], folder: str | Path | None = None) -> Study:
        """Reads `to_json` back (missing files are not an error here), with `folder` instead of its own."""
        plain = {key: value for key, value in data.items() if key not in ("folder", "content")}
        return Study.from_dict(
            plain, folder if folder is not None else str(data["folder"]), "stored study", True
        )

    def check_files(self) -> None:
        """Raises StudyError when a file or folder that the study names isn't there or may not be used.

        See `engine.study.roots` for where they may lie.
        """
        named = self._local_paths()
        confine_all(named, self._folder)
        for key, local in named.items():
            must_exist(local, key)

    def _local_paths(self) -> dict[str, Path]:
        """Every local file and folder that the study names, by dotted key."""
        parts: dict[str, Any] = {"prompts": self.prompts, "subspaces": self.subspaces}
        parts |= {f"models.{name}": spec for name, spec in self.models.items()}
        return {
            f"{part}.{key}": local
            for part, spec in parts.items()
            if spec is not None
            for key, local in spec.local_paths().items()
        }

    def with_overrides(
        self,
        layers: Sequence[int] | Literal["all"] | None = None,
        components: Sequence[str] | None = None,
        positions: Sequence[str] | None = None,
        limit: int | None = None,
        stride: int | None = None,
    ) -> Study:
        """The same study with some of its choices replaced; None keeps one. Changes the fingerprint."""
        data = self.model_dump()
        own = {name_of(one): one for one in self.capture.positions}
        named = None if positions is None else [own.get(name, name) for name in positions]
        if stride is not None:
            data["capture"]["stride"] = stride
        chosen = {"layers": layers, "components": components, "positions": named}
        data["capture"] |= {
            key: value if isinstance(value, str) else tuple(value)
            for key, value in chosen.items()
            if value is not None
        }
        if limit is not None:
            data["prompts"]["limit"] = limit
        return Study.from_dict(data, self._folder, "study with overrides")

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict: the study, its `folder`, and `content`, the hashes of what it names locally and,
        where it samples positions, which draw that is.

        Paths are relative to `folder` (the study file's), so that a moved project differs in `folder` only.
        """
        data = _relative(self.model_dump(), self._folder)
        data["folder"] = str(self._folder)
        data["content"] = self._content()
        return data

    def fingerprint(self) -> str:
        """SHA-256 (hex) over everything that changes a number.

        That is the whole study, content hashes in the place of paths, without name, notes and the device.
        """
        data = portable(self.to_json())
        text = json.dumps(data, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def _content(self) -> dict[str, str | None]:
        drawn = any(
            isinstance(one, str) and parse_position(one).name == "sample" for one in self.capture.positions
        )
        return ({"positions.sample": DRAW} if drawn else {}) | {
            key: content_hash(local) if local.exists() else None for key, local in self._local_paths().items()
        }


def _relative(value: Any, folder: Path) -> Any:
    if isinstance(value, Path):
        return Path(os.path.relpath(value, folder)).as_posix() if value.is_absolute() else value.as_posix()
    if isinstance(value, dict):
        return {key: _relative(item, folder) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_relative(item, folder) for item in value]
    return value
