"""Whether a corpus is the official benchmark, and whether what was counted is what is published."""

from __future__ import annotations

from typing import Any

from lm1b.config import VocabularyConfig
from lm1b.data.text import benchmark
from lm1b.data.tokens.manifest import CountedText, Shard
from lm1b.data.vocabulary.vocabulary import Vocabulary
from lm1b.errors import UserError


def check_official(counted: list[CountedText]) -> bool:
    """Whether this is the whole official benchmark. Raises UserError where some files are official and others are damaged."""
    expected = benchmark.official_md5()
    named = [chunk for chunk in counted if chunk.official_name in expected]
    right = [chunk for chunk in named if chunk.md5 == expected[chunk.official_name or ""]]
    wrong = [chunk for chunk in named if chunk not in right]
    if right and wrong:
        name = wrong[0].official_name or ""
        raise UserError(
            f"{name}: its MD5 is {wrong[0].md5}, the benchmark's is {expected[name]}: damaged, or not all files are of the benchmark"
        )
    return len(right) == benchmark.NUM_TRAINING_FILES + 2 == len(counted)


def assert_official_counts(
    counted: dict[str, CountedText], shards: dict[str, Shard], vocabulary: Vocabulary, config: VocabularyConfig
) -> None:
    """On the official text the official counts must come out: anything else is a fault of this program."""
    training = [shards[name] for name, chunk in counted.items() if chunk.split == "train"]
    sentences, tokens = sum(info.num_sentences for info in training), sum(info.stream_length for info in training)
    found: dict[str, Any] = {"sentences": sentences, "tokens": tokens}
    expected: dict[str, Any] = {"sentences": benchmark.NUM_TRAINING_SENTENCES, "tokens": benchmark.NUM_TRAINING_TOKENS}
    if config.kind == "words" and config.file is None and config.minimum_count == benchmark.VOCABULARY_MINIMUM_COUNT:
        found["vocabulary"], expected["vocabulary"] = vocabulary.size, benchmark.VOCABULARY_SIZE
        for chunk in counted.values():
            name = (chunk.official_name or "").rpartition("/")[2]
            if name in benchmark.HELD_OUT_COUNTS:
                info = shards[chunk.shard]
                found[name], expected[name] = (info.num_sentences, info.num_tokens, info.num_unknown), benchmark.HELD_OUT_COUNTS[name]
    if found != expected:
        raise AssertionError(f"the official benchmark was counted as {found}, expected {expected}")
