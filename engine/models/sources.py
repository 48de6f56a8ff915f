"""Where a model of a study comes from, as transformers reads it: a Hub id, a folder, or a GGUF file.

A GGUF file holds config, tokenizer and packed weights (https://github.com/ggml-org/ggml, docs/gguf.md).
Its weights are unpacked to plain tensors when they are loaded: each value is what the file's blocks say in
float32, rounded once to the study's dtype.
"""

from __future__ import annotations

import copy
import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoConfig, AutoTokenizer

from engine.errors import ModelError, PatchbayError
from engine.models.folder import check_config, check_model_folder, check_tokenizer_folder
from engine.models.gguf_header import read_gguf_header
from engine.models.memory import out_of_memory
from engine.models.trust import check_remote_code
from engine.study.study import ModelSpec

__all__ = [
    "Source",
    "check_all_read",
    "commit_of",
    "config_of",
    "folder_of",
    "listing",
    "load_tokenizer",
    "no_room",
    "pretrained",
    "pretrained_tokenizer",
    "source_of",
    "tokenizer_files",
    "unpacked",
]

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""Architectures of GGUF files that transformers reads with all of their settings, by test."""

ROTARY_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer.model.v3",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
"""Files that tokenizers' vocabularies are saved in."""


class Source(NamedTuple):
    """A place that transformers reads from: a Hub id or a folder, its revision, and what in it is meant."""

    place: str
    local: bool
    revision: str | None = None
    gguf: str | None = None
    trust_remote_code: bool = False
    subfolder: str | None = None

    def __str__(self) -> str:
        return "/".join(part for part in (self.place, self.subfolder, self.gguf) if part is not None)


def source_of(spec: ModelSpec) -> Source:
    """Where a model comes from.

    Raises:
        ModelError: no model folder, no GGUF file, or no package that reads one.
        StudyError: the model's own code is asked for and may not run, see `engine.models.trust`.
    """
    check_remote_code(spec)
    if spec.gguf is not None and importlib.util.find_spec("gguf") is None:
        raise ModelError(
            f"Reading {spec.gguf} takes the package gguf, which is not installed.",
            expected="the packages of the extra 'real'",
            given="no package gguf",
            next_step="pip install 'patchbay[real]'",
        )
    if isinstance(spec.gguf, Path):
        read_gguf_header(spec.gguf)
        return Source(str(spec.gguf.parent), True, None, spec.gguf.name)
    if spec.path is None:
        own = spec.trust_remote_code
        return Source(str(spec.hub), False, spec.revision, spec.gguf, own, spec.subfolder)
    if not (spec.path / "config.json").is_file():
        raise ModelError(
            f"{spec.path} is not a model folder.",
            expected="a folder with config.json and weights",
            given=listing(spec.path),
            next_step="give the folder that save_pretrained wrote, or a GGUF file as 'gguf'.",
        )
    check_model_folder(spec.path)
    return Source(str(spec.path), True, trust_remote_code=spec.trust_remote_code)


def folder_of(source: Source) -> Path | None:
    """The folder on this machine that a model is read from; None for one on the Hub that isn't here."""
    if source.local:
        return Path(source.place)
    from transformers.utils.hub import cached_file

    where = {"revision": source.revision or "main", "subfolder": source.subfolder or ""}
    try:
        found = cached_file(source.place, "config.json", local_files_only=True, **where)
    except OSError:
        return None
    return None if found is None else Path(str(found)).parent


def commit_of(source: Source) -> str | None:
    """The commit that a model on the Hub is read at; None where it isn't here, and for a folder."""
    folder = None if source.local else folder_of(source)
    parts = () if folder is None else folder.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else None


def listing(path: Path) -> str:
    """What is at a path, for an error message."""
    if not path.is_dir():
        return "a file" if path.exists() else "nothing at that path"
    return ", ".join(sorted(child.name for child in path.iterdir())[:8]) or "an empty folder"


def config_of(spec: ModelSpec) -> Any:
    """The model's config (ModelError: unreadable, or of a GGUF file that transformers would misread)."""
    source = source_of(spec)
    if source.gguf is None:
        config = pretrained(AutoConfig, source)
    else:
        _check_settings(_file_of(spec))
        config = copy.deepcopy(_read_once(AutoConfig, source, _stamp(spec.gguf)))
    check_config(config.to_dict(), source)
    return config


def load_tokenizer(spec: ModelSpec) -> Any:
    """The model's tokenizer, or the one that the study names instead.

    Raises:
        ModelError: no tokenizer files, or unreadable ones.
    """
    if spec.tokenizer_of is not None:
        return load_tokenizer(spec.tokenizer_of)
    if isinstance(spec.tokenizer, Path):
        if not spec.tokenizer.is_dir():
            raise ModelError(
                "The tokenizer folder isn't there.",
                expected="a folder with tokenizer.json",
                given=str(spec.tokenizer),
            )
        check_tokenizer_folder(spec.tokenizer)
        return pretrained_tokenizer(spec.tokenizer)
    if spec.tokenizer is not None:
        return pretrained(AutoTokenizer, Source(str(spec.tokenizer), False))
    source = source_of(spec)
    if spec.gguf is None:
        if spec.path is not None:
            return pretrained_tokenizer(spec.path, spec.trust_remote_code)
        return pretrained(AutoTokenizer, source)
    return copy.deepcopy(_read_once(AutoTokenizer, source, _stamp(spec.gguf)))


def pretrained_tokenizer(folder: Path, trust_remote_code: bool = False) -> Any:
    """The tokenizer in a folder.

    Raises:
        ModelError: none of the files that a tokenizer is made of is there (transformers would make an empty
            one, which knows no word), or they can't be read.
    """
    if not tokenizer_files(folder):
        raise ModelError(
            f"There are no tokenizer files in {folder}.",
            expected="tokenizer.json, or the vocabulary of a tokenizer, beside the weights",
            given=listing(folder),
            next_step="name the tokenizer that the model was trained with as 'tokenizer': a folder, Hub id, "
            'or another model of the study by name, e.g. tokenizer = "base".',
        )
    return pretrained(AutoTokenizer, Source(str(folder), True, trust_remote_code=trust_remote_code))


def tokenizer_files(folder: Path) -> list[str]:
    """Names of the files in a folder that hold a vocabulary."""
    return [name for name in VOCABULARIES if (folder / name).is_file()]


def unpacked(spec: ModelSpec) -> dict[str, Any]:
    """What `from_pretrained` of a model is told beside its source: its variant, or how a GGUF is unpacked."""
    if spec.gguf is None:
        return {} if spec.variant is None else {"variant": spec.variant}
    from transformers import GgufConfig, modeling_gguf_pytorch_utils

    # the one bar of transformers that its own switch doesn't turn off
    modeling_gguf_pytorch_utils.tqdm = lambda items, **_: items  # type: ignore[attr-defined]
    return {"config": config_of(spec), "quantization_config": GgufConfig(dequantize=True)}


def _stamp(file: str | Path | None) -> tuple[int, int] | None:
    """Size and modification time of a local file."""
    return (file.stat().st_size, file.stat().st_mtime_ns) if isinstance(file, Path) else None


@lru_cache(maxsize=8)
def _read_once(kind: Any, source: Source, _stamp: tuple[int, int] | None) -> Any:
    """A GGUF file's config or tokenizer, kept: reading one walks the whole vocabulary, for seconds."""
    return pretrained(kind, source)


def _file_of(spec: ModelSpec) -> Path:
    """The GGUF file on this machine, from the Hub or its cache where the study names one there."""
    if isinstance(spec.gguf, Path):
        return spec.gguf
    from transformers.utils.hub import cached_file

    source = source_of(spec)
    try:
        return Path(str(cached_file(source.place, str(spec.gguf), revision=source.revision or "main")))
    except OSError as error:
        raise _unreadable(source, "download", error) from error


def _check_settings(path: Path) -> None:
    """ModelError for a file that transformers would read with other settings than it was written with.

    Those are architectures some of whose settings it takes from defaults, and scaled rotary frequencies.
    """
    header = read_gguf_header(path)
    scaling = header.settings.get(f"{header.architecture}.rope.scaling.type", "none")
    scaled = scaling != "none" or any(name in header.shapes for name in ROTARY_TENSORS)
    if header.architecture in ARCHITECTURES and not scaled:
        return
    raise ModelError(
        f"{path} can't be read exactly.",
        expected=f"the architecture {' or '.join(ARCHITECTURES)}, with plain rotary positions",
        given=f"{header.architecture or 'none'}"
        + (", scaled rotary positions" if scaled or scaling != "none" else ""),
        next_step="use the same model in Hugging Face format.",
    )


def check_all_read(spec: ModelSpec, model: Any, notes: list[str]) -> None:
    """ModelError when a GGUF file holds more numbers than the model took.

    transformers passes over tensors that its form of an architecture lacks, such as biases, without a word.

    Args:
        notes: told how the file's weights are quantised.
    """
    if spec.gguf is None:
        return
    header = read_gguf_header(_file_of(spec))
    there = header.numbers
    taken = sum(parameter.numel() for parameter in model.parameters())
    if there != taken:
        raise ModelError(
            f"{spec.gguf} holds other tensors than transformers reads from it.",
            expected=f"{there:,} numbers in the model",
            given=f"{taken:,}",
            next_step="use the same model in Hugging Face format.",
        )
    packed = [name for name in map(_kind_of, header.kinds) if name not in ("F32", "F16", "BF16")]
    if packed:
        notes.append(unpacked_note(", ".join(packed), spec.dtype))


def _kind_of(number: int) -> str:
    from gguf import GGMLQuantizationType

    known = {int(kind): kind.name for kind in GGMLQuantizationType}
    return known.get(number, f"kind {number}")


def unpacked_note(how: str, dtype: str) -> str:
    """What became of a quantised model's weights, for the store."""
    return (
        f"its weights are quantised ({how}) and unpacked: each is what the file says, rounded to {dtype}; "
        "what quantising lost is not in them, and activations are not quantised"
    )


def pretrained(kind: Any, source: Source, **more: Any) -> Any:
    """`kind.from_pretrained` with its many kinds of failure turned into one clear error."""
    given = {"local_files_only": source.local, **more}
    if source.gguf is not None:
        given["gguf_file"] = source.gguf
    if source.subfolder is not None:
        given["subfolder"] = source.subfolder
    try:
        return kind.from_pretrained(
            source.place,
            revision=source.revision or "main",
            trust_remote_code=source.trust_remote_code,
            **given,
        )
    except PatchbayError:
        raise
    except BaseException as error:  # files of strangers: what they hold is taken for lengths, names and code
        panic = type(error).__name__ == "PanicException"  # of libraries in Rust
        if not isinstance(error, Exception) and not panic:
            raise
        if out_of_memory(error):
            raise no_room(str(source), error) from error
        raise _unreadable(source, kind.__name__, error) from error


def no_room(what: str, error: BaseException) -> ModelError:
    """The error for a model or adapter that memory has no room for."""
    return ModelError(
        f"{what} does not fit into memory.",
        given=str(error),
        next_step="free memory, or use a 16-bit dtype or a larger device.",
    )


def _unreadable(source: Source, reader: str, error: BaseException) -> ModelError:
    text = " ".join(str(error).split())
    at = f" at revision {source.revision}" if source.revision else ""
    form = "Hugging Face" if source.gguf is None else "GGUF"
    return ModelError(
        f"{source} could not be loaded ({reader}).",
        expected=f"readable files in {form} format{at}",
        given=f"{type(error).__name__}: {text[:300]}",
        next_step=_advice(text, source),
    )


def _advice(text: str, source: Source) -> str:
    lower = text.lower()
    if "gated repo" in lower:
        return "ask for access on the model's page, then log in on this machine with: hf auth login"
    if "trust_remote_code" in lower:
        return (
            "the model brings its own code; read it, then set trust_remote_code = true for this model "
            "and start with --allow-code."
        )
    if not source.local and ("connect" in lower or "offline" in lower or "cached" in lower):
        return "connect to the network, or download the model and give its folder as 'path'."
    if source.gguf is not None and "not supported" in lower:
        return "use the same model in Hugging Face format."
    if not source.local:
        return "check the Hub id, the revision, the subfolder and the variant, and that you may read it."
    return "check that it is complete and undamaged."
