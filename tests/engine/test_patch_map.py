"""Patch map: exact zeros, alignment, answers, the null, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from memory_lab import MemoryLab
from tiny_models import LAYERS, random_tokens, tiny

from engine.errors import JobError, PatchError
from engine.models.loading import LoadedModel, from_parts
from engine.patch_map import numbers
from engine.patch_map.align import unrelated
from engine.patch_map.run import run
from engine.patch_map.spec import MAPPED, PatchMap

CHANGED = 1
"""The only block whose weights differ between base and tuned."""


class Words:
    """Calls token 17 "t17", reads it back, and has no spaces in front."""

    is_fast = False

    def decode(self, ids: list[int], clean_up_tokenization_spaces: bool = False) -> str:
        return f"t{ids[0]}"

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
        return {"input_ids": [int(part[1:]) for part in text.split("t") and text.split() if part[0] == "t"]}


def pair(family: str = "llama") -> dict[str, LoadedModel]:
    base = tiny(family, seed=1)
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if f".{CHANGED}." in name and weight.ndim == 2:
                weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)))
    return {"base": from_parts(base), "tuned": from_parts(tuned)}


def lab_of(
    models: dict[str, LoadedModel], lengths: tuple[int, ...] = (7, 7, 7, 9, 5, 8), **columns: Any
) -> MemoryLab:
    vocab = next(iter(models.values())).taps.vocab
    ids = [random_tokens(1, n, seed=number, vocab=vocab)[0].tolist() for number, n in enumerate(lengths)]
    for lm in models.values():
        lm.tokenizer = Words()
    names = [f"p{number}" for number in range(len(lengths))]
    prompts = pl.DataFrame({"id": names, "text": [f"text of {name}" for name in names], **columns})
    return MemoryLab(
        models, dict.fromkeys(models, ids), {m: [n - 1 for n in lengths] for m in models}, prompts
    )


def asked(**changes: Any) -> PatchMap:
    given = {"target": "base", "source": "base", "prompt": "p0", "donor": "p1", "sites": MAPPED, "nulls": 2}
    return PatchMap(**(given | changes))


def test_the_same_prompt_in_the_same_model_changes_nothing() -> None:
    lab = lab_of(pair())
    found = run(asked(donor="p0"), lab)
    assert found.table["kl"].max() == 0.0
    assert found.table["log_p_change"].abs().max() == 0.0
    assert found.table["recovery"].null_count() == found.table.height == 4 * LAYERS * 7
    assert not found.summary["defined"]
    assert found.summary["recovery_floor"] is None
    assert found.summary["self_check"]["passed"]
    assert found.table["null_kl"].max() > 1e-3, "what others hold does change it"  # type: ignore[operator]


def test_in_half_precision_too() -> None:
    models = {name: from_parts(lm.model.to(torch.bfloat16)) for name, lm in pair("qwen3").items()}
    found = run(asked(donor="p0"), lab_of(models))
    assert found.table["kl"].max() == 0.0


def test_two_models_part_only_where_their_weights_do() -> None:
    """Before the changed block both hold the same; from it on each cell is what a run of its own gives."""
    lab = lab_of(pair())
    found = run(asked(target="base", source="tuned", donor="p0", sites=("resid_post",)), lab)
    assert found.table.filter(pl.col("layer") < CHANGED)["kl"].max() < 1e-9  # type: ignore[operator]
    assert found.table.filter(layer=CHANGED)["kl"].min() > 0  # type: ignore[operator]
    end = found.table.filter(layer=LAYERS - 1, token=6).row(0, named=True)
    assert end["recovery"] == pytest.approx(1.0, abs=1e-4), "all that is read is the donor's"
    ends = found.summary["difference"]
    assert end["logit_difference"] == pytest.approx(ends["donor"], abs=1e-4)
    assert found.table.filter((pl.col("layer") == LAYERS - 1) & (pl.col("token") < 6))["kl"].max() < 1e-9  # type: ignore[operator]


def test_both_directions_end_at_one() -> None:
    lab = lab_of(pair())
    for prompt, donor in (("p0", "p1"), ("p1", "p0")):
        found = run(asked(prompt=prompt, donor=donor, sites=("resid_post",)), lab)
        end = found.table.filter(layer=LAYERS - 1, token=6).row(0, named=True)
        assert end["recovery"] == pytest.approx(1.0, abs=1e-4)
        assert found.summary["notes"] == []


def test_prompts_of_other_lengths_are_aligned_from_the_end_and_it_is_said() -> None:
    lab = lab_of(pair())
    found = run(asked(prompt="p3", donor="p4", sites=("attn_out",)), lab)
    assert found.table["token"].unique().sort().to_list() == [4, 5, 6, 7, 8]
    assert (found.table["token"] - found.table["donor_token"]).unique().to_list() == [4]
    ids = lab.ids["base"]
    cell = found.table.filter(token=6).row(0, named=True)
    assert (cell["text"], cell["donor_text"]) == (f"t{ids[3][6]}", f"t{ids[4][2]}")
    assert any("9 and 5 tokens: they were aligned from the end, 5" in note for note in found.summary["notes"])
    short = run(asked(last=2, sites=("mlp_out",)), lab)
    assert short.table["token"].unique().sort().to_list() == [5, 6]
    assert short.summary["notes"] == ["Only the last 2 of 7 tokens were patched."]


def test_answers_by_words_and_by_default() -> None:
    lab = lab_of(pair())
    found = run(asked(sites=("resid_post",), answers=("t5", "t9")), lab)
    assert found.summary["answer_ids"] == [5, 9]
    with torch.no_grad():
        ids = torch.tensor([lab.ids["base"][0]])
        plain = lab.models["base"].model(input_ids=ids).logits[0, -1].double().log_softmax(-1)
    assert found.summary["difference"]["receiving"] == pytest.approx(float(plain[5] - plain[9]), abs=1e-5)
    assert found.summary["log_p"] == pytest.approx([float(plain[5]), float(plain[9])], abs=1e-5)
    with pytest.raises(PatchError, match="not one token"):
        run(asked(answers=("t5 t6", "t9")), lab)
    with pytest.raises(PatchError, match="two different answers"):
        PatchMap.from_json(asked().to_json() | {"answers": ["t5", "t5"]})
    low, high = np.log([0.1, 0.6, 0.3]), np.log([0.15, 0.5, 0.35])
    assert numbers.other_answer(low, high) == (1, 0) or numbers.other_answer(low, high) == (1, 2)
    assert numbers.other_answer(low, np.log([0.7, 0.2, 0.1])) == (1, 0)


def test_recovery_and_where_it_is_none() -> None:
    found = numbers.recovery(np.array([1.0, -1.0, 3.0]), 1.0, -1.0, 0.0)
    np.testing.assert_allclose(found, [0.0, 1.0, -1.0])
    assert np.isnan(numbers.recovery(np.ones(2), 1.0, 1.0005, 0.0)).all()
    assert np.isnan(numbers.recovery(np.ones(2), 1.0, 2.0, 0.8)).all(), "rounding may make that difference"
    assert not np.isnan(numbers.recovery(np.ones(2), 1.0, 2.0, 0.6)).any()
    grid = np.array([[0.1, np.nan], [0.4, 0.2]])
    assert numbers.largest(grid, [0, 1]) == (1, 0, 0.4)
    assert numbers.largest(grid, [1]) == (1, 1, 0.2)
    assert numbers.largest(grid, []) is None
    assert numbers.largest(np.full((2, 2), np.nan), [0, 1]) is None


def test_the_null_is_prompts_that_have_nothing_to_do_with_either() -> None:
    lab = lab_of(
        pair(),
        pair_id=["a", "b", "a", None, "c", "c"],
        language=["en", "en", "en", "en", "zh", "en"],
        corrupt_of=[None, None, None, "p0", None, None],
    )
    assert unrelated(lab.prompts, 0, 1, 0).tolist() == [5], "no pair, no corruption, the donor's language"
    for text in ("", None):  # prompts given as token ids have no text, which makes them no copies
        given = lab.prompts.with_columns(text=pl.lit(text, pl.String))
        assert unrelated(given, 0, 1, 0).tolist() == [5]
    copies = lab.prompts.with_columns(text=pl.lit("one text"))
    assert unrelated(copies, 0, 1, 0).tolist() == []
    found = run(asked(nulls=19, sites=("resid_post", "mlp_out")), lab)
    assert found.summary["n_nulls"] == 1
    nulls = found.tables["nulls"]
    assert nulls["prompt"].unique().to_list() == ["p5"]
    for site in ("resid_post", "mlp_out"):
        row = nulls.filter(site=site).row(0, named=True)
        cells = found.table.filter(site=site)
        for value in ("kl", "recovery"):
            assert row[value] == pytest.approx(cells[f"null_{value}"].max())
            last = cells.filter(token=6)[f"null_{value}"].max()
            assert row[f"{value}_last"] == pytest.approx(last)
            assert row[f"{value}_before"] == cells.filter(pl.col("token") < 6)[f"null_{value}"].max()
    assert numbers.nearest(np.array([3, 9, 7, 8, 7]), 7, 5, 2, 0).tolist() == [2, 4]
    assert numbers.nearest(np.array([3, 9, 4, 8, 2]), 7, 5, 3, 0).tolist() == [1, 2, 3], "the long ones first"
    assert numbers.nearest(np.array([3, 9, 4, 8, 2]), 7, 5, 9, 0).tolist() == [0, 1, 2, 3]
    none = run(asked(nulls=0, sites=("resid_post",)), lab)
    assert none.tables["nulls"].is_empty()
    assert none.table["null_kl"].null_count() == none.table.height


def test_shorter_unrelated_prompts_stand_for_the_last_tokens_alone() -> None:
    """Cells that they lack are no cells of the null; tokens that one of them lacks are not compared."""
    lab = lab_of(pair(), lengths=(7, 7, 5, 9))
    found = run(asked(nulls=2, sites=("attn_out",)), lab)
    assert found.summary["compared"] == 5
    both = found.tables["nulls"]
    one = run(asked(nulls=1, sites=("attn_out",)), lab)
    assert one.tables["nulls"]["prompt"].to_list() == ["p3"], "the one that has all seven"
    early = found.table.filter(pl.col("token") < 2)
    assert early["null_kl"].to_list() == pytest.approx(
        one.table.filter(pl.col("token") < 2)["null_kl"].to_list(), abs=1e-6
    )
    long = both.filter(prompt="p3").row(0, named=True)
    late = one.table.filter(pl.col("token") >= 2)
    assert long["kl"] == pytest.approx(late["null_kl"].max(), abs=1e-6)
    assert long["kl_before"] == pytest.approx(late.filter(pl.col("token") < 6)["null_kl"].max(), abs=1e-6)


def test_runs_that_say_the_same_have_no_recovery_unless_answers_are_given() -> None:
    models = pair()
    lab = lab_of({"base": models["base"], "copy": models["base"]})
    same = run(asked(source="copy", donor="p0", sites=("mlp_out",)), lab)
    assert not same.summary["defined"]
    apart = numbers.apart(np.log([0.5, 0.5]), np.log([0.25, 0.75]))
    assert apart == pytest.approx(0.25 * np.log(0.5) + 0.75 * np.log(1.5))


def test_what_cannot_be_patched_is_refused() -> None:
    models = pair()
    lab = lab_of(models)
    with pytest.raises(PatchError, match="no such prompt"):
        run(asked(donor="p9"), lab)
    lab.ids["tuned"] = [[1, 2], *lab.ids["tuned"][1:]]
    with pytest.raises(PatchError, match="read the prompt p0 as different tokens"):
        run(asked(target="tuned"), lab)
    wide = lab_of({"base": models["base"], "wide": from_parts(tiny("llama", hidden_size=64))})
    with pytest.raises(PatchError, match="cannot be put into base as it is"):
        run(asked(source="wide"), wide)
    lab = lab_of(models)
    lab.stop_after = 3
    with pytest.raises(JobError, match=r"[Cc]ancelled"):
        run(asked(), lab)


def test_sites_have_one_order() -> None:
    one = asked(sites=("mlp_out", "resid_pre", "mlp_out"))
    assert one.sites == ("resid_pre", "mlp_out")
    assert one == PatchMap.from_json(one.to_json())
    with pytest.raises(PatchError, match="sites"):
        PatchMap.from_json(one.to_json() | {"sites": []})
