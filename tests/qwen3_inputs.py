"""Inputs of subspace scores from a real small Qwen3 with grouped-query attention, by Hugging Face alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from subspace_inputs import Arrays
from tiny_models import random_tokens, tiny

Array = NDArray[np.float64]

FIT, EVALUATION = 14, 17
CHANGED = (1, 2)
SIZES = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 5, "head_dim": 16}


class Qwen3Arrays(Arrays):
    """A Qwen3 of 5 blocks, 4 query and 2 key/value heads, d = 48, and a rank-3 adapter on two of its blocks.

    Personas are two tokens in front of a prompt; everything is read at the last token, in float64 as far as
    the model's norms allow.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__(
            layers=5,
            d=48,
            n_heads=4,
            n_kv_heads=2,
            head_dim=16,
            d_ff=80,
            vocabulary=101,
            fit=FIT,
            evaluation=EVALUATION,
            rank=3,
            changed=CHANGED,
            seed=seed,
        )
        self.model = tiny("qwen3", seed=seed, attn_implementation="eager", **SIZES).double()
        for layer, tensors in self.delta.items():
            for name, (left, right) in tensors.items():
                size = np.linalg.norm(left @ right) / self._weight(layer, name).norm()
                self.delta[layer][name] = (0.5 * left / float(size), right)
        prompts = [random_tokens(1, 6 + i % 5, seed=i)[0].tolist() for i in range(FIT + EVALUATION)]
        personas = {"clean": [], "positive": [5, 17], "negative": [5, 23]}
        for name, persona in personas.items():
            runs = [self._run(self.model, [*persona, *prompt]) for prompt in prompts[:FIT]]
            self._keep(name, runs)
        self.tokens = tuple(max(map(len, prompts[:FIT])) + 2 for _ in range(2))  # type: ignore[assignment]
        for name, chosen in (("label_fit", prompts[:FIT]), ("label", prompts[FIT:])):
            self._label(name, chosen)
        self._weights()

    def _weight(self, layer: int, name: str, model: Any = None) -> torch.Tensor:
        block = (self.model if model is None else model).model.layers[layer]
        holder = block.self_attn if name[0] in "qkvo" else block.mlp
        weight: torch.Tensor = getattr(holder, name).weight
        return weight

    def _run(self, model: Any, ids: Sequence[int]) -> dict[str, list[Array]]:
        """Per block: stream leaving it, what its MLP's projections receive, last token's mean attention."""
        found: dict[str, list[Array]] = {"stream": [], "mlp": []}
        hooks = []
        for block in model.model.layers:

            def after(_module: Any, _args: Any, output: Any) -> None:
                stream = output[0] if isinstance(output, tuple) else output
                found["stream"].append(stream.reshape(-1, self.d).numpy())

            def before(_module: Any, args: Any) -> None:
                found["mlp"].append(args[0].reshape(-1, self.d).numpy())

            hooks += [
                block.register_forward_hook(after),
                block.mlp.up_proj.register_forward_pre_hook(before),
            ]
        with torch.no_grad():
            output = model(input_ids=torch.tensor([ids]), output_attentions=True)
        for hook in hooks:
            hook.remove()
        found["attention"] = [layer[0, :, -1].mean(dim=0).numpy() for layer in output.attentions]
        return found

    def _keep(self, name: str, runs: list[dict[str, list[Array]]]) -> None:
        layers = range(self.layers)
        self.held[name] = [np.array([run["stream"][i][-1] for run in runs]) for i in layers]
        self.held[f"{name}_mlp_input"] = [np.array([run["mlp"][i][-1] for run in runs]) for i in layers]
        if name != "clean":
            longest = max(len(run["attention"][0]) for run in runs)
            for what, item in (("tokens", "stream"), ("attention", "attention")):
                self.held[f"{name}_{what}"] = [
                    np.array([_right_aligned(run[item][i], longest) for run in runs]) for i in layers
                ]

    def _label(self, name: str, prompts: list[list[int]]) -> None:
        sides = []
        for alpha in (1.0, -1.0):
            model = copy.deepcopy(self.model)
            for layer, tensors in self.delta.items():
                for tensor, (left, right) in tensors.items():
                    self._weight(layer, tensor, model).add_(alpha * torch.from_numpy(left @ right))
            runs = [self._run(model, ids)["stream"] for ids in prompts]
            sides.append([np.array([run[i][-1] for run in runs]) for i in range(self.layers)])
        self.held[name] = [plus - minus for plus, minus in zip(*sides, strict=True)]

    def _weights(self) -> None:
        blocks = list(self.model.model.layers)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj", "down_proj"):
            self.held[name] = [self._weight(i, name).numpy() for i in range(self.layers)]
        norms = {
            "attn_norm": [block.input_layernorm for block in blocks],
            "mlp_norm": [block.post_attention_layernorm for block in blocks],
            "q_norm": [block.self_attn.q_norm for block in blocks],
            "k_norm": [block.self_attn.k_norm for block in blocks],
            "final_norm": [self.model.model.norm] * self.layers,
        }
        for name, modules in norms.items():
            self.held[name] = [module.weight.numpy() for module in modules]
        self.held["unembedding"] = [self.model.lm_head.weight.numpy()] * self.layers
        self.held["start_embedding"] = [self.model.model.embed_tokens.weight[5].numpy()] * self.layers


def _right_aligned(values: Array, longest: int) -> Array:
    """Zeros in front."""
    return np.concatenate([np.zeros((longest - len(values), *values.shape[1:])), values])
