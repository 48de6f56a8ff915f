"""A store goes to the Hub and comes back whole, through the command and the Hub's own client."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from engine.errors import StoreError
from precompute import main
from store.places.hub import Repository, pull, push
from store.reader import Store
from tests.hub_server import TOKEN, Hub, serving
from tests.synthetic_store import contents, write_all

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hub") / "mine"
    write_all(path)
    (path / ".tmp-left").write_bytes(b"of a writer that was killed")
    return path


@pytest.fixture(scope="module")
def sent(store: Path) -> Iterator[Hub]:
    """A Hub that holds the store as somebody/mine, sent by the command in a process of its own."""
    with serving() as found:
        line = [sys.executable, "precompute.py", "push", str(store), "somebody/mine"]
        done = subprocess.run(
            line, cwd=ROOT, env=found.environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == f"{found.endpoint}/datasets/somebody/mine"
        yield found


@pytest.fixture
def hub(sent: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """That Hub, which the client of this process talks to as well."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, sent.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    for name, value in (("ENDPOINT", sent.endpoint), ("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_XET", True)):
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return sent


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What the command says when it refuses."""
    assert main(list(map(str, arguments))) == 1
    return capsys.readouterr().err


def committed(path: Path) -> dict[str, bytes]:
    """A store's files as they are meant to travel."""
    found = contents(path, manifest=True)
    return {name: data for name, data in found.items() if not name.startswith((".tmp-", ".writer.lock"))}


def test_what_is_sent_is_the_store(hub: Hub, store: Path) -> None:
    files = dict(hub.repositories["somebody/mine"])
    card = files.pop("README.md").decode()
    del files[".gitattributes"]
    assert files == committed(store)
    assert "patchbay pull hf://datasets/somebody/mine" in card
    assert hub.private == {"somebody/mine"}


def test_what_is_fetched_is_the_store(
    hub: Hub, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pull", "hf://datasets/somebody/mine", str(tmp_path / "theirs")]) == 0
    assert contents(tmp_path / "theirs", manifest=True) == committed(store)
    assert Store(tmp_path / "theirs").complete
    assert not (tmp_path / "theirs.part").exists()
    assert "is there already" in said(capsys, "pull", "somebody/mine", tmp_path / "theirs")


def test_a_transfer_that_stops_leaves_no_store_and_goes_on(
    hub: Hub, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.stop = 5
    try:
        assert "The Hub didn't serve" in said(capsys, "pull", "somebody/mine", tmp_path / "theirs")
    finally:
        hub.stop = None
    assert not (tmp_path / "theirs").exists()
    assert pull(Repository("somebody/mine"), tmp_path / "theirs") == tmp_path / "theirs"
    assert contents(tmp_path / "theirs", manifest=True) == committed(store)


def test_a_later_push_takes_away_what_the_store_no_longer_has(hub: Hub, store: Path) -> None:
    hub.repositories["somebody/again"] = {"tables/old.parquet": b"old", "README.md": b"mine"}
    push(store, Repository("somebody/again"), private=True)
    files = hub.repositories["somebody/again"]
    assert "tables/old.parquet" not in files
    assert files["README.md"] == b"mine", "a card that somebody wrote stays"
    assert "somebody/again" not in hub.private, "who may read a repository that was there is left alone"


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        (lambda files: files.update({"manifest.json": b"{}"}), "damaged"),
        (lambda files: files.pop("zarr.json"), "damaged"),
        (lambda files: files.update({"../outside": b"x"}), "holds no store"),
        (lambda files: files.pop("manifest.json"), "holds no store"),
    ],
    ids=["forged manifest", "lost file", "outside", "no store"],
)
def test_what_is_no_whole_store_is_refused(
    hub: Hub, tmp_path: Path, change: Callable[[dict[str, bytes]], object], refusal: str
) -> None:
    files = dict(hub.repositories["somebody/mine"])
    change(files)
    hub.repositories["somebody/bad"] = files
    with pytest.raises(StoreError, match=refusal):
        pull(Repository("somebody/bad"), tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()
    assert not (tmp_path / "outside").exists()


def test_refusals_say_what_to_do(
    hub: Hub,
    store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = tmp_path / "theirs"
    assert "leave the revision out" in said(capsys, "pull", "somebody/mine@v7", there)
    damaged = tmp_path / "damaged"
    write_all(damaged)
    next(damaged.glob("weights/base/unembedding/c*")).write_bytes(b"")
    assert "is damaged" in said(capsys, "push", damaged, "somebody/other")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "hf auth login" in said(capsys, "pull", "somebody/mine", there)
    assert "hf auth login" in said(capsys, "push", store, "somebody/other")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "unset HF_HUB_OFFLINE" in said(capsys, "pull", "somebody/mine", there)
    assert "somebody/other" not in hub.repositories


@pytest.mark.parametrize("text", ["", "mine", "a/b/c", "../x", "a/..", "s3://a/b", "a/b@", "a b/c"])
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(StoreError, match="OWNER/NAME"):
        Repository.parse(text)
    assert Repository.parse("hf://datasets/a/b@v1") == Repository("a/b", "v1")
