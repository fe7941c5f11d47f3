"""A copy of a run at a URL, written behind the steps: committed checkpoints and the logs. mirrored_run.py says how it lies there.

1. Rank 0 has a `Mirror`; its run directory holds every rank's files (a folder that all hosts share, as checkpoints need anyway).
2. A checkpoint is copied by a thread: an old manifest of that name is removed first, then all files are copied, then the manifest. So
   it is complete there if and only if its manifest is there, wherever the copying was cut off.
3. What retention lets go of here is let go of there, manifest first.
4. A store that fails is told in the run's log, once a failure, and tried again with the next checkpoint. It never ends a training.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

from lm1b import console
from lm1b.config import Config
from lm1b.errors import UserError, in_words
from lm1b.remote_errors import StoreError
from lm1b.training.checkpoints.checkpoint import MANIFEST, Checkpoint, list_checkpoints
from lm1b.training.checkpoints.mirrored_run import DAMAGED, MirroredRun, place_of
from lm1b.training.checkpoints.retention import best_to_keep, lease, steps_to_keep
from lm1b.training.run_folder import RunFolder

CLOSE_SECONDS = 10.0  # that an end in an error waits for a copy under way
LOG_SECONDS = 60.0  # between two copies of the logs, beside those with every checkpoint


class Mirror:
    """One run's copy, from the first rank; `there` reads it.

    Raises StoreError, UserError where the URL cannot be used at all.
    """

    def __init__(self, config: Config, url: str):
        self._config, self._directory = config, Path(config.run.directory)
        self.there = MirroredRun(self._directory, url)
        self._store = self.there.store
        self.say: Callable[[str], object] = lambda text: None
        self._wanted, self._stopping = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._logged: dict[str, tuple[int, int]] = {}
        self._copied: dict[int, str] = {}  # step -> SHA-256 of the manifest that is there
        self._busy = threading.Lock()
        self.problem: str | None = None  # why the last attempt did not bring everything there

    def start(self, say: Callable[[str], object]) -> None:
        """Begin copying behind the steps. say: is told, from a thread, what could not be copied."""
        self.say = say
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
                self.problem = in_words(error)
            except Exception as error:  # a thread's exception would be lost, and with it the mirror
                self.problem = f"{self.there.url}: {type(error).__name__}: {error}"
            if self.problem is not None and not (logs_only and before):
                self.say(f"not mirrored: {self.problem}; tried again with the next checkpoint")
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
        folder, digest = place_of(checkpoint.step), hashlib.sha256(manifest).hexdigest()
        if self._store.read_if_there(f"{folder}/{MANIFEST}") != manifest:
            self._store.delete(f"{folder}/{MANIFEST}")
            try:
                with lease(checkpoint):
                    files = checkpoint.manifest()
                    for name in sorted(files):
                        self._store.put(checkpoint.path / name, f"{folder}/{name}")
            except (UserError, FileNotFoundError) as error:
                if checkpoint.path.exists():
                    raise UserError(in_words(error)) from None
                return  # retention was faster
            found = self._store.list(folder)
            for name, entry in files.items():
                if found.get(name) != entry["bytes"]:
                    raise StoreError(self._store.place(f"{folder}/{name}"), f"{found.get(name)} bytes there, {entry['bytes']} were written")
            self._store.write(f"{folder}/{MANIFEST}", manifest)
        self._copied[checkpoint.step] = digest

    def _let_go(self) -> None:
        """Delete what the run's own retention would not keep, the manifest first; and what was never finished."""
        steps = self.there.steps()
        kept = steps_to_keep(steps, self._config.checkpoints, best_to_keep(self._config))
        kept |= {checkpoint.step for checkpoint in list_checkpoints(self._directory)}
        unfinished = [step for step in self.there.folders() if step not in steps and DAMAGED not in self._store.list(place_of(step))]
        for step in [step for step in [*steps, *unfinished] if step not in kept]:
            self._store.delete(f"{place_of(step)}/{MANIFEST}")
            for name in self._store.list(place_of(step)):
                self._store.delete(f"{place_of(step)}/{name}")
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
            self.say(f"waiting until {', '.join(behind)} is in {self.there.url}")
        if self.bring():
            self.say(f"mirrored in {self.there.url}")
            return
        behind = [checkpoint.path.name for checkpoint in list_checkpoints(self._directory) if self._is_new(checkpoint)]
        self.say(f"NOT in the mirror {self.there.url}: {', '.join(behind) or 'the newest logs'}; the same command tries again")

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
        mirror.say = console.remark
        mirror.bring(logs_only=True)
