"""From a corpus to a complete tokens directory: every core, of one machine or many, constant memory, and a killed run goes on where it was.

1. Where the directory is complete and neither text nor settings have changed, nothing is done.
2. Raw text, the news sample and what `datasets` reads become tokenized files (text/sources.py).
3. First pass: every chunk of text is read once, its words numbered and counted (passes.py).
4. The training words' counts make the vocabulary, or a given vocabulary file does.
5. Second pass: token shards are written.
6. On the official benchmark the official counts must come out.
7. Until here everything was written into `unfinished/`, so what was complete before still is. Now it takes its place (publish.py).

Several ranks that share the directory deal the text among them and meet after every part of this (crew.py); the first holds the lock,
makes the vocabulary and publishes. What a rank knows meanwhile is in its ledger (ledger.py).

The two sentences `the cat sat .` and `the cat ran .` go through both passes in the docstring of lm1b.data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from lm1b.config import SPLITS, Config, Split
from lm1b.data.crew import Crew
from lm1b.data.preprocess.disk import bytes_of_conversion, bytes_of_passes, explaining_faults
from lm1b.data.preprocess.ledger import Ledger
from lm1b.data.preprocess.official_check import assert_official_counts, is_official_benchmark
from lm1b.data.preprocess.passes import (
    CHUNKS_TO_ENCODE_TOGETHER,
    count_chunk,
    count_words,
    encode_chunks,
    merge_counts,
    read_share,
    start_workers,
    write_share,
)
from lm1b.data.preprocess.publish import (
    UNFINISHED_NAME,
    complete_directory,
    finish_earlier_run,
    left_of_complete_run,
    lock_directory,
    publish,
)
from lm1b.data.text.corpus import Corpus, TextChunk
from lm1b.data.text.sources import bytes_to_convert, converted_corpus, converted_origin, is_converted, open_corpus
from lm1b.data.tokens.directory import TokenDirectory
from lm1b.data.tokens.manifest import CorpusFacts, MadeFrom, Manifest, Shard
from lm1b.data.vocabulary.build import make_vocabulary, vocabulary_origin
from lm1b.data.vocabulary.files import load_vocabulary
from lm1b.data.vocabulary.vocabulary import Vocabulary
from lm1b.data.vocabulary.words import read_given_vocabulary
from lm1b.errors import UserError
from lm1b.files import digest_of_file
from lm1b.progress import Progress
from lm1b.remote import is_url
from lm1b.workers import Workers

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
    return Preprocessing(config, ranks, progress).run()


class Preprocessing:
    """One run, as one rank sees it. The steps are collectives: every rank takes them, in this order."""

    def __init__(self, config: Config, ranks: Ranks | None, progress: bool) -> None:
        self.config = config
        self.directory = Path(config.tokens.directory)
        self.corpus: Corpus | None = None  # raw text: until it has been made into files
        self.crew = Crew(ranks, lambda: explaining_faults(self.directory, self.bytes_still_to_write))
        self.ledger = Ledger(self.directory, self.crew)
        self._shows_progress = progress and self.crew.is_first

    def run(self) -> TokenDirectory:
        """The seven steps."""
        made_from = self._look_at_text()
        if tokens := self._complete(made_from):  # 1
            return tokens
        with ExitStack() as held:
            self.crew.first(lambda: held.enter_context(lock_directory(self.directory)))  # for all of them
            self.crew.check_shared(self.directory)
            if self.crew.first(lambda: finish_earlier_run(self.directory, made_from)):
                return self._opened()
            self._take_over_complete_run(made_from)
            workers = held.enter_context(start_workers(self.config.tokens.processes or self._useful_processes()))
            self._make(workers, made_from)  # 2 to 7
            return self._opened()

    def _make(self, workers: Workers, made_from: MadeFrom) -> None:
        """Whatever is not there yet."""
        if self.corpus is None:  # 2
            self.corpus = converted_corpus(self.config.corpus, self.directory, self.crew, workers, self._shows_progress)
        corpus = self.corpus
        self._count(workers, corpus, trust_shards=True)  # 3
        is_official = is_official_benchmark(self.ledger.texts())
        vocabulary = self._earlier_vocabulary() if self.ledger.earlier else self._make_vocabulary(workers)  # 4
        fingerprint: str = self.crew.first(lambda: _on_first_rank(vocabulary).fingerprint)
        self._recall_shards(workers, corpus, fingerprint)  # 5
        self._encode(workers, fingerprint)
        if is_official:  # 6
            self.crew.first(lambda: assert_official_counts(self.ledger, _on_first_rank(vocabulary), self.config.vocabulary))
        self._check_splits()
        self.crew.first(lambda: self._publish(_on_first_rank(vocabulary), is_official, made_from))  # 7

    # 1. What there is.

    def _look_at_text(self) -> MadeFrom:
        """Open the corpus, where it is tokenized. -> what tells whether text and settings are the same, on all ranks."""
        config = self.config
        self.corpus = self.crew.together(lambda: None if is_converted(config.corpus) else open_corpus(config.corpus))
        made_from = self.crew.together(
            lambda: MadeFrom.of(
                self.corpus.origin if self.corpus else converted_origin(config.corpus), vocabulary_origin(config.vocabulary)
            )
        )
        self.crew.check_same(made_from.as_json(), OTHER_TEXT)
        return made_from

    def _complete(self, made_from: MadeFrom) -> TokenDirectory | None:
        """The directory, where every rank finds that there is nothing to do. Also where the folder may only be read."""
        unfinished = self.directory / UNFINISHED_NAME
        tokens = self.crew.together(lambda: None if unfinished.exists() else complete_directory(self.directory, made_from))
        return tokens if all(self.crew.each(lambda: tokens is not None)) else None

    def _opened(self) -> TokenDirectory:
        """The complete directory; the first rank has looked, the others may have to wait until their file system shows it."""
        manifest = self.crew.first(lambda: TokenDirectory.open(self.directory).manifest.as_json())
        return TokenDirectory(self.directory, Manifest.model_validate(manifest))

    def _take_over_complete_run(self, made_from: MadeFrom) -> None:
        """Keep the rest of a complete run on the same text that has lost a shard, if there is one."""
        earlier, in_place = self.crew.first(lambda: left_of_complete_run(self.directory, made_from))
        if earlier is not None:
            self.ledger.take_over(Manifest.model_validate(earlier), in_place)

    def _useful_processes(self) -> int:
        """As many as this rank has cores, fewer for a text that is done before they have started. Raw text keeps every core busy.
        A collective.
        """
        cores = self.crew.cores()
        if self.corpus is None:
            return cores
        return max(1, min(cores, self.corpus.total_bytes // self.crew.size // BYTES_WORTH_A_PROCESS))

    def bytes_still_to_write(self) -> float:
        """About how many bytes this run has not yet written, for when the disk is full."""
        if self.corpus is None:
            return bytes_of_conversion(bytes_to_convert(self.config.corpus))
        return bytes_of_passes(self.corpus, self.ledger)

    def _bar(self, what: str, total: int, unit: str) -> Progress:
        what = what if self.crew.size == 1 else f"{what} (rank 0 of {self.crew.size})"
        return Progress(what, total, unit, shown=self._shows_progress)

    # 3. First pass.

    def _count(self, workers: Workers, corpus: Corpus, *, trust_shards: bool) -> None:
        """Count the chunks that need it, each rank its own. trust_shards: not those whose shards an earlier run may have written."""
        ledger = self.ledger

        def tasks(bar: Progress) -> Iterator[tuple[TextChunk, Path]]:
            for chunk in corpus.chunks(bar.update):
                ledger.enlist(chunk)
                if ledger.is_mine(chunk.shard) and ledger.needs_count(chunk.shard, trust_shards=trust_shards):
                    yield corpus.load(chunk), ledger.unfinished

        def count() -> None:
            with self._bar("counting words", corpus.total_bytes, "B") as bar:
                for counted in workers.run(count_chunk, tasks(bar)):
                    ledger.counted[counted.shard] = counted
                    ledger.with_codes.add(counted.shard)

        self.crew.together(count)
        ledger.share()

    # 4. The vocabulary, which the first rank has and the others do not.

    def _earlier_vocabulary(self) -> Vocabulary | None:
        """The complete run's."""
        return self.crew.together(lambda: load_vocabulary(self.ledger.vocabulary_path) if self.crew.is_first else None)

    def _make_vocabulary(self, workers: Workers) -> Vocabulary | None:
        """The vocabulary of the training chunks, or the given one, written to the directory."""
        config = self.config.vocabulary
        given = self.crew.together(lambda: read_given_vocabulary(Path(config.file)) if config.file is not None else None)
        needs_counts = given is None or not given.has_counts or config.kind == "sentencepiece"
        training = [text.shard for text in self.ledger.texts() if text.split == "train" and text.stream_length]
        if needs_counts and not training:
            raise UserError("the corpus's train split is empty; expected tokenized text, one sentence a line")
        counts = self._merge_counts(workers, training) if needs_counts else []

        def make() -> Vocabulary | None:
            if not self.crew.is_first:
                return None
            vocabulary = make_vocabulary(merge_counts(counts), given, config)
            vocabulary.save(self.ledger.vocabulary_path)
            return vocabulary

        return self.crew.together(make)

    def _merge_counts(self, workers: Workers, training: list[str]) -> Iterable[pa.Table]:
        """Tables of the training chunks' words and counts, to be added up by the first rank: each rank has added up its own."""
        folder = self.ledger.unfinished
        mine = [name for name in training if self.ledger.is_mine(name)]
        processes = workers.num_processes
        tables = workers.run(count_words, ((folder, mine[first::processes]) for first in range(processes) if mine[first::processes]))
        if self.crew.size == 1:
            return tables
        files = self.crew.each(lambda: write_share(folder, self.crew.rank, merge_counts(tables)))
        return (read_share(folder, rank, sha256) for rank, sha256 in enumerate(files))

    # 5. Second pass.

    def _recall_shards(self, workers: Workers, corpus: Corpus, fingerprint: str) -> None:
        """Take over the shards that an earlier, killed run has written with this vocabulary, and be ready to write all others."""
        ledger = self.ledger
        self.crew.together(lambda: ledger.recall_shards(fingerprint))
        ledger.share()
        if any(ledger.needs_count(name, trust_shards=False) for name in ledger.names()):
            # Shards that are damaged or belong to another vocabulary: their text must be read again.
            self._count(workers, corpus, trust_shards=False)

    def _encode(self, workers: Workers, fingerprint: str) -> None:
        """Write the shards that are not there, each rank its own."""
        ledger = self.ledger
        mine = {name: ledger.counted[name].stream_length for name in ledger.names() if ledger.is_mine(name) and ledger.needs_shard(name)}
        together = max(1, min(CHUNKS_TO_ENCODE_TOGETHER, len(mine) // workers.num_processes))
        groups = [list(mine)[start : start + together] for start in range(0, len(mine), together)]
        tasks = (({name: mine[name] for name in group}, ledger.unfinished, ledger.vocabulary_path, fingerprint) for group in groups)

        def encode() -> None:
            with self._bar("writing shards", sum(mine.values()), "token") as bar:
                for shards in workers.run(encode_chunks, tasks):
                    for shard in shards:
                        ledger.shards[shard.name] = shard
                        bar.update(shard.stream_length)

        self.crew.together(encode)
        ledger.share()

    # 6 and 7. What must hold, and the manifest.

    def _check_splits(self) -> None:
        """Raise UserError where there is nothing to train on or to validate with."""
        for split in ("train", "validation"):
            if not any(self.ledger.shards[text.shard].num_words for text in self.ledger.texts() if text.split == split):
                raise UserError(f"the corpus's {split} split is empty; expected tokenized text, one sentence a line")

    def _publish(self, vocabulary: Vocabulary, is_official: bool, made_from: MadeFrom) -> None:
        """Let the new vocabulary and shards take the place of what was there."""
        ledger, texts = self.ledger, self.ledger.texts()
        shards: dict[Split, list[Shard]] = {split: [ledger.shards[text.shard] for text in texts if text.split == split] for split in SPLITS}
        corpus = CorpusFacts.of(self.config.corpus.kind, is_official, texts)
        manifest = Manifest.of(vocabulary, digest_of_file(ledger.vocabulary_path), shards, corpus, made_from.with_texts(texts))
        moved = [shard for name, shard in ledger.shards.items() if name not in ledger.in_place]
        publish(self.directory, manifest, moved, with_vocabulary=ledger.earlier is None)


def _on_first_rank(vocabulary: Vocabulary | None) -> Vocabulary:
    assert vocabulary is not None, "the first rank has it"
    return vocabulary
