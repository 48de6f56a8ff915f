"""Subspace scores from a store: against a sweep from models in memory, resumed, verified, planned."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_study import save_model, write_study
from transformers import AutoModelForCausalLM, AutoTokenizer

import precompute
from app.build.build import build
from app.build.plan_subspaces import subspace_bytes
from app.build.prepare import Prepared
from app.build.subspaces import TOKEN_BITS
from app.live.subspaces import deltas_of, has_subspaces, inputs_of, notes_of, target_of
from engine.errors import StoreError, StudyError
from engine.study.study import Study
from engine.subspaces.numbers import REGISTRY, Delta, Inputs, Target, per_layer, prepare_all, sweep
from store.reader import Store

POSITIVE, NEGATIVE = ("You are kind and agree.", "You please everybody at any price."), ("You check.", "No.")
SECTION = f"""
[contrasts]
more = {{ plus = "tuned", minus = "low" }}
[subspaces]
positive = {json.dumps(POSITIVE)}
negative = {json.dumps(NEGATIVE)}
where = {{ language = "en" }}
fit = 7
evaluate = 5
"""


def save_low_rank(folder: Path, base: Path) -> None:
    """The base with both writing tensors of block 1 changed in rank 2."""
    model = AutoModelForCausalLM.from_pretrained(base)
    generator = torch.Generator().manual_seed(5)
    block = model.model.layers[1]
    with torch.no_grad():
        for projection in (block.self_attn.o_proj, block.mlp.down_proj):
            out, width = projection.weight.shape
            left, right = (torch.randn(s, generator=generator) for s in ((out, 2), (2, width)))
            projection.weight += 0.02 * left @ right
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    save_model(folder / "base")
    save_low_rank(folder / "low", folder / "base")
    file = write_study(folder, pairs=20, positions=["decision"], components=["resid"], extra=SECTION)
    save_model(folder / "other", num_hidden_layers=2)
    more = "".join(f'[models.{name}]\npath = "{name}"\n' for name in ("low", "other"))
    file.write_text(file.read_text().replace("[prompts]", f"{more}[prompts]"))
    return file


@pytest.fixture(scope="module")
def finished(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "tiny"
    build(Study.load(study), path, quiet=True)
    return path


@pytest.fixture
def store(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


Edit = Callable[[Any], None]


def states(model: Any, prompts: list[torch.Tensor]) -> list[Any]:
    """Eager forward passes with all hidden states and attentions."""
    with torch.no_grad():
        return [model(ids, output_hidden_states=True, output_attentions=True) for ids in prompts]


class Memory:
    """A sweep's inputs made by hand from Hugging Face models: float64 weights, one eager prompt at a time."""

    def __init__(self, folder: Path, store: Store) -> None:
        def load(name: str) -> Any:
            return AutoModelForCausalLM.from_pretrained(folder / name, attn_implementation="eager").eval()

        self.models = {name: load(name) for name in ("base", "tuned", "low")}
        self.base, self.tokenizer = self.models["base"], AutoTokenizer.from_pretrained(folder / "base")
        self.layers = self.base.config.num_hidden_layers
        used, texts = store.table("subspace-prompts"), store.prompts["text"]
        self.fit = [texts[row] for row in used.filter(split="fit")["row"]]
        self.evaluate = [texts[row] for row in used.filter(split="evaluate")["row"]]

    def ids(self, text: str, persona: str | None = None) -> torch.Tensor:
        system = [] if persona is None else [{"role": "system", "content": persona}]
        found = self.tokenizer.apply_chat_template(
            [*system, {"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt"
        )
        return found["input_ids"] if hasattr(found, "keys") else found

    def leaving(self, model: Any, prompts: list[torch.Tensor]) -> list[list[np.ndarray]]:
        """[layer][prompt] (t, d): the stream leaving every block, the last one's before the final norm."""
        last: list[np.ndarray] = []
        block = model.model.layers[-1]
        hook = block.register_forward_hook(
            lambda _m, _a, out: last.append((out[0] if isinstance(out, tuple) else out)[0].numpy())
        )
        outputs = states(model, prompts)
        hook.remove()
        inner = [[o.hidden_states[layer + 1][0].numpy() for o in outputs] for layer in range(self.layers - 1)]
        return [*inner, last]

    def mlp_input(self, prompts: list[torch.Tensor]) -> list[np.ndarray]:
        seen: list[list[np.ndarray]] = [[] for _ in range(self.layers)]
        hooks = [
            layer.mlp.up_proj.register_forward_pre_hook(
                lambda _m, args, into=into: into.append(args[0][0, -1].numpy())
            )
            for layer, into in zip(self.base.model.layers, seen, strict=True)
        ]
        states(self.base, prompts)
        for hook in hooks:
            hook.remove()
        return [np.stack(rows) for rows in seen]

    def target(self, name: str, plus: dict[str, float]) -> Target:
        """`plus`: models whose differences from the base are added, with their factors."""
        base = self.base.state_dict()
        change = {
            key: sum(f * (self.models[m].state_dict()[key].double() - w.double()) for m, f in plus.items())
            for key, w in base.items()
        }
        ends = {}
        for alpha in (1.0, -1.0):
            model = copy.deepcopy(self.base)
            model.load_state_dict(
                {key: (w.double() + alpha * change[key]).float() for key, w in base.items()}
            )
            for which, texts in (("label", self.evaluate), ("label_fit", self.fit)):
                found = self.leaving(model, [self.ids(text) for text in texts])
                ends[which, alpha] = [np.stack([rows[-1] for rows in layer]) for layer in found]
        labels = {
            which: [a - b for a, b in zip(ends[which, 1.0], ends[which, -1.0], strict=True)]
            for which in ("label", "label_fit")
        }

        def delta(layer: int) -> dict[str, Delta]:
            names = {"o_proj": "self_attn.o_proj", "down_proj": "mlp.down_proj"}
            found = {k: change[f"model.layers.{layer}.{v}.weight"].numpy() for k, v in names.items()}
            return {k: Delta(v) for k, v in found.items() if v.any()}

        return Target(per_layer(labels["label"]), per_layer(labels["label_fit"]), delta, name)

    def inputs(self, target: Target) -> Inputs:
        blocks, items = self.base.model.layers, {}
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            items[name] = per_layer([getattr(b.self_attn, name).weight.detach().numpy() for b in blocks])
        for name in ("up_proj", "gate_proj", "down_proj"):
            items[name] = per_layer([getattr(b.mlp, name).weight.detach().numpy() for b in blocks])
        for name, norm in (("attn_norm", "input_layernorm"), ("mlp_norm", "post_attention_layernorm")):
            items[name] = per_layer([getattr(b, norm).weight.detach().numpy() for b in blocks])
        for name in ("q_norm", "k_norm"):
            items[name] = per_layer([getattr(b.self_attn, name).weight.detach().numpy() for b in blocks])
        unembedding = self.base.lm_head.weight.detach().numpy()
        start = self.tokenizer.eos_token_id  # without BOS
        items |= {
            "unembedding": lambda _: unembedding,
            "final_norm": lambda _: self.base.model.norm.weight.detach().numpy(),
            "start_embedding": lambda _: self.base.model.embed_tokens.weight.detach().numpy()[start],
        }
        for persona, texts in (("clean", None), ("positive", POSITIVE), ("negative", NEGATIVE)):
            personas = [None if texts is None else texts[i % 2] for i in range(len(self.fit))]
            prompts = [self.ids(text, own) for text, own in zip(self.fit, personas, strict=True)]
            streams = self.leaving(self.base, prompts)
            items[persona] = per_layer([np.stack([rows[-1] for rows in layer]) for layer in streams])
            items[f"{persona}_mlp_input"] = per_layer(self.mlp_input(prompts))
            if texts is None:
                continue
            longest = max(ids.shape[1] for ids in prompts)
            outputs = states(self.base, prompts)
            tokens, attention = [], []
            for layer in range(self.layers):
                padded = [np.pad(rows, [(longest - len(rows), 0), (0, 0)]) for rows in streams[layer]]
                tokens.append(np.stack(padded))
                weights = [o.attentions[layer][0, :, -1].mean(0).numpy() for o in outputs]
                attention.append(np.stack([np.pad(w, (longest - len(w), 0)) for w in weights]))
            items[f"{persona}_tokens"], items[f"{persona}_attention"] = (
                per_layer(tokens),
                per_layer(attention),
            )
        config = self.base.config
        sizes = (self.layers, config.hidden_size, config.num_attention_heads, config.num_key_value_heads)
        return Inputs(*sizes, target, **items)


def test_a_sweep_from_the_store_is_one_from_the_models(study: Path, finished: Path) -> None:
    store = Store(finished)
    assert has_subspaces(store)
    assert deltas_of(store) == ("tuned", "low", "more")
    memory = Memory(study.parent, store)
    made = {"tuned": {"tuned": 1.0}, "low": {"low": 1.0}, "more": {"tuned": 1.0, "low": -1.0}}
    targets = [memory.target(name, models) for name, models in made.items()]
    inputs, own = inputs_of(store), memory.inputs(targets[0])
    for name, item in vars(own).items():
        if not callable(item) or name in ("activation", "target"):
            continue
        for layer in range(own.n_layers):
            ours = np.asarray(getattr(inputs, name)(layer))
            if name in ("q_norm", "k_norm"):  # kept for each head
                ours = ours.reshape(-1, len(item(layer)))[0]
            kept = 2.0**-TOKEN_BITS if name.endswith("_tokens") else 1e-5
            np.testing.assert_allclose(ours, item(layer), atol=2e-5, rtol=kept, err_msg=name)
    from_store = prepare_all(inputs, [target_of(store, name) for name in made], widest=8, broad=6)
    in_memory = prepare_all(own, targets, widest=8, broad=6)
    for found, expected in zip(from_store, in_memory, strict=True):
        a, b = found.scores(4, clean=3), expected.scores(4, clean=3)
        assert a.names == b.names
        assert not a.left_out
        assert len(a.names) >= 44
        np.testing.assert_array_equal(a.averaged, b.averaged)
        for table in ("r_act", "r_o_proj", "r_combined", "z_combined", "r_specific", "cosine"):
            # streams agree to 1e-6; gaps between singular values turn that into a little more, and where they
            # are streams at all tokens, which are kept to 10 bits, into more than that
            coarse = np.array(["positive_tokens" in REGISTRY[name].needs for name in a.names])
            for some, atol in ((coarse, 2e-3), (~coarse, 2e-4)):
                ours, theirs = a.tables[table][some], b.tables[table][some]
                np.testing.assert_allclose(ours, theirs, atol=atol, err_msg=table)
    assert from_store[1].scores(4).averaged.tolist() == [1]


def test_items_are_checked_against_what_the_store_says(finished: Path) -> None:
    store = Store(finished)
    checks = {c["name"]: c for c in store.self_checks() if c["name"].startswith("subspace")}
    assert set(checks) == {
        "subspace scores: stored = plain forward pass",
        "subspace scores: label = merged weights",
    }
    assert all(check["passed"] for check in checks.values())
    said = [c["detail"].split("; ")[2].split(",")[0] for c in store.self_checks() if "merged" in c["name"]]
    assert said == ["tuned", "low", "more"]
    where = store.table("subspace-tokens")
    assert where["persona"].unique(maintain_order=True).to_list() == ["positive", "negative"]
    assert where["count"].to_list() == where["token_ids"].list.len().to_list()
    used = store.table("subspace-prompts")
    assert set(store.prompts["language"].gather(used["row"])) == {"en"}
    assert used.filter(split="fit")["persona"].to_list() == [0, 1, 0, 1, 0, 1, 0]
    attention = inputs_of(store).positive_attention
    assert attention is not None
    np.testing.assert_allclose(np.asarray(attention(1)).sum(axis=1), 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    "lost",
    [
        ["subspaces/clean"],
        ["subspaces/positive_tokens", "subspaces/label/low"],
        ["subspaces/down_proj"],
        ["subspaces/label_fit/more", "subspaces/negative_attention", "subspaces/start_embedding"],
    ],
)
def test_what_is_lost_is_written_again(study: Path, finished: Path, store: Path, lost: list[str]) -> None:
    for name in lost:
        for file in (store / name).glob("c*"):
            file.unlink()
    assert precompute.main([str(study), "--store", str(store)]) == 0
    assert contents(store) == contents(finished)


def contents(store: Path) -> dict[str, bytes]:
    skip = ("manifest.json", "run.json", ".writer.lock")  # times
    files = (path for path in store.rglob("*") if path.is_file() and path.name not in skip)
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in files}


def test_verify_runs_the_captured_prompts_again(
    study: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert precompute.main([str(study), "--store", str(store), "--verify"]) == 0
    assert capsys.readouterr().out.count("ok base: subspace scores") == 4
    shard = next((store / "subspaces/label/low").glob("c*"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert precompute.main([str(study), "--store", str(store), "--verify"]) == 1
    assert "subspaces/label/low" in capsys.readouterr().out


def test_a_plan_counts_what_will_be_written(
    study: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(finished)
    planned = subspace_bytes(Prepared.of(Study.load(study)))
    written = 0
    for name in store.array_names():
        if name.startswith("subspaces/"):
            attrs = store.attrs(name)
            written += int(np.prod(attrs["shape"])) * (2 if attrs.get("dtype") == "bfloat16" else 4)
    assert planned == written
    assert precompute.main([str(study), "--plan"]) == 0
    told = capsys.readouterr().out
    assert "subspace scores: 7 fit and 5 evaluate prompts, 3 weight changes" in told
    assert "weight differences, at most" in told


def test_a_weight_change_that_is_not_defined_is_named(study: Path, finished: Path) -> None:
    """Left out where none are named, refused before anything is captured where it is."""
    with pytest.raises(StoreError, match=r"no label of the weight change 'other'.*tuned, low, more"):
        target_of(Store(finished), "other")
    text = study.read_text().replace("[subspaces]", '[subspaces]\ndeltas = ["low", "other"]')
    (study.parent / "named.toml").write_text(text)
    with pytest.raises(StudyError, match=r"names 'other', which has other tensors.*layers\.2.*\(missing\)"):
        Prepared.of(Study.load(study.parent / "named.toml"))


def test_a_store_without_the_section_says_so(tmp_path: Path) -> None:
    store = build(Study.load(write_study(tmp_path / "study", pairs=3)), tmp_path / "store", quiet=True)
    assert not has_subspaces(store)
    assert not any("subspaces" in name for name in store.array_names())
    with pytest.raises(StoreError, match=r"nothing for subspace scores.*\[subspaces\]"):
        inputs_of(store)


@pytest.mark.parametrize("family", ["gpt2", "qwen3_moe", "gemma2"])
def test_what_a_family_lacks_is_left_out_by_name(family: str, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    save_model(folder / "base", family)
    save_model(folder / "tuned", family)
    model = AutoModelForCausalLM.from_pretrained(folder / "tuned")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "1" in name and ("o_proj" in name or "c_proj.weight" in name or "mlp.down" in name):
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder / "tuned")
    section = SECTION.split("[subspaces]")[1].replace("fit = 7", "fit = 4")
    file = write_study(
        folder, pairs=20, positions=["decision"], components=["resid"], extra=f"[subspaces]\n{section}"
    )
    if family == "gpt2":
        file.write_text(file.read_text().replace("[prompts]", '[prompts]\ntemplate = "plain"'))
    store = build(Study.load(file), tmp_path / "store", quiet=True)
    assert len(notes_of(store)) == (family == "gpt2")
    inputs = inputs_of(store)
    found = sweep(inputs, k=4, broad=4)
    reasons = {entry.candidate: entry.reason for entry in found.left_out}
    assert found.averaged.tolist() == [1]
    if family == "gemma2":
        assert not reasons
        own = AutoModelForCausalLM.from_pretrained(folder / "base").model.layers[1]
        gain = 1 + own.post_attention_layernorm.weight.detach().numpy()
        wanted = own.self_attn.o_proj.weight.detach().numpy() * gain[:, None]
        assert inputs.o_proj is not None
        np.testing.assert_allclose(inputs.o_proj(1), wanted, rtol=1e-6)
        change = inputs.target.delta(1)["o_proj"]
        tuned = model.model.layers[1].self_attn.o_proj.weight.detach().numpy()
        dense = np.asarray(change.left) if change.right is None else change.left @ np.asarray(change.right)
        np.testing.assert_allclose(
            dense, (tuned - own.self_attn.o_proj.weight.detach().numpy()) * gain[:, None], atol=1e-6
        )
        return
    assert inputs.gate_proj is None
    assert "gate_proj" in reasons["gate_kernel"]
    if family == "gpt2":
        assert inputs.up_proj is not None
        assert "mlp_write" not in reasons
        change = inputs.target.delta(1)["o_proj"]
        own = AutoModelForCausalLM.from_pretrained(folder / "base").transformer.h[1].attn.c_proj.weight
        wanted = (model.transformer.h[1].attn.c_proj.weight - own).detach().numpy().T
        np.testing.assert_allclose(np.asarray(change.left), wanted, atol=1e-6)
    else:
        assert inputs.up_proj is None
        assert "down_proj" in reasons["mlp_write"]
        assert "attn_write" not in reasons
