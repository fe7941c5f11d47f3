"""The language-model table of Le, Jaitly and Hinton 2015 at half its widths: every cell searched alike, trained alike, scored alike.

    python tools/paper_results.py language-models --corpus NEWS_MIX --files SHARD_10 SHARD_11 --json results/papers/language_models.json

1. The core's learning rate, of each cell: six rates for a quarter of the budget, the better half for half of it, all from the start with
   a schedule of that length; 800 validation sentences decide, exact perplexity. Everything else is the same for all cells.
2. The chosen rate for the whole budget by launch/train.py, and exact perplexities by launch/evaluate.py: validation, test (looked at once)
   and each of `--files`.
3. `--seeds 1 2 3 --epochs 1 --only lstm_256 irnn_512`: the same cells again over several seeds and a longer budget, at the rate found.

Resumable: what the JSON holds is not done again. Tokens are made in `--work` where they are not there yet.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from lm1b.config import load_config
from lm1b.errors import UserError
from lm1b.files import read_json, read_json_lines, write_json
from lm1b.precision import resolve_precision
from lm1b.training.run_folder import RunFolder
from parts.harness.launching import REPOSITORY
from parts.harness.results import made_by
from parts.harness.scored_training import try_settings

CONFIG = REPOSITORY / "configs" / "papers" / "language_model.json"
RATES = (0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008)  # of the core, by Adam
SEARCH_SENTENCES = 800
PROJECTED = ["model.hidden=512", "model.projection=256"]
DEEP = ["model.layers=4", "model.hidden=256", "model.projection=null"]
CELLS = {
    "lstm_256": ["model.cell=lstm", "model.hidden=256", "model.projection=null", "model.forget_bias=1"],
    "irnn_512": ["model.cell=irnn", *PROJECTED, "model.identity_scale=0.5"],
    "irnn_512_identity": ["model.cell=irnn", *PROJECTED, "model.identity_scale=1"],
    "tanh_512": ["model.cell=tanh_rnn", *PROJECTED],
    "np_rnn_512": ["model.cell=np_rnn", *PROJECTED, "model.input_weight=np_rnn", "model.projection_weight=glorot_normal"],
    "relu_512": ["model.cell=relu_rnn", *PROJECTED],
    "irnn_4x256": ["model.cell=irnn", *DEEP, "model.identity_scale=0.5"],
    "tanh_4x256": ["model.cell=tanh_rnn", *DEEP],
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the user may say."""
    parser.add_argument("--corpus", required=True, help="folder in the benchmark's layout")
    parser.add_argument("--files", nargs="*", default=[], help="tokenized text to score beside validation and test")
    parser.add_argument("--work", type=Path, default=Path("runs/papers"), help="tokens and runs go here")
    parser.add_argument("--only", nargs="+", choices=list(CELLS), default=list(CELLS), metavar="CELL", help=", ".join(CELLS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--epochs", type=float, help="budget of the last training instead of 3.3 million tokens")
    parser.add_argument("--json", type=Path, required=True, help="results; what it holds is not done again")


class Table:
    """The results so far, in a file that is written after every piece of work."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.path: Path = arguments.json
        self.cells: dict[str, Any] = read_json(self.path)["cells"] if self.path.exists() else {}
        self.work: Path = arguments.work
        self.files: list[str] = arguments.files
        self.common = [
            f"corpus.path={json.dumps(str(arguments.corpus))}",
            f"tokens.directory={json.dumps(str(self.work / 'tokens_language_model'))}",
            "training.threads=1",
        ]
        config = load_config(CONFIG, self.common)
        precision = resolve_precision(config.training.precision, torch.device("cpu"))
        self.common.append(f"training.precision={precision}")  # so that it is kept with each run

    def save(self) -> None:
        """Write the file."""
        write_json(self.path, {**made_by(), "config": "configs/papers/language_model.json", "cells": self.cells})

    def launch(self, script: str, *arguments: str) -> None:
        """Run one of our own commands. Raises UserError where it fails."""
        command = [sys.executable, str(REPOSITORY / "launch" / script), *arguments]
        if subprocess.run(command).returncode:
            raise UserError(f"failed: {' '.join(command)}")

    def settings(self, cell: str, *more: str) -> list[str]:
        """Overrides of a cell's config."""
        return [*self.common, *CELLS[cell], *more]

    def rung(self, cell: str, share: float, rates: list[float]) -> list[float]:
        """Try rates for a share of the budget. -> the better half, the best first."""
        tried = self.cells.setdefault(cell, {}).setdefault("search", {}).setdefault(str(share), {})
        for rate in rates:
            if str(rate) not in tried:
                with tempfile.TemporaryDirectory() as folder:
                    settings = self.settings(cell, f"optimizer.learning_rate={rate}", f"run.directory={json.dumps(folder)}", "run.seed=0")
                    config = load_config(CONFIG, settings)
                    steps = round(share * (config.training.total_steps or 0))
                    print(f"{cell}: core learning rate {rate}, {steps} steps", flush=True)
                    tried[str(rate)] = try_settings(config, SEARCH_SENTENCES, num_steps=steps, shares=(1.0,))["curve"][-1][1]
                self.save()
        # None: it has diverged.
        return sorted(rates, key=lambda rate: math.inf if tried[str(rate)] is None else tried[str(rate)])[: max(1, len(rates) // 2)]

    def search(self, cell: str) -> float:
        """The cell's learning rate."""
        (best,) = self.rung(cell, 0.5, self.rung(cell, 0.25, list(RATES)))
        self.cells[cell]["learning_rate"] = best
        return best

    def train(self, cell: str, seed: int, epochs: float | None) -> None:
        """The whole budget, and every perplexity of what comes out."""
        name = f"{cell}_seed_{seed}" + (f"_{epochs:g}_epochs" if epochs else "")
        rate = f"optimizer.learning_rate={self.search(cell)}"
        runs = self.cells[cell].setdefault("runs", {})
        if name in runs and rate in runs[name]["settings"]:
            return
        folder = self.work / f"{name}_{rate.rpartition('=')[2]}"
        length = [f"training.epochs={epochs}", "training.total_steps=null"] if epochs else []
        settings = self.settings(cell, rate, f"run.directory={json.dumps(str(folder))}", f"run.seed={seed}", *length)
        self.launch("train.py", "--config", str(CONFIG), *(word for setting in settings for word in ("--set", setting)))
        for what in (["--split", "validation"], ["--split", "test"], *(["--files", file] for file in self.files)):
            self.launch("evaluate.py", "--run", str(folder), *what)
        kept = ("split", "predictions", "unknown", "word_perplexity", "precision", "weights", "lanes", "state")
        # Of a text that was scored again after a kill, the last result.
        evaluations = {str(each.files): each for each in RunFolder(folder).read_evaluations()}.values()
        scored = [{**each.only(kept), "files": [Path(file).name for file in each.files]} for each in evaluations]
        metrics = read_json_lines(RunFolder(folder).metrics)[-1]
        told = [setting for setting in settings if not setting.startswith(("corpus.path", "tokens.directory", "run.directory"))]
        runs[name] = {"seed": seed, "epochs": epochs, **made_by(), "settings": told, "scored": scored, "last_metrics": metrics}
        self.save()


def run(arguments: argparse.Namespace) -> None:
    """Every cell and seed that was asked for."""
    table = Table(arguments)
    table.launch("preprocess.py", "--config", str(CONFIG), *(word for setting in table.common for word in ("--set", setting)))
    for cell in arguments.only:
        for seed in arguments.seeds:
            table.train(cell, seed, arguments.epochs)
