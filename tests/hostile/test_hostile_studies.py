"""Studies, prompts and model folders made to break things: each is refused in words, and in time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import polars as pl
import pytest
from tiny_study import save_model

import precompute
from engine.study.roots import VARIABLE, allow_roots

LIMIT = 10
"""Seconds for one refusal."""
STUDY = """name = "s"
[models.m]
path = "model"
[prompts]
files = ["prompts.jsonl"]
[capture]
positions = ["decision"]
"""
ROW = '{"id": "a", "text": "one"}\n'
GOOD = ROW + '{"id": "b", "text": "two"}\n'
DEEP = 100_000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("made") / "model")


@pytest.fixture
def folder(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A sound study in a folder of its own; the program runs in another one."""
    here = tmp_path / "study"
    shutil.copytree(model, here / "model")
    (here / "study.toml").write_text(STUDY)
    (here / "prompts.jsonl").write_text(GOOD)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delenv(VARIABLE, raising=False)
    allow_roots([])
    yield here
    allow_roots([])


@pytest.fixture(autouse=True)
def _in_time() -> Iterator[None]:
    def late(_signal: int, _frame: FrameType | None) -> None:
        pytest.fail(f"no answer within {LIMIT} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def everything(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What `precompute.py STUDY --plan` says; it must refuse in four parts and leave nothing behind."""
    before = everything(folder.parent)
    assert precompute.main([str(folder / "study.toml"), "--plan"]) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    for part in ("Error: ", "Expected: ", "Given: ", "Next: "):
        assert part in said, said
    assert everything(folder.parent) == before
    return said


def test_the_sound_study_is_planned(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The positive control: what is refused below is refused for what was changed."""
    assert precompute.main([str(folder / "study.toml"), "--plan"]) == 0
    assert "2 prompts" in capsys.readouterr().out


def instead(old: str, new: str) -> bytes:
    assert old in STUDY
    return STUDY.replace(old, new).encode()


def more(text: str) -> bytes:
    return (STUDY + text).encode()


def prompts(text: str) -> bytes:
    return instead('files = ["prompts.jsonl"]', f'files = ["prompts.jsonl"]\n{text}')


STUDIES: dict[str, bytes] = {
    "empty": b"",
    "binary": bytes(range(256)),
    "utf-16": STUDY.encode("utf-16"),
    "two byte order marks": b"\xef\xbb\xbf" * 2 + STUDY.encode(),
    "nul": b"name = 's'\0",
    "deep arrays": more("x = " + "[" * DEEP + "]" * DEEP),
    "deep tables": more("x = " + "{a=" * 5000 + "1" + "}" * 5000),
    "deep keys": more("[" + ".".join("a" * 5000) + "]"),
    "a number of 6000 digits": instead("[models.m]", "seed = " + "9" * 6000 + "\n[models.m]"),
    "a hexadecimal number of 20000 digits": instead("[models.m]", "seed = 0x" + "f" * 20000 + "\n[models.m]"),
    "an unknown number of 20000 digits": instead("[models.m]", "zeed = 0x" + "f" * 20000 + "\n[models.m]"),
    "a seed of 4000 digits": instead("[models.m]", "seed = " + "9" * 4000 + "\n[models.m]"),
    "a negative seed": instead("[models.m]", "seed = -1\n[models.m]"),
    "an infinite seed": instead("[models.m]", "seed = inf\n[models.m]"),
    "a seed that is no number": instead("[models.m]", "seed = nan\n[models.m]"),
    "two megabytes": more("# " + "x" * (2 << 20)),
    "a date as a name": instead('name = "s"', "name = 2024-07-26"),
    "a time as a name": instead('name = "s"', "name = 07:32:00"),
    "a number as a name": instead('name = "s"', "name = 1"),
    "a table as a name": instead('name = "s"', "name = {}"),
    "a path as a name": instead('name = "s"', 'name = "../../x"'),
    "an absolute name": instead('name = "s"', 'name = "/tmp/x"'),
    "a hidden name": instead('name = "s"', 'name = ".ssh"'),
    "nul in a name": instead('name = "s"', 'name = "a\\u0000b"'),
    "an escape in a name": instead('name = "s"', 'name = "a\\u001b[2J"'),
    "an endless name": instead('name = "s"', f'name = "{"x" * 5000}"'),
    "a long note": instead("[models.m]", f'notes = "{"x" * 200_000}"\n[models.m]'),
    "no models": instead('[models.m]\npath = "model"', "[models]"),
    "models as a list": instead('[models.m]\npath = "model"', "models = [1]"),
    "a model named like a path": instead("[models.m]", '[models."../x"]'),
    "a model without a name": instead("[models.m]", '[models.""]'),
    "nul in a path": instead('"model"', '"mo\\u0000del"'),
    "a path of 5000 characters": instead('"model"', f'"{"x/" * 2500}"'),
    "a part of 300 characters": instead('"model"', f'"{"x" * 300}"'),
    "an empty path": instead('"model"', '""'),
    "a number as a path": instead('"model"', "3"),
    "somebody's home": instead('"model"', '"~nobody-at-all/model"'),
    "the root folder": instead('"model"', '"/"'),
    "a folder of the system": instead('"model"', '"/etc"'),
    "a folder above": instead('"model"', '"../../../../../../etc"'),
    "processes": instead('"model"', '"/proc/self"'),
    "a device": instead('"prompts.jsonl"', '"/dev/zero"'),
    "standard input": instead('"prompts.jsonl"', '"/dev/stdin"'),
    "a password file": instead('"prompts.jsonl"', '"/etc/passwd"'),
    "a folder as prompts": instead('"prompts.jsonl"', '"model"'),
    "an address as prompts": instead('"prompts.jsonl"', '"http://127.0.0.1:9/x.csv"'),
    "a pattern as prompts": instead('"prompts.jsonl"', '"*.jsonl"'),
    "no files": instead('["prompts.jsonl"]', "[]"),
    "2000 files": instead('["prompts.jsonl"]', "[" + '"prompts.jsonl",' * 2000 + "]"),
    "a file that is a number": instead('["prompts.jsonl"]', "[1]"),
    "a path and a dataset": instead('"prompts.jsonl"', '{path = "p", dataset = "a/b"}'),
    "a dataset that is a path": instead('"prompts.jsonl"', '{dataset = "../x", split = "train"}'),
    "a hub id that is a path": instead('path = "model"', 'hub = "../study/model"'),
    "a hub id that is an address": instead('path = "model"', 'hub = "http://127.0.0.1:9/x"'),
    "an adapter that is elsewhere": instead('path = "model"', 'path = "model"\nadapter = "/etc"'),
    "a tokenizer that is elsewhere": instead('path = "model"', 'path = "model"\ntokenizer = "/etc"'),
    "a weight difference that is elsewhere": instead(
        'path = "model"', 'path = "model"\nweight_diff = "/etc/passwd"'
    ),
    "candidates that are elsewhere": more(
        '[subspaces]\npositive = "a"\nnegative = "b"\ncandidates = "/etc/passwd"'
    ),
    "code of the model": instead('path = "model"', 'path = "model"\ntrust_remote_code = true'),
    "a huge limit": prompts("limit = " + "9" * 30),
    "a limit of 1e12": prompts("limit = 1e12"),
    "a limit of nothing": prompts("limit = 0"),
    "validation that is infinite": prompts("validation = inf"),
    "validation that is no number": prompts("validation = nan"),
    "a ratio that is no number": prompts("min_shared_ratio = nan"),
    "a column of 1e12": prompts("columns = {text = 1000000000000}"),
    "a date with a time": prompts("date = 2024-07-26T00:00:00Z"),
    "a date that is a time": prompts("date = 07:32:00"),
    "a date of another calendar": prompts('date = "2024-02-31"'),
    "a system that is a date": prompts("system = 2024-07-26"),
    "a filter that is a date": prompts("include = {category = [2024-07-26]}"),
    "a broken pattern": prompts('include = {text = "("}'),
    "positions that are numbers": instead('["decision"]', "[1]"),
    "a huge sample": instead('["decision"]', '["sample(k=99999999999999999999)"]'),
    "a sample of odd digits": instead('["decision"]', '["sample(k=²)"]'),
    "a sample of 5000 digits": instead('["decision"]', f'["sample(k={"9" * 5000})"]'),
    "3000 positions": instead('["decision"]', "[" + '"decision",' * 3000 + "]"),
    "a huge layer": more("layers = [99999999999999999999]"),
    "a layer that is not there": more("layers = [70000]"),
    "layers that are infinite": more("layers = [inf]"),
    "huge units": more("unit_prompts = 1e12"),
    "huge batches": more("batch_tokens = 9223372036854775808"),
    "a device with arguments": instead('path = "model"', 'path = "model"\ndevice = "cuda:99999999999"'),
    "a contrast of a path": more('[contrasts]\n"../x" = {plus = "m", minus = "m"}'),
    "an unknown key of a whole line": more('"\\u001b]0;x\\u0007" = 1'),
}


@pytest.mark.parametrize("name", STUDIES)
def test_a_hostile_study_is_refused(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "study.toml").write_bytes(STUDIES[name])
    assert "\x1b" not in refused(folder, capsys)


def row(**changes: object) -> bytes:
    return json.dumps({"id": "a", "text": "one"} | changes).encode()


JSONL: dict[str, bytes] = {
    "empty": b"",
    "white space": b"\n\n  \n",
    "binary": bytes(range(256)) * 10,
    "utf-16": GOOD.encode("utf-16"),
    "latin-1": '{"id": "a", "text": "é"}'.encode("latin-1"),
    "zeros": b"\0" * 100_000,
    "half a line": GOOD.encode()[:-9],
    "deep arrays": b'{"id": "a", "text": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep objects": b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
    "a number of 6000 digits": b'{"id": ' + b"9" * 6000 + b', "text": "x"}',
    "a huge exponent": b'{"id": 1e999, "text": "x"}',
    "not a number": b'{"id": NaN, "text": "x"}',
    "infinity": b'{"id": "a", "text": Infinity}',
    "half a character": b'{"id": "a", "text": "\\ud800"}',
    "half a character as a key": b'{"id": "a", "text": "x", "\\udfff": 1}',
    "half a character in a list": b'{"id": "a", "text": "x", "choices": ["\\ud800"]}',
    "a key twice": b'{"id": "a", "text": "x", "text": "y"}',
    "a list": b'["a"]',
    "a number": b"3",
    "null": b"null",
    "no id": b'{"text": "x"}',
    "an id twice": (ROW + ROW).encode(),
    "an empty text": row(text="  "),
    "a text that is null": row(text=None),
    "messages that are text": row(text=None, messages="["),
    "no messages": row(text=None, messages="[]"),
    "messages without roles": row(text=None, messages=[{}]),
    "messages that are numbers": row(text=None, messages=[1, 2]),
    "messages that are an object": row(text=None, messages={"role": "user"}),
    "messages of an unknown role": row(text=None, messages=[{"role": "root", "content": "x"}]),
    "messages in deep brackets": row(text=None, messages="[" * DEEP),
    "choices in deep brackets": row(choices="[" * DEEP),
    "choices that are a number": row(choices=3),
    "an unknown split": row(split="test"),
    "a prompt that is too long": row(text="word " * 100_000),
}


@pytest.mark.parametrize("name", JSONL)
def test_hostile_prompts_are_refused(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "prompts.jsonl").write_bytes(JSONL[name])
    refused(folder, capsys)


def test_a_byte_order_mark_is_no_harm(folder: Path) -> None:
    (folder / "prompts.jsonl").write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert precompute.main([str(folder / "study.toml"), "--plan"]) == 0


def sparse(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(1 << 42)


def nested_parquet(path: Path) -> None:
    pl.DataFrame({"id": [["a"]], "text": [{"a": [1, None]}], "x": [b"\xff"]}).drop("text").write_parquet(path)


TABLES: dict[str, tuple[str, bytes | Callable[[Path], object]]] = {
    "an empty json": (".json", b""),
    "a json of a number": (".json", b"3"),
    "a json of lists": (".json", b'{"a": [], "b": []}'),
    "a deep json": (".json", b"[" * DEEP),
    "an empty csv": (".csv", b""),
    "a csv of zeros": (".csv", b"\0" * 1000),
    "a csv of one quote": (".csv", b'"'),
    "a csv of other columns": (".csv", b"a,b\n1,2\n"),
    "a csv in utf-16": (".csv", "id,text\na,x\n".encode("utf-16")),
    "a csv with columns twice": (".csv", b"id,id,id\n1,2,3\n"),
    "an empty parquet": (".parquet", b""),
    "a parquet of letters": (".parquet", b"PAR1" + b"x" * 100 + b"PAR1"),
    "a parquet with a huge footer": (".parquet", b"PAR1" + struct.pack("<I", 2**31) + b"PAR1"),
    "a parquet of lists": (".parquet", nested_parquet),
    "a file of 4 TB": (".jsonl", sparse),
    "a csv of 4 TB": (".csv", sparse),
    "a parquet of 4 TB": (".parquet", sparse),
    "a folder": (".jsonl", Path.mkdir),
    "a pipe": (".jsonl", os.mkfifo),
    "a pipe as csv": (".csv", os.mkfifo),
    "a loop of links": (".jsonl", lambda path: path.symlink_to(path)),
    "a link to a device": (".jsonl", lambda path: path.symlink_to("/dev/zero")),
    "a link to a password file": (".csv", lambda path: path.symlink_to("/etc/passwd")),
    "an unknown suffix": (".xlsx", b"PK"),
}


@pytest.mark.parametrize("name", TABLES)
def test_hostile_files_are_refused(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    suffix, content = TABLES[name]
    path = folder / f"odd{suffix}"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    (folder / "study.toml").write_bytes(instead("prompts.jsonl", path.name))
    refused(folder, capsys)


def config(**changes: object) -> Callable[[Path], object]:
    def change(model: Path) -> None:
        path = model / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def put(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda model: (model / name).write_bytes(content)


def header(length: int, rest: bytes = b"{}") -> bytes:
    return struct.pack("<Q", length) + rest


def swap(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    def change(model: Path) -> None:
        (model / name).unlink(missing_ok=True)
        make(model / name)

    return change


MODELS: dict[str, Callable[[Path], object]] = {
    "an empty config": put("config.json", b""),
    "a config that is a list": put("config.json", b"[]"),
    "a config that is text": put("config.json", b'"x"'),
    "a config in utf-16": put("config.json", "{}".encode("utf-16")),
    "a deep config": put("config.json", b'{"a":' * 20_000 + b"1" + b"}" * 20_000),
    "a config of a huge number": put("config.json", b'{"model_type": "qwen3", "x": ' + b"9" * 6000 + b"}"),
    "a config without a type": put("config.json", b"{}"),
    "an unknown type": config(model_type="evil"),
    "a type that is a list": config(model_type=["qwen3"]),
    "1e9 layers": config(num_hidden_layers=10**9),
    "layers as text": config(num_hidden_layers="2"),
    "half a layer": config(num_hidden_layers=1.5),
    "no layers": config(num_hidden_layers=0),
    "negative layers": config(num_hidden_layers=-1),
    "a negative width": config(hidden_size=-64),
    "a width of nothing": config(hidden_size=0),
    "a width of 1e12": config(hidden_size=10**12),
    "a width as text": config(hidden_size="64"),
    "heads of nothing": config(num_attention_heads=0),
    "a huge vocabulary": config(vocab_size=10**15),
    "an unknown activation": config(hidden_act="os.system"),
    "an activation that is a number": config(hidden_act=3),
    "a list of layer types that is too long": config(layer_types=["full_attention"] * 200_000),
    "rope parameters of another kind": config(rope_parameters="x"),
    "code of its own": config(model_type="own", auto_map={"AutoConfig": "own.Config"}),
    "an adapter in the model": put("adapter_config.json", b'{"base_model_name_or_path": "/etc"}'),
    "a header of 2^60": put("model.safetensors", header(2**60)),
    "a header beyond the file": put("model.safetensors", header(1000)),
    "weights of 4 bytes": put("model.safetensors", b"\0" * 4),
    "an index that leads elsewhere": put(
        "model.safetensors.index.json", b'{"weight_map": {"a": "../../../etc/passwd"}}'
    ),
    "an index of lists": put("model.safetensors.index.json", b'{"weight_map": []}'),
    "tokenizer garbage": put("tokenizer.json", b"garbage"),
    "a tokenizer of nothing": put("tokenizer.json", b"{}"),
    "a deep tokenizer": put("tokenizer.json", b"[" * DEEP),
    "a tokenizer of another kind": put("tokenizer.json", b'{"model": {"type": "x"}}'),
    "tokenizer settings that are a list": put("tokenizer_config.json", b"[]"),
    "tokenizer settings that lead elsewhere": put("tokenizer_config.json", b'{"vocab_file": "/etc/passwd"}'),
    "a template that loops": put("chat_template.jinja", b"{% for i in range(10**9) %}x{% endfor %}"),
    "a template that loops in loops": put(
        "chat_template.jinja",
        b"{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    ),
    "a template that takes memory": put("chat_template.jinja", b"{{ 'a' * 10**12 }}"),
    "a template that is none": put("chat_template.jinja", b"{% if %}"),
    "a template that escapes": put("chat_template.jinja", b"{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    "a template that leaves the text out": put("chat_template.jinja", b"nothing"),
    "a pipe as config": swap("config.json", os.mkfifo),
    "a pipe as tokenizer": swap("tokenizer.json", os.mkfifo),
    "a pipe as weights": swap("model.safetensors", os.mkfifo),
    "weights that are a link": swap("model.safetensors", lambda path: path.symlink_to("/etc/passwd")),
    "a folder as config": swap("config.json", Path.mkdir),
    "no config": lambda model: (model / "config.json").unlink(),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_hostile_model_is_refused(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    MODELS[name](folder / "model")
    refused(folder, capsys)


GGUF: dict[str, bytes] = {
    "empty": b"",
    "letters": b"GGUF",
    "another file": b"PK\x03\x04" + b"\0" * 100,
    "an unknown version": b"GGUF" + struct.pack("<IQQ", 99, 0, 0),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "2^60 keys": b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60),
    "2^60 tensors": b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0),
    "a name of 2^60": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**60),
    "an array of 2^60": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 10, 2**60),
    "an array of 2^60 texts": b"GGUF"
    + struct.pack("<IQQQ", 3, 0, 1, 1)
    + b"k"
    + struct.pack("<IIQ", 9, 8, 2**60),
    "half a character": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"\xff" + struct.pack("<II", 4, 1),
    "nothing inside": b"GGUF" + struct.pack("<IQQ", 3, 0, 0),
}


@pytest.mark.parametrize("name", GGUF)
def test_a_hostile_gguf_file_is_refused(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "m.gguf").write_bytes(GGUF[name])
    (folder / "study.toml").write_bytes(instead('path = "model"', 'gguf = "m.gguf"'))
    refused(folder, capsys)
