"""Scores of sentences: the same numbers as the exact evaluator's, line by line, whatever the lines hold."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_runs import run_script
from hypothesis import given, settings
from hypothesis import strategies as st
from made_run import made_config, made_run_directory, made_text, made_tokens
from tiny import REPOSITORY, environment

import lm1b
from lm1b.errors import UserError
from lm1b.evaluation.scoring.perplexity import evaluate_checkpoint
from lm1b.evaluation.scoring.texts import text_of_files
from lm1b.evaluation.trained.loading import LoadedModel
from lm1b.strict import override
from lm1b.training.checkpoints.checkpoint import list_checkpoints


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_run_directory(tmp_path_factory.mktemp("made"), 10, 20)


@pytest.fixture(scope="module")
def model(run: Path) -> LoadedModel:
    return lm1b.load(run)


def command(run: Path, text: bytes, *options: str) -> subprocess.CompletedProcess[str]:
    return run_script("launch/score.py", "--run", str(run), *options, text=text)


@pytest.mark.parametrize("weights", ["ema", "raw"])
@pytest.mark.parametrize("checkpoint", ["latest", "10"])
def test_scores_add_up_to_the_exact_evaluation(run: Path, tmp_path: Path, weights: str, checkpoint: str) -> None:
    tokens = made_tokens(tmp_path / "tokens")
    path = tmp_path / "text.txt"
    path.write_text(made_text(9, 60))
    config = override(made_config(tmp_path), ["evaluation.state=reset", f"evaluation.weights={weights}"])
    found = list_checkpoints(run)[0 if checkpoint == "10" else -1]
    text = text_of_files(tokens.vocabulary, [path])
    (line,) = evaluate_checkpoint(found, config.evaluation, text)
    scores = lm1b.load(run, weights=weights, checkpoint=checkpoint).score(path.read_text().splitlines())
    assert len(scores) == line.sentences == 60
    assert sum(score.words for score in scores) == line.words
    assert sum(score.unknown for score in scores) == line.unknown > 0
    assert math.fsum(score.nats for score in scores) == pytest.approx(line.nats, rel=1e-9)


def test_a_sentence_does_not_depend_on_its_company(model: LoadedModel) -> None:
    sentences = made_text(3, 40).splitlines()
    together = model.score(sentences)
    for sentence, score in zip(sentences, together, strict=True):
        (alone,) = model.score([sentence])
        assert np.allclose(alone.log_probabilities, score.log_probabilities, atol=1e-5)
        assert score.words == len(sentence.split())
        assert score.perplexity == pytest.approx(math.exp(score.nats / (score.words + 1)))


def test_probabilities_of_all_words_add_up_to_one(model: LoadedModel) -> None:
    every_word = [np.array([number]) for number in range(model.vocabulary.size)]
    assert math.fsum(math.exp(-nats[0]) for _, nats in model.scorer.nats_of_each(every_word, 7)) == pytest.approx(1.0, abs=1e-6)


def test_the_command_gives_one_line_a_line_in_order(run: Path, model: LoadedModel) -> None:
    text = made_text(4, 7)
    done = command(run, text.encode(), "--words")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    expected = model.score(text.splitlines())
    assert [line["words"] for line in lines] == [score.words for score in expected]
    for line, score in zip(lines, expected, strict=True):
        assert line["nats"] == pytest.approx(score.nats)
        assert line["log_probabilities"] == pytest.approx(score.log_probabilities.tolist())
        assert len(line["log_probabilities"]) == line["words"] + 1


ODD_LINES = [
    (b"", 0, 0),
    (b"  \t ", 0, 0),
    (b"w1 w2", 2, 0),
    (b"w1\x00 w2 \x01", 3, 2),  # control characters are letters of a word that nobody knows
    (b"</S> <UNK> <S>", 3, 3),  # written symbols are unknown words, not the stream's own
    ("w1 w\u0301 \u2028w3".encode(), 3, 2),  # only ASCII white space parts words
    (b" ".join([b"w5"] * 100_000), 100_000, 0),
    (b"w1\r", 1, 0),
]


def test_any_line_has_a_stated_treatment(run: Path) -> None:
    done = command(run, b"\n".join(line for line, _, _ in ODD_LINES))  # the last line has no newline
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["words"], line["unknown"]) for line in lines] == [(words, unknown) for _, words, unknown in ODD_LINES]
    for line in lines:
        assert (line["perplexity"] is None) == (line["words"] == 0)
        assert (line["nats"] == 0) == (line["words"] == 0)
        assert not str(line["nats"]).startswith("-")


@settings(max_examples=60, deadline=None)
@given(lines=st.lists(st.text(st.sampled_from("w12 \t\r\v\f</S>\x00é"), max_size=12), max_size=8))
def test_as_many_scores_as_lines(model: LoadedModel, lines: list[str]) -> None:
    scores = model.score(lines)
    assert len(scores) == len(lines)
    for line, score in zip(lines, scores, strict=True):
        assert score.words == len([word for word in line.translate({ord(c): " " for c in "\t\r\v\f"}).split(" ") if word])


def test_what_cannot_be_scored_is_one_line_and_status_2(run: Path, tmp_path: Path, model: LoadedModel) -> None:
    for options, text, message in (
        ((), b"w1\nw\xff2\n", "standard input: not UTF-8 at line 2"),
        (("--checkpoint", "15"), b"w1\n", "--checkpoint must be latest, best or a step that is there"),
    ):
        done = command(run, text, *options)
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
    done = command(tmp_path / "none", b"w1\n")
    assert done.returncode == 2
    assert "no run here" in done.stderr
    with pytest.raises(UserError, match="sentence 1: holds a newline"):
        model.score(["w1", "w1\nw2"])
    with pytest.raises(UserError, match="weights must be one of ema, raw, found EMA"):
        lm1b.load(run, weights="EMA")
    assert model.score([]) == []
    assert command(run, b"").stdout == ""


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, lm1b; assert lm1b.load; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=environment()).returncode == 0
