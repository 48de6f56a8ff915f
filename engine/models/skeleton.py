"""A model's shape without its weights: enough to plan, and to find what doesn't fit before any work."""

from __future__ import annotations

from typing import Any

import torch

from engine.errors import ModelError
from engine.models.adapters import check_adapter
from engine.models.checkpoint import load_weights, resolve_device
from engine.models.families import attention_of, family_of, loader_of
from engine.models.quantised import check_live, check_readable, quantised
from engine.models.rotary import check_rotary
from engine.models.sources import check_all_read, config_of, source_of
from engine.models.taps import ModelTaps, taps
from engine.models.unlisted import candidates
from engine.models.weight_diff import check_weight_diff
from engine.study.study import ModelSpec

__all__ = ["planned", "skeleton"]


def skeleton(spec: ModelSpec) -> ModelTaps:
    """The parts of a model built from its config on the meta device: shapes, no memory.

    Raises:
        ModelError: no config, an unknown family, a quantised checkpoint, or a config of which no model can be
            built.
    """
    return taps(_built(spec))


def planned(spec: ModelSpec, notes: list[str] | None = None) -> ModelTaps:
    """The parts of a model as they will be loaded, on the meta device: shapes, no memory.

    Names and shapes in the checkpoint's files, the adapter and the weight diff are held against each other.
    Weights on the Hub that are not in the local cache are taken to be as their config says.

    Args:
        notes: told what is not as the study says, as the model's own notes will be.

    Raises:
        ModelError: as `skeleton`; the device isn't there; or an adapter, a diff or a checkpoint that doesn't
            fit.
    """
    notes = [] if notes is None else notes
    resolve_device(spec.device)
    model = _read(spec, notes)
    if family_of(model.config) is None:
        notes.append(
            f"the family {str(model.config.model_type)!r} is not listed: its parts are found by their names "
            "and verified on its weights when they are loaded"
        )
    if spec.adapter is not None:
        check_adapter(model, spec, notes)
    if spec.weight_diff is not None:
        check_weight_diff(model, spec.weight_diff)
    found = taps(model)
    notes += found.remarks
    return found


def _read(spec: ModelSpec, notes: list[str]) -> Any:
    """The model on the meta device: from its files where they are here, else from its config."""
    source, built = source_of(spec), _built(spec)
    if source.gguf is not None:
        check_all_read(spec, built, notes)
        return built
    packed = quantised(built.config)
    if packed is not None and not packed.on_meta:
        notes.append(packed.note(spec))
        return built
    attention = attention_of(built.config, spec.attention)
    try:
        return load_weights(spec, source, attention, notes, meta=True)
    except ModelError as error:
        if source.local or not isinstance(error.__cause__, OSError):
            raise
        return built


def _built(spec: ModelSpec) -> Any:
    config = config_of(spec)
    listed = family_of(config)
    check_readable(config, source_of(spec))
    check_live(spec, config, source_of(spec))
    try:
        with torch.device("meta"):
            model = loader_of(config).from_config(config, trust_remote_code=spec.trust_remote_code)
    except Exception as error:  # a config can say anything, and each model's class reads it in its own way
        raise ModelError(
            f"No causal language model can be built from the config of {source_of(spec)}.",
            expected=f"the settings of a {config.model_type} model",
            given=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            next_step="check that config.json is complete and as the checkpoint was saved with.",
        ) from error
    check_rotary(config)
    if listed is None:
        candidates(model)  # refused before any file of weights is read
    return model
