"""TIMIT's phones: its 61 labels, their folding to 39, and `.phn` files, which say what is spoken from which sample to which.

    0 7812 h#          silence at the start of the utterance
    7812 9507 sh
    9507 10610 iy

Folding (Lee and Hon 1989): phones that they count as one are one label; closures, pauses and silence are all `sil`; the glottal
stop `q` is dropped: what it covers has no label, so it is neither trained nor counted.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lm1b.errors import UserError
from lm1b.sequence_tasks.data.task import NO_LABEL

_NAMES = (
    "iy ih eh ey ae aa aw ay ah ao oy ow uh uw ux er ax ix axr ax-h "  # vowels
    "b d g p t k dx q jh ch s sh z zh f th v dh "  # stops, affricates, fricatives
    "m n ng em en eng nx l r w y hh hv el "  # nasals, semivowels, glides
    "bcl dcl gcl pcl tcl kcl pau epi h#"  # closures, pauses, silence
)
PHONES = tuple(_NAMES.split())
DROPPED = "q"
FOLDED_INTO = {
    "ao": "aa", "ax": "ah", "ax-h": "ah", "axr": "er", "hv": "hh", "ix": "ih", "el": "l", "em": "m", "en": "n", "nx": "n",
    "eng": "ng", "zh": "sh", "ux": "uw", "bcl": "sil", "dcl": "sil", "gcl": "sil", "pcl": "sil", "tcl": "sil", "kcl": "sil",
    "pau": "sil", "epi": "sil", "h#": "sil",
}  # fmt: skip
FOLDED_PHONES = tuple(dict.fromkeys(FOLDED_INTO.get(phone, phone) for phone in PHONES if phone != DROPPED))

MAX_SAMPLES_PAST_END = 160  # 10 ms: a last phone of the sample ends 1 sample after its audio; much more means that the audio was cut off


def label_numbers(num_labels: int) -> dict[str, int]:
    """TIMIT's phone -> number of its label, for 61 labels or 39; NO_LABEL for `q` where they are folded."""
    if num_labels == len(PHONES):
        return {phone: number for number, phone in enumerate(PHONES)}
    assert num_labels == len(FOLDED_PHONES), num_labels
    return {phone: NO_LABEL if phone == DROPPED else FOLDED_PHONES.index(FOLDED_INTO.get(phone, phone)) for phone in PHONES}


def read_phn(path: Path, num_samples: int) -> list[tuple[int, int, str]]:
    """A `.phn` file's phones: first sample, sample after the last, label; each begins where the one before ends.

    num_samples: length of the audio. Raises UserError for a file that is no such list, has gaps, or goes past the audio's end.
    """
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a list of phones ({error})") from None
    phones: list[tuple[int, int, str]] = []
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 3 or not all(field.isdecimal() and len(field) < 12 for field in fields[:2]):
            raise UserError(f"{path}, line {number}: expected `first_sample end_sample phone`, found {line[:60]!r}")
        start, end, phone = int(fields[0]), int(fields[1]), fields[2].lower()
        if phone not in PHONES:
            raise UserError(f"{path}, line {number}: {phone!r} is none of TIMIT's 61 phones")
        if end <= start:
            raise UserError(f"{path}, line {number}: a phone from sample {start} to {end} has no length")
        expected_start = phones[-1][1] if phones else 0
        if start != expected_start:
            raise UserError(
                f"{path}, line {number}: starts at sample {start}, expected {expected_start}: phones must leave no gap and not overlap"
            )
        phones.append((start, end, phone))
    if not phones:
        raise UserError(f"{path} lists no phones")
    if phones[-1][1] > num_samples + MAX_SAMPLES_PAST_END:
        raise UserError(f"{path} goes on to sample {phones[-1][1]}, but its audio has {num_samples}: is the wav cut off?")
    return phones


def labels_at(phones: list[tuple[int, int, str]], samples_T: np.ndarray, numbers: dict[str, int]) -> Tensor:
    """The label of the phone that holds each of these samples: int64 [T]; NO_LABEL after the last phone and where `q` is dropped."""
    ends = np.array([end for _, end, _ in phones])
    labels = np.array([*(numbers[phone] for _, _, phone in phones), NO_LABEL])
    return torch.from_numpy(labels[np.searchsorted(ends, samples_T, side="right")])
