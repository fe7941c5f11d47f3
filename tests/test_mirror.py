"""A run's copy at a URL: what is there is whole, a fresh host goes on from it bit for bit, and a store that fails ends no training."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from loopback_store import Fault, Proxy, in_environment, proxy_to, s3_server
from tiny import environment, tiny_settings, write_settings
from training_runs import assert_same_end, events, job, launch, losses, run_launches

from lm1b.files import read_json_lines
from lm1b.training.checkpoint import Checkpoint, checkpoint_folder, list_checkpoints, steps_to_keep
from lm1b.training.mirror import LOGS

SHORT: dict[str, Any] = {"gap_every": None}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with s3_server(tmp_path_factory.mktemp("s3")) as port:
        yield port


@pytest.fixture
def proxy(server: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setenv("LM1B_STORE_SECONDS", "3")
    with proxy_to(server) as proxy, in_environment(proxy.environment):
        files = s3()
        if not files.exists("runs"):
            files.mkdir("runs")
        proxy.seen.clear()
        yield proxy
        s3()


def s3() -> Any:
    fsspec.filesystem("s3").clear_instance_cache()
    return fsspec.filesystem("s3")


def mirrored(tiny_folder: Path, name: str, url: str, steps: int, **more: Any) -> dict[str, Any]:
    sections = {"training": {"total_steps": steps, **SHORT}, "checkpoints": {"every": 10, "keep_last": 2}, **more}
    return job(tiny_folder, name, **sections, run={"mirror": url, "directory": str(tiny_folder / name)})


def train(folder: Path, name: str, ranks: int, one: dict[str, Any]) -> list[dict[str, Any]]:
    (seen,) = run_launches(folder, name, [launch(ranks, [one])])
    return [rank[0] for rank in seen]


def complete_in(bucket_path: str, folder: Path) -> dict[int, Checkpoint]:
    """Copy a mirror here; its complete checkpoints, each verified."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        s3().get(f"{bucket_path}/checkpoints", str(folder / "checkpoints"), recursive=True)
    found = {checkpoint.step: checkpoint for checkpoint in list_checkpoints(folder)}
    for checkpoint in found.values():
        checkpoint.verify()
    return found


def test_two_ranks_mirror_what_is_kept_and_the_logs(tiny_folder: Path, proxy: Proxy, tmp_path: Path) -> None:
    seen = train(tiny_folder, "m_two", 2, mirrored(tiny_folder, "m_two", "s3://runs/two", 40))
    assert [rank["error"] for rank in seen] == [None, None]
    assert sorted(complete_in("runs/two", tmp_path)) == [30, 40] == [c.step for c in list_checkpoints(tiny_folder / "m_two")]
    for name in LOGS[:-1]:
        assert s3().cat_file(f"runs/two/{name}") == (tiny_folder / "m_two" / name).read_bytes(), name
    assert events(tiny_folder, "m_two")[-2:][0] == "mirrored in s3://runs/two"
    started = "PUT /runs/two/checkpoints/"
    order = [request.removeprefix(started).split(" ")[0] for request in proxy.seen if request.startswith(started)]
    for step in {name.split("/")[0] for name in order}:
        assert [name for name in order if name.startswith(step)][-1] == f"{step}/manifest.json"
    deleted = [request.split("/")[-1] for request in proxy.seen if request.startswith("DELETE") and "step_00000010" in request]
    assert not deleted or deleted[0].startswith("manifest.json")


def test_a_fresh_host_goes_on_bit_for_bit(tiny_folder: Path, proxy: Proxy, tmp_path: Path) -> None:
    whole = job(tiny_folder, "m_whole", training={"total_steps": 45, **SHORT}, checkpoints={"every": 10, "keep_last": 2})
    assert train(tiny_folder, "m_whole", 2, whole)[0]["error"] is None
    train(tiny_folder, "m_first", 2, mirrored(tiny_folder, "m_first", "s3://runs/fresh", 30))
    shutil.rmtree(tiny_folder / "m_first")
    # Another host: an empty folder of another name, another number of steps to go; the store fails now and then.
    proxy.faults += [Fault("GET /runs/fresh/checkpoints", kind, times=1) for kind in ("503", "cut", "truncate")]  # type: ignore[arg-type]
    (seen, _) = train(tiny_folder, "m_second", 2, mirrored(tiny_folder, "m_second", "s3://runs/fresh", 45))
    assert seen["error"] is None
    said = events(tiny_folder, "m_second")
    assert any("fetched the checkpoint of step 30 (" in text and "s3://runs/fresh" in text for text in said)
    assert any(text.startswith("going on at step 30 of 45") for text in said)
    assert losses(tiny_folder, "m_second") == losses(tiny_folder, "m_whole")  # its metrics.jsonl came too
    assert_same_end(tiny_folder, "m_whole", "m_second", 0)
    assert sorted(complete_in("runs/fresh", tmp_path)) == [40, 45]


def test_the_newer_of_both_is_taken(tiny_folder: Path, proxy: Proxy) -> None:
    train(tiny_folder, "m_here", 1, mirrored(tiny_folder, "m_here", "s3://runs/newer", 20))
    shutil.copytree(tiny_folder / "m_here", tiny_folder / "m_old")
    train(tiny_folder, "m_here", 1, mirrored(tiny_folder, "m_here", "s3://runs/newer", 30))
    # The mirror is newer than this folder:
    train(tiny_folder, "m_old", 1, mirrored(tiny_folder, "m_old", "s3://runs/newer", 40))
    assert any(text.startswith("going on at step 30 of 40") for text in events(tiny_folder, "m_old"))
    # and this folder newer than its mirror:
    s3().rm("runs/newer/checkpoints/step_00000040", recursive=True)
    train(tiny_folder, "m_old", 1, mirrored(tiny_folder, "m_old", "s3://runs/newer", 50))
    assert any(text.startswith("going on at step 40 of 50") for text in events(tiny_folder, "m_old"))


def test_a_damaged_checkpoint_in_the_mirror_is_named_and_the_one_before_taken(tiny_folder: Path, proxy: Proxy) -> None:
    train(tiny_folder, "m_damage", 1, mirrored(tiny_folder, "m_damage", "s3://runs/damage", 30))
    shutil.rmtree(tiny_folder / "m_damage")
    files, path = s3(), "runs/damage/checkpoints/step_00000030/core.safetensors"
    data = bytearray(files.cat_file(path))
    data[len(data) // 2] ^= 16
    files.pipe_file(path, bytes(data))
    (seen,) = train(tiny_folder, "m_damage", 1, mirrored(tiny_folder, "m_damage", "s3://runs/damage", 30))
    assert seen["error"] is None
    said = events(tiny_folder, "m_damage")
    assert any(text.startswith("s3://runs/damage/checkpoints/step_00000030/core.safetensors: damaged, SHA-256") for text in said)
    assert any(text.startswith("going on at step 20 of 30") for text in said)
    assert not list((tiny_folder / "m_damage" / "checkpoints").glob("*.partial"))


def test_one_that_is_damaged_here_is_fetched_again(tiny_folder: Path, proxy: Proxy) -> None:
    train(tiny_folder, "m_again", 1, mirrored(tiny_folder, "m_again", "s3://runs/again", 20))
    path = checkpoint_folder(tiny_folder / "m_again", 20) / "core.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    train(tiny_folder, "m_again", 1, mirrored(tiny_folder, "m_again", "s3://runs/again", 30))
    said = events(tiny_folder, "m_again")
    assert any("set aside as" in text for text in said)
    assert any(text.startswith("going on at step 20 of 30") for text in said)


def test_another_experiments_mirror_is_refused_before_its_tables_are_fetched(tiny_folder: Path, proxy: Proxy) -> None:
    train(tiny_folder, "m_other", 1, mirrored(tiny_folder, "m_other", "s3://runs/other", 10))
    proxy.seen.clear()
    (seen,) = train(tiny_folder, "m_mine", 1, mirrored(tiny_folder, "m_mine", "s3://runs/other", 10, softmax={"samples": 50}))
    assert "run.mirror=s3://runs/other: " in seen["error"]
    assert "softmax.samples" in seen["error"]
    assert not [
        request for request in proxy.seen if "table" in request and request.startswith("GET /runs/other/checkpoints/step_00000010/")
    ]


def test_a_store_that_fails_ends_no_training(tiny_folder: Path, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LM1B_STORE_SECONDS", "0.5")
    proxy.faults.append(Fault("PUT /runs/fails/checkpoints", "503"))
    (seen,) = train(tiny_folder, "m_fails", 1, mirrored(tiny_folder, "m_fails", "s3://runs/fails", 20))
    assert seen["error"] is None
    assert seen["step"] == 20
    said = events(tiny_folder, "m_fails")
    assert any(text.startswith("not mirrored: s3://runs/fails/checkpoints/step_000000") and "times in" in text for text in said)
    assert any(text.startswith("NOT in the mirror s3://runs/fails: step_00000010, step_00000020") for text in said)
    assert said[-1].startswith("finished at step 20 of 20")
    assert complete_in("runs/fails", tmp_path) == {}
    proxy.faults.clear()
    train(tiny_folder, "m_fails", 1, mirrored(tiny_folder, "m_fails", "s3://runs/fails", 20))
    assert sorted(complete_in("runs/fails", tmp_path)) == [10, 20]


def test_a_store_that_is_not_there_at_the_start_is_one_line(tiny_folder: Path, proxy: Proxy) -> None:
    """A fresh host would begin anew where its mirror cannot be asked."""
    config = write_settings(tiny_folder, "m_none", run={"directory": str(tiny_folder / "m_none"), "mirror": "s3://no-such-bucket/run"})
    command = [sys.executable, "launch/train.py", "--config", str(config)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("lm1b: error: s3://no-such-bucket/run/checkpoints: could not be listed: not there; check the bucket")


def test_killed_while_copying_leaves_no_damaged_checkpoint(tiny_folder: Path, proxy: Proxy, tmp_path: Path) -> None:
    """SIGKILL at moments all over the copying of a checkpoint, again and again into the same mirror."""
    settings = tiny_settings(tiny_folder, "m_kill", training={"total_steps": 100_000, **SHORT}, checkpoints={"every": 10, "keep_last": 2})
    settings["run"] |= {"mirror": "s3://runs/kill"}
    config = tmp_path / "kill.json"
    config.write_text(json.dumps(settings))
    proxy.faults.append(Fault("PUT /runs/kill/checkpoints", "delay", seconds=0.05))
    steps: list[int] = []
    for puts in (2, 5, 8, 13, 17):
        proxy.seen.clear()
        process = subprocess.Popen(
            [sys.executable, "launch/train.py", "--config", str(config)], env=environment(), stderr=subprocess.DEVNULL
        )
        try:
            until = time.monotonic() + 90
            while sum(request.startswith("PUT /runs/kill/checkpoints") for request in list(proxy.seen)) < puts:
                assert process.poll() is None, "the training ended by itself"
                assert time.monotonic() < until
                time.sleep(0.005)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        steps.append(max(complete_in("runs/kill", tmp_path / "copy"), default=0))
    assert steps == sorted(steps)
    assert steps[-1] > 0


def test_steps_do_not_wait_for_a_slow_store(tiny_folder: Path, proxy: Proxy) -> None:
    """Every request takes a second; the steps between two checkpoints do not."""
    proxy.faults.append(Fault("PUT /runs/slow", "delay", seconds=1.0))
    train(tiny_folder, "m_slow", 1, mirrored(tiny_folder, "m_slow", "s3://runs/slow", 40))
    lines = read_json_lines(tiny_folder / "m_slow" / "metrics.jsonl")
    said = read_json_lines(tiny_folder / "m_slow" / "events.jsonl")
    assert len(lines) == 40
    waiting = [line for line in said if line["text"].startswith("waiting until step_")]
    assert waiting, "all was copied before the end: then nothing was slow"
    assert said[-1]["text"].startswith("finished at step 40")


def test_which_steps_are_kept() -> None:
    assert steps_to_keep([10, 20, 30, 40], 2, None, None) == {30, 40}
    assert steps_to_keep([10, 20, 30, 40], 1, 20, 10) == {10, 20, 40}
