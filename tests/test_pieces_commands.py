"""The commands of lm1b/data/README.md for pieces of words and for corpora through `datasets`, in their order, on a tiny corpus."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from documents import commands_of, section
from readme_commands import put_in, run_line
from tiny import write_corpus, write_settings

from lm1b.data.tokens.directory import TokenDirectory
from lm1b.files import read_json_lines


def commands() -> list[str]:
    """Of the section."""
    return commands_of(section("Pieces of words, and any corpus"))


def test_the_readmes_commands(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    pieces = {"kind": "sentencepiece", "pieces": 290, "closed": True, "minimum_count": 4}
    training = {"total_steps": 40, "evaluate_alongside": False}
    write_settings(tmp_path, "run", vocabulary=pieces, training=training, evaluation={"lanes": 4})
    sentences = tmp_path / "corpus" / "heldout-monolingual.tokenized.shuffled" / "news.en.heldout-00001-of-00002"
    text = sentences.read_text() + "\nw1\x00 w2 \x01 \u2581w3\n</S> <UNK> <S>\n" + " ".join(["w5"] * 2000) + "\n"
    (tmp_path / "mine.txt").write_text(text)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in text.split("\n")))

    def tell(line: str) -> str:
        line = put_in(line.replace("my_sentences.txt", str(tmp_path / "mine.txt")), tmp_path)
        line = re.sub(r"\bmodels/\w+", str(tmp_path / "model"), line)
        return run_line(line.replace("data/tokens_mine", str(tmp_path / "tokens_mine")).replace("my_rows/*", str(tmp_path / "*"))).stdout

    preprocess, train, evaluate, own_files, score, sample, export, score_again, other_corpus = commands()
    assert "vocabulary of 290 pieces of words (closed)" in tell(preprocess)
    tell(train)
    trained = read_json_lines(tmp_path / "run" / "metrics.jsonl")[-1]
    split = TokenDirectory.open(tmp_path / "tokens").split("train")
    assert split.tokens_per_word > 1.5
    assert trained["words"] == round(trained["step"] * 80 / split.tokens_per_word)  # 80 pieces a step
    assert "pieces (closed)" in tell(evaluate)
    exact = read_json_lines(tmp_path / "run" / "evaluations.jsonl")[-1]["word_perplexity"]
    assert trained["nats_per_word"] == pytest.approx(math.log(exact), rel=0.15)  # both of words: of pieces it would be less than two thirds
    tell(own_files)
    line = read_json_lines(tmp_path / "run" / "evaluations.jsonl")[-1]
    scores = [json.loads(score) for score in tell(score).splitlines()]
    assert len(scores) == text.count("\n")
    assert sum(score["nats"] for score in scores) == pytest.approx(line["nats"], rel=1e-6)
    assert sum(score["words"] for score in scores) == line["words"]
    assert [(score["words"], score["unknown"]) for score in scores[-4:]] == [(0, 0), (4, 3), (3, 3), (2000, 0)]
    assert tell(sample).startswith("The president")
    tell(export)
    again = [json.loads(score) for score in tell(score_again).splitlines()]
    for one, other in zip(scores, again, strict=True):
        assert other["words"] == one["words"]
        assert np.allclose(other["log_probabilities"], one["log_probabilities"], atol=1e-5)
    assert "validation" in tell(
        other_corpus + " --set corpus.validation_fraction=0.2 --set vocabulary.minimum_count=1 --set vocabulary.pieces=275"
    )
