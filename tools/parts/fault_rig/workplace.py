"""The rig's temporary folder: a made-up corpus, its tokens, configs, and the undisturbed runs that others are compared with."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm1b.files import read_json_lines
from lm1b.training.checkpoints.checkpoint import checkpoint_folder
from lm1b.training.run_folder import RunFolder
from parts.fault_rig.launches import PREPROCESS, TRAIN, Launch
from parts.fault_rig.points import Order
from parts.harness.corpora import write_corpus

EVERY = 10  # steps between two checkpoints
KEEP_LAST = 3

# Both precisions, and with them two stages, two optimizers, with and without gradient accumulation; dropout and averages in both.
FLAVOURS: dict[str, dict[str, dict[str, Any]]] = {
    "fp32": {
        "training": {"precision": "fp32", "zero_stage": 1, "micro_batches": 1},
        "optimizer": {"kind": "adagrad", "learning_rate": 0.2},
    },
    "bf16": {"training": {"precision": "bf16", "zero_stage": 2, "micro_batches": 2}, "optimizer": {"kind": "adam", "learning_rate": 0.002}},
}


@dataclass(frozen=True)
class TrainingRun:
    """One training of a flavour, and what can be seen of it from outside."""

    directory: Path
    config: Path

    def last_step(self) -> int:
        """The last step that metrics.jsonl knows of."""
        return max((line["step"] for line in read_json_lines(RunFolder(self.directory).metrics)), default=0)

    def starts(self) -> list[int]:
        """The step that each start of the training went on from, by events.jsonl."""
        events = [(line["text"], line["step"]) for line in read_json_lines(RunFolder(self.directory).events)]
        return [step for text, step in events if re.match(r"going on at step|starting of", text)]

    def being_saved(self) -> int | None:
        """Step of the checkpoint that is only half there, None where there is none."""
        partial = RunFolder(self.directory).checkpoints.glob("step_*.partial")
        steps = [int(match.group(1)) for path in partial if (match := re.fullmatch(r"step_(\d+)\.partial", path.name))]
        return max(steps, default=None)

    def final(self, step: int) -> Path:
        return checkpoint_folder(self.directory, step)


class Workplace:
    """Where everything of one call of the rig lies."""

    def __init__(self, seed: int, ranks: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="lm1b-faults-"))
        self.seed, self.ranks = seed, ranks
        self.logs = self.folder / "logs"
        self._numbers: dict[str, int] = {}
        self._undisturbed: dict[tuple[str, int], TrainingRun] = {}
        write_corpus(self.folder / "corpus", seed)

    def new_name(self, kind: str) -> str:
        """`chain_1`, `chain_2`, ..."""
        self._numbers[kind] = self._numbers.get(kind, 0) + 1
        return f"{kind}_{self._numbers[kind]}"

    def write_config(self, name: str, flavour: str, steps: int, directory: Path | None = None, **sections: dict[str, Any]) -> Path:
        """A config file for the corpus; sections override keys. directory: of the run, where it is not in this folder."""
        settings: dict[str, dict[str, Any]] = {
            "run": {"directory": str(directory or self.folder / name), "seed": self.seed % 1000},
            "corpus": {"kind": "lm1b", "path": str(self.folder / "corpus")},
            "tokens": {"directory": str(self.folder / "tokens"), "processes": 1},
            "batches": {"lanes": 4 * self.ranks, "steps": 10, "block_tokens": 500},
            "model": {"cell": "lstm", "embedding": 12, "hidden": 24, "projection": 16, "dropout": 0.2},
            "softmax": {"samples": 60},
            "training": {"total_steps": steps, "threads": 1, "log_every": 1, "gap_every": None, "ema_decay": 0.99},
            "checkpoints": {"every": EVERY, "keep_last": KEEP_LAST},
            "evaluation": {"lanes": 4, "weights": "both"},
        }
        for part in (FLAVOURS[flavour], sections):
            for section, values in part.items():
                settings[section] = {**settings.get(section, {}), **values}
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(settings, indent=2))
        return path

    def training(self, name: str, flavour: str, steps: int, directory: Path | None = None) -> TrainingRun:
        return TrainingRun(directory or self.folder / name, self.write_config(name, flavour, steps, directory))

    def start(
        self,
        run: TrainingRun,
        log: Path,
        order: Order | None = None,
        variables: dict[str, str] | None = None,
    ) -> Launch:
        """Start training under the launcher."""
        return Launch(TRAIN, ["--config", str(run.config)], log, order, ranks=self.ranks, variables=variables)

    def finish(self, run: TrainingRun, log: Path) -> None:
        """Train to the end, undisturbed. Raises Failure where that does not work."""
        self.start(run, log).finish_well()

    def prepare(self, config: Path, log: Path) -> None:
        """Preprocess, undisturbed. Raises Failure where that does not work."""
        Launch(PREPROCESS, ["--config", str(config)], log).finish_well()

    def tokens(self) -> Path:
        """The token directory that nobody disturbs; made when first asked for."""
        if not (self.folder / "tokens" / "manifest.json").exists():
            self.prepare(self.write_config("tokens", "fp32", 1), self.logs / "tokens.log")
        return self.folder / "tokens"

    def undisturbed(self, flavour: str, steps: int) -> TrainingRun:
        """The run of a flavour that nobody disturbs; made when first asked for."""
        self.tokens()
        if (flavour, steps) not in self._undisturbed:
            run = self.training(f"undisturbed_{flavour}_{steps}", flavour, steps)
            self.finish(run, self.logs / f"undisturbed_{flavour}_{steps}.log")
            self._undisturbed[flavour, steps] = run
        return self._undisturbed[flavour, steps]

    def clear(self, keep_logs: bool) -> None:
        """Remove the folder; the logs stay where something went wrong."""
        for path in self.folder.iterdir():
            if path == self.logs and keep_logs:
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not keep_logs:
            self.folder.rmdir()
