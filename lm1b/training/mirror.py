"""A copy of a run at a URL: committed checkpoints and the logs, written behind the steps; and a fresh host's run directory made from it.

    URL/config.json  environment.json  metrics.jsonl  events.jsonl  evaluations.jsonl
    URL/checkpoints/step_00001000/state.json  core.safetensors  ...  manifest.json

1. Rank 0 has a `Mirror`; its run directory holds every rank's files (a folder that all hosts share, as checkpoints need anyway).
2. A checkpoint is copied by a thread: an old manifest of that name is removed first, then all files are copied, then the manifest. So
   a checkpoint in the mirror is complete if and only if its manifest is there, wherever the copying was cut off.
3. What retention lets go of here is let go of there, manifest first.
4. A store that fails is told in the run's log, once a failure, and tried again with the next checkpoint. It never ends a training.
5. At the start `fetch_newer` looks whether the newest checkpoint there is of this experiment, else the run is refused. Where it is newer
   than those of the run directory it is copied here, the logs first, and the usual resume takes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from lm1b import console
from lm1b.config import Config
from lm1b.errors import UserError, describe_os_error
from lm1b.files import LARGEST_JSON_BYTES, atomic_file, flush_folder, megabytes, needing_space, seal
from lm1b.remote import DamagedInStore, Store, StoreError, WrongBytes
from lm1b.training.checkpoint import Checkpoint, DamagedCheckpoint, checkpoint_folder, list_checkpoints, steps_to_keep
from lm1b.training.run_folder import RunFolder

T = TypeVar("T")
CLOSE_SECONDS = 10.0  # that an end in an error waits for a copy under way
LOG_SECONDS = 60.0  # between two copies of the logs, beside those with every checkpoint
MANIFEST = "manifest.json"
DAMAGED = "manifest.damaged.json"
_FOLDER = re.compile(r"step_(\d{8,})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Mirror:
    """One run's copy, from the first rank. Raises StoreError, UserError where the URL cannot be used at all."""

    def __init__(self, config: Config, url: str):
        self._config, self._directory = config, Path(config.run.directory)
        self._store = Store(url)
        self.url = self._store.url
        self._say: Callable[[str], object] = lambda text: None
        self._wanted, self._stopping = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._logged: dict[str, tuple[int, int]] = {}
        self._copied: dict[int, str] = {}  # step -> SHA-256 of the manifest that is there
        self._busy = threading.Lock()
        self.problem: str | None = None  # why the last attempt did not bring everything there

    # What a fresh host takes from it.

    def steps(self) -> list[int]:
        """Steps of the checkpoints there that have their manifest, rising."""
        return [step for step in self._folders() if MANIFEST in self._store.list(_place(step))]

    def _folders(self) -> list[int]:
        names = self._store.list(RunFolder("").checkpoints.name)
        return sorted(int(match.group(1)) for name in names if (match := _FOLDER.fullmatch(name)))

    def fetch_newer(self, accept: Callable[[dict[str, Any]], object], say: Callable[[str], object]) -> int | None:
        """Copy the newest checkpoint here that is newer than those that are -> its step, None where there is none.

        accept: is given the newest one's state, whether or not it is newer, before anything large is copied or anything there is
        written; raises UserError where this run cannot go on from it.
        One that is damaged there is named by `say`, loses its manifest, and the one before it is taken.
        Raises UserError where it is another experiment's, does not fit on the disk, or all are damaged and none is here, StoreError
        where the store fails.
        """
        here = max((checkpoint.step for checkpoint in list_checkpoints(self._directory, damaged_too=True)), default=-1)
        for step in reversed(self.steps()):
            try:
                if step <= here:
                    with tempfile.TemporaryDirectory() as folder:
                        self._open(step, Path(folder), accept)
                    return None
                num_bytes = self._fetch(step, accept)
            except DamagedCheckpoint as error:
                data = self._store.read_if_there(f"{_place(step)}/{MANIFEST}")
                if data is not None:
                    self._store.write(f"{_place(step)}/{DAMAGED}", data)
                    self._store.delete(f"{_place(step)}/{MANIFEST}")
                say(f"{error}; set aside in the mirror as {DAMAGED}")
                continue
            say(f"fetched the checkpoint of step {step} ({megabytes(num_bytes)}) from {self.url}")
            return step
        if here < 0:
            self._refuse_to_start_anew()
        return None

    def _refuse_to_start_anew(self) -> None:
        """Raise UserError where all that was there is damaged: a start from the beginning would write over the logs."""
        damaged = [checkpoint_folder(Path(), step).name for step in self._folders() if DAMAGED in self._store.list(_place(step))]
        if damaged:
            raise UserError(
                f"{self.url}: every checkpoint there is damaged ({', '.join(damaged)}); put a sound copy there to go on, or remove these "
                "folders or choose another run.mirror to start from the beginning"
            )

    def _open(self, step: int, folder: Path, accept: Callable[[dict[str, Any]], object]) -> dict[str, dict[str, Any]]:
        """Copy one checkpoint's manifest and state, both verified and the state accepted -> its files: bytes and SHA-256 by name."""
        copy = Checkpoint(step, folder)
        (folder / MANIFEST).write_bytes(self._get(step, lambda place: self._store.read(place, check=_check_seal), MANIFEST))
        files = self._naming(step, folder, copy.manifest)
        if not all(_NAME.fullmatch(name) for name in files):
            raise DamagedCheckpoint(f"{self._store.place(_place(step))}/{MANIFEST}: names files that are no checkpoint's")
        entry = files.get("state.json")
        if entry is not None and entry["bytes"] <= LARGEST_JSON_BYTES:
            self._get(step, lambda place: self._store.get(place, folder / "state.json", entry["bytes"], entry["sha256"]), "state.json")
        self._accept(self._naming(step, folder, copy.state), accept)
        return files

    def _fetch(self, step: int, accept: Callable[[dict[str, Any]], object]) -> int:
        """Copy one checkpoint here, verified, and the logs before it -> its bytes. Raises DamagedCheckpoint where it is not as written."""
        final = checkpoint_folder(self._directory, step)
        final.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{final.name}.", suffix=".partial", dir=final.parent))
        try:
            files = self._open(step, folder, accept)
            num_bytes = sum(entry["bytes"] for entry in files.values())
            with needing_space(folder, num_bytes):
                for name in sorted(files.keys() - {"state.json"}):
                    entry = files[name]
                    self._get(step, lambda place: self._store.get(place, folder / name, entry["bytes"], entry["sha256"]), name)  # noqa: B023
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
        place = f"{_place(step)}/{name}"
        try:
            return get(place)
        except DamagedInStore as error:
            raise DamagedCheckpoint(describe_os_error(error)) from None
        except StoreError:
            if name not in self._store.list(_place(step)):
                raise DamagedCheckpoint(f"{self._store.place(place)}: missing from the checkpoint") from None
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
            raise type(error)(str(error).replace(str(folder), self._store.place(_place(step)))) from None

    def _fetch_logs(self) -> None:
        """The logs of the run, as far as they are longer than those that are here."""
        for path in RunFolder(self._directory).logs():
            data = self._store.read_if_there(path.name, None)
            if data is not None and (not path.exists() or path.stat().st_size < len(data)):
                with atomic_file(path) as file:
                    file.write(data)

    # What a training brings there.

    def start(self, say: Callable[[str], object]) -> None:
        """Begin copying behind the steps. say: is told, from a thread, what could not be copied."""
        self._say = say
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Something has been committed or deleted."""
        self._wanted.set()

    def _work(self) -> None:
        while not self._stopping.is_set():
            is_checkpoint = self._wanted.wait(LOG_SECONDS)
            self._wanted.clear()
            if not self._stopping.is_set():
                self.bring(logs_only=not is_checkpoint)

    def bring(self, *, logs_only: bool = False) -> bool:
        """Bring there what is not there yet -> whether all is. A store that fails is told."""
        with self._busy:
            before, self.problem = self.problem, None
            try:
                self._bring_logs()
                if not logs_only:
                    self._bring_checkpoints()
                    self._let_go()
                    self._bring_logs()
            except (UserError, OSError) as error:
                self.problem = describe_os_error(error) if isinstance(error, OSError) else str(error)
            except Exception as error:  # a thread's exception would be lost, and with it the mirror
                self.problem = f"{self.url}: {type(error).__name__}: {error}"
            if self.problem is not None and not (logs_only and before):
                self._say(f"not mirrored: {self.problem}; tried again with the next checkpoint")
            if logs_only and before and not self.problem:
                self.problem = before  # checkpoints are still missing there
            return self.problem is None

    def _bring_checkpoints(self) -> None:
        for checkpoint in reversed(list_checkpoints(self._directory)):  # the newest is of most use
            with contextlib.suppress(FileNotFoundError):  # retention was faster
                data = (checkpoint.path / MANIFEST).read_bytes()
                if self._copied.get(checkpoint.step) != hashlib.sha256(data).hexdigest():
                    self._bring_checkpoint(checkpoint, data)

    def _bring_checkpoint(self, checkpoint: Checkpoint, manifest: bytes) -> None:
        """All files, then the manifest."""
        folder, digest = _place(checkpoint.step), hashlib.sha256(manifest).hexdigest()
        if self._store.read_if_there(f"{folder}/{MANIFEST}") != manifest:
            self._store.delete(f"{folder}/{MANIFEST}")
            try:
                with checkpoint.lease():
                    files = checkpoint.manifest()
                    for name in sorted(files):
                        self._store.put(checkpoint.path / name, f"{folder}/{name}")
            except (UserError, FileNotFoundError) as error:
                if checkpoint.path.exists():
                    raise error if isinstance(error, UserError) else UserError(describe_os_error(error)) from None
                return  # retention was faster
            found = self._store.list(folder)
            for name, entry in files.items():
                if found.get(name) != entry["bytes"]:
                    raise StoreError(self._store.place(f"{folder}/{name}"), f"{found.get(name)} bytes there, {entry['bytes']} were written")
            self._store.write(f"{folder}/{MANIFEST}", manifest)
        self._copied[checkpoint.step] = digest

    def _let_go(self) -> None:
        """Delete what the run's own retention would not keep, the manifest first; and what was never finished."""
        steps, settings = self.steps(), self._config.checkpoints
        best = RunFolder(self._directory).best_step(self._config) if settings.keep_best else None
        kept = steps_to_keep(steps, settings.keep_last, settings.keep_every, best)
        kept |= {checkpoint.step for checkpoint in list_checkpoints(self._directory)}
        unfinished = [step for step in self._folders() if step not in steps and DAMAGED not in self._store.list(_place(step))]
        for step in [step for step in [*steps, *unfinished] if step not in kept]:
            self._store.delete(f"{_place(step)}/{MANIFEST}")
            for name in self._store.list(_place(step)):
                self._store.delete(f"{_place(step)}/{name}")
            self._copied.pop(step, None)

    def _bring_logs(self) -> None:
        """Those that have changed; the JSON lines only grow while a training holds them."""
        for path in RunFolder(self._directory).logs():
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                mark = (status.st_size, 0 if path.suffix == ".jsonl" else status.st_mtime_ns)
                if self._logged.get(path.name) != mark:
                    self._store.write(path.name, path.read_bytes())
                    self._logged[path.name] = mark

    def finish(self) -> None:
        """Wait until everything is there, or is known not to get there; says so."""
        behind = [checkpoint.path.name for checkpoint in list_checkpoints(self._directory) if self._is_new(checkpoint)]
        if behind:
            self._say(f"waiting until {', '.join(behind)} is in {self.url}")
        if self.bring():
            self._say(f"mirrored in {self.url}")
            return
        behind = [checkpoint.path.name for checkpoint in list_checkpoints(self._directory) if self._is_new(checkpoint)]
        self._say(f"NOT in the mirror {self.url}: {', '.join(behind) or 'the newest logs'}; the same command tries again")

    def _is_new(self, checkpoint: Checkpoint) -> bool:
        """Whether a checkpoint is not known to be there."""
        with contextlib.suppress(FileNotFoundError):
            data = (checkpoint.path / MANIFEST).read_bytes()
            return self._copied.get(checkpoint.step) != hashlib.sha256(data).hexdigest()
        return False

    def close(self) -> None:
        """The last lines of the logs, unless the store fails or a copy takes long that nobody waits for; the thread ends.

        Nothing where copying was not begun (a run that was refused has no claim on what is there) or has ended.
        """
        if self._thread is None:
            return
        self._thread = None
        self._stopping.set()
        self._wanted.set()
        if self._busy.acquire(timeout=CLOSE_SECONDS):
            self._busy.release()
            if self.problem is None:
                self.bring(logs_only=True)


def mirror_logs(config: Config) -> None:
    """Bring the logs there once more, after what has been written beside the training. A store that fails is told."""
    if config.run.mirror is not None:
        mirror = Mirror(config, config.run.mirror)
        mirror._say = console.remark
        mirror.bring(logs_only=True)


def _check_seal(data: bytes) -> None:
    """Raise WrongBytes for what is no sealed JSON."""
    try:
        value = json.loads(data)
        sound = isinstance(value, dict) and seal(value) == value
    except (ValueError, RecursionError):
        sound = False
    if not sound:
        raise WrongBytes("its seal is not that of the rest")


def _place(step: int) -> str:
    """A checkpoint's folder in the mirror."""
    return checkpoint_folder(Path(), step).as_posix()
