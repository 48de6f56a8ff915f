from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from engine.behaviour.spec import Wording
from engine.errors import PatchError, StudyError
from engine.study import study as study_module
from engine.study.fingerprints import diff_studies
from engine.study.study import Study
from engine.texts import answers

STUDY = """
name = "pair"
seed = 3
[models.base]
path = "../models/base"
[models.tuned]
path = "../models/base"
adapter = "../models/adapter"
dtype = "bfloat16"
[prompts]
files = ["prompts.jsonl"]
date = 2024-07-26
[capture]
layers = [2, 0]
positions = ["decision", "sample(k=2, skip_last=1)"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("base", "adapter"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "model.safetensors").write_bytes(name.encode())
    (tmp_path / "models" / "base" / "README.md").write_text("read me")
    (tmp_path / ".git").mkdir()
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "prompts.jsonl").write_text('{"id": "a", "text": "x"}\n')
    return tmp_path / "studies"


def write(folder: Path, text: str) -> Path:
    path = folder / "study.toml"
    path.write_text(text)
    return path


def test_a_study_is_read_with_its_defaults_and_paths_of_its_own_folder(folder: Path) -> None:
    study = Study.load(write(folder, STUDY))
    assert list(study.models) == ["base", "tuned"]
    assert study.models["base"].path == folder.parent / "models" / "base"
    assert study.models["tuned"].adapter == folder.parent / "models" / "adapter"
    assert [source.path for source in study.prompts.files] == [folder / "prompts.jsonl"]
    assert study.prompts.date == "2024-07-26"
    assert study.capture.layers == (0, 2)
    assert study.capture.positions == ("decision", "sample(k=2,skip_last=1)")
    assert study.capture.components == ("resid", "attn_out", "mlp_out", "head_z")
    with pytest.raises(ValidationError, match="frozen"):
        study.seed = 4


SUBSPACES = '[subspaces]\ndeltas = ["tuend"]\npositive = "a"\nnegative = "b"\n[prompts]'


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("seed = 3", "sead = 3", ["unknown key 'sead'", "did you mean 'seed'?"]),
        ("layers = [2, 0]", "layer = [2, 0]", ["unknown key 'capture.layer'", "did you mean 'layers'?"]),
        ('dtype = "bfloat16"', 'dtype = "int8"', ["'models.tuned.dtype'", "'bfloat16'", "'int8'"]),
        ('dtype = "bfloat16"', 'hub = "a/b"', ["'models.tuned'", "exactly one of 'hub', 'path' and 'gguf'"]),
        ('dtype = "bfloat16"', 'revision = "main"', ["'revision' needs 'hub'"]),
        ('dtype = "bfloat16"', 'device = "gpu"', ["'models.tuned.device'", "'cuda:0'", "'gpu'"]),
        ("layers = [2, 0]", "layers = [-1]", ["capture.layers", "greater than or equal to 0", "-1"]),
        ("layers = [2, 0]", "layers = []", ["capture.layers", "at least one layer"]),
        ('"decision"', '"decisions"', ["capture.positions", "did you mean 'decision'?"]),
        ('"decision"', '"sample(k=0)"', ["capture.positions", "k of 1 or more"]),
        ('files = ["prompts.jsonl"]', "", ["'prompts.files' is missing"]),
        ("date = 2024-07-26", 'date = "yesterday"', ["prompts.date", "yesterday"]),
        ("date = 2024-07-26", "validation = 1.5", ["prompts.validation", "less than 1", "1.5"]),
        ("date = 2024-07-26", 'template = "plain"\nsystem = "Be kind."', ["'system' needs template"]),
        ("prompts.jsonl", "nowhere.jsonl", ["prompts.files[0]", "nowhere.jsonl"]),
        ("../models/adapter", "../models/adaptor", ["models.tuned.adapter", "models/adaptor"]),
        ("[models.tuned]", '[models."a/b"]', ["'a/b'", "letters, digits"]),
        (
            "[prompts]",
            '[contrasts]\nodd = { plus = "tuned", minus = "tunde" }\n[prompts]',
            ["no model 'tunde'", "tuned"],
        ),
        ("[prompts]", SUBSPACES, ["parts of it don't fit together", "'tuend' is not in the study"]),
        ('name = "pair"', 'name = "pair', ["not valid TOML", "line 2"]),
    ],
)
def test_mistakes_are_named_with_what_was_expected_and_given(
    folder: Path, old: str, new: str, parts: list[str]
) -> None:
    assert old in STUDY
    with pytest.raises(StudyError) as caught:
        Study.load(write(folder, STUDY.replace(old, new)))
    message = str(caught.value)
    for part in [*parts, "Expected:", "Given:", "Next:"]:
        assert part in message


def test_a_missing_study_file_is_named(folder: Path) -> None:
    with pytest.raises(StudyError, match=r"none\.toml isn't there"):
        Study.load(folder / "none.toml")


def test_several_mistakes_are_counted(folder: Path) -> None:
    text = STUDY.replace("seed = 3", "sead = 3\nname2 = 1").replace("[2, 0]", "[-1]")
    with pytest.raises(StudyError, match=r"unknown key 'sead'.*\(\d more"):
        Study.load(write(folder, text))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("seed = 3", "seed = 4"),
        ("[2, 0]", "[0, 1]"),
        ('dtype = "bfloat16"', 'dtype = "float32"'),
        ('dtype = "bfloat16"', 'dtype = "bfloat16"\nattention = "eager"'),
        ("date = 2024-07-26", "date = 2024-07-27"),
        ("date = 2024-07-26", "date = 2024-07-26\nlimit = 3"),
        ("models.tuned", "models.other"),
        ("skip_last=1", "skip_last=2"),
    ],
)
def test_what_changes_a_number_changes_the_fingerprint_and_is_named(folder: Path, old: str, new: str) -> None:
    a = Study.load(write(folder, STUDY))
    b = Study.load(write(folder, STUDY.replace(old, new)))
    assert old in STUDY
    assert a.fingerprint() != b.fingerprint()
    assert diff_studies(a.to_json(), b.to_json())


def test_name_notes_device_and_order_of_layers_do_not_change_the_fingerprint(folder: Path) -> None:
    a = Study.load(write(folder, STUDY))
    other = STUDY.replace('"pair"', '"twin"').replace("[2, 0]", "[0, 2, 2]")
    other = other.replace("seed = 3", 'seed = 3\nnotes = "hm"').replace(
        'dtype = "bfloat16"', 'dtype = "bfloat16"\ndevice = "cpu"'
    )
    b = Study.load(write(folder, other))
    assert a.fingerprint() == b.fingerprint()
    assert diff_studies(a.to_json(), b.to_json()) == []


@pytest.mark.parametrize("name", ["sample(k=4)", "sample(k=4,draw=2)"])
def test_a_sample_of_other_tokens_is_another_study(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The draw is in the fingerprint of studies that sample, and in no other's."""
    plain = Study.load(write(folder, STUDY)).with_overrides(positions=("decision",))
    study = plain.with_overrides(positions=(name, "decision"))
    before = study.to_json()
    assert before["content"].pop("positions.sample") == study_module.DRAW
    assert "positions.sample" not in plain.to_json()["content"]
    assert diff_studies(before, study.to_json()) == [
        f"content.positions.sample: (absent) → {study_module.DRAW}"
    ]
    assert Study.from_json(study.to_json()).fingerprint() == study.fingerprint()
    known = study.fingerprint(), plain.fingerprint()
    monkeypatch.setattr(study_module, "DRAW", "another")
    assert study.fingerprint() != known[0]
    assert plain.fingerprint() == known[1]


def test_the_order_of_models_is_part_of_the_fingerprint(folder: Path) -> None:
    a = Study.load(write(folder, STUDY))
    swapped = Study.from_dict(
        a.model_dump() | {"models": {k: a.models[k].model_dump() for k in ("tuned", "base")}}, folder
    )
    assert swapped.fingerprint() != a.fingerprint()
    assert diff_studies(a.to_json(), swapped.to_json()) == [
        "model_order: ['base', 'tuned'] → ['tuned', 'base']"
    ]


def test_content_of_named_files_counts_and_their_place_does_not(folder: Path, tmp_path: Path) -> None:
    before = Study.load(write(folder, STUDY))
    first, stored = before.fingerprint(), before.to_json()
    (folder.parent / "models" / "base" / "README.md").write_text("other words")
    assert Study.load(write(folder, STUDY)).fingerprint() == first
    (folder / "prompts.jsonl").write_text('{"id": "a", "text": "y!"}\n')
    after = Study.load(write(folder, STUDY))
    assert after.fingerprint() != first
    (line,) = diff_studies(stored, after.to_json())
    assert line.startswith("content.prompts.files[0]: content ")
    assert "→" in line
    (folder / "prompts.jsonl").write_text('{"id": "a", "text": "x"}\n')
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("models", "studies", ".git"):
        (tmp_path / name).rename(moved / name)
    assert Study.load(moved / "studies" / "study.toml").fingerprint() == first


def test_weights_count(folder: Path) -> None:
    first = Study.load(write(folder, STUDY)).fingerprint()
    (folder.parent / "models" / "adapter" / "model.safetensors").write_bytes(b"changed")
    assert Study.load(write(folder, STUDY)).fingerprint() != first


def test_a_study_survives_json(folder: Path) -> None:
    study = Study.load(write(folder, STUDY))
    stored = json.loads(json.dumps(study.to_json()))
    again = Study.from_json(stored)
    assert again == study
    assert again.fingerprint() == study.fingerprint()
    assert stored["models"]["base"]["path"] == "../models/base"
    assert list(stored["models"]) == ["base", "tuned"]


def test_overrides_are_validated_and_change_the_fingerprint(folder: Path) -> None:
    study = Study.load(write(folder, STUDY))
    other = study.with_overrides(layers=[1], components=["resid"], positions=["mean"], limit=5)
    assert other.capture.layers == (1,)
    assert other.capture.components == ("resid",)
    assert other.capture.positions == ("mean",)
    assert other.prompts.limit == 5
    assert other.models == study.models
    lines = diff_studies(study.to_json(), other.to_json())
    assert [line.split(":")[0] for line in lines] == [
        "capture.components",
        "capture.layers",
        "capture.positions",
        "content.positions.sample",
        "prompts.limit",
    ]
    assert study.with_overrides().fingerprint() == study.fingerprint()
    assert study.with_overrides(layers="all").capture.layers == "all"
    with pytest.raises(StudyError, match=r"capture\.components"):
        study.with_overrides(components=["heads"])


def test_a_stride_takes_each_nth_block(folder: Path) -> None:
    text = STUDY.replace("layers = [2, 0]", 'layers = "all"')
    assert text != STUDY
    study = Study.load(write(folder, text))
    other = study.with_overrides(stride=3)
    assert other.capture.blocks(8) == (0, 3, 6)
    assert study.capture.blocks(3) == (0, 1, 2)
    assert "stride" not in study.to_json()["capture"]
    assert diff_studies(study.to_json(), other.to_json()) == ["capture.stride: (absent) → 3"]
    with pytest.raises(StudyError, match="a list names its blocks itself"):
        study.with_overrides(layers=[0, 2], stride=2)


def test_layers_are_checked_against_the_model(folder: Path) -> None:
    capture = Study.load(write(folder, STUDY)).capture
    assert capture.blocks(3) == (0, 2)
    with pytest.raises(StudyError, match=r"Expected: indices 0 to 1\. Given: 2"):
        capture.blocks(2)


def test_a_hub_id_is_told_from_a_folder(folder: Path) -> None:
    text = STUDY.replace(
        'adapter = "../models/adapter"', 'adapter = "someone/adapter"\nadapter_revision = "v1"'
    )
    study = Study.load(write(folder, text))
    assert study.models["tuned"].adapter == "someone/adapter"
    assert "models.tuned.adapter" not in study.to_json()["content"]


def test_wording_of_any_language_stands_beside_the_built_in_lists(folder: Path) -> None:
    """A study without it has the fingerprint that it had; with it the lists reach the measures."""
    plain = Study.load(write(folder, STUDY))
    assert "wording" not in plain.to_json()
    lists = 'yes = {kk = ["Иә", "иә"]}\nagrees = {kk = ["^иә"]}\nstyle = {kk = {polite = ["өтінемін"]}}\n'
    text = f"{STUDY}\n[wording]\n{lists}"
    study = Study.load(write(folder, text))
    assert study.fingerprint() != plain.fingerprint()
    assert Study.from_json(study.to_json(), folder) == study
    found = Wording.beside(study.to_json()["wording"])
    assert found.yes["kk"] == ("Иә", "иә")
    assert found.yes["en"] == Wording().yes["en"]
    assert found.refusal == Wording().refusal
    assert found.markers == (*Wording().markers, "polite")
    agrees = answers.of_language(found.agrees, "kk")
    assert answers.verdict("Иә, бұл дұрыс.", agrees, found.disagrees["en"]) is True
    with pytest.raises(StudyError, match=r"wording\.refuses"):
        Study.load(write(folder, STUDY + '\n[wording]\nrefuses = {kk = ["("]}\n'))
    blank = study.to_json() | {"wording": {"refuses": {"kk": [""]}}}
    assert Study.from_json(blank, folder).wording.refuses == {"kk": ("",)}  # what is stored still opens
    nothing = {
        'refuses = {kk = [""]}': "empty text",
        'refuses = {kk = ["иә|x*"]}': "empty text",
        'style = {kk = {polite = ["y?"]}}': "empty text",
        'neutral = {kk = ["Иә", " "]}': "empty text",
        'yes = {kk = ["Иә"]}\nno = {kk = ["Жоқ", " иә"]}': "'иә' in yes and no",
        'agrees = {kk = ["иә"]}\ndisagrees = {kk = ["иә"]}': "'иә' in agrees and disagrees",
    }
    for lines, said in nothing.items():
        with pytest.raises(StudyError, match=said):
            Study.load(write(folder, f"{STUDY}\n[wording]\n{lines}\n"))
    Wording().check()
    with pytest.raises(PatchError, match="'no' in yes and no"):
        Wording.beside({"yes": {"en": ["Yes", "No"]}}).check()
    with pytest.raises(StudyError, match="wording"):
        Study.load(write(folder, STUDY + '\n[wording]\nsorry = {kk = ["x"]}\n'))
