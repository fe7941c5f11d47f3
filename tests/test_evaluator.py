"""What an evaluator opens, on which device, on several ranks too; and which texts are a look at test."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from made_run import made_checkpoint, made_config, made_text, made_tokens
from tiny import run_ranks

import lm1b
from lm1b.config import Config, override_config
from lm1b.data.tokens.directory import TokenDirectory
from lm1b.errors import UserError
from lm1b.evaluation.scoring.evaluator import Evaluator
from lm1b.evaluation.scoring.ranks import evaluating_ranks
from lm1b.evaluation.scoring.texts import digests_of_test, text_of_files, text_of_split
from lm1b.training.evaluations import TEST_FILE, count_test_looks
from lm1b.training.run_folder import RunFolder


@pytest.fixture
def config(tmp_path: Path) -> Config:
    made_tokens(tmp_path / "tokens")
    return made_config(tmp_path)


def test_a_gpu_that_is_not_there_is_refused_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = made_config(tmp_path)
    made_tokens(tmp_path / "tokens")
    made_checkpoint(config, 10)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    shutil.rmtree(tmp_path / "tokens")
    with pytest.raises(UserError, match="--device cuda: no CUDA device found here"):
        lm1b.load(tmp_path / "run", device="cuda")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "manifest.json").write_text("")
    with pytest.raises(UserError, match="--device cuda: no CUDA device found here"):
        lm1b.load(tmp_path / "model", device="cuda")
    with pytest.raises(UserError, match="--device cuda: no CUDA device found here"), evaluating_ranks("cuda"):
        pass


def test_sentences_are_drawn_where_the_evaluator_computes_and_with_the_tokens_that_it_reads(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = made_checkpoint(config, 10)
    (tmp_path / "tokens").rename(tmp_path / "moved")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # but it may be full: nothing is to be put there
    with evaluating_ranks("cpu") as ranks:
        moved = override_config(config, [f"tokens.directory={tmp_path / 'moved'}"])
        Evaluator(Path(config.run.directory), moved, ranks=ranks).score(checkpoint)
    words = RunFolder(config.run.directory).evaluator_board / "words.tsv"
    assert len(words.read_text().splitlines()) > 10


RANKS = """
import sys
from pathlib import Path
from lm1b.errors import UserError
from lm1b.evaluation.scoring.evaluator import Evaluator
from lm1b.evaluation.scoring.ranks import evaluating_ranks
from lm1b.training.run_folder import RunFolder
run, text = Path(sys.argv[1]), Path(sys.argv[2])
with evaluating_ranks("cpu") as ranks:
    try:
        Evaluator(run, RunFolder(run).read_config(), None, [text if ranks.is_first else Path("nowhere.txt")], ranks=ranks)
    except UserError as error:
        print("said", error)
"""


def test_what_one_rank_cannot_open_is_told_by_all(config: Config, tmp_path: Path) -> None:
    made_checkpoint(config, 10)
    (tmp_path / "text").write_text(made_text(1, 5))
    printed = run_ranks(["-c", RANKS, config.run.directory, str(tmp_path / "text")], 2).splitlines()
    said = [line for line in printed if line.startswith("said")]
    assert len(said) == 2
    assert all("nowhere.txt: no such file" in line and line.endswith("(rank 1)") for line in said)


def test_a_test_file_among_others_is_a_look_at_test(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = TokenDirectory.open(tmp_path / "tokens")
    texts = {name: made_text(seed, 5) for seed, name in enumerate(("official", "own", "other"))}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    digests = {name: hashlib.md5(text.encode(), usedforsecurity=False).hexdigest() for name, text in texts.items()}
    folder = "heldout-monolingual.tokenized.shuffled"
    monkeypatch.setattr("lm1b.evaluation.scoring.texts.official_name_of", {digests["official"]: f"{folder}/{TEST_FILE}"}.get)
    monkeypatch.setattr("lm1b.evaluation.scoring.evaluator.digests_of_test", lambda tokens: {digests["own"]})
    looks = []
    for names in (["official", "other"], ["other", "own"], ["own"], ["other"]):
        evaluator = Evaluator(Path(config.run.directory), config, None, [tmp_path / name for name in names])
        (result,) = evaluator.score(made_checkpoint(config, 10))
        assert result.is_test_look == evaluator.text.is_test
        assert result.official is None
        looks.append(count_test_looks(evaluator.folder.read_evaluations()))
    assert looks == [1, 2, 3, 3]
    assert not text_of_files(tokens.vocabulary, [tmp_path / "own"]).is_test
    assert [text_of_split(tokens, name).is_test for name in ("validation", "test")] == [False, True]


def test_the_files_of_a_corpus_s_test_split_are_known_by_its_tokens(tiny_folder: Path) -> None:
    tokens = TokenDirectory.open(tiny_folder / "tokens")
    found = digests_of_test(tokens)
    files = {hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest(): path for path in (tiny_folder / "corpus").rglob("*.*")
             if path.is_file()}  # fmt: skip
    assert found
    assert all("heldout-00000" in files[digest or ""].name for digest in found)
