"""PEFT adapters: put on a model, completely or not at all, merged into it, and told as factors.

The factors of a LoRA adapter are what its file has, ΔW = scaling · B A, before any merge rounds it.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.errors import ModelError
from engine.models.folder import adapter_settings, check_adapter_folder
from engine.models.low_rank import LowRank
from engine.models.memory import out_of_memory
from engine.models.sources import listing, no_room, source_of
from engine.study.study import ModelSpec

__all__ = [
    "attach_adapter",
    "check_adapter",
    "lora_factors",
    "merge_adapter",
    "resize_for_adapter",
    "saved_tensors",
]

NO_SETTINGS = frozenset({"peft_version", "auto_mapping", "transformers_version"})
"""What an adapter's config holds beside the settings of its kind."""

WRAPPED = "base_model.model."
"""What peft puts in front of a module's name in an adapter's file."""

_SAVED_WHOLE = r"(\.base_layer|\.modules_to_save(\.default)?|\.original_module)?\.weight"
_WITH_NAME = re.compile(r"\.default(?=\.(weight|bias)$|$)")
QUIET = (
    (FutureWarning, ".*is_gradient_checkpointing.*"),  # peft reads a property that transformers has renamed
    (UserWarning, "Found missing adapter keys"),  # refused here
    (UserWarning, "Model has `tie_word_embeddings=True`"),  # refused here
    (UserWarning, "Unsupported layer type.*Norm"),  # a gain like any other
    (UserWarning, "Unexpected keyword arguments"),  # a note here
    (UserWarning, "Input and output embeddings are no longer tied"),  # a note here
    (RuntimeWarning, "The following (rank|alpha)_pattern keys"),  # of experts that are one tensor by now
)


def merge_adapter(model: Any, spec: ModelSpec, notes: list[str]) -> tuple[Any, dict[str, LowRank]]:
    """The model with the adapter merged into its weights by peft, and the factors of what it added.

    Args:
        notes: told where the vocabulary was resized, or the adapter was trained on another base.

    Raises:
        ModelError: the adapter doesn't fit, completely.
    """
    with _fitting(model, spec):
        saved = saved_tensors(spec, model)
        resize_for_adapter(model, saved, spec, notes)
        tied = _ties(model)
        wrapped = attach_adapter(model, spec, saved)
        notes += _told(wrapped, spec)
        factors = lora_factors(wrapped, saved)
        merged = wrapped.merge_and_unload(safe_merge=True)
        if tied and not _ties(merged):
            notes.append(
                f"{spec.adapter} was trained on an embedding that it untied from the unembedding: they differ"
            )
        return merged, factors


def check_adapter(model: Any, spec: ModelSpec, notes: list[str]) -> None:
    """ModelError where the adapter doesn't fit, from names and shapes alone.

    Args:
        model: on the meta device; changed in place to the vocabulary that the adapter brings.
    """
    with _fitting(model, spec):
        saved = saved_tensors(spec, model)
        resize_for_adapter(model, saved, spec, notes)
        wrapped = attach_adapter(copy.deepcopy(model), spec, saved, meta=True)
        notes += _told(wrapped, spec)


def _told(wrapped: Any, spec: ModelSpec) -> list[str]:
    """Notes of what in an adapter's config is not as the study or the installed peft has it."""
    known = {field.name for field in fields(wrapped.peft_config[wrapped.active_adapter])}
    found = {} if isinstance(spec.adapter, str) else adapter_settings(Path(str(spec.adapter)))
    new = sorted(name for name, value in found.items() if value and name not in known | NO_SETTINGS)
    told = f"settings of the adapter {spec.adapter} that peft {version('peft')} doesn't know are ignored: "
    return [*_other_base(wrapped, spec), *([told + ", ".join(new)[:200]] if new else [])]


def _ties(model: Any) -> bool:
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    return ends[1] is not None and ends[0].weight is ends[1].weight


def _other_base(wrapped: Any, spec: ModelSpec) -> list[str]:
    """A note where the adapter's config names another base, or another revision of it, than the study."""
    config, source = wrapped.peft_config[wrapped.active_adapter], source_of(spec)
    named = str(config.base_model_name_or_path or "")
    if named and Path(named).name != Path(str(source)).name:
        return [f"the adapter {spec.adapter} was trained on {named}, here it is put on {source}"]
    revision = config.revision
    if revision and source.revision and revision != source.revision:
        return [f"the adapter {spec.adapter} was trained on revision {revision}, not {source.revision}"]
    return []


def saved_tensors(spec: ModelSpec, model: Any) -> dict[str, Tensor]:
    """The tensors of an adapter's file by the names that peft gives them.

    Some were saved by other means than peft's, with the adapter's name in every tensor's.

    Raises:
        ValueError: numbers that are not finite.
    """
    from peft.utils import load_peft_weights

    mapping = getattr(model, "_checkpoint_conversion_mapping", {})
    found = load_peft_weights(str(spec.adapter), device="cpu", key_mapping=mapping, **_revision(spec))
    spoilt = [name for name, value in found.items() if not bool(torch.isfinite(value).all())]
    if spoilt:
        raise ValueError(f"NaN or infinity in {', '.join(spoilt[:4])}")
    return {_WITH_NAME.sub("", name): value for name, value in found.items()}


def resize_for_adapter(model: Any, saved: Mapping[str, Tensor], spec: ModelSpec, notes: list[str]) -> None:
    """Gives the model as many embedding rows as the adapter saved, in place; the adapter then fills them.

    Raises:
        ValueError: only one end of an untied embedding was saved, or ends of different lengths.
    """
    ends = {"embedding": model.get_input_embeddings(), "unembedding": model.get_output_embeddings()}
    names = {id(module): path for path, module in model.named_modules()}
    rows = {what: _saved_rows(saved, names.get(id(end))) for what, end in ends.items() if end is not None}
    have = int(ends["embedding"].weight.shape[0])
    tied = ends["unembedding"] is not None and ends["unembedding"].weight is ends["embedding"].weight
    new = {count for count in rows.values() if count is not None and count != have}
    if not new:
        return
    if len(new) > 1 or (not tied and set(rows.values()) != new):
        given = ", ".join(f"{what}: {count or 'none'}" for what, count in rows.items())
        raise ValueError(
            f"it was trained with other tokens than the base's {have} and saved rows of only one end "
            f"({given}); merge it with the base that it was trained on, and give the merged model"
        )
    wanted = new.pop()
    model.resize_token_embeddings(wanted, mean_resizing=False)
    notes.append(f"the vocabulary has {wanted} rows instead of the base's {have}: {spec.adapter} brings them")


def _saved_rows(saved: Mapping[str, Tensor], path: str | None) -> int | None:
    """Rows of the matrix that was saved whole for a module; None where there is none."""
    if path is None:
        return None
    name = re.compile(re.escape(WRAPPED + path) + _SAVED_WHOLE)
    return next((int(value.shape[0]) for key, value in saved.items() if name.fullmatch(key)), None)


def attach_adapter(model: Any, spec: ModelSpec, saved: Mapping[str, Tensor], *, meta: bool = False) -> Any:
    """The `PeftModel` of a model and its adapter, every tensor of the adapter's in its place.

    Args:
        meta: the model is on the meta device.

    Raises:
        ValueError, RuntimeError, …: as peft does, or for tensors that are left over or lacking.
    """
    from peft import PeftModel
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

    wrapped = PeftModel.from_pretrained(
        model, str(spec.adapter), autocast_adapter_dtype=False, low_cpu_mem_usage=meta, **_revision(spec)
    )
    config: Any = wrapped.peft_config[wrapped.active_adapter]
    if not hasattr(wrapped.base_model, "merge_and_unload"):
        raise ValueError(f"{config.peft_type} is no change of weights and cannot be merged into them")
    _check_ties(model, wrapped)
    # once more, for what peft only warns of: it renames tensors of other versions before it places them
    found: Any = set_peft_model_state_dict(
        wrapped, dict(saved), wrapped.active_adapter, low_cpu_mem_usage=meta
    )
    own = re.compile(rf"\.{re.escape(wrapped.active_adapter)}(\.|$)")
    would_save = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    lacking = [name for name in found.missing_keys if own.search(name) and own.sub(r"\1", name) in would_save]
    left = sorted(name for name in found.unexpected_keys if not _said_twice(name, saved))
    if left or lacking:
        what = "tensors without a counterpart" if left else "tensors that the file lacks"
        names = left or lacking
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        raise ValueError(f"{what}: {', '.join(names[:4])}{more}")
    return wrapped


def _said_twice(name: str, saved: Mapping[str, Tensor]) -> bool:
    """Whether a left-over tensor is a module saved whole that the file has again under the name that counts.

    peft writes both where it saves embeddings by itself.
    """
    again = saved.get(name.replace(".modules_to_save", ""))
    return ".modules_to_save." in name and again is not None and torch.equal(saved[name], again)


@contextmanager
def _fitting(model: Any, spec: ModelSpec) -> Iterator[None]:
    """Turns what peft raises and warns of into one error."""
    adapter = str(spec.adapter)
    if isinstance(spec.adapter, Path) and not (spec.adapter / "adapter_config.json").is_file():
        raise ModelError(
            f"{adapter} is not an adapter folder.",
            expected="a folder with adapter_config.json and adapter_model.safetensors",
            given=listing(spec.adapter),
            next_step="name the folder that peft's save_pretrained wrote.",
        )
    if isinstance(spec.adapter, Path):
        check_adapter_folder(spec.adapter)
    try:
        with warnings.catch_warnings():
            for category, message in QUIET:
                warnings.filterwarnings("ignore", message=message, category=category)
            yield
    except ModelError:
        raise
    except Exception as error:  # peft builds whatever the adapter's config says, and fails in as many ways
        if out_of_memory(error):
            raise no_room(adapter, error) from error
        raise ModelError(
            f"The adapter {adapter} doesn't fit the base model.",
            expected=f"an adapter trained on this {type(model).__name__}, readable and finite",
            given=" ".join(str(error).split())[:400] or type(error).__name__,
            next_step="check which base adapter_config.json names, and that its files are complete.",
        ) from error


def _revision(spec: ModelSpec) -> dict[str, Any]:
    on_hub = not isinstance(spec.adapter, Path)
    return {"revision": spec.adapter_revision} if on_hub and spec.adapter_revision is not None else {}


def _check_ties(model: Any, wrapped: Any) -> None:
    """ValueError for an adapter on one end of a tied embedding: merged, it would be on both."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    base = wrapped.get_base_model()
    ends = base.get_input_embeddings(), base.get_output_embeddings()
    if getattr(model.config, "tie_word_embeddings", False) and any(
        isinstance(e, BaseTunerLayer) for e in ends
    ):
        raise ValueError("it changes the embedding or the unembedding alone, but the base ties the two")


def lora_factors(wrapped: Any, saved: Mapping[str, Tensor]) -> dict[str, LowRank]:
    """Parameter name in the base -> factors of its change.

    Scaling is peft's own, so that rsLoRA and patterns of ranks and alphas are in it. Left out, and told from
    the merged weights instead: embeddings, modules that were saved whole, and every kind whose merge is more
    than a sum (DoRA and other variants).

    Args:
        wrapped: the `PeftModel`, not merged yet. saved: the adapter's tensors, by their names in its file.
    """
    from peft.tuners.lora.layer import Linear

    found: dict[str, LowRank] = {}
    name = wrapped.active_adapter
    for path, module in wrapped.get_base_model().named_modules():
        if not isinstance(module, Linear) or name not in module.lora_A or name in module.lora_variant:
            continue
        a, b = (saved.get(f"{WRAPPED}{path}.lora_{side}.weight") for side in "AB")
        weight: Any = module.get_base_layer().weight
        if a is None or b is None:
            continue
        scale = float(module.scaling[name])
        left, right = b.float() * scale, a.float()
        factors = LowRank(right.T, left.T) if module.fan_in_fan_out else LowRank(left, right)
        if factors.shape == tuple(weight.shape):
            found[f"{path}.weight"] = factors
    return found
