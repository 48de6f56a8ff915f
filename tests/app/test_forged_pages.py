"""Forged and damaged stores opened as a browser would: the page says which file, and nothing breaks."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from forge import Forge, at
from streamlit.testing.v1 import AppTest

Open = Callable[..., AppTest]
SITES = "activations/tuned/last_content/sites"
PROMPTS = "tables/prompts.parquet"


def table(change: Callable[[pl.DataFrame], pl.DataFrame]) -> Callable[[Forge], None]:
    def forge_it(forge: Forge) -> None:
        data = io.BytesIO()
        change(pl.read_parquet(forge.root / PROMPTS)).write_parquet(data)
        forge.put(PROMPTS, data.getvalue())

    return forge_it


def metadata(path: str, place: str, value: object) -> Callable[[Forge], None]:
    return lambda forge: forge.edit(path, at(place, value), sealed=False)


def flipped(path: str) -> Callable[[Forge], None]:
    """A bit of every 64th byte of a file, as a bad disk leaves it; no entry follows."""

    def forge_it(forge: Forge) -> None:
        data = bytearray((forge.root / path).read_bytes())
        data[::64] = bytes(byte ^ 1 for byte in data[::64])
        (forge.root / path).unlink()
        (forge.root / path).write_bytes(data)

    return forge_it


def gone(path: str) -> Callable[[Forge], None]:
    return lambda forge: (forge.root / path).unlink()


def swapped(path: str, other: str) -> Callable[[Forge], None]:
    """A file with another one's bytes."""

    def forge_it(forge: Forge) -> None:
        (forge.root / path).unlink()
        shutil.copy(forge.root / other, forge.root / path)

    return forge_it


SHARD = f"{SITES}/c.0.0.1.0"
FORGERIES: dict[str, tuple[str, str, Callable[[Forge], None]]] = {
    "no store's prompts": (
        "overview",
        "manifest.json",
        lambda f: f.edit("manifest.json", at("plan.n_prompts", 10**12)),
    ),
    "a deep manifest": ("overview", "manifest.json", lambda f: f.put("manifest.json", b"[" * 10**5)),
    "another width": ("similarity", SITES, metadata(f"{SITES}/zarr.json", "shape", [3, 4, 10**9, 8])),
    "another dtype": ("transport", SITES, metadata(f"{SITES}/zarr.json", "data_type", "object")),
    "a codec nobody has": (
        "similarity",
        SITES,
        metadata(f"{SITES}/zarr.json", "codecs", [{"name": "zip"}]),
    ),
    "prompts without ids": ("prompts", "prompts", table(lambda t: t.drop("id"))),
    "fewer prompts": ("geometry", "prompts", table(lambda t: t.head(3))),
    "ids of numbers": ("synthesis", "prompts", table(lambda t: t.with_columns(id=pl.lit(1)))),
    "no table at all": ("report", "prompts", lambda f: f.put(PROMPTS, b"PAR1 nothing PAR1")),
    "a flipped bit": ("transport", f"{SITES}:c.0.0.1.0", flipped(SHARD)),
    "a lost shard": ("transport", f"{SITES}:c.0.0.1.0", gone(SHARD)),
    "the other model's shard": (
        "transport",
        f"{SITES}:c.0.0.1.0",
        swapped(SHARD, SHARD.replace("tuned", "base")),
    ),
    "a flipped table": ("prompts", "Table prompts", flipped(PROMPTS)),
    "an entry of another store": (
        "overview",
        "tuned-00002.json",
        lambda f: f.edit("ledger/tuned-00002.json", at("store", "0" * 64)),
    ),
}


def said(app: AppTest) -> str:
    assert not app.exception
    return "\n".join(m.value.replace("\\", "") for m in app.markdown)


@pytest.mark.parametrize("name", FORGERIES)
def test_a_page_says_which_file_is_wrong(name: str, planted: Path, open_app: Open, tmp_path: Path) -> None:
    page, file, forge_it = FORGERIES[name]
    root = Path(shutil.copytree(planted, tmp_path / "store", copy_function=os.link))
    forge_it(Forge(root))
    words = said(open_app(root, page))
    assert ":material/report:" in words
    assert "Something went wrong" not in words
    assert all(part in words for part in file.split(":"))
    assert "**Next**" in words
