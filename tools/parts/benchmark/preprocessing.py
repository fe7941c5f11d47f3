"""Preprocessing by phase, in MB of text per second of CPU time, since machines are shared.

    python tools/benchmark.py preprocess --corpus path/to/benchmark                 # a folder in the benchmark's layout
    python tools/benchmark.py preprocess --corpus ... --against hf-wordlevel         # beside Hugging Face's WordLevel tokenizer
    python tools/benchmark.py preprocess --corpus ... --only memory --copies 15      # what it takes of memory on a longer text

1. phases: the real passes over the corpus in this process, warmed up: count, vocabulary, encode, and all of it together.
2. commands: `launch/preprocess.py` as a user runs it, start-up included, from the folder and from a .tar.gz made of it, with one
   process and with two; the peak memory of every process; beside it what it takes merely to unpack the archive.
3. memory: the same on a stand-in, `--copies` times as long, in which every copy has words of its own and a file has the length of the
   benchmark's.

Everything is made in a temporary folder (TMPDIR chooses where) and thrown away. Medians; prints one JSON object.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from lm1b.config import CorpusConfig
from lm1b.data.preprocess.passes import CHUNKS_TO_ENCODE_TOGETHER, count_chunk, count_words, encode_chunks
from lm1b.data.text.benchmark import HELD_OUT_FOLDER, TRAINING_FOLDER
from lm1b.data.text.corpus import TextChunk
from lm1b.data.text.sources import open_corpus
from lm1b.data.text.tokenized import as_numpy, compute
from lm1b.data.vocabulary.words import WordVocabulary, build_vocabulary
from lm1b.errors import UserError
from lm1b.workers import Workers
from parts.benchmark.wordlevel import import_tokenizers, measure_against_wordlevel
from parts.harness.launching import REPOSITORY

COMMAND = REPOSITORY / "launch" / "preprocess.py"
SAMPLE_SECONDS = 0.02
READ_BYTES = 1 << 20
MINIMUM_COUNT = 3  # preprocessing's default
LETTERS = b"abcdefghijklmnopqrstuvwxyz"


@contextmanager
def timed(cpu_seconds: dict[str, float], name: str) -> Generator[None]:
    """Add the block's CPU time, this process's, to `cpu_seconds[name]`."""
    started_at = time.process_time()
    yield
    cpu_seconds[name] = cpu_seconds.get(name, 0.0) + time.process_time() - started_at


def chunks_of(corpus: Path) -> list[TextChunk]:
    """All chunks of a folder in the benchmark's layout."""
    return list(open_corpus(CorpusConfig(kind="lm1b", path=str(corpus))).chunks(lambda num_bytes: None))


def run_phases(chunks: list[TextChunk], folder: Path) -> dict[str, float]:
    """Both passes over the chunks in this process. -> CPU seconds by phase. `folder` then holds the shards and `vocabulary.txt`."""
    spent: dict[str, float] = {}
    with timed(spent, "count"):
        counted = [count_chunk(chunk, folder) for chunk in chunks]
    with timed(spent, "vocabulary"):
        table = count_words(folder, [chunk.shard for chunk in chunks if chunk.split == "train"])
        words = compute.binary_slice(table["word"].combine_chunks(), 0, -1)
        vocabulary = build_vocabulary(words, as_numpy(table["count"]), MINIMUM_COUNT)
        vocabulary.save(folder / "vocabulary.txt")
    with timed(spent, "encode"):
        for start in range(0, len(counted), CHUNKS_TO_ENCODE_TOGETHER):
            group = {chunk.shard: chunk.stream_length for chunk in counted[start : start + CHUNKS_TO_ENCODE_TOGETHER]}
            encode_chunks(group, folder, folder / "vocabulary.txt", vocabulary.fingerprint)
    return {**spent, "together": sum(spent.values())}


def measure_phases(corpus: Path, folder: Path, repeats: int) -> dict[str, Any]:
    """MB of text per second of CPU time on one core, by phase: medians of `repeats` after one to warm up. Leaves `vocabulary.txt`."""
    with Workers(1):  # its settings of this process
        chunks = chunks_of(corpus)
        text_mb = sum(chunk.stop - chunk.start for chunk in chunks) / 1e6
        runs = [run_phases(chunks, folder) for _ in range(repeats + 1)][1:]
    seconds = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    return {
        "text_mb": round(text_mb, 1),
        "vocabulary_size": WordVocabulary.load(folder / "vocabulary.txt").size,
        "cpu_seconds": {name: round(value, 3) for name, value in seconds.items()},
        "mb_per_cpu_second": {name: round(text_mb / value, 1) for name, value in seconds.items()},
        "slowest_and_fastest_together": [round(text_mb / pick(run["together"] for run in runs), 1) for pick in (max, min)],
    }


def peak_memory(process: subprocess.Popen[bytes]) -> tuple[list[int], int]:
    """Watch a process and its children until it ends. -> (peak resident bytes of each, largest first; peak of their sum)."""
    peaks: dict[int, int] = {}
    together = 0
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        now = 0
        try:
            for one in [watched, *watched.children(recursive=True)]:
                resident = one.memory_info().rss
                peaks[one.pid] = max(peaks.get(one.pid, 0), resident)
                now += resident
        except psutil.NoSuchProcess:
            pass
        together = max(together, now)
        time.sleep(SAMPLE_SECONDS)
    return sorted(peaks.values(), reverse=True), together


def measure_command(corpus: Path, processes: int, folder: Path) -> dict[str, Any]:
    """The whole command, start-up included. CPU time is that of all its processes; memory is sampled."""
    tokens = folder / "tokens"
    settings = {
        "run": {"directory": str(folder / "run")},
        "corpus": {"kind": "lm1b", "path": str(corpus.resolve())},
        "tokens": {"directory": str(tokens), "processes": processes},
        "model": {"cell": "lstm", "hidden": 1},
        "training": {"total_steps": 1},
    }
    (folder / "config.json").write_text(json.dumps(settings))
    started_at, before = time.perf_counter(), os.times()
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen([sys.executable, COMMAND, "--config", folder / "config.json"], stdout=subprocess.DEVNULL, stderr=log) as process,
    ):
        peaks, together = peak_memory(process)
        log.seek(0)
        said = log.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
    seconds, after = time.perf_counter() - started_at, os.times()
    if process.returncode:
        raise UserError(f"{COMMAND.name} ended with status {process.returncode} on {corpus}: {said[-1]}")
    cpu_seconds = after.children_user + after.children_system - before.children_user - before.children_system
    manifest = json.loads((tokens / "manifest.json").read_text())
    text_mb = sum(file["bytes"] for file in manifest["corpus"]["files"]) / 1e6
    shutil.rmtree(tokens)
    return {
        "processes": processes,
        "text_mb": round(text_mb, 1),
        "vocabulary_size": manifest["vocabulary"]["size"],
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "mb_per_second": round(text_mb / seconds, 1),
        "mb_per_cpu_second": round(text_mb / cpu_seconds, 1),
        "peak_mb_of_each_process": [round(peak / 1e6) for peak in peaks if peak > 20e6],
        "peak_mb_together": round(together / 1e6),
    }


def pack(corpus: Path, archive: Path) -> None:
    """The corpus as a .tar.gz, as the benchmark comes."""
    with tarfile.open(archive, "w:gz", compresslevel=6, dereference=True) as file:
        for name in (TRAINING_FOLDER, HELD_OUT_FOLDER):
            file.add(corpus / name, arcname=f"benchmark/{name}")


def measure_unpacking(archive: Path) -> dict[str, float]:
    """Seconds to unpack the archive into nothing: `gzip -dc` where it is there, and Python's gzip."""
    seconds = {}
    if program := shutil.which("gzip"):
        started_at = time.perf_counter()
        subprocess.run([program, "-dc", archive], stdout=subprocess.DEVNULL, check=True)
        seconds["gzip -dc"] = round(time.perf_counter() - started_at, 2)
    started_at = time.perf_counter()
    with gzip.open(archive) as file:
        while file.read(READ_BYTES):
            pass
    return {**seconds, "python gzip": round(time.perf_counter() - started_at, 2)}


def measure_commands(corpus: Path, folder: Path, repeats: int) -> dict[str, Any]:
    """The whole command in all four ways and plain unpacking, in turns: of each the run of median time."""
    archive = folder / "corpus.tar.gz"
    pack(corpus, archive)
    ways = [(place, processes) for place in (corpus, archive) for processes in (1, 2)]
    runs: dict[str, list[dict[str, Any]]] = {}
    unpacking = []
    for _ in range(repeats):
        for place, processes in ways:
            name = f"{'archive' if place == archive else 'folder'}, {processes} process{'es' if processes > 1 else ''}"
            runs.setdefault(name, []).append(measure_command(place, processes, folder))
        unpacking.append(measure_unpacking(archive))
    middle = {name: sorted(of_name, key=lambda run: run["seconds"])[len(of_name) // 2] for name, of_name in runs.items()}
    return {**middle, "unpacking_alone_seconds": {name: statistics.median(run[name] for run in unpacking) for name in unpacking[0]}}


def write_stand_in(corpus: Path, folder: Path, copies: int) -> None:
    """A corpus `copies` times as long in `folder`, two training files a copy, in which every copy's words are other ones (its letters
    are turned through the alphabet), so that there are as many times more distinct words too.
    """
    training = sorted((corpus / TRAINING_FOLDER).iterdir())
    (folder / TRAINING_FOLDER).mkdir(parents=True)
    (folder / HELD_OUT_FOLDER).symlink_to((corpus / HELD_OUT_FOLDER).resolve())
    for copy in range(copies):
        turned = LETTERS[copy % 26 :] + LETTERS[: copy % 26]
        table = bytes.maketrans(LETTERS + LETTERS.upper(), turned + turned.upper())
        for half in range(2):
            name = f"news.en-{2 * copy + half + 1:05d}-of-{2 * copies + 1:05d}"
            with open(folder / TRAINING_FOLDER / name, "wb") as file:
                for path in training[half::2]:
                    file.write(path.read_bytes().translate(table))


def measure_memory(corpus: Path, folder: Path, copies: int) -> dict[str, Any]:
    """The whole command on the stand-in, with two processes."""
    write_stand_in(corpus, folder / "stand_in", copies)
    figures = measure_command(folder / "stand_in", 2, folder)
    shutil.rmtree(folder / "stand_in")
    return {"copies": copies, **figures}


def measure_preprocessing(corpus: Path, only: list[str], repeats: int = 5, copies: int = 15, against: bool = False) -> dict[str, Any]:
    """The figures named in `only` (phases, commands, memory), and against Hugging Face's WordLevel tokenizer."""
    figures: dict[str, Any] = {}
    if against:
        import_tokenizers()  # that it is missing should be said at once
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "phases" in only or against:
            figures["phases"] = measure_phases(corpus, folder, repeats)
        if against:
            training = [chunk for chunk in chunks_of(corpus) if chunk.split == "train"]
            figures["against_hf_wordlevel"] = measure_against_wordlevel(training, folder / "vocabulary.txt", repeats)
        if "commands" in only:
            figures["commands"] = measure_commands(corpus, folder, min(repeats, 3))
        if "memory" in only:
            figures["memory"] = measure_memory(corpus, folder, copies)
    return figures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the user may say."""
    parser.add_argument("--corpus", required=True, type=Path, help="a folder in the benchmark's layout")
    parser.add_argument("--only", nargs="+", choices=["phases", "commands", "memory"], default=["phases", "commands"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--copies", type=int, default=15, help="how many times as long the stand-in for memory is")
    parser.add_argument("--against", choices=["hf-wordlevel"], help="needs `pip install tokenizers`")


def run(arguments: argparse.Namespace) -> None:
    """Measure what was asked for, and print it."""
    if not arguments.corpus.is_dir():
        raise UserError(f"{arguments.corpus}: no such folder; expected one in the benchmark's layout")
    if arguments.repeats < 1 or arguments.copies < 1:
        raise UserError("--repeats and --copies must be at least 1")
    figures = measure_preprocessing(arguments.corpus, arguments.only, arguments.repeats, arguments.copies, arguments.against is not None)
    print(json.dumps(figures, indent=2))
