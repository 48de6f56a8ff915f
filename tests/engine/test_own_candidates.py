"""A user's own candidates: run only when allowed and unchanged; what is wrong with one costs no other."""

from __future__ import annotations

import hashlib
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from subspace_runs import DELTAS, synthetic_lab

from engine.errors import PatchError, StudyError
from engine.lab.experiment import Result
from engine.subspaces.numbers import REGISTRY, candidate
from engine.subspaces.own_candidates import OwnFile, load
from engine.subspaces.spec import SubspaceScores
from engine.subspaces.tables import scores_of

PAGE = Path(__file__).parents[2] / "docs" / "methods" / "subspace_scores.md"
BUILT_IN = ("mlp_write", "attn_write", "dW_combined_ceiling")
HEAD = """\
import numpy as np
from engine.subspaces.numbers import candidate
FACTS = dict(family="own", axis_kind="mixed", source="none", needs=(), definition="a test")
"""
BAD = (
    HEAD
    + """
@candidate(name="good", nested=True, **FACTS)
def good(inputs, layer, k):
    return np.eye(inputs.d)[:, :k]

@candidate(name="stretched", **FACTS)
def stretched(inputs, layer, k):
    return 2 * np.eye(inputs.d)[:, :k]

@candidate(name="narrow", **FACTS)
def narrow(inputs, layer, k):
    return np.eye(inputs.d - 1)[:, :k]

@candidate(name="not_numbers", **FACTS)
def not_numbers(inputs, layer, k):
    return np.full((inputs.d, k), np.nan)

@candidate(name="raises", **FACTS)
def raises(inputs, layer, k):
    return inputs.get("down_proj", layer)["no such column"]

@candidate(name="leaves", **FACTS)
def leaves(inputs, layer, k):
    raise SystemExit(3)

@candidate(name="bad_detail", detail=lambda inputs, layer, k: 1 / 0, **FACTS)
def bad_detail(inputs, layer, k):
    return np.eye(inputs.d)[:, :k]

@candidate(name="writes_into_weights", **FACTS)
def writes_into_weights(inputs, layer, k):
    inputs.get("down_proj", layer)[:] = 0
    return np.eye(inputs.d)[:, :k]

@candidate(name="mlp_write", **FACTS)
def mlp_write(inputs, layer, k):
    return np.eye(inputs.d)[:, :k]

@candidate(name="wants_more", **{**FACTS, "needs": ("up_projection",)})
def wants_more(inputs, layer, k):
    return np.eye(inputs.d)[:, :k]

@candidate(name="good", **FACTS)
def again(inputs, layer, k):
    return np.eye(inputs.d)[:, -k:]

@candidate(name="last", **FACTS)
def last(inputs, layer, k):
    return np.eye(inputs.d)[:, -k:]
"""
)


def writes(marker: Path) -> str:
    """Code that leaves a trace."""
    return f"from pathlib import Path\nPath({str(marker)!r}).write_text('ran')\n"


def line(text: str) -> int:
    """The line of BAD that holds a text."""
    return BAD[: BAD.index(text)].count("\n") + 1


def own(path: Path, text: str, allowed: bool = True) -> OwnFile:
    path.write_text(text)
    return OwnFile(path, hashlib.sha256(path.read_bytes()).hexdigest(), allowed)


def scored(file: OwnFile, code: str | None = None, **changes: Any) -> Result:
    asked: dict[str, Any] = {"ks": (2, 4), "cleans": (0,), "broad": 6, "code": file.digest or ""} | changes
    return SubspaceScores(**asked if code is None else asked | {"code": code}).run(  # type: ignore[arg-type]
        synthetic_lab(4, file)
    )


def test_nothing_runs_unless_it_is_allowed(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    file = own(
        tmp_path / "theirs.py",
        f"from pathlib import Path\nPath({str(marker)!r}).write_text('ran')\n",
        allowed=False,
    )
    found = scored(file, code="", candidates=BUILT_IN)
    note = "The study names candidates in theirs.py; they were not run; add --allow-code."
    assert found.summary["notes"] == [note]
    facts = {"file": "theirs.py", "sha256": file.digest, "ran": False, "names": [], "problem": ""}
    assert found.summary["code"] == facts
    with pytest.raises(StudyError, match=r"isn't run by itself.*--allow-code"):
        scored(file)
    scored(replace(file, allowed=True), code="", candidates=BUILT_IN)  # allowed, but not asked for
    assert not marker.exists()
    scored(replace(file, allowed=True), candidates=BUILT_IN)
    assert marker.read_text() == "ran"


def test_only_the_content_that_the_study_names_runs(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    file = own(tmp_path / "own.py", HEAD)
    file.path.write_text(HEAD + f"from pathlib import Path\nPath({str(marker)!r}).write_text('ran')\n")
    now = hashlib.sha256(file.path.read_bytes()).hexdigest()
    with pytest.raises(StudyError, match=f"SHA-256 {file.digest}.*Given: {now}"):
        scored(file)
    with pytest.raises(PatchError, match=f"code = {file.digest}.*Given: {now}"):
        scored(file, code=now)
    with pytest.raises(StudyError, match="can't be read"):
        load(replace(file, path=tmp_path / "gone.py"), REGISTRY)
    with pytest.raises(StudyError, match="None"):  # a study whose file was not there has no hash to trust
        load(replace(file, digest=None), REGISTRY)
    assert not marker.exists()


def test_each_bad_candidate_is_named_and_the_others_are_scored(tmp_path: Path) -> None:
    before = dict(REGISTRY)
    found = scored(own(tmp_path / "own.py", BAD))
    assert dict(REGISTRY) == before
    reasons = {row["name"]: row["reason"] for row in found.summary["left_out"]}
    expected = {
        "stretched": "not orthonormal",
        "narrow": "no basis of the stream",
        "not_numbers": "not finite",
        "raises": rf"IndexError: .* \(own\.py, line {line('no such column')}\)",
        "leaves": rf"SystemExit: 3 \(own\.py, line {line('SystemExit')}\)",
        "bad_detail": "ZeroDivisionError",
        "writes_into_weights": "read-only",
        "mlp_write (own.py)": "name is taken",
        "wants_more (own.py)": "needs what no inputs have.*up_projection",
        "good (own.py)": "name is taken",
    }
    assert set(reasons) == set(expected)
    for name, reason in expected.items():
        assert re.search(reason, reasons[name]), (name, reasons[name])
    scores = scores_of(found.summary, found.tables, DELTAS[0], 4)
    assert {"good", "last", *REGISTRY} == set(scores.names)
    entries = found.summary["candidates"]
    assert {e["name"] for e in entries if e["own"]} >= {"good", "last"}
    assert not any(e["own"] for e in entries if e["name"] in REGISTRY)
    without = scored(own(tmp_path / "own.py", HEAD))
    same = scores_of(without.summary, without.tables, DELTAS[0], 4)
    kept = [scores.names.index(name) for name in same.names]
    for name in ("r_act", "r_combined", "z_combined", "cosine", "r_specific"):
        # Products of more columns are added up in another order.
        np.testing.assert_allclose(scores.tables[name][kept], same.tables[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("text", "problem", "names"),
    [
        (HEAD + "def half(:\n", r"own\.py, line 4: SyntaxError: .*", []),
        (HEAD + "\tdef x", r"own\.py, line 4: IndentationError: .*", []),
        ("import no_such_package\n", r"own\.py, line 1: ModuleNotFoundError: .*no_such_package.*", []),
        (HEAD + "import sys\nsys.exit('bye')\n", r"own\.py, line 5: SystemExit: bye", []),
        (
            HEAD
            + "@candidate(name='first', **FACTS)\ndef first(i, l, k): return np.eye(i.d)[:, :k]\n1 / 0\n",
            r"own\.py, line 6: ZeroDivisionError: division by zero",
            ["first"],
        ),
        (
            HEAD + "@candidate(name='b')\ndef b(i, l, k): return 0\n",
            r"own\.py, line 4: TypeError: .*",
            [],
        ),
        ("\x00", r"own\.py.*SyntaxError.*", []),
    ],
)
def test_a_file_that_ends_early_is_told_by_its_line(
    tmp_path: Path, text: str, problem: str, names: list[str]
) -> None:
    found = scored(own(tmp_path / "own.py", text), candidates=(*BUILT_IN, *names))
    assert re.fullmatch(problem, found.summary["code"]["problem"]), found.summary["code"]
    assert found.summary["code"]["names"] == names
    assert found.summary["notes"][0].startswith("The study's own candidates stopped early. own.py")
    assert set(found.tables["table"]["candidate"]) == {*BUILT_IN, *names}


def test_a_file_may_define_dataclasses_and_leaves_no_trace(tmp_path: Path) -> None:
    text = "from __future__ import annotations\nfrom dataclasses import dataclass\n" + HEAD.replace(
        "import numpy", "@dataclass\nclass Choice:\n    width: int = 3\n\nimport numpy"
    )
    loaded = load(own(tmp_path / "own.py", text), REGISTRY)
    assert loaded.problem == ""

    @candidate(
        name="after", family="own", axis_kind="mixed", source="none", needs=(), definition="registered later"
    )
    def after(inputs: Any, layer: int, k: int) -> np.ndarray:
        return np.eye(inputs.d)[:, :k]

    try:
        assert "after" in REGISTRY
        assert "after" not in loaded.registry
    finally:
        REGISTRY.remove("after")


def test_the_worked_example_is_scored(tmp_path: Path) -> None:
    (text,) = re.findall(r"```python title=\"my_candidates\.py\"\n(.*?)```", PAGE.read_text(), re.S)
    file = own(tmp_path / "my_candidates.py", text)
    loaded = load(file, REGISTRY)
    assert (loaded.problem, dict(loaded.refused)) == ("", {})
    assert loaded.names
    found = scored(file, candidates=(*BUILT_IN, *loaded.names))
    assert not found.summary["left_out"]
    scores = scores_of(found.summary, found.tables, DELTAS[0], 2)
    assert set(loaded.names) < set(scores.names)
    rows = [scores.names.index(name) for name in loaded.names]
    assert np.isfinite(scores.tables["r_act"][rows]).all()
    assert f"own_candidates_{str(file.digest)[:12]}" in sys.modules


def test_own_names_of_what_is_kept_never_meet_the_built_in_ones(tmp_path: Path) -> None:
    """A candidate that began as a copy of a built-in one keeps its intermediates under the same names."""
    text = (
        HEAD
        + """
@candidate(name="mine", nested=True, **FACTS)
def mine(inputs, layer, k):
    if layer:  # also those that are still to come
        inputs.leading("contrast", layer - 1, k, lambda wide: np.eye(inputs.d)[:, :wide], True)
        inputs.once("input/down_proj", layer - 1, lambda: np.zeros((inputs.d, 7)))
    return inputs.leading("contrast", layer, k, lambda wide: np.eye(inputs.d)[:, :wide])

@candidate(name="plain", nested=True, **FACTS)
def plain(inputs, layer, k):
    return np.eye(inputs.d)[:, :k]
"""
    )
    names = ("TaskDiff_contrast", "WNR_union_TaskDiff", "mlp_write")
    file = own(tmp_path / "mine.py", text)
    found = SubspaceScores(
        ks=(3,), cleans=(0,), broad=4, candidates=("mine", "plain", *names), code=file.digest or ""
    )
    alone = SubspaceScores(ks=(3,), cleans=(0,), broad=4, candidates=names)
    result, wanted = found.run(synthetic_lab(own=file)), alone.run(synthetic_lab())  # type: ignore[arg-type]
    assert result.summary["left_out"] == []
    one, two = (scores_of(each.summary, each.tables, DELTAS[0], 3) for each in (result, wanted))
    assert np.array_equal(one.tables["r_act"][0], one.tables["r_act"][1])
    # Products of more columns side by side round differently.
    np.testing.assert_allclose(one.tables["r_act"][2:], two.tables["r_act"], rtol=1e-10)
    np.testing.assert_allclose(one.tables["r_combined"][2:], two.tables["r_combined"], rtol=1e-10)


def test_complex_numbers_nameless_entries_and_changed_error_handling_stay_with_their_candidate(
    tmp_path: Path,
) -> None:
    text = (
        HEAD
        + """
np.seterr(all="raise")

@candidate(name="half_real", **FACTS)
def half_real(inputs, layer, k):
    return np.eye(inputs.d)[:, :k] + 1j * np.eye(inputs.d)[:, :k]

@candidate(name="real_after_all", **FACTS)
def real_after_all(inputs, layer, k):
    np.seterr(all="raise")
    return np.eye(inputs.d)[:, :k] + 0j

@candidate(name=3, **FACTS)
def three(inputs, layer, k):
    return np.eye(inputs.d)[:, :k]
"""
    )
    file, before = own(tmp_path / "mine.py", text), np.geterr()
    wanted = SubspaceScores(ks=(3,), cleans=(0,), broad=4, code=file.digest or "")
    summary = wanted.run(synthetic_lab(own=file)).summary  # type: ignore[arg-type]
    reasons = {row["name"]: row["reason"] for row in summary["left_out"]}
    assert set(reasons) == {"half_real", f"3 ({file.path.name})"}
    assert "is complex" in reasons["half_real"]
    assert "a text for name" in reasons[f"3 ({file.path.name})"]
    assert summary["code"]["names"] == ["half_real", "real_after_all"]
    assert np.geterr() == before
