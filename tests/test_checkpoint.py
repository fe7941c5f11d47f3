"""Checkpoints on disk: leases and retention, tables cut for another number of ranks, and files that are not what they should be."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from command_runs import run_script
from hypothesis import given, settings
from hypothesis import strategies as st
from made_run import made_checkpoint, made_config, made_tokens
from safetensors.torch import save_file

from lm1b.config import CheckpointsConfig, Config
from lm1b.errors import UserError
from lm1b.files import read_sealed_json, seal, write_sealed_json
from lm1b.training.checkpoints.checkpoint import (
    FORMAT_VERSION,
    Checkpoint,
    DamagedCheckpoint,
    list_checkpoints,
    table_file,
)
from lm1b.training.checkpoints.retention import LEASE_SECONDS, apply_retention, is_leased, lease

TABLES = ("input_table", "output_table", "output_bias")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("made")
    made_tokens(folder / "tokens")
    return made_config(folder)


@pytest.fixture(scope="module")
def whole(config: Config) -> Checkpoint:
    return made_checkpoint(config, 10)


@pytest.fixture
def checkpoint(whole: Checkpoint, tmp_path: Path) -> Checkpoint:
    """A copy that a test may spoil."""
    return Checkpoint(10, Path(shutil.copytree(whole.path, tmp_path / "checkpoints" / whole.path.name)))


def read_everything(checkpoint: Checkpoint) -> None:
    """What evaluation and a resumed training read, in their order."""
    checkpoint.verify()
    checkpoint.state()
    for kind in ("weights", "ema", *(f"optimizer/{key}" for key in checkpoint.optimizer_keys())):
        assert checkpoint.core(kind)
    assert checkpoint.carry()
    for name in TABLES:
        for rank, size in [(0, 1), (1, 2)]:
            checkpoint.read_table(name, rank, size)


def replace_state(checkpoint: Checkpoint, data: bytes) -> None:
    """Another state.json that the manifest vouches for."""
    (checkpoint.path / "state.json").write_bytes(data)
    files = checkpoint.manifest() | {"state.json": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
    write_sealed_json(checkpoint.path / "manifest.json", {"format_version": FORMAT_VERSION, "files": files})


def made_steps(run: Path, whole: Checkpoint, steps: list[int]) -> None:
    for step in steps:
        shutil.copytree(whole.path, run / "checkpoints" / f"step_{step:08d}")


def test_a_lease_is_seen_and_given_back(checkpoint: Checkpoint) -> None:
    assert not is_leased(checkpoint)
    with lease(checkpoint):
        assert is_leased(checkpoint)
        assert not is_leased(Checkpoint(11, checkpoint.path.with_name("step_00000011")))
    assert not is_leased(checkpoint)
    with pytest.raises(ZeroDivisionError), lease(checkpoint):
        raise ZeroDivisionError
    assert not is_leased(checkpoint)


def test_who_may_not_write_there_reads_without_a_lease(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, exist_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "mkdir", refused)
    with lease(checkpoint):
        assert not is_leased(checkpoint)
    with pytest.raises(UserError, match="deleted meanwhile"), lease(Checkpoint(11, checkpoint.path.with_name("step_00000011"))):
        pass


def test_the_lease_of_a_reader_that_died_ends(checkpoint: Checkpoint) -> None:
    """On this host at once, wherever it was after a while."""
    code = "import os, sys; from pathlib import Path\n"
    code += "from lm1b.training.checkpoints.checkpoint import Checkpoint; from lm1b.training.checkpoints.retention import lease\n"
    code += "with lease(Checkpoint(10, Path(sys.argv[1]))): os.kill(os.getpid(), 9)"
    assert run_script("-c", code, str(checkpoint.path)).returncode == -9
    (mark,) = (checkpoint.path.parent / ".leases").iterdir()
    assert not is_leased(checkpoint)
    elsewhere = mark.rename(mark.with_name(f"{checkpoint.path.name}.1@another-host"))
    assert is_leased(checkpoint)
    long_ago = time.time() - LEASE_SECONDS - 1
    os.utime(elsewhere, (long_ago, long_ago))
    assert not is_leased(checkpoint)


def test_what_has_gone_cannot_be_leased(checkpoint: Checkpoint) -> None:
    checkpoint.delete()
    with pytest.raises(UserError, match="deleted meanwhile"), lease(checkpoint):
        pytest.fail("leased what is not there")
    assert not is_leased(checkpoint)


def test_retention_keeps_leased_newest_multiples_and_best(whole: Checkpoint, tmp_path: Path) -> None:
    made_steps(tmp_path, whole, [100, 150, 200, 250, 300, 350, 400])
    leased = next(checkpoint for checkpoint in list_checkpoints(tmp_path) if checkpoint.step == 250)
    with lease(leased):
        apply_retention(tmp_path, CheckpointsConfig(keep_last=2, keep_every=200), best_step=150)
    kept = [150, 200, 250, 350, 400]
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == kept
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {".leases", *(f"step_{step:08d}" for step in kept)}  # nothing half deleted
    apply_retention(tmp_path, CheckpointsConfig(keep_last=1), best_step=None)
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [400]


@pytest.mark.parametrize("old_size", [1, 2, 3])
def test_a_table_is_read_back_by_any_number_of_ranks(checkpoint: Checkpoint, old_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm1b.training.checkpoints.checkpoint.COPY_BYTES", 4 * 3 * 4)
    rows, accumulators = (torch.randn(11, 3) for _ in range(2))
    for rank in range(old_size):
        tensors = {"rows": rows[rank::old_size].contiguous(), "accumulators": accumulators[rank::old_size].contiguous()}
        save_file(tensors, checkpoint.path / table_file("a_table", rank, old_size))
    state = checkpoint.state() | {"ranks": old_size, "tables": {"a_table": {"num_rows": 11, "width": 3}}}
    replace_state(checkpoint, json.dumps(state).encode())
    for size in (1, 2, 3, 4, 6):
        for rank in range(size):
            assert torch.equal(checkpoint.read_table("a_table", rank, size), rows[rank::size])
            assert torch.equal(checkpoint.read_table("a_table", rank, size, "accumulators"), accumulators[rank::size])


@pytest.mark.parametrize("name", ["state.json", "core.safetensors", "carry.safetensors", table_file("output_table", 0, 1)])
def test_a_damaged_or_missing_file_is_named(checkpoint: Checkpoint, name: str) -> None:
    file = checkpoint.path / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match=rf"{name}: damaged"):
        checkpoint.verify()
    file.write_bytes(data[:-1])
    with pytest.raises(UserError, match=rf"{name}: damaged.*bytes instead of"):
        checkpoint.verify()
    file.unlink()
    with pytest.raises(UserError, match=rf"{name}: missing"):
        checkpoint.verify()


def test_a_share_of_the_ranks_covers_every_file(checkpoint: Checkpoint) -> None:
    names = json.loads((checkpoint.path / "manifest.json").read_text())["files"]
    for name in names:
        data = (checkpoint.path / name).read_bytes()
        (checkpoint.path / name).write_bytes(b"")
        refused = 0
        for rank in range(4):
            try:
                checkpoint.verify(rank, 4)
            except UserError:
                refused += 1
        assert refused == 1, name
        (checkpoint.path / name).write_bytes(data)


def test_another_format_is_refused(checkpoint: Checkpoint) -> None:
    path = checkpoint.path / "manifest.json"
    manifest = read_sealed_json(path)
    write_sealed_json(path, manifest | {"format_version": 99})
    with pytest.raises(UserError, match="format 99") as refusal:
        checkpoint.verify()
    assert not isinstance(refusal.value, DamagedCheckpoint)  # a newer program's checkpoint is not set aside
    path.write_text(json.dumps(manifest | {"format_version": 1}))
    with pytest.raises(UserError, match="format 1, this program") as refusal:
        checkpoint.verify()
    assert not isinstance(refusal.value, DamagedCheckpoint)


def test_every_flipped_bit_of_a_manifest_is_found(checkpoint: Checkpoint) -> None:
    path = checkpoint.path / "manifest.json"
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        with pytest.raises(DamagedCheckpoint, match=r"manifest\.json"):
            checkpoint.verify()
    path.write_bytes(data)
    checkpoint.verify()


def test_unfinished_and_foreign_folders_are_no_checkpoints(whole: Checkpoint, tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path) == []
    made_steps(tmp_path, whole, [20, 3])
    folder = tmp_path / "checkpoints"
    shutil.copytree(whole.path, folder / "step_00000030.partial")
    (folder / "step_00000040").mkdir()
    (folder / "step_x").mkdir()
    shutil.copytree(whole.path, folder / "step_1000")  # by hand, under a name that nobody looks for
    (folder / "notes.txt").write_text("mine")
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [3, 20]


VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
JSON = st.recursive(VALUES, lambda inner: st.lists(inner, max_size=3), max_leaves=4)
OF_THE_FORMAT = {"format_version": st.just(FORMAT_VERSION)}
MANIFESTS = st.one_of(
    JSON,
    st.fixed_dictionaries(OF_THE_FORMAT, optional={"files": JSON}).map(seal),
    st.fixed_dictionaries(OF_THE_FORMAT | {"files": st.dictionaries(st.text(max_size=5), JSON, max_size=2)}).map(seal),
)


def refused(path: Path, action: Any) -> None:
    """Nothing but a UserError comes of a file that somebody has replaced."""
    problem = ""
    try:
        action()
    except UserError as error:
        problem = str(error)
    assert not problem or str(path.parent) in problem


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=60) | MANIFESTS.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_as_manifest(whole: Checkpoint, data: bytes) -> None:
    _with_replaced(whole, "manifest.json", data, whole.verify)


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_as_state(whole: Checkpoint, data: bytes) -> None:
    """Also where the manifest vouches for them."""
    manifest = (whole.path / "manifest.json").read_bytes()
    before = (whole.path / "state.json").read_bytes()
    try:
        replace_state(whole, data)
        for action in (whole.state, lambda: whole.read_table("input_table"), lambda: whole.read_table("input_table", 1, 2)):
            refused(whole.path / "state.json", action)
    finally:
        (whole.path / "manifest.json").write_bytes(manifest)
        (whole.path / "state.json").write_bytes(before)


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=60) | st.binary(max_size=40).map(lambda tail: len(tail).to_bytes(8, "little") + tail))
def test_any_bytes_as_tensors(whole: Checkpoint, data: bytes) -> None:
    _with_replaced(whole, "core.safetensors", data, lambda: (whole.core("weights"), whole.optimizer_keys()))
    _with_replaced(whole, "carry.safetensors", data, whole.carry)
    _with_replaced(whole, table_file("input_table", 0, 1), data, lambda: whole.read_table("input_table", 1, 2))
    _with_replaced(whole, table_file("input_table", 0, 1), data, lambda: whole.read_table("input_table"))


def test_tensors_of_another_kind_are_refused(checkpoint: Checkpoint) -> None:
    file = checkpoint.path / table_file("input_table", 0, 1)
    for tensors in [{"other": torch.zeros(2, 2)}, {"rows": torch.zeros(3)}, {"rows": torch.zeros(1000, 7)}]:
        save_file(tensors, file)
        for rank, size in [(0, 1), (1, 2)]:
            with pytest.raises(UserError, match="input_table"):
                checkpoint.read_table("input_table", rank, size)


def test_a_whole_checkpoint_is_read(whole: Checkpoint) -> None:
    read_everything(whole)


def _with_replaced(checkpoint: Checkpoint, name: str, data: bytes, action: Any) -> None:
    file = checkpoint.path / name
    before = file.read_bytes()
    file.unlink()
    file.write_bytes(data)
    try:
        refused(file, action)
    finally:
        file.unlink()
        file.write_bytes(before)


@pytest.mark.parametrize(
    "entry", [{"bytes": "5"}, {"bytes": -1}, {"bytes": True}, {"bytes": 1.0}, {"sha256": "0" * 63 + "g"}, {"sha256": 1}]
)
def test_a_manifest_of_other_types_is_damaged(checkpoint: Checkpoint, entry: dict[str, Any]) -> None:
    manifest = read_sealed_json(checkpoint.path / "manifest.json")
    manifest["files"]["core.safetensors"] |= entry
    write_sealed_json(checkpoint.path / "manifest.json", manifest)
    with pytest.raises(DamagedCheckpoint, match="names no files"):
        checkpoint.manifest()
