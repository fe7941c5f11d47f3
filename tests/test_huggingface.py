"""Exported models in `transformers`: the same numbers as our own scorer's, the same words as our own vocabulary's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_run import made_checkpoint, made_config, made_text, made_tokens
from tiny import REPOSITORY, environment

import lm1b
from lm1b.evaluation.trained.export import export_run
from lm1b.evaluation.trained.sampling import sample_sentence
from lm1b.evaluation.trained.sampling_settings import SamplingSettings

pytest.importorskip("transformers")

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import lm1b.huggingface
from lm1b.huggingface import Lm1bForCausalLM, Lm1bTokenizer

SENTENCES = made_text(3, 12).splitlines()
SHAPES: dict[str, dict[str, Any]] = {
    "lstm": {},
    "irnn": {"cell": "irnn", "projection": None},
    "np_rnn": {"cell": "np_rnn", "layers": 1},
    "lstm with recurrent projection": {"projection": None, "recurrent_projection": 4},
    "tied tables": {"embedding": 5, "tie_tables": True},
    "adaptive softmax": {"softmax": {"kind": "adaptive", "cutoffs": [6, 20], "cluster_factor": 2.0}},
}


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    lm1b.huggingface.register()
    lm1b.huggingface.register()  # twice is once


def exported(folder: Path, precision: str = "fp32", **shape: Any) -> Path:
    made_tokens(folder / "tokens")
    config = made_config(folder, **shape)
    made_checkpoint(config, 20)
    return export_run(Path(config.run.directory), folder / "model", precision=precision, largest_file_bytes=1500).path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Lm1bForCausalLM:
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Lm1bTokenizer:
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 2e-2)])
def test_logits_are_those_of_our_own_scorer(tmp_path: Path, shape: dict[str, Any], precision: str, tolerance: float) -> None:
    path = exported(tmp_path, precision, **shape)
    model, information = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not any(information.values())
    assert model.dtype == (torch.float32 if precision == "fp32" else torch.bfloat16)
    assert model.core.adaptive is not None or model.output_table.bias.dtype == torch.float32
    ours = lm1b.load(path, precision=precision)
    size, end = ours.vocabulary.size, ours.vocabulary.end_id
    before = [3, 1, 7, 2, 30]
    with torch.no_grad():
        logits_BTV = model(torch.tensor([[end, *before]])).logits
    assert logits_BTV.dtype == torch.float32
    log_probabilities_TV = torch.log_softmax(logits_BTV[0].double(), -1).numpy()
    every_word = [np.array([*before, word]) for word in range(size)]
    found = dict(ours.scorer.nats_of_each(every_word, size))
    for word in range(size):
        expected = np.append(log_probabilities_TV[np.arange(len(before)), before], log_probabilities_TV[-1, word])
        assert np.allclose(-found[word], expected, rtol=0, atol=tolerance)


def test_the_loss_is_a_sentences_nats_a_prediction(folder: Path, model: Lm1bForCausalLM, tokenizer: Lm1bTokenizer) -> None:
    for sentence, score in zip(SENTENCES, lm1b.load(folder).score(SENTENCES), strict=True):
        ids = tokenizer(f"{sentence} </S>", return_tensors="pt")
        assert model(**ids, labels=ids["input_ids"]).loss.item() == pytest.approx(score.nats / (score.words + 1), rel=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padded_sentences_side_by_side_are_as_alone(model: Lm1bForCausalLM, tokenizer: Lm1bTokenizer, side: str) -> None:
    together = tokenizer(SENTENCES, return_tensors="pt", padding=True, padding_side=side)
    logits_BTV = model(**together).logits
    for row, sentence in enumerate(SENTENCES):
        alone_TV = model(**tokenizer(sentence, return_tensors="pt")).logits[0]
        assert torch.allclose(logits_BTV[row, together["attention_mask"][row] == 1], alone_TV, atol=1e-5)
    gap = torch.ones_like(together["attention_mask"])
    gap[0, 1] = 0
    with pytest.raises(ValueError, match="zeros between ones"):
        model(together["input_ids"], attention_mask=gap)


@settings(max_examples=100, deadline=None)
@given(line=st.text(st.sampled_from("w12 \t\r\v\f\x00é\u2028"), max_size=20))
def test_words_are_those_of_our_own_vocabulary(folder: Path, tokenizer: Lm1bTokenizer, line: str) -> None:
    vocabulary = lm1b.huggingface.load_vocabulary(folder / "vocabulary.txt")
    expected = vocabulary.encode(f"{line}\n".encode()).ids_N
    ids = tokenizer(line)["input_ids"]
    assert ids[0] == vocabulary.end_id
    assert ids[1:] == [word for word in expected.tolist() if word != vocabulary.end_id]


def test_generated_words_are_those_of_our_own_sampling(folder: Path, model: Lm1bForCausalLM, tokenizer: Lm1bTokenizer) -> None:
    ours = lm1b.load(folder)
    for prompt in ("w1", "w7 w3", "w30 w2 w2"):
        ids = tokenizer(prompt, return_tensors="pt")
        (drawn,) = model.generate(**ids, do_sample=False, max_new_tokens=6)  # type: ignore[attr-defined]
        words = sample_sentence(ours, prompt, SamplingSettings(temperature=0.0, longest=6))
        assert tokenizer.decode(drawn, skip_special_tokens=True) == " ".join([prompt, *words])


def test_prompts_of_unequal_length_go_on_as_alone_or_are_refused(model: Lm1bForCausalLM, tokenizer: Lm1bTokenizer) -> None:
    prompts, settings = ["w1", "w7 w3", "w30 w2 w2"], {"do_sample": False, "max_new_tokens": 6}
    together = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    for prompt, drawn in zip(prompts, model.generate(**together, **settings), strict=True):  # type: ignore[attr-defined]
        (alone,) = model.generate(**tokenizer(prompt, return_tensors="pt"), **settings)  # type: ignore[attr-defined]
        assert tokenizer.decode(drawn, skip_special_tokens=True) == tokenizer.decode(alone, skip_special_tokens=True)
    with pytest.raises(ValueError, match="padding_side"):
        model.generate(**tokenizer(prompts, return_tensors="pt", padding=True), **settings)  # type: ignore[attr-defined]


def test_what_transformers_saves_it_reads_back(model: Lm1bForCausalLM, tokenizer: Lm1bTokenizer, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = AutoTokenizer.from_pretrained(tmp_path)(SENTENCES[0], return_tensors="pt")
    assert torch.equal(ids["input_ids"], tokenizer(SENTENCES[0], return_tensors="pt")["input_ids"])
    assert torch.equal(again(**ids).logits, model(**ids).logits)
    assert AutoConfig.from_pretrained(tmp_path).architecture == model.config.architecture


def test_every_parameter_can_be_trained_on(folder: Path, tokenizer: Lm1bTokenizer) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer(SENTENCES, return_tensors="pt", padding=True)
    labels = ids["input_ids"].masked_fill(ids["attention_mask"] == 0, -100)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = model(**ids, labels=labels).loss
        loss.backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)


def test_without_transformers_one_line_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['transformers'] = None; from lm1b.errors import run_command, UserError\n"
        "def main():\n import lm1b.huggingface\nrun_command(main)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "pip install -e '.[huggingface]'" in done.stderr
    assert done.stderr.count("\n") == 1
