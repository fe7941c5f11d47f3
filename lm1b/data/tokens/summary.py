"""What a tokens directory holds, for whoever has just made it: counts of its vocabulary and splits."""

from __future__ import annotations

from typing import Any

from lm1b.config import SPLITS
from lm1b.data.tokens.directory import TokenDirectory


def summary_in_words(tokens: TokenDirectory) -> str:
    """A few lines on what is there."""
    vocabulary = tokens.manifest.vocabulary
    spelled = vocabulary.kind == "sentencepiece"
    what = f"pieces of words ({vocabulary.label})" if spelled else "words"
    lines = [f"{tokens.directory}: vocabulary of {vocabulary.size:,} {what}, fingerprint {tokens.fingerprint[:12]}"]
    for name in SPLITS:
        split = tokens.split(name)
        unknown = split.num_unknown / max(1, split.num_words)
        means = "spell" if spelled else "="
        counts = f"{split.num_tokens:>13,} tokens {means} {split.num_words:,} words + {split.num_sentences:,} sentences"
        lines.append(f"  {name:<10} {counts}, {unknown:.2%} of the words unknown")
    if tokens.corpus["official"]:
        lines.append("  the official 1 Billion Word benchmark: every MD5 and every published count is right")
    return "\n".join(lines)


def summary_as_json(tokens: TokenDirectory) -> dict[str, Any]:
    """The same for `--log-format json`."""
    counts = ("num_tokens", "num_words", "num_sentences", "num_unknown")
    splits = {name: {key: getattr(tokens.split(name), key) for key in counts} for name in SPLITS}
    vocabulary = {"size": tokens.manifest.vocabulary.size, "fingerprint": tokens.fingerprint}
    return {"directory": str(tokens.directory), "vocabulary": vocabulary, "official": tokens.corpus["official"], "splits": splits}
