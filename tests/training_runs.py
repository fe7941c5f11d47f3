"""What the tests of training share: planned runs on real ranks (see training_worker.py), and what they left on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tiny import run_ranks, tiny_settings

from lm1b.files import read_json_lines
from lm1b.training.checkpoints.checkpoint import Checkpoint, list_checkpoints

WORKER = str(Path(__file__).with_name("training_worker.py"))
GOLDEN = Path(__file__).with_name("golden_losses.json")
GOLDEN_TOLERANCE = 2e-4  # other machines' matrix products round differently
_DROPPING = {"cell": "irnn", "embedding": 12, "hidden": 24, "projection": 16, "dropout": 0.2, "layers": 2, "identity_scale": 0.5}
# Runs of 50 steps whose losses, every seventh of them, are kept in GOLDEN: sections of the config beside the tiny one's.
GOLDEN_RUNS: dict[str, dict[str, Any]] = {"1x1": {}, "golden_irnn": {"model": _DROPPING, "optimizer": {"clip_norm": 1.0}}}


def job(folder: Path, run: str, **sections: Any) -> dict[str, Any]:
    """One training for a launch: `poison`, `loss_scale` and `as_on_gpu` are the worker's, all else overrides sections of the config."""
    extra = {key: sections.pop(key) for key in ("poison", "loss_scale", "as_on_gpu") if key in sections}
    return {"config": tiny_settings(folder, run, **sections), **extra}


def launch(ranks: int, jobs: list[dict[str, Any]], kill_at: Path | None = None) -> dict[str, Any]:
    """Jobs that one set of processes trains in turn, killed as soon as the file kill_at is there."""
    return {"ranks": ranks, "jobs": jobs, "kill_at": None if kill_at is None else str(kill_at)}


def run_launches(folder: Path, name: str, plan: list[dict[str, Any]]) -> list[list[list[dict[str, Any]]]]:
    """Do the launches in turn; what was seen, by launch, rank and job."""
    plan_file, report_file = folder / f"{name}.plan.json", folder / f"{name}.report.json"
    plan_file.write_text(json.dumps(plan))
    run_ranks([WORKER, str(plan_file), str(report_file)], 1)
    return json.loads(report_file.read_text())


def run_by_name(folder: Path, name: str, jobs: dict[int, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Jobs by number of ranks -> what every rank saw, by run (of one that goes on: in its last job). Fails where a job failed."""
    found: dict[str, list[dict[str, Any]]] = {}
    reports = run_launches(folder, name, [launch(ranks, planned) for ranks, planned in jobs.items()])
    for planned, seen in zip(jobs.values(), reports, strict=True):
        for number, one in enumerate(planned):
            found[Path(one["config"]["run"]["directory"]).name] = [rank[number] for rank in seen]
    assert all(report["error"] is None for reports in found.values() for report in reports), found
    return found


def losses(folder: Path, run: str) -> list[float]:
    """Sampled nats a word of every line of metrics.jsonl."""
    return [line["nats_per_word"] for line in read_json_lines(folder / run / "metrics.jsonl")]


def events(folder: Path, run: str) -> list[str]:
    """What a run has said."""
    return [line["text"] for line in read_json_lines(folder / run / "events.jsonl")]


def tensors_of(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, tables whole."""
    found = {}
    for kind in ("weights", "ema", *(f"optimizer/{key}" for key in checkpoint.optimizer_keys())):
        found |= {f"{kind}/{name}": tensor for name, tensor in (checkpoint.core(kind) or {}).items()}
    for name in checkpoint.state()["tables"]:
        found |= {f"{name}/{key}": checkpoint.read_table(name, key=key) for key in ("rows", "accumulators")}
    return found | {f"carry/{name}": tensor for name, tensor in checkpoint.carry().items()}


def assert_same_end(folder: Path, one: str, other: str, relative: float) -> None:
    """The last checkpoints of two runs hold the same tensors; relative 0: bit for bit."""
    expected, found = (tensors_of(list_checkpoints(folder / run)[-1]) for run in (one, other))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        if relative == 0:
            assert torch.equal(tensor, found[name]), name
        else:
            distance = torch.linalg.vector_norm(tensor.float() - found[name].float()) / torch.linalg.vector_norm(tensor.float()).clamp(1e-6)
            assert distance < relative, f"{name}: {distance:.2e}"
