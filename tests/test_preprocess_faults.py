"""Preprocessing that is killed, meets a full disk or a read-only folder, or finds damage where it left off: what was complete stays
complete, and what comes out in the end is byte for byte what an undisturbed run makes.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_runs import run_script
from preprocess_runs import files_of, raw_sections, run
from preprocess_worker import killed_before_rename, preprocess_settings
from tiny import REPOSITORY, environment, tiny_settings, write_corpus, write_settings

from lm1b.data.preprocess import preprocess
from lm1b.data.text import raw_text
from lm1b.data.text.benchmark import TRAINING_FOLDER
from lm1b.data.tokens.directory import TokenDirectory
from lm1b.errors import UserError

FORKS = multiprocessing.get_context("forkserver")  # real processes that need not import everything anew


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    FORKS.set_forkserver_preload(["lm1b.data.preprocess.preprocess"])
    return write_corpus(tmp_path_factory.mktemp("faults") / "corpus", sentences=60)


@pytest.fixture
def folder(tmp_path: Path, corpus: Path) -> Path:
    (tmp_path / "corpus").symlink_to(corpus)
    return tmp_path


@pytest.fixture
def whole(folder: Path) -> dict[str, str]:
    """The files of an undisturbed run."""
    return files_of(run(folder, tokens={"directory": str(folder / "whole")}).directory)


def in_a_process(function: Callable[..., object], *arguments: Any, seconds: float = 60) -> int | None:
    """Run a function in a process of its own, killed after `seconds`. -> its exit status."""
    process = FORKS.Process(target=function, args=arguments)
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode


@pytest.fixture(scope="module")
def remade(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> tuple[Path, dict[str, str], dict[str, str]]:
    """A complete directory of other settings, its files, and those of an undisturbed run."""
    folder = tmp_path_factory.mktemp("remade")
    (folder / "corpus").symlink_to(corpus)
    before = files_of(run(folder, vocabulary={"minimum_count": 1}).directory)
    return folder, before, files_of(run(folder, tokens={"directory": str(folder / "whole")}).directory)


# Four chunks of three files, the vocabulary, four shards of three files and the manifest are made beside what is there: 26 renames. Then
# the vocabulary, eight files and the manifest are moved in.
@pytest.mark.parametrize("number", [0, 4, 8, 11, 12, 13, 17, 21, 24, 25, *range(26, 36)])
def test_killed_before_a_rename(folder: Path, remade: tuple[Path, dict[str, str], dict[str, str]], number: int) -> None:
    place, before, whole = remade
    shutil.copytree(place / "tokens", folder / "tokens")
    assert in_a_process(killed_before_rename, tiny_settings(folder, "run"), number) == -signal.SIGKILL
    if number < 26:
        assert files_of(folder / "tokens") == before, "what was complete stays"
        TokenDirectory.open(folder / "tokens").verify()
    else:
        with pytest.raises(UserError, match="no manifest"):
            TokenDirectory.open(folder / "tokens")
    run(folder)
    assert files_of(folder / "tokens") == whole


def test_there_are_no_more_renames_than_that(folder: Path, remade: tuple[Path, dict[str, str], dict[str, str]]) -> None:
    shutil.copytree(remade[0] / "tokens", folder / "tokens")
    assert in_a_process(killed_before_rename, tiny_settings(folder, "run"), 36) == 0
    assert files_of(folder / "tokens") == remade[2]


@pytest.mark.parametrize("damage", ["flipped bit", "cut short"])
def test_damage_while_parts_change_places(folder: Path, whole: dict[str, str], damage: str) -> None:
    generator = random.Random(damage)
    settings = tiny_settings(folder, "run")
    assert in_a_process(killed_before_rename, settings, 30) == -signal.SIGKILL
    unfinished = folder / "tokens" / "unfinished"
    for path in [*unfinished.glob("*.tokens.npy"), folder / "tokens" / "vocabulary.txt"]:
        path.write_bytes(DAMAGES[damage](path.read_bytes(), generator))
    run(folder)
    assert files_of(folder / "tokens") == whole


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_random_moments(folder: Path, whole: dict[str, str], seed: int) -> None:
    generator = random.Random(seed)
    settings = tiny_settings(folder, "run")
    started_at = time.monotonic()
    assert in_a_process(preprocess_settings, tiny_settings(folder, "run", tokens={"directory": str(folder / "timed")})) == 0
    seconds = time.monotonic() - started_at
    for _ in range(4):
        in_a_process(preprocess_settings, settings, seconds=generator.uniform(0, seconds))
    assert in_a_process(preprocess_settings, settings) == 0
    assert files_of(folder / "tokens") == whole
    assert not (folder / "tokens" / "unfinished").exists()


def test_the_command_killed_while_two_processes_work(folder: Path, whole: dict[str, str]) -> None:
    settings = write_settings(folder, "run", tokens={"directory": str(folder / "tokens"), "processes": 2})
    command = [sys.executable, str(REPOSITORY / "launch" / "preprocess.py"), "--config", str(settings)]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < until and not list((folder / "tokens").glob("unfinished/*.count.json")):
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert not (folder / "tokens" / "manifest.json").exists() or process.returncode == 0
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment())
    assert done.returncode == 0, done.stderr
    assert "vocabulary of" in done.stdout
    assert files_of(folder / "tokens") == whole


def flipped(data: bytes, generator: random.Random) -> bytes:
    place = generator.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << generator.randrange(8))]) + data[place + 1 :]


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "flipped bit": flipped,
    "cut short": lambda data, generator: data[: generator.randrange(len(data))],
    "longer": lambda data, generator: data + b"\0",
    "other bytes": lambda data, generator: generator.randbytes(len(data)),
}


def stopped_run(folder: Path, name: str, **sections: dict[str, Any]) -> None:
    """A run that ends when it calls the function `name` of the preprocess module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{preprocess.__name__}.{name}", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(folder, **sections)


@pytest.mark.parametrize("stage", ["encode_chunks", "Manifest.of", "publish"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_in_what_was_left_over_makes_no_wrong_shards(folder: Path, whole: dict[str, str], stage: str, damage: str) -> None:
    generator = random.Random(f"{stage} {damage}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preprocess, "publish", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        if stage == "publish":
            with pytest.raises(KeyboardInterrupt):
                run(folder)
    if stage != "publish":
        stopped_run(folder, stage)
    left = sorted(path.name for path in (folder / "tokens" / "unfinished").iterdir())
    assert len(left) > 8
    for name in left:
        path = folder / "tokens" / "unfinished" / name
        if path.is_file():  # a run that was stopped again may have no use for it
            path.write_bytes(DAMAGES[damage](path.read_bytes(), generator))
        if stage != "publish":
            stopped_run(folder, "Manifest.of")
    run(folder)
    assert files_of(folder / "tokens") == whole


def test_a_damaged_manifest_is_as_good_as_none(folder: Path, whole: dict[str, str]) -> None:
    run(folder)
    path = folder / "tokens" / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"official": false', b'"official": true '))
    run(folder)
    assert files_of(folder / "tokens") == whole


def test_the_command_verifies_everything(folder: Path) -> None:
    run(folder)
    path = folder / "tokens" / "test-00000.tokens.npy"
    path.write_bytes(flipped(path.read_bytes(), random.Random(1)))
    done = run_script("launch/preprocess.py", "--config", str(write_settings(folder, "run")), "--verify")
    assert done.returncode == 2
    assert done.stderr.startswith(f"lm1b: error: {path}: damaged, SHA-256 expected ")
    assert done.stderr.count("\n") == 1
    path.unlink()
    run(folder).verify()


def test_files_left_of_other_settings_are_not_moved_in(folder: Path, whole: dict[str, str]) -> None:
    run(folder)
    stopped_run(folder, "Manifest.of", vocabulary={"minimum_count": 1})
    (folder / "tokens" / "train-00002.tokens.npy").unlink()
    run(folder)
    assert files_of(folder / "tokens") == whole


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_tokenized_text_is_made_again(folder: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    generator = random.Random(damage)
    sections = raw_sections(folder)
    monkeypatch.setattr(raw_text, "_chunk_bytes", lambda *_: 20_000)
    expected = {name: sha256 for name, sha256 in files_of(run(folder, **sections).directory).items() if name.endswith(".npy")}
    tokens = {"tokens": {"directory": str(folder / "again")}}
    with monkeypatch.context() as patch:
        patch.setattr(raw_text, "_write_splits", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(folder, **sections, **tokens)
    chunks = sorted((folder / "again" / "tokenized").iterdir())
    assert len(chunks) >= 4
    for path in chunks[::3]:
        path.write_bytes(DAMAGES[damage](path.read_bytes(), generator))
    stopped_run(folder, "Preprocessing._count", **sections, **tokens)
    for path in [folder / "again" / "tokenized" / "train-00000.txt"]:
        path.write_bytes(DAMAGES[damage](path.read_bytes(), generator))
    made = files_of(run(folder, **sections, **tokens).directory)
    assert {name: made[name] for name in expected} == expected


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")


@pytest.fixture
def disk(folder: Path) -> Iterator[Path]:
    """A real file system of 160 kB as the tokens directory."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    place = folder / "tokens"
    place.mkdir()
    mount("-t", "tmpfs", "-o", "size=160k", "lm1b-test", str(place))
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def message_of(folder: Path, **sections: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        run(folder, **sections)
    return str(caught.value)


def test_a_full_disk_leaves_what_was_complete(folder: Path, disk: Path, whole: dict[str, str]) -> None:
    old = {"vocabulary": {"minimum_count": 1}}
    before = files_of(run(folder, **old).directory)
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    for left in range(0, 40_000, 8192):
        (disk / "ballast").write_bytes(b"x" * (free - left))
        said = message_of(folder)
        assert said.startswith(f"{disk}: No space left on device: about 0.0 MB were still to be written and 0.0 MB are free; make room")
        (disk / "ballast").unlink()
        assert files_of(disk) == before
        TokenDirectory.open(disk).verify()
    run(folder)
    assert files_of(disk) == whole


def test_a_full_disk_says_how_much_is_still_to_be_written(folder: Path, disk: Path) -> None:
    path, other = folder / "long.txt", folder / "corpus" / TRAINING_FOLDER / "news.en-00001-of-00003"
    path.write_text("one two three four five six seven\n" * 100_000)
    text = {"kind": "text", "path": None, "train": [str(path)], "validation": [str(other)]}
    assert "about 6.1 MB were still to be written" in message_of(folder, corpus=text)
    path.write_text("".join(f"Number {number} {'word ' * 10}\n" for number in range(5000)))
    raw = {"kind": "text", "path": None, "train": [str(path)], "tokenized": False}
    assert "about 1.2 MB were still to be written" in message_of(folder, corpus=raw)


def test_a_read_only_file_system(folder: Path, disk: Path) -> None:
    run(folder)
    mount("-o", "remount,ro", str(disk))
    TokenDirectory.open(disk).verify()
    run(folder).verify()  # complete: nothing to write
    said = message_of(folder, vocabulary={"minimum_count": 1})
    assert said == f"{disk}: cannot be written to (Read-only file system); make it writable or choose another tokens.directory"
    assert "cannot be written to" in message_of(folder, tokens={"directory": str(disk / "inner")})


def test_the_command_says_a_full_disk_in_one_line(folder: Path) -> None:
    """A limit on the size of files, as quotas and full disks show themselves, in a real process of two workers."""
    (folder / "more.txt").write_text("one two three four five six seven\n" * 10_000)
    text = {"kind": "text", "path": None, "train": [str(folder / "more.txt")], "validation": [str(folder / "more2.txt")]}
    (folder / "more2.txt").write_text("one two\n")
    settings = write_settings(folder, "run", corpus=text, tokens={"directory": str(folder / "tokens"), "processes": 2})
    limited = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000,) * 2); sys.argv = sys.argv[1:]; "
    limited += "runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", limited, "launch/preprocess.py", "--config", str(settings)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment(), cwd=REPOSITORY)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("lm1b:")]
    assert f"{folder / 'tokens'}: File too large: about 0.6 MB were still to be written" in line
    assert not list((folder / "tokens").rglob("*.partial"))
