"""Words, ids and the text they are found in."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokens import plain_tokens, small_vocabulary

from lm1b.data.preprocess.passes import merge_counts
from lm1b.data.text import tokenized
from lm1b.data.text.tokenized import blank_lines, blocks_of, check_utf8, number_tokens, tokens_of
from lm1b.data.vocabulary.words import WordVocabulary, read_given_vocabulary
from lm1b.errors import UserError


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"one",
        b"a  b\n\n c \r\nd\te\n",
        b"\xef\xbb\xbfa b\n",
        b"a </S> b\n<S>\n<S> </S>\nx</S> <UNK> </S>",
        b" \n \n",
        b"\t\n\r\n",
    ],
)
def test_tokens_of_untidy_text(data: bytes) -> None:
    assert tokens_of(data).to_pylist() == [token + b" " for token in plain_tokens(data)]


@given(
    st.lists(
        st.sampled_from([b"a", b"bb", b" ", b"  ", b"\n", b"\r\n", b"\t", b"</S>", b"<S>", b"<UNK>", "é ".encode(), b"<"]), max_size=30
    )
)
@settings(deadline=None, max_examples=200)
def test_tokens_of_is_plain_splitting(parts: list[bytes]) -> None:
    data = b"".join(parts)
    assert tokens_of(data).to_pylist() == [token + b" " for token in plain_tokens(data)]


@given(st.binary(max_size=60), st.integers(1, 20))
@settings(deadline=None, max_examples=100)
def test_blocks_join_to_the_text_and_end_at_newlines(data: bytes, block_bytes: int) -> None:
    blocks = list(blocks_of(data, block_bytes))
    assert b"".join(blocks) == data
    assert all(block.endswith(b"\n") for block in blocks[:-1])


def test_text_that_is_not_utf8_names_line_and_byte() -> None:
    with pytest.raises(UserError, match=r"news\.txt: not UTF-8 at line 2, byte 5 \(0xff\)"):
        check_utf8(b"abc\nd\xff\n", "news.txt")
    with pytest.raises(UserError, match=r"not UTF-8 at byte 105 "):
        check_utf8(b"abc\nd\xff\n", "news.txt", first_byte=100)
    check_utf8("é\n".encode(), "news.txt")


def test_a_line_too_long_to_be_a_sentence_is_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenized, "LONGEST_LINE_BYTES", 100)
    small_vocabulary().encode(b"a" * 99 + b"\n" + b"b" * 99 + b"\n")
    for data in (b"b" * 100 + b"\n", b"a\n" + b"b" * 101, b"b" * 300):
        with pytest.raises(UserError, match=r"text: has a line of more than"):
            small_vocabulary().encode(data)


def test_only_at_the_very_start_of_a_file_is_a_byte_order_mark_no_letter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenized, "BLOCK_BYTES", 8)
    mark = "\ufeff".encode()
    distinct, codes, _ = number_tokens(b"a b c d\n" + mark + b"a b\n")
    assert distinct.take(codes).to_pylist()[5] == mark + b"a ", "the first of a block"
    words = small_vocabulary(b"a\n" + mark + b"a\n", 1)
    assert words.encode(mark + b"a\n" + mark + b"a\n").ids_N.tolist() == words.encode(b"a\n" + mark + b"a\n").ids_N.tolist()
    assert blank_lines(mark + b"\n" + mark + b"\n") == [True, False]
    (tmp_path / "given.txt").write_bytes(mark + b"the\n</S>\n<UNK>\n" + mark + b"the\n")
    assert read_given_vocabulary(tmp_path / "given.txt").vocabulary.id_to_token == ["the", "</S>", "<UNK>", "\ufeffthe", "<S>"]


def test_ids_fall_by_count_and_ties_go_by_bytes() -> None:
    vocabulary = small_vocabulary(b"z y x y z\nx w\xc3\xa9 w\n", minimum_count=2)
    assert vocabulary.id_to_token == ["</S>", "<UNK>", "x", "y", "z", "<S>"]
    assert vocabulary.counts_V.tolist() == [2, 2, 2, 2, 2, 0]
    assert (vocabulary.end_id, vocabulary.unknown_id, vocabulary.start_id, vocabulary.size) == (0, 1, 5, 6)


def test_no_count_is_lost() -> None:
    vocabulary = small_vocabulary(b"b a b c <UNK>\nb a d b\n")
    assert dict(zip(vocabulary.id_to_token, vocabulary.counts_V.tolist(), strict=True)) == {"b": 4, "<UNK>": 3, "</S>": 2, "a": 2, "<S>": 0}


def test_encode() -> None:
    vocabulary = small_vocabulary()
    ids, _, _, unknown = vocabulary.encode(b"a new b\r\n\nb </S>")
    assert [vocabulary.id_to_token[i] for i in ids] == ["a", "<UNK>", "b", "</S>", "b", "<UNK>", "</S>"]
    assert (ids.dtype, unknown) == (np.uint32, 2)
    assert vocabulary.encode(b"").ids_N.tolist() == []
    with pytest.raises(UserError, match=r"x\.txt: not UTF-8"):
        vocabulary.encode(b"\xff", "x.txt")


def test_tokens_of_strange_bytes_survive_saving(tmp_path: Path) -> None:
    vocabulary = small_vocabulary("a\u00a0b \u2028 \u0085 a\u00a0b \u2028 \u0085 a\x01 a a a\x01\n".encode())
    vocabulary.save(tmp_path / "vocabulary.txt")
    loaded = WordVocabulary.load(tmp_path / "vocabulary.txt")
    assert loaded.id_to_token == vocabulary.id_to_token
    assert loaded.counts_V.tolist() == vocabulary.counts_V.tolist()
    assert loaded.fingerprint == vocabulary.fingerprint
    assert loaded.id_to_token.index("a") < loaded.id_to_token.index("a\x01"), "ties go by the words' bytes"


def test_the_fingerprint_includes_the_order() -> None:
    words = small_vocabulary().id_to_token
    turned = [words[1], words[0], *words[2:]]
    made = [
        WordVocabulary(pa.array([w.encode() for w in order], pa.binary()), np.zeros(len(order), dtype=np.int64))
        for order in (words, turned)
    ]
    assert made[0].fingerprint == small_vocabulary().fingerprint != made[1].fingerprint


def test_given_vocabularies(tmp_path: Path) -> None:
    path = tmp_path / "given.txt"
    path.write_text("<S> 9\nb 2\n</S> 5\na 2\n<UNK> 7\n")
    vocabulary, has_counts = read_given_vocabulary(path)
    assert has_counts
    assert vocabulary.id_to_token == ["<UNK>", "</S>", "a", "b", "<S>"]
    path.write_text("b\n<S>\n</S>\n<UNK>\na\n")
    vocabulary, has_counts = read_given_vocabulary(path)
    assert not has_counts
    assert vocabulary.id_to_token == ["b", "</S>", "<UNK>", "a", "<S>"]
    counted = vocabulary.counted(pa.array([b"a", b"zz", b"</S>"], pa.binary()), np.array([4, 2, 3], dtype=np.int64))
    assert counted.counts_V.tolist() == [0, 3, 2, 4, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a 3\nb\n</S> 1\n<UNK> 1\n", ":2: expected `word count`"),
        ("a b 3\n", ":1: expected"),
        ("a 3\n</S> 2\n", "has no `<UNK>`"),
        ("a 3\n<UNK> 2\n", "has no `</S>`"),
        ("a 3\n</S> 2\n<UNK> 2\na 1\n", "`a` is there twice"),
        ("", "has no"),
    ],
)
def test_bad_given_vocabularies(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "given.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        read_given_vocabulary(tmp_path / "given.txt")


def test_missing_and_foreign_vocabularies(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such vocabulary file"):
        read_given_vocabulary(tmp_path / "none.txt")
    (tmp_path / "words.txt").write_text("a\n<UNK>\n</S>\n")
    with pytest.raises(UserError, match="not a vocabulary written by preprocessing"):
        WordVocabulary.load(tmp_path / "words.txt")


def test_the_narrowest_dtype_is_chosen() -> None:
    for size, dtype in ((1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)):
        words = [b"</S>", b"<UNK>"] + [b"w%d" % number for number in range(size - 3)] + [b"<S>"]
        assert WordVocabulary(pa.array(words, pa.binary()), np.zeros(size, dtype=np.int64)).token_dtype == dtype


def test_merged_counts_are_sent_at_their_own_size() -> None:
    words = pa.array([f"{number} ".encode() for number in range(200_000)], pa.binary())
    table = pa.table({"word": words, "count": pa.array(np.ones(len(words), dtype=np.int64))})
    merged = merge_counts([table, table])
    assert sorted(merged["count"].to_pylist()) == [2] * len(words)
    assert len(pickle.dumps(merged)) < 1.5 * table.nbytes
