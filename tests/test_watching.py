"""What a run tells while it trains: TensorBoard's numbers, texts and words, JSON lines, other services."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_runs import run as run_command
from google.protobuf import text_format
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig  # type: ignore[attr-defined]
from tiny import REPOSITORY, WITHOUT_MLFLOW, environment, write_settings

from lm1b.config import ModelConfig
from lm1b.console import json_line
from lm1b.evaluation.scoring.spectrum import spectral_radii
from lm1b.files import read_json_lines
from lm1b.metrics import EVALUATED, METRICS, meaning_of
from lm1b.model.language_model import LanguageModel
from lm1b.progress import duration
from lm1b.training.log.activations import ActivationWatch
from lm1b.training.log.board import LAYOUT, scalars_of
from lm1b.training.log.services import numbers_of

STEPS = 30


@pytest.fixture(scope="module")
def told(tiny_folder: Path) -> list[dict[str, Any]]:
    """An IRNN's training and its evaluation in `watched`, as the objects that they said."""
    sections = {"total_steps": STEPS, "log_every": 10, "gap_every": 15}
    model = {"cell": "irnn", "hidden": 24, "layers": 2, "identity_scale": 0.5}
    config = write_settings(tiny_folder, "watched", training=sections, model=model, checkpoints={"every": STEPS}, logging={"ceiling": True})
    lines: list[dict[str, Any]] = []
    for arguments in (
        ["launch/preprocess.py", "--config", str(config)],
        ["launch/train.py", "--config", str(config)],
        ["launch/evaluate.py", "--run", str(tiny_folder / "watched")],
    ):
        done = run_command([sys.executable, *arguments, "--log-format", "json"])
        assert done.returncode == 0, done.stdout + done.stderr
        assert "\r" not in done.stdout + done.stderr
        lines += [json.loads(line) for line in done.stdout.splitlines()]
    return lines


def board_of(folder: Path) -> EventAccumulator:
    board = EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0})
    board.Reload()
    return board


def test_json_lines_tell_the_same_as_the_logs(tiny_folder: Path, told: list[dict[str, Any]]) -> None:
    assert all({"time", "level", "event"} <= set(line) for line in told)
    assert [line["metrics"] for line in told if line["event"] == "metrics"] == read_json_lines(tiny_folder / "watched" / "metrics.jsonl")
    assert [line["step"] for line in told if line["event"] == "metrics"] == [10, 15, 20, 30]
    (tokens,) = [line for line in told if line["event"] == "tokens"]
    assert tokens["splits"]["train"]["num_tokens"] > 10_000
    (evaluation,) = [line for line in told if line["event"] == "evaluation"]
    assert evaluation["metrics"]["word_perplexity"] == read_json_lines(tiny_folder / "watched" / "evaluations.jsonl")[0]["word_perplexity"]
    assert any("finished at step 30" in line.get("message", "") for line in told)


@pytest.mark.parametrize("mistake", [["--config", "nowhere.json"], ["--config", "configs/irnn_lm.json", "--sett", "a=1"]])
def test_mistakes_are_json_lines_too(mistake: list[str]) -> None:
    done = run_command([sys.executable, "launch/train.py", "--log-format", "json", *mistake])
    line = json.loads(done.stdout)
    assert (line["level"], line["event"], line["status"], done.returncode, done.stderr) == ("error", "error", 2, 2, "")


def test_json_has_null_for_what_is_no_number() -> None:
    line = json_line("metrics", metrics={"a": float("nan"), "b": [float("inf"), 1.5]})
    assert json.loads(line)["metrics"] == {"a": None, "b": [None, 1.5]}


def test_every_number_has_a_tag_with_a_meaning_and_is_on_the_board(tiny_folder: Path, told: list[dict[str, Any]]) -> None:
    lines = read_json_lines(tiny_folder / "watched" / "metrics.jsonl")
    numbers = {key for line in lines for key, value in line.items() if key != "step" and not isinstance(value, str)}
    assert numbers <= set(METRICS)
    alone = {"gpu_peak_memory_mb", "waiting_seconds", "waiting_for_slowest"}  # a GPU's, several ranks'
    assert set(METRICS) - numbers == alone
    board = board_of(tiny_folder / "watched" / "tensorboard")
    assert set(board.Tags()["scalars"]) == {tag for line in lines for tag in scalars_of(line)}
    assert [event.step for event in board.Scalars("loss/training")] == [10, 15, 20, 30]
    assert board.Scalars("loss/training")[0].value == pytest.approx(lines[0]["nats_per_word"])
    assert board.SummaryMetadata("recurrence/dead_relus").summary_description == METRICS["dead_relus"].meaning
    on_layout = {tag for charts in LAYOUT.values() for _, tags in charts.values() for tag in tags}
    assert on_layout <= {metric.tag for metric in (METRICS | EVALUATED).values()}
    assert meaning_of("step_seconds/forward") == METRICS["step_seconds"].meaning
    last = lines[-1]
    assert 0 < last["share_of_ceiling"] < 1
    assert 0 < last["mean_activation"] < last["largest_activation"]
    assert sum(last["step_seconds"].values()) <= 10 / last["words_per_second"] * 80 * 1.1  # 80 words a step


def test_an_evaluation_shows_perplexity_radii_sentences_and_words(tiny_folder: Path, told: list[dict[str, Any]]) -> None:
    folder = tiny_folder / "watched" / "tensorboard" / "evaluation"
    (line,) = read_json_lines(tiny_folder / "watched" / "evaluations.jsonl")
    board = board_of(folder)
    (point,) = board.Scalars("exact_perplexity/validation_carry_ema")
    assert point.value == pytest.approx(line["word_perplexity"])
    assert board.Scalars("recurrence/spectral_radius/layer 1, ema")[0].value == pytest.approx(line["spectral_radius"]["layer 1"])
    (text,) = board.Tensors("samples/text_summary")
    assert len(text.tensor_proto.string_val[0].decode().splitlines()) == 3
    config = ProjectorConfig()
    text_format.Parse((folder / "projector_config.pbtxt").read_text(), config)
    (embedding,) = config.embeddings
    words = (folder / embedding.metadata_path).read_text().splitlines()
    rows = np.fromfile(folder / embedding.tensor_path, np.float32).reshape(tuple(embedding.tensor_shape))
    assert words[0] == "word\trank\tcount"
    assert len(words) - 1 == len(rows) <= 5000
    assert words[1].startswith("w0\t1\t")
    assert all(line.count("\t") == 2 for line in words)


@pytest.mark.parametrize("cell", ["irnn", "tanh_rnn", "lstm"])
def test_activations_are_those_of_the_layers(cell: Any) -> None:
    torch.manual_seed(1)
    model = LanguageModel(ModelConfig(cell=cell, layers=2, hidden=16, embedding=8), seed=1)
    watch = ActivationWatch(model.stack)
    x_TBD, state = torch.randn(5, 3, 8), model.zero_state(3, "cpu")
    model.hidden(x_TBD, state)
    assert watch.take() == {}  # nobody had asked
    watch.begin()
    for lanes in (slice(0, 2), slice(2, 3)):  # two micro-batches
        model.hidden(x_TBD[:, lanes], {name: value[lanes] for name, value in state.items()})
    found = watch.take()
    with torch.no_grad():
        zero_1BH = torch.zeros(1, 3, 16)
        zero = (zero_1BH, zero_1BH) if cell == "lstm" else zero_1BH
        first, _ = model.stack.layers[0](x_TBD, zero)
        second, _ = model.stack.layers[1](first, zero)
    outputs = torch.stack([first, second])
    assert found["mean_activation"] == pytest.approx(float(outputs.abs().mean()), rel=1e-5)
    if cell == "irnn":
        assert found["dead_relus"] == pytest.approx(float((outputs == 0).all(dim=1).all(dim=1).float().mean()))
        assert found["dead_relus"] > 0
    else:
        assert "dead_relus" not in found


def test_activations_that_are_not_finite_are_no_number() -> None:
    model = LanguageModel(ModelConfig(cell="irnn", layers=1, hidden=16, embedding=8), seed=1)
    watch = ActivationWatch(model.stack)
    watch.begin()
    model.hidden(torch.full((5, 3, 8), float("inf")), model.zero_state(3, "cpu"))
    assert watch.take()["mean_activation"] is None


def test_spectral_radii_are_those_of_the_state_s_matrix() -> None:
    generator = np.random.default_rng(1)
    weight = generator.normal(size=(12, 12)).astype(np.float32)
    radius = np.abs(np.linalg.eigvals(weight)).max()
    irnn = ModelConfig(cell="irnn", hidden=12)
    assert spectral_radii({"stack.layers.0.weight_hh_l0": torch.from_numpy(weight)}, irnn) == {"layer 0": pytest.approx(radius, rel=1e-4)}
    gates, projection = generator.normal(size=(4, 12, 5)).astype(np.float32), generator.normal(size=(5, 12)).astype(np.float32)
    lstm = ModelConfig(cell="lstm", hidden=12, recurrent_projection=5)
    core = {
        "stack.layers.0.weight_hh_l0": torch.from_numpy(gates.reshape(48, 5)),
        "stack.layers.0.weight_hr_l0": torch.from_numpy(projection),
    }
    found = spectral_radii(core, lstm)
    for number, gate in enumerate("ifgo"):
        whole = np.abs(np.linalg.eigvals(gates[number] @ projection)).max()  # hidden to hidden: the same eigenvalues beside zeros
        assert found[f"layer 0 gate {gate}"] == pytest.approx(whole, rel=1e-3)
    broken = torch.from_numpy(weight).clone()
    broken[0, 0] = torch.nan
    assert spectral_radii({"stack.layers.0.weight_hh_l0": broken}, irnn) == {}


def test_durations_in_words() -> None:
    assert [duration(seconds) for seconds in (0.4, 61, 7322, 200_000)] == ["0 s", "1 min 1 s", "2 h 2 min", "2 days 7 h"]


def test_services_get_the_numbers_alone() -> None:
    line = {"step": 3, "nats_per_word": 2.5, "slowest": "rank 1", "gradient_norm": None, "step_seconds": {"rows": 0.5}}
    assert numbers_of(line) == {"nats_per_word": 2.5, "step_seconds/rows": 0.5}


def test_a_service_that_is_not_installed_is_a_mistake_before_training(tiny_folder: Path, told: list[dict[str, Any]]) -> None:
    code = "import runpy, sys; sys.modules['wandb'] = None; runpy.run_path('launch/train.py', run_name='__main__')"
    asked = ["--set", 'logging.services=["wandb"]', "--set", f"run.directory={tiny_folder}/unserved"]
    done = run_command([sys.executable, "-c", code, "--config", str(tiny_folder / "watched.json"), *asked])
    assert done.returncode == 2
    assert "asks for wandb, which is not installed" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tiny_folder / "unserved" / "metrics.jsonl").exists()


@pytest.mark.parametrize("service", ["wandb", "mlflow"])
def test_a_service_is_told_every_line(tiny_folder: Path, told: list[dict[str, Any]], tmp_path: Path, service: str) -> None:
    """With the real client, offline, into files."""
    if not list(importlib.metadata.distributions(name=service)):  # the module that is found may be without_mlflow's
        pytest.skip(f"{service} is not installed")
    where = {
        "WANDB_MODE": "offline",
        "MLFLOW_TRACKING_URI": f"file://{tmp_path}/mlruns",
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "PYTHONPATH": os.pathsep.join(path for path in os.environ["PYTHONPATH"].split(os.pathsep) if path != str(WITHOUT_MLFLOW)),
    }
    directory = tmp_path / service
    asked = ["--set", f'logging.services=["{service}"]', "--set", f"run.directory={directory}"]
    done = subprocess.run(
        [sys.executable, "launch/train.py", "--config", str(tiny_folder / "watched.json"), *asked],
        env=environment(**where),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "has failed" not in done.stdout
    if service == "wandb":
        assert list(directory.glob("wandb/offline-run-*/*.wandb"))
    else:
        (kept,) = (tmp_path / "mlruns").glob("*/*/metrics/nats_per_word")
        assert [line.split()[2] for line in kept.read_text().splitlines()] == ["10", "15", "20", "30"]
