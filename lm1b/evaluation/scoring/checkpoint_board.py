"""What TensorBoard shows of a checkpoint that has been scored: perplexities, spectral radii, sentences drawn from it, its commonest words.

Sentences are drawn with the run's seed: the same random numbers for every checkpoint, so that they can be compared. The projector's files
are those of the checkpoint scored last, so their size stays the same (10 MB for 5,000 words of width 512).
"""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from tensorboard.plugins.projector import projector_config_pb2

from lm1b.config import Config
from lm1b.evaluation.trained.loading import LoadedModel
from lm1b.evaluation.trained.sampling import sample_sentence
from lm1b.evaluation.trained.sampling_settings import SamplingSettings
from lm1b.files import atomic_file
from lm1b.markdown import literal
from lm1b.metrics import EVALUATED
from lm1b.training.evaluations import Evaluation
from lm1b.training.log.board import Board
from lm1b.training.run_folder import RunFolder

LONGEST_SENTENCE = 40
ProjectorConfig: Any = projector_config_pb2.ProjectorConfig  # type: ignore[attr-defined]  # generated, with no types
EMBEDDING, WORDS, PROJECTOR = "input_rows.bytes", "words.tsv", "projector_config.pbtxt"


def show(folder: RunFolder, config: Config, evaluations: list[Evaluation], model: LoadedModel | None) -> None:
    """Plot one checkpoint's results: perplexity by split, state and weights; spectral radius by layer and weights.

    model: for its sentences and its words' rows too.
    """
    with Board(folder.evaluator_board) as board:
        for each in evaluations:
            if each.word_perplexity is not None:
                board.scalar(each.tag, each.word_perplexity, each.step)
            for layer, radius in each.spectral_radius.items():
                board.scalar(f"{EVALUATED['spectral_radius'].tag}/{layer}, {each.weights}", radius, each.step)
        if model and config.logging.samples:
            drawing = SamplingSettings(seed=config.run.seed, longest=LONGEST_SENTENCE)
            sentences = [" ".join(sample_sentence(model, "", drawing, number)) for number in range(config.logging.samples)]
            text = "\n".join(f"{number}. {literal(sentence)}" for number, sentence in enumerate(sentences, 1))
            board.text("samples", text, evaluations[0].step)
    if model and config.logging.projector_words:
        _write_projector(folder.evaluator_board, model, config.logging.projector_words)


def _one_line(text: str) -> str:
    """Without control characters."""
    return "".join(" " if unicodedata.category(letter).startswith("C") else letter for letter in text)


def _write_projector(folder: Path, model: LoadedModel, most: int) -> None:
    """The input rows of the commonest words, with the words, their ranks and their training counts, in place of those before."""
    vocabulary = model.vocabulary
    ids = [number for number in range(min(most + 3, vocabulary.size)) if number != vocabulary.start_id][:most]
    rows_KD = model.scorer.input_rows_UD[ids].float().cpu().numpy()
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / EMBEDDING, outlives_power=False) as file:
        file.write(np.ascontiguousarray(rows_KD, dtype=np.float32).tobytes())
    with atomic_file(folder / WORDS, outlives_power=False) as file:
        file.write(b"word\trank\tcount\n")
        for number in ids:
            word = _one_line(vocabulary.id_to_token[number])
            file.write(f"{word}\t{number + 1}\t{vocabulary.counts_V[number]}\n".encode(errors="replace"))
    config = ProjectorConfig()
    embedding = config.embeddings.add(tensor_name="input rows of the commonest words", tensor_path=EMBEDDING, metadata_path=WORDS)
    embedding.tensor_shape.extend(rows_KD.shape)
    with atomic_file(folder / PROJECTOR, outlives_power=False) as file:
        file.write(text_format.MessageToString(config).encode())
