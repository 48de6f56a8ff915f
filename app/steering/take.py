"""A steering vector to take away: safetensors, a control vector for llama.cpp, lines for other tools."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import streamlit as st
from numpy.typing import NDArray
from safetensors.numpy import save

from app import screen
from app.frame.opened import Opened
from app.live.jobs import JobResult
from engine.errors import AnalysisError

__all__ = ["Vector", "control_vector", "lines", "safetensors_bytes", "show", "vector_of"]

TENSOR = "vector"
_HOOKS = {"resid_pre": "hook_resid_pre", "resid_post": "hook_resid_post", "attn_out": "hook_attn_out"}
_HOOKS |= {"mlp_out": "hook_mlp_out"}


@dataclass(frozen=True)
class Vector:
    """What a steering run adds at its chosen α.

    Attributes:
        values: (d,) α · m · v; at α = 1 where no α stayed within the budget. unit: (d,) v.
        alpha: signed. norm: m, the site's mean norm over train. chosen: whether α is the run's choice.
        condition: of the run. family: the target's model type, such as "llama".
    """

    values: NDArray[np.float32]
    unit: NDArray[np.float32]
    alpha: float
    norm: float
    chosen: bool
    condition: Mapping[str, Any]
    family: str

    @property
    def name(self) -> str:
        """Of its files."""
        said = self.condition
        return f"steering-{said['target']}-{said['component']}-{said['layer']}"


def vector_of(opened: Opened, result: JobResult) -> Vector | None:
    """The vector of a run; None of one that was stored before vectors were."""
    table = result.tables.get(TENSOR)
    if table is None:
        return None
    unit = table["v"].to_numpy().astype(np.float32)
    chosen, norm = result.summary["chosen"], float(result.summary["norm"])
    alpha = 1.0 if chosen is None else float(chosen)
    family = str(opened.store.model_info(result.condition["target"]).get("family", ""))
    return Vector(
        np.float32(alpha * norm) * unit, unit, alpha, norm, chosen is not None, result.condition, family
    )


def safetensors_bytes(vector: Vector) -> bytes:
    """`vector` (α · m · v) and `unit` (v), with what they belong to as metadata."""
    said = vector.condition
    facts = {key: str(said[key]) for key in ("target", "component", "layer", "position", "direction")}
    facts |= {
        "alpha": repr(vector.alpha),
        "mean_norm": repr(vector.norm),
        "experiment": json.dumps(dict(said)),
    }
    return bytes(save({"vector": vector.values, "unit": vector.unit}, metadata=facts))


def control_vector(vector: Vector) -> bytes:
    """A GGUF control vector as llama.cpp and repeng read it: `direction.N` is added behind block N.

    Raises:
        AnalysisError: a site or block that the format has no place for, or the package gguf isn't there.
    """
    place = _behind(vector)
    if place is None:
        raise AnalysisError(
            "A control vector has no place for this site.",
            expected="the residual stream behind block 1 or a later one",
            given=f"{vector.condition['component']} of block {vector.condition['layer']}",
        )
    try:
        import gguf
    except ImportError:
        raise AnalysisError(
            "Control vectors are written with the package gguf, which is not installed.",
            next_step="pip install 'patchbay[real]', or take the safetensors file.",
        ) from None
    with TemporaryDirectory(prefix="patchbay-vector-") as folder:
        file = Path(folder) / "vector.gguf"
        writer = gguf.GGUFWriter(file, "controlvector")
        if vector.family:
            writer.add_string("controlvector.model_hint", vector.family)
        writer.add_uint32("controlvector.layer_count", 1)
        writer.add_tensor(f"direction.{place}", vector.values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return file.read_bytes()


def _behind(vector: Vector) -> int | None:
    """The block behind which the vector is added, if the format can say it."""
    shift = {"resid_post": 0, "resid_pre": -1}.get(str(vector.condition["component"]))
    place = None if shift is None else int(vector.condition["layer"]) + shift
    return place if place is not None and place >= 1 else None


def lines(vector: Vector) -> str:
    """Python that adds the vector with TransformerLens."""
    hook = _HOOKS.get(str(vector.condition["component"]))
    if hook is None:
        return ""
    return (
        "from safetensors.torch import load_file\n\n"
        f'v = load_file("{vector.name}.safetensors")["vector"]\n'
        f'name = "blocks.{vector.condition["layer"]}.{hook}"  # of a HookedTransformer\n'
        "model.add_hook(name, lambda activation, hook: activation + v.to(activation))\n"
    )


def show(opened: Opened, result: JobResult) -> None:
    """Files of the vector, and how to add it elsewhere."""
    vector = vector_of(opened, result)
    if vector is None:
        return
    with screen.popover("Take the vector", icon=":material/download:", key="take-vector"):
        at = f"α = {vector.alpha:g}" + ("" if vector.chosen else ": no α stayed within the budget")
        screen.caption(
            f"α · m · v at {at}, m = {vector.norm:.4g}. The run changed one token of each prompt; "
            "other tools mostly add it at every token."
        )
        _file("safetensors", vector, "safetensors", lambda: safetensors_bytes(vector))
        if _behind(vector) is not None:
            _file("Control vector (GGUF)", vector, "gguf", lambda: control_vector(vector))
        if code := lines(vector):
            st.code(code, language="python")


def _file(text: str, vector: Vector, suffix: str, make: Any) -> None:
    screen.download_button(
        text,
        make,
        file_name=f"{vector.name}.{suffix}",
        mime="application/octet-stream",
        key=f"vector-{suffix}",
        on_click="ignore",
    )
