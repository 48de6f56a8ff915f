"""Behaviour against plain forward passes, under interventions, and on the demo's real models."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from behaviour_demo import demo_lab
from memory_lab import MemoryLab
from scipy import special
from tiny_models import tiny
from tiny_tokenizers import chatml, llama3

from engine.behaviour.numbers import difference
from engine.behaviour.spec import Behaviour, Correction, Intervention, Wording
from engine.errors import PatchError
from engine.heads.map_spec import HeadMap
from engine.kinds import experiment_from_json
from engine.lab.experiment import resampling_groups
from engine.models.loading import LoadedModel, from_parts
from engine.patching.mapped_spec import MappedPatch
from engine.patching.spec import Condition

TOLERANCE = 1e-5
"""float32: cached, batched runs sum in another order than single passes."""
LAST = 2


def prompts_table() -> pl.DataFrame:
    """Six pairs in two languages: problems with choices, and claims."""
    said = []
    for i in range(12):
        problem = {"answer": str(i + 7), "choices": [str(i + 7), str(i + 8), str(i + 17)], "label": None}
        texts = {"en": f"Tom has {i} apples and buys 7 more.", "zh": f"小明有{i}个苹果。"}
        for language, text in texts.items():
            yes, no = {"en": ("Yes", "No"), "zh": ("是的", "不")}[language]
            claim = {"answer": no, "choices": [yes, no], "label": "wrong"}
            row = {"id": f"p{i}-{language}", "pair_id": f"p{i}", "language": language, "text": text}
            row |= {"split": ("train", "validation")[i % 2], "category": ("sum", "claim")[i // 6]}
            said.append(row | (claim if i >= 6 else problem))
    return pl.DataFrame(said)


@pytest.fixture(scope="module")
def lab() -> MemoryLab:
    qwen, llama = chatml(), llama3()
    base = tiny("qwen3", seed=3, vocab_size=len(qwen))
    tuned = copy.deepcopy(base)
    weight = tuned.model.layers[1].mlp.down_proj.weight
    with torch.no_grad():
        weight.add_(0.5 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    other = tiny("llama", seed=5, vocab_size=len(llama))
    models = {
        "base": from_parts(base, qwen, "base"),
        "tuned": from_parts(tuned, qwen, "tuned"),
        "other": from_parts(other, llama, "other"),
    }
    table = prompts_table()
    ids = {name: [m.tokenizer(t)["input_ids"] for t in table["text"]] for name, m in models.items()}
    return MemoryLab(models, ids, {n: [len(i) - 1 for i in own] for n, own in ids.items()}, table)


def total(lm: LoadedModel, ids: list[int], text: str) -> np.ndarray:
    """Log-probabilities of the text's tokens after the prompt, by one plain forward pass."""
    more = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = lm.model(input_ids=torch.tensor([[*ids, *more]]), use_cache=False).logits[0]
    log_probs = logits.double().log_softmax(-1)[len(ids) - 1 : -1]
    return log_probs.gather(-1, torch.tensor(more)[:, None])[:, 0].numpy()


@pytest.mark.parametrize("model", ["tuned", "other"])
def test_figures_are_those_of_plain_forward_passes(lab: MemoryLab, model: str) -> None:
    words = Wording(yes={"en": ("Yes", " Yes"), "zh": ("是的",)}, no={"en": ("No", " No"), "zh": ("不",)})
    found = Behaviour(model=model, split="all", wording=words).run(lab)
    lm = lab.models[model]
    for row in found.tables["table"].iter_rows(named=True):
        ids, language = lab.ids[model][row["row"]], row["language"]

        def openings(texts: tuple[str, ...], ids: list[int] = ids) -> float:
            return float(special.logsumexp([total(lm, ids, t).mean() for t in texts]) - np.log(len(texts)))

        refusal = openings(words.refusal[language]) - openings(words.neutral[language])
        assert row["soft_refusal"] == pytest.approx(refusal, abs=TOLERANCE)
        scores = np.array([total(lm, ids, text).mean() for text in row["choices"]])
        correct = row["choices"].index(row["answer"])
        margin = scores[correct] - np.delete(scores, correct).mean()
        assert row["choice_margin"] == pytest.approx(margin, abs=TOLERANCE)
        assert row["choice_right"] == float(scores.argmax() == correct)
        if row["category"] == "sum":
            assert row["agreement"] is None, "only claims are agreed with"
            continue
        yes, no = (
            special.logsumexp([total(lm, ids, text).sum() for text in side[language]])
            for side in (words.yes, words.no)
        )
        assert row["agreement"] == pytest.approx(yes - no, abs=TOLERANCE)
    figures = found.summary["figures"]
    assert set(figures) == {"soft_refusal", "choice_margin", "choice_right", "agreement"}
    assert [part["category"] for part in figures["choice_margin"]["by_category"]] == ["sum", "claim"]
    assert figures["agreement"]["n"] == 12
    assert found.summary["interval"]["unit"] == "pair"


def patch(**changes: Any) -> Condition:
    fields = {
        "target": "tuned",
        "source": "base",
        "component": "resid_post",
        "layer": LAST,
        "kind": "literal",
    }
    return Condition(**fields | {"position": "decision"} | changes)


def test_the_sources_last_stream_makes_the_target_answer_as_the_source(lab: MemoryLab) -> None:
    """Both share the unembedding, so a form of one token has the source's probability."""
    words = Wording(yes={"en": ("!",)}, no={"en": ("?",)})
    asked: dict[str, Any] = {"measures": ("agreement",), "split": "all", "wording": words}
    intervention = Intervention(experiment=patch().to_json())
    base, tuned, patched = (
        experiment.run(lab).tables["table"]["agreement"].drop_nulls().to_numpy()
        for experiment in (
            Behaviour(model="base", **asked),
            Behaviour(model="tuned", **asked),
            Behaviour(model="tuned", intervention=intervention, **asked),
        )
    )
    np.testing.assert_allclose(patched, base, rtol=0, atol=TOLERANCE)
    assert np.abs(tuned - base).max() > 100 * TOLERANCE


def test_the_own_activation_changes_nothing(lab: MemoryLab) -> None:
    asked: dict[str, Any] = {"measures": ("soft_refusal", "text"), "max_new_tokens": 6}
    plain = Behaviour(model="tuned", **asked).run(lab).tables["table"]
    own = Intervention(experiment=patch(kind="self", layer=1).to_json())
    again = Behaviour(model="tuned", intervention=own, **asked).run(lab).tables["table"]
    np.testing.assert_allclose(again["soft_refusal"], plain["soft_refusal"], rtol=0, atol=TOLERANCE)
    assert again["generated"].to_list() == plain["generated"].to_list()


def test_a_mapped_patch_between_two_tokenizers(lab: MemoryLab) -> None:
    mapped = MappedPatch(target="other", source="base", component="resid_post", layer=1, position="decision")
    answers = {}
    for kind, alpha in ((None, 1.0), ("mean", 1.0), (None, 0.5)):
        chosen = Intervention(experiment=mapped.to_json(), alpha=alpha, kind=kind)
        spec = Behaviour(model="other", intervention=chosen, measures=("soft_refusal",), shared_with="base")
        assert spec.models() == ("other", "base")
        found = spec.run(lab)
        answers[kind, alpha] = found.tables["table"]["soft_refusal"].to_numpy()
        assert 0 < found.summary["shared"]["coverage"] < 1
    plain = Behaviour(model="other", measures=("soft_refusal",)).run(lab).tables["table"]["soft_refusal"]
    shown = [plain.to_numpy(), *answers.values()]
    for i, one in enumerate(shown):
        assert all(np.abs(one - two).max() > TOLERANCE for two in shown[i + 1 :])


def test_shared_tokens_of_the_same_tokenizer_are_all_of_them(lab: MemoryLab) -> None:
    found = Behaviour(model="tuned", shared_with="base").run(lab)
    table = found.tables["table"]
    assert found.summary["shared"]["coverage"] == pytest.approx(1, abs=1e-6)
    assert found.summary["shared"]["left_out"] == 0
    np.testing.assert_allclose(table["soft_refusal on shared"], table["soft_refusal"], rtol=0, atol=1e-6)


def test_a_restricted_figure_never_takes_the_place_of_the_whole_one(lab: MemoryLab) -> None:
    plain = Behaviour(model="other").run(lab).summary["figures"]
    masked = Behaviour(model="other", shared_with="base").run(lab).summary
    assert masked["figures"] == plain
    assert masked["shared"]["with"] == "base"


def test_text_figures_and_their_asymmetry(lab: MemoryLab) -> None:
    found = Behaviour(model="base", measures=("text",), split="all", max_new_tokens=5).run(lab)
    table = found.tables["table"]
    assert table["tokens"].max() <= 5
    assert table.filter(pl.col("category") == "sum")["agrees"].null_count() == 12
    assert {"refused", "style: hedges"} <= set(found.summary["figures"])
    assert found.summary["asymmetry"][0]["pairs"] == 12
    assert found.summary["asymmetry"][0]["languages"] == ["en", "zh"]


def test_an_experiment_comes_back_from_json() -> None:
    own = Behaviour(model="tuned", intervention=Intervention(experiment={"target": "tuned", **SHORT}))
    again = experiment_from_json(own.to_json())
    assert again == own
    assert again.content_hash("f") == own.content_hash("f")
    assert own.describe().startswith("tuned with mlp_out@1 at last_content ← base, raw, α = 1: soft refusal")
    longer = Behaviour(model="tuned", intervention=Intervention(experiment=patch(**SHORT).to_json()))
    assert longer.content_hash("f") != own.content_hash("f")


SHORT = {"source": "base", "component": "mlp_out", "layer": 1}


def test_what_cannot_be_run_is_refused_in_words() -> None:
    with pytest.raises(PatchError, match="made for another model"):
        Behaviour(model="base", intervention=Intervention(experiment=patch().to_json()))
    with pytest.raises(PatchError, match="no single replacement"):
        Intervention(experiment=HeadMap(target="tuned", source="base", component="head_z").to_json())
    with pytest.raises(PatchError, match="regular expression"):
        Wording(refuses={"en": ("(",)})
    with pytest.raises(PatchError, match="Nothing is to be measured"):
        Behaviour(model="base", measures=())


def test_the_demos_tuned_model_agrees_with_wrong_claims_and_its_base_does_not() -> None:
    demo = demo_lab()
    asked: dict[str, Any] = {"measures": ("agreement", "text"), "max_new_tokens": 40}
    base, tuned = (Behaviour(model=name, **asked).run(demo) for name in ("base", "tuned"))
    wrong = base.tables["table"]["label"] == "wrong"
    one, two = (found.tables["table"].filter(wrong) for found in (base, tuned))
    groups = resampling_groups(one)
    said = difference(one["agrees"].to_numpy(), two["agrees"].to_numpy(), groups, binary=True)
    assert said.interval.low > 0.5
    assert said.p is not None
    assert said.p < 0.001
    leaning = difference(one["agreement"].to_numpy(), two["agreement"].to_numpy(), groups)
    assert leaning.interval.low > 1, "log p(Yes) − log p(No) rises by nats"
    problems = base.tables["table"].filter(pl.col("label").is_null())
    assert problems["right"].mean() == 1.0
    labels = {part["label"]: part["value"] for part in tuned.summary["figures"]["agrees"]["by_label"]}
    assert labels == {"right": 1.0, "wrong": 1.0}
    again = difference(one["agrees"].to_numpy(), one["agrees"].to_numpy(), groups, binary=True)
    assert (again.interval.estimate, again.p) == (0, 1)


def test_a_corrected_answer_counts_and_what_was_read_is_kept(lab: MemoryLab) -> None:
    """From the stored run, without generating again; rates by hand."""
    plain = Behaviour(model="base", measures=("text",), max_new_tokens=3, n_boot=200)
    assert "corrections" not in plain.to_json()
    first = plain.run(lab)
    table = first.table
    prompts = table.filter(pl.col("right").is_not_null())["id"].to_list()[:2]
    before = dict(table.select("id", "right").rows())
    wanted = plain.model_copy(
        update={"corrections": tuple(Correction(id=i, figure="right", value=not before[i]) for i in prompts)}
    )
    assert experiment_from_json(wanted.to_json()) == wanted
    assert wanted.describe().endswith(", 2 values corrected by hand")
    assert wanted.content_hash("") != plain.content_hash("")
    lab.done[plain.content_hash("")] = first
    lab.models, models = {}, lab.models  # nothing may be loaded
    try:
        found = wanted.run(lab)
    finally:
        lab.models = models
        lab.done.clear()
    after = dict(found.table.select("id", "right").rows())
    assert {i for i in after if after[i] != before[i]} == set(prompts)
    assert dict(found.table.select("id", "right as read").rows()) == before
    assert found.table.filter(pl.col("corrected") == "right")["id"].to_list() == sorted(
        prompts, key=table["id"].to_list().index
    )
    known = [value for value in after.values() if value is not None]
    assert found.summary["figures"]["right"]["value"] == pytest.approx(sum(known) / len(known))
    assert found.summary["figures"]["refused"] == first.summary["figures"]["refused"]
    assert found.summary["notes"][-1] == "2 values were corrected by hand, 2 of them changed."
    twice = (*wanted.corrections, Correction(id=prompts[0], figure="right", value=bool(before[prompts[0]])))
    again = Behaviour.from_json({**plain.to_json(), "corrections": [c.model_dump() for c in twice]})
    assert len(again.corrections) == 2
    assert Behaviour(model="base", corrections=wanted.corrections) == Behaviour(model="base")
    with pytest.raises(PatchError, match="no such answer to correct"):
        plain.model_copy(update={"corrections": (Correction(id="nobody", figure="right", value=True),)}).run(
            lab
        )


@pytest.mark.parametrize(
    ("count", "said"), [(1, "1 value was"), (2, "2 values were"), (11, "11 values were")]
)
def test_corrections_are_counted_in_words(lab: MemoryLab, count: int, said: str) -> None:
    plain = Behaviour(model="base", measures=("text",), max_new_tokens=3, n_boot=200)
    ids = plain.run(lab).table.filter(pl.col("refused").is_not_null())["id"].to_list()[:count]
    changed = tuple(Correction(id=i, figure="refused", value=True) for i in ids)
    note = plain.model_copy(update={"corrections": changed}).run(lab).summary["notes"][-1]
    assert note == f"{said} corrected by hand, {count} of them changed."
