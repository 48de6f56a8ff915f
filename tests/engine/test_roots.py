"""Files that a study or a store names lie in declared folders, whatever the study says."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import StudyError
from engine.study.roots import VARIABLE, allow_roots, confine_all, declared_roots, roots_for
from engine.study.study import Study

SECRET = '{"id": "a", "text": "secret"}\n'


@pytest.fixture(autouse=True)
def _no_roots(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(VARIABLE, raising=False)
    allow_roots([])
    yield
    allow_roots([])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study's folder beside things that are not its own; the program runs in a third one."""
    for name in ("study", "elsewhere", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "elsewhere" / "secret.jsonl").write_text(SECRET)
    (tmp_path / "study" / "own.jsonl").write_text(SECRET)
    (tmp_path / "study" / "model").mkdir()
    (tmp_path / "study" / "model" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "study"


def study(folder: Path, prompts: str = "own.jsonl", model: str = "model") -> Path:
    path = folder / "study.toml"
    path.write_text(f'name = "s"\n[models.m]\npath = "{model}"\n[prompts]\nfiles = ["{prompts}"]\n')
    return path


def test_files_beside_the_study_in_its_checkout_and_in_the_working_folder_are_its_own(folder: Path) -> None:
    Study.load(study(folder))
    (folder.parent / "work" / "p.jsonl").write_text(SECRET)
    Study.load(study(folder, str(folder.parent / "work" / "p.jsonl")))
    with pytest.raises(StudyError, match="lies outside"):
        Study.load(study(folder, "../elsewhere/secret.jsonl"))
    (folder.parent / ".git").mkdir()
    Study.load(study(folder, "../elsewhere/secret.jsonl"))


@pytest.mark.parametrize("how", ["relative", "absolute", "link", "link to a folder", "missing"])
def test_a_file_elsewhere_is_refused_with_the_option_that_allows_it(folder: Path, how: str) -> None:
    elsewhere = folder.parent / "elsewhere"
    (folder / "link.jsonl").symlink_to(elsewhere / "secret.jsonl")
    (folder / "links").symlink_to(elsewhere)
    named = {
        "relative": "../elsewhere/secret.jsonl",
        "absolute": str(elsewhere / "secret.jsonl"),
        "link": "link.jsonl",
        "link to a folder": "links/secret.jsonl",
        "missing": "../elsewhere/none.jsonl",
    }[how]
    with pytest.raises(StudyError, match=r"prompts\.files\[0\] lies outside") as caught:
        Study.load(study(folder, named))
    assert f"--root {elsewhere}" in str(caught.value)
    assert str(folder) in str(caught.value)
    if how != "missing":
        allow_roots([elsewhere])
        Study.load(study(folder, named))


def test_the_environment_variable_names_several_roots(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = folder.parent / "elsewhere"
    monkeypatch.setenv(VARIABLE, os.pathsep.join(["/nowhere", str(elsewhere)]))
    assert declared_roots() == (Path("/nowhere"), elsewhere)
    Study.load(study(folder, "../elsewhere/secret.jsonl"))


def test_links_in_a_model_folder_are_followed_before_they_are_believed(folder: Path) -> None:
    (folder / "model" / "model.safetensors").symlink_to(folder.parent / "elsewhere" / "secret.jsonl")
    with pytest.raises(StudyError, match=r"models\.m\.path lies outside.*secret\.jsonl"):
        Study.load(study(folder))
    (folder / "model" / "model.safetensors").unlink()
    (folder / "blob").write_text("x")
    (folder / "model" / "model.safetensors").symlink_to(folder / "blob")
    Study.load(study(folder))


def test_home_and_what_is_above_it_are_no_roots_by_themselves(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    (folder.parent / ".git").mkdir()
    monkeypatch.chdir(folder.parent)
    assert folder.parent not in roots_for(folder)
    assert folder in roots_for(folder)
    with pytest.raises(StudyError, match="lies outside"):
        Study.load(study(folder, "~/elsewhere/secret.jsonl"))


@pytest.mark.parametrize("what", ["pipe", "socket", "device", "loop"])
def test_what_is_no_plain_file_is_refused_and_never_opened(folder: Path, what: str) -> None:
    place = folder / "odd.jsonl"
    if what == "pipe":
        os.mkfifo(place)
    elif what == "loop":
        place.symlink_to(place)
    elif what == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            os.chdir(folder)
            server.bind("odd.jsonl")
    else:
        allow_roots(["/dev"])
        place = Path("/dev/zero")
    words = "can't be followed" if what == "loop" else "is no plain file"
    with pytest.raises(StudyError, match=words):
        Study.load(study(folder, str(place)))
    if what in ("pipe", "socket"):
        place.rename(folder / "model" / "tokenizer.json")
        with pytest.raises(StudyError, match=r"models\.m\.path is no plain file"):
            Study.load(study(folder))


def test_a_root_that_is_not_there_is_told() -> None:
    with pytest.raises(StudyError, match=r"A root isn't there.*Given: /nowhere"):
        allow_roots(["/nowhere"])


def test_a_folder_of_everything_is_no_model_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.study.roots.MOST_ENTRIES", 3)
    for number in range(4):
        (folder / "model" / str(number)).write_text("")
    with pytest.raises(StudyError, match="no model folder"):
        confine_all({"models.m.path": folder / "model"}, folder)


@pytest.mark.parametrize("named", ["~nobody-of-this-name/x.jsonl", "a\\u0000b", "x" * 5000, ""])
def test_text_that_names_no_file_is_an_impossible_value(folder: Path, named: str) -> None:
    with pytest.raises(StudyError, match=r"prompts\.files.*a path"):
        Study.load(study(folder, named))
