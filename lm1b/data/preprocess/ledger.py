"""What one rank of a crew knows while a tokens directory is made: whose each chunk of text is, and how far it has come.

1. `enlist` gives every chunk that the corpus has a number, the same on every rank, and takes over what an earlier run has found in it.
2. `is_mine`, `needs_count` and `needs_shard` answer from that; asking changes nothing.
3. Whoever has counted a chunk or written a shard notes it in `counted`, `with_codes` or `shards`.
4. `share` tells the other ranks, and hears of theirs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm1b.data.crew import Crew
from lm1b.data.preprocess.passes import may_have_shard, recall_count, recall_shard
from lm1b.data.preprocess.publish import UNFINISHED_NAME
from lm1b.data.text.corpus import TextChunk
from lm1b.data.tokens.manifest import CountedText, Manifest, Shard
from lm1b.data.vocabulary.vocabulary import VOCABULARY_NAME


@dataclass
class Ledger:
    """One rank's view of a run of preprocessing. Chunks and their shards have the same names.

    counted: first-pass result of each chunk of text done so far. with_codes: chunks whose numbers are there for the second pass.
    shards: second-pass result. in_place: shards that need not be moved. earlier: the manifest of a complete run on the same text, of
    which files may be missing; its vocabulary is kept.
    """

    directory: Path
    crew: Crew
    earlier: Manifest | None = None
    in_place: frozenset[str] = frozenset()
    counted: dict[str, CountedText] = field(default_factory=dict)
    with_codes: set[str] = field(default_factory=set)
    shards: dict[str, Shard] = field(default_factory=dict)
    _numbers: dict[str, int] = field(default_factory=dict)

    @property
    def unfinished(self) -> Path:
        """The folder that everything is written to until all of it is there."""
        return self.directory / UNFINISHED_NAME

    @property
    def vocabulary_path(self) -> Path:
        """The vocabulary in use: the earlier one, or a new one that nobody sees yet."""
        return (self.directory if self.earlier else self.unfinished) / VOCABULARY_NAME

    def take_over(self, earlier: Manifest, in_place: list[str]) -> None:
        """Begin with what a complete run on the same text has left. in_place: its shards that are there."""
        self.earlier, self.in_place = earlier, frozenset(in_place)
        self.counted = {text.shard: text for text in earlier.made_from.texts}
        self.shards = {shard.name: shard for shard in earlier.shards() if shard.name in in_place}

    def enlist(self, chunk: TextChunk) -> None:
        """Note that the corpus has this chunk: its number, and where it is this rank's what an earlier run has found in it.

        Chunks come in the corpus's order; one that is known already stays as it is.
        """
        if chunk.shard in self._numbers:
            return
        self._numbers[chunk.shard] = len(self._numbers)
        if self.is_mine(chunk.shard) and chunk.shard not in self.shards and (found := recall_count(chunk, self.unfinished)):
            self.counted[chunk.shard], has_codes = found
            if has_codes:
                self.with_codes.add(chunk.shard)

    def recall_shards(self, fingerprint: str) -> None:
        """Take over this rank's shards that an earlier run has written with the same vocabulary."""
        for name in self.names():
            if self.is_mine(name) and self.needs_shard(name) and (shard := recall_shard(name, self.unfinished, fingerprint)):
                self.shards[name] = shard

    def names(self) -> list[str]:
        """All chunks, in the order of a manifest."""
        return sorted(self._numbers)

    def is_mine(self, name: str) -> bool:
        """Whether a chunk is for this rank."""
        return self.crew.has(self._numbers[name])

    def needs_count(self, name: str, *, trust_shards: bool) -> bool:
        """Whether a chunk's text must be read. trust_shards: not where an earlier run has written its shard, of whatever vocabulary."""
        if name in self.shards or (name in self.counted and name in self.with_codes):
            return False
        return name not in self.counted or not (trust_shards and may_have_shard(name, self.unfinished))

    def needs_shard(self, name: str) -> bool:
        """Whether a chunk's shard is still to be written."""
        return name not in self.shards

    def texts(self) -> list[CountedText]:
        """First-pass results of all chunks, in the order of a manifest."""
        return [self.counted[name] for name in self.names()]

    def share(self) -> None:
        """Tell the other ranks what there is of this one's chunks, and hear of theirs. A collective."""
        if self.crew.size == 1:
            return
        mine = [name for name in self._numbers if self.is_mine(name)]

        def tell() -> dict[str, list[Any]]:
            return {
                "counted": [self.counted[name].as_json() for name in mine if name in self.counted],
                "with_codes": [name for name in mine if name in self.with_codes],
                "shards": [self.shards[name].as_json() for name in mine if name in self.shards],
            }

        told = self.crew.each(tell)
        texts = [CountedText.model_validate(record) for rank in told for record in rank["counted"]]
        shards = [Shard.model_validate(record) for rank in told for record in rank["shards"]]
        self.counted = {text.shard: text for text in texts}
        self.with_codes = {name for rank in told for name in rank["with_codes"]}
        self.shards = {shard.name: shard for shard in shards}
