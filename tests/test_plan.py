"""The plan of a training: its sizes are those of the training itself, its estimates near what was measured."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from command_runs import fill, run, train
from made_run import made_config, made_tokens
from tiny import REPOSITORY
from torch import nn

from lm1b.config import Config, ModelConfig, SoftmaxConfig, load_config
from lm1b.console import use_log_format
from lm1b.data.batches import Batches
from lm1b.errors import UserError
from lm1b.launchers import Place
from lm1b.model import recurrent
from lm1b.model.costs import core_parameters, flops_per_word, table_parameters
from lm1b.model.language_model import LanguageModel
from lm1b.strict import override
from lm1b.training.dry_run import _bytes_a_rank, dry_run, make_plan

SHAPES = [
    {"cell": "irnn", "hidden": 20, "embedding": 7},
    {"cell": "lstm", "hidden": 20, "embedding": 7, "layers": 3, "projection": 6},
    {"cell": "lstm", "hidden": 20, "embedding": 7, "layers": 2, "recurrent_projection": 5},
]


@pytest.mark.parametrize("shape", SHAPES)
def test_parameters_and_widths_are_the_model_s(shape: dict[str, Any]) -> None:
    config = ModelConfig.model_validate(shape)
    model = LanguageModel(config, 1)
    assert core_parameters(config) == sum(parameter.numel() for parameter in model.parameters())
    softmax = SoftmaxConfig()
    assert table_parameters(config, softmax, 100) == 100 * (7 + model.output_width + 1)
    tied = config.model_copy(update={"tie_tables": True})
    assert table_parameters(tied, softmax, 100) == 100 * (7 + 1)


def test_parameters_of_the_adaptive_softmax_are_the_core_s() -> None:
    model, softmax = ModelConfig.model_validate(SHAPES[0]), SoftmaxConfig(kind="adaptive", cutoffs=[10, 30])
    core = LanguageModel(model, 1, softmax=softmax, vocabulary_size=100)
    # Head: 10 words and 2 clusters, with their bias. Clusters: 20 and 70 words, rows 5 and 1 wide.
    assert core_parameters(model, softmax, 100) == core_parameters(model) + 12 * 21 + 5 * 20 + 20 * 5 + 20 + 70
    assert core_parameters(model, softmax, 100) == sum(parameter.numel() for parameter in core.parameters())
    assert table_parameters(model, softmax, 100) == 700


def test_work_of_a_word_is_that_of_the_papers_shapes() -> None:
    irnn = load_config(REPOSITORY / "configs" / "irnn_lm.json").model
    assert flops_per_word(irnn, 8192) / 1e6 == pytest.approx(37.8, rel=0.01)
    lstm = load_config(REPOSITORY / "configs" / "lstm_2048_512_lm.json").model
    assert flops_per_word(lstm, 8192) / 1e6 == pytest.approx(81.8, rel=0.01)
    big = load_config(REPOSITORY / "configs" / "biglstm_lm.json").model
    assert flops_per_word(big, 8192) / 1e6 == pytest.approx(956, rel=0.01)


def test_work_of_an_added_cell_is_that_of_its_own_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(recurrent._ADDED, "irnn", lambda config, input_width: nn.GRU(input_width, config.hidden))
    assert flops_per_word(ModelConfig.model_validate(SHAPES[0]), 50) == 6 * (3 * 20 * (7 + 20) + 50 * 20)


def test_steps_and_tokens_are_those_that_training_takes(tmp_path: Path) -> None:
    tokens = made_tokens(tmp_path / "tokens")
    config: Config = override(made_config(tmp_path, {"samples": 10}), ["training.total_steps=null", "training.epochs=2.5"])
    plan = make_plan(config, Place(), torch.device("cpu"))
    train = tokens.split("train")
    batches = Batches(train, end_id=tokens.vocabulary.end_id, lanes=4, steps=5, seed=1, block_tokens=1000)
    assert plan.tokens_per_epoch == train.num_tokens
    assert plan.total_steps == int(2.5 * batches.steps_per_epoch)
    assert plan.seconds is not None
    assert plan.seconds > 0
    half = make_plan(config, Place(rank=0, size=2, local_size=2), torch.device("cpu"))
    assert half.bytes_a_rank < plan.bytes_a_rank


def test_what_training_refuses_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_tokens(tmp_path / "tokens")
    config: Config = made_config(tmp_path, {"samples": 10})
    device = torch.device("cpu")
    with pytest.raises(UserError, match=r"batches\.lanes \(=4\) must be divisible"):
        make_plan(config, Place(rank=0, size=3, local_size=3), device)
    with pytest.raises(UserError, match=r"zero_stage=3 with batches\.state=reset works on one rank alone"):
        make_plan(override(config, ["training.zero_stage=3", "batches.state=reset"]), Place(rank=0, size=2, local_size=2), device)
    with pytest.raises(UserError, match=r"fewer than batches\.lanes x batches\.steps"):
        make_plan(override(config, ["batches.steps=100000"]), Place(), device)
    with pytest.raises(UserError, match=r"deepspeed\.optimizer"):
        make_plan(override(config, ['deepspeed={"optimizer": {}}']), Place(), device)
    with pytest.raises(UserError, match="at most half the vocabulary"):
        make_plan(override(config, ["softmax.samples=150"]), Place(), device)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"logging\.services asks for wandb, which is not installed"):
        make_plan(override(config, ['logging.services=["wandb"]']), Place(), device)


def test_the_plan_is_told_in_words_a_second_and_as_json_where_all_lines_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_tokens(tmp_path / "tokens")
    config = made_config(tmp_path, {"samples": 10})
    plan = make_plan(config, Place(), torch.device("cpu"))
    assert dataclasses.replace(plan, words=500.0, seconds=10.0).text().endswith("about 10 s on this machine, 50 words/s")
    use_log_format("json")
    try:
        dry_run(config)
    finally:
        use_log_format("text")
    assert "\nmemory  " in json.loads(capsys.readouterr().out)["message"]


def test_memory_is_within_a_tenth_of_what_the_benchmark_measured() -> None:
    """The first shape of each process: DeepSpeed's engines stay, so that later rows of one process hold earlier models too."""
    measured = json.loads((REPOSITORY / "results" / "benchmark.json").read_text())["training"]
    checked = 0
    for row in measured:
        if row["shape"] != "irnn_512" or row["precision"] != "bf16":
            continue
        overrides = ["model.hidden=512", "model.projection=null", "optimizer.kind=adagrad"]
        config = load_config(REPOSITORY / "configs" / "irnn_lm.json", overrides)
        core, tables = core_parameters(config.model), table_parameters(config.model, config.softmax, row["vocabulary"])
        estimate = _bytes_a_rank(config, core, tables, row["vocabulary"], row["ranks"], row["precision"])
        assert estimate / 2**20 == pytest.approx(row["peak_memory_mb"], rel=0.1), row["ranks"]
        checked += 1
    assert checked == 2


def test_the_full_softmax_s_gradient_of_all_rows_is_counted() -> None:
    configs = [load_config(REPOSITORY / "configs" / "irnn_lm.json", [f"softmax.kind={kind}"]) for kind in ("sampled", "full")]
    sampled, full = (_bytes_a_rank(config, 0, 0, 793_471, 2, "fp32") for config in configs)
    assert full - sampled > 4 * 793_471 * 512 / 2 - 8192 * 1024 * 12  # float32, half of the rows; less the 8,192 samples' own


def test_a_dry_run_prints_config_and_plan_once_and_leaves_no_run(tmp_path: Path) -> None:
    folder = fill(tmp_path)
    missing = run([sys.executable, "launch/train.py", "--config", str(folder / "run.json"), "--dry-run"])
    assert missing.returncode == 2
    assert "launch/preprocess.py" in missing.stderr
    assert run([sys.executable, "launch/preprocess.py", "--config", str(folder / "run.json")]).returncode == 0
    done = train(folder / "run.json", "--dry-run", "--set", "batches.lanes=16")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("vocabulary   ") == 1
    assert '"lanes": 16' in done.stdout
    assert re.search(r"memory           about [\d,.]+ MB a rank \(ranks: 2\)", done.stdout)
    assert re.search(r"length           60 steps, [\d,]+ tokens", done.stdout)
    assert not (folder / "run").exists()
