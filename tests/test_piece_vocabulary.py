"""A vocabulary of pieces: text comes back, words are counted and segmented as the library does, and its files are read back."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from piece_vocabularies import SENTENCES, SETTINGS, TEXT, counted, learnt
from sentencepiece import SentencePieceProcessor

from lm1b.data.vocabulary.files import load_vocabulary
from lm1b.data.vocabulary.piece_training import build_piece_vocabulary, sampled_lines
from lm1b.data.vocabulary.pieces import SPACE, PieceVocabulary
from lm1b.data.vocabulary.words import build_vocabulary
from lm1b.errors import UserError

VOCABULARIES = {"unigram": learnt("unigram"), "bpe": learnt("bpe"), "closed": learnt(closed=True)}
KNOWN = build_vocabulary(*counted(TEXT), 5)

ODD = st.text(st.sampled_from(f"thebank{SPACE}\u2585\x00\x01\x85\u2028\u00a0\ufeffé<>/SUNK0x\U0001f600"), min_size=1, max_size=9)
ODD_WORDS = st.one_of(ODD, st.text(min_size=1, max_size=6), st.sampled_from(["<UNK>", "<0x41>", SPACE, "president", "pays", "xyz" * 400]))


@pytest.mark.parametrize("name", ["unigram", "bpe"])
@settings(max_examples=150, deadline=None)
@given(lines=st.lists(st.lists(ODD_WORDS, max_size=6), max_size=4))
def test_every_word_comes_back_as_it_was(name: str, lines: list[list[str]]) -> None:
    words = [[word for each in line for word in each.translate(dict.fromkeys(map(ord, " \t\n\r\v\f"), " ")).split(" ") if word]
             for line in lines]  # fmt: skip
    words = [[word.encode("utf-8", "ignore").decode() for word in line] for line in words]  # hypothesis has lone surrogates
    words = [[word for word in line if word and word not in ("</S>", "<S>")] for line in words]
    vocabulary = VOCABULARIES[name]
    text = "x\n" + "".join(" ".join(line) + "\n" for line in words)  # a mark of byte order at the very front is no text
    encoded = vocabulary.encode(text.encode())
    filled = [["x"], *(line for line in words if line)]
    assert vocabulary.decode(encoded.ids_N) == [" ".join(line) for line in filled]
    assert (encoded.words, encoded.sentences, encoded.unknown) == (sum(map(len, filled)), len(filled), 0)
    assert int(vocabulary.begins(encoded.ids_N).sum()) == encoded.words + encoded.sentences


@pytest.mark.parametrize("name", VOCABULARIES)
def test_ids_fall_by_training_count_and_ties_go_by_bytes(name: str) -> None:
    vocabulary = VOCABULARIES[name]
    found = np.bincount(vocabulary.encode(TEXT).ids_N, minlength=vocabulary.size)
    assert vocabulary.counts_V.tolist() == found.tolist()
    ranked = [(-count, piece.encode()) for count, piece in zip(found.tolist(), vocabulary.id_to_token, strict=True)]
    assert ranked[:-1] == sorted(ranked[:-1])
    assert (vocabulary.id_to_token[-1], vocabulary.size, vocabulary.start_id) == ("<S>", 295, 294)


@pytest.mark.parametrize("name", ["unigram", "bpe"])
def test_words_are_segmented_as_the_library_segments_sentences(name: str) -> None:
    vocabulary = VOCABULARIES[name]
    theirs = SentencePieceProcessor(model_proto=vocabulary._model)
    for sentence in SENTENCES:
        ours = [vocabulary.id_to_token[number] for number in vocabulary.encode(sentence.encode()).ids_N[:-1]]
        assert ours == theirs.encode(sentence, out_type=str)


def test_the_same_counts_make_the_same_vocabulary_and_the_fingerprint_tells_others() -> None:
    words, counts = counted(TEXT)
    turned = np.arange(len(words))[::-1]
    again = build_piece_vocabulary(words.take(pa.array(turned)), counts[turned], SETTINGS, None)
    first = VOCABULARIES["unigram"]
    assert again.fingerprint == first.fingerprint
    assert again.id_to_token == first.id_to_token
    order_V = np.argsort(first._id_of_number)
    order_V[[3, 4]] = order_V[[4, 3]]
    swapped = PieceVocabulary(first._model, order_V, first.counts_V, None)
    shut = PieceVocabulary(first._model, np.argsort(first._id_of_number), first.counts_V, KNOWN)
    assert len({vocabulary.fingerprint for vocabulary in (first, swapped, shut, *VOCABULARIES.values())}) == 5


def test_the_sample_is_drawn_from_the_counts() -> None:
    words, counts = pa.array([b"rare", b"often", b"never"], pa.binary()), np.array([3, 997, 0])
    everything = Counter(word for line in sampled_lines(words, counts, 10_000, 1) for word in line.split(" "))
    assert everything == {"rare": 3, "often": 997}
    some = [Counter(word for line in sampled_lines(words, counts, 100, seed) for word in line.split(" ")) for seed in range(40)]
    assert all(99 <= sample["often"] <= 100 and sample["rare"] <= 1 for sample in some)
    assert 2 <= sum(sample["rare"] for sample in some) <= 30  # 0.3 of 100 words each
    many = pa.array([b"w%d" % number for number in range(50)], pa.binary())
    assert len({tuple(sampled_lines(many, np.full(50, 20), 100, seed)) for seed in (1, 1, 2)}) == 2


ODD_LINES = [
    (b"", 0, 0),
    (b" \t ", 0, 0),
    (b"the\x00 bank \x01", 3, 2),
    (b"</S> <UNK> <S> x</S>", 4, 4),
    ("the w\u0301 \u2028bank".encode(), 3, 2),
    (b" ".join([b"the"] * 100_000), 100_000, 0),
    (b"the\r", 1, 0),
    (b"x" * 100_000, 1, 1),
]


@pytest.mark.parametrize(("line", "words", "unknown"), ODD_LINES, ids=range(len(ODD_LINES)))
def test_any_line_has_a_stated_treatment(line: bytes, words: int, unknown: int) -> None:
    for name, vocabulary in VOCABULARIES.items():
        found = vocabulary.encode(line)
        assert (found.words, found.unknown) == (words, unknown if name == "closed" else 0)
        assert found.sentences == (words > 0)
    closed, word = VOCABULARIES["closed"].encode(line), KNOWN.encode(line)
    assert closed[1:] == word[1:]
    with pytest.raises(UserError, match="not UTF-8 at line 1"):
        VOCABULARIES["bpe"].encode(line + b"\xff")


def test_closed_spells_an_unknown_word_by_one_id() -> None:
    closed = VOCABULARIES["closed"]
    ids = closed.encode(b"the zebra said <UNK> .\n").ids_N
    assert [closed.id_to_token[number] for number in ids if number == closed.unknown_id] == ["<UNK>"] * 2
    assert closed.decode(ids) == ["the <UNK> said <UNK> ."]
    assert (closed.label, VOCABULARIES["bpe"].label, KNOWN.label) == ("closed", "open", "closed")


@pytest.mark.parametrize("name", VOCABULARIES)
def test_files_are_read_back_and_damage_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "vocabulary.txt"
    vocabulary = VOCABULARIES[name]
    vocabulary.save(path)
    loaded = load_vocabulary(path)
    assert (loaded.fingerprint, loaded.label, loaded.kind) == (vocabulary.fingerprint, vocabulary.label, "sentencepiece")
    assert loaded.counts_V.tolist() == vocabulary.counts_V.tolist()
    assert loaded.encode(TEXT).ids_N.tolist() == vocabulary.encode(TEXT).ids_N.tolist()
    for beside in set(tmp_path.iterdir()) - {path}:
        data = beside.read_bytes()
        beside.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(UserError, match=rf"{beside.name}: belongs to vocabulary\.txt with SHA-256"):
            load_vocabulary(path)
        beside.write_bytes(data)
    lines = path.read_bytes().splitlines(keepends=True)
    for damaged in (lines[:-1], [*lines[:3], *lines[4:]], [*lines[:3], lines[3], *lines[3:]], [lines[0]], [*lines, b"x y\n"]):
        path.write_bytes(b"".join(damaged))
        with pytest.raises(UserError, match="not a vocabulary of pieces"):
            load_vocabulary(path)


@pytest.mark.parametrize("pieces", [100_000, 10])
def test_a_number_of_pieces_that_cannot_be_learnt_is_one_line(pieces: int) -> None:
    with pytest.raises(UserError, match=rf"vocabulary\.pieces={pieces}: SentencePiece cannot learn so many") as caught:
        learnt(pieces=pieces)
    assert "\n" not in str(caught.value)
