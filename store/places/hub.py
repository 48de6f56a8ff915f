"""A store as a dataset repository of the Hugging Face Hub: sent there whole, and fetched whole.

The Hub's own client sends and fetches (huggingface_hub): its login, resumed transfers, revisions. What is
fetched is checked as any store is, before it stands under its name.
"""

from __future__ import annotations

import glob
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from engine.errors import StoreError
from store.files import TEMPORARY
from store.layout import MANIFEST
from store.manifest import Problem, verify
from store.places.local import LOCK
from store.reader import Store
from store.sources import to_write

__all__ = ["Repository", "pull", "push"]

_NAME = re.compile(r"(?:hf://datasets/)?([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", re.ASCII)
CARD, ATTRIBUTES = "README.md", ".gitattributes"
"""Files of a repository that belong to no store."""


@dataclass(frozen=True)
class Repository:
    """A dataset repository, at a revision or at its newest (None)."""

    name: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> Repository:
        """ "OWNER/NAME", with "@REVISION" or "hf://datasets/" around it or not.

        Raises:
            StoreError: anything else.
        """
        found = _NAME.fullmatch(text)
        if found is None or any(part.strip(".") == "" for part in found[1].split("/")):
            raise StoreError(
                "That names no repository of the Hub.",
                expected="hf://datasets/OWNER/NAME or OWNER/NAME, with @REVISION or without",
                given=text,
                next_step="write the owner and the name as the address of its page ends.",
            )
        return cls(found[1], found[2])

    def __str__(self) -> str:
        return f"hf://datasets/{self.name}" + (f"@{self.revision}" if self.revision else "")


def push(path: str | Path, repository: Repository, *, private: bool) -> str:
    """Sends a finished, undamaged store to a repository, which is made where there is none.

    What the repository holds and the store doesn't is removed there; its history keeps it.

    Args:
        path: a local store.
        private: whether a repository made now is.

    Returns:
        The address of the repository's page.

    Raises:
        StoreError: no store, an unfinished or damaged one; no login, no right to write, or no connection.
    """
    root = to_write(path)
    store = Store(root)
    if not store.complete:
        raise StoreError(
            f"The store {root} is not finished.",
            given=f"state {store.state!r}",
            next_step="run precompute.py on its study again, which goes on where it stopped.",
        )
    _check(verify(root), str(root), "run precompute.py on its study again, which computes what is lost.")
    from huggingface_hub import HfApi

    with _answers(repository):
        hub = HfApi()
        made = hub.create_repo(repository.name, repo_type="dataset", private=private, exist_ok=True)
        there: dict[str, Any] = {"repo_id": repository.name, "repo_type": "dataset"}
        there["revision"] = repository.revision
        held = set(hub.list_repo_files(**there))
        gone = held - {CARD, ATTRIBUTES} - {file.relative_to(root).as_posix() for file in root.rglob("*")}
        hub.upload_folder(
            **there,
            folder_path=root,
            ignore_patterns=[LOCK, f"{TEMPORARY}*", f"**/{TEMPORARY}*"],
            delete_patterns=[glob.escape(name) for name in gone],
            commit_message=f"Store of the study {_study_name(store)}",
        )
        if CARD not in held:
            card = _card(store, repository).encode()
            hub.upload_file(**there, path_or_fileobj=card, path_in_repo=CARD)
    return str(made)


def pull(repository: Repository, folder: str | Path) -> Path:
    """Fetches a store into a new folder, which appears when all of it is there and undamaged.

    A transfer that stopped goes on where it was, from `FOLDER.part`.

    Raises:
        StoreError: the folder exists; no such repository or none that may be read; no store in it, or a
            damaged one; no connection.
    """
    root = to_write(folder)
    if root.exists():
        raise StoreError(
            f"{root} is there already.",
            expected="a folder that doesn't exist",
            next_step="choose another folder, or remove that one.",
        )
    from huggingface_hub import HfApi, snapshot_download

    with _answers(repository):
        hub = HfApi()
        revision = hub.dataset_info(repository.name, revision=repository.revision).sha
        _check_names(repository, hub.list_repo_files(repository.name, repo_type="dataset", revision=revision))
        part = root.with_name(f"{root.name}.part")
        snapshot_download(
            repository.name,
            repo_type="dataset",
            revision=revision,
            local_dir=part,
            ignore_patterns=[CARD, ATTRIBUTES],
        )
    shutil.rmtree(part / ".cache", ignore_errors=True)  # the client's own notes on what is fetched
    _check(verify(part), str(repository), f"ask its author, or fetch again without {part.name}.")
    part.rename(root)
    return root


def _check_names(repository: Repository, names: list[str]) -> None:
    """StoreError where a repository holds no store, or a file that would lie outside of the folder."""
    outside = [name for name in names if PurePosixPath(name).is_absolute() or ".." in name.split("/")]
    if MANIFEST not in names or outside:
        raise StoreError(
            f"{repository} holds no store.",
            expected=f"a file {MANIFEST}, and everything inside of the repository's folder",
            given=", ".join(outside[:3] or sorted(names)[:3]) or "an empty repository",
            next_step="name a repository that `patchbay push` wrote.",
        )


def _check(problems: list[Problem], what: str, next_step: str) -> None:
    problems = [one for one in problems if TEMPORARY not in one.array]  # of a writer; they don't travel
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        given = "; ".join(map(str, problems[:3])) + more
        raise StoreError(f"{what} is damaged.", given=given, next_step=next_step)


@contextmanager
def _answers(repository: Repository) -> Iterator[None]:
    """What the Hub or its client refuses, as a StoreError."""
    from huggingface_hub import errors
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # a failed connection

    again = "look at the connection and the disk, and run the same command: it goes on."
    said: dict[type[Exception], str] = {
        errors.RepositoryNotFoundError: "check the name; a private one needs `hf auth login`.",
        errors.RevisionNotFoundError: "leave the revision out, or name one of its page's history.",
        errors.LocalTokenNotFoundError: "log in with `hf auth login`.",
        errors.OfflineModeIsEnabled: "unset HF_HUB_OFFLINE.",
        errors.HfHubHTTPError: "log in with `hf auth login` where it says 401 or 403; else try again.",
        HTTPError: again,
        errors.XetDownloadError: again,
        OSError: again,
        errors.HFValidationError: "write the owner and the name as the address of its page ends.",
    }
    try:
        yield
    except tuple(said) as error:
        lines = str(error).strip().splitlines() or [""]
        raise StoreError(
            f"The Hub didn't serve {repository}.",
            given=f"{type(error).__name__}: {lines[0]}",
            next_step=next(text for kind, text in said.items() if isinstance(error, kind)),
        ) from error


def _study_name(store: Store) -> str:
    study: dict[str, Any] = store.manifest.get("study") or {}
    return str(study.get("name", "unnamed"))


def _card(store: Store, repository: Repository) -> str:
    """The repository's page: what lies there, and how it is opened."""
    return "\n".join(
        [
            "---",
            "tags: [patchbay, activations, interpretability]",
            "viewer: false",
            "---",
            f"# Activations of the study {_study_name(store)}",
            "",
            f"{store.n_prompts} prompts, models {', '.join(store.models)}, kept in {store.dtype}.",
            "",
            "```bash",
            f"patchbay pull {repository} runs/{repository.name.rpartition('/')[2]}",
            f"patchbay serve runs/{repository.name.rpartition('/')[2]}",
            "```",
            "",
        ]
    )
