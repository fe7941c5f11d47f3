"""Any corpus that Hugging Face `datasets` reads into tokenized files, one sentence a line.

1. `corpus.source` is `text`, `json`, `parquet` or `arrow`, with files of this machine, or the name of a dataset on the hub (or of a folder
   laid out like one), with names of splits. Everything is streamed: a batch of rows in memory at a time.
2. A part, one file or one shard of a hub's split, is read by one worker. Parts are dealt among cores and ranks.
3. Of each row the column's text is taken, every line of it as a sentence: words parted by one space, empty lines left out.
4. A sentence's split is the one that the config names its file for, or else told by a keyed hash of the sentence, so that the same
   sentence is always in the same split.
5. Files are cut at about 40 MB, so that what follows keeps all cores busy. A part that an earlier, killed run has written is not read
   again (receipts.py).
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from lm1b.config import SPLITS, Split
from lm1b.config.text import LOCAL_SOURCES, CorpusConfig
from lm1b.data.crew import Crew
from lm1b.data.receipts import read_receipt, write_receipt
from lm1b.data.text.corpus import check_named_once
from lm1b.data.text.tokenized import LONGEST_LINE_BYTES, too_long_a_line, without_mark
from lm1b.errors import UserError
from lm1b.files import atomic_file
from lm1b.progress import Progress
from lm1b.workers import Workers

RULES = "datasets 1"  # changes where the same rows would give other sentences
FOLDER_NAME = "rows"
FILE_BYTES = 40 << 20
ROWS_AT_ONCE = 1000
_HASH_KEY = b"lm1b sentence split 1"


@dataclass(frozen=True)
class Part:
    """A worker's share. split: None where the hash tells. place: a file, or `SPLIT, shard 2 of 8` of a named dataset."""

    number: int
    split: Split | None
    place: str
    hub_split: str | None = None
    index: int = 0
    count: int = 1
    num_bytes: int = 0


def local_files(config: CorpusConfig) -> list[tuple[Split, Path]]:
    """The files that a local source names, wildcards resolved. Raises UserError where there is none of a name, or one is named twice."""
    files: list[tuple[Split, Path]] = []
    for split in SPLITS:
        for name in getattr(config, split) or []:
            found = [name] if Path(name).exists() else sorted(glob.glob(name))
            if not found or not all(Path(path).is_file() for path in found):
                raise UserError(f"{name}: no such corpus file; corpus.{split} names files to be read as {config.source}")
            for path in found:
                files.append((split, Path(path)))
    check_named_once(files)
    return files


def datasets_origin(config: CorpusConfig) -> dict[str, Any]:
    """Identifies rows and settings, without asking the hub; cheap. Raises UserError where a file is missing."""
    settings = ("source", "column", "tokenized", *(() if _is_by_name(config) else ("validation_fraction", "test_fraction")))
    origin = {"rules": RULES} | {name: getattr(config, name) for name in settings}
    if config.source in LOCAL_SOURCES:
        files = [(split, path, path.stat()) for split, path in local_files(config)]
        origin["splits"] = [split for split, _, _ in files]
        return origin | {"files": [[path.name, status.st_size, status.st_mtime_ns] for _, path, status in files]}
    return origin | {name: getattr(config, name) for name in ("subset", "revision", *SPLITS)}


def bytes_of_rows(config: CorpusConfig) -> int:
    """About how much there is to read; 0 where it lies on the hub."""
    return sum(path.stat().st_size for _, path in local_files(config)) if config.source in LOCAL_SOURCES else 0


def _is_by_name(config: CorpusConfig) -> bool:
    """Whether splits are named, or told by the hash."""
    return bool(config.validation or config.test)


def _open(config: CorpusConfig, *, files: list[str] | None = None, split: str = "train") -> Any:
    """A stream of rows. Raises UserError where the hub or the dataset cannot be reached."""
    import datasets  # slow to import
    import huggingface_hub
    from datasets.exceptions import DatasetNotFoundError

    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what is wrong is said by us, in one line
    huggingface_hub.logging.set_verbosity_error()
    if files is not None:
        return datasets.load_dataset(str(config.source), data_files=files, split="train", streaming=True)
    try:
        return datasets.load_dataset(str(config.source), config.subset, revision=config.revision, split=split, streaming=True)
    except (ConnectionError, FileNotFoundError, DatasetNotFoundError) as error:
        raise UserError(
            f"corpus.source={config.source}: cannot be had from the hub ({_line(error)}); where there is no way to it, or "
            f"HF_HUB_OFFLINE is set, fetch it elsewhere (`hf download --repo-type dataset {config.source}`) and name its files, such as "
            "--set corpus.source=parquet --set 'corpus.train=[\"FOLDER/*.parquet\"]'"
        ) from None
    except ValueError as error:  # no such subset or split: the library's message lists those that there are
        raise UserError(f"corpus.source={config.source}: {_line(error)}") from None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _parts(config: CorpusConfig) -> list[Part]:
    """All that there is to read, in the config's order."""
    by_name = _is_by_name(config)
    parts: list[Part] = []
    if config.source in LOCAL_SOURCES:
        for split, path in local_files(config):
            parts.append(Part(len(parts), split if by_name else None, str(path), num_bytes=path.stat().st_size))
        return parts
    for split in SPLITS:
        for name in getattr(config, split) or []:
            count = max(1, _open(config, split=name).num_shards)
            for index in range(count):
                place = f"{config.source}, split {name}, shard {index + 1} of {count}"
                parts.append(Part(len(parts), split if by_name else None, place, name, index, count))
    return parts


def _texts(config: CorpusConfig, part: Part) -> Iterator[tuple[int, bytes]]:
    """(number of a row, the column's text). Raises UserError that names the part where there are no such rows."""
    try:
        if part.hub_split is None:
            rows = _open(config, files=[glob.escape(part.place)])  # the library would take it for a pattern
        else:
            rows = _open(config, split=part.hub_split).shard(num_shards=part.count, index=part.index)
        number = 0
        for batch in rows.with_format("arrow").iter(batch_size=ROWS_AT_ONCE):
            for text in _column(batch, rows.features, config.column, part.place, number):
                yield number, text
                number += 1
    except (UserError, MemoryError):
        raise
    except StopIteration:  # the library's way to say that a file holds nothing
        return
    except Exception as error:
        # Builders raise whatever the format's reader does.
        raise UserError(f"{part.place}: cannot be read as {config.source} ({_line(error)})") from None


def _column(batch: pa.Table, features: Any, name: str, place: str, first: int) -> list[bytes]:
    """The texts of a batch of rows. Raises UserError where the column is not there or holds something else than strings."""
    if name not in batch.column_names:
        raise UserError(f"{place}: has no column `{name}` (corpus.column); it has {', '.join(batch.column_names)}")
    column = batch[name]
    if not pa.types.is_string(column.type) and not pa.types.is_large_string(column.type):
        kind = "mixed values" if features and "Json" in str(features.get(name)) else str(column.type)
        raise UserError(f"{place}: column `{name}` holds {kind}; expected strings")
    if column.null_count:
        row = next(place for place, value in enumerate(column.is_null().to_pylist()) if value)
        raise UserError(f"{place}: column `{name}` is null in row {first + row + 1}; expected strings")
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        raise UserError(
            f"{place}: column `{name}` is not UTF-8 in rows {first + 1} to {first + len(column)}; expected UTF-8 text"
        ) from None
    return column.cast(pa.large_binary()).to_pylist()


def split_of(sentence: bytes, config: CorpusConfig) -> Split:
    """The split that a sentence belongs to by its hash. sentence: words parted by one space."""
    digest = hashlib.blake2b(sentence, digest_size=8, key=_HASH_KEY).digest()
    share = int.from_bytes(digest, "big") / 2.0**64
    if share < config.validation_fraction:
        return "validation"
    return "test" if share < config.validation_fraction + config.test_fraction else "train"


class _Files:
    """The files that a part becomes, each split's cut at FILE_BYTES."""

    def __init__(self, folder: Path, part: Part) -> None:
        self._folder, self._part = folder, part
        self._waiting: dict[Split, list[bytes]] = {split: [] for split in SPLITS}
        self._num_bytes: dict[Split, int] = dict.fromkeys(SPLITS, 0)
        self._sums: dict[str, str] = {}
        self._splits: list[tuple[Split, str]] = []

    def add(self, split: Split, sentence: bytes) -> None:
        self._waiting[split].append(sentence)
        self._num_bytes[split] += len(sentence) + 1
        if self._num_bytes[split] >= FILE_BYTES:
            self._write(split)

    def _write(self, split: Split) -> None:
        text = b"\n".join([*self._waiting[split], b""])
        name = f"part-{self._part.number:05d}-{split}-{len(self._splits):05d}.txt"
        with atomic_file(self._folder / name) as file:
            file.write(text)
        self._splits.append((split, name))
        self._sums[name] = hashlib.sha256(text).hexdigest()
        self._waiting[split], self._num_bytes[split] = [], 0

    def finish(self, key: str) -> list[tuple[Split, str]]:
        """Write what is left, and the receipt. -> (split, name) of each file."""
        for split in SPLITS:
            if self._waiting[split]:
                self._write(split)
        write_receipt(_receipt_of(self._folder, self._part), key, self._sums, self._splits)
        return self._splits


def convert_part(part: Part, config: CorpusConfig, folder: Path, key: str) -> tuple[int, list[tuple[Split, str]]]:
    """Read a part and write its sentences. -> (the part's number, split and name of each file). Raises UserError that names the part."""
    files = _Files(folder, part)
    for number, text in _texts(config, part):
        text = without_mark(text) if config.source == "text" and number == 0 else text
        for line in text.split(b"\n"):
            if len(line) >= LONGEST_LINE_BYTES:
                raise too_long_a_line(f"{part.place}: row {number + 1}")
            sentence = b" ".join(line.split()) if config.tokenized else line.strip()
            if sentence:
                # Raw text is split after it has been cut into sentences: raw_text.py.
                files.add(part.split or (split_of(sentence, config) if config.tokenized else "train"), sentence)
    return part.number, files.finish(key)


def _receipt_of(folder: Path, part: Part) -> Path:
    return folder / f"part-{part.number:05d}.json"


def _recall(folder: Path, part: Part, key: str) -> list[tuple[Split, str]] | None:
    """Split and name of the files that an earlier run has written of the same part, where they are there, undamaged."""
    receipt = read_receipt(_receipt_of(folder, part), key, lambda files: [(split, name) for split, name in files])
    return receipt.result if receipt else None


def _key(part: Part, origin: dict[str, Any]) -> str:
    """Identifies the rows and settings that a part's files are made of."""
    what = [origin, part.split, Path(part.place).name if part.hub_split is None else part.place, part.num_bytes]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def convert_rows(config: CorpusConfig, directory: Path, crew: Crew, workers: Workers, progress: bool) -> dict[Split, list[Path]]:
    """The sentences of all rows as files, made where they are not there. -> the files of each split. A collective.

    Raises UserError where a part cannot be read or holds no such column, or where training or validation would be empty; OSError where
    the disk is full.
    """
    folder = directory / FOLDER_NAME
    origin = crew.together(lambda: datasets_origin(config))
    parts = crew.together(lambda: _parts(config))
    crew.first(lambda: folder.mkdir(parents=True, exist_ok=True))
    keys = {part.number: _key(part, origin) for part in parts}

    def convert_mine() -> list[tuple[int, list[tuple[Split, str]]]]:
        mine = [part for part in parts if crew.has(part.number)]
        found = {part.number: files for part in mine if (files := _recall(folder, part, keys[part.number])) is not None}
        todo = [part for part in mine if part.number not in found]
        with Progress("reading rows", len(todo), "part", shown=progress) as bar:
            for number, files in workers.run(convert_part, ((part, config, folder, keys[part.number]) for part in todo)):
                found[number] = files
                bar.update()
        return list(found.items())

    made = dict(files for share in crew.each(convert_mine) for files in share)
    files = [file for part in parts for file in made[part.number]]
    splits: dict[Split, list[Path]] = {split: [folder / name for of, name in files if of == split] for split in SPLITS}
    _check_splits(config, splits)
    return splits


def _check_splits(config: CorpusConfig, splits: dict[Split, list[Path]]) -> None:
    """Raise UserError for a split that must not be empty."""
    for split in ("train", "validation") if config.tokenized else ("train",):
        if not splits[split]:
            where = f"in column `{config.column}` of {', '.join(getattr(config, split) or config.train or [])}"
            by_hash = "" if _is_by_name(config) else f" by hash with corpus.validation_fraction={config.validation_fraction}"
            there = ", ".join(name for name in SPLITS if splits[name]) or "none"
            raise UserError(f"the {split} split is empty{by_hash}: no sentence {where}; splits with sentences: {there}")
