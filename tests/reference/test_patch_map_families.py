"""Each cell of a patch map against plain Hugging Face hooks: every family, all sites, both directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import patch_oracle
import polars as pl
import pytest
import torch
from memory_lab import Letters, MemoryLab
from tiny_models import FAMILY_NAMES, LATER_NAMES, LAYERS, UNLISTED_NAMES, random_tokens, tiny

from engine.models.loading import LoadedModel, from_parts
from engine.models.sites import Site, first_tensor
from engine.patch_map.run import run
from engine.patch_map.spec import MAPPED, PatchMap

pytestmark = pytest.mark.reference

LENGTHS = (7, 9)
TOLERANCE = 1e-4


def held(lm: LoadedModel, ids: Sequence[int]) -> dict[tuple[str, int], torch.Tensor]:
    """What plain hooks see of one plain pass, (tokens, d)."""
    seen: dict[tuple[str, int], torch.Tensor] = {}
    handles: list[Any] = []

    def before(key: tuple[str, int]) -> Any:
        def hook(_module: Any, args: Any, kwargs: Any) -> None:
            seen[key] = (args[0] if args else kwargs["hidden_states"])[0].clone()

        return hook

    def after(key: tuple[str, int], scale: float) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            seen[key] = first_tensor(output)[0].clone() * scale

        return hook

    for layer in lm.taps.layers:
        handles.append(
            layer.block.register_forward_pre_hook(before(("resid_pre", layer.index)), with_kwargs=True)
        )
        for site, module, scale in (
            ("resid_post", layer.block, 1.0),
            ("attn_out", layer.attn_contribution, layer.multiplier),
            ("mlp_out", layer.mlp_contribution, layer.multiplier),
        ):
            handles.append(module.register_forward_hook(after((site, layer.index), scale)))
    with torch.no_grad():
        lm.model(input_ids=torch.tensor([list(ids)]), use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def plain(
    lm: LoadedModel, ids: Sequence[int], site: Site, tokens: Sequence[int], vectors: torch.Tensor
) -> torch.Tensor:
    """Log-probabilities with one of the tokens patched each, (tokens, V)."""
    rows = torch.arange(len(tokens))
    with patch_oracle.patched(lm.taps, site, torch.tensor(tokens), vectors, rows):
        return patch_oracle.log_probs(lm.model, ids, -1, batch=len(tokens))


@pytest.mark.parametrize("family", [*FAMILY_NAMES, *LATER_NAMES, *UNLISTED_NAMES])
def test_cells_are_those_of_plain_hooks(family: str) -> None:
    models = {name: from_parts(tiny(family, seed=seed)) for seed, name in enumerate(("base", "tuned"))}
    ids = [random_tokens(1, n, seed=n)[0].tolist() for n in LENGTHS]
    for lm in models.values():
        lm.tokenizer = Letters()
    prompts = pl.DataFrame({"id": ["p0", "p1"], "text": ["a", "b"]})
    lab = MemoryLab(
        models, dict.fromkeys(models, ids), {m: [n - 1 for n in LENGTHS] for m in models}, prompts
    )
    for prompt, donor, target, source in (
        (0, 1, "base", "base"),
        (1, 0, "base", "base"),
        (0, 0, "tuned", "base"),
    ):
        spec = PatchMap(
            target=target, source=source, prompt=f"p{prompt}", donor=f"p{donor}", sites=MAPPED, nulls=0
        )
        found = run(spec, lab)
        assert found.table.height == len(MAPPED) * LAYERS * 7
        lm, given = models[target], held(models[source], ids[donor])
        unpatched = patch_oracle.log_probs(lm.model, ids[prompt], -1)[0]
        first, second = found.summary["answer_ids"]
        for (site, layer), cells in found.table.group_by("site", "layer"):
            tokens, donors = cells["token"].to_list(), cells["donor_token"].to_list()
            assert sorted(tokens) == list(range(len(ids[prompt]) - 7, len(ids[prompt])))
            assert all(
                len(ids[prompt]) - t == len(ids[donor]) - d
                for t, d in cells.select("token", "donor_token").rows()
            )
            want = plain(lm, ids[prompt], Site(site, layer), tokens, given[site, layer][donors])
            got = cells.select("kl", "log_p_change", "logit_difference").to_numpy()
            expected = [
                patch_oracle.kl(want, unpatched),
                want[:, first] - unpatched[first],
                want[:, first] - want[:, second],
            ]
            expected = torch.stack(expected, -1).numpy()
            np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE, err_msg=f"{site} {layer}")
