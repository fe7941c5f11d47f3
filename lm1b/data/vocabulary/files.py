"""A vocabulary's files in a folder: which there are, whether they are whole, and what is in them.

1. `vocabulary.txt` says by its first line which kind it is, and of pieces also which other files belong to it, by their SHA-256.
2. Because vocabulary.txt records the SHA-256 of the other files, a manifest that records vocabulary.txt's covers them all
   (`check_vocabulary`).
3. `load_vocabulary` reads whichever kind it is.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from lm1b.data.vocabulary.pieces import HEAD, Head, PieceVocabulary, known_words_path, model_path
from lm1b.data.vocabulary.vocabulary import VOCABULARY_NAME, Vocabulary
from lm1b.data.vocabulary.words import WordVocabulary, read_vocabulary_file
from lm1b.errors import UserError
from lm1b.files import digest_of_file

_BESIDE = (model_path(Path(VOCABULARY_NAME)).name, known_words_path(Path(VOCABULARY_NAME)).name)
ALL_NAMES = (*_BESIDE, VOCABULARY_NAME)  # the order in which they are moved: vocabulary.txt last
_LONGEST_HEAD = 256


def load_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary of `path` (vocabulary.txt), whichever kind. Raises UserError where its files are missing, damaged or none."""
    data = read_vocabulary_file(path)
    return PieceVocabulary.load(path, data) if data.startswith(HEAD) else WordVocabulary.load(path, data)


def files_beside(path: Path) -> dict[str, str]:
    """Names and SHA-256 of the files that belong to `path`. Raises OSError where it cannot be read."""
    with open(path, "rb") as file:
        head = Head.of_line(file.readline(_LONGEST_HEAD).rstrip(b"\n"))
    return {beside.name: sha256 for beside, sha256 in head.files(path).items()} if head else {}


def check_vocabulary(path: Path, sha256: str) -> None:
    """Raise UserError where `path` has another SHA-256, or a file that belongs to it is not there as it should be."""
    _check(path, sha256)
    for name, other in files_beside(path).items():
        _check(path.with_name(name), other)


def _check(path: Path, sha256: str) -> None:
    found = digest_of_file(path) if path.is_file() else "no file"
    if found != sha256:
        raise UserError(
            f"{path}: not the vocabulary these shards were made with, SHA-256 expected {sha256}, found {found}: "
            "run launch/preprocess.py again"
        )


def remove_other_files(path: Path) -> None:
    """Remove files beside `path` that an earlier vocabulary of another kind has left."""
    belonging = files_beside(path)
    for name in _BESIDE:
        if name not in belonging:
            path.with_name(name).unlink(missing_ok=True)


def copy_vocabulary(path: Path, folder: Path) -> list[Path]:
    """Copy the files of the vocabulary at `path` into a folder, under their names. -> the copies."""
    names = [path.name, *files_beside(path)]
    return [Path(shutil.copyfile(path.with_name(name), folder / name)) for name in names]
