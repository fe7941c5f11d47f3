"""Ranks that do something apart and agree on how it went: two real processes. And what a rank's start leaves out."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from forked import run_forked
from tiny import REPOSITORY, environment, environments, run_ranks

from lm1b.distributed import agree, single_process
from lm1b.errors import UserError

SLOW = """
import time
from lm1b.distributed import agree
from lm1b.errors import UserError
from lm1b.training.engine.process_group import start_ranks, stop_ranks
ranks = start_ranks()
print("result", agree(ranks, lambda: time.sleep(5 * ranks.rank) or 10 + ranks.rank, may_take_long=True))

def fail():
    if ranks.rank == 1:
        raise UserError("the disk is full")

for patient in (False, True):
    try:
        agree(ranks, fail, may_take_long=patient)
    except UserError as error:
        print("said", error)
stop_ranks()
"""


def test_ranks_wait_for_a_slow_one_beyond_the_time_limit_and_share_its_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LM1B_TIMEOUT_SECONDS", "2")
    printed = run_ranks(["-c", SLOW], 2).splitlines()
    assert sorted(line for line in printed if line.startswith("result")) == ["result 10", "result 11"]
    assert [line for line in printed if line.startswith("said")] == ["said the disk is full (rank 1)"] * 4


def test_one_process_agrees_with_itself() -> None:
    assert agree(single_process(), lambda: 3, may_take_long=True) == 3
    with pytest.raises(UserError, match=r"nowhere: No such file"):
        agree(single_process(), lambda: open("nowhere"))  # noqa: SIM115


MUON = """
import sys, torch
from lm1b.training.engine.process_group import import_deepspeed, without_inductor
import_deepspeed()
with without_inductor():
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam
sys.exit("torch._inductor.compile_fx" in sys.modules or torch.compiler.get_default_backend() != "inductor")
"""


@pytest.mark.skipif(not hasattr(torch.compiler, "set_default_backend"), reason="this torch has no other default than its compiler")
def test_an_engines_start_imports_no_compiler_and_leaves_torchs_default_as_it_was() -> None:
    done = subprocess.run([sys.executable, "-c", MUON], env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


MISTAKEN = """
import sys, time
import torch, torch.distributed as dist
from lm1b.errors import UserError, run_command
from lm1b.launchers import here
from lm1b.peers import naming_the_guilty
from lm1b.training.engine.process_group import start_ranks, stop_ranks

ranks_with_it, when = sys.argv[1], sys.argv[2]

def look(what):
    if what == when and str(here().rank) in ranks_with_it:
        raise UserError("words.json: no such file")

def connect_slowly(*place, **options):
    connect(*place, **options)
    time.sleep(1)
    dist.all_reduce(torch.ones(1))

if when == "while others connect" and here().rank:
    connect, dist.init_process_group = dist.init_process_group, connect_slowly

def main():
    look("before they meet")
    ranks = start_ranks()
    try:
        with naming_the_guilty(ranks.peers, lambda: "go on"):
            look("once they have met")
            look("while others connect")
            while True:
                dist.all_reduce(torch.ones(1))
    finally:
        stop_ranks()

run_command(main)
"""


@pytest.mark.parametrize(
    ("ranks_with_it", "when"),
    [
        *[("12", "before they meet"), ("012", "before they meet")],
        ("0", "while others connect"),
        *[("0", "once they have met"), ("12", "once they have met"), ("012", "once they have met")],
    ],
)
def test_a_mistake_is_said_once_by_the_first_rank_whoever_has_found_it(
    ranks_with_it: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (ranks_with_it, when) == ("012", "before they meet"):
        monkeypatch.setenv("LM1B_TIMEOUT_SECONDS", "2")  # nobody comes to where they meet, and no launcher ends those who wait there
    done = run_forked("-c", [MISTAKEN, ranks_with_it, when], environments(3), REPOSITORY, timeout=120)
    (line,) = [line for line in done.stderr.splitlines() if "lm1b: error:" in line]
    assert line.startswith("lm1b: error: words.json: no such file")
    assert ("(rank 1" in line) == (ranks_with_it == "12")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)


def test_an_interface_that_one_host_lacks_is_said_before_the_ranks_meet() -> None:
    first, second = environments(2)
    done = run_forked("-c", [MISTAKEN, "", ""], [first, {**second, "GLOO_SOCKET_IFNAME": "eth77"}], REPOSITORY, timeout=120)
    (line,) = [line for line in done.stderr.splitlines() if "lm1b: error:" in line]
    assert line.startswith("lm1b: error: GLOO_SOCKET_IFNAME=eth77: no such network interface here, there are ")
    assert "(rank 1" in line
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
