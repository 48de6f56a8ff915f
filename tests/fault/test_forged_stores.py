"""Forged stores: whole by every checksum, and saying what no store says. Each is refused, none crashes.

Every case edits one thing of a tiny store and seals it again, up to the manifest, so that what refuses it is
the schema and not a checksum.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from forge import Forge, at
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save
from synthetic_store import read_steps, write_all

from engine.errors import PatchbayError
from store.files import crc32c, seal, sha256
from store.manifest import verify
from store.maps import METADATA_KEY, MapLog
from store.runs import RunLog

pytestmark = [pytest.mark.fault, pytest.mark.timeout(10)]

UNIT = "base-00000.json"
SITES = "activations/base/last_content/sites/zarr.json"
UNEMBEDDING = "weights/base/unembedding/zarr.json"
W_K = "weights/base/w_k/zarr.json"
GRAM = "grams/base/last_content/resid/zarr.json"
Forgery = Callable[["Forge"], None]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "store"
    write_all(path)
    RunLog(path).append({"layer": 1}, {"kl": 0.375}, pl.DataFrame({"id": ["p0"]}), content_hash="c" * 64)
    MapLog(path).save("one", {"v": 1}, {"x": np.arange(3.0)}, {"score": 0.5})
    return path


def json_of(path: str, place: str, value: Any, *, sealed: bool = True) -> Forgery:
    return lambda forge: forge.edit(path, at(place, value), sealed=sealed)


def text_of(path: str, old: str, new: str) -> Forgery:
    """Edits the text of a file, for what Python's JSON does not write; a seal is made to fit."""

    def forge_it(forge: Forge) -> None:
        text = (forge.root / path).read_text()
        assert old in text
        body = text.replace(old, new, 1)
        forge.put(path, body.encode("utf-8", "surrogatepass"))

    return forge_it


def table(name: str, frame: Callable[[pl.DataFrame], pl.DataFrame]) -> Forgery:
    def forge_it(forge: Forge) -> None:
        path = f"tables/{name}.parquet"
        buffer = io.BytesIO()
        frame(pl.read_parquet(forge.root / path)).write_parquet(buffer)
        forge.put(path, buffer.getvalue())

    return forge_it


def raw(path: str, data: bytes) -> Forgery:
    return lambda forge: forge.put(path, data)


def mapped(
    change: Callable[[dict[str, Any]], Any], header: Callable[[bytes], bytes] = lambda d: d
) -> Forgery:
    """Edits the record inside a saved map, and its file; the record beside it follows."""

    def forge_it(forge: Forge) -> None:
        arrays = {"x": np.arange(3.0)}
        path = forge.root / "maps/one.safetensors"
        size = int.from_bytes(path.read_bytes()[:8], "little")
        found = json.loads(json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"][METADATA_KEY])
        change(found)
        data = header(save(arrays, metadata={METADATA_KEY: seal(found).decode()}))
        path.unlink()
        path.write_bytes(data)
        length = 8 + int.from_bytes(data[:8], "little")
        new = {"size": len(data), "sha256": sha256(data), "head": sha256(data[:length])}
        forge.edit("maps/one.json", lambda entry: entry | new)

    return forge_it


def shard(change: Callable[[bytearray], None], path: str = "weights/base/unembedding/c.0.0") -> Forgery:
    """Edits the one chunk of a shard; its checksums in the shard and in the ledger follow."""

    def forge_it(forge: Forge) -> None:
        data = bytearray((forge.root / path).read_bytes())
        offset, length = struct.unpack("<QQ", data[-20:-4])
        body = data[offset : offset + length - 4]
        change(body)
        crc = crc32c(bytes(body))
        index = struct.pack("<QQ", 0, len(body) + 4)
        tail = index + crc32c(index).to_bytes(4, "little")
        forge.put(path, bytes(body) + crc.to_bytes(4, "little") + tail)
        entry = "ledger/arrays/weights/base/unembedding.json"
        forge.edit(
            entry, lambda e: [f.update(chunks=f"{crc:08x}") for f in e["files"] if "chunks" in f] and None
        )

    return forge_it


def blosc(offset: int, value: int) -> Forgery:
    def change(body: bytearray) -> None:
        body[offset : offset + 4] = value.to_bytes(4, "little")

    return shard(change)


def pipe(path: str) -> Forgery:
    def forge_it(forge: Forge) -> None:
        (forge.root / path).unlink()
        os.mkfifo(forge.root / path)

    return forge_it


def folder(path: str) -> Forgery:
    def forge_it(forge: Forge) -> None:
        (forge.root / path).unlink()
        (forge.root / path).mkdir()

    return forge_it


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def every_prompt(count: int) -> Forgery:
    """Another number of prompts in one unit, in the manifest and in all metadata that follow from it."""

    def forge_it(forge: Forge) -> None:
        def plan(found: dict[str, Any]) -> None:
            found["plan"] |= {"n_prompts": count, "unit_prompts": count}
            for place in found["plan"]["positions"].values():
                if place["kind"] != "many":
                    place["rows_per_unit"] = dict.fromkeys(place["rows_per_unit"], count)

        forge.edit("manifest.json", plan)

    return forge_it


MANIFEST: dict[str, Any] = {
    "plan.n_prompts": [10**12, 0, -1, 22, 2**70, "21", 21.0, None, ...],
    "plan.unit_prompts": [0, 7, 10**12],
    "plan.dtype": ["float16", "object", ...],
    "plan.raw_bytes": [-1],
    "plan.models": [{}, [], ...],
    "plan.models.base.d": [0, -10, 11, 2**40, 1e300],
    "plan.models.base.n_layers": [0, 2],
    "plan.models.base.layers": [[], [0, 0, 1], [2, 1, 0], "012"],
    "plan.models.base.states": [[0, 1, 2], [3, 2, 1, 0]],
    "plan.models.base.n_heads": [0, 3],
    "plan.model_order": [["base"], ["base", "base"], ["tuned", "base", "other"], 5],
    "plan.positions.mean.kind": ["many", "two", 1],
    "plan.positions.mean.rows_per_unit": [{}, {"base": 8}, {"base": 8, "tuned": -8}],
    "plan.components": [[], ["resid", "q"], ["head_z", "resid"]],
    "plan.surprise": [1],
    "fingerprint": ["", "x" * 64, 5, ...],
    "state": ["", 1, ...],
    "study": [[], "a", ...],
    "study.prompts": [[1]],
    "self_checks": [{}, [1], [{"name": "x"}], [{"name": "x", "value": "?", "limit": 1, "passed": True}]],
    "self_checks.0.passed": ["yes", None],
    "models": [[], {"base": 1}],
    "rounding": [{"base": {"kl": "low"}}],
    "ledger": [[], {}, {"../x.json": "0" * 64}],
    "version": [1, 3, 0, "2", None],
    "format": ["zarr", "patchbay-store-1", 2],
    "crowd": [deep(100)],
}
ENTRY: dict[str, Any] = {
    "entry": ["base-00001.json", "", ...],
    "store": ["0" * 64, ...],
    "files": [[], {}, ...],
    "files.0.path": ["../../etc/passwd", "/etc/passwd", "a//b", "tables/prompts.parquet", ".hidden", "a\0b"],
    "files.0.size": [-1, 1 << 60, "9", 1.5, ...],
    "files.0.sha256": ["", "A" * 64, ...],
    "files.0.chunks": ["", "0", "g" * 8, "-" * 8, "00000000" * 3, ...],
}
RUN: dict[str, Any] = {
    "content_hash": ["d" * 64, "../x", ...],
    "created": ["yesterday", 5],
    "condition": [[], ...],
    "summary": [1, ...],
    "tables": [[], {"../x": {"size": 1, "sha256": "0" * 64}}, ...],
    "tables.table.size": [-1, ...],
    "seconds": [-1.0, "1"],
    "store": ["0" * 64, 5, ...],
}
ZARR: dict[str, dict[str, Any]] = {
    SITES: {
        "shape": [[3, 4, 22, 10], [3, 4, -1, 10], [], "21", [3, 4, 10**15, 10], [3, 4, 21]],
        "chunk_grid.configuration.chunk_shape": [[0, 0, 0, 0], [3, 4, 7, 10]],
        "data_type": ["float32", "object", "<M8[ns]", 7],
        "attributes": [[], {}],
        "attributes.layers": [[3, 2, 1, 0]],
        "attributes.sites": [["mlp_out", "attn_out", "resid"]],
        "attributes.dtype": ["float16"],
        "dimension_names": [["site", "state", "line", "feature"], [1, 2, 3, 4]],
        "codecs": [[], [{"name": "zip"}], None],
        "codecs.0.configuration.chunk_shape": [[1, 1, 0, 10], [1, 1, 3, 10]],
        "node_type": ["group"],
        "zarr_format": [2],
    },
    UNEMBEDDING: {
        "shape": [[6, 11], [10**9, 10**9], [0, 10], [6]],
        "data_type": ["float64", "int8"],
        "attributes": [deep(100)],
        "chunk_grid.configuration.chunk_shape": [[12, 10]],
    },
    W_K: {
        "attributes.parts": [[], ["0" * 40, "0" * 40], "ab", [1, 2], ["../x"] * 2],
        "attributes.shape": [[2, 2, 3, 4], [3, 4, 2, 3], [], [2, -1]],
        "attributes.whole": [True, 1],
        "attributes.dims": [[], ["a"]],
    },
    GRAM: {
        "attributes.layers": [[0, 1], [3, 2, 1, 0], "0123"],
        "attributes.model": ["tuned"],
        "shape": [[4, 21, 22], [4, 10**6, 10**6]],
    },
}


def cases() -> dict[str, Forgery]:
    found: dict[str, Forgery] = {}

    def each(path: str, edits: dict[str, list[Any]], *, sealed: bool = True) -> None:
        for place, values in edits.items():
            for number, value in enumerate(values):
                found[f"{path}: {place} #{number}"] = json_of(path, place, value, sealed=sealed)

    each("manifest.json", MANIFEST)
    each(f"ledger/{UNIT}", ENTRY)
    each(f"runs/{'c' * 16}/run.json", RUN)
    for path, edits in ZARR.items():
        each(path, edits, sealed=False)
    run = f"runs/{'c' * 16}/run.json"
    for path in ("manifest.json", f"ledger/{UNIT}", run, SITES, UNEMBEDDING, W_K, "maps/one.json"):
        data = [b"", b"[]", b"null", b"\xff\xfe{", b"[" * 10**5, b'{"a":' * 10**5, b'{"a": 1, "a": 2}', b"{}"]
        for number, text in enumerate(data):
            found[f"{path}: text #{number}"] = raw(path, text)
    for text in ("9" * 6000, "NaN", "Infinity", "1e999", "-" + "9" * 30):
        forgery = text_of("manifest.json", '"seconds": 1.5', f'"seconds": {text}')
        found[f"manifest.json: {text[:9]}"] = forgery
    format_3, meaning = '"zarr_format": 3', '"meaning": "test"'
    found |= {
        "6,000 digits in metadata": text_of(UNEMBEDDING, format_3, f'"zarr_format": {"9" * 6000}'),
        "half a surrogate pair in metadata": text_of(UNEMBEDDING, meaning, '"meaning": "\\ud800"'),
        "a key twice in metadata": text_of(UNEMBEDDING, meaning, f'"meaning": 1, {meaning}'),
    }
    found["half a surrogate pair in the manifest"] = text_of("manifest.json", '"synthetic"', '"\\ud800"')
    found["prompts of one unit"] = every_prompt(22)
    found["as many prompts as can be"] = every_prompt(10_000_000)
    found["a part of itself"] = lambda f: f.put(
        f"shared/{f.load(W_K)['attributes']['parts'][0]}/zarr.json", f.load(W_K), sealed=False
    )
    found |= {
        "fewer prompts": table("prompts", lambda t: t.head(20)),
        "no ids": table("prompts", lambda t: t.drop("id")),
        "ids that are numbers": table("prompts", lambda t: t.with_columns(pl.lit(1).alias("id"))),
        "no prompts": table("prompts", lambda t: t.clear()),
    }
    rows = "rows-base-sample-k-4-skip_last-1"
    found |= {
        "rows in another order": table(rows, lambda t: t.reverse()),
        "rows of text": table(rows, lambda t: t.with_columns(pl.col("row_count").cast(pl.String))),
        "negative rows": table(rows, lambda t: t.with_columns(-pl.col("row_count"))),
        "rows behind the end": table(rows, lambda t: t.with_columns(pl.col("array_row") + 10**9)),
        "rows without numbers": table(
            rows, lambda t: t.with_columns(pl.lit(None, pl.Int64).alias("array_row"))
        ),
        "a table of no Parquet": raw("tables/prompts.parquet", b"PAR1 nothing PAR1"),
        "an empty table file": raw("tables/prompts.parquet", b""),
        "a pipe for a table": pipe("tables/prompts.parquet"),
        "a pipe for a shard": pipe("weights/base/unembedding/c.0.0"),
        "a pipe for the manifest": pipe("manifest.json"),
        "a pipe for a run": pipe(run),
        "a folder for a table": folder("tables/prompts.parquet"),
        "a folder for a map": folder("maps/one.safetensors"),
        "a folder for a ledger entry": folder(f"ledger/{UNIT}"),
        "blosc: more bytes than there are": blosc(12, 2**31 - 1),
        "blosc: more values than there are": blosc(4, 2**31 - 1),
        "blosc: blocks of nothing": blosc(8, 0),
        "blosc: larger blocks": blosc(8, 2**31 - 1),
        "blosc: no bytes": shard(lambda body: body.clear()),
        "blosc: a few bytes": shard(lambda body: body.__delitem__(slice(9, None))),
        "map: no format": mapped(lambda r: r.pop("format")),
        "map: another format": mapped(lambda r: r.update(format=5)),
        "map: no arrays": mapped(lambda r: r.update(arrays={})),
        "map: arrays of numbers": mapped(lambda r: r.update(arrays={"x": 5})),
        "map: a list": mapped(lambda r: r.update(map=[])),
        "map: a negative shape": mapped(lambda r: r["arrays"]["x"].update(shape=[-3])),
        "map: another name": mapped(lambda r: r.update(name="two")),
        "map: a time": mapped(lambda r: r.update(created="once")),
        "map: a header without end": mapped(lambda r: None, lambda d: (2**63).to_bytes(8, "little") + d[8:]),
        "map: another dtype": mapped(lambda r: None, lambda d: d.replace(b'"F64"', b'"BF9"')),
        "map: offsets": mapped(lambda r: None, lambda d: d.replace(b"[0,24]", b"[0,99]")),
        "map's record: a negative size": json_of("maps/one.json", "size", -1),
        "map's record: another store": json_of("maps/one.json", "store", "0" * 64),
        "map's record: another map": json_of("maps/one.json", "name", "two"),
    }
    return found


CASES = cases()


def refusals(root: Path) -> list[PatchbayError]:
    """What reading everything as pages do is refused with; any other exception goes on."""
    found: list[PatchbayError] = []
    steps = read_steps(root)
    while True:
        try:
            step = next(steps, None)
        except PatchbayError as error:
            found.append(error)
            break
        if step is None:
            break
        try:
            step()
        except PatchbayError as error:
            found.append(error)
    with contextlib.suppress(PatchbayError):
        verify(root)
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_forged_store_is_refused_by_name(name: str, whole: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(whole, tmp_path / "store", copy_function=os.link))
    CASES[name](Forge(root))
    found = refusals(root)
    assert found, "nothing refused it"
    for error in found:
        assert error.what
        assert error.next_step
        str(error).encode()
        assert error.expected is not None
        assert error.given is not None


def test_there_are_many_forgeries() -> None:
    assert len(CASES) >= 200


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.just([]),
    st.just({}),
    st.lists(st.integers(-2, 30), max_size=4),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Places of everything inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [path] if path else []
    for key, item in inside:
        found += leaves(item, (*path, key))
    return found


@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", ["manifest.json", f"ledger/{UNIT}", f"runs/{'c' * 16}/run.json"])
def test_any_other_value_anywhere_is_read_or_refused(
    path: str, whole: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = Path(shutil.copytree(whole, tmp_path_factory.mktemp("any") / "store", copy_function=os.link))
    forge, before = Forge(root), (root / path).read_bytes()
    manifest, original = (root / "manifest.json").read_bytes(), json.loads(before)

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(place=st.sampled_from(leaves(original)), value=VALUES, remove=st.booleans())
    def mutate(place: tuple[Any, ...], value: Any, remove: bool) -> None:
        forged = copy.deepcopy(original)
        inside = forged
        for key in place[:-1]:
            inside = inside[key]
        if remove:
            del inside[place[-1]]
        else:
            inside[place[-1]] = value
        try:
            forge.put(path, forged)
            refusals(root)
        finally:
            forge.put(path, before)
            forge.put("manifest.json", manifest)

    mutate()
    assert refusals(root) == []
