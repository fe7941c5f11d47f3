"""A vocabulary of pieces from counted training words.

1. Pieces never reach over a space, so all that SentencePiece needs of a corpus is how often each word is there.
2. `sampled_lines` draws a text of about `sample_words` words from the counts of the whole training split: a word of count c is there
   c * share times, rounded up or down by a hash of its place among the sorted words, and the words are shuffled by a hash.
3. `train_model` has the library learn from that text.
4. `build_piece_vocabulary` spells every counted word with the model, and ranks the pieces by how often they are used.

The same counts and settings give the same model, whatever the files' order, the machine's cores or the number of ranks.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import sentencepiece

from lm1b.config import VocabularyConfig
from lm1b.data.text.tokenized import END, START, UNKNOWN, as_numpy, compute
from lm1b.data.vocabulary.pieces import SPACE, PieceVocabulary
from lm1b.data.vocabulary.words import WordVocabulary, is_reserved, with_space
from lm1b.errors import UserError
from lm1b.workers import usable_cores

THREADS = 16  # whatever the machine has: sums of the unigram model's expectations depend on their number
WORDS_A_LINE = 50
LONGEST_WORD_BYTES = 256  # what is longer is no word to learn from; it is spelled like any other
_ALSO_LEFT_OUT = rf"[\x00-\x1f{SPACE}\x{{2585}}]"  # characters that the library keeps for itself


def _hashed(numbers: np.ndarray, seed: int) -> np.ndarray:
    """splitmix64 (Steele, Lea, Flood 2014) of numbers under a seed: uint64.

    The bits of `randomness.random_bits` under the key seed * 0xD1342543DE82EF95 * 0x9E3779B97F4A7C15, without its torch: a process that
    preprocesses on its own does not load that.
    """
    with np.errstate(over="ignore"):
        mixed = (numbers.astype(np.uint64) + np.uint64(seed) * np.uint64(0xD1342543DE82EF95)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def sampled_lines(words: pa.BinaryArray, counts: np.ndarray, sample_words: int, seed: int) -> Iterator[str]:
    """Lines of words drawn from their counts, about `sample_words` in all; every word as often as it is there, where there are fewer."""
    order = compute.sort_indices(words)
    words, counts = words.take(order), counts[as_numpy(order)]
    share = min(1.0, sample_words / max(1, int(counts.sum())))
    uniform = (_hashed(np.arange(len(words)), seed) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    times = np.floor(counts * share + uniform).astype(np.int64) if share < 1.0 else counts
    numbers = np.repeat(np.arange(len(words)), times)
    numbers = numbers[np.argsort(_hashed(np.arange(len(numbers)), seed + 1), kind="stable")]
    texts = words.cast(pa.string()).to_pylist()
    for start in range(0, len(numbers), WORDS_A_LINE):
        yield " ".join(texts[number] for number in numbers[start : start + WORDS_A_LINE].tolist())


def _learnt_from(words: pa.BinaryArray, known: WordVocabulary | None) -> np.ndarray:
    """bool: words that pieces are learnt from."""
    left_out = is_reserved(words)
    for more in (
        compute.greater(compute.binary_length(words), LONGEST_WORD_BYTES),
        compute.match_substring_regex(words.cast(pa.string()), _ALSO_LEFT_OUT),
    ):
        left_out = compute.or_(left_out, more)
    if known is not None:
        known_words = pa.array([word.encode() for word in known.id_to_token], pa.binary())
        left_out = compute.or_(left_out, compute.invert(compute.is_in(words, value_set=known_words)))
    return ~left_out.to_numpy(zero_copy_only=False)


def train_model(words: pa.BinaryArray, counts: np.ndarray, config: VocabularyConfig, known: WordVocabulary | None) -> bytes:
    """The library's file of a model learnt from counted words. Raises UserError where there are too few of them for so many pieces."""
    kept = _learnt_from(words, known)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sampled_lines(words.filter(pa.array(kept)), counts[kept], config.sample_words, config.seed),
            model_writer=model,
            model_type=config.piece_model,
            vocab_size=config.pieces,
            character_coverage=config.character_coverage,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            shuffle_input_sentence=False,
            max_sentence_length=WORDS_A_LINE * (LONGEST_WORD_BYTES + 1),
            num_threads=THREADS,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            unk_piece=UNKNOWN,
            bos_piece=START,
            eos_piece=END,
            minloglevel=2,
        )
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).rpartition("] ")[2] or str(error)
        raise UserError(
            f"vocabulary.pieces={config.pieces}: SentencePiece cannot learn so many from {int(kept.sum()):,} distinct training words "
            f"({reason.strip()}); set another number"
        ) from None
    return model.getvalue()


def build_piece_vocabulary(
    words: pa.BinaryArray, counts: np.ndarray, config: VocabularyConfig, known: WordVocabulary | None
) -> PieceVocabulary:
    """Learn the pieces and rank them by how often the training text uses them.

    words: distinct, without trailing space, the stream's `</S>` among them. counts: int64, same length. known: the word vocabulary of a
    closed one. Raises UserError where so many pieces cannot be learnt.
    """
    model = train_model(words, counts, config, known)
    size = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    unranked = PieceVocabulary(model, np.arange(size), np.zeros(size, np.int64), known)
    spelling = unranked.spell(with_space(words), threads=usable_cores())
    assert spelling.lengths_W is not None
    totals = np.bincount(spelling.ids_K, weights=np.repeat(counts, spelling.lengths_W), minlength=size).astype(np.int64)
    start = unranked.id_to_token.index(START)
    order = sorted(set(range(size)) - {start}, key=lambda number: (-totals[number], unranked.id_to_token[number].encode()))
    order_V = np.array([*order, start])
    return PieceVocabulary(model, order_V, totals[order_V], known)
