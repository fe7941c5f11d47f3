"""Damage to files that have been written: a flipped bit, a cut, a missing file, two files swapped, a page of zeros.

Each is done to a copy of a checkpoint or of a token directory, and must be found before anything of it is used: the reader
refuses, and its message names the file or the folder.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from lm1b.data.tokens.directory import TokenDirectory
from lm1b.errors import UserError
from lm1b.training.checkpoints.checkpoint import Checkpoint
from parts.fault_rig.compare import check_end
from parts.fault_rig.launches import Failure
from parts.fault_rig.table import Trial
from parts.fault_rig.workplace import EVERY, TrainingRun, Workplace

PAGE = 4096


def flip_bit(file: Path, other: Path, generator: random.Random) -> str:
    """Turn one drawn bit of a file that is not empty. Returns what was done, as all of these do; `other` is only for `swap`."""
    data = bytearray(file.read_bytes())
    place, bit = generator.randrange(len(data)), generator.randrange(8)
    data[place] ^= 1 << bit
    file.write_bytes(data)
    return f"bit {bit} of byte {place} flipped in {file.name}"


def truncate(file: Path, other: Path, generator: random.Random) -> str:
    """Cut a file to a drawn number of bytes."""
    # By two bytes at least: JSON that lacks its last newline still says the same.
    size = generator.randrange(max(1, file.stat().st_size - 1))
    os.truncate(file, size)
    return f"{file.name} cut to {size} bytes"


def delete(file: Path, other: Path, generator: random.Random) -> str:
    """Remove a file."""
    file.unlink()
    return f"{file.name} deleted"


def swap(file: Path, other: Path, generator: random.Random) -> str:
    """Let two files have each other's content."""
    first, second = file.read_bytes(), other.read_bytes()
    file.write_bytes(second)
    other.write_bytes(first)
    return f"{file.name} and {other.name} swapped"


def zero_page(file: Path, other: Path, generator: random.Random) -> str:
    """Overwrite one drawn page with zeros."""
    data = bytearray(file.read_bytes())
    start = generator.randrange(-(-len(data) // PAGE)) * PAGE
    length = len(data[start : start + PAGE])
    data[start : start + length] = bytes(length)
    file.write_bytes(data)
    return f"bytes {start} to {start + length} of {file.name} zeroed"


KINDS: tuple[Callable[[Path, Path, random.Random], str], ...] = (flip_bit, truncate, delete, swap, zero_page)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of ours in a folder (not locks and marks, whose names begin with a dot)."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")}


def spoil(folder: Path, kind: Callable[[Path, Path, random.Random], str], generator: random.Random) -> str:
    """Damage one file of a folder, so that what is there is not what was. Returns what was done."""
    before = contents(folder)
    while True:
        name, other = generator.sample([name for name, data in before.items() if data], 2)
        done = kind(folder / name, folder / other, generator)
        if contents(folder) != before:  # a page may have held zeros
            return done


def read_checkpoint(folder: Path) -> None:
    """What a reader does before it uses a checkpoint. Raises UserError."""
    checkpoint = Checkpoint(int(folder.name.removeprefix("step_")), folder)
    checkpoint.verify()
    checkpoint.state()


def read_tokens(folder: Path) -> None:
    """What a reader does before it uses tokens. Raises UserError."""
    TokenDirectory.open(folder).verify()


def is_refused(folder: Path, read: Callable[[Path], None]) -> str | None:
    """None where the reader refuses and names the place, else what it did instead."""
    try:
        read(folder)
    except UserError as error:
        return None if str(folder) in str(error) or folder.name in str(error) else f"refused without a name: {error}"
    except Exception as error:  # whatever it is: not the clean answer that a user should get
        return f"{type(error).__name__}: {error}"
    return "not found"


def damage_files(place: Workplace, generator: random.Random, number: int, steps: int, on_trial: Callable[[Trial], None]) -> list[Trial]:
    """Damage copies of a checkpoint and of the tokens in turn, every kind as often."""
    if not number:
        return []
    checkpoint = place.undisturbed("fp32", steps).final(steps)
    trials = []
    for index in range(number):
        source, read = (checkpoint, read_checkpoint) if index % 2 == 0 else (place.tokens(), read_tokens)
        copy = place.folder / "damaged" / source.name
        shutil.copytree(source, copy)
        kind = KINDS[index // 2 % len(KINDS)]
        trial = Trial("checkpoint file damaged" if index % 2 == 0 else "token file damaged", spoil(copy, kind, generator))
        if problem := is_refused(copy, read):
            trial.fail(f"{trial.detail}: {problem}")
        shutil.rmtree(copy.parent)
        trials.append(trial)
        on_trial(trial)
    return trials


def damage_newest(place: Workplace, generator: random.Random, number: int, steps: int, on_trial: Callable[[Trial], None]) -> list[Trial]:
    """Damage a run's newest checkpoint and start the training: it must take the one before, and end with the same bytes."""
    trials = []
    for index in range(number):
        expected = place.undisturbed("fp32", steps)
        name = place.new_name("damaged")
        run = place.training(name, "fp32", steps)
        shutil.copytree(expected.directory, run.directory)
        done = spoil(run.final(steps), KINDS[index % len(KINDS)], generator)
        trial = Trial("newest checkpoint damaged, training started", done, log=str(place.logs / f"{name}.log"))
        try:
            trial.steps_lost, trial.wrong_bytes = finish_damaged(place, run, expected, steps)
        except Failure as failure:
            trial.fail(f"{done}: {failure}")
        trials.append(trial)
        on_trial(trial)
    return trials


def finish_damaged(place: Workplace, run: TrainingRun, expected: TrainingRun, steps: int) -> tuple[int, int]:
    """-> (steps done again, bytes wrong). Raises Failure where it did not go on from the checkpoint before."""
    starts = len(run.starts())
    place.finish(run, place.logs / f"{run.directory.name}.log")
    if len(run.starts()) == starts:
        raise Failure("events.jsonl does not say that the training went on")
    lost = steps - run.starts()[-1]
    if lost != EVERY:
        raise Failure(f"it went on at step {run.starts()[-1]}, expected {steps - EVERY}")
    return lost, check_end(run, expected, steps)
