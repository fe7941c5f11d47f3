"""Whether a tokens directory is complete, and how what was made in its `unfinished/` takes the place of what was there before.

1. One run at a time holds the directory (`lock_directory`). `finish_earlier_run` clears up what a killed one has left.
2. Until everything is made, what was complete before is not touched.
3. `publish` then writes the whole new manifest into `unfinished/`, removes the old one, moves vocabulary and shards in, and moves the new
   manifest last.
4. A run that is killed while doing so leaves the manifest in `unfinished/`, and the next one moves the rest.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

from lm1b.data.tokens.directory import TokenDirectory
from lm1b.data.tokens.manifest import MANIFEST_NAME, MadeFrom, Manifest, Shard
from lm1b.data.vocabulary.files import ALL_NAMES, check_vocabulary, remove_other_files
from lm1b.data.vocabulary.vocabulary import VOCABULARY_NAME
from lm1b.errors import UserError
from lm1b.files import flush_folder, try_lock

UNFINISHED_NAME = "unfinished"
_SHARD_FILE = re.compile(r"(train|validation|test)-\d{5,}(\.\d{3,})?\.(tokens|ends)\.npy")


@contextlib.contextmanager
def lock_directory(directory: Path) -> Generator[None]:
    """Hold the directory, made where it is not there. Raises UserError where another preprocessing does."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / ".lock", "wb") as lock:
        if not try_lock(lock, 0.0):
            raise UserError(f"{directory}: another preprocessing is at work here; wait for it, or use another tokens.directory")
        yield


def matching_manifest(directory: Path, made_from: MadeFrom) -> Manifest | None:
    """The manifest where it is sound, of the same text and settings, and the vocabulary beside it is its own. Shards may be missing."""
    with contextlib.suppress(UserError, OSError):
        manifest = Manifest.read(directory / MANIFEST_NAME)
        if manifest.made_from.is_same(made_from):
            check_vocabulary(directory / VOCABULARY_NAME, manifest.vocabulary.sha256)
            return manifest
    return None


def complete_directory(directory: Path, made_from: MadeFrom) -> TokenDirectory | None:
    """The directory, where all that this text and these settings make is there."""
    with contextlib.suppress(UserError, OSError):
        tokens = TokenDirectory.open(directory)  # raises where a file is not there or not whole
        if tokens.manifest.made_from.is_same(made_from):
            return tokens
    return None


def left_of_complete_run(directory: Path, made_from: MadeFrom) -> tuple[dict[str, Any] | None, list[str]]:
    """The manifest (as JSON) of a complete run on the same text, and which of its shards are there; (None, []) where there is none."""
    manifest = matching_manifest(directory, made_from)
    return (manifest.as_json(), [shard.name for shard in manifest.shards() if shard.is_there(directory)]) if manifest else (None, [])


def finish_earlier_run(directory: Path, made_from: MadeFrom) -> bool:
    """Clear up what a killed run has left, under the directory's lock. -> whether the directory is complete now.

    Half-written files are removed; where all was made and was being moved to its place, the rest is moved. If the directory is not
    complete after that, there is an `unfinished/`.
    """
    for folder in (directory, directory / UNFINISHED_NAME):
        for partial in folder.glob("*.partial"):
            partial.unlink()
    _publish_what_was_finished(directory, made_from)
    if tokens := complete_directory(directory, made_from):
        clear(tokens)
        return True
    (directory / UNFINISHED_NAME).mkdir(exist_ok=True)
    return False


def _move_in(directory: Path) -> None:
    """Move what `unfinished/` holds to where it is read, the manifest last. Can be killed at any point and called again."""
    unfinished = directory / UNFINISHED_NAME
    parts = [*ALL_NAMES, *(path.name for path in unfinished.iterdir() if _SHARD_FILE.fullmatch(path.name))]
    (directory / MANIFEST_NAME).unlink(missing_ok=True)
    flush_folder(directory)
    for name in parts:
        if (unfinished / name).is_file():
            os.replace(unfinished / name, directory / name)
    flush_folder(directory)
    os.replace(unfinished / MANIFEST_NAME, directory / MANIFEST_NAME)
    flush_folder(directory)


def _publish_what_was_finished(directory: Path, made_from: MadeFrom) -> None:
    """Move the rest in, if an earlier run of the same text and settings was killed while its parts changed places."""
    path = directory / UNFINISHED_NAME / MANIFEST_NAME
    if not path.is_file():
        return
    with contextlib.suppress(UserError):
        manifest = Manifest.read(path)
        if manifest.made_from.is_same(made_from):
            _move_in(directory)
    path.unlink(missing_ok=True)
    if matching_manifest(directory, made_from) is not None:
        try:
            TokenDirectory.open(directory).verify()  # it lay about unfinished, and from here on it is believed
        except UserError:
            (directory / MANIFEST_NAME).unlink()


def publish(directory: Path, manifest: Manifest, moved: Iterable[Shard], *, with_vocabulary: bool) -> None:
    """Make the directory what `manifest` says. moved: the shards that lie in `unfinished/`; the others are in their place already.

    with_vocabulary: the vocabulary lies in `unfinished/` too.
    """
    unfinished = directory / UNFINISHED_NAME
    _remove_other_shards(unfinished, moved)
    if not with_vocabulary:
        for name in ALL_NAMES:
            (unfinished / name).unlink(missing_ok=True)
    manifest.write(unfinished / MANIFEST_NAME)
    _move_in(directory)
    clear(TokenDirectory.open(directory))


def _remove_other_shards(folder: Path, shards: Iterable[Shard]) -> None:
    """Remove shards of another corpus or vocabulary."""
    kept = {path.name for info in shards for path, _, _ in info.files(folder)}
    for path in folder.iterdir():
        if _SHARD_FILE.fullmatch(path.name) and path.name not in kept:
            path.unlink()


def clear(tokens: TokenDirectory) -> None:
    """Remove what only an unfinished run needs, and shards and vocabulary of an earlier corpus, from a complete directory."""
    _remove_other_shards(tokens.folder, tokens.manifest.shards())
    remove_other_files(tokens.folder / VOCABULARY_NAME)
    shutil.rmtree(tokens.folder / UNFINISHED_NAME, ignore_errors=True)
