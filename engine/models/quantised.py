"""Quantised checkpoints: unpacked to plain weights where transformers does it exactly, else refused by name.

Unpacked, each weight is the number that the file's codes and scales say, rounded once to the study's dtype.
What quantising lost stays lost, and activations, which some methods quantise as well, are not quantised then.
Where a study asks for it ("live"), a checkpoint runs as it is, by its method's own layers.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from engine.errors import ModelError
from engine.models.folder import safetensors_header
from engine.models.sources import unpacked_note
from engine.passes.live import holds_codes
from engine.study.study import ModelSpec

__all__ = ["Quantised", "check_live", "check_readable", "plain_spec", "quantised"]


class _Method(NamedTuple):
    """How a method's weights are unpacked: its title, the package for it, and whether names alone suffice."""

    title: str
    package: str | None = None
    on_meta: bool = True


READ = {
    "fp8": _Method("FP8"),
    "compressed-tensors": _Method("compressed-tensors", "compressed_tensors"),
    "bitsandbytes": _Method("bitsandbytes", "bitsandbytes", on_meta=False),
}
"""Methods whose weights are unpacked, by test."""

TITLES = {
    "gptq": "GPTQ",
    "awq": "AWQ",
    "aqlm": "AQLM",
    "auto-round": "AutoRound",
    "bitnet": "BitNet",
    "eetq": "EETQ",
    "fbgemm_fp8": "FBGEMM FP8",
    "fp_quant": "FP-Quant",
    "higgs": "HIGGS",
    "hqq": "HQQ",
    "modelopt": "ModelOpt",
    "mxfp4": "MXFP4",
    "nvfp4": "NVFP4",
    "quanto": "Quanto",
    "quark": "Quark",
    "spqr": "SpQR",
    "torchao": "torchao",
    "vptq": "VPTQ",
}
"""Methods as their authors write them; others are told as config.json does."""


@dataclass(frozen=True)
class Quantised:
    """The quantisation that a config tells of.

    Attributes:
        method: `quant_method`, lower case. settings: all of it.
    """

    method: str
    settings: Mapping[str, Any]

    @property
    def title(self) -> str:
        """The method's name for messages."""
        known = READ.get(self.method)
        return known.title if known is not None else TITLES.get(self.method, self.method)

    @property
    def on_meta(self) -> bool:
        """Whether the checkpoint can be held against the model without its values."""
        return READ[self.method].on_meta

    def asking(self, config: Any, *, live: bool = False) -> Any:
        """A copy of the config that has transformers unpack the weights while it loads them, unless live."""
        asked = copy.deepcopy(config)
        if READ[self.method].on_meta and not (live and self.method == "compressed-tensors"):
            asked.quantization_config = {**self.settings, "dequantize": not live}
        return asked

    def ready(self, model: Any, source: object) -> Any:
        """The loaded model as it runs, after a first pass: some methods only then unpack their codes.

        Raises:
            ModelError: embedding or unembedding hold codes, of which rows are read.
        """
        with torch.no_grad():
            model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=model.device))
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        if any(end is not None and holds_codes(end) for end in ends):
            raise ModelError(
                f"{source} has a quantised embedding or unembedding, and can't run as it is.",
                expected="both as plain weights",
                given=f"codes ({self.title})",
                next_step='leave out quantised = "live", so that the weights are unpacked.',
            )
        return model

    def plain(self, model: Any, dtype: torch.dtype) -> Any:
        """The loaded model with every parameter a plain tensor of the dtype."""
        if not READ[self.method].on_meta:
            model = model.dequantize()
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        return model

    def note(self, spec: ModelSpec) -> str:
        """What is done, for the store."""
        if spec.quantised is None:
            return unpacked_note(self.title, spec.dtype)
        return (
            f"its weights are quantised ({self.title}) and it runs on them as they are: layers compute as "
            "their method does, some with quantised activations. What quantising lost is lost; numbers "
            "depend on the device and, where a method looks at all of a batch, on what else is in it; heads "
            "make up attn_out within rounding to 8 bits. Weights that are read (kernels, differences, heads' "
            "projections) are the unpacked ones, and can't be steered"
        )

    def check_blocks(self, folder: Path | None, source: object) -> None:
        """ModelError for FP8 weights with a part of a block at an end.

        transformers would scale them by as many blocks of equal size, without a word.
        """
        block = self.settings.get("weight_block_size")
        if self.method != "fp8" or not block or folder is None:
            return
        for path in sorted(folder.glob("*.safetensors")):
            shapes = {name: tensor.shape for name, tensor in safetensors_header(path).items()}
            for name, scales in shapes.items():
                rows = shapes.get(name.removesuffix("_scale_inv"), ())
                if not name.endswith("_scale_inv") or len(rows) != 2 or len(scales) != 2:
                    continue
                sides = zip(rows, block, scales, strict=True)
                if not all(size == b * count or (count == 1 and size <= b) for size, b, count in sides):
                    raise ModelError(
                        f"{source} has FP8 blocks that don't fill {name.removesuffix('_scale_inv')}.",
                        expected=f"a shape in whole blocks of {tuple(block)}, or within one",
                        given=f"{rows} with {scales} scales",
                        next_step="give the unquantised model that it was made from.",
                    )


def quantised(config: Any) -> Quantised | None:
    """The quantisation of a config or of its text part; None without one."""
    for part in (config, config.get_text_config() if hasattr(config, "get_text_config") else config):
        for key in ("quantization_config", "compression_config"):
            found = getattr(part, key, None)
            if found:
                settings = dict(found if isinstance(found, dict) else found.to_dict())
                method = settings.get("quant_method") or ("bitsandbytes" if _old_style(settings) else "")
                return Quantised(str(method or "an unnamed method").lower(), settings)
    return None


def plain_spec(spec: ModelSpec) -> ModelSpec:
    """The same model with its weights unpacked."""
    return spec.model_copy(update={"quantised": None})


def check_live(spec: ModelSpec, config: Any, what: object, device: torch.device | None = None) -> None:
    """ModelError for a model that is to run on its codes and can't, from its config alone.

    Args:
        device: where it is to run; None: not asked.
    """
    if spec.quantised is None:
        return
    found = quantised(config)
    reason, given = "", f"{what}"
    if spec.gguf is not None:
        reason = "GGUF files are unpacked: transformers has no layers that run on their codes"
    elif found is None:
        reason = "it isn't quantised: config.json has no quantization_config"
    elif spec.adapter is not None or spec.weight_diff is not None:
        reason, given = "an adapter or a weight diff can't be merged into codes", "one of them in the study"
    elif found.method == "fp8" and device is not None and device.type != "cuda":
        reason, given = "its FP8 layers run on CUDA alone", f"device {device}"
    if reason:
        raise ModelError(
            f"{what} can't run as it is: {reason}.",
            expected="a checkpoint quantised by " + ", ".join(m.title for m in READ.values()),
            given=given,
            next_step='leave out quantised = "live".',
        )


def _old_style(settings: Mapping[str, Any]) -> bool:
    """bitsandbytes configs of early transformers name no method."""
    return bool(settings.get("load_in_8bit") or settings.get("load_in_4bit"))


def check_readable(config: Any, what: object) -> None:
    """ModelError for a checkpoint whose weights are packed in a way that is not read exactly.

    Args:
        config: the model's config. what: the model's source, for the message.
    """
    found = quantised(config)
    if found is None:
        return
    known = READ.get(found.method)
    missing = known is not None and known.package and importlib.util.find_spec(known.package) is None
    nested = not getattr(config, "quantization_config", None)
    if known is not None and not missing and not nested:
        return
    raise ModelError(
        f"{what} is a quantised checkpoint ({found.title}): no plain weights.",
        expected="weights in float32, bfloat16 or float16, a GGUF file as 'gguf', or weights quantised by "
        + ", ".join(
            f"{m.title}" + (f" (with the package {m.package})" if m.package else "") for m in READ.values()
        ),
        given=f"quantization_config with quant_method {found.method!r} in config.json"
        + (f", and no package {known.package}" if known is not None and missing else ""),
        next_step=("pip install 'patchbay[quantised]', or " if missing else "")
        + "give the unquantised model that it was made from.",
    )
