"""Checkpoints that need nothing but safetensors and JSON to read, whatever wrote them.

    checkpoints/step_00001000/
      state.json   core.safetensors   carry.safetensors   input_table.00000-of-00002.safetensors ...   manifest.json

1. saving.py writes them: the manifest (size and SHA-256 of every file, sealed by its own) last, then the folder gets its name.
   "Latest" is found, never stored.
2. A reader verifies what the manifest says before it uses a tensor, and may cut the tables for another number of ranks.
3. A reader holds a lease on it meanwhile, else retention may delete it (retention.py).
4. A damaged one is set aside as `step_N.damaged`, and the one before it taken (resume.py).

What needs torch loads it: whoever asks which checkpoints there are, and of what (run_state.py), is answered at once.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
import shutil
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open

from lm1b.errors import UserError
from lm1b.files import digest_of_file, flush_folder, read_json, read_sealed_json
from lm1b.training.run_folder import RunFolder

if TYPE_CHECKING:
    from torch import Tensor

    from lm1b.training.checkpoints.tensor_file import MatrixInFile

FORMAT_VERSION = 2
MANIFEST, STATE, CORE, CARRY = "manifest.json", "state.json", "core.safetensors", "carry.safetensors"  # and tables: `table_file`
COPY_BYTES = 8 << 20  # of a table in memory twice while it is cut for another number of ranks
_FOLDER = re.compile(r"step_(\d{8,})")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class DamagedCheckpoint(UserError):
    """A checkpoint that is not as it was written."""


def checkpoint_folder(run_directory: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return RunFolder(run_directory).checkpoints / f"step_{step:08d}"


def step_of(name: str) -> int | None:
    """The step of a checkpoint's folder by its name; None for other names, `step_1000` among them, which nobody would find again."""
    match = _FOLDER.fullmatch(name)
    step = int(match.group(1)) if match else None
    return step if step is not None and checkpoint_folder(Path(), step).name == name else None


def table_file(name: str, rank: int, size: int) -> str:
    """File name of one rank's rows of a table."""
    return f"{name}.{rank:05d}-of-{size:05d}.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint on disk."""

    step: int
    path: Path

    def manifest(self) -> dict[str, dict[str, Any]]:
        """File name -> bytes and SHA-256. Raises DamagedCheckpoint, or UserError for another version of the format."""
        path = self.path / MANIFEST
        if not path.exists():
            raise DamagedCheckpoint(f"{path}: missing from the checkpoint")
        try:
            manifest = read_sealed_json(path)
        except UserError as error:
            if _version_of(path) == 1:
                raise UserError(f"{self.path}: checkpoint format 1, this program reads {FORMAT_VERSION}") from None
            raise DamagedCheckpoint(str(error)) from None
        if manifest.get("format_version") != FORMAT_VERSION:
            raise UserError(f"{self.path}: checkpoint format {manifest.get('format_version')}, this program reads {FORMAT_VERSION}")
        if not is_file_list(manifest.get("files")):
            raise DamagedCheckpoint(f"{path}: names no files")
        return manifest["files"]

    def state(self) -> dict[str, Any]:
        """state.json, verified: what `Run.begin_saving` put there, `ranks`, and `tables` with their sizes. Raises DamagedCheckpoint."""
        files = self.manifest()
        if STATE not in files:
            raise DamagedCheckpoint(f"{self.path}/manifest.json: does not name state.json")
        self._verify_file(STATE, files[STATE])
        try:
            state = read_json(self.path / STATE)
        except UserError as error:
            raise DamagedCheckpoint(str(error)) from None
        if not _is_state(state):
            raise DamagedCheckpoint(f"{self.path}/state.json: not the state of a checkpoint")
        return state

    def verify(self, rank: int = 0, size: int = 1) -> None:
        """Check size and SHA-256 of this rank's share of the files. Raises DamagedCheckpoint that names the first bad one."""
        import torch

        # The largest files are spread evenly: sorted by name, a table's shares are neighbours.
        files = sorted(self.manifest().items())[rank::size]
        # Hashing and reading let go of Python's lock.
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(lambda file: self._verify_file(*file), files))

    def _verify_file(self, name: str, expected: dict[str, Any]) -> None:
        damage = damage_of(self.path / name, expected)
        if damage is not None:
            raise DamagedCheckpoint(f"{self.path / name}: {damage}")

    def core(self, kind: str = "weights") -> dict[str, Tensor] | None:
        """Core tensors by parameter name, float32; kind `weights`, `ema` (None where training kept none) or `optimizer/<key>`."""
        prefix = f"{kind}/"
        with _reading(self.path / CORE) as file:
            tensors = {name.removeprefix(prefix): file.get_tensor(name) for name in _names(file) if name.startswith(prefix)}
        return tensors or None

    def optimizer_keys(self) -> list[str]:
        """Names of the optimizer's state tensors, such as `sum`."""
        with _reading(self.path / CORE) as file:
            return sorted({name.split("/")[1] for name in _names(file) if name.startswith("optimizer/")})

    def carry(self) -> dict[str, Tensor]:
        """The recurrent state of every lane of the global batch: name -> [lanes, width]."""
        with _reading(self.path / CARRY) as file:
            return {name: file.get_tensor(name) for name in _names(file)}

    def read_table(self, name: str, rank: int = 0, size: int = 1, key: str = "rows", out: Tensor | None = None) -> Tensor:
        """This rank's rows of a table (row r lies on rank r % size at r // size), float32; `key` `rows` or `accumulators`.

        out: where to put them, contiguous [rows of this rank, width]. Nothing but a block is ever in memory twice.
        """
        import torch

        from lm1b.training.checkpoints.tensor_file import MatrixInFile

        state = self.state()
        if name not in state["tables"]:
            raise UserError(f"{self.path}/state.json: names no table {name}")
        num_rows, width, old_size = state["tables"][name]["num_rows"], state["tables"][name]["width"], state["ranks"]
        local = torch.empty(len(range(rank, num_rows, size)), width) if out is None else out
        assert local.shape == (len(range(rank, num_rows, size)), width)
        on_cpu = local if local.device.type == "cpu" else torch.empty(local.shape)
        for old_rank in range(old_size):
            path = self.path / table_file(name, old_rank, old_size)
            matrix = MatrixInFile(path, key, (len(range(old_rank, num_rows, old_size)), width))
            if size == old_size and old_rank == rank:
                matrix.read_into(on_cpu.numpy())
            elif size != old_size:
                _take_own_rows(matrix, old_rank, old_size, on_cpu.numpy(), rank, size)
        return local if on_cpu is local else local.copy_(on_cpu)

    def delete(self) -> None:
        """Remove the folder at once for every reader: it loses its name first. One that has it open must expect it to go."""
        aside = self.path.with_name(f"{self.path.name}.deleted.partial")
        os.replace(self.path, aside)
        shutil.rmtree(aside, ignore_errors=True)

    def set_aside(self) -> Path:
        """Give a damaged checkpoint another name, `step_N.damaged`, so that nobody takes it for one. -> its new place."""
        for number in itertools.count(1):
            aside = self.path.with_name(f"{self.path.name}.damaged{'' if number == 1 else number}")
            if not aside.exists():
                os.replace(self.path, aside)
                flush_folder(self.path.parent)
                return aside
        raise AssertionError


def _take_own_rows(matrix: MatrixInFile, old_rank: int, old_size: int, local: np.ndarray, rank: int, size: int) -> None:
    """Of another cut's rows (row j is id j * old_size + old_rank), those of this rank: every k-th one, from a first one on."""
    every = size // math.gcd(size, old_size)
    first = next((j for j in range(every) if (j * old_size + old_rank) % size == rank), None)
    if first is None:
        return
    for start, block in matrix.blocks(max(1, COPY_BYTES // (4 * matrix.shape[1]))):
        rows = block[(first - start) % every :: every]
        if len(rows):
            place = ((start + (first - start) % every) * old_size + old_rank) // size
            step = every * old_size // size
            local[place : place + step * len(rows) : step] = rows


@contextlib.contextmanager
def _reading(path: Path) -> Generator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file ({error})") from None
    except FileNotFoundError:
        raise UserError(f"{path}: missing from the checkpoint") from None


def _version_of(path: Path) -> Any:
    try:
        value = read_json(path)
    except UserError:
        return None
    return value.get("format_version") if isinstance(value, dict) and "seal" not in value else None


def _is_state(state: Any) -> bool:
    """Whether a JSON value has what readers of a checkpoint rely on."""
    if not isinstance(state, dict) or not isinstance(state.get("config"), dict) or not isinstance(state.get("tables"), dict):
        return False
    tables = state["tables"].values()
    sizes = [table.get(key) if isinstance(table, dict) else None for table in tables for key in ("num_rows", "width")]
    return all(isinstance(size, int) and size > 0 for size in [*sizes, state.get("ranks")])


def damage_of(file: Path, expected: dict[str, Any], whole: str = "checkpoint") -> str | None:
    """What is wrong with a file that a manifest names, in words; None where nothing is. whole: what the file is a part of."""
    if not file.is_file():
        return f"missing from the {whole}"
    num_bytes = file.stat().st_size
    found = digest_of_file(file) if num_bytes == expected["bytes"] else f"{num_bytes} bytes instead of {expected['bytes']}"
    return None if found == expected["sha256"] else f"damaged, SHA-256 expected {expected['sha256']}, found {found}"


def is_file_list(files: Any) -> bool:
    """Whether a JSON value is file name -> bytes and SHA-256."""
    if not isinstance(files, dict) or not all(isinstance(entry, dict) for entry in files.values()):
        return False
    sizes, digests = ([entry.get(key) for entry in files.values()] for key in ("bytes", "sha256"))
    are_sizes = all(type(size) is int and size >= 0 for size in sizes)
    return are_sizes and all(isinstance(digest, str) and _SHA256.fullmatch(digest) for digest in digests)


def _names(file: Any) -> list[str]:
    return list(file.keys())


def list_checkpoints(run_directory: Path, *, damaged_too: bool = False) -> list[Checkpoint]:
    """Every complete checkpoint of a run, oldest first. damaged_too: also a folder of that name that has lost its manifest."""
    found = []
    for path in RunFolder(run_directory).checkpoints.glob("step_*"):
        step = step_of(path.name)
        if step is not None and path.is_dir() and (damaged_too or (path / MANIFEST).exists()):
            found.append(Checkpoint(step, path))
    return sorted(found, key=lambda checkpoint: checkpoint.step)
