"""What lies at a mirror's URL, and a fresh host's run directory made from it.

    URL/config.json  environment.json  metrics.jsonl  events.jsonl  evaluations.jsonl
    URL/checkpoints/step_00001000/state.json  core.safetensors  ...  manifest.json

1. A checkpoint there is complete if and only if its manifest is there (mirror.py writes it last).
2. `fetch_newer` looks whether the newest one is of this experiment, else the run is refused. Where it is newer than those of the run
   directory it is copied here, the logs first, and the usual resume takes it.
3. One that is damaged there loses its manifest, `manifest.damaged.json` from then on, and the one before it is taken.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from lm1b.errors import UserError, describe_os_error
from lm1b.files import LARGEST_JSON_BYTES, atomic_file, flush_folder, megabytes, needing_space, seal
from lm1b.remote import Store
from lm1b.remote_errors import DamagedInStore, StoreError, WrongBytes
from lm1b.training.checkpoints.checkpoint import (
    MANIFEST,
    STATE,
    Checkpoint,
    DamagedCheckpoint,
    checkpoint_folder,
    list_checkpoints,
    step_of,
)
from lm1b.training.run_folder import RunFolder

T = TypeVar("T")
DAMAGED = "manifest.damaged.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class MirroredRun:
    """A run's copy in a store. Raises StoreError, UserError where the URL cannot be used at all."""

    def __init__(self, directory: Path, url: str) -> None:
        """directory: the run's own, here."""
        self.directory, self.store = directory, Store(url)
        self.url = self.store.url

    def steps(self) -> list[int]:
        """Steps of the checkpoints there that have their manifest, rising."""
        return [step for step in self.folders() if MANIFEST in self.store.list(place_of(step))]

    def folders(self) -> list[int]:
        """Steps of all checkpoints there, complete or not, rising."""
        names = self.store.list(RunFolder("").checkpoints.name)
        return sorted(step for name in names if (step := step_of(name)) is not None)

    def fetch_newer(self, accept: Callable[[dict[str, Any]], object], say: Callable[[str], object]) -> int | None:
        """Copy the newest checkpoint here that is newer than all in the run directory -> its step, None where there is none.

        accept: is given the newest one's state, whether or not it is newer, before anything large is copied or anything there is
        written; raises UserError where this run cannot go on from it.
        One that is damaged there is named by `say`, loses its manifest, and the one before it is taken.
        Raises UserError where it is another experiment's, does not fit on the disk, or all are damaged and none is here, StoreError
        where the store fails.
        """
        here = max((checkpoint.step for checkpoint in list_checkpoints(self.directory, damaged_too=True)), default=-1)
        for step in reversed(self.steps()):
            try:
                if step <= here:
                    with tempfile.TemporaryDirectory() as folder:
                        self._open(step, Path(folder), accept)
                    return None
                num_bytes = self._fetch(step, accept)
            except DamagedCheckpoint as error:
                data = self.store.read_if_there(f"{place_of(step)}/{MANIFEST}")
                if data is not None:
                    self.store.write(f"{place_of(step)}/{DAMAGED}", data)
                    self.store.delete(f"{place_of(step)}/{MANIFEST}")
                say(f"{error}; set aside in the mirror as {DAMAGED}")
                continue
            say(f"fetched the checkpoint of step {step} ({megabytes(num_bytes)}) from {self.url}")
            return step
        if here < 0:
            self._refuse_to_start_anew()
        return None

    def _refuse_to_start_anew(self) -> None:
        """Raise UserError where all that was there is damaged: a start from the beginning would write over the logs."""
        damaged = [checkpoint_folder(Path(), step).name for step in self.folders() if DAMAGED in self.store.list(place_of(step))]
        if damaged:
            raise UserError(
                f"{self.url}: every checkpoint there is damaged ({', '.join(damaged)}); put a sound copy there to go on, or remove these "
                "folders or choose another run.mirror to start from the beginning"
            )

    def _open(self, step: int, folder: Path, accept: Callable[[dict[str, Any]], object]) -> dict[str, dict[str, Any]]:
        """Copy one checkpoint's manifest and state, both verified and the state accepted -> its files: bytes and SHA-256 by name."""
        copy = Checkpoint(step, folder)
        (folder / MANIFEST).write_bytes(self._get(step, lambda place: self.store.read(place, check=_check_seal), MANIFEST))
        files = self._naming(step, folder, copy.manifest)
        if not all(_NAME.fullmatch(name) for name in files):
            raise DamagedCheckpoint(f"{self.store.place(place_of(step))}/{MANIFEST}: names files that are no checkpoint's")
        entry = files.get(STATE)
        if entry is not None and entry["bytes"] <= LARGEST_JSON_BYTES:
            self._get(step, lambda place: self.store.get(place, folder / STATE, entry["bytes"], entry["sha256"]), STATE)
        self._accept(self._naming(step, folder, copy.state), accept)
        return files

    def _fetch(self, step: int, accept: Callable[[dict[str, Any]], object]) -> int:
        """Copy one checkpoint here, verified, and the logs before it -> its bytes. Raises DamagedCheckpoint where it is not as written."""
        final = checkpoint_folder(self.directory, step)
        final.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{final.name}.", suffix=".partial", dir=final.parent))
        try:
            files = self._open(step, folder, accept)
            num_bytes = sum(entry["bytes"] for entry in files.values())
            with needing_space(folder, num_bytes):
                for name in sorted(files.keys() - {STATE}):
                    entry = files[name]
                    self._get(step, lambda place: self.store.get(place, folder / name, entry["bytes"], entry["sha256"]), name)  # noqa: B023
            for path in folder.iterdir():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
            flush_folder(folder)
            os.chmod(folder, 0o755)
            self._fetch_logs()  # before: where the checkpoint is here, nobody looks for them again
            os.replace(folder, final)
            flush_folder(final.parent)
            return num_bytes
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _get(self, step: int, get: Callable[[str], T], name: str) -> T:
        """Get one file of a checkpoint by its place in the store. Raises DamagedCheckpoint where it is missing or wrong each time."""
        place = f"{place_of(step)}/{name}"
        try:
            return get(place)
        except DamagedInStore as error:
            raise DamagedCheckpoint(describe_os_error(error)) from None
        except StoreError:
            if name not in self.store.list(place_of(step)):
                raise DamagedCheckpoint(f"{self.store.place(place)}: missing from the checkpoint") from None
            raise

    def _accept(self, state: dict[str, Any], accept: Callable[[dict[str, Any]], object]) -> None:
        try:
            accept(state)
        except UserError as error:
            raise UserError(f"run.mirror={self.url}: {error}") from None

    def _naming(self, step: int, folder: Path, look: Callable[[], Any]) -> Any:
        """Look at a copied checkpoint; what is said of it names the mirror."""
        try:
            return look()
        except UserError as error:
            raise type(error)(str(error).replace(str(folder), self.store.place(place_of(step)))) from None

    def _fetch_logs(self) -> None:
        """The logs of the run, as far as they are longer than those that are here."""
        for path in RunFolder(self.directory).logs():
            data = self.store.read_if_there(path.name, None)
            if data is not None and (not path.exists() or path.stat().st_size < len(data)):
                with atomic_file(path) as file:
                    file.write(data)


def _check_seal(data: bytes) -> None:
    """Raise WrongBytes for what is no sealed JSON."""
    try:
        value = json.loads(data)
        sound = isinstance(value, dict) and seal(value) == value
    except (ValueError, RecursionError):
        sound = False
    if not sound:
        raise WrongBytes("its seal is not that of the rest")


def place_of(step: int) -> str:
    """A checkpoint's folder in the mirror."""
    return checkpoint_folder(Path(), step).as_posix()
