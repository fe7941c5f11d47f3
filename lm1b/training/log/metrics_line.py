"""What the progress line and metrics.jsonl say: sums over the steps between two lines."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch

from lm1b.memory import peak_memory_mb
from lm1b.training.run import Run
from lm1b.training.step.training_step import StepResult
from lm1b.training.timing import WAITED_FOR, straggler


class Interval:
    """Sums over the steps between two log lines."""

    def __init__(self) -> None:
        self.started_at = self._lap_at = time.monotonic()
        self.tokens, self.gap, self.steps = 0, None, 0
        self.waiting_RP: np.ndarray | float = 0.0  # seconds that each rank has waited, by part

    def add(self, run: Run, result: StepResult) -> None:
        """One more step, with what it put out."""
        if result.applied:
            self.tokens += run.batches.tokens_per_step
            run.counts.unlogged_tokens += run.batches.tokens_per_step
            run.counts.unlogged_nats += result.nats
        self.gap = result.gap or self.gap
        self.steps += 1
        self.waiting_RP = self.waiting_RP + np.array(result.waiting_RP)

    def leave_out_saving(self) -> None:
        """The seconds since the last lap were a checkpoint's: they are part of the elapsed time, not of the speed."""
        self.started_at += time.monotonic() - self._lap_at

    def lap(self) -> float:
        """Seconds since the last lap."""
        before, self._lap_at = self._lap_at, time.monotonic()
        return self._lap_at - before

    def line(self, run: Run, result: StepResult) -> dict[str, Any]:
        """One line of metrics.jsonl."""
        seconds = time.monotonic() - self.started_at
        run.counts.elapsed_seconds += self.lap()
        learning_rate = run.config.optimizer.learning_rate * result.learning_rate_factor
        counts = run.counts
        # Of words spelled by pieces the step counts pieces; a figure is of words all the same, so that runs can be laid side by side.
        tokens_per_word = run.tokens_per_word
        line: dict[str, Any] = {
            "step": run.training_step.step,
            "updates": run.training_step.updates,
            "epoch": run.training_step.step / run.batches.steps_per_epoch,
            "words": round(counts.tokens / tokens_per_word),
            "nats_per_word": counts.unlogged_nats / counts.unlogged_tokens * tokens_per_word if counts.unlogged_tokens else None,
            "words_per_second": self.tokens / tokens_per_word / seconds,
            "gradient_norm": _if_finite(float(result.gradient_norm)),
            "largest_activation": _if_finite(result.largest_activation),
            "learning_rate": learning_rate,
            "skipped": counts.skipped,
            "lanes_restarted": counts.lanes_restarted,
            "loss_scale": run.training_step.engine.loss_scale,
            "elapsed_seconds": run.counts.elapsed_seconds,
            "peak_memory_mb": peak_memory_mb(),
        }
        if run.ranks.device.type == "cuda":
            line["gpu_peak_memory_mb"] = torch.cuda.max_memory_allocated(run.ranks.device) / 2**20
        if run.tokens_at_ceiling:
            line["share_of_ceiling"] = self.tokens / seconds / run.tokens_at_ceiling
        waited_P = np.asarray(self.waiting_RP)[0].tolist() if self.steps else []
        parts = run.training_step.parts.take(dict(zip(WAITED_FOR, waited_P, strict=False)), self.steps)
        if parts:
            line["step_seconds"] = parts
        if run.ranks.size > 1 and run.training_step.parts.is_on:
            line |= self._waiting(run, seconds)
        if self.gap is not None:
            sampled, true = self.gap
            line |= {"sampled_nats_checked": sampled * tokens_per_word, "true_nats_checked": true * tokens_per_word}
        run.counts.unlogged_nats, run.counts.unlogged_tokens = 0.0, 0
        return line

    def _waiting(self, run: Run, seconds: float) -> dict[str, Any]:
        """Mean seconds a step that each rank waited, by part, and for whom."""
        waiting_RP = np.asarray(self.waiting_RP)
        found = straggler(waiting_RP.tolist(), seconds)
        rank, share = found or (None, 0.0)
        mean_PR = (waiting_RP / max(1, self.steps)).round(6).T.tolist()
        name = None if rank is None else str(run.ranks.peers.members[rank]) if run.ranks.peers else f"rank {rank}"
        return {"waiting_seconds": dict(zip(WAITED_FOR, mean_PR, strict=True)), "slowest": name, "waiting_for_slowest": round(share, 4)}


def _if_finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def describe(line: dict[str, Any]) -> str:
    """A line of metrics.jsonl in words, for the progress line."""
    nats = line["nats_per_word"]
    loss = f"loss {nats:.3f} nats a word" if nats is not None else "no update"
    norm, activation = ["not finite" if line[key] is None else f"{line[key]:.2f}" for key in ("gradient_norm", "largest_activation")]
    slow = f", {line['waiting_for_slowest']:.0%} of the time waiting for {line['slowest']}" if line.get("slowest") else ""
    speed = f"{line['words_per_second']:,.0f} words/s"
    return f"{loss}, {speed}, gradient norm {norm}, largest activation {activation}{slow}"
