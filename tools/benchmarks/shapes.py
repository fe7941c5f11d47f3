"""What is measured: the models' shapes, the words they read, and the work that a word is."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lm1b.config import Config, load_config
from lm1b.data.batches import Batch
from lm1b.data.text.benchmark import HELD_OUT_FOLDER, TRAINING_FOLDER

REPOSITORY = Path(__file__).parent.parent.parent
DEEPSPEED = str(Path(sys.executable).with_name("deepspeed"))  # beside this Python, whatever PATH says
BENCHMARK_WORDS = 793_471
NEWS_WORDS = 82_453
_RECIPE = ["batches.lanes=128", "batches.steps=20", "softmax.samples=8192"]
# Name -> config and what is set on it. The last is a slice of BIGLSTM (2 x 8192-1024) for a CPU: a layer, an eighth of the lanes.
SHAPES: dict[str, tuple[str, list[str]]] = {
    "irnn_512": ("irnn_lm", ["model.hidden=512", "model.projection=null"]),
    "irnn_1024_512": ("irnn_lm", []),
    "lstm_512": ("lstm_lm", []),
    "lstm_2048_512": ("lstm_lm", ["model.hidden=2048", "model.recurrent_projection=512"]),
    "biglstm": ("biglstm_lm", []),
    "biglstm_slice": ("lstm_lm", ["model.hidden=8192", "model.recurrent_projection=1024", "model.embedding=1024", "batches.lanes=16"]),
}


def shape_config(name: str, precision: str, overrides: list[str] | None = None) -> Config:
    """A shipped config as the shape `name`, with the benchmark's classic batch."""
    config, settings = SHAPES[name]
    return load_config(
        REPOSITORY / "configs" / f"{config}.json", [*_RECIPE, *settings, f"training.precision={precision}", *(overrides or [])]
    )


def word_counts(path: str | None, vocabulary: int) -> np.ndarray:
    """Training counts of the `vocabulary` most frequent words, falling, float64. path: .npy of counts; None: a Zipf curve."""
    if path is None:
        return 1e9 / np.arange(1, vocabulary + 1)
    counts = np.load(path, allow_pickle=False).astype(np.float64)
    counts[BENCHMARK_WORDS - 1 :] = 0  # <S> never occurs in the stream
    return np.sort(counts)[::-1][:vocabulary]


def write_corpus(folder: Path, counts: str | None, megabytes: int) -> Path:
    """A text in the benchmark's layout, of made-up words drawn by the counts: for where no `--corpus` is given. -> the folder."""
    counts_V = word_counts(counts, BENCHMARK_WORDS)
    cumulative_V = np.cumsum(counts_V)
    generator = np.random.default_rng(1)
    names = [f"{TRAINING_FOLDER}/news.en-0000{number}-of-00003" for number in (1, 2)]
    held_out = [f"{HELD_OUT_FOLDER}/news.en.heldout-0000{number}-of-00002" for number in (0, 1)]
    for name in [*names, *held_out]:
        num_lines = (megabytes * 1_000_000 // 2 if name in names else 300_000) // 160
        ids = np.searchsorted(cumulative_V, generator.random((num_lines, 25)) * cumulative_V[-1], side="right")
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(" ".join(f"w{word:x}" for word in line) + "\n" for line in ids.tolist()))
    return folder


@dataclass
class UnigramBatches:
    """Batches of tokens drawn from unigram counts, so that rows, samples and traffic are those of real text; equal for any ranks."""

    cumulative_V: np.ndarray
    lanes: int
    steps: int
    end_id: int = 0

    def at(self, step: int, first_lane: int, num_lanes: int) -> Batch:
        """See lm1b.data.batches.Batches."""
        generator = np.random.default_rng(step)
        draws = np.searchsorted(self.cumulative_V, generator.random((self.steps + 1, self.lanes)) * self.cumulative_V[-1], side="right")
        tokens = draws[:, first_lane : first_lane + num_lanes].astype(np.int64)
        return Batch(tokens[:-1], tokens[1:], epoch=0, starts_epoch=step == 0)


class PreparedBatches:
    """Some of another's batches, drawn once and then read over and over: for where drawing them would count."""

    def __init__(self, batches: UnigramBatches, count: int = 64) -> None:
        self._batches = [batches.at(step, 0, batches.lanes) for step in range(count)]
        self.lanes, self.steps, self.end_id = batches.lanes, batches.steps, batches.end_id

    def at(self, step: int, first_lane: int, num_lanes: int) -> Batch:
        """See lm1b.data.batches.Batches."""
        batch, lanes = self._batches[step % len(self._batches)], slice(first_lane, first_lane + num_lanes)
        return Batch(batch.inputs_TB[:, lanes], batch.targets_TB[:, lanes], epoch=0, starts_epoch=step == 0)
