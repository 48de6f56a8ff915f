"""Greedy generation against Hugging Face's own `generate`, with plain hooks on the whole model."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import patch_oracle
import pytest
import torch
from tiny_models import UNLISTED_NAMES, random_tokens, tiny

from engine.errors import SiteError
from engine.models.loading import LoadedModel, from_parts
from engine.models.sites import COMPONENTS, Site
from engine.passes.generate import generate, replace_at
from engine.passes.patch_engine import PatchEngine

pytestmark = pytest.mark.reference

FAMILIES = (
    *("qwen3", "llama", "gemma2", "gpt2", "gpt_neox", "mistral", "granite", "cohere"),
    *("mixtral", "ministral3", "starcoder2", "glm", "glm4", "nemotron", "stablelm", "olmoe", "gemma"),
    *("gptj", "opt", "bloom", "falcon 7B", "gpt_oss", "deepseek_v3", "llama4_text", "qwen3_next", "jamba"),
    *("lfm2", "mllama", "qwen2_5_vl", "granitemoehybrid", "olmo_hybrid", "lfm3", "bitnet", "codegen"),
    *UNLISTED_NAMES,
)
# Different lengths, also beyond a window of 6; the edited token inside, first, and last.
LENGTHS, POSITIONS = (9, 14, 5, 12, 14, 7), (6, 10, 0, 11, 10, 4)
NEW = 12
TIE = 1e-4
"""Two tokens whose logits are this close may swap: sums run in another order."""


def prompts() -> list[list[int]]:
    return [random_tokens(1, length, seed=i)[0].tolist() for i, length in enumerate(LENGTHS)]


def sites(lm: LoadedModel) -> list[Site]:
    found = []
    for component in COMPONENTS:
        site = Site(component, 1, (1, 3) if component.startswith("head") else None)
        try:
            found.append(site.check(lm.taps))
        except SiteError:
            own = lm.taps.layers[1]
            assert (component == "head_out" and own.attn_post_norm) or not own.has_heads
    return found


def expected(lm: LoadedModel, ids: list[int], patch: Any, stop: list[int]) -> tuple[list[int], list[float]]:
    """Tokens of Hugging Face's generation up to the stop, and how far the best stood from the second.

    Without a cache every step runs the whole sequence, so the hook finds the token at the same index.
    """
    with ExitStack() as stack:
        if patch is not None:
            stack.enter_context(patch_oracle.patched(lm.taps, *patch))
        out = lm.model.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            use_cache=False,
            max_new_tokens=NEW,
            eos_token_id=stop,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
    made = out.sequences[0, len(ids) :].tolist()
    gaps = [float(top[0] - top[1]) for top in (row[0].float().topk(2).values for row in out.logits)]
    cut = next((i for i, token in enumerate(made) if token in stop), len(made))
    return made[:cut], gaps


def agrees(found: list[int], wanted: list[int], gaps: list[float]) -> bool:
    """Whether the tokens are the same; False after a near-tie, from which on they may part."""
    if found == wanted:
        return True
    apart = next(
        (i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b),
        min(len(found), len(wanted)),
    )
    assert gaps[apart] < TIE, f"parted at token {apart}, where the gap is {gaps[apart]:.2g}"
    return False


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_hugging_face(family: str) -> None:
    lm = from_parts(tiny(family))
    ids = prompts()
    engine = PatchEngine(lm, ids, POSITIONS)
    chosen = sites(lm)
    vectors = [engine.activations(site) for site in chosen]
    noise = torch.Generator().manual_seed(3)
    swapped = [v.roll(1, 0) + 40 * v.std() * torch.randn(v.shape, generator=noise) for v in vectors]
    edits = [None, *(replace_at(s, POSITIONS, v) for s, v in zip(chosen, swapped, strict=True))]
    free = generate(lm, ids, max_new_tokens=NEW, stop=[])
    stop = [free.tokens[0][0][4], free.tokens[0][3][6]]
    made = generate(lm, ids, edits, max_new_tokens=NEW, stop=stop, batch_tokens=400)
    ties = changed = ended = 0
    for number in range(len(edits)):
        for prompt, tokens in enumerate(ids):
            vector = swapped[number - 1][prompt][None]
            patch = None if number == 0 else (chosen[number - 1], POSITIONS[prompt], vector)
            wanted, gaps = expected(lm, tokens, patch, stop)
            ties += not agrees(made.tokens[number][prompt], wanted, gaps)
            changed += number > 0 and wanted != made.tokens[0][prompt]
            ended += made.ended[number][prompt]
    assert ties <= 1, "more near-ties than random logits have"
    assert changed >= 4, "many edits must change the text, or nothing is tested"
    assert ended > 0, "some rows must end early, or compaction is not tested"
