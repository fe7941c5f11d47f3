"""Ranks that do something apart and agree on how it went: two real processes."""

from __future__ import annotations

import pytest
from tiny import run_ranks

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
