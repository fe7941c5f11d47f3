"""A run directory made by hand: random text, random weights, no training. For the tests of evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from lm1b.config import Config, parse_config
from lm1b.data.tokens.directory import TokenDirectory, write_shard
from lm1b.data.tokens.manifest import MANIFEST_NAME, CorpusFacts, MadeFrom, Manifest
from lm1b.data.vocabulary.vocabulary import VOCABULARY_NAME
from lm1b.data.vocabulary.words import WordVocabulary, build_vocabulary
from lm1b.distributed import single_process
from lm1b.files import digest_of_file, write_json
from lm1b.model.language_model import LanguageModel
from lm1b.model.tables import VocabularyTable
from lm1b.training.checkpoints.checkpoint import Checkpoint
from lm1b.training.checkpoints.saving import CheckpointSaver
from lm1b.training.evaluations import Evaluation

WORDS = 40


def made_vocabulary() -> WordVocabulary:
    words = [*(f"w{k}".encode() for k in range(WORDS)), b"</S>"]
    return build_vocabulary(pa.array(words, pa.binary()), np.arange(len(words), 0, -1, dtype=np.int64) * 3, 3)


def made_text(seed: int, sentences: int) -> str:
    """Sentences of 1 to 12 words, a few of them unknown."""
    generator = np.random.default_rng(seed)
    return "".join(" ".join(f"w{k}" for k in generator.integers(0, WORDS + 3, generator.integers(1, 13))) + "\n" for _ in range(sentences))


def made_tokens(folder: Path) -> TokenDirectory:
    """A token directory of two training shards, two validation shards and one of test."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = made_vocabulary()
    vocabulary.save(folder / VOCABULARY_NAME)
    shards: dict[Any, Any] = {"train": [], "validation": [], "test": []}
    for number, (split, sentences) in enumerate([("train", 300), ("train", 200), ("validation", 30), ("validation", 11), ("test", 20)]):
        tokens = vocabulary.encode(made_text(number, sentences).encode()).ids_N
        name = f"{split}-{number}"
        shards[split].append(write_shard(folder, name, tokens.astype(vocabulary.token_dtype), vocabulary.end_id, vocabulary.unknown_id))
    corpus = CorpusFacts.of("text", False, [])
    made_from = MadeFrom()
    Manifest.of(vocabulary, digest_of_file(folder / VOCABULARY_NAME), shards, corpus, made_from).write(folder / MANIFEST_NAME)
    return TokenDirectory.open(folder)


def made_config(folder: Path, softmax: dict[str, Any] | None = None, **model: Any) -> Config:
    shape = {"cell": "lstm", "layers": 2, "embedding": 6, "hidden": 8, "projection": 5} | model
    return parse_config(
        {
            "run": {"directory": str(folder / "run")},
            "corpus": {"kind": "text", "train": ["train.txt"], "validation": ["validation.txt"]},
            "tokens": {"directory": str(folder / "tokens")},
            "batches": {"lanes": 4, "steps": 5},
            "model": shape,
            "softmax": softmax or {},
            "training": {"total_steps": 30},
            "evaluation": {"lanes": 3, "vocabulary_block": 16},
        }
    )


def run_of(config: Config) -> Path:
    """The directory of its run."""
    return Path(config.run.directory)


def made_checkpoint(config: Config, step: int, *, finished: bool = False, ema: bool = True, scale: float = 1.0) -> Checkpoint:
    """One checkpoint of random weights; the averaged ones are others."""
    tokens = TokenDirectory.open(Path(config.tokens.directory))
    run = Path(config.run.directory)
    write_json(run / "config.json", {"config": config.as_json(), "history": []})
    size = tokens.vocabulary.size
    model = LanguageModel(config.model, step, softmax=config.softmax, vocabulary_size=size)
    average = LanguageModel(config.model, step + 1000, softmax=config.softmax, vocabulary_size=size)
    core = {f"weights/{name}": value for name, value in model.state_dict().items()}
    if ema:
        core |= {f"ema/{name}": value for name, value in average.state_dict().items()}
    ranks = single_process()
    widths = {"input_table": config.model.embedding, "output_table": model.output_width, "output_bias": 1}
    missing = {"output_table", "output_bias"} if model.adaptive else {"output_table"} if config.model.tie_tables else set()
    tables = [
        VocabularyTable(name, size, width, seed=step, initial_scale=scale, initial_accumulator=1.0, ranks=ranks)
        for name, width in widths.items()
        if name not in missing
    ]
    state = {"step": step, "epoch": step / 10, "finished": finished, "vocabulary": tokens.fingerprint, "config": config.as_json()}
    saver = CheckpointSaver(run, ranks)
    saver.begin(state, core, {"0.h": torch.zeros(1, 1)}, tables)
    saved = saver.finish()
    assert saved is not None
    return saved


def made_evaluation(**fields: Any) -> Evaluation:
    """A result on validation by `made_config`'s own settings, but for these fields."""
    line: dict[str, Any] = {"step": 10, "checkpoint": "step_00000010", "split": "validation", "files": ["validation-2", "validation-3"]}
    line |= {"state": "carry", "lanes": 3, "precision": "fp32", "weights": "ema", "nats": 900.0, "predictions": 200}
    line |= {"words": 180, "sentences": 20, "unknown": 5, "word_perplexity": 90.0, "vocabulary": "0" * 64, "seconds": 1.5}
    return Evaluation.from_line(line | {"finished_at": "2026-01-02T03:04:05+00:00"} | fields)


def made_run_directory(folder: Path, *steps: int, scale: float = 1.0) -> Path:
    """A run directory with a checkpoint at each of these steps, and its tokens beside it."""
    made_tokens(folder / "tokens")
    config = made_config(folder)
    for step in steps:
        made_checkpoint(config, step, scale=scale)
    return Path(config.run.directory)
