"""TensorBoard: numbers under the tags of lm1b/metrics.py, each with its meaning, and a layout that opens on what matters.

`tensorboard --logdir RUN/tensorboard`, then http://localhost:6006/#custom_scalars. The training writes into that folder, the evaluator
into `evaluation/` in it: a training that goes on from a checkpoint hides later points of its own folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tensorboard.compat.proto import summary_pb2
from torch.utils.tensorboard import SummaryWriter

from lm1b.metrics import EVALUATED, METRICS, meaning_of

Summary: Any = summary_pb2.Summary  # type: ignore[attr-defined]  # generated, with no types
RANKS_ON_BOARD = 16  # of which TensorBoard shows how long each waits; metrics.jsonl has all


def _lines(*keys: str) -> list[Any]:
    known = METRICS | EVALUATED
    return ["Multiline", [known[key].tag for key in keys]]


LAYOUT = {
    "1 How good": {
        "exact word perplexity": _lines("word_perplexity"),
        "training loss, nats a word": _lines("nats_per_word"),
        "sampled against full softmax, nats a word": _lines("sampled_nats_checked", "true_nats_checked"),
    },
    "2 How stable": {
        "gradient norm": _lines("gradient_norm"),
        "activation, largest and mean": _lines("largest_activation", "mean_activation"),
        "share of dead ReLUs": _lines("dead_relus"),
        "spectral radius of the recurrent weight": _lines("spectral_radius"),
        "skipped updates, lanes restarted": _lines("skipped", "lanes_restarted"),
    },
    "3 How fast": {
        "words a second": _lines("words_per_second"),
        "share of the matrix products' rate": _lines("share_of_ceiling"),
        "seconds of a step, by part": _lines("step_seconds"),
        "memory, MiB": _lines("peak_memory_mb", "gpu_peak_memory_mb"),
    },
    "4 Schedule": {"learning rate": _lines("learning_rate"), "loss scale": _lines("loss_scale"), "epochs": _lines("epoch")},
}


class Board:
    """One folder of TensorBoard's. OSError of its writer's thread is raised by a later call."""

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        """purge_step: points of this folder from that step on are hidden."""
        self._writer = SummaryWriter(str(folder), purge_step=purge_step)
        self._explained: set[str] = set()

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write what is still to be written."""
        self._writer.close()

    def layout(self) -> None:
        """What the page of custom scalars shows."""
        self._writer.add_custom_scalars(LAYOUT)

    def scalar(self, tag: str, value: float, step: int) -> None:
        """One point; the first of a tag brings the tag's meaning."""
        entry = Summary.Value(tag=tag, simple_value=float(value))
        if tag not in self._explained:
            self._explained.add(tag)
            entry.metadata.plugin_data.plugin_name = "scalars"
            entry.metadata.summary_description = meaning_of(tag)
        writer = self._writer._get_file_writer()  # pyright: ignore[reportPrivateUsage] (torch has no other way to add a description)
        writer.add_summary(Summary(value=[entry]), step)

    def text(self, tag: str, markdown: str, step: int) -> None:
        """One text."""
        self._writer.add_text(tag, markdown, step)

    def metrics(self, line: dict[str, Any]) -> None:
        """The numbers of a line of metrics.jsonl."""
        for tag, value in scalars_of(line).items():
            self.scalar(tag, value, line["step"])


def scalars_of(line: dict[str, Any]) -> dict[str, float]:
    """Tag and value of every number in a line of metrics.jsonl; of ranks that wait, the first RANKS_ON_BOARD."""
    found: dict[str, float] = {}
    for key, metric in METRICS.items():
        value = line.get(key)
        if isinstance(value, dict):
            for part, inner in value.items():
                by_rank = enumerate(inner[:RANKS_ON_BOARD]) if isinstance(inner, list) else [(None, inner)]
                found |= {f"{metric.tag}/{part}" if rank is None else f"{metric.tag}/{part}/rank {rank}": each for rank, each in by_rank}
        elif isinstance(value, (int, float)):
            found[metric.tag] = value
    return found
