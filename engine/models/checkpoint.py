"""Weights of a checkpoint: read whole, or on the meta device for what their names and shapes say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers.utils import logging as transformers_logging

from engine.errors import ModelError
from engine.models.families import loader_of
from engine.models.folder import safetensors_header
from engine.models.memory import out_of_memory
from engine.models.quantised import check_live, check_readable, quantised
from engine.models.sources import (
    Source,
    check_all_read,
    config_of,
    folder_of,
    no_room,
    pretrained,
    source_of,
    unpacked,
)
from engine.models.tensor_parts import in_parts
from engine.study.study import ModelSpec

__all__ = ["DTYPES", "all_finite", "load_weights", "resolve_device"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WRAPPERS = ("base_model", "model", "module", "_orig_mod", "language_model", "transformer", "gpt_neox")
"""Names that paths begin with: of a model's own wrapper, and of what trained it (PEFT, torch.compile, …)."""


def devices() -> list[str]:
    """What is there to run on, by the names that a study takes: "cpu", "cuda:0", ..., "mps"."""
    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return ["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]


def resolve_device(name: str) -> torch.device:
    """ "auto" becomes cuda, else mps, else cpu; another name is taken as it is.

    Raises:
        ModelError: the named device isn't there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    there = {
        "cpu": True,
        "mps": torch.backends.mps.is_available(),
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
    }
    if not there.get(device.type, False):
        raise ModelError(
            f"The device {name!r} isn't there.",
            expected="one of " + ", ".join(kind for kind, found in there.items() if found),
            given=name,
            next_step='set device = "auto" in the study.',
        )
    return device


def load_weights(
    spec: ModelSpec, source: Source, attention: str, notes: list[str], *, meta: bool = False
) -> Any:
    """The model of a checkpoint with all of its weights, on the study's device.

    Args:
        notes: told of tensors in the checkpoint that belong to no part of the model, and of quantisation.
        meta: names and shapes alone: every check, no memory. Only what is on this machine is looked at.

    Raises:
        ModelError: unreadable or quantised weights, tensors that are missing, of another shape, or beside a
            used module's own (see `check_unused`); no room.
    """
    config = config_of(spec)
    check_readable(config, source)
    check_live(spec, config, source, resolve_device(spec.device))
    packed, live = quantised(config), spec.quantised == "live" and not meta
    options: dict[str, Any] = {"device_map": spec.device_map} if spec.device_map else {}
    if live and not spec.device_map:
        options = {"device_map": {"": resolve_device(spec.device)}}
    if meta:
        options = {"device_map": {"": "meta"}, "local_files_only": True}
    options |= unpacked(spec)
    if packed is not None:
        packed.check_blocks(folder_of(source), source)
        options["config"] = packed.asking(config, live=live)
    with _quietly() if meta else nullcontext():
        model, loading = pretrained(
            loader_of(config),
            source,
            dtype=DTYPES[spec.dtype],
            attn_implementation=attention,
            output_loading_info=True,
            **options,
        )
    if packed is not None:
        model = packed.ready(model, source) if live else packed.plain(model, DTYPES[spec.dtype])
        notes.append(packed.note(spec))
    _refuse_missing(sorted(loading["missing_keys"]), source)
    if getattr(model.config, "tie_word_embeddings", False):
        notes += _tied(model, meta)
    check_all_read(spec, model, notes)
    if packed is None:
        _check_numbers(model, folder_of(source), source)
    unused = sorted(loading["unexpected_keys"])
    check_unused(model, unused, source)
    if unused:
        notes.append(f"{len(unused)} tensors of {source} are not used by the model: " + ", ".join(unused[:5]))
    if meta or live or spec.device_map:
        return model
    try:
        return model.to(resolve_device(spec.device))
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            raise no_room(str(source), error) from error
        raise


def _refuse_missing(missing: Sequence[str], source: object) -> None:
    if missing:
        raise ModelError(
            f"{source} lacks {len(missing)} of the model's tensors.",
            expected="every tensor of the architecture",
            given="missing: " + ", ".join(missing[:5]) + (" …" if len(missing) > 5 else ""),
            next_step="get the complete checkpoint; a randomly filled tensor would spoil every number.",
        )


def _check_numbers(model: nn.Module, folder: Path | None, source: object) -> None:
    """ModelError for a weight in whole numbers: packed, in a way that config.json doesn't tell."""
    own = {_bare(name) for name, _ in model.named_parameters(remove_duplicate=False)}
    for path in () if folder is None else sorted(folder.glob("*.safetensors")):
        for name, tensor in safetensors_header(path).items():
            if tensor.dtype[0] in "IU" and _bare(name) in own:
                raise ModelError(
                    f"{source} holds weights in whole numbers.",
                    expected="floating-point weights, or a quantization_config that says how they are packed",
                    given=f"{name} in {tensor.dtype}",
                    next_step="give the unquantised model that it was made from.",
                )


def _tied(model: Any, meta: bool) -> list[str]:
    """A note where config.json ties embedding and unembedding, and the checkpoint has two different ones.

    Without values transformers ties nothing that a checkpoint has twice, as .bin files always do.
    """
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    if meta:
        model.tie_weights()
    if None in ends or ends[0].weight is ends[1].weight:
        return []
    return [
        "config.json says that embedding and unembedding are one, the checkpoint has two different ones: "
        "they are used as they are there"
    ]


def all_finite(spec: ModelSpec) -> bool:
    """False where a safetensors file of a model holds NaN or infinity, in tensors that are used or not.

    Other formats are not read, nor is what isn't on this machine. One tensor is in memory at a time.
    """
    source = source_of(spec)
    folder = folder_of(source) if spec.gguf is None else None
    return all(_finite(path) for path in ([] if folder is None else sorted(folder.glob("*.safetensors"))))


def _finite(path: Path) -> bool:
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118 - no mapping
            values = file.get_tensor(name)
            plain = values.is_floating_point() and values.element_size() > 1
            if plain and not all(bool(torch.isfinite(part).all()) for part in in_parts(values)):
                return False
    return True


@contextmanager
def _quietly() -> Iterator[None]:
    """No bars and no reports of transformers: what they say is said by an error or a note."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def check_unused(model: nn.Module, unused: Iterable[str], source: object) -> None:
    """ModelError when an unused tensor of a checkpoint lies beside the weights of a module that is used.

    Such a tensor was part of what the checkpoint computed: an unmerged adapter, a scale of packed weights, a
    bias that config.json switches off. Others (another head, a vision tower, drafting layers) change nothing.
    """
    used = {
        _bare(path)
        for path, module in model.named_modules()
        if path and any(True for _ in module.parameters(recurse=False))
    }
    beside = [name for name in unused if not used.isdisjoint(_modules_above(name))]
    if beside:
        raise ModelError(
            f"{source} holds tensors that belong to modules of the model and that it wouldn't use.",
            expected="each module's own weights and nothing beside them",
            given=", ".join(beside[:4]) + (f" and {len(beside) - 4} more" if len(beside) > 4 else ""),
            next_step=_remedy(beside[0]),
        )


def _modules_above(name: str) -> Iterator[str]:
    """Every module that a tensor of this name could lie in, without wrappers' prefixes."""
    parts = name.split(".")
    for end in range(1, len(parts)):
        yield _bare(".".join(parts[:end]))


def _bare(path: str) -> str:
    """A module's path without what models and their wrappers put in front of it."""
    parts = path.split(".")
    while len(parts) > 1 and parts[0] in WRAPPERS:
        parts = parts[1:]
    return ".".join(parts)


def _remedy(name: str) -> str:
    lower = name.lower()
    if "lora_" in lower or "base_layer" in lower or "adapter" in lower:
        return "merge the adapter and save the model again, or save the adapter and name it as 'adapter'."
    if lower.endswith(".bias"):
        return "switch the bias on in config.json, as it was when the model was trained."
    if "scale" in lower or "zero" in lower or "absmax" in lower:
        return "give the unquantised model: scales that config.json doesn't tell of would be left out."
    return "check that config.json is the one that the checkpoint was saved with."
