"""A run's copy at a URL: what is there is whole, a fresh host goes on from it bit for bit, and a store that fails ends no training.

The trainings are done in two plans, before and after the tests' meddling, because every start of torch and DeepSpeed takes seconds.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pytest
from command_runs import run_script
from forked import ForkedProcess
from loopback_store import Fault, Proxy, in_environment, proxy_to, s3_server
from tiny import REPOSITORY, environment, tiny_settings, write_settings
from training_runs import assert_same_end, events, job, launch, losses, run_launches

from lm1b.config import CheckpointsConfig
from lm1b.files import read_json_lines
from lm1b.training.checkpoints.checkpoint import Checkpoint, checkpoint_folder, list_checkpoints
from lm1b.training.checkpoints.retention import steps_to_keep

Seen = dict[str, dict[str, Any]]  # what the first rank saw, by run and number of steps


def s3() -> Any:
    """A client of the present endpoint: fsspec keeps those it has made."""
    fsspec.filesystem("s3").clear_instance_cache()
    return fsspec.filesystem("s3")


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    values = {"LM1B_STORE_SECONDS": "10"}
    with s3_server(tmp_path_factory.mktemp("s3")) as port, proxy_to(port) as proxy, in_environment(proxy.environment | values):
        s3().mkdir("runs")
        yield proxy
        s3()


def one(folder: Path, name: str, mirror: str | None, steps: int, **more: Any) -> dict[str, Any]:
    """A training of some steps, a checkpoint every ten."""
    sections = {"training": {"total_steps": steps, "gap_every": None}, "checkpoints": {"every": 10, "keep_last": 2}, **more}
    made = job(folder, name, **sections)
    made["config"]["run"]["mirror"] = mirror and f"s3://runs/{mirror}"
    return made


def train(folder: Path, plan: str, launches: list[tuple[int, list[dict[str, Any]]]]) -> Seen:
    """Do trainings in turn, on so many ranks."""
    reports = run_launches(folder, plan, [launch(ranks, jobs) for ranks, jobs in launches])
    found: Seen = {}
    for (_, jobs), report in zip(launches, reports, strict=True):
        for number, made in enumerate(jobs):
            name = Path(made["config"]["run"]["directory"]).name
            found[f"{name} {made['config']['training']['total_steps']}"] = report[0][number]
    return found


@dataclass
class Stage:
    """Trainings that were done, with the requests that the store saw meanwhile."""

    folder: Path
    seen: Seen
    requests: list[str]


@pytest.fixture(scope="module")
def first(tiny_folder: Path, proxy: Proxy) -> Stage:
    """Before the tests' meddling."""
    proxy.faults += [Fault("PUT /runs/fails/checkpoints", "503"), Fault("PUT /runs/slow", "delay", seconds=0.5)]
    proxy.seen.clear()
    here = tiny_folder
    alone = [
        one(here, "m_damage", "damage", 30),
        one(here, "m_again", "again", 20),
        one(here, "m_other", "other", 10),
        one(here, "m_slow", "slow", 40),
        one(here, "m_old", "newer", 20),
        one(here, "m_new", "newer", 30),
        one(here, "m_old", "newer", 40),
        one(here, "m_old", None, 50),
        one(here, "m_old", "newer", 60),
        one(here, "m_fails", "fails", 20),
    ]
    seen = train(here, "mirror_first", [(2, [one(here, "m_whole", None, 45), one(here, "m_first", "fresh", 30)]), (1, alone)])
    return Stage(here, seen, list(proxy.seen))


@pytest.fixture(scope="module")
def second(first: Stage, proxy: Proxy) -> Stage:
    """After it: a host that is lost, a store that answers again, files that are damaged there and here."""
    here = first.folder
    proxy.faults.clear()
    for name in ("m_first", "m_damage"):
        shutil.rmtree(here / name)
    files, path = s3(), "runs/damage/checkpoints/step_00000030/core.safetensors"
    data = bytearray(files.cat_file(path))
    data[len(data) // 2] ^= 16
    files.pipe_file(path, bytes(data))
    own = checkpoint_folder(here / "m_again", 20) / "core.safetensors"
    own.write_bytes(own.read_bytes()[:-1])
    proxy.faults += [Fault("GET /runs/fresh/checkpoints", kind, times=1) for kind in ("503", "flip", "cut", "truncate")]  # type: ignore[arg-type]
    proxy.seen.clear()
    alone = [
        one(here, "m_damage", "damage", 30),
        one(here, "m_again", "again", 30),
        one(here, "m_mine", "other", 10, softmax={"samples": 50}),
        one(here, "m_fails", "fails", 20),
    ]
    seen = train(here, "mirror_second", [(2, [one(here, "m_second", "fresh", 45)]), (1, alone)])
    return Stage(here, seen, list(proxy.seen))


def complete_in(mirror: str, folder: Path) -> dict[int, Checkpoint]:
    """Copy a mirror here; its complete checkpoints, each verified."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        s3().get(f"runs/{mirror}/checkpoints", str(folder / "checkpoints"), recursive=True)
    found = {checkpoint.step: checkpoint for checkpoint in list_checkpoints(folder)}
    for checkpoint in found.values():
        checkpoint.verify()
    return found


def test_two_ranks_mirror_what_is_kept_and_the_logs(first: Stage, proxy: Proxy, tmp_path: Path) -> None:
    assert first.seen["m_first 30"]["error"] is None
    for name in ("config.json", "environment.json", "metrics.jsonl", "events.jsonl"):
        (tmp_path / name).write_bytes(s3().cat_file(f"runs/other/{name}"))
        assert (tmp_path / name).read_bytes() == (first.folder / "m_other" / name).read_bytes(), name
    said = [line["text"] for line in read_json_lines(tmp_path / "events.jsonl")]
    assert "mirrored in s3://runs/other" in said
    assert said[-1].startswith("finished at step 10")
    started = "PUT /runs/fresh/checkpoints/"
    order = [request.removeprefix(started).split(" ")[0].split("?")[0] for request in first.requests if request.startswith(started)]
    assert "step_00000030/input_table.00001-of-00002.safetensors" in order  # the second rank's
    for step in {name.split("/")[0] for name in order}:
        assert [name for name in order if name.startswith(step)][-1] == f"{step}/manifest.json"


def test_retention_reaches_the_mirror(first: Stage, proxy: Proxy, tmp_path: Path) -> None:
    assert sorted(complete_in("slow", tmp_path)) == [30, 40]
    assert sorted(complete_in("newer", tmp_path)) == [50, 60]


def test_a_fresh_host_goes_on_bit_for_bit(second: Stage, tmp_path: Path) -> None:
    """Another folder, the checkpoint and the logs of two ranks from a store that fails now and then; the end is that of a whole run."""
    assert second.seen["m_second 45"]["error"] is None
    said = events(second.folder, "m_second")
    assert any("fetched the checkpoint of step 30 (" in text and "s3://runs/fresh" in text for text in said)
    assert any(text.startswith("going on at step 30 of 45") for text in said)
    assert losses(second.folder, "m_second") == losses(second.folder, "m_whole")  # its metrics.jsonl came too
    assert_same_end(second.folder, "m_whole", "m_second", 0)
    assert sorted(complete_in("fresh", tmp_path)) == [40, 45]


def test_the_newer_of_both_is_taken(first: Stage) -> None:
    assert "going on at step 20 of 30" in " ".join(events(first.folder, "m_new"))  # an empty folder
    said = " ".join(events(first.folder, "m_old"))
    assert "going on at step 30 of 40" in said  # a folder that had got to 20
    assert "going on at step 50 of 60" in said  # a mirror that had got to 40


def test_a_damaged_checkpoint_in_the_mirror_is_named_and_the_one_before_taken(second: Stage, tmp_path: Path) -> None:
    assert second.seen["m_damage 30"]["error"] is None
    said = events(second.folder, "m_damage")
    assert any(text.startswith("s3://runs/damage/checkpoints/step_00000030/core.safetensors: damaged (SHA-256") for text in said)
    assert any(text.startswith("going on at step 20 of 30") for text in said)
    assert not list((second.folder / "m_damage" / "checkpoints").glob("*.partial"))
    assert 30 in complete_in("damage", tmp_path)  # made anew, and there again


def test_one_that_is_damaged_here_is_fetched_again(second: Stage) -> None:
    said = events(second.folder, "m_again")
    assert any("set aside as" in text for text in said)
    assert any(text.startswith("going on at step 20 of 30") for text in said)


def test_another_experiments_mirror_is_refused_before_its_tables_are_fetched(second: Stage) -> None:
    error = second.seen["m_mine 10"]["error"]
    assert "run.mirror=s3://runs/other: " in error
    assert "softmax.samples" in error
    assert not [request for request in second.requests if request.startswith("GET /runs/other/checkpoints/") and "table" in request]


def test_a_store_that_fails_ends_no_training(first: Stage, second: Stage, tmp_path: Path) -> None:
    seen = first.seen["m_fails 20"]
    assert (seen["error"], seen["step"]) == (None, 20)
    said = events(first.folder, "m_fails")
    problems = [text for text in said if text.startswith("not mirrored: s3://runs/fails/checkpoints/step_000000")]
    assert problems
    assert all("times in" in text and "\n" not in text for text in problems)
    assert "NOT in the mirror s3://runs/fails: step_00000010, step_00000020; the same command tries again" in said
    # The same command again, when the store answers:
    assert second.seen["m_fails 20"]["error"] is None
    assert sorted(complete_in("fails", tmp_path)) == [10, 20]


def test_steps_do_not_wait_for_a_slow_store(first: Stage) -> None:
    """Half a second a request: dozens of them; what is not there at the end is waited for, and said."""
    said = read_json_lines(first.folder / "m_slow" / "events.jsonl")
    assert any(line["text"].startswith("waiting until step_") for line in said)
    started, ended = (next(line for line in said if text in line["text"]) for text in ("starting of 40", "waiting until"))
    assert ended["step"] == 40
    assert started["step"] == 0
    assert said[-1]["text"].startswith("finished at step 40")


def test_the_other_ranks_wait_for_the_last_lines_of_the_logs(tiny_folder: Path, proxy: Proxy) -> None:
    """A second more for each than ranks wait for one that hangs."""
    proxy.faults.append(Fault("PUT /runs/last/events", "delay", seconds=6))
    with in_environment({"LM1B_TIMEOUT_SECONDS": "5"}):
        seen = train(tiny_folder, "mirror_last", [(2, [one(tiny_folder, "m_last", "last", 10)])])
    assert seen["m_last 10"]["error"] is None
    assert s3().cat_file("runs/last/events.jsonl") == (tiny_folder / "m_last" / "events.jsonl").read_bytes()


def test_a_store_that_is_not_there_at_the_start_is_one_line(tiny_folder: Path, proxy: Proxy) -> None:
    """A fresh host would begin anew where its mirror cannot be asked."""
    config = write_settings(tiny_folder, "m_none")
    done = run_script("launch/train.py", "--config", str(config), "--set", "run.mirror=s3://no-such-bucket/run")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("lm1b: error: s3://no-such-bucket/run/checkpoints: could not be listed: not there; check the bucket")


def test_killed_while_copying_leaves_no_damaged_checkpoint(tiny_folder: Path, proxy: Proxy, tmp_path: Path) -> None:
    """SIGKILL at moments all over the copying of a checkpoint, again and again into the same mirror."""
    settings = tiny_settings(tiny_folder, "m_kill", training={"total_steps": 100_000}, checkpoints={"every": 10, "keep_last": 2})
    settings["run"] |= {"mirror": "s3://runs/kill"}
    config = tmp_path / "kill.json"
    config.write_text(json.dumps(settings))
    proxy.faults.append(Fault("PUT /runs/kill/checkpoints", "delay", seconds=0.05))
    steps: list[int] = []
    for puts in (3, 8, 14):
        proxy.seen.clear()
        with open(tmp_path / "output", "wb") as output:
            arguments = ["--config", str(config)]
            process = ForkedProcess("launch/train.py", arguments, env=environment(), cwd=REPOSITORY, stdout=output, stderr=output)
        try:
            until = time.monotonic() + 90
            while sum(request.startswith("PUT /runs/kill/checkpoints") for request in list(proxy.seen)) < puts:
                assert process.poll() is None, "the training ended by itself"
                assert time.monotonic() < until
                time.sleep(0.005)
        finally:
            process.kill()
        steps.append(max(complete_in("kill", tmp_path / "copy"), default=0))
    assert steps == sorted(steps)
    assert steps[-1] > 0


def test_which_steps_are_kept() -> None:
    assert steps_to_keep([10, 20, 30, 40], CheckpointsConfig(keep_last=2), None) == {30, 40}
    assert steps_to_keep([10, 20, 30, 40], CheckpointsConfig(keep_last=1, keep_every=20), 10) == {10, 20, 40}
