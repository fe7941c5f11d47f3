"""What a disturbed run left, beside what an undisturbed one did: is it sound, and how many bytes differ?"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from lm1b.data.tokens.directory import TokenDirectory
from lm1b.errors import UserError
from lm1b.files import read_json, read_json_lines
from lm1b.training.checkpoints.checkpoint import Checkpoint
from lm1b.training.run_folder import RunFolder
from parts.fault_rig.launches import Failure
from parts.fault_rig.table import Trial
from parts.fault_rig.workplace import TrainingRun, Workplace

# What may differ between two runs of the same config: when, how long, where, and seals over these.
NOT_COMPARED = ("elapsed_seconds", "directory", "seal", "seconds", "finished_at", "look", "started_at", "saved_at")
SAME_LOG = ("step", "updates", "words", "nats_per_word", "gradient_norm", "skipped")


def stripped(value: Any) -> Any:
    """A JSON value without what is not compared."""
    if isinstance(value, dict):
        return {key: stripped(item) for key, item in value.items() if key not in NOT_COMPARED}
    return [stripped(item) for item in value] if isinstance(value, list) else value


def _differing(found: bytes, expected: bytes) -> int:
    length = min(len(found), len(expected))
    pair = (np.frombuffer(data, dtype=np.uint8, count=length) for data in (found, expected))
    return int(np.count_nonzero(np.not_equal(*pair))) + abs(len(found) - len(expected))


def _content(path: Path) -> bytes:
    if not path.is_file():
        return b""
    return json.dumps(stripped(read_json(path)), sort_keys=True).encode() if path.suffix == ".json" else path.read_bytes()


def wrong_bytes(found: Path, expected: Path, leave_out: tuple[str, ...] = ("manifest.json",)) -> int:
    """Bytes that differ between the files of two folders; JSON without times and places. A missing file counts whole.

    leave_out: names. A checkpoint's manifest holds hashes of what is compared here.
    """
    names = {path.name for folder in (found, expected) for path in folder.iterdir() if path.is_file()}
    names = {name for name in names if name not in leave_out and not name.startswith(".")}
    if not names:
        raise ValueError(f"{found}, {expected}: nothing to compare")
    return sum(_differing(_content(found / name), _content(expected / name)) for name in names)


def wrong_lines(found: Path, expected: Path) -> int:
    """Lines of metrics.jsonl that are missing, doubled or other than the undisturbed run's."""

    def lines(path: Path) -> Counter[str]:
        return Counter(json.dumps([line.get(key) for key in SAME_LOG]) for line in read_json_lines(path))

    there, wanted = lines(found), lines(expected)
    return ((there - wanted) + (wanted - there)).total()


def wrong_results(found: Path, expected: Path) -> int:
    """Bytes that differ between two evaluations.jsonl, times left out, sorted by step and weights."""
    sides = []
    for path in (found, expected):
        lines = sorted(read_json_lines(path), key=lambda line: (line["step"], line["weights"]))
        sides.append("\n".join(json.dumps(stripped(line), sort_keys=True) for line in lines).encode())
    return _differing(*sides)


def check_end(run: TrainingRun, expected: TrainingRun, steps: int) -> int:
    """Bytes of the final checkpoint that are not the undisturbed run's. Raises Failure where something else is not as it should be."""
    try:
        Checkpoint(steps, run.final(steps)).verify()
    except UserError as error:
        raise Failure(f"the final checkpoint is not sound: {error}") from None
    if run.being_saved() is not None:
        raise Failure("a .partial folder was left over at the end")
    if lines := wrong_lines(RunFolder(run.directory).metrics, RunFolder(expected.directory).metrics):
        raise Failure(f"{lines} lines of metrics.jsonl are not those of the undisturbed run")
    return wrong_bytes(run.final(steps), expected.final(steps))


def check_tokens(place: Workplace, tokens: Path, trials: list[Trial]) -> None:
    """Compare a token directory with the undisturbed one, file by file; nothing else may lie there."""
    expected = place.tokens()
    try:
        TokenDirectory.open(tokens).verify()
        if left_over := {path.name for path in tokens.iterdir()} - {path.name for path in expected.iterdir()}:
            raise Failure(f"left over in the token directory: {', '.join(sorted(left_over))}")
    except (UserError, Failure) as problem:
        for trial in trials:
            trial.fail(str(problem))
    number = wrong_bytes(tokens, expected, leave_out=())
    for trial in trials:
        trial.wrong_bytes = number
