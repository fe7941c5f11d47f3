"""A run directory: the one list of the names in it, whoever writes them.

    config.json        environment.json   what was asked for, with its history; on what it runs
    metrics.jsonl      events.jsonl       lines of the training (log/run_log.py): numbers, and what happened
    evaluations.jsonl                     a line a result of the evaluator (evaluations.py)
    checkpoints/                          checkpoints/checkpoint.py
    tensorboard/       token_nats/        points and texts; the nats of every token of the texts scored last
    report/                               launch/report.py
    training.lock      training.pid       who trains here (run_state.py)
    mlflow_run_id      services_sent.json which run of MLflow's this is; what the services have been sent (log/services.py)
    .watcher.lock      evaluator.log      who scores here, and what the evaluator beside the training has said

`RunFolder(Path("runs/irnn_lm")).metrics` is `runs/irnn_lm/metrics.jsonl`, whether it is there or not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lm1b.config import Config, parse_config
from lm1b.errors import UserError
from lm1b.files import read_json, read_json_lines
from lm1b.training.evaluations import Evaluation, best_on_validation


class RunFolder:
    """Paths of what a run directory holds."""

    def __init__(self, path: Path | str) -> None:
        path = self.path = Path(path)
        self.config = path / "config.json"
        self.environment = path / "environment.json"
        self.metrics = path / "metrics.jsonl"
        self.events = path / "events.jsonl"
        self.evaluations = path / "evaluations.jsonl"
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"
        self.evaluator_board = self.tensorboard / "evaluation"  # of its own: a trainer that goes on hides later points of its folder
        self.token_nats = path / "token_nats"
        self.report = path / "report"
        self.baselines = self.report / "baselines.json"
        self.lock = path / "training.lock"
        self.pid = path / "training.pid"
        self.watcher_lock = path / ".watcher.lock"
        self.evaluator_log = path / "evaluator.log"
        self.mlflow_run_id = path / "mlflow_run_id"
        self.services_sent = path / "services_sent.json"

    def logs(self) -> list[Path]:
        """What tells the run's story beside its checkpoints: the files that a mirror copies with them."""
        return [self.config, self.environment, self.metrics, self.events, self.evaluations]

    def read_config(self) -> Config:
        """The resolved config that the run was last started with. Raises UserError where the folder holds no run."""
        if not self.config.exists():
            raise UserError(f"{self.path}: no run here (config.json is missing); train first: deepspeed launch/train.py --config ...")
        written = self.read_written_config()
        return parse_config(written["config"], str(self.config))

    def read_written_config(self) -> dict[str, Any]:
        """config.json as it is: `config`, and `history`, a list. Raises UserError for what is not a run's."""
        written = read_json(self.config)
        if not isinstance(written, dict) or "config" not in written or not isinstance(written.get("history"), list):
            raise UserError(f"{self.config}: not the config.json of a run; expected the directory that launch/train.py has made")
        return written

    def read_evaluations(self) -> list[Evaluation]:
        """Every result so far, in the order in which they came. Raises UserError for a line that is damaged or is none."""
        lines = enumerate(read_json_lines(self.evaluations), 1)
        return [Evaluation.from_line(line, f"{self.evaluations}:{number}") for number, line in lines]

    def best_step(self, config: Config | None = None) -> int | None:
        """Step of the best result on validation so far; see `best_on_validation`. config None: the run's own."""
        evaluations = self.read_evaluations()
        best = best_on_validation(evaluations, config or self.read_config()) if evaluations else None
        return None if best is None else best.step
