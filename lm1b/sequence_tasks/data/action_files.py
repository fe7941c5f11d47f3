"""Reading recordings of actions: a folder an action, in one of two layouts.

    ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.npy         UCF-101: float features [T, D] of a clip's frames. The group (g08) is taken
                                                        for the person: clips of one group share people and scene.
    Walk/Accelerometer-2011-04-11-11-41-57-walk-f1.txt  Wrist accelerometer (Bruno 2013): a line of three integers from 0 to 63 every
                                                        1/32 s, acceleration from -1.5 g to 1.5 g along x, y, z. f1 is the person.

Two samples of the accelerometer in a row are averaged into one step, 16 a second. Three of four recordings then fit whole into 256
steps, against one of five at 32 a second; an LSTM told the actions apart about as well (dev error 38 % against 36 % after 1,500
updates, one seed) in 0.4 of the time. UCF-101's features are taken as they are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from lm1b.errors import UserError

MIN_STEPS = 2
LARGEST_CODE = 63  # of the accelerometer's 6 bits
SAMPLES_A_STEP = 2
GROUP = re.compile(r"_(g\d+)_c\d+$")
PERSON = re.compile(r"-([a-z]\d+)$")


@dataclass(frozen=True)
class Recording:
    """One action by one person. x_TD: float32 [T, D]."""

    action: str
    person: str
    x_TD: Tensor


def read_recordings(folder: Path) -> tuple[str, list[Recording]]:
    """Layout (`UCF-101 features` or `wrist accelerometer`) and all recordings, in order of action and file name.

    Folders named `..._MODEL` are left out: the accelerometer's authors put copies of recordings there. Files of other kinds are not
    looked at. Raises UserError for a folder without recordings, and by name for any that cannot be used.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: expected one that holds a folder an action")
    actions = [child for child in sorted(folder.iterdir()) if child.is_dir() and not child.name.lower().endswith("_model")]
    features = [path for action in actions for path in sorted(action.glob("*.npy"))]
    texts = [path for action in actions for path in sorted(action.glob("*.txt"))]
    if features and texts:
        raise UserError(f"{folder} holds both features ({features[0]}) and text files ({texts[0]}): expected one kind")
    if features:
        recordings = [Recording(path.parent.name, _named(path, GROUP, "_g08_c01"), _read_features(path)) for path in features]
        _check_widths(features, recordings)
        return "UCF-101 features", recordings
    if texts:
        return "wrist accelerometer", [
            Recording(path.parent.name, _named(path, PERSON, "-f1"), _read_accelerometer(path)) for path in texts
        ]
    raise UserError(f"{folder} holds no recordings: expected a folder an action, each with .npy or .txt files")


def _named(path: Path, pattern: re.Pattern[str], example: str) -> str:
    """The person that the file's name ends with."""
    found = pattern.search(path.stem.lower())
    if not found:
        raise UserError(f"{path} does not say whose recording it is: expected a name that ends as in `{example}{path.suffix}`")
    return found[1]


def _read_features(path: Path) -> Tensor:
    """A `.npy` file as float32 [T, D]."""
    try:
        array = open_memmap(path, mode="r")  # takes no pickles, and no file that is shorter than its header says
    except Exception as error:  # numpy reads a header as Python, and what damage makes of that fails in many ways
        raise UserError(f"{path} is not a .npy file that can be read ({' '.join(str(error).split())})") from None
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating) or array.shape[1] == 0:
        raise UserError(f"{path} holds {array.dtype} {list(array.shape)}, expected floats [T, D]: a feature vector a step")
    if len(array) < MIN_STEPS:
        raise UserError(f"{path} holds {len(array)} steps, expected {MIN_STEPS} or more")
    if not np.isfinite(array).all():
        raise UserError(f"{path} holds numbers that are not finite")
    return torch.from_numpy(array.astype(np.float32))


def _check_widths(paths: list[Path], recordings: list[Recording]) -> None:
    """Every file must be as wide as most are."""
    widths = [recording.x_TD.shape[1] for recording in recordings]
    usual = max(set(widths), key=widths.count)
    for path, width in zip(paths, widths, strict=True):
        if width != usual:
            raise UserError(f"{path} holds features of width {width}, but {paths[widths.index(usual)]} and most others are {usual} wide")


def _read_accelerometer(path: Path) -> Tensor:
    """A text file as float32 [T, 3], in g, 16 steps a second."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text ({error})") from None
    codes = []
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 3 or not all(field.isdecimal() and len(field) < 9 and int(field) <= LARGEST_CODE for field in fields):
            raise UserError(f"{path}, line {number}: expected three integers from 0 to {LARGEST_CODE}, found {line[:60]!r}")
        codes.append([int(field) for field in fields])
    num_steps = len(codes) // SAMPLES_A_STEP
    if num_steps < MIN_STEPS:
        raise UserError(f"{path} holds {len(codes)} samples, expected {MIN_STEPS * SAMPLES_A_STEP} or more")
    codes_TS3 = torch.tensor(codes[: num_steps * SAMPLES_A_STEP], dtype=torch.float32).reshape(num_steps, SAMPLES_A_STEP, 3)
    return codes_TS3.mean(1) / LARGEST_CODE * 3.0 - 1.5
