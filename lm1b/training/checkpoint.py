"""Checkpoints that need nothing but safetensors and JSON to read, whatever wrote them.

    checkpoints/step_00001000/
      state.json   core.safetensors   carry.safetensors   input_table.00000-of-00002.safetensors ...   manifest.json

1. Every rank writes its own rows into `step_N.partial/` and hashes them; rank 0 writes the rest.
2. Rank 0 writes the manifest last (size and SHA-256 of every file) and renames the folder: a checkpoint is complete if
   and only if its manifest is there. "Latest" is found, never stored.
3. A reader verifies what the manifest says before it uses a tensor, and may cut the tables for another number of ranks.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lm1b.distributed import Ranks, agree, all_gather_objects
from lm1b.errors import UserError
from lm1b.files import digest_of_file, flush_folder, read_json, write_json
from lm1b.model.tables import VocabularyTable

FORMAT_VERSION = 1
COPY_ROWS = 65_536  # rows of a table in memory twice while they are cut for another number of ranks
LEASE_SECONDS = 600.0  # a lease older than this was left by a reader that died


def checkpoint_folder(run_directory: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return Path(run_directory) / "checkpoints" / f"step_{step:08d}"


def table_file(name: str, rank: int, size: int) -> str:
    """File name of one rank's rows of a table."""
    return f"{name}.{rank:05d}-of-{size:05d}.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint on disk."""

    step: int
    path: Path

    def state(self) -> dict[str, Any]:
        """state.json: step, updates, epoch, finished, ranks, vocabulary fingerprint, config."""
        state = read_json(self.path / "state.json")
        if not _is_state(state):
            raise UserError(f"{self.path}/state.json: not the state of a checkpoint; delete the folder to go on from an older one")
        return state

    def verify(self, rank: int = 0, size: int = 1) -> None:
        """Check size and SHA-256 of this rank's share of the files. Raises UserError that names the first bad one."""
        manifest = read_json(self.path / "manifest.json")
        version = manifest.get("format_version") if isinstance(manifest, dict) else None
        if version != FORMAT_VERSION:
            raise UserError(f"{self.path}: checkpoint format {version}, this program reads {FORMAT_VERSION}")
        if not _is_file_list(manifest.get("files")):
            raise UserError(f"{self.path}/manifest.json: names no files; delete the folder to go on from an older checkpoint")
        for name, expected in sorted(manifest["files"].items())[rank::size]:
            file = self.path / name
            if not file.is_file():
                raise UserError(f"{file}: missing from the checkpoint; delete the folder to go on from an older one")
            num_bytes = file.stat().st_size
            found = digest_of_file(file) if num_bytes == expected["bytes"] else f"{num_bytes} bytes instead of {expected['bytes']}"
            if found != expected["sha256"]:
                raise UserError(
                    f"{file}: damaged, SHA-256 expected {expected['sha256']}, found {found}; "
                    "delete the folder to go on from an older checkpoint"
                )

    def core(self, kind: str = "weights") -> dict[str, Tensor] | None:
        """Core tensors by parameter name, float32; kind `weights`, `ema` (None where training kept none) or `optimizer/<key>`."""
        prefix = f"{kind}/"
        with _reading(self.path / "core.safetensors") as file:
            tensors = {name.removeprefix(prefix): file.get_tensor(name) for name in _names(file) if name.startswith(prefix)}
        return tensors or None

    def optimizer_keys(self) -> list[str]:
        """Names of the optimizer's state tensors, such as `sum`."""
        with _reading(self.path / "core.safetensors") as file:
            return sorted({name.split("/")[1] for name in _names(file) if name.startswith("optimizer/")})

    def carry(self) -> dict[str, Tensor]:
        """The recurrent state of every lane of the global batch: name -> [lanes, width]."""
        with _reading(self.path / "carry.safetensors") as file:
            return {name: file.get_tensor(name) for name in _names(file)}

    def read_table(self, name: str, rank: int = 0, size: int = 1, key: str = "rows") -> Tensor:
        """This rank's rows of a table (row r lies on rank r % size at r // size), float32; `key` `rows` or `accumulators`."""
        state = self.state()
        if name not in state["tables"]:
            raise UserError(f"{self.path}/state.json: names no table {name}")
        num_rows, table_width, old_size = state["tables"][name]["num_rows"], state["tables"][name]["width"], state["ranks"]
        local: Tensor | None = None
        for old_rank in range(old_size):
            with _reading(self.path / table_file(name, old_rank, old_size)) as file:
                if size == old_size and old_rank != rank:
                    continue
                piece = file.get_slice(key)
                expected = [len(range(old_rank, num_rows, old_size)), table_width]
                if piece.get_shape() != expected:
                    raise UserError(
                        f"{self.path / table_file(name, old_rank, old_size)}: {key} is {piece.get_shape()}, expected {expected}"
                    )
                if size == old_size:
                    return file.get_tensor(key)
                length, width = expected
                if local is None:
                    local = torch.empty(len(range(rank, num_rows, size)), width)
                for start in range(0, length, COPY_ROWS):
                    rows = piece[start : start + COPY_ROWS]
                    ids = torch.arange(start, start + len(rows)) * old_size + old_rank
                    mine = ids % size == rank
                    local[ids[mine] // size] = rows[mine]
        assert local is not None
        return local

    @contextlib.contextmanager
    def lease(self) -> Iterator[None]:
        """Keep retention away while this process reads. Raises UserError where the checkpoint has gone already."""
        leases = self.path.parent / ".leases"
        leases.mkdir(exist_ok=True)
        mark = leases / f"{self.path.name}.{os.getpid()}"
        mark.touch()
        try:
            if not (self.path / "manifest.json").exists():
                raise UserError(f"{self.path}: the checkpoint has been deleted meanwhile")
            yield
        finally:
            mark.unlink(missing_ok=True)

    def is_leased(self) -> bool:
        """Whether a living reader holds the checkpoint."""
        for mark in (self.path.parent / ".leases").glob(f"{self.path.name}.*"):
            with contextlib.suppress(FileNotFoundError):  # its reader has just ended
                if time.time() - mark.stat().st_mtime < LEASE_SECONDS:
                    return True
        return False

    def delete(self) -> None:
        """Remove the folder at once for every reader: it loses its name first. One that has it open must expect it to go."""
        aside = self.path.with_name(f"{self.path.name}.deleted.partial")
        os.replace(self.path, aside)
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file ({error})") from None
    except FileNotFoundError:
        raise UserError(f"{path}: missing from the checkpoint") from None


def _is_state(state: Any) -> bool:
    """Whether a JSON value has what readers of a checkpoint rely on."""
    if not isinstance(state, dict) or not isinstance(state.get("config"), dict) or not isinstance(state.get("tables"), dict):
        return False
    tables = state["tables"].values()
    sizes = [table.get(key) if isinstance(table, dict) else None for table in tables for key in ("num_rows", "width")]
    return all(isinstance(size, int) and size > 0 for size in [*sizes, state.get("ranks")])


def _is_file_list(files: Any) -> bool:
    return isinstance(files, dict) and all(isinstance(entry, dict) and {"bytes", "sha256"} <= entry.keys() for entry in files.values())


def _names(file: Any) -> list[str]:
    return list(file.keys())


def list_checkpoints(run_directory: Path) -> list[Checkpoint]:
    """Every complete checkpoint of a run, oldest first."""
    found = []
    for path in (Path(run_directory) / "checkpoints").glob("step_*"):
        match = re.fullmatch(r"step_(\d+)", path.name)
        if match and (path / "manifest.json").exists():
            found.append(Checkpoint(int(match.group(1)), path))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def save_checkpoint(
    run_directory: Path,
    state: dict[str, Any],
    core: dict[str, Tensor],
    carry: dict[str, Tensor],
    tables: list[VocabularyTable],
    ranks: Ranks,
) -> Checkpoint:
    """Write one checkpoint; every rank calls it. state must hold `step`; core and carry are used on rank 0 only.

    Raises UserError on every rank where one cannot write; the unfinished folder is never taken for a checkpoint.
    """
    folder = checkpoint_folder(run_directory, state["step"])
    partial = folder.with_name(folder.name + ".partial")
    files: dict[str, dict[str, Any]] = {}

    def clear() -> None:
        if ranks.is_first:
            for left_over in folder.parent.glob("*.partial"):
                shutil.rmtree(left_over, ignore_errors=True)
            partial.mkdir(parents=True)

    def write() -> None:
        for table in tables:
            name = table_file(table.name, ranks.rank, ranks.size)
            files[name] = _write_tensors(partial / name, {"rows": table.rows, "accumulators": table.accumulators})
        if ranks.is_first:
            files["core.safetensors"] = _write_tensors(partial / "core.safetensors", core)
            files["carry.safetensors"] = _write_tensors(partial / "carry.safetensors", carry)
            tables_state = {table.name: {"num_rows": table.num_rows, "width": table.width} for table in tables}
            write_json(partial / "state.json", {**state, "ranks": ranks.size, "tables": tables_state})
            files["state.json"] = _describe(partial / "state.json")

    def commit() -> None:
        if ranks.is_first:
            write_json(partial / "manifest.json", {"format_version": FORMAT_VERSION, "files": everything})
            if folder.exists():  # a copy of the same step that could not be read
                shutil.rmtree(folder)
            os.replace(partial, folder)
            flush_folder(folder.parent)

    # Each part is agreed on: a disk that is full for one rank ends all of them, and the last good checkpoint stays.
    agree(ranks, clear)
    agree(ranks, write)
    everything = {name: entry for part in all_gather_objects(files, ranks) for name, entry in part.items()}  # type: ignore[attr-defined]
    agree(ranks, commit)
    return Checkpoint(state["step"], folder)


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise UserError(f"{path}: could not be written ({error})") from None
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return _describe(path)


def _describe(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": digest_of_file(path)}


def apply_retention(run_directory: Path, keep_last: int, keep_every: int | None, best_step: int | None) -> None:
    """Delete what need not be kept: all but the newest, the multiples of keep_every, the best, and what is being read."""
    checkpoints = list_checkpoints(run_directory)
    for checkpoint in checkpoints[:-keep_last]:
        kept = checkpoint.step == best_step or (keep_every is not None and checkpoint.step % keep_every == 0)
        if not kept and not checkpoint.is_leased():
            checkpoint.delete()
