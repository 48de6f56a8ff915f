"""TransformerLens around its own copy of a tiny model's weights."""

from __future__ import annotations

import warnings
from typing import Any

from tiny_models import tiny


def bridge(family: str, **options: Any) -> Any:
    """A model of that library; its attention is its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

        model = tiny(family, attn_implementation="eager", **options)
        name = type(model).__name__
        model.config.architectures = [name]
        return build_bridge_from_module(model, name, hf_config=model.config)
