"""What is known of the 1 Billion Word benchmark (Chelba et al. 2013, arXiv 1312.3005): its files' MD5 sums and its counts."""

from __future__ import annotations

from functools import cache
from importlib import resources

TARBALL_NAME = "1-billion-word-language-modeling-benchmark-r13output.tar.gz"
TARBALL_SHA256 = "01ba60381110baf7f189dfd2b8374de371e8c9a340835793f190bdae9e90a34e"
TARBALL_ADDRESS = f"http://www.statmt.org/lm-benchmark/{TARBALL_NAME}"

TRAINING_FOLDER = "training-monolingual.tokenized.shuffled"
HELD_OUT_FOLDER = "heldout-monolingual.tokenized.shuffled"

NUM_TRAINING_FILES = 99
NUM_TRAINING_SENTENCES = 30_301_028
NUM_TRAINING_WORDS = 768_648_884
NUM_TRAINING_TOKENS = 798_949_912  # words and one end mark a sentence
VOCABULARY_SIZE = 793_471  # words of count 3 or more, <S>, </S>, <UNK>
VOCABULARY_MINIMUM_COUNT = 3

# Held-out files whose counts are published: (sentences, predictions, unknown words).
HELD_OUT_COUNTS = {
    "news.en.heldout-00000-of-00050": (6_075, 159_658, 446),
    "news.en.heldout-00001-of-00050": (6_206, 165_560, 524),
}

HOW_TO_GET_IT = f"get {TARBALL_ADDRESS} (SHA-256 {TARBALL_SHA256}) and name it, or the folder extracted from it, in corpus.path"


@cache
def official_md5() -> dict[str, str]:
    """`folder/file` -> MD5 of every training and held-out file of the benchmark."""
    text = resources.files("lm1b.data").joinpath("official_md5.txt").read_text(encoding="utf-8")
    pairs = (line.split() for line in text.splitlines() if not line.startswith("#"))
    return {name: md5 for md5, name in pairs}


def official_name_of(md5: str | None) -> str | None:
    """The benchmark file (`folder/file`) that has this MD5, None where it is none of them."""
    return next((name for name, known in official_md5().items() if known == md5), None)
