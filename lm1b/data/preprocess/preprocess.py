"""From a corpus to a complete tokens directory: every core, of one machine or many, constant memory, and a killed run goes on where it was.

1. Where the directory is complete and neither text nor settings have changed, nothing is done.
2. Raw text, the news sample and what `datasets` reads become tokenized files (text/sources.py).
3. First pass: every chunk of text is read once, its words numbered and counted (passes.py).
4. The training words' counts make the vocabulary, or a given vocabulary file does.
5. Second pass: token shards are written.
6. On the official benchmark the official counts must come out.
7. Until here everything was written into `unfinished/`, so what was complete before still is. Now it takes its place (publish.py).

Several ranks that share the directory deal the text among them and meet after every part of this (crew.py); the first holds the lock,
makes the vocabulary and publishes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lm1b.config import SPLITS, Config, Split, VocabularyConfig
from lm1b.data.crew import Crew
from lm1b.data.preprocess.disk import FIRST_PASS_COST, PACKED_TEXT, RAW_TEXT_COST, SECOND_PASS_COST, explaining_faults
from lm1b.data.preprocess.ledger import Work
from lm1b.data.preprocess.official_check import assert_official_counts, check_official
from lm1b.data.preprocess.passes import (
    CHUNKS_TO_ENCODE_TOGETHER,
    count_chunk,
    count_words,
    encode_chunks,
    may_have_shard,
    merge_counts,
    read_share,
    recall_shard,
    write_share,
)
from lm1b.data.preprocess.publish import (
    UNFINISHED_NAME,
    clear,
    is_complete,
    matching_manifest,
    only_one,
    publish,
    publish_what_was_finished,
)
from lm1b.data.text.benchmark import ArchiveCorpus
from lm1b.data.text.corpus import Corpus, TextChunk
from lm1b.data.text.sources import bytes_to_convert, converted_corpus, converted_origin, is_converted, open_corpus
from lm1b.data.tokens.directory import TokenDirectory
from lm1b.data.tokens.manifest import MadeFrom, Manifest, Shard
from lm1b.data.vocabulary.build import make_vocabulary, vocabulary_origin
from lm1b.data.vocabulary.files import load_vocabulary
from lm1b.data.vocabulary.vocabulary import Vocabulary
from lm1b.data.vocabulary.words import read_given_vocabulary
from lm1b.errors import UserError
from lm1b.files import digest_of_file
from lm1b.remote import is_url
from lm1b.workers import Workers, usable_cores

if TYPE_CHECKING:
    from lm1b.distributed import Ranks

BYTES_WORTH_A_PROCESS = 8 << 20
OTHER_TEXT = (
    "do not see the same corpus, vocabulary file or settings (names, sizes and times of change are compared); expected one shared folder, "
    "or copies that kept their times (rsync -a)"
)


def preprocess(config: Config, *, progress: bool = True, ranks: Ranks | None = None) -> TokenDirectory:
    """Make `config.tokens.directory` complete and open it. A collective where there are several ranks.

    Raises UserError where corpus or vocabulary are missing, empty, damaged or not UTF-8, where the directory cannot be written
    to or is full, or where the ranks do not share it or see other text; what was complete in it before then still is.
    """
    if is_url(config.tokens.directory):
        raise UserError(
            f"tokens.directory={config.tokens.directory}: preprocessing writes to a folder of this machine; give one with "
            "--set tokens.directory=FOLDER and copy it there, such as by `aws s3 cp --recursive FOLDER s3://...`"
        )
    directory = Path(config.tokens.directory)
    corpus: Corpus | None = None
    work: Work | None = None
    crew = Crew(ranks, lambda: explaining_faults(directory, lambda: _still_to_write(config, corpus, work)))
    corpus = crew.together(lambda: None if is_converted(config.corpus) else open_corpus(config.corpus))
    made_from = crew.together(lambda: _made_from(config, corpus))
    crew.assert_same(made_from.as_json(), OTHER_TEXT)
    if all(crew.each(lambda: is_complete(directory, made_from) and not (directory / UNFINISHED_NAME).exists())):
        return _opened(directory, crew)  # also where the folder may only be read
    with ExitStack() as held:
        crew.first(lambda: _take(directory, held))
        crew.assert_shared(directory)
        if crew.first(lambda: _is_finished_now(directory, made_from)):
            return _opened(directory, crew)
        workers = held.enter_context(_workers(config.tokens.processes or _useful_processes(corpus, crew)))
        earlier, in_place = crew.first(lambda: _left_of_earlier(directory, made_from))
        known = Manifest.model_validate(earlier) if earlier else None
        work = Work(directory, crew, workers, progress and crew.is_first, known, frozenset(in_place))
        if corpus is None:
            corpus = converted_corpus(config.corpus, directory, crew, workers, progress and crew.is_first)
        _fill(work, corpus, config, made_from)
        return _opened(directory, crew)


def _made_from(config: Config, corpus: Corpus | None) -> MadeFrom:
    """What tells whether text and settings are the same. corpus None: it is yet to be made into files."""
    origin = converted_origin(config.corpus) if corpus is None else corpus.origin
    return MadeFrom.of(origin, vocabulary_origin(config.vocabulary))


def _take(directory: Path, held: ExitStack) -> None:
    """The first rank holds the directory for all of them."""
    directory.mkdir(parents=True, exist_ok=True)
    held.enter_context(only_one(directory))


def _is_finished_now(directory: Path, made_from: MadeFrom) -> bool:
    """Whether nothing was left to be done but to move what an earlier run had finished. If not, there is an `unfinished/`."""
    publish_what_was_finished(directory, made_from)
    if is_complete(directory, made_from):
        clear(directory)
        return True
    (directory / UNFINISHED_NAME).mkdir(exist_ok=True)
    return False


def _left_of_earlier(directory: Path, made_from: MadeFrom) -> tuple[dict[str, Any] | None, list[str]]:
    """The manifest of a complete run on the same text, and which of its shards are there."""
    earlier = matching_manifest(directory, made_from)
    return (earlier.as_json(), [info.name for info in earlier.shards() if info.is_there(directory)]) if earlier else (None, [])


def _opened(directory: Path, crew: Crew) -> TokenDirectory:
    """The complete directory; the first rank has looked, the others may have to wait until their file system shows it."""
    return TokenDirectory(directory, Manifest.model_validate(crew.first(lambda: TokenDirectory.open(directory).manifest.as_json())))


def _still_to_write(config: Config, corpus: Corpus | None, work: Work | None) -> float:
    """About how many bytes this run has not yet written."""
    if corpus is None:
        return bytes_to_convert(config.corpus) * (RAW_TEXT_COST + FIRST_PASS_COST + SECOND_PASS_COST)
    packed = PACKED_TEXT if isinstance(corpus, ArchiveCorpus) and corpus.is_packed else 1.0
    counted, shards = (work.counted, work.shards) if work else ({}, {})
    to_count = corpus.total_bytes * packed - sum(chunk.num_bytes for chunk in counted.values())
    to_encode = corpus.total_bytes * packed - sum(counted[shard].num_bytes for shard in shards)
    return max(0.0, to_count) * FIRST_PASS_COST + max(0.0, to_encode) * SECOND_PASS_COST


def _workers(num_processes: int) -> Workers:
    """Each of one thread: Arrow would start one a core in every process."""
    return Workers(
        num_processes,
        prepare=partial(pa.set_cpu_count, 1),
        if_killed="run it again to go on from there, with --set tokens.processes=1 to use less memory",
    )


def _useful_processes(corpus: Corpus | None, crew: Crew) -> int:
    """As many as this rank has cores, fewer for a text that is done before they have started. None: raw text, where each is of use."""
    cores = max(1, usable_cores() // crew.processes_on_host)
    return cores if corpus is None else max(1, min(cores, corpus.total_bytes // crew.size // BYTES_WORTH_A_PROCESS))


def _fill(work: Work, corpus: Corpus, config: Config, made_from: MadeFrom) -> None:
    """Both passes, and the manifest."""
    crew = work.crew
    order = _count(work, corpus, keep_shards=True)
    is_official = check_official(list(work.counted.values()))
    vocabulary = crew.together(lambda: _earlier_vocabulary(work)) if work.earlier else _make_vocabulary(work, order, config.vocabulary)
    fingerprint: str = crew.first(lambda: vocabulary.fingerprint if vocabulary else "")
    crew.together(lambda: _recall_shards(work, order, fingerprint))
    work.share()
    if any(shard not in work.shards and shard not in work.with_codes for shard in order):
        # Shards of an earlier run that was killed are damaged or belong to another vocabulary: their text must be read again.
        _count(work, corpus, keep_shards=False)
    _encode(work, [shard for shard in order if shard not in work.shards], fingerprint)
    if is_official:
        crew.first(lambda: vocabulary and assert_official_counts(work.counted, work.shards, vocabulary, config.vocabulary))
    for name in ("train", "validation"):
        if not sum(work.shards[shard].num_words for shard in order if work.counted[shard].split == name):
            raise UserError(f"the corpus's {name} split is empty; expected tokenized text, one sentence a line")
    crew.first(lambda: vocabulary and _publish(work, order, vocabulary, _identity(work, order, config, is_official), made_from))


def _earlier_vocabulary(work: Work) -> Vocabulary | None:
    """The complete run's vocabulary, on the first rank."""
    return load_vocabulary(work.vocabulary_path) if work.crew.is_first else None


def _recall_shards(work: Work, order: list[str], fingerprint: str) -> None:
    """Take over this rank's shards that an earlier run has written with the same vocabulary."""
    for shard in order:
        if shard not in work.shards and work.is_mine(shard) and (info := recall_shard(shard, work.unfinished, fingerprint)):
            work.shards[shard] = info


def _publish(work: Work, order: list[str], vocabulary: Vocabulary, identity: dict[str, Any], made_from: MadeFrom) -> None:
    """Let the new vocabulary and shards take the place of what was there. order: the corpus's, of all shards."""
    shards: dict[Split, list[Shard]] = {
        name: [work.shards[shard] for shard in order if work.counted[shard].split == name] for name in SPLITS
    }
    texts = [work.counted[shard] for shard in order]
    manifest = Manifest.of(vocabulary, digest_of_file(work.vocabulary_path), shards, identity, made_from.with_texts(texts))
    moved = [info for name, info in work.shards.items() if name not in work.in_place]
    publish(work.directory, manifest, moved, with_vocabulary=work.earlier is None)


def _count(work: Work, corpus: Corpus, *, keep_shards: bool) -> list[str]:
    """First pass over the chunks not yet counted, each rank over its own. -> the shards' names in the corpus's order."""

    def is_wanted(chunk: TextChunk) -> bool:
        if not work.is_mine(chunk.shard) or chunk.shard in work.shards:
            return False
        work.recall(chunk)
        if chunk.shard not in work.counted:
            return True
        return chunk.shard not in work.with_codes and not (keep_shards and may_have_shard(chunk.shard, work.unfinished))

    order: list[str] = []
    in_archive = isinstance(corpus, ArchiveCorpus)  # it knows its progress itself

    def count() -> None:
        with work.bar("counting words", corpus.total_bytes, "B") as bar:

            def tasks() -> Iterator[tuple[TextChunk, Path]]:
                for chunk in corpus.chunks(is_wanted, bar.update):
                    order.append(chunk.shard)
                    if is_wanted(chunk):
                        yield chunk, work.unfinished
                    else:
                        bar.update(0 if in_archive else chunk.stop - chunk.start)

            for counted in work.workers.run(count_chunk, tasks()):
                work.counted[counted.shard] = counted
                work.with_codes.add(counted.shard)
                bar.update(0 if in_archive else counted.num_bytes)

    work.crew.together(count)
    work.share()
    return sorted(order)


def _make_vocabulary(work: Work, order: list[str], config: VocabularyConfig) -> Vocabulary | None:
    """The vocabulary of the training chunks, or the given one, written to the directory by the first rank; None on the others."""
    given = work.crew.together(lambda: read_given_vocabulary(Path(config.file)) if config.file is not None else None)
    needs_counts = given is None or not given.has_counts or config.kind == "sentencepiece"
    training = [shard for shard in order if work.counted[shard].split == "train" and work.counted[shard].stream_length]
    if needs_counts and not training:
        raise UserError("the corpus's train split is empty; expected tokenized text, one sentence a line")
    shares = _merge_shares(work, training) if needs_counts else []

    def make() -> Vocabulary | None:
        if not work.crew.is_first:
            return None
        vocabulary = make_vocabulary(merge_counts(shares), given, config)
        vocabulary.save(work.vocabulary_path)
        return vocabulary

    return work.crew.together(make)


def _merge_shares(work: Work, training: list[str]) -> Iterable[pa.Table]:
    """The words and counts of the training chunks: each rank adds up its own. What it gives is for the first rank."""
    mine = [shard for shard in training if work.is_mine(shard)]
    processes = work.workers.num_processes
    shares = ((work.unfinished, mine[first::processes]) for first in range(processes) if mine[first::processes])
    tables = work.workers.run(count_words, shares)
    if work.crew.size == 1:
        return tables
    files = work.crew.each(lambda: write_share(work.unfinished, work.crew.rank, merge_counts(tables)))
    return (read_share(work.unfinished, rank, sha256) for rank, sha256 in enumerate(files))


def _encode(work: Work, shards: list[str], fingerprint: str) -> None:
    """Second pass: write the shards, each rank its own."""
    mine = [shard for shard in shards if work.is_mine(shard)]
    together = max(1, min(CHUNKS_TO_ENCODE_TOGETHER, len(mine) // work.workers.num_processes))
    groups = [mine[start : start + together] for start in range(0, len(mine), together)]
    tasks = (
        ({shard: work.counted[shard].stream_length for shard in group}, work.unfinished, work.vocabulary_path, fingerprint)
        for group in groups
    )

    def encode() -> None:
        with work.bar("writing shards", sum(work.counted[shard].stream_length for shard in mine), "token") as bar:
            for infos in work.workers.run(encode_chunks, tasks):
                for info in infos:
                    work.shards[info.name] = info
                    bar.update(info.stream_length)

    work.crew.together(encode)
    work.share()


def _identity(work: Work, order: list[str], config: Config, is_official: bool) -> dict[str, Any]:
    """What the corpus is, wherever it lies."""
    counted = [work.counted[shard] for shard in order]
    files = [
        {
            "split": chunk.split,
            "name": chunk.official_name or chunk.identity.name,
            "bytes": chunk.num_bytes,
            "sha256": chunk.sha256,
        }
        for chunk in counted
    ]
    return {"kind": config.corpus.kind, "official": is_official, "files": files}
