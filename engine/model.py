"""Loading a model: from the Hub, a folder, an adapter or a weight diff, checked before it is used."""

from __future__ import annotations

import hashlib
import logging
import threading
import warnings
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from engine.errors import ModelError
from engine.families import family_of
from engine.files import file_hash, model_files
from engine.identities import check_identities
from engine.results import SelfCheck
from engine.study import ModelSpec
from engine.taps import ModelTaps, taps
from engine.weight_diff import add_weight_diff, read_weight_diff

__all__ = ["LoadedModel", "check_identities", "from_parts", "load", "resolve_device"]

log = logging.getLogger(__name__)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
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

    @property
    def max_length(self) -> int:
        """The longest prompt in tokens that the model's positions reach."""
        return self.taps.max_length


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


def load(spec: ModelSpec, name: str) -> LoadedModel:
    """Loads one model of a study.

    An adapter is merged by peft's own merge; a weight diff is added in float32. The family's only exact
    attention implementation is used when the asked one isn't (Gemma 2's soft-cap needs "eager"), and
    said so in `info["notes"]` and in the log.

    Raises:
        ModelError: whatever is missing, unreadable or unfitting (config, weights, adapter, diff, tokenizer),
            weights that are not finite, an unknown family, or one that fails an identity.
    """
    source, revision = source_of(spec)
    notes: list[str] = []
    if spec.trust_remote_code:
        notes.append(f"trust_remote_code is on: Python code that came with {source} was run on this machine")
    config = pretrained(AutoConfig, source, revision, spec)
    if spec.hub is not None and spec.revision is None:
        notes.append(f"{spec.hub} has no pinned revision: the study's fingerprint can't tell when it changes")
    family = family_of(str(config.model_type))
    attention = family.attention or spec.attention
    if attention != spec.attention:
        notes.append(
            f"attention {spec.attention!r} is not exact for {family.name}; {attention!r} is used instead"
        )
    model = _load_weights(spec, source, revision, attention, notes)
    info: dict[str, Any] = {"source": source, "revision": getattr(config, "_commit_hash", None) or revision}
    info["files"] = model_files(spec.path) if spec.path is not None else {}
    if spec.adapter is not None:
        model = _merge_adapter(model, spec, notes)
        info["adapter"] = str(spec.adapter)
        info["adapter_files"] = model_files(spec.adapter) if isinstance(spec.adapter, Path) else {}
    if spec.weight_diff is not None:
        add_weight_diff(model, read_weight_diff(spec.weight_diff))
        info["weight_diff"] = {spec.weight_diff.name: file_hash(spec.weight_diff)}
    tokenizer = _load_tokenizer(spec, source, revision, model)
    for note in notes:
        log.warning("model %s: %s", name, note)
    info |= {"trust_remote_code": spec.trust_remote_code, "notes": notes}
    return from_parts(model, tokenizer, name, info)


def from_parts(
    model: Any, tokenizer: Any = None, name: str = "model", info: dict[str, Any] | None = None
) -> LoadedModel:
    """A LoadedModel from a Hugging Face model that is already in memory.

    The model is switched to eval mode and its gradients off, in place. Raises ModelError as `load` does
    for weights that are not finite, an unknown family or a failed identity.
    """
    model = model.eval().requires_grad_(False)
    found = taps(model)
    _check_finite(model)
    embedding = found.embed.weight
    if not isinstance(embedding, torch.Tensor):
        raise ModelError("The embedding has no weight.", expected="a tensor", given=type(embedding).__name__)
    loaded = LoadedModel(name, model, tokenizer, found, embedding.device, embedding.dtype)
    loaded.info = _facts(loaded) | (info or {})
    if loaded.dtype not in DTYPES.values():
        raise ModelError("The model's dtype is not supported.", expected=list(DTYPES), given=loaded.dtype)
    loaded.checks = check_identities(loaded, _probe(found))
    failed = [check for check in loaded.checks if not check.passed]
    if failed:
        raise ModelError(
            f"The model {name!r} fails the {failed[0].name}: what Patchbay knows of the "
            f"{found.family.name} family doesn't fit it.",
            expected=f"a relative error of at most {failed[0].limit:g} ({failed[0].detail})",
            given=f"{failed[0].value:.3g}",
            next_step="use a checkpoint in the family's standard form, or correct engine/families.py.",
        )
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
        "tokenizer_hash": _tokenizer_hash(loaded.tokenizer),
        "versions": {library: version(library) for library in LIBRARIES},
    }


def _tokenizer_hash(tokenizer: Any) -> str | None:
    """SHA-256 over the tokenizer's whole definition and its chat template; None for a slow one."""
    if not getattr(tokenizer, "is_fast", False):
        return None
    text = tokenizer.backend_tokenizer.to_str() + "\0" + str(tokenizer.chat_template)
    return hashlib.sha256(text.encode()).hexdigest()


def source_of(spec: ModelSpec) -> tuple[str, str | None]:
    """Where a model comes from and its revision, as transformers takes them (ModelError: no model folder)."""
    if spec.path is None:
        return str(spec.hub), spec.revision
    if not (spec.path / "config.json").is_file():
        raise ModelError(
            f"{spec.path} is not a model folder.",
            expected="a folder with config.json and weights",
            given=_listing(spec.path),
            next_step="give the folder that save_pretrained wrote.",
        )
    return str(spec.path), None


def _listing(path: Path) -> str:
    if not path.is_dir():
        return "a file" if path.exists() else "nothing at that path"
    return ", ".join(sorted(child.name for child in path.iterdir())[:8]) or "an empty folder"


def pretrained(kind: Any, source: str, revision: str | None, spec: ModelSpec, **more: Any) -> Any:
    """`kind.from_pretrained` with its many kinds of failure turned into one clear error."""
    try:
        return kind.from_pretrained(
            source, revision=revision or "main", trust_remote_code=spec.trust_remote_code, **more
        )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        text = " ".join(str(error).split())
        raise ModelError(
            f"{source} could not be loaded ({kind.__name__}).",
            expected="readable files in Hugging Face format"
            + (f" at revision {revision}" if revision else ""),
            given=f"{type(error).__name__}: {text[:300]}",
            next_step=_advice(text, spec),
        ) from error


def _advice(text: str, spec: ModelSpec) -> str:
    lower = text.lower()
    if "trust_remote_code" in lower:
        return "the model brings its own code; read it, then set trust_remote_code = true for this model."
    if spec.path is None and ("connect" in lower or "offline" in lower or "cached" in lower):
        return "connect to the network, or download the model and give its folder as 'path'."
    if spec.path is None:
        return "check the Hub id and the revision, and that you may read it."
    return "check that the folder is complete and undamaged."


def _load_weights(
    spec: ModelSpec, source: str, revision: str | None, attention: str, notes: list[str]
) -> Any:
    placement: dict[str, Any] = {"device_map": spec.device_map} if spec.device_map else {}
    model, loading = pretrained(
        AutoModelForCausalLM,
        source,
        revision,
        spec,
        dtype=DTYPES[spec.dtype],
        attn_implementation=attention,
        output_loading_info=True,
        **placement,
    )
    missing = sorted(loading["missing_keys"])
    if missing:
        raise ModelError(
            f"{source} lacks {len(missing)} of the model's tensors.",
            expected="every tensor of the architecture",
            given="missing: " + ", ".join(missing[:5]) + (" …" if len(missing) > 5 else ""),
            next_step="get the complete checkpoint; a randomly filled tensor would spoil every number.",
        )
    unused = sorted(loading["unexpected_keys"])
    if unused:
        notes.append(f"{len(unused)} tensors of {source} are not used by the model: " + ", ".join(unused[:5]))
    return model if spec.device_map else model.to(resolve_device(spec.device))


def _merge_adapter(model: Any, spec: ModelSpec, notes: list[str]) -> Any:
    """The model with the adapter merged into its weights by peft; ModelError when it doesn't fit."""
    from peft import PeftModel
    from peft.utils import get_peft_model_state_dict, load_peft_weights

    adapter, local = str(spec.adapter), isinstance(spec.adapter, Path)
    if isinstance(spec.adapter, Path) and not (spec.adapter / "adapter_config.json").is_file():
        raise ModelError(
            f"{adapter} is not an adapter folder.",
            expected="a folder with adapter_config.json and adapter_model.safetensors",
            given=_listing(spec.adapter),
        )
    where: dict[str, Any] = (
        {} if local or spec.adapter_revision is None else {"revision": spec.adapter_revision}
    )
    try:
        with warnings.catch_warnings():
            # peft reads a property that transformers has renamed; nothing the user can act on.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            warnings.filterwarnings("ignore", message="Found missing adapter keys")
            warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")  # refused below
            warnings.filterwarnings("ignore", message="Unsupported layer type.*Norm")  # a gain like any other
            wrapped = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False, **where)
            config: Any = wrapped.peft_config[wrapped.active_adapter]
            if not hasattr(wrapped.base_model, "merge_and_unload"):
                raise ValueError(f"{config.peft_type} is no change of weights and cannot be merged into them")
            _check_ties(model, wrapped)
            given = set(load_peft_weights(adapter, device="cpu", **where))
            # peft saves embeddings beside an adapter that touches them; whether it has is not left to its own
            # guess, which would ask the Hub about the base's vocabulary
            fits = [set(get_peft_model_state_dict(wrapped, save_embedding_layers=w)) for w in (False, True)]
            if given not in fits:
                raise ValueError(f"tensors without a counterpart: {', '.join(sorted(given ^ fits[0])[:4])}")
            trained_on, source = str(config.base_model_name_or_path or ""), str(spec.hub or spec.path)
            if trained_on and Path(trained_on).name != Path(source).name:
                notes.append(f"the adapter {adapter} was trained on {trained_on}, here it is put on {source}")
            return wrapped.merge_and_unload(safe_merge=True)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(
            f"The adapter {adapter} doesn't fit the base model.",
            expected=f"an adapter trained on this {type(model).__name__}, readable and finite",
            given=" ".join(str(error).split())[:300],
            next_step="check which base adapter_config.json names, and that its files are complete.",
        ) from error


def _check_ties(model: Any, wrapped: Any) -> None:
    """ValueError for an adapter on one end of a tied embedding: merged, it would be on both."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    base = wrapped.get_base_model()
    ends = base.get_input_embeddings(), base.get_output_embeddings()
    if getattr(model.config, "tie_word_embeddings", False) and any(
        isinstance(e, BaseTunerLayer) for e in ends
    ):
        raise ValueError("it changes the embedding or the unembedding alone, but the base ties the two")


def _load_tokenizer(spec: ModelSpec, source: str, revision: str | None, model: Any) -> Any:
    override = spec.tokenizer is not None
    place, at = (str(spec.tokenizer), None) if override else (source, revision)
    if isinstance(spec.tokenizer, Path) and not spec.tokenizer.is_dir():
        raise ModelError(
            "The tokenizer folder isn't there.", expected="a folder with tokenizer.json", given=place
        )
    tokenizer = pretrained(AutoTokenizer, place, at, spec)
    rows = int(model.get_input_embeddings().weight.shape[0])
    if len(tokenizer) > rows:
        raise ModelError(
            f"The tokenizer {place} has more tokens than the model has embeddings.",
            expected=f"at most {rows}",
            given=len(tokenizer),
            next_step="use the tokenizer that the model was trained with.",
        )
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
        if not bool(torch.isfinite(parameter).all()):
            raise ModelError(
                f"The model's {name} holds numbers that are not finite.",
                expected="finite weights",
                given="NaN or infinity",
                next_step="get the checkpoint again; float16 ends at 65504, so try float32 or bfloat16.",
            )
