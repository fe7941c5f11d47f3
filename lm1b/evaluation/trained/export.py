"""A trained model as a folder that others can load (exported.py says what is in it).

1. One checkpoint is opened (open.py), the vocabulary is that of the run's token directory.
2. Everything is written into a folder beside the final one: tables block by block, straight from the checkpoint's files, in id order
   whatever the number of ranks that wrote them. No table is ever in memory.
3. The manifest is written last, and the folder renamed: under the final name it is whole or not there.

No path of this machine goes into it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lm1b.data.tokens.directory import TokenDirectory
from lm1b.data.tokens.remote import open_tokens
from lm1b.data.vocabulary.files import copy_vocabulary
from lm1b.errors import UserError
from lm1b.evaluation.trained.export_facts import export_facts, generation_config, hugging_face_config
from lm1b.evaluation.trained.exported import (
    CONFIG,
    CORE,
    FORMAT_VERSION,
    INDEX,
    INPUT_TABLE,
    MANIFEST,
    OUTPUT_BIAS,
    OUTPUT_TABLE,
    VOCABULARY,
    is_export,
)
from lm1b.evaluation.trained.model_card import model_card
from lm1b.evaluation.trained.open import OpenedCheckpoint, choose_checkpoint, open_checkpoint
from lm1b.evaluation.trained.scorer import dtype_of
from lm1b.files import digest_of_file, flush_folder, needing_space, write_json, write_sealed_json
from lm1b.training.checkpoints.checkpoint import Checkpoint, table_file
from lm1b.training.checkpoints.tensor_file import DTYPE_NAMES, ELEMENT_BYTES, MatrixInFile, TensorFile, bytes_of
from lm1b.training.evaluations import Weights, check_weights
from lm1b.training.run_folder import RunFolder

LARGEST_FILE_BYTES = 2_000_000_000  # more is sharded; a table that is larger has a file of its own
BLOCK_BYTES = 8 << 20  # of a table in memory at a time


@dataclass(frozen=True)
class WrittenExport:
    """What has been written. facts: as config.json has them under `lm1b`."""

    path: Path
    num_bytes: int
    facts: dict[str, Any]


@dataclass(frozen=True)
class _Source:
    """One tensor to be written: its dtype and shape in the file, and its float32 blocks from front to back."""

    dtype: torch.dtype
    shape: Sequence[int]
    blocks: Iterator[Tensor]

    @property
    def num_bytes(self) -> int:
        return ELEMENT_BYTES[DTYPE_NAMES[self.dtype]] * int(np.prod(self.shape))


def export_run(
    run_directory: Path,
    out: Path,
    *,
    checkpoint: str = "latest",
    weights: Weights = "ema",
    precision: str = "fp32",
    largest_file_bytes: int = LARGEST_FILE_BYTES,
) -> WrittenExport:
    """Write one checkpoint of a run as a folder `out`. checkpoint: `latest`, `best` or a step. precision: of the files, `fp32` or `bf16`.

    Raises UserError where there is no such checkpoint, it is damaged, or `out` holds something already.
    """
    dtype = dtype_of(precision)
    check_weights(weights)
    run_directory, out = Path(run_directory), Path(os.path.abspath(out))
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: there is something already; name a folder that is not there or is empty")
    if is_export(run_directory):
        raise UserError(f"{run_directory}: an exported model already; expected a run's directory")
    folder = RunFolder(run_directory)
    tokens = open_tokens(folder.read_config().tokens)
    partial = out.with_name(f"{out.name}.{os.getpid()}.partial")
    with open_checkpoint(choose_checkpoint(run_directory, checkpoint), tokens.fingerprint) as trained:
        core, kind = trained.core(weights)
        facts = export_facts(trained, tokens, kind, precision, folder.read_evaluations())
        sources = _sources(trained, core, dtype)
        try:
            with needing_space(out.parent, sum(source.num_bytes for source in sources.values())):
                num_bytes = _write(partial, sources, facts, trained.state["config"], tokens, largest_file_bytes)
            os.replace(partial, out)
            flush_folder(out.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return WrittenExport(out, num_bytes, facts)


def _write(
    folder: Path, sources: dict[str, _Source], facts: dict[str, Any], settings: dict[str, Any], tokens: TokenDirectory, largest: int
) -> int:
    """All files, the manifest last. -> their bytes."""
    folder.mkdir()
    files = _write_tensors(folder, sources, largest)
    copy_vocabulary(tokens.folder / VOCABULARY, folder)
    write_json(folder / CONFIG, hugging_face_config(facts))
    write_json(folder / "generation_config.json", generation_config(facts))
    (folder / "README.md").write_text(model_card(facts, settings), encoding="utf-8")
    for path in folder.iterdir():
        if path.name not in files and path.name != "README.md":
            files[path.name] = {"bytes": path.stat().st_size, "sha256": digest_of_file(path)}
    write_sealed_json(folder / MANIFEST, {"format_version": FORMAT_VERSION, "files": dict(sorted(files.items()))})
    flush_folder(folder)
    return sum(path.stat().st_size for path in folder.iterdir())


def _write_tensors(folder: Path, sources: dict[str, _Source], largest: int) -> dict[str, dict[str, Any]]:
    """One file, or several and their index, cut as Hugging Face's tools do. -> file name -> bytes and SHA-256."""
    from huggingface_hub import split_state_dict_into_shards_factory  # slow to import

    sizes: Mapping[str, Any] = {name: source.num_bytes for name, source in sources.items()}
    cut = split_state_dict_into_shards_factory(
        dict(sizes), get_storage_size=lambda num_bytes: num_bytes, filename_pattern="model{suffix}.safetensors", max_shard_size=largest
    )
    files = {}
    for file_name, names in cut.filename_to_tensors.items():
        layout = {name: (DTYPE_NAMES[sources[name].dtype], sources[name].shape) for name in names}
        file = TensorFile(folder / file_name, layout, {"format": "pt"})  # what `transformers` asks for
        try:
            for name in names:
                for block in sources[name].blocks:
                    file.write(bytes_of(block.to(sources[name].dtype).contiguous()))
        except BaseException:
            file.abandon()
            raise
        files[file_name] = file.finish()
    if cut.is_sharded:
        write_json(folder / INDEX, {"metadata": cut.metadata, "weight_map": cut.tensor_to_filename})
    return files


def _sources(trained: OpenedCheckpoint, core: dict[str, Tensor], dtype: torch.dtype) -> dict[str, _Source]:
    """Every tensor by its name in the files. The float32 bias is first, so that all are aligned."""
    architecture, num_words, ranks = trained.architecture, trained.architecture.vocabulary_size, trained.state["ranks"]

    def table(name: str, width: int) -> _Source:
        return _Source(dtype, [num_words, width], _rows_in_order(trained.checkpoint, name, num_words, width, ranks))

    sources = {}
    if architecture.has_output_rows:
        bias = _rows_in_order(trained.checkpoint, "output_bias", num_words, 1, ranks)
        sources[OUTPUT_BIAS] = _Source(torch.float32, [num_words], bias)
    sources |= {CORE + name: _Source(dtype, core[name].shape, iter([core[name]])) for name in sorted(core)}
    sources[INPUT_TABLE] = table("input_table", architecture.model.embedding)
    if architecture.has_output_rows and not architecture.model.tie_tables:
        sources[OUTPUT_TABLE] = table("output_table", architecture.model.output_width)
    return sources


def _rows_in_order(checkpoint: Checkpoint, name: str, num_rows: int, width: int, ranks: int) -> Iterator[Tensor]:
    """A table's rows by id, float32 blocks [rows, width] whose memory is used again: row r lies in file r % ranks at r // ranks."""
    at_a_time = max(1, BLOCK_BYTES // (4 * width * ranks))
    parts = [
        MatrixInFile(checkpoint.path / table_file(name, rank, ranks), "rows", (len(range(rank, num_rows, ranks)), width)).blocks(at_a_time)
        for rank in range(ranks)
    ]
    together = np.empty((at_a_time * ranks, width), np.float32)
    for start in range(0, num_rows, at_a_time * ranks):
        block = together[: num_rows - start]
        for rank, part in enumerate(parts):
            if start + rank < num_rows:
                block[rank::ranks] = next(part)[1]
        yield torch.from_numpy(block)
