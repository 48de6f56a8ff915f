"""The Z-patching job: its pieces on made-up outputs, whole on the demo's model, and what it refuses."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import polars as pl
import pytest
from behaviour_demo import demo_lab
from demo_files import conversation, rows
from memory_lab import MemoryLab

from engine.ard.spec import Ard
from engine.errors import PatchError
from engine.geometry.z import grassmann_similarity
from engine.kinds import experiment_from_json
from engine.lab.experiment import ExperimentResult, Where
from engine.models.pieces import model_pieces
from engine.passes.patch_engine import JobCancelled
from engine.z_patching.bases import make_bases, narrowest, principal
from engine.z_patching.numbers import paired_p
from engine.z_patching.outcomes import KEYS, METRICS, Outcomes, rates, read
from engine.z_patching.run import choose, pieces
from engine.z_patching.spec import Patch, ZPatching
from engine.z_patching.tokens_spec import ZTokens

N = 8


def experiment(**changes: Any) -> ZPatching:
    given = {"model": "base", "target_language": "en", "source_language": "zh", "layers": (4, 5), "ks": (8,)}
    return ZPatching(**{**given, "draws": 2, "problems": N, "max_new_tokens": 24, **changes})


@cache
def kernels() -> dict[str, np.ndarray]:
    """What a store keeps of the model's head kernels."""
    return {f"weights/base/{p.name}": p.values for p in model_pieces(demo_lab().models["base"].taps)}


def lab(**changes: Any) -> MemoryLab:
    """The demo's base model on its problems in both languages."""
    whole = demo_lab()
    said = rows("problems.jsonl")[: 2 * 12]
    tokenizer = whole.models["base"].tokenizer
    turns = [conversation(row) for row in said]
    texts = [tokenizer.apply_chat_template(t, tokenize=False, add_generation_prompt=True) for t in turns]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    kept = ("id", "pair_id", "language", "category", "answer")
    table = pl.DataFrame(
        [{k: row[k] for k in kept} | {"text": row["text"], "split": "train"} for row in said]
    )
    last = {"base": [len(i) - 1 for i in ids]}
    return MemoryLab({"base": whole.models["base"]}, {"base": ids}, last, table, arrays=kernels(), **changes)


FIT = Ard(model="base", layer=4, languages=("en", "zh"), category="gain")
NARROW = {4: [3, 90, 17, 41, 5, 64, 100, 2, 77], 5: [11, 12, 13, 14, 15, 16, 17, 18, 19]}


def with_fits(*, collapsed: bool = False, layers: tuple[int, ...] = (4, 5)) -> MemoryLab:
    """A lab that keeps fits in which these dimensions have small lengthscales, the first the smallest."""
    rng, done = np.random.default_rng(0), {}
    for layer in layers:
        logs = rng.normal(1.0, 0.02, 128)
        logs[NARROW[layer]] = np.linspace(-1.0, -0.9, len(NARROW[layer]))
        # Two starts: the first one counts, the second has the order turned round.
        columns = {"draw": np.repeat([0, 1], 128), "dimension": np.tile(np.arange(128), 2)}
        table = pl.DataFrame({**columns, "log10_lengthscale": np.concatenate([logs, -logs])})
        row = {
            "draw": 0,
            "collapsed": collapsed,
            "words": "made up",
            "held_out": {"p": 0.003, "p_within": None, "n": 9},
        }
        key = FIT.model_copy(update={"layer": layer}).content_hash("")
        done[key] = ExperimentResult(
            {"fits": [row], "n_fitted": 9}, {"table": table.sample(fraction=1.0, seed=0)}
        )
    return lab(done=done)


def ard(**changes: Any) -> ZPatching:
    return experiment(**{"basis": "ard", "lengthscales": FIT, "ks": (3, 9), **changes})


@pytest.fixture(scope="module")
def result() -> Any:
    asked = experiment()
    return asked, asked.run(lab())


def test_every_condition_of_every_problem_is_a_row(result: Any) -> None:
    asked, found = result
    patches = asked.patches()
    # Two blocks: full from three sources; Z and Z⊥ from three sources and under two random draws.
    assert len(patches) == 2 * (3 + 6 + 4)
    assert found.table.height == N * (len(patches) + 1)
    assert found.table["text"].null_count() == 0
    assert experiment_from_json(asked.to_json()) == asked
    assert found.summary["baseline"]["accuracy"]["en"]["n"] == N


def test_the_model_answers_and_patches_do_something(result: Any) -> None:
    asked, found = result
    outcomes = Outcomes(asked, found.table)
    assert outcomes.unpatched["correct"].mean() > 0.8, "the demo's base model can do its sums"
    full = outcomes.flags(Patch(4, None, "full"), "changed") | outcomes.flags(
        Patch(4, None, "full"), "disrupted"
    )
    assert full.any(), "one vector at every token must break something"


def test_rates_and_verdicts_are_those_of_the_rows(result: Any) -> None:
    asked, found = result
    table = found.tables["rates"]
    assert set(table["metric"]) == {*METRICS, "like Z", "like Z⊥"}
    rows = found.table.filter(pl.col("layer") == 4, pl.col("part") == "Z⊥", pl.col("source") == "pair")
    own = rows.filter(pl.col("draw").is_null())["disrupted"].mean()
    drawn = rows.filter(pl.col("draw").is_not_null()).group_by("draw").agg(pl.col("disrupted").mean())
    here = table.filter(
        pl.col("layer") == 4, pl.col("part") == "Z⊥", pl.col("metric") == "language disrupted"
    )
    shown = {row["source"]: row for row in here.iter_rows(named=True)}
    assert shown["pair"]["value"] == own
    assert shown["random"]["value"] == pytest.approx(drawn["disrupted"].mean())
    assert (shown["random"]["low"], shown["random"]["high"]) == (
        drawn["disrupted"].min(),
        drawn["disrupted"].max(),
    )
    first = found.summary["verdicts"][0]
    outcomes = Outcomes(asked, found.table)
    z, rest = (outcomes.flags(Patch(4, 8, part), "disrupted") for part in ("Z", "Z⊥"))
    assert first["tests"]["language"]["p"] == pytest.approx(paired_p(z, rest))


def test_shifting_by_the_own_mean_is_the_unpatched_answer() -> None:
    asked = experiment(mode="shift", layers=(4,), problems=3)
    found = asked.run(lab())
    assert not found.table.filter(pl.col("source") == "own").height
    table = rates(Outcomes(asked, found.table)).filter(pl.col("source") == "own", pl.col("part") == "Z")
    assert table.filter(pl.col("metric") == "answer changed")["value"].to_list() == [0.0]


def test_rows_are_reported_as_they_finish_and_a_run_can_be_cancelled() -> None:
    there = lab()
    experiment(layers=(4,), problems=3).run(there)
    partial = [one["partial"]["rows"] for one in there.reported if one.get("partial")]
    assert {row["part"] for row in partial[-1]} == {"unpatched", "Z", "Z⊥", "full"}
    with pytest.raises(JobCancelled):
        experiment(layers=(4,), problems=3).run(lab(stop_after=1))


def test_other_problems_have_other_answers() -> None:
    problems = choose(experiment(problems=12), lab().prompts)
    assert len(problems.answers) == 12
    for mine, other in enumerate(problems.others):
        assert problems.answers[mine] != problems.answers[other]
    assert choose(experiment(problems=12), lab().prompts).others == problems.others
    fewer = choose(experiment(problems=4), lab().prompts)
    assert set(fewer.pair_ids) < set(problems.pair_ids)


@pytest.mark.parametrize(
    ("text", "change", "disrupted", "correct"),
    [
        ("The answer is 7 + 5 = 12.", "same", False, True),
        ("The answer is 12.0", "same", False, True),
        ("答案是7 + 5 = 12。", "same", True, True),
        ("The answer is 7 + 5 = 13.", "different", False, False),
        ("", "none", True, False),
        ("no no no no no no no no no no", "none", False, False),
        ("I do not know.", "none", False, False),
    ],
)
def test_outputs_are_compared_with_the_unpatched_one(
    text: str, change: str, disrupted: bool, correct: bool
) -> None:
    base = read("The answer is 7 + 5 = 12.", [], True, experiment(), "12", "30", None)
    assert (base["change"], base["disrupted"], base["correct"]) == ("same", False, True)
    row = read(text, [], True, experiment(), "12", "30", base)
    assert (row["change"], row["disrupted"], row["correct"]) == (change, disrupted, correct)
    assert not row["says_other"]
    assert read("答案是30。", [], True, experiment(), "12", "30", base)["says_other"]


def test_pieces_join_to_the_text() -> None:
    tokenizer = lab().models["base"].tokenizer
    for text in ("The answer is 17 + 7 = 24.", "答案是17 + 7 = 24。"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert "".join(pieces(tokenizer, ids)) == text


def test_principal_directions_are_those_of_an_svd() -> None:
    states = np.random.default_rng(0).standard_normal((40, 6)) * np.arange(1, 7)
    found = principal(states, (2,))[2]
    wanted = np.linalg.svd(states - states.mean(axis=0))[2][:2].T
    np.testing.assert_allclose(np.abs((found * wanted).sum(axis=0)), 1, atol=1e-10)
    with pytest.raises(PatchError, match="too few directions"):
        principal(states[:3], (5,))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source_language": "en"}, "two languages"),
        ({"vectors": "transport", "mode": "shift"}, "mode 'replace'"),
        ({"vectors": "transport", "scope": "all"}, "scope 'prompt'"),
        ({"ks": (0,)}, "k ≥ 1"),
        ({"layers": ()}, "whole numbers"),
        ({"basis": "ard"}, "made of a fit"),
        ({"lengthscales": FIT}, "made of a fit"),
        ({"basis": "ard", "lengthscales": FIT, "site": "resid_pre"}, "not about what is patched"),
        ({"basis": "ard", "lengthscales": FIT, "layers": (5,)}, "not about what is patched"),
        ({"basis": "ard", "lengthscales": FIT, "source_language": "fr"}, "not about what is patched"),
        ({"basis": "pca", "fold_norm": True}, "Only head kernels"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(PatchError, match=said):
        experiment(**changes)


def test_missing_problems_blocks_and_dimensions_are_told() -> None:
    with pytest.raises(PatchError, match="no problems in both languages"):
        experiment(where=Where(category="nothing")).run(lab())
    with pytest.raises(PatchError, match="out of range"):
        experiment(layers=(9,)).run(lab())
    with pytest.raises(PatchError, match="no complement"):
        experiment(ks=(128,), basis="random").run(lab())


def test_ard_takes_the_dimensions_of_smallest_lengthscale_and_says_whose_they_are() -> None:
    there = with_fits()
    bases = make_bases(ard(), there, list)
    for layer in (4, 5):
        for k in (3, 9):
            wanted = np.eye(128)[:, NARROW[layer][:k]]
            np.testing.assert_array_equal(bases.z[layer, k].numpy(), wanted)
    assert np.array_equal(narrowest(np.array([1.0, 0.0, 1.0]), 2), np.eye(3)[:, [1, 0]]), "ties by number"
    asked = ard(problems=4, max_new_tokens=2)
    found = asked.run(there).summary["fits"]
    assert [one["layer"] for one in found] == [4, 5]
    assert [one["run_id"] for one in found] == [fit.content_hash("")[:16] for fit in asked.fits()]
    assert {(one["found"], one["under"], one["p"]) for one in found} == {("bimodal", 9, 0.003)}
    # Every problem of the lab is in the train split, the fit is of one category.
    of_fit = set(there.prompts.filter(pl.col("category") == "gain")["pair_id"])
    drawn = set(choose(asked, there.prompts).pair_ids)
    assert {one["seen"] for one in found} == {len(drawn & of_fit)}
    assert drawn & of_fit
    assert experiment_from_json(asked.to_json()) == asked


def test_without_a_usable_fit_the_job_to_run_is_named() -> None:
    with pytest.raises(PatchError, match="not been fitted at block 5") as error:
        make_bases(ard(), with_fits(layers=(4,)), list)
    wanted = ard().fits()[1]
    assert wanted.describe() in str(error.value)
    command = str(error.value.next_step).partition(": ")[2]
    assert experiment_from_json(json.loads(command.split("--condition '")[1][:-1])) == wanted
    with pytest.raises(PatchError, match="collapsed"):
        make_bases(ard(), with_fits(collapsed=True), list)


@pytest.mark.parametrize("basis", ["blocks", "kernels", "ard", "pca", "random"])
def test_every_basis_runs(basis: str) -> None:
    asked = ard if basis == "ard" else experiment
    found = asked(basis=basis, layers=(4,), ks=(8,), problems=2, max_new_tokens=2).run(with_fits())
    assert found.summary["verdicts"][0]["word"] == "too few problems"
    assert bool(found.summary["fits"]) == (basis == "ard")


def test_kernels_with_gains_are_those_of_the_projections_times_gains() -> None:
    there, arrays = lab(), kernels()
    layer, gains = 4, {name: arrays[f"weights/base/{name}_norm_gain"] for name in ("attn", "q", "k")}
    assert all(np.abs(gain[layer] - 1).max() > 0.01 for gain in gains.values()), "else nothing is told"
    projection = demo_lab().models["base"].taps.layers[layer].w_q().numpy()
    w_q = projection.astype(np.float64) * gains["q"][layer][..., None]
    w_k = arrays["weights/base/w_k"][layer].astype(np.float64) * gains["k"][layer][..., None]
    w_q, w_k = w_q * gains["attn"][layer], w_k * gains["attn"][layer]
    dense = sum((w_q[i].T @ w_k[i // 4]).T @ (w_q[i].T @ w_k[i // 4]) for i in range(8))
    wanted = np.linalg.eigh(dense)[1][:, -8:]
    asked = experiment(basis="kernels", fold_norm=True)
    folded = make_bases(asked, there, list).z[4, 8].numpy()
    plain = make_bases(experiment(basis="kernels"), there, list).z[4, 8].numpy()
    # Subspaces in float32 against float64.
    assert grassmann_similarity(folded, wanted) == pytest.approx(1, abs=1e-5)
    assert grassmann_similarity(folded, plain) < 0.999
    assert "with gains" in asked.describe()


@pytest.mark.parametrize("basis", ["blocks", "kernels"])
def test_only_the_kernels_of_the_patched_blocks_are_read(basis: str) -> None:
    asked: list[tuple[str, int | None]] = []

    class Asked(MemoryLab):
        def array(self, name: str, first: int | None = None) -> np.ndarray:
            asked.append((name, first))
            return super().array(name, first)

    whole = lab()
    listening = Asked(whole.models, whole.ids, whole.at, whole.prompts, arrays=whole.arrays)
    make_bases(experiment(basis=basis, ks=(4, 8)), listening, list)
    # All blocks at once are 2 GB of a 7B model.
    assert sorted(asked) == [
        (f"weights/base/{name}", layer) for name in ("kernel_right", "kernel_sigma") for layer in (4, 5)
    ]


def test_one_problem_again_token_by_token(result: Any) -> None:
    asked, found = result
    there = lab(done={asked.content_hash(""): found})
    wanted = ZTokens(of=asked, problem=3, layer=5, k=8)
    again = wanted.run(there)
    assert again.summary["differs"] == 0
    assert again.summary["conditions"] == 1 + 3 + 6 + 4
    best = again.table.filter(pl.col("rank") == 0)
    rows = found.table.filter(
        pl.col("problem") == 3, (pl.col("layer") == 5) | (pl.col("part") == "unpatched")
    )
    for row in rows.iter_rows(named=True):
        here = pl.all_horizontal(pl.col(key).eq_missing(pl.lit(row[key])) for key in KEYS)
        said = best.filter(here).sort("step")
        assert said.height == len(row["tokens"]) + row["ended"], "one step more where the text ended"
        assert "".join(said["token"].head(len(row["tokens"]))) == row["text"]
    steps = again.table.partition_by([*KEYS, "step"], maintain_order=True)
    assert all(part.height == 5 and part["probability"].is_sorted(descending=True) for part in steps)
    assert experiment_from_json(wanted.to_json()) == wanted
    assert ZTokens(of=asked, problem=3, layer=5, k=8).run(lab()).summary["differs"] is None


@pytest.mark.parametrize("changes", [{"problem": N}, {"layer": 3}, {"k": 16}])
def test_a_problem_or_cell_that_was_not_run_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(PatchError, match="no such problem, block or dimension"):
        ZTokens(**{"of": experiment(), "problem": 0, "layer": 4, "k": 8, **changes})


def test_one_problem_of_a_run_with_lengthscales_reads_the_fit_of_its_block() -> None:
    there = with_fits()
    asked = ard(problems=4, max_new_tokens=3)
    there.done[asked.content_hash("")] = asked.run(there)
    assert ZTokens(of=asked, problem=1, layer=5, k=9).run(there).summary["differs"] == 0
