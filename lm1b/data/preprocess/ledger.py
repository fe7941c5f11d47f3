"""What one rank of a crew knows of a run of preprocessing while it is made."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lm1b.data.crew import Crew
from lm1b.data.preprocess.passes import recall_count
from lm1b.data.preprocess.publish import UNFINISHED_NAME
from lm1b.data.text.corpus import TextChunk
from lm1b.data.tokens.manifest import CountedText, Manifest, Shard
from lm1b.data.vocabulary.vocabulary import VOCABULARY_NAME
from lm1b.progress import Progress
from lm1b.workers import Workers


@dataclass
class Work:
    """One rank's view of a run of preprocessing. earlier: the manifest of a complete run on the same text, of which files may be missing.

    counted, shards: what there is of each chunk. with_codes: chunks whose numbers are there for the second pass. in_place: shards that
    need not be moved. numbers: the chunks' places in the corpus, which say whose they are.
    """

    directory: Path
    crew: Crew
    workers: Workers
    shows_progress: bool
    earlier: Manifest | None
    in_place: frozenset[str] = frozenset()
    counted: dict[str, CountedText] = field(default_factory=dict)
    with_codes: set[str] = field(default_factory=set)
    shards: dict[str, Shard] = field(default_factory=dict)
    recalled: set[str] = field(default_factory=set)
    numbers: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.earlier:
            self.counted = {text.shard: text for text in self.earlier.made_from.texts}
            self.shards = {info.name: info for info in self.earlier.shards() if info.name in self.in_place}

    @property
    def unfinished(self) -> Path:
        return self.directory / UNFINISHED_NAME

    @property
    def vocabulary_path(self) -> Path:
        """The vocabulary in use: the earlier one, or a new one that nobody sees yet."""
        return (self.directory if self.earlier else self.unfinished) / VOCABULARY_NAME

    def is_mine(self, shard: str) -> bool:
        """Whether a chunk is for this rank. Chunks are numbered as the corpus gives them, which is the same on every rank."""
        return self.crew.has(self.numbers.setdefault(shard, len(self.numbers)))

    def recall(self, chunk: TextChunk) -> None:
        """Take over what an earlier run has found in a chunk; looked up once."""
        if chunk.shard not in self.recalled:
            self.recalled.add(chunk.shard)
            found = recall_count(chunk, self.unfinished)
            if found is not None:
                self.counted[chunk.shard] = found[0]
                if found[1]:
                    self.with_codes.add(chunk.shard)
            elif not self.earlier:
                self.counted.pop(chunk.shard, None)

    def share(self) -> None:
        """Tell the other ranks what there is of this one's chunks, and hear of theirs."""
        if self.crew.size == 1:
            return
        mine = [shard for shard in self.numbers if self.is_mine(shard)]
        told = self.crew.each(
            lambda: {
                "counted": [self.counted[shard].as_json() for shard in mine if shard in self.counted],
                "with_codes": [shard for shard in mine if shard in self.with_codes],
                "shards": [self.shards[shard].as_json() for shard in mine if shard in self.shards],
            }
        )
        self.counted = {record["shard"]: CountedText.model_validate(record) for rank in told for record in rank["counted"]}
        self.with_codes = {shard for rank in told for shard in rank["with_codes"]}
        self.shards = {record["name"]: Shard.model_validate(record) for rank in told for record in rank["shards"]}

    def bar(self, what: str, total: int, unit: str) -> Progress:
        what = what if self.crew.size == 1 else f"{what} (rank 0 of {self.crew.size})"
        return Progress(what, total, unit, shown=self.shows_progress)
