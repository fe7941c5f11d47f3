"""Disks that are full or read-only, folders left over, and numbers that are not finite."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import subprocess
from collections.abc import Callable, Generator
from pathlib import Path

from lm1b.files import read_json
from lm1b.training.run_folder import RunFolder
from lm1b.training.run_state import newest_step
from parts.fault_rig.compare import check_end, check_tokens, wrong_bytes
from parts.fault_rig.launches import PREPROCESS, TRAIN, Failure, Launch
from parts.fault_rig.points import Order
from parts.fault_rig.table import Trial
from parts.fault_rig.workplace import EVERY, TrainingRun, Workplace

PLENTY = "64m"
DISK_FULL_SAVING, DISK_FULL_PREPROCESSING = "disk full while saving", "disk full while preprocessing"
READ_ONLY_RUN, READ_ONLY_TOKENS = "read-only run folder", "read-only token folder while training"
LEFT_OVER, NOT_FINITE = "left-over .partial folders", "NaN on one rank"


class SmallDisk:
    """A file system in memory of a given size, to be mounted by root alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def set(self, options: str) -> None:
        """Change its size or make it read-only."""
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.folder)], check=True, capture_output=True)


@contextlib.contextmanager
def small_disk(folder: Path, num_bytes: int) -> Generator[SmallDisk]:
    """A disk of num_bytes at `folder`. Raises OSError or CalledProcessError where mounting is not permitted."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)], check=True, capture_output=True, text=True)
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, capture_output=True)


def why_no_disk(folder: Path) -> str | None:
    """Why small disks cannot be mounted here, None where they can."""
    try:
        with small_disk(folder, 1 << 20):
            return None
    except FileNotFoundError as error:
        return f"no mount command ({error.filename})"
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        return f"mount is not permitted ({' '.join(str(said).split())})"


def check_refusal(launch: Launch, folder: Path) -> None:
    """The launch must end by itself with status 2 and one line that names the folder. Raises Failure."""
    status = launch.finish()
    errors = [line for line in launch.said() if line.startswith("lm1b: error:")]
    if status != 2 or len(errors) != 1 or "Traceback" in launch.output():
        raise Failure(f"expected one line and status 2, found {len(errors)} and status {status}: {launch.last_words()}")
    if str(folder) not in errors[0]:
        raise Failure(f"the message does not name {folder}: {errors[0]}")


def size_on_disk(folder: Path) -> int:
    """Bytes of whole pages that a folder takes."""
    return sum(-(-path.stat().st_size // 4096) * 4096 + 4096 for path in folder.rglob("*") if path.is_file())


def disk_trials(place: Workplace, steps: int, on_trial: Callable[[Trial], None]) -> list[Trial]:
    """Run folder and token folder on a disk that is read-only, then too small, then large enough."""
    expected = place.undisturbed("fp32", steps)
    disk_folder = place.folder / "disk"
    if reason := why_no_disk(disk_folder):
        trials = [Trial(name, skipped=reason) for name in (READ_ONLY_RUN, DISK_FULL_SAVING, DISK_FULL_PREPROCESSING, READ_ONLY_TOKENS)]
        for trial in trials:
            on_trial(trial)
        return trials
    trials = [*_on_small_disk(place, expected, steps, disk_folder.with_name("disk_run"))]
    trials.append(_preprocess_on_small_disk(place, disk_folder.with_name("disk_tokens")))
    trials.append(_read_only_tokens(place, expected, steps, disk_folder.with_name("disk_read_only")))
    for trial in trials:
        on_trial(trial)
    return trials


def _on_small_disk(place: Workplace, expected: TrainingRun, steps: int, folder: Path) -> list[Trial]:
    """Start on a read-only disk; then with room for two checkpoints and a half; then with plenty: the same bytes at the end."""
    log = place.logs / "disk_full.log"
    read_only, full = Trial(READ_ONLY_RUN, log=str(log)), Trial(DISK_FULL_SAVING, log=str(log))
    logs_size = size_on_disk(expected.directory) - size_on_disk(RunFolder(expected.directory).checkpoints)
    with small_disk(folder, round(2.5 * size_on_disk(expected.final(steps))) + logs_size) as disk:
        run = place.training("on_small_disk", "fp32", steps, folder / "run")
        try:
            disk.set("ro")
            check_refusal(place.start(run, place.logs / "disk_read_only.log"), folder)
        except Failure as failure:
            read_only.fail(str(failure), place.logs / "disk_read_only.log")
        try:
            disk.set("rw")
            check_refusal(place.start(run, log), folder)
            last, saved = run.last_step(), newest_step(run.directory)
            if saved < 0:
                raise Failure("no checkpoint was left")
            disk.set(f"size={PLENTY}")
            place.finish(run, log)
            failed = last // EVERY * EVERY  # the save that found the disk full; steps went on beside it
            full.steps_lost, full.steps_while_saving = failed - run.starts()[-1], last - failed
            if full.steps_lost > EVERY or run.starts()[-1] != saved:
                raise Failure(f"it went on at step {run.starts()[-1]}; step {last} had been done and {saved} been saved")
            read_only.wrong_bytes = full.wrong_bytes = check_end(run, expected, steps)
        except Failure as failure:
            full.fail(str(failure))
    return [read_only, full]


def _preprocess_on_small_disk(place: Workplace, folder: Path) -> Trial:
    log = place.logs / "disk_preprocessing.log"
    trial = Trial(DISK_FULL_PREPROCESSING, log=str(log))
    with small_disk(folder, size_on_disk(place.tokens()) * 2 // 3) as disk:
        config = place.write_config("tokens_on_small_disk", "fp32", 1, tokens={"directory": str(folder / "tokens")})
        try:
            check_refusal(Launch(PREPROCESS, ["--config", str(config)], log), folder)
            disk.set(f"size={PLENTY}")
            place.prepare(config, log)
            check_tokens(place, folder / "tokens", [trial])
        except Failure as failure:
            trial.fail(str(failure))
    return trial


def _read_only_tokens(place: Workplace, expected: TrainingRun, steps: int, folder: Path) -> Trial:
    """Training only reads tokens: where it may not write, it must train all the same."""
    log = place.logs / "read_only_tokens.log"
    trial = Trial(READ_ONLY_TOKENS, log=str(log))
    with small_disk(folder, 8 << 20) as disk:
        shutil.copytree(place.tokens(), folder / "tokens")
        disk.set("ro")
        run = place.training("read_only_tokens", "fp32", steps)
        settings = json.loads(run.config.read_text())
        settings["tokens"]["directory"] = str(folder / "tokens")
        run.config.write_text(json.dumps(settings))
        _train_to_the_end(place, trial, run, expected, log, steps)
    return trial


def _train_to_the_end(place: Workplace, trial: Trial, run: TrainingRun, expected: TrainingRun, log: Path, steps: int) -> None:
    """As if nothing had happened, and compare."""
    try:
        place.finish(run, log)
        trial.wrong_bytes = check_end(run, expected, steps)
    except Failure as failure:
        trial.fail(str(failure))


def left_over_trial(place: Workplace, steps: int) -> Trial:
    """Half-written folders of the next two checkpoints and of an old one lie there from the first step on."""
    expected = place.undisturbed("fp32", steps)
    name = place.new_name("left_over")
    run, log = place.training(name, "fp32", steps), place.logs / f"{name}.log"
    trial = Trial(LEFT_OVER, log=str(log))
    for step in (EVERY, 2 * EVERY, 1000 * EVERY):
        folder = RunFolder(run.directory).checkpoints / f"step_{step:08d}.partial"
        shutil.copytree(expected.final(steps), folder)
        (folder / "core.safetensors").write_bytes(b"half")
        (folder / "input_table.00007-of-00009.safetensors").write_bytes(b"of another run")
    _train_to_the_end(place, trial, run, expected, log, steps)
    return trial


def not_finite_trial(place: Workplace, generator: random.Random, steps: int) -> Trial:
    """The loss of one rank is NaN at one step: one update is skipped everywhere, as if it had been NaN on all of them."""
    call, victim = generator.randint(3, steps - 2), generator.randrange(place.ranks)
    trial = Trial(NOT_FINITE, f"rank {victim}, step {call}", log=str(place.logs / "not_finite_one.log"))
    runs = {}
    try:
        for who in ("one", "all"):
            run = runs[who] = place.training(f"not_finite_{who}", "fp32", steps)
            mark = place.folder / f"not_finite_{who}.mark"
            order = Order(TRAIN, "backward", str(mark), f"rank {victim}" if who == "one" else "any", call, action="nan")
            launch = place.start(run, place.logs / f"not_finite_{who}.log", order)
            launch.finish_well()
            if not mark.exists():
                raise Failure("the fault did not strike")
            skipped = read_json(run.final(steps) / "state.json")["counts"]["skipped"]
            if skipped != 1:
                raise Failure(f"{skipped} updates were skipped, expected 1")
        trial.wrong_bytes = wrong_bytes(runs["one"].final(steps), runs["all"].final(steps))
    except Failure as failure:
        trial.fail(str(failure))
    return trial
