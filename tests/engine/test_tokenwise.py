"""Token by token against plain Hugging Face passes, in many families, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from memory_lab import Letters, MemoryLab
from moved_pair import pair
from pydantic import ValidationError
from tiny_models import VARIED, random_tokens

from engine.errors import PatchError
from engine.models.loading import LoadedModel
from engine.tokenwise.run import run
from engine.tokenwise.spec import Tokenwise


def lab_of(models: dict[str, LoadedModel], lengths: tuple[int, ...] = (9, 5)) -> MemoryLab:
    vocab = next(iter(models.values())).taps.vocab
    ids = [random_tokens(1, n, seed=n, vocab=vocab)[0].tolist() for n in lengths]
    for lm in models.values():
        lm.tokenizer = Letters()
    prompts = pl.DataFrame({"id": [f"p{i}" for i in range(len(lengths))], "text": "x"})
    at = {name: [n - 1 for n in lengths] for name in models}
    return MemoryLab(models, dict.fromkeys(models, ids), at, prompts)


@pytest.mark.parametrize("family", VARIED)
def test_numbers_are_those_of_plain_passes(family: str) -> None:
    base, tuned = pair(family)
    lab = lab_of({"base": base, "tuned": tuned})
    found = run(Tokenwise(target="tuned", source="base", prompt="p0", last=3), lab)
    ids = torch.tensor([lab.ids["base"][0]])
    outputs: dict[str, Any] = {}
    with torch.no_grad():
        for name, lm in (("base", base), ("tuned", tuned)):
            outputs[name] = lm.model(input_ids=ids, use_cache=False, output_hidden_states=True)
    p, q = (outputs[name].logits[0].double().log_softmax(-1) for name in ("tuned", "base"))
    assert np.allclose(found.table["kl"], (p.exp() * (p - q)).sum(-1), atol=1e-5)
    for name, want in (("target", p), ("source", q)):
        own = want[:-1].gather(1, ids[0, 1:, None])[:, 0]
        assert found.table[f"log_p_{name}"][0] is None
        assert np.allclose(found.table[f"log_p_{name}"][1:], own, atol=1e-4)
        assert found.table[f"next_{name}"].to_list() == [f"t{i}" for i in want.argmax(-1)]
        assert np.allclose(found.table[f"p_{name}"], want.max(-1).values.exp(), atol=1e-5)
    # the lens: transformers' own states (the last of them is normed already) through its norm and head
    lens = found.tables["lens"].filter(pl.col("model") == "tuned")
    assert lens["token"].unique().sort().to_list() == [6, 7, 8]
    states = outputs["tuned"].hidden_states
    for state in range(1, len(states) - 1):
        rows = lens.filter(state=state).sort("token")
        with torch.no_grad():
            logits = tuned.taps.logits(tuned.taps.final_norm(states[state][0, 6:])).double()
        want = logits.log_softmax(-1)
        assert rows["token_id"].to_list() == want.argmax(-1).tolist()
        assert np.allclose(rows["p"], want.max(-1).values.exp(), atol=1e-5)
    last = lens.filter(state=len(states) - 1).sort("token")
    assert np.allclose(last["p_final"], p.max(-1).values.exp()[6:], atol=1e-5)
    apart = found.tables["states"].filter(state=1)["relative"]
    with torch.no_grad():
        one, other = (outputs[n].hidden_states[1][0].double() for n in ("tuned", "base"))
    assert np.allclose(apart, (one - other).norm(dim=-1) / other.norm(dim=-1), atol=1e-5)
    assert apart.max() == 0, "block 0 was not changed"
    assert found.tables["states"].filter(state=2)["relative"].min() > 0


def test_a_model_beside_itself_differs_nowhere() -> None:
    base, _ = pair("llama")
    lab = lab_of({"base": base, "copy": base})
    found = run(Tokenwise(target="copy", source="base", prompt="p1"), lab)
    assert found.table["kl"].max() == 0
    assert found.tables["states"]["relative"].max() == 0
    assert found.summary["tokens"] == 5


def test_a_reply_that_does_not_fit_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    base, tuned = pair("qwen3")
    lab = lab_of({"base": base, "tuned": tuned})
    monkeypatch.setattr("engine.tokenwise.run.read", lambda *_: pytest.fail("it was run"))
    longest = min(base.max_length, 512)
    room = longest - len(lab.ids["base"][0])
    with pytest.raises(PatchError, match="longer than the model's positions reach"):
        run(Tokenwise(target="tuned", source="base", prompt="p0", reply=room + 2), lab)


def test_a_typed_prompt_and_what_either_model_says_to_it() -> None:
    """The same numbers as of a stored prompt, and the likeliest continuation token by token."""
    base, tuned = pair("qwen3")
    lab = lab_of({"base": base, "tuned": tuned})
    typed = " ".join(str(i) for i in lab.ids["base"][0])
    stored = run(Tokenwise(target="tuned", source="base", prompt="p0"), lab)
    found = run(Tokenwise(target="tuned", source="base", typed=typed, reply=4), lab)
    assert found.table.equals(stored.table)
    assert "replies" not in stored.tables
    replies = found.tables["replies"]
    assert replies["model"].to_list() == ["tuned", "base"]
    ids = list(lab.ids["base"][0])
    for lm, row in zip((tuned, base), replies.iter_rows(named=True), strict=True):
        said: list[int] = []
        for _ in range(4):
            with torch.no_grad():
                logits = lm.model(input_ids=torch.tensor([ids + said]), use_cache=False).logits[0, -1]
            said.append(int(logits.argmax()))
        assert row["text"] == f"t{said[0]}", "the fake tokenizer names the first token"
        assert (row["tokens"], row["ended"]) == (4, False)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({}, "either 'prompt'"),
        ({"prompt": "p0", "typed": "x"}, "either 'prompt'"),
        ({"prompt": "p0", "raw": True}, "of a typed prompt"),
        ({"prompt": "p0", "system": "s"}, "of a typed prompt"),
        ({"typed": "x", "raw": True, "system": "s"}, "no system message"),
    ],
)
def test_a_prompt_is_stored_or_typed(asked: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        Tokenwise(target="tuned", source="base", **asked)


def test_what_cannot_be_compared_is_refused() -> None:
    base, tuned = pair("llama")
    lab = lab_of({"base": base, "tuned": tuned})
    with pytest.raises(PatchError, match="no such prompt"):
        run(Tokenwise(target="tuned", source="base", prompt="p9"), lab)
    lab.ids["tuned"] = [[1, 2, 3], [1, 2]]
    with pytest.raises(PatchError, match="different tokens"):
        run(Tokenwise(target="tuned", source="base", prompt="p0"), lab)
