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
import tomllib
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

from engine.contrasts_spec import ContrastSpec, check_contrasts
from engine.errors import PromptsError, StudyError
from engine.files import content_hash
from engine.positions import parse_position
from engine.prompts_spec import PromptsSpec
from engine.spec import Frozen, LocalPath, resolved
from engine.study_errors import to_study_error
from engine.subspaces_spec import SubspacesSpec, check_deltas

Component = Literal["resid", "attn_out", "mlp_out", "head_z"]
NOT_IN_FINGERPRINT = ("notes", "name", "folder")


def _folder_or_hub(value: Any, info: ValidationInfo) -> Any:
    """A local path when one is there or is clearly meant ("./x", "/x", "~x"), else a Hub id."""
    if isinstance(value, str) and not value.startswith((".", "/", "~")):
        local = resolved(value, info)
        return local if isinstance(local, Path) and local.exists() else value
    return resolved(value, info)


PathOrHub = Annotated[str | Path, BeforeValidator(_folder_or_hub)]


class ModelSpec(Frozen):
    """Where one model comes from and how it is run.

    Exactly one of `hub` (with an optional `revision`) and `path` (a local folder). `adapter` is a PEFT
    adapter, local or on the Hub, merged into it; `weight_diff` a file of named deltas added to it.
    """

    hub: str | None = None
    revision: str | None = None
    path: LocalPath | None = None
    adapter: PathOrHub | None = None
    adapter_revision: str | None = None
    weight_diff: LocalPath | None = None
    tokenizer: PathOrHub | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    device_map: Literal["auto"] | None = None
    attention: Literal["sdpa", "eager"] = "sdpa"
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _one_source(self) -> ModelSpec:
        if (self.hub is None) == (self.path is None):
            raise ValueError("a model needs exactly one of 'hub' and 'path'")
        if self.revision is not None and self.hub is None:
            raise ValueError("'revision' needs 'hub': a local folder has no revisions")
        if self.adapter_revision is not None and not isinstance(self.adapter, str):
            raise ValueError("'adapter_revision' needs an 'adapter' on the Hub")
        return self

    @field_validator("device")
    @classmethod
    def _device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
            raise ValueError("a device is 'auto', 'cpu', 'mps', 'cuda' or 'cuda:0'")
        return value

    def local_paths(self) -> dict[str, Path]:
        """The local files and folders this model is made of, by key."""
        named = {key: getattr(self, key) for key in ("path", "adapter", "weight_diff", "tokenizer")}
        return {key: value for key, value in named.items() if isinstance(value, Path)}


class CaptureSpec(Frozen):
    """Which activations are kept.

    `layers` are absolute block indices. `unit_prompts` is the number of prompts of one commit,
    `batch_tokens` the token budget of one forward pass.
    """

    components: tuple[Component, ...] = Field(
        default=("resid", "attn_out", "mlp_out", "head_z"), min_length=1
    )
    positions: tuple[str, ...] = Field(default=("last_content", "decision", "mean"), min_length=1)
    layers: Literal["all"] | tuple[Annotated[int, Field(ge=0)], ...] = "all"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    unit_prompts: int = Field(default=64, ge=1)
    batch_tokens: int = Field(default=4096, ge=1)

    @field_validator("components")
    @classmethod
    def _ordered(cls, value: tuple[Component, ...]) -> tuple[Component, ...]:
        order: tuple[Component, ...] = ("resid", "attn_out", "mlp_out", "head_z")
        return tuple(name for name in order if name in value)

    @field_validator("positions")
    @classmethod
    def _known_positions(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            names = tuple(str(parse_position(name)) for name in value)
        except PromptsError as error:
            raise ValueError(str(error)) from None
        if len(set(names)) != len(names):
            raise ValueError("each position once")
        return names

    @field_validator("layers")
    @classmethod
    def _sorted_layers(cls, value: Any) -> Any:
        if value == "all":
            return value
        if not value:
            raise ValueError('at least one layer, or "all"')
        return tuple(sorted(set(value)))

    def blocks(self, n_layers: int) -> tuple[int, ...]:
        """The asked block indices for a model of `n_layers` blocks; StudyError when one is out of range."""
        if self.layers == "all":
            return tuple(range(n_layers))
        if self.layers[-1] >= n_layers:
            raise StudyError(
                "The study's capture.layers asks for a block that the model doesn't have.",
                expected=f"indices 0 to {n_layers - 1}",
                given=self.layers[-1],
                next_step="lower capture.layers (or --layers) to blocks of the model.",
            )
        return self.layers


class Study(Frozen):
    """One experiment: models, prompts and what to capture.

    The first two models are the default pair (base, tuned). `contrasts` are further weight differences by
    name, of models that were made from the first one. `subspaces` is what subspace scores need, None without.
    """

    name: str
    seed: int = Field(default=0, ge=0)
    notes: str = ""
    models: dict[str, ModelSpec] = Field(min_length=1)
    prompts: PromptsSpec
    contrasts: dict[str, ContrastSpec] = Field(default_factory=dict)
    capture: CaptureSpec = CaptureSpec()
    subspaces: SubspacesSpec | None = None
    _folder: Path = PrivateAttr(default_factory=Path.cwd)

    @field_validator("models")
    @classmethod
    def _model_names(cls, value: dict[str, ModelSpec]) -> dict[str, ModelSpec]:
        for name in value:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
                raise ValueError(f"the model name {name!r} may use letters, digits, '_', '-' and '.' only")
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
    def _deltas_are_there(self) -> Study:
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
        study = Study.from_dict(_read_toml(path), path.resolve().parent, source=str(path))
        study.check_files()
        return study

    @staticmethod
    def from_dict(data: Mapping[str, Any], folder: str | Path, source: str = "study") -> Study:
        """Validates a plain dict, resolving relative paths against `folder`; StudyError as in `load`."""
        try:
            study = Study.model_validate(dict(data), context={"folder": Path(folder)})
        except ValidationError as error:
            raise to_study_error(error, Study, source) from None
        study._folder = Path(folder)
        return study

    @staticmethod
    def from_json(data: Mapping[str, Any], folder: str | Path | None = None) -> Study:
        """Reads `to_json` back (missing files are not an error here), with `folder` instead of its own."""
        plain = {key: value for key, value in data.items() if key not in ("folder", "content")}
        return Study.from_dict(plain, folder if folder is not None else str(data["folder"]), "stored study")

    def check_files(self) -> None:
        """Raises StudyError when a prompt file or a local model path isn't there."""
        for key, local in self._local_paths().items():
            _must_exist(local, key)

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
    ) -> Study:
        """The same study with some of its choices replaced; None keeps one. Changes the fingerprint."""
        data = self.model_dump()
        chosen = {"layers": layers, "components": components, "positions": positions}
        data["capture"] |= {
            key: value if isinstance(value, str) else tuple(value)
            for key, value in chosen.items()
            if value is not None
        }
        if limit is not None:
            data["prompts"]["limit"] = limit
        return Study.from_dict(data, self._folder, "study with overrides")

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict: the study, its `folder`, and `content`, the hashes of what it names locally.

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
        data = _portable(self.to_json())
        text = json.dumps(data, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def _content(self) -> dict[str, str | None]:
        return {
            key: content_hash(local) if local.exists() else None for key, local in self._local_paths().items()
        }


def diff_studies(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """What differs between two studies (`to_json` dicts), one line each: "key: a's value → b's value".

    Paths, name, notes and devices are left out: they change no number. A file whose content changed is
    named with both hashes.
    """
    left, right = _flat(_portable(a)), _flat(_portable(b))
    lines = []
    for key in sorted(left.keys() | right.keys()):
        one, two = left.get(key, "(absent)"), right.get(key, "(absent)")
        if one != two:
            lines.append(f"{key}: {_short(one)} → {_short(two)}")
    return lines


def _read_toml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise StudyError(
            f"The study file {path} isn't there.",
            expected="a TOML file",
            given="a folder" if path.is_dir() else "nothing at that path",
            next_step="check the path; studies/ has examples.",
        )
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StudyError(
            f"The study file {path} is not valid TOML.",
            expected="UTF-8 text in TOML syntax",
            given=str(error),
            next_step="mend the line that the message names.",
        ) from None


def _must_exist(path: Path, key: str) -> None:
    if not path.exists():
        raise StudyError(
            f"The study's {key} names something that isn't there.",
            expected="an existing file or folder (relative paths start at the study file's folder)",
            given=str(path),
            next_step=f"correct {key}, or put the file there.",
        )


def _relative(value: Any, folder: Path) -> Any:
    if isinstance(value, Path):
        return Path(os.path.relpath(value, folder)).as_posix() if value.is_absolute() else value.as_posix()
    if isinstance(value, dict):
        return {key: _relative(item, folder) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_relative(item, folder) for item in value]
    return value


def _portable(data: Mapping[str, Any]) -> dict[str, Any]:
    """`to_json` without what changes no number: name, notes, folder, device, and paths (their hash stays)."""
    out = {key: value for key, value in data.items() if key not in NOT_IN_FINGERPRINT}
    content = out.get("content", {})
    out["models"] = {
        name: {
            key: "(local)" if f"models.{name}.{key}" in content else value
            for key, value in spec.items()
            if key not in ("device", "device_map")
        }
        for name, spec in out["models"].items()
    }
    out["model_order"] = list(out["models"])
    if not out.get("contrasts"):
        out.pop("contrasts", None)  # as studies were before contrasts could be named
    subspaces = out.pop("subspaces", None)
    if subspaces is not None:
        out["subspaces"] = subspaces | {"candidates": None}  # its content stays
    out["prompts"] = out["prompts"] | {"files": _portable_sources(out["prompts"])}
    return out


def _portable_sources(prompts: Mapping[str, Any]) -> dict[str, Any]:
    """Prompt sources without their paths; a file's name stays where prompts are called after it."""
    found = {}
    for index, given in enumerate(prompts["files"]):
        source = {"path": given} if isinstance(given, str) else dict(given)
        named = source.get("path") and prompts.get("ids") == "row"
        found[str(index)] = source | {"path": Path(source["path"]).stem if named else None}
    return found


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        out: dict[str, Any] = {}
        for key, item in value.items():
            out |= _flat(item, f"{prefix}.{key}" if prefix else str(key))
        return out
    return {prefix: value}


def _short(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value):
        return f"content {value[:12]}…"
    return str(value)
