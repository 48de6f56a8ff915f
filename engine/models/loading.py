"""Loading a model: from the Hub, a folder, an adapter or a weight diff, checked before it is used."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from engine.errors import ModelError, PatchError, SiteError
from engine.models.adapters import merge_adapter
from engine.models.check import SelfCheck
from engine.models.checkpoint import DTYPES, load_weights, resolve_device
from engine.models.families import attention_of, family_of, unknown
from engine.models.identities import check_identities, check_packed
from engine.models.low_rank import LowRank
from engine.models.sources import commit_of, config_of, load_tokenizer, source_of
from engine.models.taps import ModelTaps, taps
from engine.models.tokenizer import check_vocabulary, other_tokenizer, tokenizer_hash
from engine.models.unlisted import candidates
from engine.models.weight_diff import add_weight_diff, read_weight_diff
from engine.passes.live import runs_on_codes
from engine.passes.wide import widen
from engine.study.file_hashes import file_hash, model_files
from engine.study.study import ModelSpec

__all__ = ["LoadedModel", "check_identities", "from_parts", "load", "resolve_device"]

log = logging.getLogger(__name__)
LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "peft")


@dataclass(eq=False)
class LoadedModel:
    """A model ready for forward passes: eval mode, no gradients, identities checked.

    Attributes:
        name: its name in the study.
        model: the Hugging Face model.
        tokenizer: its tokenizer, None when built from parts without one.
        taps: where its sites are.
        device: where token ids go (the embedding's device).
        dtype: of its parameters.
        lock: hold it during a forward pass when several threads share the model.
        info: what was loaded: source, revision, class, attention, hashes, library versions, notes.
        checks: the identities as measured at load.
        factors: of the weight changes that a merged LoRA adapter made, by parameter name, unrounded.
        live: it is quantised and runs as it is: weights that are read are unpacked when they are asked for.
    """

    name: str
    model: Any
    tokenizer: Any
    taps: ModelTaps
    device: torch.device
    dtype: torch.dtype
    lock: threading.Lock = field(default_factory=threading.Lock)
    info: dict[str, Any] = field(default_factory=dict)
    checks: list[SelfCheck] = field(default_factory=list)
    factors: dict[str, LowRank] = field(default_factory=dict)
    live: bool = False

    @property
    def max_length(self) -> int:
        """The longest prompt in tokens that the model's positions reach."""
        return self.taps.max_length


def load(spec: ModelSpec, name: str) -> LoadedModel:
    """Loads one model of a study.

    An adapter is merged by peft's own merge; a weight diff is added in float32. The family's only exact
    attention implementation is used when the asked one isn't (Gemma 2's soft-cap needs "eager"), and
    said so in `info["notes"]` and in the log.

    Raises:
        ModelError: whatever is missing, unreadable or unfitting (config, weights, adapter, diff, tokenizer),
            weights that are not finite, an unknown family, or one that fails an identity.
    """
    source = source_of(spec)
    notes: list[str] = []
    if spec.trust_remote_code:
        notes.append(f"trust_remote_code is on: Python code that came with {source} was run on this machine")
    config = config_of(spec)
    if spec.hub is not None and spec.revision is None:
        notes.append(f"{spec.hub} has no pinned revision: the study's fingerprint can't tell when it changes")
    attention = attention_of(config, spec.attention)
    if attention != spec.attention:
        notes.append(
            f"attention {spec.attention!r} is not exact for {config.model_type}, or missing; "
            f"{attention!r} is used instead"
        )
    model = load_weights(spec, source, attention, notes)
    revision = getattr(config, "_commit_hash", None) or commit_of(source) or source.revision
    files = spec.gguf if isinstance(spec.gguf, Path) else spec.path
    info: dict[str, Any] = {"source": str(source), "revision": revision}
    info["files"] = {} if files is None else model_files(files)
    factors: dict[str, LowRank] = {}
    if spec.adapter is not None:
        model, factors = merge_adapter(model, spec, notes)
        info["adapter"] = str(spec.adapter)
        info["adapter_files"] = model_files(spec.adapter) if isinstance(spec.adapter, Path) else {}
    if spec.weight_diff is not None:
        diff = read_weight_diff(spec.weight_diff)
        add_weight_diff(model, diff)
        factors = {name: own for name, own in factors.items() if name not in diff}
        info["weight_diff"] = {spec.weight_diff.name: file_hash(spec.weight_diff)}
    tokenizer = _load_tokenizer(spec, model, notes)
    for note in notes:
        log.warning("model %s: %s", name, note)
    info |= {"trust_remote_code": spec.trust_remote_code, "notes": notes}
    loaded = from_parts(model, tokenizer, name, info, live=spec.quantised == "live")
    loaded.factors = factors
    return loaded


def from_parts(
    model: Any,
    tokenizer: Any = None,
    name: str = "model",
    info: dict[str, Any] | None = None,
    *,
    live: bool = False,
) -> LoadedModel:
    """A LoadedModel from a Hugging Face model that is already in memory.

    A model that runs on codes, or is said to be `live`, is held to the limits of one.
    The model is switched to eval mode and its gradients off, in place. Raises ModelError as `load` does
    for weights that are not finite, an unknown family or a failed identity.
    """
    model = model.eval().requires_grad_(False)
    widen(model)
    _check_finite(model)
    live = live or runs_on_codes(model)
    listed = family_of(model.config)
    if listed is None:
        return _unlisted(model, tokenizer, name, info, live)
    loaded = _measured(taps(model, listed), tokenizer, name, info, live)
    failed = [check for check in loaded.checks if not check.passed]
    if failed:
        raise ModelError(
            f"The model {name!r} fails the {failed[0].name}: what Patchbay knows of the "
            f"{listed.name} family doesn't fit it.",
            expected=f"a relative error of at most {failed[0].limit:g} ({failed[0].detail})",
            given=f"{failed[0].value:.3g}",
            next_step="use a checkpoint in the family's standard form, or correct engine/models/families.py.",
        )
    _remark(loaded)
    return loaded


def _remark(loaded: LoadedModel) -> None:
    """Adds how a model's patches are run to its facts, and what is unusual about it to its notes."""
    loaded.info["patches"] = "packed" if loaded.taps.family.packs else "whole"
    if loaded.taps.remarks:
        loaded.info["notes"] = [*loaded.info.get("notes", []), *loaded.taps.remarks]


def _measured(
    found: ModelTaps, tokenizer: Any, name: str, info: dict[str, Any] | None, live: bool
) -> LoadedModel:
    """A LoadedModel with its checks as measured, passed or not."""
    embedding = found.embed.weight
    if not isinstance(embedding, torch.Tensor):
        raise ModelError("The embedding has no weight.", expected="a tensor", given=type(embedding).__name__)
    loaded = LoadedModel(name, found.model, tokenizer, found, embedding.device, embedding.dtype, live=live)
    loaded.info = _facts(loaded) | (info or {})
    if loaded.dtype not in DTYPES.values():
        raise ModelError("The model's dtype is not supported.", expected=list(DTYPES), given=loaded.dtype)
    loaded.checks = check_identities(loaded, _probe(found))
    return loaded


def _unlisted(model: Any, tokenizer: Any, name: str, info: dict[str, Any] | None, live: bool) -> LoadedModel:
    """A model of a family without an entry, under the first candidate for which every identity holds.

    Raises:
        ModelError: none does; the message is of the candidate that goes furthest.
    """
    kind, best = str(model.config.model_type), (-1, "")
    for family in candidates(model):
        try:
            loaded = _measured(taps(model, family), tokenizer, name, info, live)
        except (RuntimeError, TypeError, SiteError, IndexError) as error:
            reason = " ".join(str(error).split())[:200]
            best = max(best, (0, f"its identities can't be measured ({type(error).__name__}: {reason})"))
            continue
        failed = next((check for check in loaded.checks if not check.passed), None)
        if failed is None:
            loaded = _packed_or_whole(loaded)
            _remark(loaded)
            note = (
                f"the family {kind!r} is not listed: its parts were found by their names and verified on its "
                "weights: "
                + ", ".join(check.name for check in loaded.checks)
                + "; queries and keys are told apart by the names or the order of projections alone"
            )
            loaded.info["notes"] = [*loaded.info.get("notes", []), note]
            log.warning("model %s: %s", name, note)
            return loaded
        reason = f"it fails the {failed.name} ({failed.value:.3g}, at most {failed.limit:g}: {failed.detail})"
        best = max(best, (1 + loaded.checks.index(failed), reason))
    raise unknown(kind, best[1])


def _packed_or_whole(loaded: LoadedModel) -> LoadedModel:
    """The model with its packed identity where that holds; else one whose patches rerun whole prompts."""
    if loaded.taps.family.packs:
        try:
            check = check_packed(loaded, _probe(loaded.taps))
            reason = f"prompts end to end differ from each alone by {check.value:.3g}"
        except (RuntimeError, TypeError, PatchError, IndexError) as error:
            check, reason = None, type(error).__name__
        if check is not None and check.passed:
            loaded.checks.append(check)
            return loaded
        log.warning("model %s: its attention can't be run on packed tokens (%s)", loaded.name, reason)
        loaded.taps = taps(loaded.model, replace(loaded.taps.family, packs=False))
    return loaded


def _probe(found: ModelTaps) -> torch.Tensor:
    """Twelve token ids spread over the vocabulary, drawn from a fixed seed."""
    return torch.randint(0, found.vocab, (12,), generator=torch.Generator().manual_seed(0))


def _facts(loaded: LoadedModel) -> dict[str, Any]:
    found, model = loaded.taps, loaded.model
    return {
        "class": type(model).__name__,
        "family": found.family.name,
        "attention": str(model.config._attn_implementation),
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "device": str(loaded.device),
        "d": found.d,
        "n_layers": found.n_layers,
        "n_heads": found.n_heads,
        "n_kv_heads": found.n_kv_heads,
        "head_dim": found.head_dim,
        "vocab": found.vocab,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokenizer": None if loaded.tokenizer is None else type(loaded.tokenizer).__name__,
        "tokenizer_hash": tokenizer_hash(loaded.tokenizer),
        "versions": {library: version(library) for library in LIBRARIES},
    }


def _load_tokenizer(spec: ModelSpec, model: Any, notes: list[str]) -> Any:
    tokenizer = load_tokenizer(spec)
    check_vocabulary(tokenizer, int(model.get_input_embeddings().weight.shape[0]))
    other = other_tokenizer(spec, tokenizer)
    notes += [] if other is None else [other]
    return tokenizer


def _check_finite(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ModelError(
                f"The model's {name} was left on disk or in CPU memory: the model doesn't fit the devices.",
                expected="every weight on a device",
                given="an offloaded weight",
                next_step='use more or larger devices, a 16-bit dtype, or device = "cpu" without device_map.',
            )
        coded = not parameter.is_floating_point() or parameter.element_size() == 1
        if not coded and not bool(torch.isfinite(parameter).all()):
            raise ModelError(
                f"The model's {name} holds numbers that are not finite.",
                expected="finite weights",
                given="NaN or infinity",
                next_step="get the checkpoint again; float16 ends at 65504, so try float32 or bfloat16.",
            )
