"""Two real ranks, the second with something of its own: each difference is one line on both, before anything is trained."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from forked import Ended, run_each
from tiny import REPOSITORY, environments, tiny_settings, write_corpus, write_settings

from lm1b.config import parse_config
from lm1b.data.preprocess.preprocess import preprocess
from lm1b.processes import host_name

WORKER = str(Path(__file__).with_name("same_everywhere_worker.py"))
HOST = host_name()


def run_two(commands: list[list[str]], own: dict[str, str], other_code: bool = False) -> list[Ended]:
    """Two ranks to their end, the second with variables of its own."""
    first, second = environments(2)
    return run_each(commands, [first, {**second, **own}], [REPOSITORY] * 2, unforked=1 if other_code else None)


def checked(first: dict[str, str], second: dict[str, str], own: dict[str, str], other_code: bool = False) -> list[dict[str, Any]]:
    """What both ranks' checks said; own: variables of the second alone."""
    ended = run_two([[WORKER, json.dumps(first)], [WORKER, json.dumps(second)]], own, other_code)
    for rank in ended:
        assert rank.returncode == 0, rank.stderr
    return [json.loads(rank.stdout.splitlines()[-1]) for rank in ended]


@pytest.fixture(scope="module")
def folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny corpus, tokens of other text beside it, and another host's program: one file of ours changed, torch 2.10."""
    folder = tmp_path_factory.mktemp("same")
    (folder / "corpus").symlink_to(tiny_folder / "corpus")
    (folder / "tokens").symlink_to(tiny_folder / "tokens")
    write_corpus(folder / "other" / "corpus", seed=6)
    preprocess(parse_config(tiny_settings(folder / "other", "none")), progress=False)
    shutil.copytree(REPOSITORY / "lm1b", folder / "program" / "lm1b", ignore=shutil.ignore_patterns("__pycache__"))
    with open(folder / "program" / "lm1b" / "training" / "step" / "schedule.py", "a") as file:
        file.write("# another line\n")
    for name, version in (("torch", "2.10.0"), ("numpy", "0.0.1")):
        (folder / "program" / f"{name}-{version}.dist-info").mkdir()
        (folder / "program" / f"{name}-{version}.dist-info" / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
    return folder


def test_equal_ranks_pass_and_take_little_time(folder: Path) -> None:
    given = {"config": str(write_settings(folder, "equal")), "tokens": str(folder / "tokens"), "run": str(folder / "equal")}
    # Places of files and shares of cores may be each host's own.
    elsewhere = write_settings(folder, "elsewhere", training={"threads": 3}, corpus={"path": "/elsewhere"})
    for said in checked(given, {**given, "config": str(elsewhere)}, {}):
        assert (said["program"], said["tokens"], said["run folder"]) == ([], None, None)
        assert said["seconds"] < 5  # some 20 ms on a quiet machine: no step of it may wait for anything
        assert said["cores"] == max(1, len(os.sched_getaffinity(0)) // 2)


def test_every_difference_is_named_with_where_it_is_and_what_to_do(folder: Path) -> None:
    first = {"config": str(write_settings(folder, "one")), "tokens": str(folder / "tokens"), "run": str(folder / "one")}
    other_config = write_settings(folder, "two", training={"total_steps": 51})
    second = {"config": str(other_config), "tokens": str(folder / "other" / "tokens"), "run": str(folder / "two")}
    one, two = checked(first, second, {"PYTHONPATH": str(folder / "program")}, other_code=True)
    program = one["program"]
    assert two["program"] == program
    assert f"but 2.10.0 on rank 1 on {HOST}; install the same" in program
    assert "see training/step/schedule.py;" in program
    assert program.endswith("see training.total_steps")
    assert one["tokens"] == two["tokens"]
    assert "the tokens' vocabulary differs" in one["tokens"]
    assert "preprocess the same corpus" in one["tokens"]
    assert one["run folder"] == two["run folder"]
    assert "is not the folder that it is on" in one["run folder"]
    assert one["run folder"].endswith("(rank 1)")


def test_what_does_no_harm_is_a_note(folder: Path) -> None:
    given = {"config": str(write_settings(folder, "note")), "tokens": str(folder / "tokens"), "run": str(folder / "note")}
    shutil.copytree(folder / "program" / "numpy-0.0.1.dist-info", folder / "numpy" / "numpy-0.0.1.dist-info")
    own = {"PYTHONPATH": os.pathsep.join([str(folder / "numpy"), str(REPOSITORY)])}
    for said in checked(given, given, own):
        (note,) = said["program"]
        assert note.startswith("numpy differs: ")
        assert note.endswith(f"but 0.0.1 on rank 1 on {HOST}; which should do no harm")


def test_a_training_with_other_code_on_one_rank_ends_before_it_starts_with_one_line(folder: Path) -> None:
    command = ["launch/train.py", "--config", str(write_settings(folder, "refused"))]
    one, two = run_two([command, command], {"PYTHONPATH": str(folder / "program")}, other_code=True)
    assert (one.returncode, two.returncode) == (2, 2), one.stderr + two.stderr
    assert two.stderr == ""
    assert one.stderr.count("\n") == 1
    assert one.stderr.startswith("lm1b: error: torch differs: ")
    assert not (folder / "refused" / "metrics.jsonl").exists()
