"""Phone frames of TIMIT (Le 2015): every 10 ms, which phone is spoken.

    utterance -> 120 features a frame (speech_features.py), normalised -> the phone at the frame's centre (phone_labels.py)

1. An utterance is a sequence; its frames are steps. Speakers are split apart (timit.py).
2. Every feature is normalised by its mean and standard deviation over the training frames alone.
3. A frame's label is that of the phone which holds the window's middle sample. Frames without a label (`q` where phones are folded to
   39; after the last phone) are NO_LABEL: they are input like any other, but neither trained nor counted.

Le 2015 asks for 180 states of an aligned recogniser [recalled], not for phones: its frame error rates are of another, harder task.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lm1b.errors import UserError
from lm1b.sequence_tasks.config import PhonesConfig
from lm1b.sequence_tasks.data.phone_labels import label_numbers, labels_at, read_phn
from lm1b.sequence_tasks.data.speech_features import (
    LIBRARIES,
    NUM_FEATURES,
    features_of,
    frame_centres,
    library_versions,
    load_library,
    read_audio,
)
from lm1b.sequence_tasks.data.task import NO_LABEL, SPLITS, Task, constant_answer_nats, stored
from lm1b.sequence_tasks.data.timit import Utterance, find_timit


def phones_task(config: PhonesConfig) -> Task:
    """TIMIT's frames in three splits. baseline_loss is that of dev's own label frequencies.

    Nothing is kept on disk: an utterance takes about 5 ms, the sample's 128 less than a second.
    Raises UserError for a missing library, a folder that is not TIMIT, and audio or `.phn` files that cannot be used.
    """
    for library in LIBRARIES:
        load_library(library)
    timit = find_timit(Path(config.path), config.split_seed)
    numbers = label_numbers(config.labels)
    read = {name: [_read(utterance, numbers) for utterance in timit.splits[name]] for name in SPLITS}
    mean_D, deviation_D = _mean_and_deviation([features_TD for features_TD, _ in read["train"]])
    splits = {
        name: stored([(features_TD - mean_D) / deviation_D for features_TD, _ in pairs], [labels_T for _, labels_T in pairs])
        for name, pairs in read.items()
    }
    return Task(
        name=f"phones, {config.labels} labels",
        asked="label_per_step",
        input_width=NUM_FEATURES,
        outputs=config.labels,
        train=splits["train"],
        dev=splits["dev"],
        test=splits["test"],
        baseline_loss=constant_answer_nats(splits["dev"].targets),
        sources={
            "layout": timit.layout,
            "split": timit.split_rule,
            **{name: _counts(timit.splits[name], splits[name].targets) for name in SPLITS},
            "left out": f"{timit.num_left_out} utterances of the sentences sa1 and sa2",
            "labels": "61" if config.labels == 61 else "61 folded to 39 (Lee and Hon 1989), frames of q without a label",
            "features": "40 log-mels of 25 ms every 10 ms, deltas, delta-deltas; normalised by the training frames",
            "libraries": library_versions(),
        },
    )


def _read(utterance: Utterance, numbers: dict[str, int]) -> tuple[Tensor, Tensor]:
    """An utterance's features [T, 120] and labels [T]."""
    samples = read_audio(utterance.wav)
    phones = read_phn(utterance.phn, len(samples))
    features_TD = features_of(samples)
    labels_T = labels_at(phones, frame_centres(len(features_TD)), numbers)
    if bool((labels_T == NO_LABEL).all()):
        raise UserError(f"{utterance.phn} labels none of its {len(labels_T)} frames")
    return features_TD, labels_T


def _mean_and_deviation(sequences: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every feature over all frames, summed in float64. A feature that never changes is left at 0."""
    num_frames = sum(len(sequence) for sequence in sequences)
    mean_D = sum((sequence.double().sum(0) for sequence in sequences), torch.zeros(NUM_FEATURES).double()) / num_frames
    squares_D = sum(((sequence - mean_D).square().sum(0) for sequence in sequences), torch.zeros(NUM_FEATURES).double())
    deviation_D = (squares_D / num_frames).sqrt()
    return mean_D.float(), torch.where(deviation_D > 0, deviation_D, 1.0).float()


def _counts(utterances: list[Utterance], labels_N: Tensor) -> str:
    """What a split holds, in words."""
    num_speakers = len({utterance.speaker for utterance in utterances})
    num_unlabelled = int((labels_N == NO_LABEL).sum())
    return f"{num_speakers} speakers, {len(utterances)} utterances, {len(labels_N)} frames, {num_unlabelled} of them without a label"
