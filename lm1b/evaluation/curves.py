"""A run as its folder tells it, and the curves of several runs in one picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lm1b.config import Config
from lm1b.files import atomic_file, read_json_lines
from lm1b.training.run_log import best_result, read_run_config

FINE_TICKS = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)  # of a perplexity axis of a decade or less
SMOOTHED_SHARE = 0.02  # of the logged points, on either side


@dataclass(frozen=True)
class RunRecord:
    """What a run directory tells. evaluations: sorted by text and step; metrics: as logged."""

    name: str
    directory: Path
    config: Config
    evaluations: list[dict[str, Any]]
    metrics: list[dict[str, Any]]

    @classmethod
    def read(cls, directory: Path) -> RunRecord:
        """Raises UserError where the folder holds no run."""
        directory = Path(directory)
        config = read_run_config(directory)
        lines = read_json_lines(directory / "evaluations.jsonl")
        evaluations = sorted(lines, key=lambda line: (line["split"], line["files"], line["state"], line["step"], line["weights"]))
        return cls(directory.resolve().name, directory, config, evaluations, read_json_lines(directory / "metrics.jsonl"))

    def tokens_at(self, step: int) -> int:
        """Training tokens (words and sentence ends) seen after `step` steps."""
        return step * self.config.batches.lanes * self.config.batches.steps

    def best(self) -> dict[str, Any] | None:
        """The best result on validation by the run's own evaluation settings."""
        return best_result(self.evaluations, self.config)


def draw_curves(runs: list[RunRecord], levels: dict[str, float], path: Path) -> None:
    """Two panels against training tokens: sampled training loss in nats, exact validation perplexity. PNG, written whole.

    levels: label -> perplexity on validation, drawn as horizontal lines.
    """
    # Matplotlib is slow to import and only needed here; this canvas draws without a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator, StrMethodFormatter

    figure = Figure(figsize=(9, 8), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    for number, run in enumerate(runs):
        color = f"C{number % 10}"
        _draw_training(above, run, color)
        _draw_validation(below, run, color)
    above.set_ylabel("sampled training loss, nats a word")
    below.set_ylabel("exact validation perplexity")
    for number, (label, perplexity) in enumerate(levels.items()):
        below.axhline(perplexity, color="gray", linestyle=(":", "-.")[number % 2], linewidth=1, label=f"{label} ({perplexity:.1f})")
    below.set_yscale("log")
    low, high = below.get_ylim()
    below.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high > 10 * low else FINE_TICKS, numticks=20))
    below.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    below.yaxis.set_minor_formatter("")
    below.xaxis.set_major_formatter(EngFormatter())
    below.set_xlabel("training tokens seen (words and sentence ends)")
    for axes in (above, below):
        axes.grid(alpha=0.3, which="both")
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=120)


def _draw_training(axes: Any, run: RunRecord, color: str) -> None:
    points = [(run.tokens_at(line["step"]), line["nats_per_word"]) for line in run.metrics if line.get("nats_per_word") is not None]
    if not points:
        return
    tokens, nats = np.array(points, float).T
    axes.plot(tokens, nats, color=color, alpha=0.25, linewidth=0.8)
    axes.plot(tokens, _smooth(nats, round(SMOOTHED_SHARE * len(nats))), color=color, label=run.name)
    checked = [line for line in run.metrics if line.get("true_nats_checked") is not None]
    if checked:
        tokens, nats = [run.tokens_at(line["step"]) for line in checked], [line["true_nats_checked"] for line in checked]
        axes.plot(tokens, nats, ".", color=color, markersize=4, alpha=0.7, label=f"{run.name}, full softmax on a few positions")


def _smooth(values: np.ndarray, reach: int) -> np.ndarray:
    """Mean of each value and of up to `reach` on either side, fewer at the ends but as many on the one as on the other."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    middle = np.arange(len(values))
    reaches = np.minimum(reach, np.minimum(middle, len(values) - 1 - middle))
    return (sums[middle + reaches + 1] - sums[middle - reaches]) / (2 * reaches + 1)


def _draw_validation(axes: Any, run: RunRecord, color: str) -> None:
    series: dict[tuple[str, str, str, int], list[tuple[int, float]]] = {}
    for line in run.evaluations:
        if line["split"] == "validation" and line["word_perplexity"] is not None:
            how = (line["weights"], line["state"], line["precision"], line["lanes"] or 0)
            series.setdefault(how, []).append((run.tokens_at(line["step"]), line["word_perplexity"]))
    styles = {"ema": "o-", "raw": "s--"}
    for (weights, state, precision, lanes), points in series.items():
        label = f"{run.name} ({weights}, {f'{lanes} lanes' if lanes else state}, {precision})"
        axes.plot(*zip(*sorted(points), strict=True), styles[weights], color=color, markersize=4, label=label)
