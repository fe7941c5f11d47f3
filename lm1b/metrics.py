"""What every number of a run means: keys of metrics.jsonl, their tags in TensorBoard, and `launch/train.py --explain metrics`. No torch."""

from __future__ import annotations

import textwrap
from typing import NamedTuple

WIDTH = 110


class Metric(NamedTuple):
    """tag: in TensorBoard; a value that is a dict has one tag a key, `tag/key`."""

    tag: str
    meaning: str


METRICS = {
    "nats_per_word": Metric(
        "loss/training",
        "Training loss, nats a word, mean since the line before: the sampled softmax's, which is no perplexity, or the full one's. "
        "Where words are spelled by pieces, words are reckoned from pieces by the training split's mean, here and below.",
    ),
    "sampled_nats_checked": Metric("loss/checked_sampled", "Sampled loss on a few positions, every training.gap_every steps."),
    "true_nats_checked": Metric("loss/checked_full", "Full softmax's loss on the same positions: what the sampled one stands for."),
    "gradient_norm": Metric("recurrence/gradient_norm", "Global norm of the core's gradient before clipping, at this step."),
    "largest_activation": Metric("recurrence/largest_activation", "Largest absolute output of a recurrent layer at this step, all ranks."),
    "mean_activation": Metric("recurrence/mean_activation", "Mean absolute output of a recurrent layer at this step, first rank's lanes."),
    "dead_relus": Metric(
        "recurrence/dead_relus", "ReLU cells: share of units that put out 0 at every position of this step, in the first rank's lanes."
    ),
    "learning_rate": Metric("schedule/learning_rate", "Of the core, at this step."),
    "loss_scale": Metric("schedule/loss_scale", "fp16's dynamic factor on the loss; 1 in other precisions."),
    "skipped": Metric("schedule/skipped", "Updates skipped so far because something was not finite."),
    "lanes_restarted": Metric("schedule/lanes_restarted", "Lanes whose state was not finite and began anew from zero, so far."),
    "epoch": Metric("schedule/epoch", "Passes over the training split so far."),
    "updates": Metric("schedule/updates", "Updates applied so far; steps less the skipped ones."),
    "words": Metric("schedule/words", "Words and sentence ends trained on so far."),
    "elapsed_seconds": Metric("schedule/elapsed_seconds", "Seconds of training so far, over all starts, without what a kill lost."),
    "words_per_second": Metric("speed/words_per_second", "Words and sentence ends trained on a second since the line before, all ranks."),
    "share_of_ceiling": Metric(
        "speed/share_of_ceiling",
        "Multiply-adds that the steps need, by wall time, of what the ranks did in matrix products alone at the start (logging.ceiling).",
    ),
    "peak_memory_mb": Metric("speed/peak_memory_mb", "The first rank's largest resident memory so far, MiB."),
    "gpu_peak_memory_mb": Metric("speed/gpu_peak_memory_mb", "The first rank's largest memory on its GPU so far, MiB."),
    "step_seconds": Metric(
        "step_seconds",
        "CPU only: where a step's time goes on the first rank, mean since the line before, by part. rows: batch and table rows. forward. "
        "backward. checks: is everything finite? exchange: waiting for other ranks. update: core, tables, average.",
    ),
    "waiting_seconds": Metric(
        "waiting_seconds",
        "CPU only, several ranks: mean seconds a step that each waits, by what for (rows, core gradient, status, row gradients).",
    ),
    "waiting_for_slowest": Metric(
        "speed/waiting_for_slowest",
        "CPU only, several ranks: share of the time that the others wait longer than `slowest`, the rank they wait for.",
    ),
}

EVALUATED = {
    "word_perplexity": Metric("exact_perplexity", "Exact word perplexity of a checkpoint, by split, state and weights."),
    "spectral_radius": Metric(
        "recurrence/spectral_radius",
        "Largest absolute eigenvalue of a layer's recurrent weight (lstm: of each gate's), of the weights that were evaluated: above 1 a "
        "linear state grows.",
    ),
}


def describe_metrics() -> str:
    """The page of `--explain metrics`."""
    parts = ["metrics.jsonl, and its tags in TensorBoard: tensorboard --logdir RUN/tensorboard, then http://localhost:6006/#custom_scalars"]
    for metrics, where in ((METRICS, ""), (EVALUATED, " (evaluations.jsonl)")):
        for key, metric in metrics.items():
            parts.append(textwrap.fill(f"  {key}, {metric.tag}{where}: {metric.meaning}", WIDTH, subsequent_indent="      "))
    return "\n".join(parts)


def meaning_of(tag: str) -> str:
    """Of a tag, whole or with a key behind it; empty where there is none."""
    known = {metric.tag: metric.meaning for metric in [*METRICS.values(), *EVALUATED.values()]}
    while tag and tag not in known:
        tag = tag.rpartition("/")[0]
    return known.get(tag, "")
