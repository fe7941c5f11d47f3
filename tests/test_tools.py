"""The commands of tools/ that have several uses: each is found, tells what it is for, and is run with what was typed."""

from __future__ import annotations

import argparse
import importlib
import sys
from types import SimpleNamespace
from typing import Any

import benchmark
import cluster
import paper_results
import pytest
from parts.harness import uses
from parts.harness.results import made_by, revision_of, typed_command
from parts.harness.uses import Use, first_word, run_use

USES = [(command, name) for command in (benchmark, cluster, paper_results) for name in command.USES]


@pytest.mark.parametrize(("command", "name"), USES, ids=lambda part: part if isinstance(part, str) else part.__name__)
def test_every_use_tells_what_it_is_for_with_an_example(command: Any, name: str) -> None:
    module = importlib.import_module(command.USES[name].module)
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    assert f"python tools/{command.__name__}.py {name} " in module.__doc__
    assert f"tools/{command.__name__}.py {name} " in command.__doc__
    assert callable(module.run)


def test_the_first_word_chooses_and_the_rest_is_the_use_s(monkeypatch: pytest.MonkeyPatch) -> None:
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--ranks", type=int)
        parser.add_argument("command", nargs=argparse.REMAINDER)

    module = SimpleNamespace(__doc__="One.", add_arguments=add_arguments, run=lambda found: [found.ranks, found.command])
    monkeypatch.setattr(uses, "importlib", SimpleNamespace(import_module={"one": module}.__getitem__))  # the other is not imported
    of_two = {"one": Use("one", "the first"), "two": Use("two", "the second")}
    # As the deepspeed launcher starts a script; and what belongs to a command behind `--` is left alone.
    monkeypatch.setattr(sys, "argv", ["tool.py", "--local_rank=1", "one", "--ranks", "3", "--", "train.py", "--help", "--", "x"])
    assert run_use("A tool.", of_two) == [3, ["--", "train.py", "--help", "--", "x"]]
    monkeypatch.setattr(sys, "argv", ["tool.py"])
    assert first_word() is None
    with pytest.raises(SystemExit, match="2"):
        run_use("A tool.", of_two)


def test_a_file_of_figures_names_no_folder_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["tools/cluster.py", "traffic", "--counts", "/home/somebody/counts.npy", "--steps", "6"])
    assert typed_command() == "python tools/cluster.py traffic --counts PATH/counts.npy --steps 6"
    monkeypatch.setattr(sys, "argv", ["tools/x.py", "--set", 'corpus.path="/home/me/news"', "--json=/tmp/out.json", "--set", "a.b=c/d"])
    assert typed_command() == "python tools/x.py --set corpus.path=PATH/news --json=PATH/out.json --set a.b=c/d"
    assert list(made_by()) == ["command", "revision", "torch", "machine", "finished_at"]
    assert [revision_of(old) for old in ({"git_revision": "0" * 40}, {"revision": None})] == ["0" * 12, "unknown"]
