"""An exported model: a folder that needs neither the run nor its tokens nor DeepSpeed.

    config.json          the architecture, the vocabulary's fingerprint, the perplexities; as `transformers` wants it, ours under `lm1b`
    model.safetensors    core and tables; above 2 GB model-00001-of-0000N.safetensors ... and model.safetensors.index.json
    vocabulary.txt       `word count` lines in id order; of pieces, `piece count`, with SentencePiece's own vocabulary.model beside it, and
                         vocabulary.words.txt where it is closed
    generation_config.json, README.md
    manifest.json        size and SHA-256 of each file but the README, which is the user's to finish; sealed

1. export.py writes such a folder.
2. `load_model` takes one, or a run directory, by what lies in it. Everything is verified before it is used.
3. lm1b/huggingface.py reads the same files as a model of `transformers`.

Tensors: `core.*` (as LanguageModel names them), `input_table.weight` [V, D], `output_table.weight` [V, P], `output_table.bias` [V], which
is float32 whatever the others are. Tied tables are the input table alone; the adaptive softmax is part of the core. V vocabulary, D
embedding, P output width.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lm1b.data.vocabulary.files import load_vocabulary
from lm1b.data.vocabulary.vocabulary import VOCABULARY_NAME
from lm1b.devices import chosen_device
from lm1b.distributed import single_process
from lm1b.errors import UserError
from lm1b.evaluation.trained.architecture import Architecture
from lm1b.evaluation.trained.loading import LoadedModel, load_run
from lm1b.evaluation.trained.scorer import Rows, Scorer, dtype_of
from lm1b.files import read_json, read_sealed_json
from lm1b.model.language_model import LanguageModel
from lm1b.training.checkpoints.checkpoint import damage_of, is_file_list
from lm1b.training.checkpoints.tensor_file import read_tensor
from lm1b.training.evaluations import Weights, check_weights
from lm1b.training.run_folder import RunFolder

FORMAT_VERSION = 1
MANIFEST, CONFIG, VOCABULARY = "manifest.json", "config.json", VOCABULARY_NAME
TENSORS, INDEX = "model.safetensors", "model.safetensors.index.json"
CORE, INPUT_TABLE, OUTPUT_TABLE, OUTPUT_BIAS = "core.", "input_table.weight", "output_table.weight", "output_table.bias"


def is_export(path: Path) -> bool:
    """Whether a folder is (or was meant to be) an exported model; a run has checkpoints."""
    return not RunFolder(path).checkpoints.exists() and any((path / name).exists() for name in (TENSORS, INDEX, MANIFEST))


def load_model(
    path: Path, *, checkpoint: str = "latest", weights: Weights = "ema", precision: str = "fp32", device: str | None = None
) -> LoadedModel:
    """A run's checkpoint or an exported model, ready to be asked; options as of `load_run`.

    An exported model is one checkpoint and one kind of weights: another choice is a UserError. precision: to compute in, whatever
    the files are in. Raises UserError where there is no such model, it is damaged, or a choice is none.
    """
    check_weights(weights)
    if not is_export(Path(path)):
        return load_run(path, checkpoint=checkpoint, weights=weights, precision=precision, device=device)
    dtype, ranks = dtype_of(precision), single_process(chosen_device(device))
    export = ExportedModel(Path(path))
    facts = export.facts
    if checkpoint != "latest" or (weights == "raw" and facts["weights"] != "raw"):
        raise UserError(
            f"{export.path}: an exported model is one checkpoint (step {facts['step']}, {facts['weights']} weights), so no other can be "
            "chosen; leave the choice out, or load the run"
        )
    scorer = Scorer.of(export.core(dtype), export.rows(dtype), end_id=export.vocabulary.end_id, dtype=dtype, ranks=ranks)
    return LoadedModel(scorer, export.vocabulary)


class ExportedModel:
    """A folder that export.py has written, every file of it as it was written."""

    def __init__(self, path: Path) -> None:
        """Reads all files once to verify them. Raises UserError that names the first bad one."""
        self.path = path
        self._manifest = self._verify()
        self.facts = self._read_facts()
        self.vocabulary = load_vocabulary(path / VOCABULARY)
        self.architecture = Architecture.of_export(self.facts, self.vocabulary.size, str(path / CONFIG))
        if self.vocabulary.fingerprint != self.facts["vocabulary"]["fingerprint"]:
            raise UserError(f"{path / VOCABULARY}: not the vocabulary that {CONFIG} names; export the model again")
        self._files: Mapping[str, str] = read_json(path / INDEX)["weight_map"] if INDEX in self._manifest else {}

    def _read_facts(self) -> dict[str, Any]:
        config = read_json(self.path / CONFIG)
        facts = config.get("lm1b") if isinstance(config, dict) else None
        if isinstance(facts, dict) and {"model", "vocabulary", "step", "weights"} <= set(facts):
            return facts
        raise UserError(f"{self.path / CONFIG}: says nothing of an lm1b model; expected what launch/export.py has written")

    def _verify(self) -> dict[str, Any]:
        """-> file name -> bytes and SHA-256."""
        if not (self.path / MANIFEST).exists():
            raise UserError(f"{self.path / MANIFEST}: missing; expected a folder that launch/export.py has written, with all its files")
        manifest = read_sealed_json(self.path / MANIFEST)
        if manifest.get("format_version") != FORMAT_VERSION:
            raise UserError(f"{self.path}: export format {manifest.get('format_version')}, this program reads {FORMAT_VERSION}")
        files: dict[str, Any] = manifest.get("files") or {}
        if not is_file_list(files) or not {CONFIG, VOCABULARY} <= set(files) or any(Path(name).name != name for name in files):
            raise UserError(f"{self.path / MANIFEST}: not that of an exported model")

        def check(name: str) -> None:
            damage = damage_of(self.path / name, files[name], "exported model")
            if damage is not None:
                raise UserError(f"{self.path / name}: {damage}; get the folder again")

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(check, sorted(files)))
        return files

    def _read(self, name: str, out: Tensor) -> Tensor:
        file = self._files.get(name, TENSORS)
        if file not in self._manifest:
            raise UserError(f"{self.path}: no file with the tensor `{name}`; get the folder again")
        read_tensor(self.path / file, name, out)
        return out

    def core(self, dtype: torch.dtype) -> LanguageModel:
        """The dense core in `dtype`, on the CPU."""
        model = self.architecture.core().to(dtype)
        model.load_state_dict({name: self._read(CORE + name, torch.empty_like(value)) for name, value in model.state_dict().items()})
        return model

    def rows(self, dtype: torch.dtype) -> Rows:
        """Every row of the tables in `dtype`, and the float32 bias, on the CPU."""
        num_words, model = self.vocabulary.size, self.architecture.model
        input_VD = self._read(INPUT_TABLE, torch.empty(num_words, model.embedding, dtype=dtype))
        if not self.architecture.has_output_rows:
            return Rows(np.arange(num_words), input_VD, None, None)
        output_VP = input_VD if model.tie_tables else self._read(OUTPUT_TABLE, torch.empty(num_words, model.output_width, dtype=dtype))
        return Rows(np.arange(num_words), input_VD, output_VP, self._read(OUTPUT_BIAS, torch.empty(num_words)))
