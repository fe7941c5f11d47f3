"""Damaged checkpoints: named and put aside, the newest sound one is taken, and nothing in one is run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from table_steps import ALONE, made_table

from lm1b.errors import UserError
from lm1b.training.checkpoints.checkpoint import Checkpoint, DamagedCheckpoint, list_checkpoints
from lm1b.training.checkpoints.saving import CheckpointSaver
from lm1b.training.resume import newest_sound_checkpoint

CARRY = {"0.h": torch.ones(2, 3, dtype=torch.bfloat16)}


def saved_steps(run: Path, steps: list[int]) -> None:
    saver = CheckpointSaver(run, ALONE)
    for step in steps:
        saver.begin({"step": step, "config": {}, "ranks": 1}, {"weights/a": torch.ones(2)}, CARRY, [made_table()])
    saver.finish()


def damage(run: Path, step: int, name: str) -> None:
    path = run / "checkpoints" / f"step_{step:08d}" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["state.json", "manifest.json", "core.safetensors", "a_table.00000-of-00001.safetensors"])
def test_damage_is_named_and_the_newest_sound_checkpoint_taken(tmp_path: Path, name: str) -> None:
    saved_steps(tmp_path, [10, 20, 30])
    damage(tmp_path, 30, name)
    (tmp_path / "checkpoints" / "step_00000020" / "manifest.json").unlink()
    said: list[str] = []
    found = newest_sound_checkpoint(tmp_path, ALONE, lambda state: None, said.append)
    assert found is not None
    assert found.step == 10
    assert len(said) == 2
    assert f"step_00000030/{name}" in said[0]
    assert "expected" in said[0] or "not valid JSON" in said[0]
    assert "step_00000030.damaged" in said[0]
    assert "step_00000020/manifest.json: missing" in said[1]
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"step_00000010", "step_00000020.damaged", "step_00000030.damaged"}


def test_no_run_starts_anew_where_every_checkpoint_is_damaged(tmp_path: Path) -> None:
    for _ in range(2):
        saved_steps(tmp_path, [10])
        damage(tmp_path, 10, "core.safetensors")
        for _ in range(2):  # not at the next start either
            with pytest.raises(UserError, match=r"every checkpoint is damaged \(step_00000010.damaged"):
                newest_sound_checkpoint(tmp_path, ALONE, lambda state: None, lambda text: None)
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"step_00000010.damaged", "step_00000010.damaged2"}


def test_another_experiments_checkpoint_is_refused_and_left_alone(tmp_path: Path) -> None:
    saved_steps(tmp_path, [10])

    def refuse(state: dict[str, Any]) -> None:
        raise UserError("another experiment")

    with pytest.raises(UserError, match="another experiment"):
        newest_sound_checkpoint(tmp_path, ALONE, refuse, lambda text: pytest.fail(text))
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [10]


def test_a_pickle_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "it ran"
    evil = b"cos\nsystem\n(S'touch \"" + os.fsencode(marker) + b"\"'\ntR."
    for name in ("manifest.json", "state.json", "core.safetensors", "carry.safetensors", "a_table.00000-of-00001.safetensors"):
        run = tmp_path / name
        saved_steps(run, [10])
        path = run / "checkpoints" / "step_00000010" / name
        path.write_bytes(evil)
        checkpoint = Checkpoint(10, path.parent)
        with pytest.raises(DamagedCheckpoint, match=name):
            checkpoint.verify()
        for read in (checkpoint.core, checkpoint.carry, checkpoint.optimizer_keys, lambda: checkpoint.read_table("a_table")):  # noqa: B023
            try:
                read()
            except UserError:
                continue
        assert not marker.exists()
