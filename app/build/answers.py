"""Answers that a model of the study gives while its store is built, before anything is captured.

They lie in a file of the store's folder while they are made, so that a killed run goes on with them, and in a
table of the store afterwards. A part of the file is always the same prompts: what runs in one batch, and so
every token, does not depend on where a run was killed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from app.build.prepare import Prepared
from app.build.progress import Progress
from engine.errors import PatchbayError, StoreError
from engine.models.loading import load
from engine.models.memory import free
from engine.models.sources import load_tokenizer
from engine.passes.generate import Generated, generate
from engine.prompts.generated import TOGETHER, Answer, Asked, text_of
from engine.prompts.spec import GeneratedAnswers
from engine.reading import parse_json
from engine.study.fingerprints import diff_studies, portable
from engine.study.study import Study
from store.folder import BEFORE, make_folder
from store.layout import MANIFEST
from store.ledger import LEDGER
from store.places.client import UnreachableError
from store.provenance import check_same_study
from store.reader import Store
from store.sources import Source, open_source

__all__ = ["GENERATED_TABLE", "forget_kept", "generated_answers", "stored_answers"]

GENERATED_TABLE = "generated-answers"
KEPT = f"{BEFORE}answers-"
Said = tuple[list[int], bool]


def generated_answers(study: Study, source: Source, say: Progress) -> dict[str, Answer] | None:
    """Every answer by its prompt's id, made now unless the store has them; None where none are asked for.

    Raises:
        PatchbayError: what `Prepared.of` refuses, a model that can't be loaded, or a folder that holds
            another store or other things.
    """
    if not isinstance(study.prompts.answers, GeneratedAnswers):
        return None
    found = stored_answers(study, source.name)
    if found is not None:
        return found
    asked = Prepared.of(study).asked
    assert asked is not None
    if LEDGER not in source.names():
        make_folder(source, lambda: False)
    tokenizer = load_tokenizer(study.models[asked.model])
    said = _generated(study, asked, source, say)
    answers = zip(asked.ids, asked.token_ids, said, strict=True)
    return {
        name: Answer(tuple(tokens), ended, text_of(tokenizer, ids, tokens))
        for name, ids, (tokens, ended) in answers
    }


def stored_answers(study: Study, path: str | Path) -> dict[str, Answer] | None:
    """The answers that a store of this study holds; None where there are none, or damaged ones.

    Raises:
        StoreError: the store is another study's.
    """
    if not isinstance(study.prompts.answers, GeneratedAnswers) or open_source(path).stamp(MANIFEST) is None:
        return None
    try:
        store = Store(path)
    except UnreachableError:
        raise
    except StoreError:
        return None  # `StoreWriter` says what is wrong, or mends it
    wanted = {"fingerprint": study.fingerprint(), "study": study.to_json(), "plan": store.manifest["plan"]}
    check_same_study(str(path), store.manifest, wanted, diff_studies)
    try:
        rows = store.table(GENERATED_TABLE).iter_rows(named=True)
    except UnreachableError:
        raise
    except PatchbayError:
        return None
    return {row["id"]: Answer(tuple(row["token_ids"]), row["ended"], row["text"]) for row in rows}


def forget_kept(source: Source) -> None:
    """Removes the file of answers, for a store that has their table and won't be taken away any more."""
    for name in source.names():
        if name.startswith(KEPT):
            source.remove(name)


def _generated(study: Study, asked: Asked, source: Source, say: Progress) -> list[Said]:
    """What the model says to every prompt, in the order of `asked`."""
    parts = list(_parts(asked))
    kept = f"{KEPT}{_digest(study, asked)[:16]}.jsonl"
    found = _read(source, kept, parts)
    done = sum(len(parts[number]) for number in found)
    if len(found) < len(parts):
        with say.stage(f"{asked.model}: loading", 1, "model") as loaded:
            lm = load(study.models[asked.model], asked.model)
            loaded()
        with say.stage(f"{asked.model}: answers on {lm.device}", len(asked.ids), "prompt", done) as stage:
            for number, part in enumerate(parts):
                if number not in found:
                    made = generate(lm, [asked.token_ids[i] for i in part], max_new_tokens=asked.most)
                    found[number] = _said(made)
                    _keep(source, kept, number, found[number])
                    stage(len(part))
        del lm
        free()
    said = {i: one for number, part in enumerate(parts) for i, one in zip(part, found[number], strict=True)}
    return [said[i] for i in range(len(asked.ids))]


def _parts(asked: Asked) -> Iterator[list[int]]:
    """Prompts of about the same length together, the longest first: what doesn't fit is known early."""
    order = sorted(range(len(asked.ids)), key=lambda i: (-len(asked.token_ids[i]), asked.ids[i]))
    yield from (order[start : start + TOGETHER] for start in range(0, len(order), TOGETHER))


def _digest(study: Study, asked: Asked) -> str:
    """SHA-256 (hex) of all that answers follow from: the model, what it reads, how much it may say."""
    data = study.to_json()
    name = f"models.{asked.model}"
    content = {key: value for key, value in data["content"].items() if key.startswith(f"{name}.")}
    model = portable(data)["models"][asked.model]
    told = json.dumps([model, content, asked.ids, asked.token_ids, asked.most], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def _said(made: Generated) -> list[Said]:
    return list(zip(made.tokens[0], made.ended[0], strict=True))


def _keep(source: Source, path: str, number: int, said: list[Said]) -> None:
    """Adds a part to the file, behind the last whole line."""
    line = json.dumps({"part": number, "said": said})
    whole = source.read(path) or b""
    source.replace(path, whole[: whole.rfind(b"\n") + 1] + f"{line}\n".encode())


def _read(source: Source, path: str, parts: list[list[int]]) -> dict[int, list[Said]]:
    """Parts that are whole, by number; what isn't is made again."""
    found: dict[int, list[Said]] = {}
    for line in (source.read(path) or b"").decode("utf-8", "replace").splitlines():
        try:
            read = parse_json(line)
            number = int(read["part"])
            said = [([int(token) for token in ids], bool(ended)) for ids, ended in read["said"]]
        except (ValueError, TypeError, KeyError):
            continue
        if number < len(parts) and len(said) == len(parts[number]):
            found[number] = said
    return found
