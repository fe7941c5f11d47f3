"""Token shards: written whole, mapped, and refused where they do not belong together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_vocabulary import small_vocabulary

from lm1b.data.shards import MANIFEST_NAME, VOCABULARY_NAME, TokenDirectory, make_manifest, write_array, write_shard
from lm1b.errors import UserError
from lm1b.files import digest_of_file, write_json

END, UNKNOWN = 1, 2


def make_directory(folder: Path) -> Path:
    vocabulary = small_vocabulary()
    vocabulary.save(folder / VOCABULARY_NAME)
    tokens, _ = vocabulary.encode(b"a b c\nb\n")
    shard = write_shard(folder, "train-00001", tokens.astype(np.uint16), vocabulary.end_id, vocabulary.unknown_id)
    empty = write_shard(folder, "test-00000", tokens[:0].astype(np.uint16), vocabulary.end_id, vocabulary.unknown_id)
    corpus = {"kind": "text", "official": False, "files": []}
    manifest = make_manifest(
        vocabulary, digest_of_file(folder / VOCABULARY_NAME), {"train": [shard], "validation": [shard], "test": [empty]}, corpus, {}
    )
    write_json(folder / MANIFEST_NAME, manifest)
    return folder


def test_a_directory_reads_back(tmp_path: Path) -> None:
    tokens = TokenDirectory.open(make_directory(tmp_path))
    train = tokens.split("train")
    assert (train.num_tokens, train.num_words, train.num_sentences, train.num_unknown) == (6, 4, 2, 1)
    words = [tokens.vocabulary.words[i] for i in train.tokens(0)]
    assert words == ["a", "b", "<UNK>", "</S>", "b", "</S>"]
    assert train.sentence_ends(0).tolist() == [4, 6]
    assert train.tokens(0).dtype == np.uint16
    assert not train.tokens(0).flags.writeable
    assert tokens.fingerprint == tokens.vocabulary.fingerprint
    assert tokens.split("test").joined()[0].tolist() == []
    tokens.verify()


@given(st.lists(st.lists(st.integers(2, 60_000), max_size=5), max_size=8))
@settings(deadline=None, max_examples=40)
def test_any_shard_reads_back(sentences: list[list[int]]) -> None:
    import tempfile

    stream = np.array([token for sentence in sentences for token in [*sentence, END]], dtype=np.uint16)
    with tempfile.TemporaryDirectory() as folder:
        info = write_shard(Path(folder), "s", stream, END, UNKNOWN)
        assert np.load(Path(folder) / info.tokens_name, allow_pickle=False).tolist() == stream.tolist()
        ends = np.load(Path(folder) / info.ends_name, allow_pickle=False)
        assert np.diff(ends, prepend=0).tolist() == [len(sentence) + 1 for sentence in sentences]
        for path, size, sha256 in info.files(Path(folder)):
            assert (path.stat().st_size, digest_of_file(path)) == (size, sha256)
    assert info.num_unknown == sum(sentence.count(UNKNOWN) for sentence in sentences)


def test_no_manifest_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run `python launch/preprocess\.py"):
        TokenDirectory.open(tmp_path)


def test_other_format_is_refused(tmp_path: Path) -> None:
    make_directory(tmp_path)
    manifest = json.loads((tmp_path / MANIFEST_NAME).read_text())
    write_json(tmp_path / MANIFEST_NAME, manifest | {"version": 99})
    with pytest.raises(UserError, match="expected format lm1b-tokens version 1"):
        TokenDirectory.open(tmp_path)


def test_vocabulary_and_shards_that_do_not_belong_together(tmp_path: Path) -> None:
    make_directory(tmp_path)
    small_vocabulary(b"p q p q\n").save(tmp_path / VOCABULARY_NAME)
    with pytest.raises(UserError, match="not the vocabulary these shards were made with"):
        TokenDirectory.open(tmp_path)


def test_missing_short_and_damaged_shards(tmp_path: Path) -> None:
    tokens = TokenDirectory.open(make_directory(tmp_path))
    path = tmp_path / "train-00001.tokens.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    TokenDirectory.open(tmp_path)  # size alone does not show it
    with pytest.raises(UserError, match=r"train-00001\.tokens\.npy: damaged"):
        tokens.verify()
    path.write_bytes(whole[:-2])
    with pytest.raises(UserError, match="train-00001 is missing or not of its size"):
        TokenDirectory.open(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="train-00001 is missing or not of its size"):
        TokenDirectory.open(tmp_path)
    with pytest.raises(UserError, match="not a token shard"):
        tokens.split("train").tokens(0)


def test_a_shard_of_another_kind_is_refused(tmp_path: Path) -> None:
    tokens = TokenDirectory.open(make_directory(tmp_path))
    write_array(tmp_path / "train-00001.tokens.npy", np.zeros(6, dtype=np.float16))
    with pytest.raises(UserError, match="holds float16"):
        tokens.split("train").tokens(0)
