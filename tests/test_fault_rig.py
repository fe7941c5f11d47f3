"""The fault rig itself, so that it does not rot: a few real kills, and that it sees what is lost."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command_runs import run_script
from parts.fault_rig import launches
from parts.fault_rig.compare import wrong_bytes, wrong_lines
from parts.fault_rig.damage import KINDS, is_refused, read_tokens, spoil
from parts.fault_rig.points import POINTS, Order, find
from parts.fault_rig.table import Trial, as_text, rows_of
from tiny import REPOSITORY, environment


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a small call of the rig writes: a rank of a real training, a preprocessing worker and its parent are killed."""
    path = tmp_path_factory.mktemp("rig") / "report.json"
    options = ["--kills", "3", "--phases", "preprocessing", "table file", "--corruptions", "10", "--end-to-end", "0"]
    command = [sys.executable, "tools/fault_rig.py", *options, "--only", "kills", "corruptions", "--seed", "4", "--json", str(path)]
    done = subprocess.run(command, env=environment(), cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3 resumed" in done.stdout
    assert "10 of 10 corruptions found" in done.stdout
    return json.loads(path.read_text())


def test_killed_processes_resume_to_the_same_bytes(report: dict[str, Any]) -> None:
    kills = [trial for trial in report["trials"] if trial["phase"]]
    assert report["phases"] == {"preprocessing": 2, "table file": 1}
    assert [trial["wrong_bytes"] for trial in kills] == [0, 0, 0]
    assert all(trial["survived"] for trial in kills)
    (rank,) = [trial for trial in kills if trial["fault"] == "rank killed"]
    assert 0 <= rank["steps_lost"] <= 10


def test_nothing_is_left_of_a_call(report: dict[str, Any]) -> None:
    logs = {Path(trial["log"]) for trial in report["trials"] if trial["log"]}
    assert logs
    assert not any(log.parent.parent.exists() for log in logs)
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        assert str(next(iter(logs)).parent.parent) not in process.read_text(errors="replace")


def test_every_patch_point_is_a_function_of_the_program() -> None:
    for point in POINTS.values():
        owner, name = find(point)
        assert callable(getattr(owner, name))


DELETING = """
import contextlib, os, sys
from pathlib import Path
sys.path.insert(0, "tools")
from lm1b.training.checkpoints.checkpoint import Checkpoint
from parts.fault_rig.points import Order, install
folder, path = Path(sys.argv[1]), Path(sys.argv[1], "step_00000010")
install(Order("", "retention", str(folder / "mark"), moment="after"), is_worker=False)
with contextlib.suppress(FileNotFoundError):
    os.replace(path, folder / "step_00000010.replaced.partial")  # as a save does with a checkpoint of the same step, if there is one
path.mkdir()
Checkpoint(10, path).delete()
"""


def test_retention_is_struck_as_a_checkpoint_loses_its_name(tmp_path: Path) -> None:
    assert run_script("-c", DELETING, str(tmp_path)).returncode == -9
    assert (tmp_path / "mark").exists()
    assert (tmp_path / "step_00000010.deleted.partial").is_dir()


def test_a_launch_with_an_order_goes_by_way_of_the_victim(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[list[str]] = []

    def start(command: list[str], **_: Any) -> SimpleNamespace:
        started.append(command)
        return SimpleNamespace(pid=1)

    monkeypatch.setattr(launches, "subprocess", SimpleNamespace(Popen=start, DEVNULL=None))
    monkeypatch.setattr(launches, "_running", [])
    for order in (None, Order(launches.EVALUATE, "evaluation line", "mark")):
        launches.Launch(launches.EVALUATE, ["--run", "x"], tmp_path / "log", order)
    for order in (None, Order(launches.TRAIN, "backward", "mark")):
        launches.Launch(launches.TRAIN, ["--config", "x"], tmp_path / "log", order, ranks=3)
    victim = str(launches.VICTIM)
    assert [command[1:] for command in started[:2]] == [["launch/evaluate.py", "--run", "x"], [victim, "--run", "x"]]
    assert [command[1:3] for command in started[2:]] == [["--num_gpus", "3"]] * 2
    assert [command[-3:] for command in started[2:]] == [["launch/train.py", "--config", "x"], [victim, "--config", "x"]]


@pytest.mark.parametrize("kind", KINDS)
def test_damage_that_a_reader_overlooks_counts_as_not_found(tiny_folder: Path, tmp_path: Path, kind: Any) -> None:
    copy = Path(shutil.copytree(tiny_folder / "tokens", tmp_path / "tokens"))
    assert is_refused(copy, read_tokens) == "not found"  # nothing is wrong yet
    spoil(copy, kind, random.Random(1))
    assert is_refused(copy, read_tokens) is None
    assert is_refused(copy, lambda folder: None) == "not found"
    assert wrong_bytes(copy, tiny_folder / "tokens", leave_out=()) > 0


def test_bytes_and_lines_that_differ_are_counted(tmp_path: Path) -> None:
    for name, last in (("one", 7), ("two", 9)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "core.safetensors").write_bytes(bytes([1, 2, 3, last]))
        (tmp_path / name / "state.json").write_text(json.dumps({"step": 3, "counts": {"elapsed_seconds": last}}))
        (tmp_path / name / "metrics.jsonl").write_text(f'{{"step": 1, "nats_per_word": 2.5}}\n{{"step": 2, "nats_per_word": {last}}}\n')
    assert wrong_bytes(tmp_path / "one", tmp_path / "two", leave_out=("metrics.jsonl",)) == 1
    assert wrong_lines(tmp_path / "one" / "metrics.jsonl", tmp_path / "two" / "metrics.jsonl") == 2
    (tmp_path / "two" / "core.safetensors").unlink()
    assert wrong_bytes(tmp_path / "one", tmp_path / "two", leave_out=("metrics.jsonl",)) == 4


def test_the_table_tells_tried_from_survived() -> None:
    trials = [Trial("rank killed", steps_lost=3, wrong_bytes=0), Trial("rank killed", steps_lost=8, wrong_bytes=5)]
    trials += [Trial("rank killed", problem="hung"), Trial("disk full", skipped="no mount")]
    killed, disk = rows_of(trials)
    assert killed.cells()[:6] == ["rank killed", "3", "1", "8", "", "5"]
    assert disk.cells()[:3] == ["disk full", "0", "skipped: no mount"]
    assert as_text(trials, markdown=True).count("\n") == 3
