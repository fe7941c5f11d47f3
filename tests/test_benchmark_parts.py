"""What the benchmark says of a step is the step's own: other threads stand apart, by name. And what it ends, it ends whole."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from parts.benchmark.profiled import profile_steps
from parts.benchmark.resume import kill_family
from parts.benchmark.thread_time import ThreadTime
from tiny import REPOSITORY, environment

from lm1b.profiling import part


def test_what_a_thread_does_behind_the_step_is_no_part_of_it() -> None:
    values = torch.randn(300, 300)

    def ahead() -> None:
        with part("batch"):
            values.sort()

    def step() -> None:
        thread = threading.Thread(target=ahead)
        thread.start()
        with part("status"):
            _ = values @ values
        thread.join()

    found = profile_steps(step, 3, is_alone=True)
    assert set(found.seconds) - {"other"} == {"status"}
    assert set(found.behind) - {"other"} == {"batch"}
    assert found.busy_behind >= found.behind["batch"] > 0
    assert 0 < found.products <= sum(found.seconds.values())


def test_cpu_time_is_told_by_thread() -> None:
    def spin() -> None:
        while time.thread_time() < 0.3:
            pass
        done.set()
        leave.wait()  # the time of a thread that is gone cannot be read any more

    measured, done, leave = ThreadTime(), threading.Event(), threading.Event()
    thread = threading.Thread(target=spin, name="lm1b_rows_0")
    measured.start()
    thread.start()
    done.wait()
    measured.stop()
    leave.set()
    thread.join()
    found = measured.mean(1)
    assert 0.25 < found["lm1b_rows"] < 0.5
    assert found["main"] < found["lm1b_rows"]


def test_a_run_that_is_ended_leaves_none_of_its_processes(tmp_path: Path) -> None:
    process = subprocess.Popen(["sh", "-c", f"sleep 60 & echo $! > {tmp_path}/inner; wait"])
    while not (tmp_path / "inner").exists() or not (tmp_path / "inner").read_text().strip():
        time.sleep(0.01)
    inner = psutil.Process(int((tmp_path / "inner").read_text()))
    kill_family(process)
    assert process.returncode is not None  # -9, or 0 where the shell saw its child end before its own end came
    assert not inner.is_running() or inner.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("worker", ["benchmark/plain.py", "harness/step_worker.py"])
def test_a_worker_finds_the_parts_by_itself(worker: str) -> None:
    """On another host as well, where nobody has set PYTHONPATH to tools/."""
    command = [sys.executable, str(REPOSITORY / "tools" / "parts" / worker), "--help"]
    done = subprocess.run(command, env=environment(PYTHONPATH=str(REPOSITORY)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
