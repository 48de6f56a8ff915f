"""The manifest: what a store was made from, by what, and whether it is finished."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engine.errors import StoreError
from store.files import plain, seal, unseal
from store.layout import FORMAT, MANIFEST, VERSION
from store.schema import Manifest, check
from store.sources import Source, Stamp, open_source

Describe = Callable[[Mapping[str, Any], Mapping[str, Any]], list[str]]

BUILDING, COMPLETE = "building", "complete"
OLD_FORMAT = "patchbay-store-1"
_FINGERPRINTS: dict[tuple[str, Stamp], str] = {}


REMAKE = (
    "Restore it from a copy, or run precompute.py on this store with the study that it was made from: "
    "it makes the manifest anew and keeps what is whole."
)


def read_manifest(source: Source) -> dict[str, Any]:
    """The manifest of a store.

    Raises:
        StoreError: there is none, it is damaged, it is of another version, or it says what no store is.
    """
    manifest = unchecked_manifest(source)
    name = f"{source.name}/{MANIFEST}"
    found = manifest.get("format"), manifest.get("version")
    if found != (FORMAT, VERSION):
        raise _other_version(source.name, found)
    check(Manifest, manifest, name, REMAKE)
    return manifest


def unchecked_manifest(source: Source) -> dict[str, Any]:
    """The manifest of a store of any version.

    Raises:
        StoreError: there is none, or it is damaged.
    """
    data = source.read(MANIFEST)
    if data is None:
        raise StoreError(
            f"There is no store at {source.name}.",
            expected=f"a folder with a {MANIFEST}",
            given="no such folder" if source.local and not source.local.exists() else "a folder without one",
            next_step=f"Make it: python precompute.py STUDY.toml --store {source.name}",
        )
    return unseal(data, f"{source.name}/{MANIFEST}", REMAKE)


def _other_version(name: str, found: tuple[object, object]) -> StoreError:
    """The error for a store of another version of the schema; None stands for 1, which did not say so."""
    if found == (OLD_FORMAT, None):
        given, step = "version 1", f"Bring it up to date: python precompute.py migrate {name}"
    elif found[0] == FORMAT and type(found[1]) is int and found[1] > VERSION:
        given = f"version {found[1]}"
        step = "Update Patchbay: a newer one wrote this store."
    else:
        given = f"format {str(found[0])[:40]!r}, version {str(found[1])[:40]!r}"
        step = "Compute the store again with this version, or read it with the version that wrote it."
    return StoreError(
        f"The store at {name} has a format that this version does not read.",
        expected=f"{FORMAT}, version {VERSION}",
        given=given,
        next_step=step,
    )


def fingerprint_at(source: Source) -> str:
    """The fingerprint of the store that a folder belongs to; "" where there is no manifest.

    Raises:
        StoreError: the manifest is damaged.
    """
    stamp = source.stamp(MANIFEST)
    if stamp is None:
        return ""
    key = source.name, stamp
    if key not in _FINGERPRINTS:
        _FINGERPRINTS.clear()
        _FINGERPRINTS[key] = str(read_manifest(source)["fingerprint"])
    return _FINGERPRINTS[key]


def write_manifest(source: Source, manifest: Mapping[str, Any], *, durable: bool = True) -> None:
    """Replaces the manifest, atomically; StoreError for one that could not be read again."""
    name = f"{source.name}/{MANIFEST}"
    check(Manifest, plain(dict(manifest)), name, "Correct the call; nothing was written.")
    source.replace(MANIFEST, seal(manifest), durable=durable)


def new_manifest(fingerprint: str, study: Mapping[str, Any], plan: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a store that has just been laid out."""
    value: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    value |= {"state": BUILDING, "fingerprint": fingerprint, "study": study, "plan": plan}
    return dict(plain(value))


def set_state(path: str | Path, state: str) -> None:
    """Changes the state of the store at `path`, e.g. to "failed"."""
    source = open_source(path)
    write_manifest(source, read_manifest(source) | {"state": state})


def flatten(value: Any, key: str = "") -> dict[str, Any]:
    """Nested JSON as {"a.b.0": leaf}."""
    if isinstance(value, Mapping):
        pairs = [(str(k), v) for k, v in value.items()]
    elif isinstance(value, list | tuple):
        pairs = [(str(i), v) for i, v in enumerate(value)]
    else:
        return {key: value}
    result: dict[str, Any] = {}
    for name, item in pairs:
        result |= flatten(item, f"{key}.{name}" if key else name)
    return result


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What differs between two JSON objects, one line per leaf: "capture.dtype: bfloat16 -> float32"."""
    a, b = flatten(plain(stored)), flatten(plain(wanted))
    missing = "(absent)"
    return [
        f"{key}: {a.get(key, missing)!r} -> {b.get(key, missing)!r}"
        for key in sorted(a.keys() | b.keys())
        if a.get(key, missing) != b.get(key, missing)
    ]


def check_same_study(
    name: str,
    manifest: Mapping[str, Any],
    wanted: Mapping[str, Any],
    describe: Describe | None = None,
) -> None:
    """Refuses to go on with a store that was made from another study.

    Args:
        name: the store, for the message.
        manifest, wanted: the stored manifest, and the one this run would start with.
        describe: (stored study, wanted study) -> what differs in words; default `differences`.

    Raises:
        StoreError: names what differs.
    """
    same = manifest["fingerprint"] == wanted["fingerprint"]
    if same and manifest["plan"] == wanted["plan"]:
        return
    found = (describe or differences)(manifest["study"], wanted["study"]) if not same else []
    found = found or differences(manifest["plan"], wanted["plan"]) or ["the contents of a file it names"]
    shown = "; ".join(found[:8]) + (f"; and {len(found) - 8} more" if len(found) > 8 else "")
    raise StoreError(
        f"The store at {name} was made from another study.",
        expected=f"fingerprint {wanted['fingerprint'][:12]}",
        given=f"{manifest['fingerprint'][:12]}, which differs in: {shown}",
        next_step="Choose another folder with --store, or delete this one if it is no longer wanted.",
    )
