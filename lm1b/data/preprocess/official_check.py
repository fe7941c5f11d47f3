"""Whether a corpus is the official benchmark, and whether what was counted is what is published.

1. `is_official_benchmark` compares the files' MD5 with the benchmark's. Where some are right and others are not, a file is damaged.
2. `assert_official_counts` compares, at the end, sentences, tokens, the vocabulary's size and the held-out files' unknown words with the
   published ones (text/benchmark.py).
"""

from __future__ import annotations

from typing import Any

from lm1b.config import VocabularyConfig
from lm1b.data.preprocess.ledger import Ledger
from lm1b.data.text import benchmark
from lm1b.data.tokens.manifest import CountedText
from lm1b.data.vocabulary.vocabulary import Vocabulary
from lm1b.errors import UserError


def is_official_benchmark(texts: list[CountedText]) -> bool:
    """Whether this is the whole official benchmark. Raises UserError where some files are official and others are damaged."""
    expected = benchmark.official_md5()
    named = [text for text in texts if text.official_name in expected]
    right = [text for text in named if text.md5 == expected[text.official_name or ""]]
    wrong = [text for text in named if text not in right]
    if right and wrong:
        name = wrong[0].official_name or ""
        raise UserError(
            f"{name}: its MD5 is {wrong[0].md5}, the benchmark's is {expected[name]}: damaged, or not all files are of the benchmark"
        )
    return len(right) == benchmark.NUM_TRAINING_FILES + 2 == len(texts)


def assert_official_counts(ledger: Ledger, vocabulary: Vocabulary, config: VocabularyConfig) -> None:
    """On the official text the official counts must come out: anything else is a fault of this program."""
    texts, shards = ledger.texts(), ledger.shards
    training = [shards[text.shard] for text in texts if text.split == "train"]
    sentences, tokens = sum(info.num_sentences for info in training), sum(info.stream_length for info in training)
    found: dict[str, Any] = {"sentences": sentences, "tokens": tokens}
    expected: dict[str, Any] = {"sentences": benchmark.NUM_TRAINING_SENTENCES, "tokens": benchmark.NUM_TRAINING_TOKENS}
    if config.kind == "words" and config.file is None and config.minimum_count == benchmark.VOCABULARY_MINIMUM_COUNT:
        found["vocabulary"], expected["vocabulary"] = vocabulary.size, benchmark.VOCABULARY_SIZE
        for text in texts:
            name = (text.official_name or "").rpartition("/")[2]
            if name in benchmark.HELD_OUT_COUNTS:
                info = shards[text.shard]
                found[name], expected[name] = (info.num_sentences, info.num_tokens, info.num_unknown), benchmark.HELD_OUT_COUNTS[name]
    if found != expected:
        raise AssertionError(f"the official benchmark was counted as {found}, expected {expected}")
