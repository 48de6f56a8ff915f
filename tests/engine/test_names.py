"""What may be a name."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import StudyError
from engine.study.study import Study

MODELS = {"base": {"hub": "a/base"}, "tuned": {"hub": "a/tuned"}}


def study(**changes: object) -> Study:
    data = {"name": "s", "models": MODELS, "prompts": {"files": ["p.jsonl"]}} | changes
    return Study.from_dict(data, Path("/nowhere"))


@pytest.mark.parametrize("name", ["demo", "qwen2.5-3b zh→en", "中文", "Ärger (2)", "émoji 🙂", "x" * 100])
def test_names_in_any_script_are_names(name: str) -> None:
    assert study(name=name).name == name


@pytest.mark.parametrize(
    "name",
    [
        *("../../x", "/x", "a/b", "a\\b", ".hidden", "..", "", "  ", " x", "x ", "a\0b", "a\nb", "a\x1b[2Jb"),
        *("e\u0301", "\u202egnp.exe", "a\u200bb", "\ud800", "x" * 101, "字" * 70, "\ue000", "a\u2028b"),
    ],
)
def test_what_could_be_a_path_or_mislead_is_no_name(name: str) -> None:
    with pytest.raises(StudyError, match=r"'name' has an impossible value"):
        study(name=name)
    with pytest.raises(StudyError, match=r"letters, digits|at most 100|unicode string"):
        study(models={name: MODELS["base"]})
    with pytest.raises(StudyError, match=r"letters, digits|at most 100|unicode string"):
        study(contrasts={name: {"plus": "tuned", "minus": "tuned"}})


def test_names_that_differ_in_case_only_are_refused() -> None:
    with pytest.raises(StudyError, match="'base' and 'Base' differ in case only"):
        study(models={"base": MODELS["base"], "Base": MODELS["tuned"]})
    models = MODELS | {"other": MODELS["tuned"]}
    contrast = {"plus": "tuned", "minus": "other"}
    with pytest.raises(StudyError, match="'one' and 'ONE' differ in case only"):
        study(models=models, contrasts={"one": contrast, "ONE": contrast})
    with pytest.raises(StudyError, match="has the name of a model"):
        study(models=models, contrasts={"TUNED": contrast})


@pytest.mark.parametrize("name", ["a.", "a-", "-a", ".a", "x" * 101])
def test_names_of_models_have_folders_of_their_own(name: str) -> None:
    """What a folder's name would lose at its ends can't tell two models apart."""
    with pytest.raises(StudyError, match=r"letters, digits|at most 100|unicode string"):
        study(models={name: MODELS["base"]})


@pytest.mark.parametrize(
    "hub", ["/etc", "../x", "a/../b", "a//b", "a/b/c", "https://x/y", "a\nb", "a--b", ""]
)
def test_an_id_on_the_hub_is_no_path(hub: str) -> None:
    with pytest.raises(StudyError, match=r"an id on the Hub|exactly one of"):
        study(models={"m": {"hub": hub}})
    with pytest.raises(StudyError, match=r"an id on the Hub|exactly one of"):
        study(prompts={"files": [{"dataset": hub, "split": "train"}]})


@pytest.mark.parametrize(
    "more", [{"revision": "../x"}, {"revision": "a b"}, {"gguf": "../x.gguf"}, {"device": "cuda:" + "9" * 9}]
)
def test_what_goes_with_an_id_is_no_path_either(more: dict[str, str]) -> None:
    with pytest.raises(StudyError, match="impossible value"):
        study(models={"m": {"hub": "a/b", **more}})
