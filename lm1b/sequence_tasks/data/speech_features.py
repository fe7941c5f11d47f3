"""Speech as a recurrent network sees it: 120 numbers every 10 ms (Le 2015: "filter banks" of 40, with deltas and delta-deltas).

1. soundfile reads the audio (RIFF wav or NIST SPHERE): one channel, 16 kHz.
2. kaldi-native-fbank computes 40 log-mel energies of windows of 25 ms, 10 ms apart: Kaldi's arithmetic and its defaults
   (pre-emphasis 0.97, Povey's window, 20 Hz to 8 kHz), without dither, so that the same file always gives the same numbers.
3. The same library appends deltas and delta-deltas (regression over 2 frames on either side; the edge frames are repeated).

Window i covers samples 160 i to 160 i + 399. Both libraries come with the optional extra `phones`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from lm1b.errors import UserError

SAMPLE_RATE = 16_000
FRAME_SHIFT = 160  # samples: 10 ms
WINDOW = 400  # samples: 25 ms
NUM_MELS = 40
NUM_FEATURES = 3 * NUM_MELS
LIBRARIES = ("soundfile", "kaldi-native-fbank")


def load_library(name: str) -> ModuleType:
    """One of LIBRARIES. Raises UserError that names the extra where it is missing."""
    try:
        return importlib.import_module(name.replace("-", "_"))
    except (ImportError, OSError) as error:  # OSError: soundfile without the C library that it wraps
        raise UserError(f"speech needs the library {name} ({error}): install it with `pip install -e '.[phones]'`") from None


def library_versions() -> str:
    """Names and versions of LIBRARIES, for the record. Both must be installed: see `load_library`."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES)


def read_audio(path: Path) -> np.ndarray:
    """Samples of an audio file, float32 [N], in units of 16-bit integers (-32768 to 32767), which is what Kaldi expects.

    Raises UserError for a file that is not audio, not 16 kHz, not mono, or shorter than one window.
    """
    soundfile = load_library("soundfile")
    try:
        with path.open("rb") as file:
            samples, sample_rate = soundfile.read(file, dtype="int16", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        reason = str(getattr(error, "error_string", error))
        raise UserError(f"{path} is not audio that can be read ({reason.rstrip('.')}): expected a RIFF wav or NIST SPHERE file") from None
    if sample_rate != SAMPLE_RATE:
        raise UserError(f"{path} has {sample_rate} samples a second, expected {SAMPLE_RATE} (16 kHz)")
    if samples.shape[1] != 1:
        raise UserError(f"{path} has {samples.shape[1]} channels, expected 1 (mono)")
    if len(samples) < WINDOW:
        raise UserError(f"{path} holds {len(samples)} samples, expected {WINDOW} (25 ms) or more: is it cut off?")
    return samples[:, 0].astype(np.float32)


def features_of(samples: np.ndarray) -> Tensor:
    """Log-mels, deltas, delta-deltas of the audio: float32 [N] -> float32 [T, 120], T = 1 + (N - 400) // 160."""
    fbank = load_library("kaldi-native-fbank")
    options = fbank.FbankOptions()
    options.frame_opts.samp_freq = SAMPLE_RATE
    options.frame_opts.frame_shift_ms = 1000 * FRAME_SHIFT / SAMPLE_RATE
    options.frame_opts.frame_length_ms = 1000 * WINDOW / SAMPLE_RATE
    options.frame_opts.snip_edges = True  # no window reaches over the audio's ends
    options.frame_opts.dither = 0.0
    options.mel_opts.num_bins = NUM_MELS
    extractor = fbank.OnlineFbank(options)
    extractor.accept_waveform(SAMPLE_RATE, samples)
    extractor.input_finished()
    log_mels_TM = np.stack([extractor.get_frame(number) for number in range(extractor.num_frames_ready)])
    return torch.from_numpy(fbank.compute_deltas(fbank.DeltaOptions(order=2, window=2), log_mels_TM))


def frame_centres(num_frames: int) -> np.ndarray:
    """The sample in the middle of each window, int64 [T]."""
    return np.arange(num_frames) * FRAME_SHIFT + WINDOW // 2
