"""Runs two models on one prompt and reads every token: KL, log p of the tokens that follow, logit lens.

The logit lens (nostalgebraist 2020) is the model's own final norm and unembedding on an earlier state of the
residual stream. KL(target || source) is of the next-token distributions behind the same tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from engine.errors import JobError, PatchError
from engine.lab.experiment import ExperimentResult, Lab
from engine.lab.noise import kl_floor, measured
from engine.lab.rows import row_of
from engine.models.loading import LoadedModel
from engine.models.sites import record
from engine.passes.capture import forward_hidden
from engine.passes.decoding import Decoder
from engine.passes.generate import generate
from engine.patching.tables import token_text
from engine.tokenwise.spec import Tokenwise

ROWS = 32
"""Rows that are unembedded at once."""
MOST_BYTES = 2 << 30
"""Of one model's log-probabilities of a whole prompt."""


@dataclass(frozen=True)
class Reading:
    """What one model says of a prompt.

    Attributes:
        log_probs: (tokens, V) float32, of the token that follows each one.
        states: (L + 1, tokens, d) float32, the residual stream. top: of each token the likeliest next ones.
        lens: rows of the logit lens.
    """

    log_probs: Float[Tensor, "t v"]
    states: Float[np.ndarray, "s t d"]
    lens: list[dict[str, Any]]


def run(spec: Tokenwise, lab: Lab) -> ExperimentResult:
    """Runs both models on the prompt.

    Returns:
        Tables: "table", a row a token: `kl` in nats, `log_p_target` and `log_p_source` of the token itself
        behind those before it (null for the first), the likeliest next token of either with its probability.
        "lens": model, token, state, the likeliest token there and `p_final`, the probability of the model's
        own next token. "states": state, token, `relative` = ‖h_target − h_source‖ ÷ ‖h_source‖, empty where
        widths or depths differ. "replies", where they are asked for: model, text, how many `tokens`, and
        whether it `ended` by itself.

    Raises:
        PatchError: no such prompt; models whose tokens of it differ; a prompt that is too long for memory, or
            with its reply for the context, before anything is run.
        PromptsError: a typed prompt that can't be rendered, or doesn't fit into the context.
        JobError: cancelled between the models.
    """
    ids = _ids_of_both(spec, lab)
    _check_room(spec, lab, ids)
    found: dict[str, Reading] = {}
    replies: list[dict[str, Any]] = []
    for number, model in enumerate(dict.fromkeys(spec.models())):
        if lab.should_stop():
            raise JobError("The experiment was cancelled.", next_step="Run it again.")
        lab.report(done=number, total=2, message=f"{len(ids)} tokens through {model}")
        found[model] = read(lab.model(model), ids, spec, model, lab.tokenizer(model))
        if spec.reply:
            replies.append({"model": model, **_reply(lab, model, ids, spec.reply)})
    target, source = found[spec.target], found[spec.source]
    if target.log_probs.shape != source.log_probs.shape:
        raise PatchError(
            "The two models have vocabularies of different size.",
            expected="the same next tokens in both",
            given=f"{target.log_probs.shape[1]} and {source.log_probs.shape[1]}",
        )
    rounding = measured(lab, spec.models())
    table = _tokens(spec, ids, target, source, lab.tokenizer(spec.target))
    worst = int(table["kl"].arg_max() or 0)
    summary = {
        "prompt": spec.named,
        "tokens": len(ids),
        "worst": worst,
        "kl": float(table["kl"][worst]),
        "floor": kl_floor(rounding),
        "rounding": rounding,
        "notes": list(lab.notes),
    }
    tables = {
        "table": table,
        "lens": pl.DataFrame([*target.lens, *([] if source is target else source.lens)]),
        "states": _states(target.states, source.states),
    }
    if replies:
        tables["replies"] = pl.DataFrame(replies)
    return ExperimentResult(summary, tables)


def _ids_of_both(spec: Tokenwise, lab: Lab) -> list[int]:
    """Token ids of the prompt; PatchError where the models read others."""
    one, other = (_ids(spec, lab, model) for model in spec.models())
    if list(one) != list(other):
        raise PatchError(
            "The two models read this prompt as different tokens.",
            expected="the same token ids in both",
            given=f"{len(one)} tokens of {spec.target}, {len(other)} of {spec.source}",
            next_step="choose two models of one tokenizer.",
        )
    return one


def _ids(spec: Tokenwise, lab: Lab, model: str) -> list[int]:
    if spec.typed:
        return lab.typed(model, spec.typed, system=spec.system, raw=spec.raw)
    return lab.token_ids(model, [row_of(lab.prompts, spec.prompt)])[0]


def _check_room(spec: Tokenwise, lab: Lab, ids: Sequence[int]) -> None:
    """PatchError for a prompt that leaves no room for the reply, in either model."""
    for model in dict.fromkeys(spec.models()) if spec.reply else ():
        Decoder(lab.model(model), [ids], (None,), spec.reply - 1)


def _reply(lab: Lab, model: str, ids: Sequence[int], most: int) -> dict[str, Any]:
    found = generate(lab.model(model), [ids], max_new_tokens=most, should_stop=lab.should_stop)
    tokens = found.tokens[0][0]
    text = lab.tokenizer(model).decode(tokens, skip_special_tokens=True)
    return {"text": str(text), "tokens": len(tokens), "ended": found.ended[0][0]}


def read(lm: LoadedModel, ids: Sequence[int], spec: Tokenwise, name: str, tokenizer: Any) -> Reading:
    """One forward pass, and every state through the final norm and the unembedding."""
    size = 4 * len(ids) * lm.taps.vocab
    if size > MOST_BYTES:
        raise PatchError(
            "The prompt is too long to keep what is said behind each of its tokens.",
            expected=f"at most {MOST_BYTES // (4 * lm.taps.vocab)} tokens with this vocabulary",
            given=len(ids),
            next_step="choose a shorter prompt.",
        )
    with record(lm.taps, ("resid",)) as seen:
        forward_hidden(lm, [ids])
    states = [seen["resid", state][0] for state in range(lm.taps.n_layers + 1)]
    with torch.inference_mode():
        log_probs = torch.cat(list(_unembedded(lm, states[-1])))
        final = log_probs.argmax(dim=-1)
        first = max(0, len(ids) - spec.last)
        lens = []
        for number, state in enumerate(states):
            said = torch.cat(list(_unembedded(lm, state[first:])))
            lens += _lens(said, final[first:], (name, number, first), tokenizer)
        kept = np.stack([state.float().cpu().numpy() for state in states])
    return Reading(log_probs, kept, lens)


def _unembedded(lm: LoadedModel, state: Tensor) -> Iterator[Tensor]:
    """Log-probabilities (rows, V), float32 on the CPU, of the next token behind each row of a state."""
    for part in state.split(ROWS):
        normed = lm.taps.final_norm(part)
        logits = lm.taps.logits(normed.to(lm.taps.unembedding.weight.device))
        yield logits.float().log_softmax(dim=-1).cpu()


def _lens(said: Tensor, final: Tensor, place: tuple[str, int, int], tokenizer: Any) -> list[dict[str, Any]]:
    name, state, first = place
    best, token = said.max(dim=-1)
    own = said.gather(1, final[:, None])[:, 0]
    return [
        {
            "model": name,
            "token": first + row,
            "state": state,
            "token_id": int(token[row]),
            "text": token_text(tokenizer, int(token[row])),
            "p": float(best[row].exp()),
            "p_final": float(own[row].exp()),
        }
        for row in range(len(final))
    ]


def _tokens(
    spec: Tokenwise, ids: Sequence[int], target: Reading, source: Reading, tokenizer: Any
) -> pl.DataFrame:
    p, q = target.log_probs, source.log_probs
    rows = ((a.double(), b.double()) for a, b in zip(p, q, strict=True))
    kl = [float((a.exp() * (a - b)).sum()) for a, b in rows]
    columns: dict[str, Any] = {
        "token": range(len(ids)),
        "token_id": list(ids),
        "text": [token_text(tokenizer, int(i)) for i in ids],
        "kl": np.maximum(kl, 0.0),
    }
    index = torch.as_tensor(ids[1:], dtype=torch.long)[:, None]
    for side, found in (("target", p), ("source", q)):
        own = found[:-1].gather(1, index)[:, 0].tolist()
        columns[f"log_p_{side}"] = [None, *own]
        best, likeliest = found.topk(min(spec.top, found.shape[1]), dim=-1)
        columns[f"next_{side}"] = [token_text(tokenizer, int(i)) for i in likeliest[:, 0]]
        columns[f"next_id_{side}"] = likeliest[:, 0].tolist()
        columns[f"p_{side}"] = best[:, 0].exp().tolist()
        columns[f"top_{side}"] = [[token_text(tokenizer, int(i)) for i in row] for row in likeliest]
        columns[f"top_p_{side}"] = best.exp().tolist()
    return pl.DataFrame(columns)


def _states(target: Float[np.ndarray, "s t d"], source: Float[np.ndarray, "s t e"]) -> pl.DataFrame:
    schema = {"state": pl.Int64, "token": pl.Int64, "relative": pl.Float64}
    if target.shape != source.shape:
        return pl.DataFrame(schema=schema)
    apart = np.linalg.norm(target.astype(np.float64) - source, axis=-1)
    size = np.linalg.norm(source.astype(np.float64), axis=-1)
    relative = np.divide(apart, size, out=np.zeros_like(apart), where=size > 0)
    states, tokens = np.indices(relative.shape)
    return pl.DataFrame(
        {"state": states.ravel(), "token": tokens.ravel(), "relative": relative.ravel()}, schema=schema
    )
