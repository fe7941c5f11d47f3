"""What an evaluator opens, on which device, on several ranks too; which texts are a look at test; and the command."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from command_runs import run_script
from made_run import made_checkpoint, made_config, made_evaluation, made_text, made_tokens, run_of
from tiny import run_ranks

import lm1b
from lm1b.config import Config, override_config
from lm1b.data.tokens.directory import TokenDirectory
from lm1b.errors import UserError
from lm1b.evaluation.scoring.evaluator import Evaluator
from lm1b.evaluation.scoring.ranks import evaluating_ranks
from lm1b.evaluation.scoring.texts import digests_of_test, text_of_files, text_of_split
from lm1b.evaluation.trained.open import choose_checkpoint
from lm1b.files import append_json_line, read_json_lines
from lm1b.training.checkpoints.checkpoint import list_checkpoints
from lm1b.training.checkpoints.retention import is_leased
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
    with pytest.raises(UserError, match="device cuda: no CUDA device found here"):
        lm1b.load(tmp_path / "run", device="cuda")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "manifest.json").write_text("")
    with pytest.raises(UserError, match="device cuda: no CUDA device found here"):
        lm1b.load(tmp_path / "model", device="cuda")
    with pytest.raises(UserError, match="device cuda: no CUDA device found here"), evaluating_ranks("cuda"):
        pass
    with pytest.raises(UserError, match="device gpu: expected cpu, cuda, or a GPU's number"):
        lm1b.load(tmp_path / "run", device="gpu")


def test_sentences_are_drawn_where_the_evaluator_computes_and_with_the_tokens_that_it_reads(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = made_checkpoint(config, 10)
    (tmp_path / "tokens").rename(tmp_path / "moved")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # but it may be full: nothing is to be put there
    with evaluating_ranks("cpu") as ranks:
        moved = override_config(config, [f"tokens.directory={tmp_path / 'moved'}"])
        Evaluator(run_of(config), moved, ranks=ranks).score(checkpoint)
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
        evaluator = Evaluator(run_of(config), config, None, [tmp_path / name for name in names])
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


def test_choosing_a_checkpoint(config: Config) -> None:
    with pytest.raises(UserError, match="no checkpoint here yet"):
        choose_checkpoint(run_of(config), "latest")
    for step in (10, 20):
        made_checkpoint(config, step)
    assert choose_checkpoint(run_of(config), "latest").step == 20
    assert choose_checkpoint(run_of(config), "10").step == 10
    for wanted, message in [("11", r"10, 20.*found 11"), ("best", "nothing has been scored"), ("x", "x")]:
        with pytest.raises(UserError, match=message):
            choose_checkpoint(run_of(config), wanted)
    results = RunFolder(run_of(config)).evaluations
    append_json_line(results, made_evaluation(step=10, word_perplexity=80.0).as_line())
    assert choose_checkpoint(run_of(config), "best").step == 10
    append_json_line(results, made_evaluation(step=5, word_perplexity=70.0).as_line())
    with pytest.raises(UserError, match="not there any more"):
        choose_checkpoint(run_of(config), "best")


def test_looks_at_the_test_split_are_counted(config: Config) -> None:
    checkpoint = made_checkpoint(config, 10)
    for weights, results in [("both", 2), ("ema", 1)]:
        settings = override_config(config, [f"evaluation.weights={weights}"])
        line, *more = Evaluator(run_of(config), settings, "test").score(checkpoint)
        assert len(more) == results - 1
    assert line.split == "test"
    Evaluator(run_of(config), config).score(checkpoint)
    assert count_test_looks(RunFolder(run_of(config)).read_evaluations()) == 2
    assert f"word perplexity {line.word_perplexity:.2f} on test" in line.in_words()
    assert is_leased(list_checkpoints(run_of(config))[0]) is False


def test_a_figure_that_is_no_number_is_null_and_never_the_best(config: Config) -> None:
    made_checkpoint(config, 10, scale=0.1)
    diverged = made_checkpoint(config, 20, scale=1e30)
    evaluator = Evaluator(run_of(config), config)
    (line,) = evaluator.score(diverged)
    assert line.word_perplexity is None
    assert "not a finite number" in line.in_words()
    assert RunFolder(run_of(config)).best_step() is None
    evaluator.score(choose_checkpoint(run_of(config), "10"))
    assert RunFolder(run_of(config)).best_step() == 10
    json.loads((run_of(config) / "evaluations.jsonl").read_text().splitlines()[0], parse_constant=lambda name: pytest.fail(name))


def evaluate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_script("launch/evaluate.py", *arguments)


def test_ranks_that_share_the_rows_give_the_same(config: Config, tmp_path: Path) -> None:
    made_checkpoint(config, 10)
    (tmp_path / "text").write_text(made_text(9, 40))
    # Five lanes: two ranks have three and two of them, of four ranks one has two.
    arguments = ["launch/evaluate.py", "--run", str(run_of(config)), "--files", str(tmp_path / "text"), "--lanes", "5"]
    output = "".join(run_ranks(arguments, ranks) for ranks in (1, 4, 2))
    assert output.count("word perplexity") == 3
    alone, *others = read_json_lines(run_of(config) / "evaluations.jsonl")
    for together in others:
        assert together["nats"] == pytest.approx(alone["nats"], rel=1e-6)
        varying = ("nats", "word_perplexity", "seconds", "finished_at", "look")
        assert {k: v for k, v in together.items() if k not in varying} == {k: v for k, v in alone.items() if k not in varying}


def test_the_command_line(config: Config, tmp_path: Path) -> None:
    made_checkpoint(config, 10)
    (tmp_path / "text").write_text(made_text(9, 5))
    run = str(run_of(config))
    result = evaluate("--run", run, "--files", str(tmp_path / "text"), "--state", "reset", "--weights", "both", "--precision", "bf16")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("word perplexity") == 2
    lines = read_json_lines(run_of(config) / "evaluations.jsonl")
    assert [(line["split"], line["state"], line["weights"], line["precision"], line["lanes"]) for line in lines] == [
        ("files", "reset", "ema", "bf16", None),
        ("files", "reset", "raw", "bf16", None),
    ]
    assert json.loads(json.dumps(lines)) == lines
    wrong = evaluate("--run", run, "--checkpoint", "11")
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1
    assert wrong.stderr.startswith("lm1b: error: ")
    fixed = evaluate("--run", run, "--set", "model.hidden=99")
    assert (fixed.returncode, fixed.stderr.count("\n")) == (2, 1)
    assert "--set model.hidden=99" in fixed.stderr
