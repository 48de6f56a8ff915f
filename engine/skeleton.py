"""A model's shape and tokenizer without its weights: enough to plan, render and count tokens."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from engine.model import pretrained, source_of
from engine.sites import ModelTaps, taps
from engine.study import ModelSpec

__all__ = ["load_tokenizer", "skeleton"]


def skeleton(spec: ModelSpec) -> ModelTaps:
    """The parts of a model built from its config on the meta device: shapes, no memory.

    Raises:
        ModelError: no config, or an unknown family.
    """
    source, revision = source_of(spec)
    config = pretrained(AutoConfig, source, revision, spec)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=spec.trust_remote_code)
    return taps(model)


def load_tokenizer(spec: ModelSpec) -> Any:
    """The tokenizer of a model of a study: its own, or the one that the study names instead."""
    source, revision = source_of(spec)
    if spec.tokenizer is not None:
        return pretrained(AutoTokenizer, str(spec.tokenizer), None, spec)
    return pretrained(AutoTokenizer, source, revision, spec)
