"""From a corpus to a complete tokens directory: both cores, constant memory, and a killed run goes on where it was.

1. Where the directory is complete and neither text nor settings have changed, nothing is done.
2. Raw text and the news sample become tokenized files (raw_text.py).
3. First pass: every piece of text is read once, its words numbered and counted (pieces.py).
4. The training words' counts make the vocabulary, or a given vocabulary file does.
5. Second pass: token shards are written.
6. On the official benchmark the official counts must come out. The manifest is written last.
"""

from __future__ import annotations

import contextlib
import fcntl
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lm1b.config import Config, Split, VocabularyConfig
from lm1b.data.corpus import ArchiveCorpus, Corpus, Piece, open_corpus
from lm1b.data.official_check import assert_official_counts, check_official
from lm1b.data.pieces import (
    PIECES_TO_ENCODE_TOGETHER,
    CountedPiece,
    count_piece,
    count_words,
    encode_pieces,
    has_codes,
    has_words,
    recall_count,
    recall_shard,
)
from lm1b.data.raw_text import is_raw, raw_origin, tokenized_corpus
from lm1b.data.shards import MANIFEST_NAME, SPLITS, VERSION, VOCABULARY_NAME, ShardInfo, TokenDirectory, make_manifest
from lm1b.data.vocabulary import Vocabulary, build_vocabulary, read_given_vocabulary
from lm1b.data.workers import Workers, usable_cores
from lm1b.errors import UserError
from lm1b.files import digest_of_file, read_json, write_json

UNFINISHED_NAME = "unfinished"
BYTES_WORTH_A_PROCESS = 8 << 20
_SHARD_FILE = re.compile(r"(train|validation|test)-\d{5}(\.\d{3})?\.(tokens|ends)\.npy")


@dataclass
class _Work:
    """One run of preprocessing. earlier: the manifest of a complete run on the same text, of which files may be missing."""

    directory: Path
    workers: Workers
    shows_progress: bool
    earlier: dict[str, Any] | None
    counted: dict[str, CountedPiece] = field(default_factory=dict)
    shards: dict[str, ShardInfo] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.earlier:
            self.counted = {record["shard"]: CountedPiece(**record) for record in self.earlier["made_from"]["pieces"]}
            infos = (ShardInfo(**record) for name in SPLITS for record in self.earlier["splits"][name]["shards"])
            self.shards = {info.name: info for info in infos if info.is_there(self.directory)}

    @property
    def unfinished(self) -> Path:
        return self.directory / UNFINISHED_NAME

    def bar(self, what: str, total: int, unit: str) -> tqdm:
        return tqdm(total=total, desc=what, unit=unit, unit_scale=True, disable=not self.shows_progress, mininterval=0.5)


def preprocess(config: Config, *, progress: bool = True) -> TokenDirectory:
    """Make `config.tokens.directory` complete and open it.

    Raises UserError where corpus or vocabulary are missing, empty, damaged or not UTF-8, OSError where the disk is full.
    """
    directory = Path(config.tokens.directory)
    directory.mkdir(parents=True, exist_ok=True)
    with _only_one(directory):
        corpus = None if is_raw(config.corpus) else open_corpus(config.corpus)
        origin = raw_origin(config.corpus) if corpus is None else corpus.origin
        made_from = {"version": VERSION, "origin": origin, "vocabulary": _vocabulary_origin(config.vocabulary)}
        earlier = _earlier_manifest(directory, made_from)
        if earlier and _is_whole(directory):
            return TokenDirectory.open(directory)
        with Workers(config.tokens.processes or _useful_processes(corpus)) as workers:
            work = _Work(directory, workers, progress, earlier)
            work.unfinished.mkdir(exist_ok=True)
            if corpus is None:
                corpus = tokenized_corpus(config.corpus, directory, workers, progress)
            _fill(work, corpus, config, made_from)
        return TokenDirectory.open(directory)


def _useful_processes(corpus: Corpus | None) -> int:
    """As many as there are cores, fewer for a text that is done before they have started. None: raw text, where each is of use."""
    cores = usable_cores()
    return cores if corpus is None else max(1, min(cores, corpus.total_bytes // BYTES_WORTH_A_PROCESS))


@contextlib.contextmanager
def _only_one(directory: Path) -> Iterator[None]:
    """Hold the directory's lock, and clear what a killed run left half-written."""
    with open(directory / ".lock", "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{directory}: another preprocessing is at work here; wait for it, or use another tokens.directory") from None
        for folder in (directory, directory / UNFINISHED_NAME):
            for partial in folder.glob("*.partial"):
                partial.unlink()
        yield


def _vocabulary_origin(config: VocabularyConfig) -> dict[str, Any]:
    """What the vocabulary depends on beside the text."""
    if config.file is None:
        return {"minimum_count": config.minimum_count}
    path = Path(config.file)
    if not path.is_file():
        raise UserError(f"{path}: no such vocabulary file (vocabulary.file); expected `word count` or one word a line")
    return {"file_sha256": digest_of_file(path)}


def _earlier_manifest(directory: Path, made_from: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of a run on the same text and settings; one of another text is removed, so that nobody takes the folder for whole."""
    path = directory / MANIFEST_NAME
    if not path.exists():
        return None
    with contextlib.suppress(UserError, KeyError, TypeError, AttributeError):
        manifest = read_json(path)
        known = {key: value for key, value in manifest["made_from"].items() if key != "pieces"}
        vocabulary_path = directory / VOCABULARY_NAME
        if known == made_from and vocabulary_path.is_file() and digest_of_file(vocabulary_path) == manifest["vocabulary"]["sha256"]:
            return manifest
    path.unlink()
    return None


def _is_whole(directory: Path) -> bool:
    try:
        TokenDirectory.open(directory)
    except UserError:
        return False
    return True


def _fill(work: _Work, corpus: Corpus, config: Config, made_from: dict[str, Any]) -> None:
    """Both passes, and the manifest."""
    order = _count(work, corpus, keep_shards=True)
    is_official = check_official(list(work.counted.values()))
    vocabulary = Vocabulary.load(work.directory / VOCABULARY_NAME) if work.earlier else _make_vocabulary(work, order, config.vocabulary)
    for shard in order:
        if shard not in work.shards and (info := recall_shard(shard, work.unfinished, work.directory, vocabulary.fingerprint)):
            work.shards[shard] = info
    if any(shard not in work.shards and not has_codes(work.unfinished, shard) for shard in order):
        # Shards of an earlier run that was killed belong to another vocabulary: their text must be read again.
        _count(work, corpus, keep_shards=False)
    _encode(work, [shard for shard in order if shard not in work.shards], vocabulary.fingerprint)
    shards: dict[Split, list[ShardInfo]] = {
        name: [work.shards[shard] for shard in order if work.counted[shard].split == name] for name in SPLITS
    }
    if is_official:
        assert_official_counts(work.counted, work.shards, vocabulary, config.vocabulary)
    for name in ("train", "validation"):
        if not sum(info.num_words for info in shards[name]):
            raise UserError(f"the corpus's {name} split is empty; expected tokenized text, one sentence a line")
    identity = _identity(config, [work.counted[shard] for shard in order], is_official)
    made_from |= {"pieces": [asdict(work.counted[shard]) for shard in order]}
    vocabulary_sha256 = digest_of_file(work.directory / VOCABULARY_NAME)
    write_json(work.directory / MANIFEST_NAME, make_manifest(vocabulary, vocabulary_sha256, shards, identity, made_from))
    _clear(work)


def _count(work: _Work, corpus: Corpus, *, keep_shards: bool) -> list[str]:
    """First pass over the pieces not yet counted. -> the shards' names in the corpus's order."""

    def is_wanted(piece: Piece) -> bool:
        if piece.shard in work.shards:
            return False
        counted = recall_count(piece, work.unfinished)
        if counted is None or not has_words(work.unfinished, piece.shard):
            return True
        work.counted[piece.shard] = counted
        return not has_codes(work.unfinished, piece.shard) and not (
            keep_shards and (work.unfinished / f"{piece.shard}.shard.json").is_file()
        )

    order: list[str] = []
    in_archive = isinstance(corpus, ArchiveCorpus)  # it knows its progress itself
    with work.bar("counting words", corpus.total_bytes, "B") as bar:

        def tasks() -> Iterator[tuple[Piece, Path]]:
            for piece in corpus.pieces(is_wanted, bar.update):
                order.append(piece.shard)
                if is_wanted(piece):
                    yield piece, work.unfinished
                else:
                    bar.update(0 if in_archive else piece.stop - piece.start)

        for counted in work.workers.run(count_piece, tasks()):
            work.counted[counted.shard] = counted
            bar.update(0 if in_archive else counted.num_bytes)
    return sorted(order)


def _make_vocabulary(work: _Work, order: list[str], config: VocabularyConfig) -> Vocabulary:
    """The vocabulary of the training pieces, or the given one, written to the directory."""
    given = read_given_vocabulary(Path(config.file)) if config.file is not None else None
    if given and given[1]:
        vocabulary = given[0]
    else:
        training = [shard for shard in order if work.counted[shard].split == "train" and work.counted[shard].num_tokens]
        if not training:
            raise UserError("the corpus's train split is empty; expected tokenized text, one sentence a line")
        table = count_words(work.unfinished, training)
        words, counts = table["word"].combine_chunks(), table["count"].to_numpy()
        vocabulary = given[0].counted(words, counts) if given else build_vocabulary(words, counts, config.minimum_count)
    vocabulary.save(work.directory / VOCABULARY_NAME)
    return vocabulary


def _encode(work: _Work, shards: list[str], fingerprint: str) -> None:
    """Second pass: write the shards."""
    vocabulary_path = work.directory / VOCABULARY_NAME
    together = max(1, min(PIECES_TO_ENCODE_TOGETHER, len(shards) // work.workers.num_processes))
    groups = [shards[start : start + together] for start in range(0, len(shards), together)]
    tasks = ((group, work.unfinished, work.directory, vocabulary_path, fingerprint) for group in groups)
    with work.bar("writing shards", sum(work.counted[shard].num_tokens for shard in shards), "token") as bar:
        for infos in work.workers.run(encode_pieces, tasks):
            for info in infos:
                work.shards[info.name] = info
                bar.update(info.num_tokens)


def _identity(config: Config, counted: list[CountedPiece], is_official: bool) -> dict[str, Any]:
    """What the corpus is, wherever it lies."""
    files = [
        {
            "split": piece.split,
            "name": piece.official_name or piece.identity["name"],
            "bytes": piece.num_bytes,
            "sha256": piece.sha256,
        }
        for piece in counted
    ]
    return {"kind": config.corpus.kind, "official": is_official, "files": files}


def _clear(work: _Work) -> None:
    """Remove what only an unfinished run needs, and shards of an earlier corpus."""
    kept = {path.name for info in work.shards.values() for path, _, _ in info.files(work.directory)}
    for path in work.directory.iterdir():
        if _SHARD_FILE.fullmatch(path.name) and path.name not in kept:
            path.unlink()
    shutil.rmtree(work.unfinished)
