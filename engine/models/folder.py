"""What is looked at in a model's folder and config before any library reads them.

Both may come from anybody: sizes that no model has, and files that send the reader elsewhere, are refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from engine.errors import ModelError
from engine.reading import read_json

__all__ = [
    "adapter_settings",
    "check_adapter_folder",
    "check_config",
    "check_model_folder",
    "check_tokenizer_folder",
    "safetensors_header",
]

LARGEST_JSON = 64 << 20
LARGEST_HEADER = 100 << 20
DEPTH_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_experts", "num_local_experts")
SIZE_KEYS = (
    *("hidden_size", "n_embd", "d_model", "intermediate_size", "n_inner", "vocab_size", "head_dim"),
    *("num_attention_heads", "n_head", "num_key_value_heads", "max_position_embeddings", "n_positions"),
)
LEAST_ONE = ("num_hidden_layers", "n_layer", "n_layers", "max_position_embeddings", "n_positions")
DEEPEST, WIDEST, LONGEST_LIST = 1_000, 100_000_000, 100_000
"""Blocks, sizes and entries of a list beyond those of any model."""


def check_model_folder(folder: Path) -> None:
    """Refuses a folder whose files are no model's, or would have a library read others.

    Raises:
        ModelError: config.json or a tokenizer's or an index's JSON is none, has impossible sizes or names
            files elsewhere; an adapter lies there too, which would stand in for the model; or a safetensors
            file is shorter than its header.
    """
    config = _object(folder / "config.json")
    check_config(config, folder / "config.json")
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{folder} holds a model and an adapter.",
            expected="a model alone",
            given="config.json and adapter_config.json",
            next_step="put the adapter into a folder of its own and name it with 'adapter'.",
        )
    check_tokenizer_folder(folder)
    for path in sorted(folder.glob("*.index.json")):
        _check_index(path)
    for path in sorted(folder.glob("*.safetensors")):
        _header_length(path)


def _check_index(path: Path) -> None:
    """ModelError for an index that names files elsewhere, or any that aren't there."""
    shards = _object(path).get("weight_map", {})
    _require(isinstance(shards, dict) and bool(shards), path, "weight_map, an object with entries")
    for name in shards.values():
        _require(isinstance(name, str) and _plain(name), path, f"the file {name!r}"[:200])
    whole = {
        "model.safetensors.index.json": (),
        "pytorch_model.bin.index.json": ("model.safetensors.index.json",),
    }
    instead = (path.name.removesuffix(".index.json"), *whole.get(path.name, ()))
    if path.name not in whole or any(
        (path.parent / name).is_file() for name in ("model.safetensors", *instead)
    ):
        return  # not what is read
    names = sorted(set(shards.values()))
    lost = [name for name in names if not (path.parent / name).is_file()]
    if lost:
        raise ModelError(
            f"{path} names files that aren't there.",
            expected=f"{len(names)} files beside it",
            given=f"no {', '.join(lost[:3])}" + (f" and {len(lost) - 3} more" if len(lost) > 3 else ""),
            next_step="get the missing files from where the model is published.",
        )


def check_adapter_folder(folder: Path) -> None:
    """ModelError for an adapter that would import a library of its own choice, or isn't readable."""
    path, settings = folder / "adapter_config.json", adapter_settings(folder)
    library = (settings.get("auto_mapping") or {}).get("parent_library", "")
    known = str(library).partition(".")[0] in ("", "transformers", "torch")
    _require(known, path, f"a library to import, {library!r}"[:200])
    for key, value in _numbers(settings):
        _require(math.isfinite(value) and abs(value) <= WIDEST, path, f"{key} of an impossible size")
    for weights in sorted(folder.glob("*.safetensors")):
        _header_length(weights)


def adapter_settings(folder: Path) -> dict[str, Any]:
    """An adapter's adapter_config.json (ModelError: it can't be read)."""
    return _object(folder / "adapter_config.json")


def check_tokenizer_folder(folder: Path) -> None:
    """ModelError for settings of a tokenizer (or of generation) that are no JSON or name files elsewhere."""
    for name in ("tokenizer_config.json", "generation_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            _check_names(_object(folder / name), folder / name)


def check_config(config: Mapping[str, Any], where: object) -> None:
    """ModelError for a config with numbers that no model has."""
    _require(isinstance(config.get("model_type"), str), where, "no model_type")
    for key, value in _numbers(config):
        name = key.rpartition(".")[2]
        most = DEEPEST if name in DEPTH_KEYS else WIDEST if name in SIZE_KEYS else 1e15
        sized = name in DEPTH_KEYS + SIZE_KEYS
        least = 1 if name in LEAST_ONE else 0 if sized else -1e15
        endless = not sized and math.isinf(value)  # no limit
        if not endless and not least <= value <= most:
            shown = (
                repr(value) if isinstance(value, float) or abs(value) < 1e30 else "a number of many digits"
            )
            _require(False, where, f"{key} = {shown}")
    for part in _objects(config):
        for name in DEPTH_KEYS + SIZE_KEYS:
            kind = type(part.get(name))
            _require(kind in (int, type(None), list), where, f"{name} = {part.get(name)!r}"[:200])


def _require(held: bool, where: object, given: str) -> None:
    if not held:
        raise ModelError(
            f"{where} can't be a model's.",
            expected="what save_pretrained writes for a model that exists",
            given=given,
            next_step="get the model again from where it is published.",
        )


def _object(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path, LARGEST_JSON)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path} can't be read.",
            expected="JSON in UTF-8",
            given=str(error)[:300],
            next_step="get the model again from where it is published.",
        ) from None
    _require(isinstance(found, dict), path, f"a {type(found).__name__} instead of an object")
    return dict(found)


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """Every number in a config, with its dotted key."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _numbers(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, (list, tuple)):
        _require(len(value) <= LONGEST_LIST, key, f"a list of {len(value):,}")
        for item in value:
            yield from _numbers(item, key)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield key, value


def _objects(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        yield value
        for item in value.values():
            yield from _objects(item)


def _check_names(settings: Mapping[str, Any], path: Path) -> None:
    """Settings that name files name those beside them."""
    for key, value in settings.items():
        if isinstance(value, str) and key.endswith(("_file", "_path")) and key != "name_or_path":
            _require(_plain(value), path, f"{key} = {value!r}"[:200])


def _plain(name: str) -> bool:
    return bool(name) and not {"/", "\\", "\0"} & set(name) and not name.startswith(".")


class StoredTensor(NamedTuple):
    """What a safetensors file says of a tensor: its dtype ("F32", "BF16", "I8", …) and shape."""

    dtype: str
    shape: tuple[int, ...]


def safetensors_header(path: Path) -> dict[str, StoredTensor]:
    """What a safetensors file holds, by name.

    Raises:
        ModelError: the file is shorter than its header says, or the header is none.
    """
    length = _header_length(path)
    with open(path, "rb") as file:
        file.seek(8)
        text = file.read(length)
    try:
        found = json.loads(text)
        return {
            name: StoredTensor(str(about["dtype"]), tuple(about["shape"]))
            for name, about in found.items()
            if name != "__metadata__"
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"a header that can't be read ({type(error).__name__})") from None


def _header_length(path: Path) -> int:
    """Bytes of a header: a safetensors file starts with their number, 8 bytes little-endian."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, LARGEST_HEADER):
        raise _damaged(path, f"{size:,} bytes, and a header of {length:,}")
    return length


def _damaged(path: Path, given: str) -> ModelError:
    return ModelError(
        f"{path} could not be loaded.",
        expected="a header of its length, and tensors behind it",
        given=given,
        next_step="check that it is complete and undamaged.",
    )
