"""Token shards: written whole, mapped, and refused where they do not belong together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokens import make_directory, small_vocabulary
from tiny import REPOSITORY, environment

from lm1b.data.tokens.arrays import write_array
from lm1b.data.tokens.directory import TokenDirectory, write_shard
from lm1b.data.tokens.manifest import LARGEST_FILE_BYTES, MANIFEST_NAME, PAGE_BYTES, Manifest, SplitShards
from lm1b.data.vocabulary.vocabulary import VOCABULARY_NAME
from lm1b.errors import UserError
from lm1b.files import LARGEST_JSON_BYTES, digest_of_file, read_json, read_sealed_json, seal, write_json, write_sealed_json

END, UNKNOWN = 1, 2
pytestmark = pytest.mark.usefixtures("cache_folder")


def test_a_directory_reads_back(tmp_path: Path) -> None:
    tokens = TokenDirectory.open(make_directory(tmp_path))
    train = tokens.split("train")
    assert (train.num_tokens, train.num_words, train.num_sentences, train.num_unknown) == (6, 4, 2, 1)
    words = [tokens.vocabulary.id_to_token[i] for i in train.tokens(0)]
    assert words == ["a", "b", "<UNK>", "</S>", "b", "</S>"]
    assert train.sentence_ends(0).tolist() == [4, 6]
    assert train.tokens(0).dtype == np.uint16  # type: ignore[attr-defined]
    assert not train.tokens(0).flags.writeable  # type: ignore[attr-defined]
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
    manifest = read_sealed_json(tmp_path / MANIFEST_NAME)
    write_sealed_json(tmp_path / MANIFEST_NAME, manifest | {"version": 99})
    with pytest.raises(UserError, match="expected format lm1b-tokens version 3"):
        TokenDirectory.open(tmp_path)


def test_vocabulary_and_shards_that_do_not_belong_together(tmp_path: Path) -> None:
    make_directory(tmp_path)
    small_vocabulary(b"p q p q\n").save(tmp_path / VOCABULARY_NAME)
    with pytest.raises(UserError, match="not the vocabulary these shards were made with"):
        TokenDirectory.open(tmp_path)


FILES = ["train-00001.tokens.npy", "train-00001.ends.npy", "validation-00001.tokens.npy", "validation-00001.ends.npy"]


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found_by_name_with_both_sums(tmp_path: Path, name: str) -> None:
    tokens = TokenDirectory.open(make_directory(tmp_path))
    path = tmp_path / name
    whole = path.read_bytes()
    expected = digest_of_file(path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    TokenDirectory.open(tmp_path)  # its size does not show it
    for check in (tokens.verify, tokens.verify_once):
        with pytest.raises(UserError) as caught:
            check()
        assert str(caught.value).startswith(f"{path}: damaged, SHA-256 expected {expected}, found {digest_of_file(path)}: delete it")


def test_swapped_shards_are_found(tmp_path: Path) -> None:
    tokens = TokenDirectory.open(make_directory(tmp_path))
    one, other = tmp_path / FILES[0], tmp_path / FILES[2]
    assert one.stat().st_size == other.stat().st_size
    tokens.verify_once()
    one.rename(tmp_path / "aside")
    other.rename(one)
    (tmp_path / "aside").rename(other)
    for check in (tokens.verify, tokens.verify_once):
        with pytest.raises(UserError, match=r"train-00001\.tokens\.npy: damaged.*\(which is that of validation-00001\.tokens\.npy\)"):
            check()


def test_short_and_missing_shards(tmp_path: Path) -> None:
    tokens = TokenDirectory.open(make_directory(tmp_path))
    path = tmp_path / FILES[0]
    path.write_bytes(path.read_bytes()[:-2])
    for check in (lambda: TokenDirectory.open(tmp_path), tokens.verify, tokens.verify_once):
        with pytest.raises(UserError, match=r"train-00001\.tokens\.npy: damaged"):
            check()
    with pytest.raises(UserError, match=r"train-00001\.tokens\.npy: not a token shard of 6 uint16 in 140 bytes \(it has 138\)"):
        tokens.split("train").tokens(0)
    path.unlink()
    for check in (lambda: TokenDirectory.open(tmp_path), tokens.verify, tokens.verify_once):
        with pytest.raises(UserError, match=r"train-00001\.tokens\.npy: this shard is missing"):
            check()
    with pytest.raises(UserError, match="not a token shard"):
        tokens.split("train").tokens(0)


def test_another_vocabulary_is_named_with_both_sums(tmp_path: Path) -> None:
    tokens = TokenDirectory.open(make_directory(tmp_path))
    expected = digest_of_file(tmp_path / VOCABULARY_NAME)
    small_vocabulary(b"p q p q\n").save(tmp_path / VOCABULARY_NAME)
    found = digest_of_file(tmp_path / VOCABULARY_NAME)
    with pytest.raises(UserError, match=f"SHA-256 expected {expected}, found {found}"):
        tokens.verify()


@pytest.mark.parametrize("dtype", [np.float16, np.int16, np.dtype(">u2")])
def test_a_shard_of_another_kind_is_refused(tmp_path: Path, dtype: Any) -> None:
    tokens = TokenDirectory.open(make_directory(tmp_path))
    write_array(tmp_path / FILES[0], np.zeros(6, dtype=dtype))
    with pytest.raises(UserError, match="not a token shard of 6 uint16"):
        tokens.split("train").tokens(0)


def test_a_damaged_manifest_is_refused(tmp_path: Path) -> None:
    make_directory(tmp_path)
    path = tmp_path / MANIFEST_NAME
    whole = path.read_text()
    path.write_text(whole.replace('"num_tokens": 6', '"num_tokens": 5', 1))
    with pytest.raises(UserError, match=r"manifest\.json: damaged, SHA-256 expected .* found .*; run launch/preprocess\.py again"):
        TokenDirectory.open(tmp_path)
    write_json(path, {key: value for key, value in json.loads(whole).items() if key != "seal"})
    with pytest.raises(UserError, match="has no seal"):
        TokenDirectory.open(tmp_path)


def test_a_manifest_of_more_than_other_json_may_have_is_read_again(tmp_path: Path) -> None:
    manifest = TokenDirectory.open(make_directory(tmp_path)).manifest
    train = manifest.splits["train"]
    pages = [digest_of_file(tmp_path / VOCABULARY_NAME)] * (LARGEST_FILE_BYTES // PAGE_BYTES)
    large = {"tokens_bytes": LARGEST_FILE_BYTES, "ends_bytes": LARGEST_FILE_BYTES, "tokens_pages": pages, "ends_pages": pages}
    shards = [train.shards[0].model_copy(update=large)] * 13
    whole = manifest.model_copy(update={"splits": manifest.splits | {"train": SplitShards.of(shards)}})
    whole.write(tmp_path / MANIFEST_NAME)
    assert (tmp_path / MANIFEST_NAME).stat().st_size > LARGEST_JSON_BYTES
    assert Manifest.read(tmp_path / MANIFEST_NAME) == whole


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("splits", "train", "shards", 0, "name"), "../../etc/passwd"),
        (("splits", "train", "shards", 0, "name"), "/etc/passwd"),
        (("splits", "train", "shards", 0, "num_tokens"), -1),
        (("splits", "train", "shards", 0, "num_tokens"), 7),
        (("splits", "train", "shards", 0, "num_tokens"), 1 << 70),
        (("splits", "train", "num_words"), 5),
        (("splits", "train", "shards"), {}),
        (("splits",), {}),
        (("token_dtype",), "O"),
        (("vocabulary",), None),
        (("corpus",), []),
        (("made_from", "pieces"), [{}]),
    ],
)
def test_a_sealed_manifest_that_makes_no_sense_is_refused(tmp_path: Path, place: tuple[Any, ...], value: Any) -> None:
    make_directory(tmp_path)
    manifest = read_sealed_json(tmp_path / MANIFEST_NAME)
    inner: Any = manifest
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    write_sealed_json(tmp_path / MANIFEST_NAME, manifest)
    with pytest.raises(UserError, match=r"manifest\.json: not a manifest of tokens \("):
        TokenDirectory.open(tmp_path)


def test_verified_once_a_machine(tmp_path: Path, cache_folder: Path) -> None:
    tokens = TokenDirectory.open(make_directory(tmp_path))
    assert tokens.verify_once() == 6
    assert tokens.verify_once() == 0
    assert TokenDirectory.open(tmp_path).verify_once(1, 2) == 0
    os.utime(tmp_path / FILES[0])
    assert tokens.verify_once() == 1, "a file that was touched is read again"
    assert (cache_folder / "lm1b").is_dir()


def test_ranks_share_the_files(tmp_path: Path) -> None:
    tokens = TokenDirectory.open(make_directory(tmp_path))
    assert [tokens.verify_once(rank, 4) for rank in range(4)] == [2, 2, 1, 1]
    assert tokens.verify_once() == 0, "what each rank found is remembered for all"


def test_a_change_that_hides_its_time_is_found(tmp_path: Path) -> None:
    tokens = TokenDirectory.open(make_directory(tmp_path))
    tokens.verify_once()
    path = tmp_path / FILES[0]
    before = path.stat()
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(UserError, match="damaged"):
        tokens.verify_once()


def test_what_is_remembered_does_not_stand_against_the_manifest(tmp_path: Path) -> None:
    tokens = TokenDirectory.open(make_directory(tmp_path))
    tokens.verify_once()
    manifest = read_sealed_json(tmp_path / MANIFEST_NAME)
    manifest["splits"]["train"]["shards"][0]["tokens_sha256"] = "0" * 64
    write_sealed_json(tmp_path / MANIFEST_NAME, manifest)
    with pytest.raises(UserError, match=rf"damaged, SHA-256 expected {'0' * 64}, found"):
        TokenDirectory.open(tmp_path).verify_once()


def test_verify_reads_everything_and_refreshes(tmp_path: Path, cache_folder: Path) -> None:
    tokens = TokenDirectory.open(make_directory(tmp_path))
    tokens.verify_once()
    (remembered,) = (cache_folder / "lm1b").glob("*.json")
    path = tmp_path / FILES[0]
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    status = path.stat()
    record = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, digest_of_file(path)]
    files = read_sealed_json(remembered)["files"]
    files[str(path)] = [*record[:4], files[str(path)][4]]  # says that the damaged file is sound
    write_sealed_json(remembered, {"files": files})
    assert tokens.verify_once() == 0
    with pytest.raises(UserError, match="damaged"):
        tokens.verify()
    with pytest.raises(UserError, match="damaged"):
        tokens.verify_once()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"files": 3}', b'{"files": {"a": [null]}}', b"\x80\x04\x95", b"[" * 100_000])
def test_a_damaged_cache_is_none(tmp_path: Path, cache_folder: Path, content: bytes) -> None:
    tokens = TokenDirectory.open(make_directory(tmp_path))
    tokens.verify_once()
    (remembered,) = (cache_folder / "lm1b").glob("*.json")
    for damaged in (content, json.dumps(seal(json.loads(content))).encode() if content.startswith(b'{"') else content):
        remembered.write_bytes(damaged)
        assert tokens.verify_once() == 6
        assert tokens.verify_once() == 0


def test_a_cache_that_cannot_be_written(tmp_path: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = TokenDirectory.open(make_directory(tmp_path))
    (cache_folder / "lm1b").write_text("a file where the folder would be")
    assert [tokens.verify_once(), tokens.verify_once()] == [6, 6]
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    assert [tokens.verify_once(), tokens.verify_once()] == [6, 6]


def test_processes_that_write_the_cache_at_the_same_time(tmp_path: Path, cache_folder: Path) -> None:
    make_directory(tmp_path)
    code = "import sys; from pathlib import Path; from lm1b.data.tokens.directory import TokenDirectory as T; "
    code += "T.open(Path(sys.argv[1])).verify_once(int(sys.argv[2]), 3)"
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen([*command, str(rank)], env=environment(), cwd=REPOSITORY) for rank in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert TokenDirectory.open(tmp_path).verify_once() == 0
    (remembered,) = (cache_folder / "lm1b").glob("*.json")
    assert len(read_json(remembered)["files"]) == 6
