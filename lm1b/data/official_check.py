"""Whether a corpus is the official benchmark, and whether what was counted is what is published."""

from __future__ import annotations

from typing import Any

from lm1b.config import VocabularyConfig
from lm1b.data import official
from lm1b.data.pieces import CountedPiece
from lm1b.data.shards import ShardInfo
from lm1b.data.vocabulary import Vocabulary
from lm1b.errors import UserError


def check_official(counted: list[CountedPiece]) -> bool:
    """Whether this is the whole official benchmark. Raises UserError where some files are official and others are damaged."""
    expected = official.official_md5()
    named = [piece for piece in counted if piece.official_name in expected]
    right = [piece for piece in named if piece.md5 == expected[piece.official_name or ""]]
    wrong = [piece for piece in named if piece not in right]
    if right and wrong:
        name = wrong[0].official_name or ""
        raise UserError(
            f"{name}: its MD5 is {wrong[0].md5}, the benchmark's is {expected[name]}: damaged, or not all files are of the benchmark"
        )
    return len(right) == official.NUM_TRAINING_FILES + 2 == len(counted)


def assert_official_counts(
    counted: dict[str, CountedPiece], shards: dict[str, ShardInfo], vocabulary: Vocabulary, config: VocabularyConfig
) -> None:
    """On the official text the official counts must come out: anything else is a fault of this program."""
    training = [shards[name] for name, piece in counted.items() if piece.split == "train"]
    sentences, tokens = sum(info.num_sentences for info in training), sum(info.num_words + info.num_sentences for info in training)
    found: dict[str, Any] = {"sentences": sentences, "tokens": tokens}
    expected: dict[str, Any] = {"sentences": official.NUM_TRAINING_SENTENCES, "tokens": official.NUM_TRAINING_TOKENS}
    if config.kind == "words" and config.file is None and config.minimum_count == official.VOCABULARY_MINIMUM_COUNT:
        found["vocabulary"], expected["vocabulary"] = vocabulary.size, official.VOCABULARY_SIZE
        for piece in counted.values():
            name = (piece.official_name or "").rpartition("/")[2]
            if name in official.HELD_OUT_COUNTS:
                info = shards[piece.shard]
                found[name], expected[name] = (info.num_sentences, info.num_tokens, info.num_unknown), official.HELD_OUT_COUNTS[name]
    if found != expected:
        raise AssertionError(f"the official benchmark was counted as {found}, expected {expected}")
