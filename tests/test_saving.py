"""Checkpoints written behind the steps: a snapshot that later updates do not reach, bounded memory, clean failures."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from table_steps import ALONE, apply, asked, made_table
from tiny import REPOSITORY, environment

from lm1b.errors import UserError
from lm1b.model.tables import VocabularyTable
from lm1b.training.checkpoints import saving, snapshot
from lm1b.training.checkpoints.checkpoint import list_checkpoints
from lm1b.training.checkpoints.saving import CheckpointSaver
from lm1b.training.checkpoints.snapshot import RowPool, Snapshot
from lm1b.training.checkpoints.tensor_file import MatrixInFile, write_tensors

CARRY = {"0.h": torch.ones(2, 3, dtype=torch.bfloat16)}


def update(table: VocabularyTable, ids: list[int]) -> None:
    request = asked(torch.tensor(sorted(set(ids))))
    apply(table, request, torch.ones(len(request.ids_U), table.width), learning_rate=0.5)


def contents(table: VocabularyTable) -> dict[str, torch.Tensor]:
    return {"rows": table.rows.clone(), "accumulators": table.accumulators.clone()}


def state(step: int = 10) -> dict[str, Any]:
    return {"step": step, "config": {}}


@pytest.fixture
def nothing_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tables are treated like large ones: taken block by block, rows kept in the pool."""
    monkeypatch.setattr(snapshot, "COPIED_AT_ONCE_BYTES", 0)
    monkeypatch.setattr(snapshot, "BLOCK_BYTES", 4 * 4 * 3)  # three rows of four numbers


@pytest.mark.usefixtures("nothing_at_once")
@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.integers(0, 49), min_size=1, max_size=20), max_size=8), st.integers(1, 60), st.integers(0, 20))
def test_a_snapshot_is_the_table_as_it_was_whatever_is_updated_meanwhile(steps: list[list[int]], pool_rows: int, ahead: int) -> None:
    table = made_table()
    before = contents(table)
    pool = RowPool(pool_rows * 4 * 4, 4)
    picture = Snapshot([table], pool)
    table.before_update = picture.keep
    started, written = threading.Event(), {}

    def write() -> None:
        for key in ("rows", "accumulators"):
            blocks = []
            for number, block in enumerate(picture.blocks("a_table", key)):
                blocks.append(block.copy())
                if number == ahead and key == "rows":
                    started.wait(5)  # the steps begin when the writer is somewhere in the middle
            written[key] = np.concatenate(blocks)
        picture.end()

    writer = threading.Thread(target=write)
    writer.start()
    started.set()
    for ids in steps:
        update(table, ids)
    writer.join(20)
    assert not writer.is_alive()
    for key, tensor in before.items():
        assert torch.equal(torch.from_numpy(written[key]), tensor), key
    assert len(pool.take(pool_rows)) == pool_rows  # all of it was given back


@pytest.mark.usefixtures("nothing_at_once")
def test_a_step_waits_where_the_pool_is_full_and_goes_on() -> None:
    table = made_table()
    picture = Snapshot([table], RowPool(2 * 4 * 4, 4))
    table.before_update = picture.keep
    updating = threading.Thread(target=update, args=(table, list(range(50))))
    before = contents(table)
    updating.start()
    updating.join(0.2)
    assert updating.is_alive()  # 2 rows fit, 50 are about to change
    for key in ("rows", "accumulators"):
        found = np.concatenate([block.copy() for block in picture.blocks("a_table", key)])
        assert torch.equal(torch.from_numpy(found), before[key])
    updating.join(5)
    assert not updating.is_alive()
    assert not torch.equal(table.rows, before["rows"])


@pytest.mark.usefixtures("nothing_at_once")
@pytest.mark.parametrize("in_background", [True, False])
def test_what_is_saved_is_the_state_when_saving_began(tmp_path: Path, in_background: bool) -> None:
    tables = [made_table(), made_table(40, 3, "other"), made_table(50, 1, "bias")]
    before = {table.name: contents(table) for table in tables}
    core = {"weights/a": torch.randn(5, 7), "optimizer/sum/a": torch.randn(5, 7)}
    saver = CheckpointSaver(tmp_path, ALONE, in_background=in_background)
    saver.begin(state(), core, CARRY, tables)
    assert list_checkpoints(tmp_path) == []  # nothing is a checkpoint before it is committed
    for _ in range(5):
        for table in tables:
            update(table, list(range(0, 40, 3)))
    while saver.is_pending:
        saved = saver.poll()
    assert saved is not None
    assert [checkpoint.path for checkpoint in list_checkpoints(tmp_path)] == [saved.path]
    saved.verify()
    for table in tables:
        with_library = load_file(saved.path / f"{table.name}.00000-of-00001.safetensors")
        for key, tensor in before[table.name].items():
            assert torch.equal(with_library[key], tensor)
            assert torch.equal(saved.read_table(table.name, key=key), tensor)
        assert table.before_update is None
    with_library = load_file(saved.path / "core.safetensors")
    assert all(torch.equal(with_library[name], tensor) for name, tensor in core.items())
    assert torch.equal(saved.carry()["0.h"], CARRY["0.h"])
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step_00000010"}


def test_one_save_at_a_time_and_the_same_step_again(tmp_path: Path) -> None:
    saver = CheckpointSaver(tmp_path, ALONE)
    for step in (10, 20, 20):
        saver.begin(state(step), {"weights/a": torch.full((2,), float(step))}, CARRY, [made_table()])
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [10, 20]
    saver.finish()
    assert saver.finish() is None
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [10, 20]


@pytest.mark.parametrize("left_over", ["folder", "file", "link"])
def test_what_a_killed_save_left_is_in_nobody_s_way(tmp_path: Path, left_over: str) -> None:
    partial = tmp_path / "checkpoints" / "step_00000010.partial"
    partial.parent.mkdir()
    if left_over == "folder":
        (partial / "deeper").mkdir(parents=True)
        (partial / "a_table.00003-of-00004.safetensors").write_bytes(b"cut of")
    elif left_over == "file":
        partial.write_text("in the way")
    else:
        partial.symlink_to(tmp_path / "nowhere")
    saver = CheckpointSaver(tmp_path, ALONE)
    saver.begin(state(), {"weights/a": torch.ones(2)}, CARRY, [made_table()])
    saved = saver.finish()
    assert saved is not None
    saved.verify()
    assert {path.name for path in saved.path.iterdir()} == {*saved.manifest(), "manifest.json"}


def test_a_save_that_fails_behind_the_steps_is_told_with_its_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saver = CheckpointSaver(tmp_path, ALONE)
    saver.begin(state(), {"weights/a": torch.ones(2)}, CARRY, [made_table()])
    saver.finish()

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device", "table file")

    monkeypatch.setattr(saving, "_write_table", full)
    table = made_table()
    saver.begin(state(20), {"weights/a": torch.ones(2)}, CARRY, [table])
    with pytest.raises(UserError, match=r"step 20 was not saved: .*step_00000020\.partial: not enough space, .* needed and .* free"):
        saver.finish()
    assert table.before_update is None
    update(table, [1, 2])  # the run may still end in its own way
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [10]


def test_a_checkpoint_that_cannot_fit_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000})())
    with pytest.raises(UserError, match=r"checkpoints: not enough space, 0.0 MB are needed and 0.0 MB are free"):
        CheckpointSaver(tmp_path, ALONE).begin(state(), {"weights/a": torch.ones(2)}, CARRY, [made_table()])
    assert list((tmp_path / "checkpoints").iterdir()) == []


MEMORY = """
import resource, sys, torch
sys.path.append("tests")
from pathlib import Path
from lm1b.distributed import single_process
from lm1b.model.tables import VocabularyTable
from lm1b.training.checkpoints.saving import CheckpointSaver
from table_steps import apply, asked
ranks = single_process()
table = VocabularyTable("t", 200_000, 256, seed=1, initial_scale=0.0, initial_accumulator=1.0, ranks=ranks)
table.rows.fill_(0.5)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
saver = CheckpointSaver(Path(sys.argv[1]), ranks)
saver.begin({"step": 1, "config": {}}, {"weights/a": torch.ones(4)}, {"h": torch.ones(1, 1)}, [table])
steps = 0
while saver.is_pending:
    ids = torch.arange(steps % 7, 200_000, 7)
    apply(table, asked(ids), torch.ones(len(ids), 256), learning_rate=0.1)
    steps += 1
    saver.poll()
print(steps, peak() - before)
"""


def test_saving_takes_bounded_memory_beside_the_tables(tmp_path: Path) -> None:
    """410 MB of table and accumulators; every row changes while they are written."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, timeout=120, env=environment(), cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr
    steps, grown_megabytes = done.stdout.split()
    assert int(steps) >= 1
    assert float(grown_megabytes) < 256 + 2 * 30  # the step's own gradient and rows: 29 MB each
    rows = MatrixInFile(tmp_path / "checkpoints" / "step_00000001" / "t.00000-of-00001.safetensors", "rows", (200_000, 256))
    for _, block in rows.blocks(10_000):
        assert (block == 0.5).all()


def test_the_library_reads_what_is_written_here(tmp_path: Path) -> None:
    tensors = {"a/b": torch.randn(3, 5), "half": torch.randn(7).to(torch.bfloat16), "none": torch.zeros(0, 4), "one": torch.tensor(2.5)}
    described = write_tensors(tmp_path / "x.safetensors", tensors)
    assert described["bytes"] == (tmp_path / "x.safetensors").stat().st_size
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors.items())
