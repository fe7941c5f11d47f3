"""Sentences drawn from a model: by the model's own probabilities, and the same for the same seed."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from command_runs import run_script
from hypothesis import given, settings
from hypothesis import strategies as st
from made_run import made_run_directory

import lm1b
from lm1b.errors import UserError
from lm1b.evaluation.trained.loading import LoadedModel
from lm1b.evaluation.trained.sampling import choose, sample_sentence
from lm1b.evaluation.trained.sampling_settings import SamplingSettings


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_run_directory(tmp_path_factory.mktemp("made"), 10, scale=4.0)


@pytest.fixture(scope="module")
def model(run: Path) -> LoadedModel:
    return lm1b.load(run)


def test_first_words_come_as_often_as_the_model_says(model: LoadedModel) -> None:
    every_word = [np.array([number]) for number in range(model.vocabulary.size)]
    probabilities = {number: float(np.exp(-nats[0])) for number, nats in model.scorer.nats_of_each(every_word, 64)}
    drawn = Counter(
        next(sample_sentence(model, "", SamplingSettings(longest=1, may_be_unknown=True), number), "</S>") for number in range(3000)
    )
    for number, word in enumerate(model.vocabulary.id_to_token):
        expected = 3000 * probabilities[number] / (1.0 - probabilities[model.vocabulary.start_id])
        if word == "<S>":
            assert drawn[word] == 0
        else:
            assert abs(drawn[word] - expected) < 5.0 * np.sqrt(expected + 1.0), word


def test_a_seed_and_number_name_a_sentence(model: LoadedModel) -> None:
    def sentence(prompt: str, seed: int, number: int) -> list[str]:
        return list(sample_sentence(model, prompt, SamplingSettings(seed=seed), number))

    assert sentence("w1 w2", 1, 0) == sentence("w1 w2", 1, 0)
    different = {
        tuple(sentence(prompt, seed, number)) for prompt, seed, number in (("w1 w2", 1, 0), ("w1 w2", 2, 0), ("w1 w2", 1, 1), ("w3", 1, 0))
    }
    assert len(different) == 4
    assert not any("<UNK>" in words for words in different)
    assert all(len(sentence("", seed, 0)) <= 60 for seed in range(5))


def test_temperature_0_and_top_1_take_the_likeliest_word(model: LoadedModel) -> None:
    greedy = list(sample_sentence(model, "w1", SamplingSettings(temperature=0.0, longest=8)))
    assert greedy
    for chosen in ({"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-4}):
        assert list(sample_sentence(model, "w1", SamplingSettings(longest=8, **chosen))) == greedy  # type: ignore[arg-type]


@settings(max_examples=100, deadline=None)
@given(
    logits=st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=20, unique=True),
    number=st.floats(1e-9, 1 - 1e-9),
    top_k=st.none() | st.integers(1, 25),
    top_p=st.none() | st.floats(0.01, 1.0),
)
def test_only_words_that_are_kept_are_drawn(logits: list[float], number: float, top_k: int | None, top_p: float | None) -> None:
    drawn = choose(torch.tensor(logits), SamplingSettings(top_k=top_k, top_p=top_p), number)
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    assert drawn in order[: top_k or None]
    shares = np.exp(np.array(logits)[order[: top_k or None]])
    shares /= shares.sum()
    before = shares[: order.index(drawn)].sum()
    assert before < (top_p or 1.0) + 1e-6  # the likelier ones alone do not reach the share that is kept


def test_the_command_prints_sentences_and_names_mistakes(run: Path) -> None:
    def command(*options: str) -> subprocess.CompletedProcess[str]:
        return run_script("launch/sample.py", "--run", str(run), *options)

    done = command("--prompt", "w1 w2", "--count", "3", "--seed", "5", "--top-k", "20", "--top-p", "0.9", "--temperature", "0.8")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
    assert all(line.startswith("w1 w2") for line in done.stdout.splitlines())
    for options, message in ((["--top-p", "0"], "top-p must be above 0"), (["--prompt", "a\nb"], "the prompt holds a newline")):
        done = command(*options)
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": 0}, {"top_p": 1.5}, {"longest": 0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match="must"):
        SamplingSettings(**wrong)  # type: ignore[arg-type]
