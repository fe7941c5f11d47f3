"""Raw English into tokenized sentences, as the 1 Billion Word benchmark's makers did with the Moses scripts.

1. `split_sentences` cuts a paragraph after . ! ? where the next word starts like a sentence; not after a title or
   abbreviation of the Moses list (Mr., Gen.), an initial, or initials such as U.S., and after `No.` only before no number.
2. `tokenize` normalises punctuation and tokenizes by Moses rules (sacremoses). The benchmark's conventions: straight quotes,
   nothing escaped (`&`, `"`, `'` stay as they are), clitics cut before the apostrophe (`Don 't`, `Murray 's`).
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sacremoses import MosesPunctNormalizer, MosesTokenizer

# White space where a sentence may end: after . ! ? or dots with closing quotes and brackets, before a capital, a digit or an opening.
_CLOSING = "\"'\u201d\u2019)]"  # straight and curly quotes, brackets
_OPENING = "\"'\u201c\u2018(["
_CANDIDATE = re.compile(rf"(?P<end>[.!?]+)(?P<closing>[{re.escape(_CLOSING)}]*)\s+(?=[{re.escape(_OPENING)}]*[^\W_a-z])")
_INITIALS = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]$")


@cache
def _moses() -> tuple[MosesPunctNormalizer, MosesTokenizer]:
    from sacremoses import MosesPunctNormalizer, MosesTokenizer  # takes a while, and only raw text needs it

    return MosesPunctNormalizer(lang="en"), MosesTokenizer(lang="en")


@cache
def _abbreviations() -> tuple[frozenset[str], frozenset[str]]:
    """Moses's words after whose period no sentence ends: (always, only before a number)."""
    tokenizer = _moses()[1]
    numeric = frozenset(tokenizer.NUMERIC_ONLY_PREFIXES)
    return frozenset(tokenizer.NONBREAKING_PREFIXES) - numeric, numeric


def _is_abbreviation(before: str, after: str) -> bool:
    """Whether the period between `before` and the character `after` belongs to the word before it."""
    word = before.rsplit(None, 1)[-1].lstrip(_OPENING) if before.strip() else ""
    always, numeric = _abbreviations()
    return word in always or (word in numeric and after.isdigit()) or (word[:1].isupper() and _INITIALS.fullmatch(word) is not None)


def split_sentences(paragraph: str) -> list[str]:
    """Cut a paragraph into sentences, in order; nothing but the white space between them is dropped."""
    sentences = []
    start = 0
    for match in _CANDIDATE.finditer(paragraph):
        if (
            match["end"] == "."
            and not match["closing"]
            and _is_abbreviation(paragraph[start : match.start()], paragraph[match.end() : match.end() + 1])
        ):
            continue
        sentences.append(paragraph[start : match.end()].strip())
        start = match.end()
    sentences.append(paragraph[start:].strip())
    return [sentence for sentence in sentences if sentence]


def tokenize(sentence: str) -> str:
    """The sentence's tokens, parted by single spaces; may be empty."""
    normalizer, tokenizer = _moses()
    text = normalizer.normalize(sentence)
    return " ".join(" ".join(tokenizer.tokenize(text, escape=False)).split())
