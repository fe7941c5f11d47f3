"""The one door to a trained model: a checkpoint chosen, held against retention, of the right vocabulary, and whole.

1. `choose_checkpoint` finds the one that is asked for: the latest, the best on validation so far, or that of a step.
2. `open_checkpoint` leases it, refuses one of another vocabulary, and verifies every file before anything of it is used.
3. Who has opened it reads what is needed: the core's weights, raw or averaged, and rows of the tables.

    with open_checkpoint(choose_checkpoint(run, "best"), tokens.fingerprint) as trained:
        core, kind = trained.core("ema")

Letters: D embedding, P output width, V vocabulary, U distinct words of a text.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lm1b.distributed import Ranks, from_first, single_process
from lm1b.errors import UserError
from lm1b.evaluation.trained.architecture import Architecture
from lm1b.evaluation.trained.scorer import Rows
from lm1b.training.checkpoints.checkpoint import Checkpoint, checkpoint_folder, list_checkpoints
from lm1b.training.checkpoints.retention import lease
from lm1b.training.evaluations import Weights
from lm1b.training.run_folder import RunFolder


@dataclass(frozen=True)
class OpenedCheckpoint:
    """A checkpoint whose files are whole. state: of state.json.

    Its tensors, float32 on the CPU, are read inside the block of `open_checkpoint` alone; what else it tells lasts.
    """

    checkpoint: Checkpoint
    state: dict[str, Any]
    architecture: Architecture
    ranks: Ranks

    def core(self, weights: Weights) -> tuple[dict[str, Tensor], Weights]:
        """The core's tensors by name, and which they are: `ema` falls back to `raw` where training kept no average."""
        average = self.checkpoint.core("ema") if weights == "ema" else None
        core = average or self.checkpoint.core("weights")
        assert core is not None, "core.safetensors holds no weights"
        return core, "ema" if average else "raw"

    def cores(self) -> dict[Weights, dict[str, Tensor]]:
        """The core's tensors of every kind of weights that there is."""
        raw, (average, kind) = self.core("raw")[0], self.core("ema")
        return {"ema": average, "raw": raw} if kind == "ema" else {"raw": raw}

    def rows(self, ids_U: np.ndarray | None = None) -> Rows:
        """This rank's share of the tables. ids_U: of the input table only these rows, rising; on one rank alone, None for all."""
        checkpoint, rank, size = self.checkpoint, self.ranks.rank, self.ranks.size
        table = checkpoint.read_table("input_table", rank, size)
        if ids_U is None:
            assert size == 1, "several ranks share the rows of a text"
            ids_U, input_rows_UD = np.arange(len(table)), table
        else:
            mine_U = torch.from_numpy(ids_U % size == rank)
            input_rows_UD = torch.zeros(len(ids_U), table.shape[1])
            input_rows_UD[mine_U] = table[torch.from_numpy(ids_U)[mine_U] // size]
        if not self.architecture.has_output_rows:
            return Rows(ids_U, input_rows_UD, None, None)
        output_rows_VP = table if self.architecture.model.tie_tables else None
        del table  # before as large a one is read
        bias_V = checkpoint.read_table("output_bias", rank, size).flatten()
        if output_rows_VP is None:
            output_rows_VP = checkpoint.read_table("output_table", rank, size)
        return Rows(ids_U, input_rows_UD, output_rows_VP, bias_V)


@contextlib.contextmanager
def open_checkpoint(checkpoint: Checkpoint, fingerprint: str, ranks: Ranks | None = None) -> Generator[OpenedCheckpoint]:
    """A checkpoint, leased for the block, each rank having verified its share of the files. No collective.

    fingerprint: of the vocabulary at hand. Raises UserError where the checkpoint has gone, is damaged, or is of another vocabulary.
    """
    ranks = ranks or single_process()
    try:
        with lease(checkpoint):
            state = checkpoint.state()
            if state["vocabulary"] != fingerprint:
                raise UserError(
                    f"{checkpoint.path}: trained with vocabulary {state['vocabulary'][:12]}, found {fingerprint[:12]} in tokens.directory; "
                    "expected the token directory that it was trained on"
                )
            checkpoint.verify(ranks.rank, ranks.size)
            yield OpenedCheckpoint(checkpoint, state, Architecture.of_checkpoint(checkpoint, state), ranks)
    except FileNotFoundError:
        if checkpoint.path.exists():
            raise
        # Retention had looked for leases just before this one was there.
        raise UserError(f"{checkpoint.path}: the checkpoint has been deleted meanwhile") from None


def choose_checkpoint(run_directory: Path, wanted: str, ranks: Ranks | None = None) -> Checkpoint:
    """`latest`, `best` (by validation so far) or a step; the first rank's choice. Raises UserError that lists what there is."""
    step = from_first(ranks or single_process(), lambda: _choose(run_directory, wanted).step)
    return Checkpoint(step, checkpoint_folder(run_directory, step))


def _choose(run_directory: Path, wanted: str) -> Checkpoint:
    best_step = RunFolder(run_directory).best_step() if wanted == "best" else None
    checkpoints = list_checkpoints(run_directory)
    if not checkpoints:
        raise UserError(f"{run_directory}: no checkpoint here yet; train first, or wait for the first one")
    if wanted == "latest":
        return checkpoints[-1]
    if wanted == "best" and best_step is None:
        raise UserError(f"{run_directory}: nothing has been scored on validation by the run's own settings yet; use --checkpoint latest")
    step = best_step if wanted == "best" else int(wanted) if wanted.isdecimal() else None
    for checkpoint in checkpoints:
        if checkpoint.step == step:
            return checkpoint
    there = ", ".join(str(checkpoint.step) for checkpoint in checkpoints)
    found = f"the best one, of step {step}, is not there any more" if wanted == "best" else f"found {wanted}"
    raise UserError(f"{run_directory}: --checkpoint must be latest, best or a step that is there ({there}); {found}")
