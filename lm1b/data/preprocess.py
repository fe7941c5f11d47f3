"""From a corpus to a complete tokens directory: both cores, constant memory, and a killed run goes on where it was.

1. Where the directory is complete and neither text nor settings have changed, nothing is done.
2. Raw text and the news sample become tokenized files (raw_text.py).
3. First pass: every piece of text is read once, its words numbered and counted (pieces.py).
4. The training words' counts make the vocabulary, or a given vocabulary file does.
5. Second pass: token shards are written.
6. On the official benchmark the official counts must come out.
7. Until here everything was written into `unfinished/`, so what was complete before still is. Now it takes its place (publish.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lm1b.config import Config, Split, VocabularyConfig
from lm1b.data.arrow import as_numpy, compute
from lm1b.data.corpus import ArchiveCorpus, Corpus, Piece, open_corpus
from lm1b.data.disk import FIRST_PASS_COST, PACKED_TEXT, RAW_TEXT_COST, SECOND_PASS_COST, explaining_faults
from lm1b.data.manifest import VERSION
from lm1b.data.official_check import assert_official_counts, check_official
from lm1b.data.pieces import (
    PIECES_TO_ENCODE_TOGETHER,
    CountedPiece,
    count_piece,
    count_words,
    encode_pieces,
    may_have_shard,
    merge_counts,
    recall_count,
    recall_shard,
)
from lm1b.data.publish import UNFINISHED_NAME, clear, is_complete, matching_manifest, only_one, publish, publish_what_was_finished
from lm1b.data.raw_text import bytes_of_raw_text, is_raw, raw_origin, tokenized_corpus
from lm1b.data.shards import SPLITS, VOCABULARY_NAME, ShardInfo, TokenDirectory, make_manifest
from lm1b.data.vocabulary import Vocabulary, build_vocabulary, read_given_vocabulary
from lm1b.data.workers import Workers, usable_cores
from lm1b.errors import UserError
from lm1b.files import digest_of_file
from lm1b.remote import is_url

BYTES_WORTH_A_PROCESS = 8 << 20


@dataclass
class _Work:
    """One run of preprocessing. earlier: the manifest of a complete run on the same text, of which files may be missing.

    counted, shards: what there is of each piece. with_codes: pieces whose numbers are there for the second pass. in_place: shards that
    need not be moved.
    """

    directory: Path
    workers: Workers
    shows_progress: bool
    earlier: dict[str, Any] | None
    counted: dict[str, CountedPiece] = field(default_factory=dict)
    with_codes: set[str] = field(default_factory=set)
    shards: dict[str, ShardInfo] = field(default_factory=dict)
    in_place: frozenset[str] = frozenset()
    recalled: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.earlier:
            self.counted = {record["shard"]: CountedPiece(**record) for record in self.earlier["made_from"]["pieces"]}
            infos = (ShardInfo(**record) for name in SPLITS for record in self.earlier["splits"][name]["shards"])
            self.shards = {info.name: info for info in infos if info.is_there(self.directory)}
            self.in_place = frozenset(self.shards)

    @property
    def unfinished(self) -> Path:
        return self.directory / UNFINISHED_NAME

    @property
    def vocabulary_path(self) -> Path:
        """The vocabulary in use: the earlier one, or a new one that nobody sees yet."""
        return (self.directory if self.earlier else self.unfinished) / VOCABULARY_NAME

    def recall(self, piece: Piece) -> None:
        """Take over what an earlier run has found in a piece; looked up once."""
        if piece.shard not in self.recalled:
            self.recalled.add(piece.shard)
            found = recall_count(piece, self.unfinished)
            if found is not None:
                self.counted[piece.shard] = found[0]
                if found[1]:
                    self.with_codes.add(piece.shard)
            elif not self.earlier:
                self.counted.pop(piece.shard, None)

    def bar(self, what: str, total: int, unit: str) -> tqdm:
        return tqdm(total=total, desc=what, unit=unit, unit_scale=True, disable=not self.shows_progress, mininterval=0.5)


def preprocess(config: Config, *, progress: bool = True) -> TokenDirectory:
    """Make `config.tokens.directory` complete and open it.

    Raises UserError where corpus or vocabulary are missing, empty, damaged or not UTF-8, or where the directory cannot be written
    to or is full; what was complete in it before then still is.
    """
    if is_url(config.tokens.directory):
        raise UserError(
            f"tokens.directory={config.tokens.directory}: preprocessing writes to a folder of this machine; give one with "
            "--set tokens.directory=FOLDER and copy it there, such as by `aws s3 cp --recursive FOLDER s3://...`"
        )
    directory = Path(config.tokens.directory)
    corpus = None if is_raw(config.corpus) else open_corpus(config.corpus)
    origin = raw_origin(config.corpus) if corpus is None else corpus.origin
    made_from = {"version": VERSION, "origin": origin, "vocabulary": _vocabulary_origin(config.vocabulary)}
    if is_complete(directory, made_from) and not (directory / UNFINISHED_NAME).exists():
        return TokenDirectory.open(directory)  # also where the folder may only be read
    work: _Work | None = None
    with explaining_faults(directory, lambda: _still_to_write(config, corpus, work)):
        directory.mkdir(parents=True, exist_ok=True)
        with only_one(directory):
            publish_what_was_finished(directory, made_from)
            if is_complete(directory, made_from):
                clear(directory)
                return TokenDirectory.open(directory)
            with Workers(config.tokens.processes or _useful_processes(corpus)) as workers:
                work = _Work(directory, workers, progress, matching_manifest(directory, made_from))
                work.unfinished.mkdir(exist_ok=True)
                if corpus is None:
                    corpus = tokenized_corpus(config.corpus, directory, workers, progress)
                _fill(work, corpus, config, made_from)
            return TokenDirectory.open(directory)


def _still_to_write(config: Config, corpus: Corpus | None, work: _Work | None) -> float:
    """About how many bytes this run has not yet written."""
    if corpus is None:
        return bytes_of_raw_text(config.corpus) * (RAW_TEXT_COST + FIRST_PASS_COST + SECOND_PASS_COST)
    packed = PACKED_TEXT if isinstance(corpus, ArchiveCorpus) and corpus.is_packed else 1.0
    counted, shards = (work.counted, work.shards) if work else ({}, {})
    to_count = corpus.total_bytes * packed - sum(piece.num_bytes for piece in counted.values())
    to_encode = corpus.total_bytes * packed - sum(counted[shard].num_bytes for shard in shards)
    return max(0.0, to_count) * FIRST_PASS_COST + max(0.0, to_encode) * SECOND_PASS_COST


def _useful_processes(corpus: Corpus | None) -> int:
    """As many as there are cores, fewer for a text that is done before they have started. None: raw text, where each is of use."""
    cores = usable_cores()
    return cores if corpus is None else max(1, min(cores, corpus.total_bytes // BYTES_WORTH_A_PROCESS))


def _vocabulary_origin(config: VocabularyConfig) -> dict[str, Any]:
    """What the vocabulary depends on beside the text."""
    if config.file is None:
        return {"minimum_count": config.minimum_count}
    path = Path(config.file)
    if not path.is_file():
        raise UserError(f"{path}: no such vocabulary file (vocabulary.file); expected `word count` or one word a line")
    return {"file_sha256": digest_of_file(path)}


def _fill(work: _Work, corpus: Corpus, config: Config, made_from: dict[str, Any]) -> None:
    """Both passes, and the manifest."""
    order = _count(work, corpus, keep_shards=True)
    is_official = check_official(list(work.counted.values()))
    vocabulary = Vocabulary.load(work.vocabulary_path) if work.earlier else _make_vocabulary(work, order, config.vocabulary)
    for shard in order:
        if shard not in work.shards and (info := recall_shard(shard, work.unfinished, vocabulary.fingerprint)):
            work.shards[shard] = info
    if any(shard not in work.shards and shard not in work.with_codes for shard in order):
        # Shards of an earlier run that was killed are damaged or belong to another vocabulary: their text must be read again.
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
    manifest = make_manifest(vocabulary, digest_of_file(work.vocabulary_path), shards, identity, made_from)
    moved = [info for name, info in work.shards.items() if name not in work.in_place]
    publish(work.directory, manifest, moved, with_vocabulary=work.earlier is None)


def _count(work: _Work, corpus: Corpus, *, keep_shards: bool) -> list[str]:
    """First pass over the pieces not yet counted. -> the shards' names in the corpus's order."""

    def is_wanted(piece: Piece) -> bool:
        if piece.shard in work.shards:
            return False
        work.recall(piece)
        if piece.shard not in work.counted:
            return True
        return piece.shard not in work.with_codes and not (keep_shards and may_have_shard(piece.shard, work.unfinished))

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
            work.with_codes.add(counted.shard)
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
        shares = [training[first :: work.workers.num_processes] for first in range(work.workers.num_processes)]
        table = merge_counts(work.workers.run(count_words, ((work.unfinished, share) for share in shares if share)))
        words, counts = compute.binary_slice(table["word"].combine_chunks(), 0, -1), as_numpy(table["count"])
        vocabulary = given[0].counted(words, counts) if given else build_vocabulary(words, counts, config.minimum_count)
    vocabulary.save(work.vocabulary_path)
    return vocabulary


def _encode(work: _Work, shards: list[str], fingerprint: str) -> None:
    """Second pass: write the shards."""
    together = max(1, min(PIECES_TO_ENCODE_TOGETHER, len(shards) // work.workers.num_processes))
    groups = [shards[start : start + together] for start in range(0, len(shards), together)]
    tasks = (
        ({shard: work.counted[shard].num_tokens for shard in group}, work.unfinished, work.vocabulary_path, fingerprint) for group in groups
    )
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
