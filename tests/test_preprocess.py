"""Preprocessing end to end: nothing lost, nothing half-written taken for whole, every mistake one line."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_runs import run_script
from corpora import write_archive
from preprocess_runs import changed_at, files_of, made_config, run, text_of
from tiny import write_corpus, write_settings

from lm1b import distributed
from lm1b.data.batches import Batches
from lm1b.data.preprocess import passes, preprocess, publish
from lm1b.data.preprocess.publish import lock_directory
from lm1b.data.text import benchmark, sources
from lm1b.data.text.benchmark import HELD_OUT_FOLDER, TRAINING_FOLDER
from lm1b.data.text.corpus import SourceFile
from lm1b.data.tokens import manifest as manifest_module
from lm1b.data.tokens.directory import TokenDirectory
from lm1b.distributed import Ranks
from lm1b.errors import UserError
from lm1b.workers import Workers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "corpus", sentences=60)
    return tmp_path


def test_every_word_of_the_corpus_is_in_the_shards(folder: Path) -> None:
    tokens = run(folder)
    lines = [line for path in sorted((folder / "corpus" / TRAINING_FOLDER).iterdir()) for line in path.read_text().splitlines()]
    counts = Counter(word for line in lines for word in line.split())
    kept = {word for word, count in counts.items() if count >= 3}
    expected = " ".join(" ".join(word if word in kept else "<UNK>" for word in line.split()) + " </S>" for line in lines)
    assert text_of(tokens, "train") == expected
    assert set(tokens.vocabulary.id_to_token) == kept | {"</S>", "<UNK>", "<S>"}
    train = tokens.split("train")
    assert (train.num_words, train.num_sentences) == (sum(counts.values()), len(lines))
    by_id = np.bincount(train.joined()[0], minlength=tokens.vocabulary.size)
    assert by_id.tolist() == tokens.vocabulary.counts_V.tolist()
    assert (np.diff(tokens.vocabulary.counts_V) <= 0).all()
    for split, number in (("test", 0), ("validation", 1)):
        held_out = (folder / "corpus" / HELD_OUT_FOLDER / f"news.en.heldout-0000{number}-of-00002").read_text()
        assert tokens.split(split).num_tokens == len(held_out.split()) + held_out.count("\n")
    assert not (folder / "tokens" / "unfinished").exists()
    tokens.verify()


def test_the_worked_example_of_the_data_layer_is_right(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the cat sat .\nthe cat ran .\n")
    (tmp_path / "b.txt").write_text("a cat .\n")
    corpus = {"kind": "text", "path": None, "train": [str(tmp_path / "a.txt")], "validation": [str(tmp_path / "b.txt")]}
    tokens = run(tmp_path, corpus=corpus, vocabulary={"minimum_count": 2})
    assert tokens.vocabulary.id_to_token == [".", "</S>", "<UNK>", "cat", "the", "<S>"]
    train = tokens.split("train")
    assert (train.joined()[0].tolist(), train.sentence_ends(0).tolist()) == ([4, 3, 2, 0, 1, 4, 3, 2, 0, 1], [5, 10])
    batches = Batches(train, end_id=1, lanes=2, steps=2, seed=1, block_tokens=100)
    targets = [batches.at(step, 0, 2).targets_TB.T.tolist() for step in range(batches.steps_per_epoch)]
    assert targets == [[[4, 3], [1, 4]], [[2, 0], [3, 2]]]


def test_a_second_run_does_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(folder)
    before = changed_at(folder / "tokens")
    monkeypatch.setattr(preprocess.Preprocessing, "_make", lambda *_: pytest.fail("worked again"))
    run(folder)
    assert changed_at(folder / "tokens") == before


def test_archive_and_processes_change_nothing(folder: Path) -> None:
    one = run(folder)
    write_archive(folder / "corpus", folder / "corpus.tar.gz")
    path = {"path": str(folder / "corpus.tar.gz")}
    other = run(folder, corpus=path, tokens={"directory": str(folder / "other"), "processes": 2})
    for key in ("vocabulary", "splits", "tokens_sha256"):
        assert getattr(one.manifest, key) == getattr(other.manifest, key)
    known = [{file["split"]: file["sha256"]} for file in one.corpus["files"]]
    assert [{file["split"]: file["sha256"]} for file in other.corpus["files"]] == known


@pytest.mark.parametrize("stop_at", [("count_chunk", 1), ("count_chunk", 3), ("encode_chunks", 0), ("encode_chunks", 2)])
def test_a_run_that_was_stopped_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch, stop_at: tuple[str, int]) -> None:
    expected = files_of(run(folder, tokens={"directory": str(folder / "whole")}).directory)
    name, number = stop_at
    whole, calls = getattr(preprocess, name), []

    def stopping(*arguments: Any) -> Any:
        if len(calls) == number:
            raise KeyboardInterrupt
        calls.append(arguments)
        return whole(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(preprocess, "CHUNKS_TO_ENCODE_TOGETHER", 1)
        patch.setattr(preprocess, name, stopping)
        with pytest.raises(KeyboardInterrupt):
            run(folder)
    with pytest.raises(UserError, match=r"no manifest\.json"):
        TokenDirectory.open(folder / "tokens")
    before = changed_at(folder / "tokens" / "unfinished")
    done_again: list[str] = []
    counting = preprocess.count_chunk
    monkeypatch.setattr(preprocess, "count_chunk", lambda chunk, work: done_again.append(chunk.shard) or counting(chunk, work))
    run(folder)
    assert files_of(folder / "tokens") == expected
    assert len(done_again) == (4 - number if name == "count_chunk" else 0)
    after = changed_at(folder / "tokens")
    shards = [file for file in before if not file.endswith(".codes.npy")]
    assert {file: after[file] for file in shards} == {file: before[file] for file in shards}, "what was there is not written again"


def test_only_what_is_missing_is_written_again(folder: Path) -> None:
    whole = files_of(run(folder).directory)
    before = changed_at(folder / "tokens")
    (folder / "tokens" / "train-00002.tokens.npy").unlink()
    (folder / "tokens" / "test-00000.ends.npy").write_bytes(b"half")
    run(folder)
    assert files_of(folder / "tokens") == whole
    after = changed_at(folder / "tokens")
    assert {name for name in after if after[name] != before[name]} == {
        f"{shard}.{part}.npy" for shard in ("train-00002", "test-00000") for part in ("tokens", "ends")
    }


def test_a_changed_corpus_is_done_anew(folder: Path) -> None:
    first = run(folder)
    path = folder / "corpus" / TRAINING_FOLDER / "news.en-00001-of-00003"
    path.write_text("brand new words brand new words brand new words\n" + path.read_text())
    second = run(folder)
    assert second.fingerprint != first.fingerprint
    assert "brand" in second.vocabulary.id_to_token
    expected = files_of(run(folder, tokens={"directory": str(folder / "fresh")}).directory)
    assert files_of(folder / "tokens") == expected


def test_stopped_then_changed_text_is_not_mixed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(preprocess.Manifest, "of", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(folder)
    path = folder / "corpus" / TRAINING_FOLDER / "news.en-00001-of-00003"
    path.write_text("brand new words\n" * 500)
    expected = files_of(run(folder, tokens={"directory": str(folder / "fresh")}).directory)
    run(folder)
    assert files_of(folder / "tokens") == expected


def test_shards_of_a_smaller_corpus_do_not_stay(folder: Path) -> None:
    run(folder)
    corpus = folder / "corpus"
    (corpus / TRAINING_FOLDER / "news.en-00002-of-00003").unlink()
    (corpus / TRAINING_FOLDER / "news.en-00001-of-00003").rename(corpus / TRAINING_FOLDER / "news.en-00001-of-00002")
    run(folder)
    assert not list((folder / "tokens").glob("train-00002*"))


def test_shards_of_more_files_or_chunks_than_their_names_have_digits_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = sorted(str(path) for path in (folder / "corpus").rglob("news*"))
    corpus = {"kind": "text", "path": None, "train": files[1:], "validation": files[:1]}
    monkeypatch.setattr(sources, "SourceFile", lambda split, number, path: SourceFile(split, 100_000 + number, path))
    run(folder, corpus=corpus).verify()
    run(folder, corpus=corpus | {"train": files[2:]}).verify()
    assert not (folder / "tokens" / "train-100002.tokens.npy").exists(), "a shard of the earlier corpus"
    assert publish._SHARD_FILE.fullmatch("train-00000.1000.tokens.npy")


def test_a_corpus_too_large_for_a_manifest_leaves_what_was_complete(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files_of(run(folder).directory)
    with monkeypatch.context() as patch:
        patch.setattr(manifest_module, "LARGEST_MANIFEST_BYTES", 1000)
        with pytest.raises(UserError, match=r"too large for one tokens\.directory"):
            run(folder, vocabulary={"minimum_count": 1})
    assert files_of(folder / "tokens") == before
    TokenDirectory.open(folder / "tokens").verify()


def test_given_vocabulary(folder: Path) -> None:
    (folder / "given.txt").write_text("w3\n<UNK>\n</S>\nw0\n<S>\n")
    tokens = run(folder, vocabulary={"file": str(folder / "given.txt")})
    assert tokens.vocabulary.id_to_token == ["w3", "<UNK>", "</S>", "w0", "<S>"]
    ids = tokens.split("train").joined()[0]
    assert tokens.vocabulary.counts_V.tolist() == np.bincount(ids, minlength=5).tolist()
    with pytest.raises(UserError, match="no such vocabulary file"):
        run(folder, vocabulary={"file": str(folder / "none.txt")})


def test_text_that_is_not_utf8(folder: Path) -> None:
    path = folder / "corpus" / TRAINING_FOLDER / "news.en-00002-of-00003"
    path.write_bytes(path.read_bytes() + b"caf\xe9 .\n")
    with pytest.raises(UserError, match=r"news\.en-00002-of-00003: not UTF-8 at line 31, byte \d+ \(0xe9\)"):
        run(folder)
    with pytest.raises(UserError, match="no manifest"):
        TokenDirectory.open(folder / "tokens")


@pytest.mark.parametrize(("name", "split"), [(TRAINING_FOLDER, "train"), (HELD_OUT_FOLDER, "validation")])
@pytest.mark.parametrize("text", ["", "\n \n"])
def test_empty_splits(folder: Path, name: str, split: str, text: str) -> None:
    for path in (folder / "corpus" / name).iterdir():
        path.write_text(text)
    with pytest.raises(UserError, match=f"{split}.* empty; expected tokenized text, one sentence a line"):
        run(folder)
    assert not (folder / "tokens" / "manifest.json").exists()


def test_two_runs_in_one_directory(folder: Path) -> None:
    (folder / "tokens").mkdir()
    with lock_directory(folder / "tokens"), pytest.raises(UserError, match="another preprocessing is at work"):
        run(folder)


def test_files_that_are_official_but_for_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {f"{path.parent.name}/{path.name}": hashlib.md5(path.read_bytes()).hexdigest() for path in (folder / "corpus").rglob("news*")}
    monkeypatch.setattr(benchmark, "official_md5", lambda: known)
    monkeypatch.setattr(passes, "official_md5", lambda: known)
    monkeypatch.setattr(benchmark, "NUM_TRAINING_FILES", 2)
    for name in ("NUM_TRAINING_SENTENCES", "NUM_TRAINING_TOKENS", "VOCABULARY_SIZE"):
        monkeypatch.setattr(benchmark, name, 1)
    with pytest.raises(AssertionError, match="the official benchmark was counted as"):
        run(folder)
    trial = run(folder, tokens={"directory": str(folder / "trial")}, corpus={"path": str(unofficial_copy(folder))})
    assert not trial.corpus["official"]
    monkeypatch.setattr(benchmark, "NUM_TRAINING_SENTENCES", trial.split("train").num_sentences)
    monkeypatch.setattr(benchmark, "NUM_TRAINING_TOKENS", trial.split("train").num_tokens)
    monkeypatch.setattr(benchmark, "VOCABULARY_SIZE", trial.vocabulary.size)
    assert run(folder).corpus["official"]
    damaged = folder / "corpus" / TRAINING_FOLDER / "news.en-00002-of-00003"
    damaged.write_text(damaged.read_text().replace("w3", "w4"))
    with pytest.raises(UserError, match=r"news\.en-00002-of-00003: its MD5 is .* the benchmark's is"):
        run(folder)


def unofficial_copy(folder: Path) -> Path:
    """The same text with a blank line more in every file: the same counts, other MD5 sums."""
    for path in (folder / "corpus").rglob("news*"):
        copy = folder / "copy" / path.relative_to(folder / "corpus")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text() + "\n")
    return folder / "copy"


def test_ranks_use_all_cores_whether_they_have_their_own_or_share_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3})
    rank = preprocess.Preprocessing(made_config(folder), Ranks(0, 2, torch.device("cpu")), progress=False)
    for other, cores in (([4, 5, 6, 7], 4), ([0, 1, 2, 3], 2)):
        monkeypatch.setattr(distributed, "all_gather_objects", lambda mine, ranks, other=other: [mine, [mine[0], other]])
        assert rank._useful_processes() == cores


def test_a_worker_that_is_killed() -> None:
    with Workers(2) as workers, pytest.raises(UserError, match="a process at work was killed"):
        list(workers.run(os._exit, [(9,), (9,)]))


def test_the_command_line_ends_a_mistake_with_one_line(folder: Path) -> None:
    settings = write_settings(folder, "run", corpus={"path": str(folder / "nowhere")})
    done = run_script("launch/preprocess.py", "--config", str(settings))
    assert done.returncode == 2
    assert done.stderr.startswith("lm1b: error: ")
    assert done.stderr.count("\n") == 1
    assert "no such corpus" in done.stderr
    assert done.stdout == ""
