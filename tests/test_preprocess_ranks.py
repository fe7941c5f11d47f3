"""Preprocessing on several real ranks: the same files whatever their number, one line for a mistake, nothing lost with a killed rank."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_runs import DEEPSPEED
from corpora import write_archive
from forked import run_each
from preprocess_runs import changed_at, files_of, raw_sections, run
from tiny import REPOSITORY, environment, environments, free_port, write_corpus, write_settings

from lm1b.data.text.benchmark import HELD_OUT_FOLDER, TRAINING_FOLDER

LAUNCH = str(REPOSITORY / "launch" / "preprocess.py")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "corpus", sentences=60)
    return tmp_path


def crew(command: list[str], num_ranks: int, folders: list[Path] | None = None) -> list[tuple[int, str]]:
    """Run `python *command` as ranks that see each other, rank r in folders[r]. -> each one's exit status and what it printed."""
    ended = run_each([command] * num_ranks, environments(num_ranks), folders or [REPOSITORY] * num_ranks)
    return [(rank.returncode, rank.stdout + rank.stderr) for rank in ended]


def errors(ended: list[tuple[int, str]]) -> list[list[str]]:
    """The errors that each rank has printed. (Where a connection breaks torch adds words of its own.)"""
    assert not any("Traceback" in text for _, text in ended), ended
    return [[line for line in text.replace("\r", "\n").splitlines() if "error:" in line] for _, text in ended]


def made_by(num_ranks: int, settings: Path) -> None:
    ended = crew([LAUNCH, "--config", str(settings)], num_ranks)
    assert [status for status, _ in ended] == [0] * num_ranks, ended
    assert ["vocabulary of" in text for _, text in ended] == [True] + [False] * (num_ranks - 1), "said once"


def sections_of(form: str, folder: Path) -> dict[str, dict[str, Any]]:
    """The corpus of `folder` as a config names it in one of its forms."""
    if form == "archive":
        return {"corpus": {"path": str(write_archive(folder / "corpus", folder / "corpus.tar.gz"))}}
    if form == "text":
        held_out = sorted((folder / "corpus" / HELD_OUT_FOLDER).iterdir())
        files = {"train": [str(path) for path in sorted((folder / "corpus" / TRAINING_FOLDER).iterdir())]}
        files |= {"test": [str(held_out[0])], "validation": [str(held_out[1])]}
        return {"corpus": {"kind": "text", "path": None, **files}}
    return raw_sections(folder) if form == "raw" else {}


def without_times(manifest: Path) -> Any:
    """The manifest of tokenized text, which is newly written each time."""
    value = json.loads(manifest.read_text())
    for chunk in value["made_from"]["pieces"]:
        chunk["identity"]["changed_ns"] = 0
    return {**value, "seal": None}


@pytest.mark.parametrize(
    ("form", "num_ranks", "processes"), [("folder", 3, 1), ("archive", 2, 1), ("archive", 3, 1), ("text", 2, 2), ("raw", 3, 1)]
)
def test_any_number_of_ranks_makes_the_files_of_one(folder: Path, form: str, num_ranks: int, processes: int) -> None:
    sections = sections_of(form, folder)
    whole = run(folder, **sections, tokens={"directory": str(folder / "whole")}).directory
    made_by(num_ranks, write_settings(folder, "run", **sections, tokens={"processes": processes}))
    expected, found = files_of(whole), files_of(folder / "tokens")
    if form == "raw":
        assert without_times(folder / "tokens" / "manifest.json") == without_times(whole / "manifest.json")
        assert files_of(folder / "tokens" / "tokenized").keys() == files_of(whole / "tokenized").keys()
        del expected["manifest.json"], found["manifest.json"]
    assert found == expected
    assert not [path.name for path in (folder / "tokens").iterdir() if path.name in ("unfinished", ".seen") or path.suffix == ".partial"]


def test_a_given_vocabulary_is_counted_by_the_ranks_together(folder: Path) -> None:
    words = [f"w{number}" for number in range(40)]
    (folder / "words.txt").write_text("\n".join(["</S>", "<UNK>", *words, "<S>"]) + "\n")
    given = {"vocabulary": {"file": str(folder / "words.txt")}}
    whole = run(folder, **given, tokens={"directory": str(folder / "whole")}).directory
    made_by(2, write_settings(folder, "run", **given))
    assert files_of(folder / "tokens") == files_of(whole)


def test_the_deepspeed_launcher_and_a_second_start_that_does_nothing(folder: Path) -> None:
    settings = write_settings(folder, "run")
    expected = files_of(run(folder, tokens={"directory": str(folder / "whole")}).directory)
    command = [DEEPSPEED, "--num_gpus", "2", "--master_port", str(free_port()), LAUNCH, "--config", str(settings)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment(), cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("vocabulary of") == 1
    assert files_of(folder / "tokens") == expected
    before = changed_at(folder / "tokens")
    made_by(2, settings)
    assert changed_at(folder / "tokens") == before
    (folder / "tokens" / "train-00002.tokens.npy").unlink()
    made_by(2, settings)
    assert files_of(folder / "tokens") == expected
    assert {name for name, at in changed_at(folder / "tokens").items() if at != before[name]} == {
        "train-00002.tokens.npy",
        "train-00002.ends.npy",
    }, "only what was missing is made again"


# Rank 1 of three renames for one chunk (words, numbers, record), its share of the counts, and one shard (ends, tokens, record); rank 0,
# which has two chunks, also for the vocabulary, the manifest and what is moved in.
@pytest.mark.parametrize(("rank", "number", "then"), [(1, 2, 2), (2, 5, 1), (0, 17, 3)])
def test_a_killed_rank_is_named_by_the_others_and_a_new_start_goes_on(folder: Path, rank: int, number: int, then: int) -> None:
    settings = write_settings(folder, "run")
    expected = files_of(run(folder, tokens={"directory": str(folder / "whole")}).directory)
    ended = crew([str(Path(__file__).with_name("preprocess_rank.py")), str(rank), str(number), "--config", str(settings)], 3)
    assert [status for status, _ in ended] == [-9 if other == rank else 1 for other in range(3)], ended
    for other, lines in enumerate(errors(ended)):
        if other != rank:
            assert len(lines) == 1, lines
            assert lines[0].startswith(f"lm1b: error: rank {rank} (pid "), lines
            assert lines[0].endswith(f"has died, so rank {other} ends too; run the same command again to go on from there"), lines
    made_by(then, settings)
    assert files_of(folder / "tokens") == expected


def test_a_mistake_in_one_rank_s_text_is_one_line_on_all(folder: Path) -> None:
    (folder / "corpus" / HELD_OUT_FOLDER / "news.en.heldout-00001-of-00002").write_bytes(b"not \xff text\n")
    ended = crew([LAUNCH, "--config", str(write_settings(folder, "run"))], 2)
    assert [status for status, _ in ended] == [2, 2]
    first, second = errors(ended)
    assert len(first) == 1
    assert "news.en.heldout-00001-of-00002" in first[0]
    assert second == []


def in_folders_of_their_own(folder: Path, **sections: dict[str, Any]) -> list[tuple[int, str]]:
    """Two ranks with relative paths in their config and folders of their own, as two hosts have them."""
    places = [folder / "host0", folder / "host1"]
    settings = write_settings(folder, "run", **sections)
    for place in places:
        place.mkdir()
        if not (folder / "corpus").is_symlink():
            (place / "corpus").symlink_to(folder / "corpus")
    return crew([LAUNCH, "--config", str(settings)], 2, places)


def test_ranks_that_do_not_share_the_folder_say_so(folder: Path) -> None:
    ended = in_folders_of_their_own(folder, tokens={"directory": "tokens"})
    assert [status for status, _ in ended] == [2, 2]
    first, second = errors(ended)
    assert len(first) == 1
    assert "tokens: rank 1 (on " in first[0]
    assert "does not see what rank 0" in first[0]
    assert second == []
    assert not list((folder / "host0" / "tokens").glob(".seen*"))


def test_ranks_that_see_other_text_say_so(folder: Path) -> None:
    for place in ("host0", "host1"):
        write_corpus(folder / f"{place}-corpus", sentences=60)
        os.utime(folder / f"{place}-corpus" / TRAINING_FOLDER / "news.en-00001-of-00003", ns=(0, 5 if place == "host0" else 6))
        for path in (folder / f"{place}-corpus").rglob("news*"):
            if not path.name.startswith("news.en-00001"):
                os.utime(path, ns=(0, 7))
    places = [folder / "host0", folder / "host1"]
    for place in places:
        place.mkdir()
        (place / "corpus").symlink_to(folder / f"{place.name}-corpus")
    ended = crew([LAUNCH, "--config", str(write_settings(folder, "run", corpus={"path": "corpus"}))], 2, places)
    assert [status for status, _ in ended] == [2, 2]
    first, second = errors(ended)
    assert len(first) == 1
    assert "rank 1 (on " in first[0]
    assert "do not see the same corpus" in first[0]
    assert second == []
    assert not (folder / "tokens").exists()


def test_one_process_loads_no_torch(folder: Path) -> None:
    code = (
        f"import runpy, sys; sys.argv = ['preprocess.py', '--config', {str(write_settings(folder, 'run'))!r}]\n"
        f"try:\n    runpy.run_path({LAUNCH!r}, run_name='__main__')\n"
        "except SystemExit as end:\n    print('status', end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, env=environment())
    assert done.stdout.splitlines()[-1] == "status 0 False"
