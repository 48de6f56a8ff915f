"""Activations from elsewhere: names of other tools, a store that pages read, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from planted_store import CHANGED, HEAD_DIM, HEADS, LAYERS, WIDTH, prompts_table, streams
from safetensors.torch import save_file
from streamlit.testing.v1 import AppTest

import patchbay as pb
import precompute
from app.frame import parts as components
from app.imported import store as imported
from app.imported.command import prompts_table as read_table
from app.imported.files import read_arrays
from app.imported.names import places
from app.imported.store import import_arrays
from engine.errors import JobError, PatchbayError, StoreError
from engine.heads.map_spec import HeadMap
from engine.similarity.cka import linear_cka
from store.manifest import verify
from store.reader import Store

N = prompts_table().height
PAGES = sorted(file.stem for file in (Path(precompute.__file__).parent / "pages").glob("[a-z]*.py"))
Cache = dict[str, Any]


def planted() -> dict[str, Cache]:
    """The planted streams under TransformerLens' names, a head axis in head_z."""
    caches: dict[str, Cache] = {}
    for model, values in streams().items():
        cache: Cache = {}
        for (component, number), value in values.items():
            if component == "head_z":
                cache[f"blocks.{number}.attn.hook_z"] = value.reshape(N, HEADS, HEAD_DIM)
            elif component != "resid":
                cache[f"blocks.{number}.hook_{component}"] = value
            elif number < LAYERS:
                cache[f"blocks.{number}.hook_resid_pre"] = value
            else:
                cache[f"blocks.{number - 1}.hook_resid_post"] = value
        caches[model] = cache
    return caches


@pytest.fixture
def prompts() -> pl.DataFrame:
    return read_table(prompts_table())


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("blocks.3.hook_resid_pre", ("resid", 3)),
        ("blocks.3.hook_resid_post", ("resid", 4)),
        ("blocks.11.attn.hook_z", ("head_z", 11)),
        ("blocks.0.hook_mlp_out", ("mlp_out", 0)),
        ("model.layers.7.output.0", ("resid", 8)),
        ("model.layers.7.output", ("resid", 8)),
        ("transformer.h.2.input", ("resid", 2)),
        ("model.layers.7.self_attn.output.0", ("attn_out", 7)),
        ("gpt_neox.layers.1.attention.output", ("attn_out", 1)),
        ("model.language_model.layers.4.mlp.output", ("mlp_out", 4)),
        ("resid_post.4", ("resid", 5)),
        ("resid_0", ("resid", 0)),
        ("head_z4", ("head_z", 4)),
    ],
)
def test_names_of_other_tools(name: str, place: tuple[str, int]) -> None:
    assert places([name]) == ({name: place}, [])


def test_what_is_no_site_is_left_out_and_named() -> None:
    found, remarks = places(["resid.0", "blocks.0.mlp.hook_pre", "model.layers.3.mlp.input"])
    assert list(found) == ["resid.0"]
    assert "blocks.0.mlp.hook_pre, model.layers.3.mlp.input" in remarks[0]
    with pytest.raises(StoreError, match="None of the arrays is named after a site"):
        places(["ln_final.hook_normalized"])


def test_the_last_hidden_state_of_transformers_is_normed_and_left_out() -> None:
    found, remarks = places([f"hidden_states.{i}" for i in range(13)])
    assert sorted(found.values()) == [("resid", i) for i in range(12)]
    assert "hidden_states.12" in remarks[0]


def test_an_imported_store_holds_what_was_given(tmp_path: Path, prompts: pl.DataFrame) -> None:
    store = import_arrays(tmp_path / "store", planted(), prompts, name="mine")
    assert store.complete
    assert not verify(tmp_path / "store")
    assert {(c["name"], c["passed"]) for c in store.self_checks()} == {
        ("stored = given", True),
        ("residual identity", True),
    }
    values = streams()
    for model in ("base", "tuned"):
        assert np.array_equal(store.activations(model, "resid", 3), values[model]["resid", 3])
        assert np.array_equal(store.activations(model, "resid_post", 4), values[model]["resid", LAYERS])
        z = store.activations(model, "head_z", 1)
        assert np.array_equal(z, values[model]["head_z", 1])
    assert store.model_info("base")["n_heads"] == HEADS
    assert store.model_info("base")["d"] == WIDTH
    x, y = (store.activations(model, "resid", CHANGED + 1) for model in ("base", "tuned"))
    given = (values[model]["resid", CHANGED + 1] for model in ("base", "tuned"))
    assert linear_cka(x, y) == linear_cka(*given)


def test_pages_read_it_and_live_ones_say_that_there_is_no_model(
    tmp_path: Path, prompts: pl.DataFrame, open_app: Callable[..., AppTest]
) -> None:
    path = tmp_path / "store"
    import_arrays(path, planted(), prompts)
    for page in PAGES:
        at = open_app(path, page)
        said = " ".join(element.value for element in (*at.markdown, *at.caption))
        assert not at.exception, page
        assert "went wrong" not in said, page
        assert "self-checks; its numbers are not shown" not in said, page
        if page == "similarity":
            assert f"block {CHANGED}" in said
        if page == "heads":
            assert "no model to run" in said
            assert not [button for button in at.button if button.label.startswith("Run")]
    assert {"overview", "similarity", "heads", "report"} <= set(PAGES)
    with pytest.raises(JobError, match="no model that could be run"):
        pb.run(path, HeadMap(target="tuned", source="base", component="head_z", position="last_content"))


def test_no_page_advises_to_run_what_an_imported_store_has_not(
    tmp_path: Path, prompts: pl.DataFrame, open_app: Callable[..., AppTest]
) -> None:
    path = tmp_path / "store"
    import_arrays(path, planted(), prompts)
    for page in (
        "weights",
        "weight_steering",
        "prompts",
        "geometry",
        "residual_updates",
        "subspaces",
        "runs",
    ):
        at = open_app(path, page)
        said = " ".join(element.value for element in (*at.markdown, *at.caption))
        assert components.LACKS in said, page
        assert "precompute.py" not in said, page
    caches = planted()
    caches["tuned"]["blocks.3.hook_mlp_out"] = caches["tuned"]["blocks.3.hook_mlp_out"][::-1].copy()
    import_arrays(tmp_path / "wrong", caches, prompts)
    at = open_app(tmp_path / "wrong", "similarity")
    said = " ".join(element.value for element in at.markdown)
    assert "failed its own checks" in said
    assert "import the activations again into a new folder" in said
    assert "precompute.py" not in said


def test_only_advice_is_left_out_of_an_empty_state() -> None:
    text = "R needs the stream. Capture `resid` and run precompute.py again."
    assert components.of_imported(text) == f"R needs the stream. {components.LACKS}"
    assert components.of_imported("Only one language.") == "Only one language."


def test_one_token_of_each_prompt(tmp_path: Path, prompts: pl.DataFrame) -> None:
    values, ends = streams(), np.arange(N) % 3
    caches = {}
    for model, found in values.items():
        cache: Cache = {}
        for (component, number), value in found.items():
            if component == "head_z":
                continue
            tokens = np.full((N, 3, WIDTH), 7.0, dtype=np.float32)
            tokens[np.arange(N), ends] = value
            cache[f"{component}.{number}"] = torch.from_numpy(tokens)
        caches[model] = cache
    store = import_arrays(tmp_path / "store", caches, prompts, token=ends.tolist(), position="decision")
    assert np.array_equal(store.activations("base", "resid", 2, "decision"), values["base"]["resid", 2])
    with pytest.raises(StoreError, match="Say with `token` which token"):
        import_arrays(tmp_path / "other", caches, prompts)
    with pytest.raises(StoreError, match="tokens to take are not in"):
        import_arrays(tmp_path / "other", caches, prompts, token=3)
    assert not (tmp_path / "other").exists()


def test_blocks_that_are_not_whole_are_left_out(tmp_path: Path, prompts: pl.DataFrame) -> None:
    caches = planted()
    for cache in caches.values():
        for name in [name for name in cache if "resid_pre" not in name]:
            del cache[name]
    store = import_arrays(tmp_path / "store", caches, prompts)
    assert store.layers("base") == list(range(LAYERS - 1))
    assert store.states("base") == list(range(LAYERS))
    for cache in caches.values():
        for name in [name for name in cache if name != "blocks.2.hook_resid_pre"]:
            del cache[name]
    with pytest.raises(StoreError, match="No block is whole") as refused:
        import_arrays(tmp_path / "none", caches, prompts)
    assert "resid 2" in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["tuned"].update({"blocks.1.hook_mlp_out": c["tuned"]["blocks.1.hook_mlp_out"][1:]}),
            "shape",
        ),
        (lambda c: c["tuned"]["blocks.1.hook_mlp_out"].__setitem__((3, 0), np.nan), "not finite"),
        (lambda c: c["tuned"].update({"blocks.1.hook_mlp_out": np.zeros((N, WIDTH + 1))}), "differ in width"),
        (lambda c: c["tuned"].update({"blocks.1.hook_mlp_out": np.zeros((N, WIDTH), int)}), "no activations"),
        (
            lambda c: c["tuned"].update({"resid_post.1": np.ones((N, WIDTH))}),
            "two arrays of residual state 2",
        ),
        (lambda c: c["tuned"].update({"mlp_out.1": np.ones((N, WIDTH))}), "Two arrays hold the same site"),
        (lambda c: c.update({"a/b": c["tuned"]}), "name cannot be used"),
    ],
)
def test_what_cannot_be_a_store_is_refused_and_nothing_is_left(
    tmp_path: Path, prompts: pl.DataFrame, change: Callable[[dict[str, Cache]], Any], message: str
) -> None:
    caches = planted()
    change(caches)
    with pytest.raises(StoreError, match=message):
        import_arrays(tmp_path / "store", caches, prompts)
    assert not (tmp_path / "store").exists()


def test_mismatched_rows_fail_the_identity(tmp_path: Path, prompts: pl.DataFrame) -> None:
    caches = planted()
    caches["tuned"]["blocks.3.hook_mlp_out"] = caches["tuned"]["blocks.3.hook_mlp_out"][::-1].copy()
    store = import_arrays(tmp_path / "store", caches, prompts)
    failed = [check for check in store.self_checks() if not check["passed"]]
    assert [(c["name"], c["model"]) for c in failed] == [("residual identity", "tuned")]
    assert "worst at block 3" in failed[0]["detail"]


def test_files_and_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    caches = planted()
    np.savez(tmp_path / "base.npz", **caches["base"])
    bits = {name: torch.from_numpy(value).bfloat16() for name, value in caches["tuned"].items()}
    save_file(bits, tmp_path / "tuned.safetensors")
    torch.save({"model.layers.0.output": (bits["blocks.0.hook_mlp_out"], None)}, tmp_path / "cache.pt")
    found = read_arrays(tmp_path / "cache.pt")["model.layers.0.output"]
    assert np.array_equal(found, bits["blocks.0.hook_mlp_out"].float().numpy())
    rows = prompts_table().drop("id", "split")
    rows.write_ndjson(tmp_path / "prompts.jsonl")
    command = ["import", str(tmp_path / "store"), "--model", f"base={tmp_path / 'base.npz'}"]
    command += [
        "--model",
        f"tuned={tmp_path / 'tuned.safetensors'}",
        "--prompts",
        str(tmp_path / "prompts.jsonl"),
    ]
    assert precompute.main(command) == 0, capsys.readouterr().err
    store = Store(tmp_path / "store")
    assert store.models == ["base", "tuned"]
    assert store.prompts["id"].n_unique() == N
    assert set(store.prompts["split"]) == {"train", "validation"}
    assert store.prompts.group_by("pair_id").agg(pl.col("split").n_unique())["split"].to_list() == [1] * (
        N // 2
    )
    assert precompute.main(command) == 0, "the same call finds it done"
    command[-1] = str(tmp_path / "missing.jsonl")
    assert precompute.main(command) == 1


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    np.save(tmp_path / "resid.0.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(StoreError, match="No arrays can be read"):
        read_arrays(tmp_path)
    torch.save({"x": Path("/")}, tmp_path / "cache.pt")
    with pytest.raises(StoreError, match="No arrays can be read"):
        read_arrays(tmp_path / "cache.pt")
    with pytest.raises(StoreError, match="nothing there"):
        read_arrays(tmp_path / "absent.gguf")


def test_another_import_into_the_same_folder_is_refused(tmp_path: Path, prompts: pl.DataFrame) -> None:
    pb.from_arrays(tmp_path / "store", planted(), prompts_table(), name="mine")
    caches = planted()
    caches["base"]["blocks.1.hook_mlp_out"] = caches["base"]["blocks.1.hook_mlp_out"] + 1e-3
    with pytest.raises(PatchbayError):
        pb.from_arrays(tmp_path / "store", caches, prompts_table(), name="mine")


def test_a_small_update_in_another_order_is_noticed_and_a_rounded_one_is_not_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    before = 100 * rng.standard_normal((40, 32)).astype(np.float32)
    attn, mlp = 0.1 * rng.standard_normal((2, 40, 32)).astype(np.float32)
    cache = {"resid_pre.0": before, "attn_out.0": attn, "mlp_out.0": mlp, "resid_post.0": before + attn + mlp}

    def fits(changed: Cache, name: str) -> bool:
        rows = [{"text": f"prompt {i}"} for i in range(40)]
        store = pb.from_arrays(tmp_path / name, {"one": cache | changed, "two": cache}, rows)
        return all(check["passed"] for check in store.self_checks())

    assert fits({}, "right")
    rounded = {name: torch.from_numpy(value).bfloat16() for name, value in cache.items()}
    assert fits(rounded, "rounded")
    assert not fits({"mlp_out.0": mlp[::-1].copy(), "attn_out.0": attn[::-1].copy()}, "both")


def test_prompts_of_a_notebook(tmp_path: Path) -> None:
    caches, texts = planted(), [f"text {i}" for i in range(N)]
    store = pb.from_arrays(tmp_path / "texts", caches, texts)
    assert store.prompts["text"].to_list() == texts
    rows = [{"id": np.int64(i), "text": "x", "score": float("nan")} for i in range(N)]
    assert pb.from_arrays(tmp_path / "rows", caches, rows).prompts["id"].to_list() == [
        str(i) for i in range(N)
    ]
    with pytest.raises(PatchbayError, match="a text or a row"):
        pb.from_arrays(tmp_path / "bad", caches, [3] * N)  # type: ignore[list-item]
    with pytest.raises(StoreError, match="several prompts"):
        pb.from_arrays(tmp_path / "one", {"m": {"resid.0": np.ones((1, 4))}}, ["x"])
    assert not (tmp_path / "one").exists()


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    caches = planted()
    del caches["tuned"]["blocks.2.hook_mlp_out"]
    with pytest.warns(UserWarning, match="kept: 0, 1, 3, 4"):
        pb.from_arrays(tmp_path / "store", caches, prompts_table())
    caches["tuned"]["blocks.1.attn.hook_z"] = np.zeros((N, HEAD_DIM, HEADS), np.float32)
    with pytest.raises(StoreError, match="differ in their heads"):
        pb.from_arrays(tmp_path / "other", caches, prompts_table())


def test_a_report_of_averages_is_written(tmp_path: Path, prompts: pl.DataFrame) -> None:
    import_arrays(tmp_path / "store", planted(), prompts, position="mean")
    assert precompute.main(["report", str(tmp_path / "store"), "--out", str(tmp_path / "report")]) == 0
    study = str(Path(precompute.__file__).parent / "studies" / "demo.toml")
    assert precompute.main([study, "--store", str(tmp_path / "store"), "--verify"]) == 1


@pytest.mark.parametrize("size", [0.1, 1.0])
def test_the_order_of_rows_is_told_whatever_the_draw(size: float) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        before = 100 * rng.standard_normal((40, 32))
        attn, mlp = size * rng.standard_normal((2, 40, 32))
        after = before + attn + mlp
        rounded = torch.from_numpy(np.stack([before, after])).bfloat16().double().numpy()
        for one, two in ((before, after), rounded):
            values = {("resid", 0): one, ("resid", 1): two, ("attn_out", 0): attn, ("mlp_out", 0): mlp}
            right = imported._Model(values, None, ())
            assert imported._identity(right, 0) < imported.IDENTITY
            order = rng.permutation(40)
            wrong = imported._Model(
                values | {("attn_out", 0): attn[order], ("mlp_out", 0): mlp[order]}, None, ()
            )
            assert imported._identity(wrong, 0) > imported.IDENTITY
